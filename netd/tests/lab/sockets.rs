//! Real sockets inside namespaces.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What a task says of itself and its client.
#[derive(Debug)]
pub(crate) struct Said {
    pub name: String,
    pub peer: IpAddr,
}

/// Runs `work` on a thread inside the namespace at `path`.
pub(crate) fn in_ns<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let ns = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let run = move || {
        nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::spawn(run).join().unwrap()
}

/// Mounts a new network namespace at `path`, of users of its own or of the node's, and tells its number.
pub(crate) fn make_netns(path: &Path, own_users: bool) -> u64 {
    let mut unshare = Command::new("unshare");
    unshare.arg("--net").args(own_users.then_some("--user")).args(["sh", "-c", "echo; exec sleep 60"]);
    let mut holder = unshare.stdout(Stdio::piped()).spawn().unwrap();
    // It has its namespaces once it speaks.
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    File::create(path).unwrap();
    let made = format!("/proc/{}/ns/net", holder.id());
    nix::mount::mount(Some(made.as_str()), path, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    netns_number(path)
}

pub(crate) fn netns_number(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

pub(crate) fn command(ns: &Path, program: &'static str, args: &[&str]) -> String {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let shown = format!("{program} {args:?}");
    let output = in_ns(ns, move || Command::new(program).args(args).output().unwrap());
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One ICMP echo; whether the answer comes from the address that was asked.
pub(crate) fn ping(ns: &Path, to: Ipv4Addr) -> bool {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
        sockopt,
    };
    in_ns(ns, move || {
        let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
        let limit = nix::sys::time::TimeVal::new(2, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).unwrap();
        // Echo request, id 7, number 1, with its checksum.
        let request = [8, 0, 0xf7, 0xf7, 0, 7, 0, 1];
        let target = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
        sendto(fd.as_raw_fd(), &request, &target, MsgFlags::empty()).unwrap();
        let mut buffer = [0; 256];
        while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let is_reply = length >= 28 && buffer[20] == 0 && buffer[24..28] == [0, 7, 0, 1];
            if is_reply && buffer[12..16] == to.octets() {
                return true;
            }
        }
        false
    })
}

fn connect(ns: &Path, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = in_ns(ns, move || TcpStream::connect_timeout(&to, limit))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

pub(crate) fn open(ns: &Path, to: SocketAddr) -> TcpStream {
    connect(ns, to, CONNECT_TIMEOUT).unwrap()
}

fn line(stream: &mut TcpStream) -> io::Result<String> {
    // One line is all that comes before the client speaks: nothing is lost with the reader.
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

pub(crate) fn name(stream: &mut TcpStream) -> String {
    line(stream).unwrap().split(' ').next().unwrap().to_owned()
}

pub(crate) fn ask_plain(ns: &Path, to: SocketAddr) -> io::Result<String> {
    line(&mut connect(ns, to, CONNECT_TIMEOUT)?)
}

pub(crate) fn ask(ns: &Path, to: SocketAddr) -> io::Result<Said> {
    ask_within(ns, to, CONNECT_TIMEOUT)
}

pub(crate) fn ask_within(ns: &Path, to: SocketAddr, limit: Duration) -> io::Result<Said> {
    let line = line(&mut connect(ns, to, limit)?)?;
    let (name, peer) = line.split_once(' ').ok_or_else(|| io::Error::other(format!("said {line:?}")))?;
    Ok(Said { name: name.to_owned(), peer: peer.parse().map_err(io::Error::other)? })
}

pub(crate) fn udp(ns: &Path, to: SocketAddr) -> UdpSocket {
    let socket = in_ns(ns, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// A connection from a chosen port, which others may use too (to other addresses).
pub(crate) fn open_from(ns: &Path, port: u16, to: SocketAddr) -> TcpStream {
    in_ns(ns, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(SocketAddr::from(([0; 4], port))).unwrap();
            let connected = tokio::time::timeout(Duration::from_secs(5), socket.connect(to)).await.unwrap().unwrap();
            let stream = connected.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream
        })
    })
}

/// Datagrams between a task and a client that came by a published port.
pub(crate) struct UdpFlow {
    server: UdpSocket,
    client: UdpSocket,
    /// The client, as the task sees it.
    from: SocketAddr,
}

impl UdpFlow {
    pub(crate) fn open(task: &Path, port: u16, client: &Path, to: SocketAddr) -> Self {
        let server = in_ns(task, move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let client = udp(client, to);
        client.send(b"hello").unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        let flow = Self { server, client, from };
        flow.server_speaks();
        flow
    }

    /// Without having been asked; the client hears it as from the port that it asked.
    pub(crate) fn server_speaks(&self) {
        self.server.send_to(b"news", self.from).unwrap();
        assert_eq!(self.client.recv(&mut [0; 8]).unwrap(), 4);
    }
}

/// Waits until datagrams by this socket are answered by `name`.
pub(crate) fn hears_udp(socket: &UdpSocket, name: &str) {
    until_udp(socket, name, |heard| heard.is_ok_and(|heard| heard == name.as_bytes()));
}

/// Waits until nobody takes datagrams by this socket.
pub(crate) fn is_refused_udp(socket: &UdpSocket) {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    until_udp(socket, "nobody", |heard| heard.is_err_and(refused));
}

fn until_udp(socket: &UdpSocket, wanted: &str, is_it: impl Fn(io::Result<&[u8]>) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut buffer = [0; 64];
    while !is_it(socket.send(b"who?").and_then(|_| socket.recv(&mut buffer)).map(|length| &buffer[..length])) {
        assert!(Instant::now() < deadline, "{wanted} does not answer");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A task's address towards the node.
pub(crate) fn way_out_of(ns: &Path) -> [u8; 4] {
    let text = command(ns, "ip", &["-4", "-o", "address", "show"]);
    let mut addrs = text.split_whitespace().filter_map(|word| word.split_once('/')?.0.parse::<Ipv4Addr>().ok());
    addrs.find(|addr| addr.octets().starts_with(&[172, 18])).expect("an address on the way out").octets()
}

/// Who answers a datagram.
pub(crate) fn ask_udp(socket: &UdpSocket) -> String {
    socket.send(b"who?").unwrap();
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}
