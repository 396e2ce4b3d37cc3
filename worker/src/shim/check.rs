//! Runs a container's health check: a process in its namespaces and its control group, with its rights, made by one
//! fork of the shim.
//!
//! The way of `exec` (libcontainer) costs some 15 ms; checks of a hundred containers each second must not. What the
//! process needs is looked up once; a check is a fork, a handful of system calls and the program's own work.

#![allow(unsafe_code)]

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File},
    io::{self, Read},
    os::fd::{FromRawFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use libcontainer::oci_spec::runtime::Process;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, killpg},
    unistd::{ForkResult, Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setgroups, setsid},
};
use seccompiler::sock_filter;

use super::{
    executor::{drop_capabilities, find, load_filter, raise_capabilities, reset_signals},
    health::{MAX_OUTPUT_BYTES, Monitor},
    protocol::{HealthPlan, HealthRecord, HealthResult, HealthWord, to_ns},
};
use crate::runtime::cgroup::Layout;

/// What a check that could not be run at all returns.
const CODE_NOT_RUN: i32 = -1;

/// All of a container's namespaces except that of process numbers, which the shim enters for its next child.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// The health checks of a running container.
pub(super) struct Checks {
    monitor: Monitor,
    program: Program,
    began: Instant,
    running: Option<Running>,
}

/// A check under way.
struct Running {
    pid: i32,
    /// Until it ends.
    output: Option<File>,
    text: Vec<u8>,
    began: Instant,
    began_ns: u64,
}

/// What the checks' process is made from.
pub(super) struct Surroundings<'a> {
    pub(super) pid: i32,
    pub(super) cgroup: &'a str,
    /// The OCI `process` object of the container.
    pub(super) process: Process,
    pub(super) caps: u64,
    pub(super) filter: Option<Rc<Vec<sock_filter>>>,
}

struct Program {
    args: Vec<String>,
    process: Process,
    container: OwnedFd,
    own_pids: File,
    null: File,
    /// Of each hierarchy, to write oneself into.
    cgroups: Vec<PathBuf>,
    caps: u64,
    filter: Option<Rc<Vec<sock_filter>>>,
}

impl Checks {
    /// For a container that runs from now on.
    pub(super) fn new(plan: HealthPlan, around: Surroundings<'_>) -> io::Result<Self> {
        let layout = Layout::detect()?;
        let program = Program {
            args: plan.test.clone(),
            process: around.process,
            container: open_process(around.pid)?,
            own_pids: File::open("/proc/self/ns/pid")?,
            null: File::open("/dev/null")?,
            cgroups: layout.folders(around.cgroup).into_iter().map(|folder| folder.join("cgroup.procs")).collect(),
            caps: around.caps,
            filter: around.filter,
        };
        Ok(Self { monitor: Monitor::new(plan), program, began: Instant::now(), running: None })
    }

    pub(super) fn health(&self) -> HealthWord {
        self.monitor.health()
    }

    pub(super) fn record(&self) -> HealthRecord {
        self.monitor.record()
    }

    /// Until something is to be done although nothing happened.
    pub(super) fn patience(&self) -> Duration {
        let until = match &self.running {
            Some(running) => running.began + self.monitor.timeout(),
            None => self.began + self.monitor.due(),
        };
        until.saturating_duration_since(Instant::now())
    }

    /// What a running check prints.
    pub(super) fn output(&self) -> Option<&File> {
        self.running.as_ref()?.output.as_ref()
    }

    pub(super) fn read_output(&mut self) {
        if let Some(running) = &mut self.running {
            running.read();
        }
    }

    /// Starts a check that is due, ends one that takes too long. Whether the health changed.
    pub(super) fn tick(&mut self) -> bool {
        if !self.patience().is_zero() {
            return false;
        }
        if let Some(running) = self.running.take() {
            // Gone already, or about to be: its end is collected like any other.
            let _ = killpg(Pid::from_raw(running.pid), Signal::SIGKILL);
            let text = format!("Health check exceeded timeout ({})", go_duration(self.monitor.timeout()));
            return self.end(CODE_NOT_RUN, text, running.began, running.began_ns);
        }
        let (began, began_ns) = (Instant::now(), now_ns());
        match self.program.start() {
            Ok((pid, output)) => {
                self.running = Some(Running { pid, output: Some(output), text: Vec::new(), began, began_ns });
                false
            }
            Err(err) => self.end(CODE_NOT_RUN, format!("the check cannot be run: {err}"), began, began_ns),
        }
    }

    /// Whether the process is a check, and whether its end changed the health.
    pub(super) fn reaped(&mut self, pid: i32, code: i32) -> Option<bool> {
        let mut running = self.running.take_if(|running| running.pid == pid)?;
        running.read();
        let text = String::from_utf8_lossy(&running.text).into_owned();
        Some(self.end(code, text, running.began, running.began_ns))
    }

    fn end(&mut self, exit_code: i32, output: String, began: Instant, start_ns: u64) -> bool {
        let result = HealthResult { start_ns, end_ns: now_ns(), exit_code, output };
        self.monitor.ended(result, began - self.began, self.began.elapsed())
    }
}

impl Running {
    /// What is there now.
    fn read(&mut self) {
        let mut buffer = [0; MAX_OUTPUT_BYTES];
        while let Some(output) = &mut self.output {
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(len) => {
                    let room = MAX_OUTPUT_BYTES.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&buffer[..len.min(room)]);
                }
                Err(_) => return,
            }
        }
    }
}

