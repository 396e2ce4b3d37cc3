//! Clients that flood, stall or send garbage: what they cost the manager in memory, and that others are still served.
//!
//! Each attack is a process of its own that runs when nobody else wants the processor, as if it were on another machine:
//! what the others wait for is what the manager does, not what its attacker does.

use std::{
    collections::VecDeque,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use orch_model::ClusterId;
use orch_proto::{
    tls::{self, Identity},
    transport,
    wire::{self, Kind, control_client::ControlClient},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{
    lab::{self, Lab, Process, service},
    raw::{self, Hello},
};

/// More than this no client may add to the manager.
const MEMORY_LIMIT_BYTES: u64 = 64 << 20;
/// Any call of somebody else, on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const HALF_OPEN: usize = 10_000;
const ATTACK: Duration = Duration::from_secs(4);
/// Between two calls of the bystander.
const PAUSE: Duration = Duration::from_millis(2);

/// What the process has of its own in memory.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Calls of somebody who has done nothing, and the manager's memory meanwhile.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Vec<Duration>, u64)>,
}

impl Bystander {
    fn start(pid: u32, socket: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (over, socket) = (Arc::clone(&stop), socket.to_owned());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // A runtime and a connection of its own, so that it does not wait behind the attack at this end.
            let channel = runtime.block_on(transport::unix_channel(&socket)).unwrap();
            let (mut times, mut peak) = (Vec::new(), 0);
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let mut client = ControlClient::new(channel.clone());
                let request = wire::GetRequest { kind: Kind::Service.into(), reference: "s0".to_owned() };
                let answer = runtime.block_on(async { timeout(ANSWER_LIMIT, client.get(request)).await });
                answer.expect("an answer in time").unwrap();
                times.push(start.elapsed());
                peak = peak.max(resident_bytes(pid));
                thread::sleep(PAUSE);
            }
            (times, peak)
        });
        Self { stop, thread }
    }

    /// The 99th percentile of its calls, and the most memory that the manager had.
    fn stop(self) -> (Duration, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut times, peak) = self.thread.join().unwrap();
        times.sort();
        (times[times.len() * 99 / 100], peak)
    }
}

struct Target {
    addr: String,
    cluster: ClusterId,
    root_pem: String,
    worker: Identity,
    socket: PathBuf,
}

impl Target {
    /// Leaves it to another process.
    fn save(&self, dir: &Path) {
        self.worker.save(&dir.join("worker")).unwrap();
        let words = format!("{}\n{}\n{}", self.addr, self.cluster, self.socket.display());
        fs::write(dir.join("target"), words).unwrap();
    }

    fn load(dir: &Path) -> Self {
        let worker = Identity::load(&dir.join("worker")).unwrap();
        let words = fs::read_to_string(dir.join("target")).unwrap();
        let [addr, cluster, socket] = words.lines().collect::<Vec<_>>().try_into().unwrap();
        let (addr, cluster, socket) = (addr.to_owned(), cluster.parse().unwrap(), socket.into());
        Self { addr, cluster, root_pem: worker.root_pem.clone(), worker, socket }
    }

    async fn tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_over(TcpStream::connect(&self.addr).await?).await
    }

    /// As from another machine.
    async fn tls_from(&self, addr: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(addr.parse().unwrap())?;
        self.tls_over(socket.connect(self.addr.parse().unwrap()).await?).await
    }

    async fn tls_over(&self, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        Hello::with(raw::of_identity(&self.worker)).over(tcp, &self.root_pem, &self.cluster).await
    }
}

#[test]
fn whoever_floods_or_stalls_costs_little_and_others_are_served() {
    raise_descriptor_limit();
    let lab = Lab::new(1);
    let process = Process::start(&lab);
    lab.block_on(async {
        let mut control = process.control().await;
        for number in 0..300 {
            control.create(service(&format!("s{number}"), 3)).await.unwrap();
        }
        let info = control.info(wire::Empty {}).await.unwrap().into_inner();
        let joined = lab::join_with(&lab.addr(0), &info.root_cert_pem, &info.worker_token).await;
        let target = Target {
            addr: lab.addr(0),
            cluster: info.cluster_id.parse().unwrap(),
            root_pem: info.root_cert_pem,
            worker: joined,
            socket: lab.paths(0).manager_sock(),
        };
        let dir = tempfile::tempdir().unwrap();
        target.save(dir.path());
        let quiet = Bystander::start(process.pid(), &target.socket);
        tokio::time::sleep(ATTACK).await;
        let (quiet_p99, before) = quiet.stop();
        row("nobody", quiet_p99, quiet_p99, 0);
        for (number, (what, _)) in ATTACKS.iter().enumerate() {
            let bystander = Bystander::start(process.pid(), &target.socket);
            attack_from_afar(number, dir.path()).await;
            let (p99, peak) = bystander.stop();
            let added = peak.saturating_sub(before);
            row(what, quiet_p99, p99, added);
            assert!(added < MEMORY_LIMIT_BYTES, "{what} costs the manager {} MB", added >> 20);
        }
    });
}

