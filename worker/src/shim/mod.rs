//! The process beside each container: makes it, holds its output, reports its end; outlives every daemon.
//!
//! It must stay a process with one thread: libcontainer forks and changes namespaces. No tokio here, and nothing that
//! starts threads.
//!
//! The worker starts one `orch shim`, the [`nursery`], which forks a shim for each container: what the program is made
//! of (its relocated data above all) is then in memory once, not once per container, and a shim is there in a fraction of
//! the time that executing the program takes. A shim gets its listening socket at birth, so that requests can be sent
//! before it is ready. It changes its name to `orch shim FOLDER`, and does not care when nursery and worker end.

mod attach;
mod check;
mod container;
mod entry;
mod executor;
mod fork;
mod health;
pub(crate) mod journal;
pub(crate) mod log;
mod nursery;
mod pace;
pub(crate) mod protocol;
mod runner;
mod server;
mod sight;
mod silence;
mod starting;
mod trace;
pub(crate) use orch_proto::passing as wire;

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    time::SystemTime,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use crate::runtime::cgroup::Layout;
pub(crate) use executor::NEEDED_CAPS;
pub(crate) use nursery::ROOM;
use nursery::{Birth, Nursery};
use protocol::{ExitRecord, Failure, Files, ShimConfig, VERSION, to_ns};

/// To the worker's log. That may be on a disk that is full, which is no reason for a container to end.
fn complain(what: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Shims are among the last that the kernel may kill for memory: a dead shim takes its container along. Where it may not
/// lower its score (a machine that is a container itself), a shim is killed like any other process.
const OOM_SCORE: &str = "-998";

/// What a container that could not be made returns when nothing better is known; Docker's.
const CODE_NOT_CREATED: i32 = 128;

/// `orch shim`, with the worker's socket as standard input: to be called before any thread exists. Returns the code of
/// the nursery, and in other processes those of shims.
#[must_use]
pub fn main() -> i32 {
    let done = Nursery::open().and_then(Nursery::run).and_then(|birth| birth.map_or(Ok(()), serve));
    match done {
        Ok(()) => 0,
        Err(err) => {
            complain(format_args!("shim: {err} (it is started by the worker, not by hand)"));
            1
        }
    }
}

fn serve(birth: Birth) -> io::Result<()> {
    let Birth { folder, listener, layout, is_home } = birth;
    let files = Files(&folder);
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let config: ShimConfig = serde_json::from_slice(&fs::read(files.config())?)?;
    // The worker takes a closed socket for the end, and looks for the exit file then: the file comes first.
    let open_until_written = listener.try_clone()?;
    let server = match prepare(&folder, listener, &config, layout, is_home) {
        Ok(server) => server,
        Err(failure) => return server::write_exit(&files, &not_created(failure)),
    };
    drop(open_until_written);
    server.run()
}

fn prepare(
    folder: &Path,
    listener: UnixListener,
    config: &ShimConfig,
    layout: Layout,
    is_home: bool,
) -> Result<server::Server, Failure> {
    let failure = |what: &str| {
        let what = what.to_owned();
        move |err: io::Error| Failure { message: format!("{what}: {err}"), code: None }
    };
    if !is_home {
        let cgroup = &config.shim_cgroup;
        layout.enter(cgroup).map_err(failure(&format!("cannot enter the cgroup {cgroup}")))?;
    }
    let log = log::LogWriter::open(config.log.clone())
        .map_err(failure(&format!("cannot open the log {}", config.log.path.display())))?;
    let signals = block_signals().map_err(failure("cannot block signals"))?;
    let (instance, output) = container::Instance::create(folder, config, layout)?;
    // A folder that cannot be opened is not worth a container: silence is a courtesy to clients.
    let network = config.netns.as_deref().and_then(|netns| silence::Network::open(netns).ok());
    server::Server::new(folder.to_owned(), listener, signals, instance, output, log, network, config)
        .map_err(failure("cannot serve"))
}

/// Nothing but SIGKILL ends a shim before its container; ends of children are read from the descriptor.
fn block_signals() -> io::Result<SignalFd> {
    let mut blocked = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
        blocked.remove(fault);
    }
    blocked.thread_block()?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn not_created(failure: Failure) -> ExitRecord {
    ExitRecord {
        version: VERSION,
        code: failure.code.unwrap_or(CODE_NOT_CREATED),
        signal: None,
        oom_killed: false,
        error: Some(failure.message),
        started_at_ns: None,
        finished_at_ns: to_ns(SystemTime::now()),
        health: None,
    }
}