impl Program {
    /// The process's number and its output.
    fn start(&self) -> io::Result<(i32, File)> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL)?);
        fcntl(&ours, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        setns(&self.container, CloneFlags::CLONE_NEWPID)?;
        // SAFETY: there is one thread, so the child's memory is whole.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            let Err(reason) = self.become_program(&theirs);
            let _ = nix::unistd::write(&theirs, reason.text.as_bytes());
            // SAFETY: ends the process without running what the shim had registered.
            unsafe { libc::_exit(reason.code) };
        }
        // Children made by others must not land in the container.
        setns(&self.own_pids, CloneFlags::CLONE_NEWPID)?;
        match forked? {
            ForkResult::Parent { child } => Ok((child.as_raw(), ours.into())),
            ForkResult::Child => Err(io::Error::other("a child that went on")),
        }
    }

    fn become_program(&self, output: &OwnedFd) -> Result<Infallible, Reason> {
        let step = |what: &'static str| move |err: Errno| Reason::new(format!("{what}: {}", err.desc()));
        setsid().map_err(step("new session"))?;
        self.enter_cgroups();
        setns(&self.container, NAMESPACES).map_err(step("enter the container"))?;
        dup2_stdin(&self.null).map_err(step("standard input"))?;
        dup2_stdout(output).map_err(step("standard output"))?;
        dup2_stderr(output).map_err(step("standard error"))?;
        // SAFETY: closes descriptors at the time of exec; no memory involved.
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        let cwd = self.process.cwd();
        chdir(cwd).map_err(step("change to the working directory"))?;
        self.limit().map_err(step("set limits"))?;
        self.change_user().map_err(step("change the user"))?;
        let empty = Vec::new();
        let env = self.process.env().as_ref().unwrap_or(&empty);
        let program =
            find(&self.args, env).map_err(|failure| Reason { text: failure.message, code: CODE_NOT_FOUND })?;
        let c_strings = |texts: &[String]| texts.iter().map(|text| CString::new(text.as_bytes())).collect();
        let argv: Result<Vec<_>, _> = c_strings(&self.args);
        let envp: Result<Vec<_>, _> = c_strings(env);
        let path = CString::new(program.into_os_string().into_encoded_bytes());
        let (Ok(argv), Ok(envp), Ok(path)) = (argv, envp, path) else {
            return Err(Reason::new("an argument has a zero byte in it".to_owned()));
        };
        reset_signals();
        if let Some(filter) = &self.filter {
            load_filter(filter).map_err(step("load the system call filter"))?;
        }
        drop_capabilities(self.caps).map_err(step("drop capabilities"))?;
        nix::unistd::execve(&path, &argv, &envp)
            .map_err(|err| Reason { text: format!("exec {}: {}", self.args[0], err.desc()), code: CODE_NOT_FOUND })
    }

    /// Where a hierarchy takes no process (cpuset without CPUs), nothing is limited either.
    fn enter_cgroups(&self) {
        for procs in &self.cgroups {
            let _ = fs::write(procs, "0");
        }
    }

    fn limit(&self) -> Result<(), Errno> {
        for limit in self.process.rlimits().iter().flatten() {
            let Some(resource) = resource(&limit.typ().to_string()) else { continue };
            let values = libc::rlimit { rlim_cur: limit.soft(), rlim_max: limit.hard() };
            // SAFETY: the call reads one rlimit.
            Errno::result(unsafe { libc::setrlimit(resource, &raw const values) })?;
        }
        Ok(())
    }

    /// Keeps capabilities: the filter and the bounding set need them still.
    fn change_user(&self) -> Result<(), Errno> {
        let user = self.process.user();
        let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|&gid| Gid::from_raw(gid)).collect();
        setgroups(&groups)?;
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        nix::unistd::setresgid(gid, gid, gid)?;
        if !uid.is_root() {
            nix::sys::prctl::set_keepcaps(true)?;
            nix::unistd::setresuid(uid, uid, uid)?;
            raise_capabilities()?;
        }
        Ok(())
    }
}

/// What a shell returns for a program that is not there.
const CODE_NOT_FOUND: i32 = 127;

/// Why there is no program; said where it would have printed.
struct Reason {
    text: String,
    code: i32,
}

impl Reason {
    fn new(text: String) -> Self {
        Self { text, code: 126 }
    }
}

fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers; the descriptor is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        match i32::try_from(fd) {
            Ok(fd @ 0..) => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn resource(name: &str) -> Option<libc::__rlimit_resource_t> {
    Some(match name {
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        _ => return None,
    })
}

/// As Go prints it: `3s`, `1m30s`, `500ms`.
fn go_duration(length: Duration) -> String {
    let (minutes, seconds) = (length.as_secs() / 60, length.as_secs() % 60);
    match (minutes, length.subsec_millis()) {
        (0, 0) => format!("{seconds}s"),
        (0, millis) if seconds == 0 => format!("{millis}ms"),
        (0, _) => format!("{}s", length.as_secs_f64()),
        (_, _) => format!("{minutes}m{seconds}s"),
    }
}

fn now_ns() -> u64 {
    to_ns(std::time::SystemTime::now())
}
