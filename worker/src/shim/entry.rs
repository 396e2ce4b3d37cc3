//! Brings a new process into a running container: its namespaces, its control group, its rights. Health checks and
//! executed commands come this way: one fork of the shim, some thirty system calls, and the program.
//!
//! libcontainer's way in takes 15 ms and loses the system call filter; this is also why it is ours.

#![allow(unsafe_code)]

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    iter,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setfsgid, setfsuid, setgroups, setsid},
};
use serde::Deserialize;

use super::{
    executor::{
        bound_capabilities, cannot_execute, find, keep_capabilities, load_filter, raise_capabilities, reset_signals,
    },
    fork::in_child,
    protocol::Failure,
};
use crate::runtime::{cgroup::Layout, seccomp::Instruction};

/// What a shell returns for a program that cannot be started.
const CODE_NOT_STARTED: i32 = 126;

/// The device number of every `/dev/ptmx`.
const PTMX: (u64, u64) = (5, 2);

/// All of a container's namespaces except that of process numbers, which the shim enters for its next child, and that of
/// users, which not every container has.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// The OCI `process` object, as far as it concerns a process that enters a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    cwd: PathBuf,
    #[serde(default)]
    pub(super) user: User,
    #[serde(default)]
    rlimits: Vec<Rlimit>,
    #[serde(default)]
    no_new_privileges: bool,
    #[serde(default)]
    apparmor_profile: Option<String>,
    #[serde(default)]
    oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    pub(super) uid: u32,
    gid: u32,
    #[serde(default)]
    additional_gids: Vec<u32>,
    #[serde(default)]
    umask: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: String,
    soft: u64,
    hard: u64,
}

/// A process's standard streams.
pub(super) enum Streams<'a> {
    Given {
        stdin: BorrowedFd<'a>,
        stdout: BorrowedFd<'a>,
        stderr: BorrowedFd<'a>,
    },
    /// A new terminal of the container; its master side is sent over this socket.
    Terminal(BorrowedFd<'a>),
}

/// What runs, and with which rights.
pub(super) struct Program<'a> {
    pub(super) args: &'a [String],
    pub(super) process: &'a Process,
    /// As bits.
    pub(super) caps: u64,
    pub(super) filter: Option<&'a [Instruction]>,
}

/// The way into one container.
pub(super) struct Entry {
    container: OwnedFd,
    own_pids: File,
    namespaces: CloneFlags,
    /// Of each hierarchy, to write oneself into.
    cgroups: Vec<PathBuf>,
    /// Of those in which the container's processes are counted and listed.
    counted: Vec<PathBuf>,
    /// On version 2: where the hierarchy is mounted, and the container's first process.
    unified: Option<(PathBuf, i32)>,
    /// The host's number of the container's user 0, with the numbers of those after it.
    users: Option<Vec<Mapping>>,
}

/// A line of `/proc/PID/uid_map`.
struct Mapping {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Entry {
    /// For the container whose first process is `pid`.
    pub(super) fn open(pid: i32, layout: &Layout, cgroup: &str) -> io::Result<Self> {
        let user_namespace = |of: &str| fs::metadata(format!("/proc/{of}/ns/user")).map(|ns| ns.ino());
        let of_container = pid.to_string();
        let remapped = user_namespace(&of_container)? != user_namespace("self")?;
        let users = remapped.then(|| mappings(&fs::read_to_string(format!("/proc/{pid}/uid_map"))?)).transpose()?;
        let procs = |folders: Vec<PathBuf>| folders.into_iter().map(|folder| folder.join("cgroup.procs")).collect();
        let (counted, others) = layout.counted_apart(cgroup);
        let unified = match layout {
            Layout::V2(mount) => Some((mount.clone(), pid)),
            Layout::V1(_) => None,
        };
        Ok(Self {
            container: open_process(pid)?,
            own_pids: File::open("/proc/self/ns/pid")?,
            namespaces: if remapped { NAMESPACES | CloneFlags::CLONE_NEWUSER } else { NAMESPACES },
            cgroups: procs(others),
            counted: procs(counted),
            unified,
            users,
        })
    }

