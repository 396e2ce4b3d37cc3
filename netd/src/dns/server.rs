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
    sync::{Semaphore, SemaphorePermit, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{Resolvers, Sockets};

const MAX_UDP_QUERY_LEN: usize = 4_096;
/// TCP connections of one task at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;
/// Questions of one task to the outside that are under way at once, whatever others ask. More are as long as there is plenty.
const OUTSIDE_SHARE: usize = 64;
/// Those past it that wait for a place, at once and for how long: an answer is still in time then for a client that gives up
/// after 5 s.
const MAX_WAITING: usize = 512;
const SHARE_WAIT: Duration = Duration::from_secs(1);
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
    waiting: Semaphore,
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
        let shared = Arc::new(Shared::new(resolvers));
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
    fn new(resolvers: Arc<Resolvers>) -> Self {
        Self {
            view: watch::Sender::new(None),
            resolvers,
            outside: Semaphore::new(OUTSIDE_SHARE),
            waiting: Semaphore::new(MAX_WAITING),
            turn: AtomicUsize::new(0),
            malformed: AtomicU64::new(0),
            queries: AtomicU64::new(0),
        }
    }

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
        let mut share = self.outside.try_acquire().ok();
        if share.is_none() && !self.resolvers.has_plenty() {
            share = self.share().await;
            if share.is_none() {
                return servfail(query);
            }
        }
        let reply = self.resolvers.ask(query, &view.nameservers, transport).await;
        reply.or_else(|| servfail(query))
    }

    /// A place of the task's own, once another of its questions has its answer.
    async fn share(&self) -> Option<SemaphorePermit<'_>> {
        let _turn = self.waiting.try_acquire().ok()?;
        timeout(SHARE_WAIT, self.outside.acquire()).await.ok()?.ok()
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
                // Bounded by the resolvers' limit and by how many wait: past both, the question is refused at once.
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

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\x03foo\x00\x00\x01\x00\x01";
    const CODE_MASK: u8 = 0x0f;

    /// Answers every question after a while.
    async fn slow_resolver() -> IpAddr {
        let addr = IpAddr::from([127, 0, 53, 9]);
        let socket = Arc::new(UdpSocket::bind((addr, 53)).await.unwrap());
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let (mut reply, socket) = (buffer[..length].to_vec(), socket.clone());
                reply[2] |= 0x80;
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    socket.send_to(&reply, from).await.unwrap();
                });
            }
        });
        addr
    }

    /// `count` questions of one task at once; how many of them were answered.
    fn ask(resolvers: &Arc<Resolvers>, server: IpAddr, count: usize) -> JoinHandle<usize> {
        let shared = Arc::new(Shared::new(resolvers.clone()));
        let view = TaskView { nameservers: vec![server], ..TaskView::default() };
        let mut asked = JoinSet::new();
        for _ in 0..count {
            let (shared, view) = (shared.clone(), view.clone());
            asked.spawn(async move { shared.forward(QUERY, &view, Transport::Udp).await });
        }
        tokio::spawn(async move {
            let replies = asked.join_all().await.into_iter().flatten();
            replies.filter(|reply| reply[3] & CODE_MASK == 0).count()
        })
    }

    #[tokio::test]
    async fn a_burst_of_questions_is_answered_and_leaves_room_for_other_tasks() {
        let (resolvers, server) = (Arc::new(Resolvers::new("/nonexistent".into())), slow_resolver().await);
        // As many at once as there is plenty, the rest when their turn comes.
        let burst = ask(&resolvers, server, 500);
        let other = ask(&resolvers, server, OUTSIDE_SHARE);
        assert_eq!(other.await.unwrap(), OUTSIDE_SHARE);
        assert_eq!(burst.await.unwrap(), 500);
    }
}
