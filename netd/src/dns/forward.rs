//! Asking the node's resolvers, from the node's own namespace.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use orch_netd_core::{dns::Transport, resolv::ResolvConf};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

const DNS_PORT: u16 = 53;
/// How long one server may take before the next is asked, in the first round and in the second: a lost datagram costs a
/// second, and with one server all is over before a client's resolver gives up (5 s).
const ROUNDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Questions under way at once, of all tasks; more are answered with SERVFAIL.
const MAX_UNDER_WAY: usize = 512;
/// That many are left for tasks that ask little.
const RESERVED: usize = 128;
const MAX_MESSAGE_LEN: usize = 65_535;
/// Bit of the header's third byte: the answer did not fit.
const TRUNCATED: u8 = 0x02;
const HEADER_LEN: usize = 12;
const CODE_MASK: u8 = 0x0f;
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// The node's resolv.conf, read again when it changes, and the limit on questions under way.
pub(crate) struct Resolvers {
    path: PathBuf,
    read: Mutex<(Option<SystemTime>, ResolvConf)>,
    under_way: Semaphore,
}

impl Resolvers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default(), under_way: Semaphore::new(MAX_UNDER_WAY) }
    }

    /// The node's settings as of now.
    pub(crate) fn node(&self) -> ResolvConf {
        let modified = fs::metadata(&self.path).and_then(|m| m.modified()).ok();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0 != modified || modified.is_none() {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            *read = (modified, ResolvConf::parse(&text));
        }
        read.1.clone()
    }

    /// Whether a task may have more questions under way than its share.
    pub(crate) fn has_plenty(&self) -> bool {
        self.under_way.available_permits() > RESERVED
    }

    /// Asks `servers` (else the node's) one after the other, and once more those that said nothing. A server that cannot
    /// tell is believed only when no other can; `None` when none answers.
    pub(crate) async fn ask(&self, query: &[u8], servers: &[IpAddr], transport: Transport) -> Option<Vec<u8>> {
        let _permit = self.under_way.try_acquire().ok()?;
        let mut silent = if servers.is_empty() { self.node().nameservers } else { servers.to_vec() };
        let mut failure = None;
        for limit in ROUNDS {
            for server in std::mem::take(&mut silent) {
                match timeout(limit, ask_one(query, server, transport)).await {
                    Ok(Ok(reply)) if cannot_tell(&reply) => failure = Some(reply),
                    Ok(Ok(reply)) => return Some(reply),
                    Ok(Err(error)) => {
                        tracing::debug!(%server, %error, "a resolver failed");
                        silent.push(server);
                    }
                    Err(_) => {
                        tracing::debug!(%server, "a resolver did not answer in time");
                        silent.push(server);
                    }
                }
            }
        }
        failure
    }
}

fn cannot_tell(reply: &[u8]) -> bool {
    matches!(reply[3] & CODE_MASK, SERVER_FAILURE | REFUSED)
}

/// By UDP; a truncated reply is passed on to a client that came by UDP (it asks again by TCP), and asked for again by TCP
/// for one that came by TCP.
async fn ask_one(query: &[u8], server: IpAddr, transport: Transport) -> io::Result<Vec<u8>> {
    let server = SocketAddr::from((server, DNS_PORT));
    let reply = by_udp(query, server).await?;
    if transport == Transport::Tcp && reply[2] & TRUNCATED != 0 {
        return by_tcp(query, server).await;
    }
    Ok(reply)
}

async fn by_udp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    // A socket, hence a random port, per question; connected, so that only the server's datagrams arrive.
    let socket = UdpSocket::bind(SocketAddr::from((any, 0))).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_MESSAGE_LEN];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if answers(&reply, query) { Ok(reply) } else { Err(io::Error::other("the reply is to another question")) }
}

/// Same id, and the question repeated (names byte by byte: resolvers keep their case).
fn answers(reply: &[u8], query: &[u8]) -> bool {
    let question_end = query[HEADER_LEN.min(query.len())..]
        .iter()
        .position(|byte| *byte == 0)
        .map_or(query.len(), |end| (HEADER_LEN + end + 5).min(query.len()));
    let same_question = || {
        let (asked, repeated) = (&query[HEADER_LEN..question_end], reply.get(HEADER_LEN..question_end));
        repeated.is_some_and(|repeated| repeated.eq_ignore_ascii_case(asked))
    };
    // Errors may come without the question.
    let has_question = |reply: &[u8]| reply[4..6] != [0, 0];
    reply.len() >= HEADER_LEN
        && query.len() >= HEADER_LEN
        && reply[..2] == query[..2]
        && reply[2] & 0x80 != 0
        && (!has_question(reply) || same_question())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\x03foo\x00\x00\x01\x00\x01";

    /// A resolver at 127.0.0.`last` that does not hear the first `deaf` datagrams and answers the others with `code`.
    async fn resolver(last: u8, deaf: usize, code: u8) -> IpAddr {
        let addr = IpAddr::from([127, 0, 53, last]);
        let socket = UdpSocket::bind((addr, DNS_PORT)).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            for heard in 0.. {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut reply = buffer[..length].to_vec();
                (reply[2], reply[3]) = (reply[2] | 0x80, code);
                if heard >= deaf {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        });
        addr
    }

    #[tokio::test]
    async fn who_is_silent_is_asked_again_and_who_cannot_tell_is_believed_last() {
        let resolvers = Resolvers::new(PathBuf::from("/nonexistent"));
        let (lossy, failing, good) = (resolver(1, 1, 0).await, resolver(2, 0, 2).await, resolver(3, 0, 3).await);
        let dead = resolver(4, usize::MAX, 0).await;
        for (servers, code) in [
            (vec![lossy], Some(0)),
            (vec![failing, good], Some(3)),
            (vec![failing], Some(2)),
            (vec![dead, failing], Some(2)),
            (vec![dead], None),
        ] {
            let reply = resolvers.ask(QUERY, &servers, Transport::Udp).await;
            assert_eq!(reply.map(|reply| reply[3] & CODE_MASK), code, "{servers:?}");
        }
    }

    #[test]
    fn a_reply_must_repeat_the_question() {
        let query = QUERY;
        let mut reply = query.to_vec();
        reply[2] |= 0x80;
        assert!(answers(&reply, query));
        reply[13] = b'F';
        assert!(answers(&reply, query), "names compare without case");
        reply[13] = b'g';
        assert!(!answers(&reply, query));
        reply[13] = b'f';
        reply[0] = 0;
        assert!(!answers(&reply, query), "another id");
        assert!(!answers(&reply[..5], query));
    }
}