    /// The host's number of one of the container's users.
    pub(super) fn host_uid(&self, uid: u32) -> Option<u32> {
        let Some(users) = &self.users else { return Some(uid) };
        let mapping = users.iter().find(|m| uid.checked_sub(m.inside).is_some_and(|offset| offset < m.count))?;
        mapping.outside.checked_add(uid - mapping.inside)
    }

    /// Starts the program. What keeps it from starting is `failed`'s to tell, in the process that was to become it.
    /// Returns the process's number on the host.
    pub(super) fn run(
        &self,
        program: &Program<'_>,
        streams: &Streams<'_>,
        failed: impl Fn(&Failure) -> i32,
    ) -> io::Result<i32> {
        setns(&self.container, CloneFlags::CLONE_NEWPID)?;
        let forked = in_child(|| {
            let Err(failure) = self.become_program(program, streams);
            failed(&failure)
        });
        // Children made by others must not land in the container.
        setns(&self.own_pids, CloneFlags::CLONE_NEWPID)?;
        forked
    }

    /// The container's first process.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }

    /// For a process that stays and starts others: makes it what they all are, as far as that leaves it the rights to do
    /// so. Its children are in the container. What is left for each is to [`join_one`] of the files that come back, and what
    /// [`take_place`] does.
    pub(super) fn settle(&self, program: &Program<'_>) -> Result<Vec<File>, Failure> {
        setns(&self.container, CloneFlags::CLONE_NEWPID).map_err(step("enter the container's process numbers"))?;
        self.cgroups.iter().filter_map(open_procs).for_each(join);
        let counted = self.counted_procs().collect();
        self.enter(program.process)?;
        restrict(program)?;
        bound_capabilities(program.caps).map_err(step("bound capabilities"))?;
        Ok(counted)
    }

    fn become_program(&self, program: &Program<'_>, streams: &Streams<'_>) -> Result<Infallible, Failure> {
        let process = program.process;
        setsid().map_err(step("new session"))?;
        self.cgroups.iter().filter_map(open_procs).for_each(join);
        match join_one(self.counted_procs()) {
            Err(err) if self.unified.is_some() => {
                return Err(failure(format!("enter the container's control group: {err}")));
            }
            _ => {}
        }
        self.enter(process)?;
        connect(streams, process.user.uid)?;
        take_place(process)?;
        let path = find(program.args, &process.env)?;
        let c_strings = |texts: &[String]| texts.iter().map(|text| CString::new(text.as_bytes())).collect();
        let argv: Result<Vec<_>, _> = c_strings(program.args);
        let envp: Result<Vec<_>, _> = c_strings(&process.env);
        let (Ok(argv), Ok(envp), Ok(path)) = (argv, envp, CString::new(path.into_os_string().into_encoded_bytes()))
        else {
            return Err(failure("an argument has a zero byte in it".to_owned()));
        };
        restrict(program)?;
        bound_capabilities(program.caps).map_err(step("bound capabilities"))?;
        keep_capabilities(program.caps).map_err(step("drop capabilities"))?;
        let Err(err) = nix::unistd::execve(&path, &argv, &envp);
        Err(cannot_execute(&program.args[0], err))
    }

    /// Where its processes are counted, and where its first one is. On version 2 a container may hand its control group on to
    /// groups below it (docker:dind, systemd): then it takes no process itself any more. To be opened outside: files that are
    /// opened inside move nothing that comes from elsewhere.
    fn counted_procs(&self) -> impl Iterator<Item = File> {
        let of_first = || {
            let (mount, pid) = self.unified.as_ref()?;
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            open_procs(&mount.join(unified_cgroup(&cgroups)?).join("cgroup.procs"))
        };
        self.counted.iter().filter_map(open_procs).chain(iter::once_with(of_first).flatten())
    }

