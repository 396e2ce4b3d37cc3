//! The process beside each container: makes it, holds its output, reports its end; outlives every daemon.
//!
//! It must stay a process with one thread: libcontainer forks and changes namespaces. No tokio here, and nothing that
//! starts threads.
//!
//! The worker starts it as `orch shim FOLDER` with the listening socket as standard input, so that requests can be sent
//! before it is ready. It forks once: the parent ends at once (the worker reaps it), the child belongs to init.

mod attach;
mod check;
mod container;
mod executor;
mod health;
pub(crate) mod log;
pub(crate) mod protocol;
mod server;
mod silence;
mod trace;
pub(crate) mod wire;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    time::SystemTime,
};

use nix::{
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
    },
    unistd::{ForkResult, chdir, dup2_stdin, fork, setsid},
};

use crate::runtime::cgroup::Layout;
pub(crate) use executor::NEEDED_CAPS;
use protocol::{ExitRecord, Failure, Files, ShimConfig, VERSION, to_ns};

/// What a container that could not be made returns when nothing better is known; Docker's.
const CODE_NOT_CREATED: i32 = 128;

/// `orch shim FOLDER`: to be called before any thread exists; returns the process's exit code.
#[must_use]
pub fn main(task_dir: &Path) -> i32 {
    match detach() {
        Ok(Detached::Parent) => 0,
        Ok(Detached::Child(listener)) => match serve(task_dir, listener) {
            Ok(()) => 0,
            Err(err) => {
                eprintln!("shim: {err}");
                1
            }
        },
        Err(err) => {
            eprintln!("shim: cannot leave the worker: {err} (it is started by the worker, not by hand)");
            1
        }
    }
}

enum Detached {
    Parent,
    Child(UnixListener),
}

/// Takes the socket from standard input, and lets go of the process that started this one.
#[allow(unsafe_code)]
fn detach() -> io::Result<Detached> {
    let listener: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let listener = UnixListener::from(listener);
    listener.local_addr()?;
    dup2_stdin(File::open("/dev/null")?)?;
    // SAFETY: there is one thread, so the child's memory is whole.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => return Ok(Detached::Parent),
        ForkResult::Child => {}
    }
    setsid()?;
    chdir("/")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(Detached::Child(listener))
}

fn serve(folder: &Path, listener: UnixListener) -> io::Result<()> {
    let files = Files(folder);
    let config: ShimConfig = serde_json::from_slice(&fs::read(files.config())?)?;
    // The worker takes a closed socket for the end, and looks for the exit file then: the file comes first.
    let open_until_written = listener.try_clone()?;
    let server = match prepare(folder, listener, &config) {
        Ok(server) => server,
        Err(failure) => return server::write_exit(&files, &not_created(failure)),
    };
    drop(open_until_written);
    server.run()
}

fn prepare(folder: &Path, listener: UnixListener, config: &ShimConfig) -> Result<server::Server, Failure> {
    let failure = |what: &str| {
        let what = what.to_owned();
        move |err: io::Error| Failure { message: format!("{what}: {err}"), code: None }
    };
    trace::keep_errors(&Files(folder).messages()).map_err(failure("cannot write messages"))?;
    let cgroup = &config.shim_cgroup;
    Layout::detect()
        .and_then(|layout| layout.enter(cgroup))
        .map_err(failure(&format!("cannot enter the cgroup {cgroup}")))?;
    let log = log::LogWriter::open(config.log.clone())
        .map_err(failure(&format!("cannot open the log {}", config.log.path.display())))?;
    let signals = block_signals().map_err(failure("cannot block signals"))?;
    let (instance, output) = container::Instance::create(folder, config)?;
    // A folder that cannot be opened is not worth a container: silence is a courtesy to clients.
    let network = config.netns.as_deref().and_then(|netns| silence::Network::open(netns).ok());
    server::Server::new(folder.to_owned(), listener, signals, instance, output, log, network, config.health.clone())
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
    }
}
