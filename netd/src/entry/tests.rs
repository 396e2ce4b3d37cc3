//! Clients by ::1, tasks by 127.0.0.1.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn of(protocol: Protocol, port: u16) -> BTreeMap<Entry, Option<SocketAddr>> {
    [(Entry { protocol, addr: Ipv6Addr::UNSPECIFIED, port }, None)].into()
}

fn has_v6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

async fn connected(port: u16) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect((Ipv6Addr::LOCALHOST, port))).await.unwrap().unwrap()
}

#[tokio::test]
async fn streams_are_passed_on_and_ended_as_the_task_ends_them() {
    if !has_v6() {
        return;
    }
    let task = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = task.local_addr().unwrap().port();
    let mut entries = Entries::default();
    entries.set(&of(Protocol::Tcp, port), None, false);
    let mut client = connected(port).await;
    let (mut served, _) = task.accept().await.unwrap();
    client.write_all(b"asked").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = String::new();
    served.read_to_string(&mut asked).await.unwrap();
    served.write_all(b"answered").await.unwrap();
    drop(served);
    let mut answered = String::new();
    client.read_to_string(&mut answered).await.unwrap();
    assert_eq!((asked.as_str(), answered.as_str()), ("asked", "answered"));
    // A connection outlives its port, and one to nobody is reset.
    let mut lasting = connected(port).await;
    let (mut served, _) = task.accept().await.unwrap();
    drop(task);
    let refused = connected(port).await.read(&mut [0]).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset);
    entries.set(&BTreeMap::new(), None, false);
    served.write_all(b"still here").await.unwrap();
    let mut said = [0; 10];
    lasting.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"still here");
}

#[tokio::test]
async fn a_port_that_another_program_has_is_taken_when_it_is_free() {
    if !has_v6() {
        return;
    }
    let other = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    let mut entries = Entries::default();
    let wanted = of(Protocol::Tcp, port);
    entries.set(&wanted, None, false);
    assert_eq!(entries.refused.values().collect::<Vec<_>>(), [&false], "it may have been ours");
    entries.set(&wanted, None, true);
    assert_eq!((entries.refused.values().collect::<Vec<_>>(), entries.open.len()), (vec![&true], 0));
    drop(other);
    entries.set(&wanted, None, false);
    assert_eq!(entries.open.len(), 0, "tried now and then only");
    entries.set(&wanted, None, true);
    assert_eq!((entries.refused.len(), entries.open.len()), (0, 1));
}

#[tokio::test]
async fn each_client_of_datagrams_has_its_own_answers() {
    if !has_v6() {
        return;
    }
    let task = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = task.local_addr().unwrap().port();
    let mut entries = Entries::default();
    entries.set(&of(Protocol::Udp, port), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), false);
    let mut clients = Vec::new();
    for name in [b"a", b"b"] {
        let client = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        client.connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        client.send(name).await.unwrap();
        clients.push((name, client));
    }
    let mut buffer = [0; 9];
    for _ in 0..2 {
        let (length, from) = timeout(PATIENCE, task.recv_from(&mut buffer)).await.unwrap().unwrap();
        task.send_to(&[b"to ", &buffer[..length]].concat(), from).await.unwrap();
    }
    for (name, client) in &clients {
        let length = timeout(PATIENCE, client.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..length], [b"to ", &name[..]].concat()[..]);
    }
}

/// The container was started again, with another address of its own.
#[tokio::test]
async fn a_port_of_one_address_leads_to_its_task_and_to_the_next() {
    if !has_v6() {
        return;
    }
    let port = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut entries = Entries::default();
    for name in [b"a", b"b"] {
        let task = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let entry = Entry { protocol: Protocol::Tcp, addr: Ipv6Addr::LOCALHOST, port };
        entries.set(&[(entry, Some(task.local_addr().unwrap()))].into(), None, false);
        assert_eq!(entries.refused_now().count(), 0);
        let mut client = connected(port).await;
        let (mut served, _) = task.accept().await.unwrap();
        served.write_all(name).await.unwrap();
        let mut said = [0];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, name);
    }
}
