//! The container through libcontainer: create, start, run more processes in it, remove. Only ever in a process with one
//! thread.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::{
    container::builder::ContainerBuilder,
    error::LibcontainerError,
    notify_socket::{NOTIFY_FILE, NotifySocket},
    syscall::syscall::SyscallType,
};
use nix::{
    fcntl::OFlag,
    sys::wait::waitpid,
    unistd::{Pid, Uid, fchown, pipe2},
};

use super::{
    check::Subject,
    complain,
    entry::{Entry, Process, Program, Streams},
    executor::ContainerExecutor,
    fork::{close_all_but, in_child},
    protocol::{ExecOrder, Failure, Files, STDIO_FDS, ShimConfig},
    sight,
    starting::Starting,
    trace::{self, Mark},
    wire,
};
use crate::runtime::{
    cgroup::Layout,
    seccomp::{self, Instruction},
};

/// A created container.
pub(super) struct Instance {
    pid: i32,
    container_id: String,
    folder: PathBuf,
    cgroup: String,
    caps: u64,
    filter: Option<Rc<Vec<Instruction>>>,
    layout: Layout,
    /// Where the program-to-be says why it cannot be executed.
    report: File,
    /// Opened when it is first used.
    entry: Option<Entry>,
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
    ///
    /// libcontainer does it in a child: its memory, its descriptors and its settings of the process end with that. The
    /// container's first process becomes ours when the child ends, because the shim is a subreaper.
    pub(super) fn create(folder: &Path, config: &ShimConfig, layout: Layout) -> Result<(Self, Output), Failure> {
        let filter = config.seccomp.as_deref().map(read_filter).transpose()?;
        let (report, report_in) = pipe2(OFlag::O_CLOEXEC).map_err(|err| io_failure(err.into()))?;
        let executor = ContainerExecutor { report: report_in.as_raw_fd(), caps: config.caps, filter: filter.clone() };
        let files = Files(folder);
        fs::create_dir_all(files.state()).map_err(io_failure)?;
        let console = config.tty.then(|| Console::listen(&files.state())).transpose().map_err(io_failure)?;
        let pipes = match &console {
            Some(_) => None,
            None => Some(open_pipes(config.open_stdin, config.uid).map_err(io_failure)?),
        };
        let (result, result_in) = pipe2(OFlag::O_CLOEXEC).map_err(|err| io_failure(err.into()))?;
        let mut kept = vec![report.as_raw_fd(), report_in.as_raw_fd(), result_in.as_raw_fd()];
        kept.extend(pipes.iter().flat_map(|(theirs, _)| theirs.iter().map(AsRawFd::as_raw_fd)));
        let mut report = File::from(report);
        let child = in_child(|| {
            close_all_but(&mut kept);
            let stdio = pipes.as_ref().map(|(theirs, _)| theirs);
            let console = console.as_ref().map(|console| console.path.as_path());
            let made = build(folder, config, executor, stdio, console, &mut report);
            let mut text = serde_json::to_vec(&made).unwrap_or_default();
            text.push(b'\n');
            // The shim reads it, or is gone.
            let _ = nix::unistd::write(&result_in, &text);
            0
        });
        drop((report_in, result_in));
        let made = child.map_err(io_failure).and_then(|child| made(child, result.into()));
        let pid = made.inspect_err(|_| remove(folder, &layout, &config.cgroup))?;
        let output = match (pipes, console) {
            (Some((_, ours)), _) => ours,
            (None, Some(console)) => {
                Output { stdout: console.accept().map_err(io_failure)?, stderr: None, stdin: None }
            }
            (None, None) => return Err(io_failure(io::Error::other("the container has neither pipes nor a terminal"))),
        };
        let (folder, cgroup, caps) = (folder.to_owned(), config.cgroup.clone(), config.caps);
        let container_id = config.container_id.clone();
        Ok((Self { pid, container_id, folder, cgroup, caps, filter, layout, report, entry: None }, output))
    }

    /// The first process's number on the host.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets the program run; returns when it has been executed, or with why it could not be.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let socket = Files(&self.folder).state().join(&self.container_id).join(NOTIFY_FILE);
        let told = NotifySocket::new(socket).notify_container_start();
        told.map_err(|err| library_failure("cannot start the container", &err))?;
        reported(&mut self.report).map_or(Ok(()), Err)
    }

    /// The way into it.
    pub(super) fn entry(&mut self) -> io::Result<&Entry> {
        let entry = match self.entry.take() {
            Some(entry) => entry,
            None => Entry::open(self.pid, &self.layout, &self.cgroup)?,
        };
        Ok(self.entry.insert(entry))
    }

    /// Runs another process in the container, on the given streams or on a terminal of its own.
    pub(super) fn exec(&mut self, order: ExecOrder, stdio: Vec<OwnedFd>) -> Result<Starting, Failure> {
        let process: Process = serde_json::from_value(order.process)
            .map_err(|err| io_failure(io::Error::other(format!("cannot understand the process: {err}"))))?;
        let filter = self.filter.clone().filter(|_| order.seccomp);
        let entry = self.entry().map_err(io_failure)?;
        let (ours, theirs) = UnixStream::pair().map_err(io_failure)?;
        ours.set_nonblocking(true).map_err(io_failure)?;
        let program = Program {
            args: &process.args,
            process: &process,
            caps: order.caps,
            filter: filter.as_ref().map(|filter| filter.as_slice()),
        };
        let streams: [OwnedFd; STDIO_FDS];
        let streams = if order.tty {
            Streams::Terminal(theirs.as_fd())
        } else {
            streams = stdio.try_into().map_err(|_| io_failure(io::Error::other("the request came without streams")))?;
            // Without a number on the host the program cannot reopen its streams by name, which is all.
            if let Some(uid) = entry.host_uid(process.user.uid) {
                streams.iter().for_each(|stream| own(stream, uid));
            }
            let [stdin, stdout, stderr] = &streams;
            Streams::Given { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() }
        };
        let failed = |failure: &Failure| {
            let _ = (&theirs).write_all(&serde_json::to_vec(failure).unwrap_or_default());
            failure.code.unwrap_or(1)
        };
        let pid = entry.run(&program, &streams, failed).map_err(io_failure)?;
        Ok(Starting::new(pid, ours))
    }

    /// What health checks are made from.
    pub(super) fn subject(&self) -> io::Result<Subject> {
        #[derive(serde::Deserialize)]
        struct Spec {
            process: Process,
        }
        let spec: Spec = serde_json::from_slice(&fs::read(Files(&self.folder).bundle().join("config.json"))?)?;
        Ok(Subject { process: spec.process, caps: self.caps, filter: self.filter.clone() })
    }

    /// Removes cgroups and libcontainer's files.
    pub(super) fn remove(self) {
        remove(&self.folder, &self.layout, &self.cgroup);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.layout.is_frozen(&self.cgroup)
    }

    pub(super) fn was_oom_killed(&self) -> bool {
        self.layout.oom_killed(&self.cgroup)
    }
}

