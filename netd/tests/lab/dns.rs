//! A stub resolver for tasks, and a tiny server for nodes.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};

use crate::sockets::in_ns;

const SERVER: ([u8; 4], u16) = ([127, 0, 0, 11], 53);

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// A question by a socket that hears when it is refused.
pub(crate) struct Asked(UdpSocket, Vec<u8>);

impl Asked {
    pub(crate) fn send(ns: &Path, name: &str) -> Self {
        let socket = in_ns(ns, || UdpSocket::bind(("127.0.0.1", 0)).unwrap());
        socket.connect(SocketAddr::from(SERVER)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let query = query(name);
        socket.send(&query).unwrap();
        Self(socket, query)
    }

    /// Neither an answer nor a refusal.
    pub(crate) fn is_silent(&self) -> bool {
        let heard = self.0.recv(&mut [0; 512]);
        heard.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    pub(crate) fn again(&self) -> Option<Vec<IpAddr>> {
        self.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        self.0.send(&self.1).unwrap();
        let mut buffer = [0; 512];
        let length = self.0.recv(&mut buffer).unwrap();
        addresses(&buffer[..length])
    }
}

/// The addresses, sorted; `None`: no such name.
fn addresses(reply: &[u8]) -> Option<Vec<IpAddr>> {
    let message = Message::from_vec(reply).unwrap();
    assert_eq!(message.metadata.id, 4711);
    let mut found: Vec<_> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(addr) => Some(IpAddr::V4(addr.0)),
            _ => None,
        })
        .collect();
    found.sort();
    (message.metadata.response_code == ResponseCode::NoError).then_some(found)
}

pub(crate) fn ask(ns: &Path, name: &str) -> Option<Vec<IpAddr>> {
    let socket = in_ns(ns, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(SocketAddr::from(SERVER)).unwrap();
    socket.send(&query(name)).unwrap();
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).unwrap();
    addresses(&buffer[..length])
}

pub(crate) fn ask_tcp(ns: &Path, name: &str) -> Option<Vec<IpAddr>> {
    let mut stream = in_ns(ns, || TcpStream::connect(SocketAddr::from(SERVER)).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let query = query(name);
    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut reply).unwrap();
    addresses(&reply)
}

/// Answers one name and denies all others.
pub(crate) fn resolver(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let Ok(request) = Message::from_vec(&buffer[..length]) else { continue };
        let mut reply = Message::response(request.metadata.id, OpCode::Query);
        reply.add_queries(request.queries.iter().cloned());
        let name = request.queries[0].name().clone();
        if name.to_ascii() == "outside.example." {
            reply.add_answer(Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 7].into()))));
        } else {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        let _ = socket.send_to(&reply.to_vec().unwrap(), from);
    }
}
