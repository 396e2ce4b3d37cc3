//! Real sockets inside namespaces.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::Duration,
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

pub(crate) fn command(ns: &Path, program: &'static str, args: &[&str]) -> String {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let shown = format!("{program} {args:?}");
    let output = in_ns(ns, move || Command::new(program).args(args).output().unwrap());
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ping(ns: &Path, to: IpAddr) -> bool {
    let to = to.to_string();
    in_ns(ns, move || Command::new("ping").args(["-c1", "-W2", &to]).output().unwrap().status.success())
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
