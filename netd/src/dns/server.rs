//! One task's server.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use orch_netd_core::dns::{Answer, Transport, View, answer, servfail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{Resolvers, Sockets};

const MAX_UDP_QUERY_LEN: usize = 4_096;
/// TCP connections of one task at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;
/// Questions of one task to the outside that are under way at once: the others' are not to wait for it.
const MAX_OUTSIDE: usize = 64;
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Pause after a failed accept, so that a lasting error (no descriptors) does not take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server answers from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TaskView {
    pub(crate) view: View,
    /// Where names from outside are asked; empty: the node's resolvers.
    pub(crate) nameservers: Vec<IpAddr>,
}

/// A running server; it ends when this is dropped.
pub(crate) struct Server {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    /// `None` at the start: questions wait until it is known what there is, where an answer would say that there is nothing.
    view: watch::Sender<Option<Arc<TaskView>>>,
    resolvers: Arc<Resolvers>,
    outside: Semaphore,
    turn: AtomicUsize,
    malformed: AtomicU64,
    /// Not told yet.
    queries: AtomicU64,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Server {
    pub(crate) fn start(sockets: Sockets, resolvers: Arc<Resolvers>) -> io::Result<Self> {
        let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let shared = Arc::new(Shared {
            view: watch::Sender::new(None),
            resolvers,
            outside: Semaphore::new(MAX_OUTSIDE),
            turn: AtomicUsize::new(0),
            malformed: AtomicU64::new(0),
            queries: AtomicU64::new(0),
        });
        let tasks = [tokio::spawn(serve_udp(shared.clone(), udp)), tokio::spawn(serve_tcp(shared.clone(), tcp))];
        Ok(Self { shared, tasks })
    }

    pub(crate) fn set_view(&self, view: TaskView) {
        self.shared.view.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&view);
            if changed {
                *current = Some(Arc::new(view));
            }
            changed
        });
    }

    /// Questions since this was asked last.
    pub(crate) fn take_queries(&self) -> u64 {
        self.shared.queries.swap(0, Ordering::Relaxed)
    }

    /// Datagrams that were no queries.
    pub(crate) fn malformed(&self) -> u64 {
        self.shared.malformed.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn view(&self) -> Arc<TaskView> {
        self.view.borrow().clone().unwrap_or_default()
    }

    /// Waits for the first view.
    async fn ready(&self) {
        // The sender lives as long as this: there is no other end of the wait.
        let _ = self.view.subscribe().wait_for(Option::is_some).await;
    }

    fn local(&self, query: &[u8], view: &TaskView, transport: Transport) -> Answer {
        crate::metrics::DNS_QUERIES.inc();
        self.queries.fetch_add(1, Ordering::Relaxed);
        let answer = answer(query, &view.view, self.turn.fetch_add(1, Ordering::Relaxed), transport);
        if answer == Answer::Malformed {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    async fn forward(&self, query: &[u8], view: &TaskView, transport: Transport) -> Option<Vec<u8>> {
        let Ok(_share) = self.outside.try_acquire() else { return servfail(query) };
        let reply = self.resolvers.ask(query, &view.nameservers, transport).await;
        reply.or_else(|| servfail(query))
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    shared.ready().await;
    loop {
        // Waited for without a buffer: most tasks ask rarely, and there are many.
        let Ok(()) = socket.readable().await else { continue };
        let Ok((query, from)) = receive(&socket) else { continue };
        let view = shared.view();
        match shared.local(&query, &view, Transport::Udp) {
            Answer::Reply(reply) => drop(socket.send_to(&reply, from).await),
            Answer::Malformed => {}
            Answer::Forward => {
                let (shared, socket) = (shared.clone(), socket.clone());
                // Bounded by the resolvers' limit: past it, the question is refused without waiting.
                tokio::spawn(async move {
                    if let Some(reply) = shared.forward(&query, &view, Transport::Udp).await {
                        let _ = socket.send_to(&reply, from).await;
                    }
                });
            }
        }
    }
}

fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; MAX_UDP_QUERY_LEN];
    let (length, from) = socket.try_recv_from(&mut buffer)?;
    Ok((buffer[..length].to_vec(), from))
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    shared.ready().await;
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = serve_connection(&shared, stream).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_connection(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let query = timeout(CONNECTION_IDLE, read_message(&mut stream)).await??;
        let view = shared.view();
        let reply = match shared.local(&query, &view, Transport::Tcp) {
            Answer::Reply(reply) => Some(reply),
            Answer::Forward => shared.forward(&query, &view, Transport::Tcp).await,
            Answer::Malformed => None,
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(CONNECTION_IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut query = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut query).await?;
    Ok(query)
}
