//! The container through libcontainer: create, start, run more processes in it, remove. Only ever in a process with one
//! thread.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    error::LibcontainerError,
    syscall::syscall::SyscallType,
};
use nix::{
    fcntl::OFlag,
    unistd::{Uid, fchown, pipe2},
};
use seccompiler::sock_filter;

use serde_json::Value;

use super::{
    check::Surroundings,
    executor::ContainerExecutor,
    protocol::{ExecOrder, Failure, Files, STDIO_FDS, ShimConfig},
    trace::Mark,
    wire,
};
use crate::runtime::{cgroup::Layout, seccomp};

/// Shims are among the last that the kernel may kill for memory: a dead shim takes its container along.
const SHIM_OOM_SCORE: &str = "-998";

/// libcontainer's name for the sockets that it leaves behind after each executed process.
const LEFT_BEHIND: &str = "tenant-";

/// A created container.
pub(super) struct Instance {
    container: Container,
    folder: PathBuf,
    cgroup: String,
    caps: u64,
    filter: Option<Rc<Vec<sock_filter>>>,
    /// Where the program-to-be says why it cannot be executed.
    report: File,
    executed: u32,
}

/// Our ends of the container's standard streams.
pub(super) struct Output {
    /// Terminal, or standard output.
    pub(super) stdout: OwnedFd,
    pub(super) stderr: Option<OwnedFd>,
    /// Of a pipe; held so that a program that reads its input waits. A terminal takes input by itself.
    pub(super) stdin: Option<OwnedFd>,
}

impl Instance {
    /// Makes namespaces, cgroup and root filesystem; the program waits for [`Instance::start`].
    pub(super) fn create(folder: &Path, config: &ShimConfig) -> Result<(Self, Output), Failure> {
        let filter = config.seccomp.as_deref().map(read_filter).transpose()?;
        let (mut report, executor, report_in) = executor(config.caps, filter.clone())?;
        let files = Files(folder);
        let mut builder = builder(&config.container_id, &files, executor)?;
        let console = config.tty.then(|| Console::listen(&files.state())).transpose().map_err(io_failure)?;
        let mut pipes = None;
        if let Some(console) = &console {
            builder = builder.with_console_socket(Some(&console.path));
        } else {
            let ([stdin, stdout, stderr], ours) = open_pipes(config.open_stdin, config.uid).map_err(io_failure)?;
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            pipes = Some(ours);
        }
        let mark = Mark::now(files.messages());
        let built = builder.as_init(files.bundle()).with_systemd(false).with_detach(true).build();
        drop(report_in);
        reset_oom_score();
        let container = built.map_err(|err| {
            let failure = reported(&mut report).unwrap_or_else(|| with_cause(&err, &mark));
            remove(folder, &config.cgroup);
            failure
        })?;
        let output = match (pipes, console) {
            (Some(pipes), _) => pipes,
            (None, Some(console)) => {
                Output { stdout: console.accept().map_err(io_failure)?, stderr: None, stdin: None }
            }
            (None, None) => return Err(io_failure(io::Error::other("the container has neither pipes nor a terminal"))),
        };
        let (folder, cgroup, caps) = (folder.to_owned(), config.cgroup.clone(), config.caps);
        let instance = Self { container, folder, cgroup, caps, filter, report, executed: 0 };
        Ok((instance, output))
    }

    /// The first process's number on the host.
    pub(super) fn pid(&self) -> i32 {
        self.container.pid().map_or(0, |pid| pid.as_raw())
    }