    /// The container's namespaces, and what is set from outside of them.
    fn enter(&self, process: &Process) -> Result<(), Failure> {
        if let Some(score) = process.oom_score_adj {
            let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
        }
        let profile = process.apparmor_profile.as_deref().filter(|profile| !profile.is_empty());
        // Opened outside: what the container has mounted as /proc is not to be trusted.
        let confinement = profile.map(|profile| open_confinement().map(|file| (file, profile))).transpose();
        let confinement = confinement.map_err(|err| failure(format!("find AppArmor: {err}")))?;
        setns(&self.container, self.namespaces).map_err(step("enter the container"))?;
        if let Some((mut file, profile)) = confinement {
            file.write_all(format!("exec {profile}").as_bytes())
                .map_err(|err| failure(format!("apply the AppArmor profile {profile}: {err}")))?;
        }
        umask(Mode::from_bits_truncate(process.user.umask.unwrap_or(0o022)));
        // SAFETY: closes descriptors at the time of exec; no memory involved.
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Ok(())
    }
}

/// The last of what is the process's own: its folder, its limits, its user.
pub(super) fn take_place(process: &Process) -> Result<(), Failure> {
    // Before the change of user: the folder may be closed to that one.
    chdir(&process.cwd).map_err(step("change to the working directory"))?;
    limit(&process.rlimits).map_err(step("set limits"))?;
    change_user(&process.user).map_err(step("change the user"))
}

/// What is inherited and cannot be undone, with signals as programs expect them.
fn restrict(program: &Program<'_>) -> Result<(), Failure> {
    reset_signals();
    if program.process.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(step("renounce new privileges"))?;
    }
    program.filter.map_or(Ok(()), load_filter).map_err(step("load the system call filter"))
}

/// Not created: that would make a file where the cgroup is gone.
fn open_procs(procs: &PathBuf) -> Option<File> {
    OpenOptions::new().write(true).open(procs).ok()
}

/// Where a hierarchy takes no process (cpuset without CPUs), nothing is limited either.
fn join(mut procs: File) {
    let _ = procs.write_all(b"0");
}

/// Moves this process to the first group that takes it.
pub(super) fn join_one<P: Write>(groups: impl IntoIterator<Item = P>) -> io::Result<()> {
    let mut refused = io::ErrorKind::NotFound.into();
    for mut procs in groups {
        match procs.write_all(b"0") {
            Ok(()) => return Ok(()),
            Err(err) => refused = err,
        }
    }
    Err(refused)
}

/// The group on version 2 that a process's `cgroup` in /proc names, below where the hierarchy is mounted.
fn unified_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

pub(super) fn failure(message: String) -> Failure {
    Failure { message, code: Some(CODE_NOT_STARTED) }
}

pub(super) fn step(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |err| failure(format!("{what}: {}", err.desc()))
}

fn connect(streams: &Streams<'_>, uid: u32) -> Result<(), Failure> {
    let terminal;
    let (stdin, stdout, stderr) = match streams {
        Streams::Given { stdin, stdout, stderr } => (*stdin, *stdout, *stderr),
        Streams::Terminal(socket) => {
            terminal = make_terminal(*socket).map_err(|err| failure(format!("make a terminal: {err}")))?;
            // Else it could not open /dev/stdout. Refused where /dev/pts is read-only, which is fine.
            let _ = fchown(&terminal, Some(Uid::from_raw(uid)), None);
            (terminal.as_fd(), terminal.as_fd(), terminal.as_fd())
        }
    };
    dup2_stdin(stdin).map_err(step("standard input"))?;
    dup2_stdout(stdout).map_err(step("standard output"))?;
    dup2_stderr(stderr).map_err(step("standard error"))
}

