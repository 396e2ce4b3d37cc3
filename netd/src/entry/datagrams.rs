//! Datagrams of IPv6 clients: each client has a socket of its own towards the node's port, so that the rules see as many
//! flows as there are clients, and its answers find back.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg},
};
use tokio::{io::Interest, net::UdpSocket, task::JoinSet, time::timeout};

/// Clients of one port at once; others are not heard until one of these is silent.
const MAX_FLOWS: usize = 1_024;
const MAX_DATAGRAM_LEN: usize = 65_535;
/// As long as the kernel remembers one that was answered.
const SILENCE: Duration = Duration::from_secs(120);
/// Nobody may have been there: such places are free again soon.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Who asked which address of the node, by which link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    client: SocketAddrV6,
    asked: [u8; 16],
    link: u32,
}

/// The way from one client to the node's port.
struct Way {
    back: UdpSocket,
    /// The client has sent something since this was looked at last.
    heard: AtomicBool,
}

/// Until it is aborted; flows end with it.
pub(super) async fn serve(front: UdpSocket, to: impl Fn() -> SocketAddr) {
    let front = Arc::new(front);
    let mut ways: HashMap<Flow, (Arc<Way>, SocketAddr)> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM_LEN];
    loop {
        tokio::select! {
            Some(ended) = answers.join_next() => {
                if let Ok(flow) = ended {
                    ways.remove(&flow);
                }
            }
            received = receive(&front, &mut buffer) => {
                // What cannot be read or passed on is lost, as datagrams are.
                let Ok((flow, length)) = received else { continue };
                let (to, has_room) = (to(), ways.len() < MAX_FLOWS);
                let way = match ways.get_mut(&flow) {
                    Some((way, towards)) => {
                        // Another task has the port by now.
                        if *towards != to && way.back.connect(to).await.is_ok() {
                            *towards = to;
                        }
                        way.clone()
                    }
                    None if has_room => {
                        let Ok(back) = towards(to).await else { continue };
                        let way = Arc::new(Way { back, heard: AtomicBool::new(false) });
                        answers.spawn(answer(front.clone(), way.clone(), flow));
                        ways.insert(flow, (way.clone(), to));
                        way
                    }
                    None => continue,
                };
                way.heard.store(true, Ordering::Relaxed);
                let _ = way.back.send(&buffer[..length]).await;
            }
        }
    }
}

async fn towards(to: SocketAddr) -> io::Result<UdpSocket> {
    let back = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    back.connect(to).await?;
    Ok(back)
}

/// Sends back what the task says, until both are silent or the task's port is closed.
async fn answer(front: Arc<UdpSocket>, way: Arc<Way>, flow: Flow) -> Flow {
    let mut patience = UNANSWERED;
    loop {
        match timeout(patience, way.back.readable()).await {
            Ok(Ok(())) => {
                // Not kept: most flows wait most of the time.
                let mut buffer = vec![0; MAX_DATAGRAM_LEN];
                match way.back.try_recv(&mut buffer) {
                    Ok(length) => {
                        patience = SILENCE;
                        let sent = front.async_io(Interest::WRITABLE, || send(&front, flow, &buffer[..length])).await;
                        sent.unwrap_or_else(|error| tracing::debug!(%error, "cannot answer an IPv6 client"));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return flow,
                }
            }
            Ok(Err(_)) => return flow,
            Err(_) if way.heard.swap(false, Ordering::Relaxed) => {}
            Err(_) => return flow,
        }
    }
}

async fn receive(front: &UdpSocket, buffer: &mut [u8]) -> io::Result<(Flow, usize)> {
    front.async_io(Interest::READABLE, || receive_now(front, buffer)).await
}

fn receive_now(front: &UdpSocket, buffer: &mut [u8]) -> io::Result<(Flow, usize)> {
    let mut control = cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(front.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let info = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
        _ => None,
    });
    let (Some(client), Some(info)) = (message.address, info) else { return Err(io::ErrorKind::InvalidData.into()) };
    let flow = Flow { client: client.into(), asked: info.ipi6_addr.s6_addr, link: info.ipi6_ifindex };
    Ok((flow, message.bytes))
}

fn send(front: &UdpSocket, flow: Flow, payload: &[u8]) -> io::Result<()> {
    let address = libc::in6_addr { s6_addr: flow.asked };
    let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: flow.link };
    let (part, control) = ([IoSlice::new(payload)], [ControlMessage::Ipv6PacketInfo(&info)]);
    let client = SockaddrIn6::from(flow.client);
    sendmsg(front.as_raw_fd(), &part, &control, MsgFlags::empty(), Some(&client))?;
    Ok(())
}