/// What the child said: the first process's number, or what went wrong. The child has ended then.
fn made(child: i32, result: File) -> Result<i32, Failure> {
    let mut line = String::new();
    // Not to the end: the container's first process holds the pipe until it executes its program.
    let read = BufReader::new(result).read_line(&mut line);
    let ended = waitpid(Pid::from_raw(child), None);
    let lost = || io_failure(io::Error::other(format!("the process that makes the container failed: {ended:?}")));
    read.ok().and_then(|_| serde_json::from_str::<Result<i32, Failure>>(&line).ok()).unwrap_or_else(|| Err(lost()))
}

/// In the child: everything that libcontainer does.
fn build(
    folder: &Path,
    config: &ShimConfig,
    executor: ContainerExecutor,
    stdio: Option<&[OwnedFd; STDIO_FDS]>,
    console: Option<&Path>,
    report: &mut File,
) -> Result<i32, Failure> {
    let files = Files(folder);
    trace::keep_errors(&files.messages()).map_err(io_failure)?;
    narrow_sight(config).map_err(io_failure)?;
    if let Some(other) = &config.shm_of {
        let failed = |err| io_failure(io::Error::other(format!("cannot share the other container's /dev/shm: {err}")));
        sight::borrow(other, Path::new("/dev/shm"), &files.shm()).map_err(failed)?;
    }
    let report_in = executor.report;
    let mut builder = ContainerBuilder::new(config.container_id.clone(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(files.state())
        .map_err(|err| library_failure("", &err))?;
    match stdio {
        Some(stdio) => {
            let [stdin, stdout, stderr] = stdio;
            let copy = |fd: &OwnedFd| fd.try_clone().map_err(io_failure);
            builder = builder.with_stdin(copy(stdin)?).with_stdout(copy(stdout)?).with_stderr(copy(stderr)?);
        }
        None => builder = builder.with_console_socket(console),
    }
    let mark = Mark::now(files.messages());
    let built = builder.as_init(files.bundle()).with_systemd(false).with_detach(true).build();
    built.map(|container| container.pid().map_or(0, |pid| pid.as_raw())).map_err(|err| {
        // Ours is the last copy of the pipe's other end.
        let _ = nix::unistd::close(report_in);
        reported(report).unwrap_or_else(|| with_cause(&err, &mark))
    })
}

fn narrow_sight(config: &ShimConfig) -> io::Result<()> {
    if config.hidden.is_empty() {
        return Ok(());
    }
    let own = [Some(config.rootfs.as_path()), config.netns.as_deref()].into_iter().flatten();
    let kept = own.filter(|path| config.hidden.iter().any(|folder| path.starts_with(folder)));
    sight::narrow(config.hidden.iter().map(PathBuf::as_path), kept)
        .map_err(|err| io::Error::other(format!("cannot leave the mounts of other containers: {err}")))
}

/// Best effort: the worker repeats it when it deletes the container.
fn remove(folder: &Path, layout: &Layout, cgroup: &str) {
    if let Err(err) = layout.destroy(cgroup) {
        complain(format_args!("cannot remove the cgroup {cgroup}: {err}"));
    }
    let _ = fs::remove_dir_all(Files(folder).state());
}

/// What the process said before it executed its program or gave up; nothing when all went well.
fn reported(report: &mut File) -> Option<Failure> {
    let mut text = Vec::new();
    report.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn read_filter(path: &Path) -> Result<Rc<Vec<Instruction>>, Failure> {
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
    let failure = library_failure("", err);
    match mark.first_error() {
        Some(cause) if !failure.message.contains(&cause) => {
            Failure { message: format!("{}: {cause}", failure.message), ..failure }
        }
        _ => failure,
    }
}

/// All causes in one line: libcontainer's outermost error says little.
fn library_failure(what: &str, err: &(dyn Error + 'static)) -> Failure {
    let mut message = what.to_owned();
    let mut cause = Some(err);
    while let Some(source) = cause {
        let text = source.to_string();
        if !message.contains(&text) {
            message = if message.is_empty() { text } else { format!("{message}: {text}") };
        }
        cause = source.source();
    }
    Failure { message, code: None }
}