/// A terminal of the container's own, under which this process's session runs; the master side goes over the socket.
fn make_terminal(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // It belongs to who opens it. Where users are remapped the node's root has no number, and what is his cannot be given away.
    setfsgid(Gid::from_raw(0));
    setfsuid(Uid::from_raw(0));
    let master = open("/dev/ptmx", flags, Mode::empty())?;
    let number = nix::sys::stat::fstat(&master)?.st_rdev;
    if (nix::sys::stat::major(number), nix::sys::stat::minor(number)) != PTMX {
        return Err(io::Error::other("/dev/ptmx of the container is not what it should be"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: this call reads one integer.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: this call takes open flags, and returns a new descriptor, which is ours.
    let terminal = unsafe {
        let fd = Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()))?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: this call takes a number.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    super::wire::send(&socket, b" ", &[master.as_raw_fd()])?;
    Ok(terminal)
}

/// Where a process says which profile its next program runs under. The second is older.
fn open_confinement() -> io::Result<File> {
    let open = |path: &str| OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(path);
    open("/proc/self/attr/apparmor/exec").or_else(|_| open("/proc/self/attr/exec"))
}

fn limit(rlimits: &[Rlimit]) -> Result<(), Errno> {
    for limit in rlimits {
        let Some(resource) = resource(&limit.kind) else { continue };
        let values = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: the call reads one rlimit.
        Errno::result(unsafe { libc::setrlimit(resource, &raw const values) })?;
    }
    Ok(())
}

/// Keeps capabilities: the filter and the bounding set need them still.
fn change_user(user: &User) -> Result<(), Errno> {
    let groups: Vec<Gid> = user.additional_gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    if uid.is_root() { Ok(()) } else { raise_capabilities() }
}

fn mappings(text: &str) -> io::Result<Vec<Mapping>> {
    let parse = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(count))) => Ok(Mapping { inside, outside, count }),
            _ => Err(io::Error::other(format!("cannot understand a mapping of users: {line:?}"))),
        }
    };
    text.lines().map(parse).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_users_have_numbers_on_the_host() {
        let check = |map: Option<&str>, uid: u32, want: Option<u32>| {
            let entry = Entry {
                container: File::open("/dev/null").unwrap().into(),
                own_pids: File::open("/dev/null").unwrap(),
                namespaces: NAMESPACES,
                cgroups: Vec::new(),
                counted: Vec::new(),
                unified: None,
                users: map.map(|text| mappings(text).unwrap()),
            };
            assert_eq!(entry.host_uid(uid), want);
        };
        check(None, 33, Some(33));
        check(Some("         0     100000      65536\n"), 0, Some(100_000));
        check(Some("         0     100000      65536\n"), 33, Some(100_033));
        check(Some("         0     100000      65536\n"), 65536, None);
        check(Some("0 1000 1\n1 100000 10\n"), 3, Some(100_002));
        assert!(mappings("0 nobody 1\n").is_err());
    }

    #[test]
    fn a_process_goes_where_it_is_taken() {
        let refuses = || OpenOptions::new().write(true).open("/dev/full").unwrap();
        let group = tempfile::NamedTempFile::new().unwrap();
        let takes = || OpenOptions::new().write(true).open(group.path()).unwrap();
        join_one([refuses(), takes()]).unwrap();
        assert_eq!(fs::read_to_string(group.path()).unwrap(), "0");
        join_one([takes(), refuses()]).unwrap();
        join_one([refuses()]).unwrap_err();
        join_one([] as [File; 0]).unwrap_err();
        assert_eq!(unified_cgroup("0::/orch.slice/x/init\n"), Some("orch.slice/x/init"));
        assert_eq!(unified_cgroup("12:pids:/x\n0::/\n"), Some(""));
        assert_eq!(unified_cgroup("12:pids:/x\n"), None);
    }

    #[test]
    fn a_process_reads_with_little_and_with_much() {
        let least: Process = serde_json::from_str(r#"{"cwd":"/","args":["x"]}"#).unwrap();
        assert_eq!((least.user.uid, least.no_new_privileges, least.oom_score_adj), (0, false, None));
        let most = r#"{"cwd":"/srv","args":["x"],"env":["A=1"],"terminal":true,"noNewPrivileges":true,"oomScoreAdj":7,
            "apparmorProfile":"p","user":{"uid":1,"gid":2,"additionalGids":[3],"umask":18},"capabilities":{"bounding":[]},
            "rlimits":[{"type":"RLIMIT_NOFILE","soft":1,"hard":2}]}"#;
        let most: Process = serde_json::from_str(most).unwrap();
        assert_eq!((most.user.gid, most.user.additional_gids.as_slice(), most.user.umask), (2, &[3][..], Some(18)));
        assert_eq!((most.rlimits[0].kind.as_str(), most.rlimits[0].hard), ("RLIMIT_NOFILE", 2));
        assert_eq!((most.oom_score_adj, most.apparmor_profile.as_deref()), (Some(7), Some("p")));
    }
}