/// One line of the table in docs/benchmarks.md.
fn row(what: &str, quiet: Duration, p99: Duration, added_bytes: u64) {
    let times = p99.as_secs_f64() / quiet.as_secs_f64();
    let ms = p99.as_secs_f64() * 1e3;
    eprintln!("| {what} | {ms:.1} ms | {times:.1}x | {:+} MB |", added_bytes >> 20);
}

type Attack = for<'a> fn(&'a Target) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

const ATTACKS: &[(&str, Attack)] = &[
    ("10,000 half-open connections", |t| Box::pin(half_open(t))),
    ("handshakes, one byte a time", |t| Box::pin(slow_handshakes(t))),
    ("connections that are kept idle", |t| Box::pin(idle_connections(t))),
    ("a worker that floods with calls", |t| Box::pin(calls(t))),
    ("a worker that stalls in its requests", |t| Box::pin(stalled_requests(t))),
    ("local connections", |t| Box::pin(async { local_connections(&t.socket) })),
    ("long lists that nobody reads", |t| Box::pin(async { lists(&t.socket) })),
    ("watches that nobody reads", |t| Box::pin(async { watches(&t.socket) })),
];

/// Set for a child process that attacks: the number of the attack, and the folder that tells of the target.
const FLOODER_VAR: &str = "ORCH_TEST_FLOODER";

async fn attack_from_afar(number: usize, dir: &Path) {
    let mut child = Command::new("chrt")
        .args(["--idle", "0"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "flood::flooder", "--nocapture"])
        .env(FLOODER_VAR, format!("{number} {}", dir.display()))
        .spawn()
        .unwrap();
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{}", ATTACKS[number].0);
}

/// An attack when [`FLOODER_VAR`] says so, else nothing.
#[test]
fn flooder() {
    let Ok(wanted) = std::env::var(FLOODER_VAR) else { return };
    raise_descriptor_limit();
    tls::install_crypto_provider();
    let (number, dir) = wanted.split_once(' ').unwrap();
    let target = Target::load(Path::new(dir));
    let (_, attack) = ATTACKS[number.parse::<usize>().unwrap()];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(attack(&target));
}