    /// Lets the program run; returns when it has been executed, or with why it could not be.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        self.container.start().map_err(|err| library_failure(&err))?;
        reported(&mut self.report).map_or(Ok(()), Err)
    }

    /// Runs another process in the container, on the given streams or on a terminal whose master side is returned.
    pub(super) fn exec(&mut self, order: &ExecOrder, stdio: Vec<OwnedFd>) -> Result<(i32, Option<OwnedFd>), Failure> {
        self.executed += 1;
        let files = Files(&self.folder);
        let process_file = self.folder.join(format!("exec-{}.json", self.executed));
        fs::write(&process_file, order.process.to_string()).map_err(io_failure)?;
        let filter = self.filter.clone().filter(|_| order.seccomp);
        let (mut report, executor, report_in) = executor(order.caps, filter)?;
        let mut builder = builder(self.container.id(), &files, executor)?;
        let console = order.tty.then(|| Console::listen(&files.state())).transpose().map_err(io_failure)?;
        if let Some(console) = &console {
            builder = builder.with_console_socket(Some(&console.path));
        } else {
            let stdio: [OwnedFd; STDIO_FDS] =
                stdio.try_into().map_err(|_| io_failure(io::Error::other("the request came without streams")))?;
            let uid = order.process["user"]["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()).unwrap_or(0);
            stdio.iter().for_each(|stream| own(stream, uid));
            let [stdin, stdout, stderr] = stdio;
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
        let mark = Mark::now(files.messages());
        let built = builder.as_tenant().with_process(Some(&process_file)).with_detach(true).build();
        drop(report_in);
        reset_oom_score();
        let _ = fs::remove_file(&process_file);
        self.remove_left_behind();
        match built {
            Ok(pid) => match reported(&mut report) {
                Some(failure) => Err(failure),
                None => Ok((pid.as_raw(), console.map(|console| console.accept()).transpose().map_err(io_failure)?)),
            },
            Err(err) => Err(reported(&mut report).unwrap_or_else(|| with_cause(&err, &mark))),
        }
    }

    /// What a health check's process is made from.
    pub(super) fn surroundings(&self) -> io::Result<Surroundings<'_>> {
        let spec: Value = serde_json::from_slice(&fs::read(Files(&self.folder).bundle().join("config.json"))?)?;
        let process = serde_json::from_value(spec["process"].clone())?;
        let (cgroup, filter) = (self.cgroup.as_str(), self.filter.clone());
        Ok(Surroundings { pid: self.pid(), cgroup, process, caps: self.caps, filter })
    }

    /// Removes cgroups and libcontainer's files.
    pub(super) fn remove(self) {
        remove(&self.folder, &self.cgroup);
    }

    pub(super) fn was_oom_killed(&self) -> bool {
        Layout::detect().is_ok_and(|layout| layout.oom_killed(&self.cgroup))
    }

    fn remove_left_behind(&self) {
        let state = Files(&self.folder).state().join(self.container.id());
        for entry in fs::read_dir(state).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(LEFT_BEHIND) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Best effort: the worker repeats it when it deletes the container.
fn remove(folder: &Path, cgroup: &str) {
    if let Err(err) = Layout::detect().and_then(|layout| layout.destroy(cgroup)) {
        eprintln!("cannot remove the cgroup {cgroup}: {err}");
    }
    let _ = fs::remove_dir_all(Files(folder).state());
}

/// The executor, our end of its report, and the end that must be closed once the process has its copy.
fn executor(caps: u64, filter: Option<Rc<Vec<sock_filter>>>) -> Result<(File, ContainerExecutor, OwnedFd), Failure> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(|err| io_failure(err.into()))?;
    let executor = ContainerExecutor { report: theirs.as_raw_fd(), caps, filter };
    Ok((File::from(ours), executor, theirs))
}

fn builder(id: &str, files: &Files<'_>, executor: ContainerExecutor) -> Result<ContainerBuilder, Failure> {
    fs::create_dir_all(files.state()).map_err(io_failure)?;
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default()).with_executor(executor);
    builder.with_root_path(files.state()).map_err(|err| library_failure(&err))
}

/// What the process said before it executed its program or gave up; nothing when all went well.
fn reported(report: &mut File) -> Option<Failure> {
    let mut text = Vec::new();
    report.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn read_filter(path: &Path) -> Result<Rc<Vec<sock_filter>>, Failure> {
    let bytes = fs::read(path).map_err(io_failure)?;
    let filter = seccomp::decode(&bytes)
        .ok_or_else(|| io_failure(io::Error::other(format!("{} is damaged", path.display()))))?;
    Ok(Rc::new(filter))
}

/// The container's ends (input, output, error) and ours.
fn open_pipes(open_stdin: bool, uid: u32) -> io::Result<([OwnedFd; STDIO_FDS], Output)> {
    let (stdin, our_stdin) = if open_stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        own(&theirs, uid);
        (theirs, Some(ours))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (our_stdout, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (our_stderr, stderr) = pipe2(OFlag::O_CLOEXEC)?;
    own(&stdout, uid);
    own(&stderr, uid);
    Ok(([stdin, stdout, stderr], Output { stdout: our_stdout, stderr: Some(our_stderr), stdin: our_stdin }))
}

/// Without it a program that is not root cannot open /dev/stdout. Refused for what is not a pipe of ours, which is fine.
fn own(stream: &OwnedFd, uid: u32) {
    let is_pipe = nix::sys::stat::fstat(stream).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO);
    if is_pipe {
        let _ = fchown(stream, Some(Uid::from_raw(uid)), None);
    }
}

/// libcontainer sets its own process's score to what the container shall inherit. Where the shim may not lower its own
/// (a machine that is a container itself), it is killed like any other process.
fn reset_oom_score() {
    let _ = fs::write("/proc/self/oom_score_adj", SHIM_OOM_SCORE);
}

/// Where libcontainer sends a terminal's master side.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn listen(folder: &Path) -> io::Result<Self> {
        let path = folder.join("console.sock");
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// The container has sent it by the time it counts as created.
    fn accept(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let mut text = [0; 64];
        let (_, fds) = wire::receive(&stream, &mut text)?;
        fds.into_iter().next().ok_or_else(|| io::Error::other("no terminal was sent"))
    }
}

fn io_failure(err: io::Error) -> Failure {
    Failure { message: err.to_string(), code: None }
}

fn with_cause(err: &LibcontainerError, mark: &Mark) -> Failure {
    let failure = library_failure(err);
    match mark.first_error() {
        Some(cause) if !failure.message.contains(&cause) => {
            Failure { message: format!("{}: {cause}", failure.message), ..failure }
        }
        _ => failure,
    }
}

/// All causes in one line: libcontainer's outermost error says little.
fn library_failure(err: &LibcontainerError) -> Failure {
    let mut message = err.to_string();
    let mut cause = err.source();
    while let Some(source) = cause {
        let text = source.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = source.source();
    }
    Failure { message, code: None }
}