async fn half_open(target: &Target) {
    let mut open = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 1..=HALF_OPEN {
        if let Ok(Ok(tcp)) = timeout(ANSWER_LIMIT, TcpStream::connect(&target.addr)).await {
            open.push(tcp);
        }
        if number.is_multiple_of(HALF_OPEN / 20) {
            // Whoever comes from elsewhere does not wait behind them.
            let start = Instant::now();
            let stream = timeout(ANSWER_LIMIT, target.tls_from("127.0.0.2:0")).await.expect("in time").unwrap();
            assert!(raw::is_served(stream).await);
            slowest = slowest.max(start.elapsed());
        }
    }
    eprintln!("    the slowest of 20 from elsewhere is in after {slowest:.1?}");
    // At the same address, whoever is patient is served.
    let patient = async {
        loop {
            match target.tls().await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    assert!(raw::is_served(timeout(ANSWER_LIMIT, patient).await.expect("in time")).await);
    assert!(open.len() > HALF_OPEN / 2, "only {} connections", open.len());
}

/// The start of a client hello that never ends.
async fn slow_handshakes(target: &Target) {
    let mut open = Vec::new();
    for _ in 0..2000 {
        if let Ok(mut tcp) = TcpStream::connect(&target.addr).await {
            let _ = tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await;
            open.push(tcp);
        }
    }
    let start = Instant::now();
    while start.elapsed() < ATTACK {
        for tcp in &mut open {
            let _ = tcp.write_all(&[0]).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(raw::is_served(target.tls().await.unwrap()).await);
}

/// Complete ones, of a worker and of strangers, each with settings and nothing more.
async fn idle_connections(target: &Target) {
    let mut open = Vec::new();
    for number in 0..600 {
        let stream = if number % 2 == 0 {
            target.tls().await
        } else {
            Hello::stranger().connect(&target.addr, &target.root_pem, &target.cluster).await
        };
        if let Ok(mut stream) = stream {
            let _ = stream.write_all(&[raw::PREFACE, &raw::frame(raw::SETTINGS, 0, 0, &[])].concat()).await;
            open.push(stream);
        }
    }
    assert!(open.len() > 300, "{}", open.len());
    tokio::time::sleep(ATTACK / 4).await;
}

async fn calls(target: &Target) {
    let channel = raw::channel_over(target.tls().await.unwrap()).await.unwrap();
    let (start, answered) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let callers = (0..64).map(|_| {
        let (channel, answered) = (channel.clone(), Arc::clone(&answered));
        tokio::spawn(async move {
            while start.elapsed() < ATTACK {
                raw::call(channel.clone(), "/orch.v1.Dispatcher/Heartbeat", raw::nothing(), &[]).await;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    eprintln!("    {} calls", answered.load(Ordering::Relaxed));
}

/// Requests of 4 MB of which the last byte never comes, on many streams of many connections.
async fn stalled_requests(target: &Target) {
    let body = vec![b'x'; (4 << 20) - 64];
    let mut message = raw::message(&body);
    message.pop();
    let mut open = Vec::new();
    for _ in 0..8 {
        let channel = raw::channel_over(target.tls().await.unwrap()).await.unwrap();
        for _ in 0..8 {
            let (channel, message) = (channel.clone(), bytes::Bytes::from(message.clone()));
            open.push(tokio::spawn(async move {
                let body = raw::endless(message);
                raw::call(channel, "/orch.v1.Dispatcher/UpdateTaskStatus", body, &[]).await
            }));
        }
    }
    tokio::time::sleep(ATTACK).await;
    open.iter().for_each(tokio::task::JoinHandle::abort);
}

fn lists(socket: &Path) {
    let request = wire::ListRequest { kind: Kind::Task.into(), ..wire::ListRequest::default() };
    unread(socket, "/orch.v1.Control/List", &raw::encoded(&request));
}

fn watches(socket: &Path) {
    let request = wire::WatchRequest { kinds: vec![Kind::Task.into()], ..wire::WatchRequest::default() };
    unread(socket, "/orch.v1.Control/Watch", &raw::encoded(&request));
}

fn local_connections(socket: &Path) {
    let mut open = VecDeque::new();
    let start = Instant::now();
    while start.elapsed() < ATTACK {
        let Ok(mut stream) = UnixStream::connect(socket) else { continue };
        // Those that were hung up on refuse this.
        let _ = stream.write_all(&[raw::PREFACE, &raw::frame(raw::SETTINGS, 0, 0, &[])].concat());
        open.push_back(stream);
        if open.len() > 4000 {
            open.pop_front();
        }
    }
    // Whoever is patient is served again, although all the others are still open.
    let deadline = Instant::now() + ANSWER_LIMIT;
    while !is_served_locally(socket) {
        assert!(Instant::now() < deadline, "the newest is not served");
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_served_locally(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    let sent = stream.write_all(&[raw::PREFACE, &raw::frame(raw::SETTINGS, 0, 0, &[])].concat());
    sent.is_ok() && stream.read_exact(&mut [0; 9]).is_ok()
}

/// One call on each of 64 streams of 4 connections, with a window of nothing.
fn unread(socket: &Path, path: &str, request: &[u8]) {
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut frames = raw::PREFACE.to_vec();
        frames.extend(raw::frame(raw::SETTINGS, 0, 0, raw::TAKE_NOTHING));
        for number in 0..64_u32 {
            let id = 2 * number + 1;
            frames.extend(raw::frame(raw::HEADERS, raw::END_HEADERS, id, &raw::call_headers(path)));
            frames.extend(raw::frame(raw::DATA, 1, id, &raw::message(request)));
        }
        stream.write_all(&frames).unwrap();
        open.push(stream);
    }
    thread::sleep(ATTACK);
}

fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > 3 * HALF_OPEN as u64 / 2, "this test needs more open files");
}
