//! The last steps inside the container before its program: find it, load the system call filter, drop capabilities, and
//! execute it. libcontainer calls this in the process that becomes the container's first program; processes that enter
//! later ([`super::entry`]) take the same steps.
//!
//! libcontainer leaves SYS_ADMIN, SETPCAP and CHOWN in place beside the wanted capabilities, because loading a filter
//! needs the first when "no new privileges" is off (and it is: setuid programs must work). They go here.

use std::{
    ffi::{CString, OsStr},
    io::Write,
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::{
    oci_spec::runtime::{Process, Spec},
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::{errno::Errno, unistd};

use super::protocol::Failure;
use crate::runtime::seccomp::Instruction;

/// Capabilities that [`ContainerExecutor`] needs for itself, on top of what the program gets.
pub(crate) const NEEDED_CAPS: [&str; 3] = ["SYS_ADMIN", "SETPCAP", "CHOWN"];

/// What a shell returns for a program that is not there.
const CODE_NOT_FOUND: i32 = 127;
/// What a shell returns for a program that cannot be executed.
const CODE_NOT_EXECUTABLE: i32 = 126;

/// The number of the last capability the kernel could have: bits of the 64-bit set.
const LAST_CAP: u32 = 63;

#[derive(Debug, Clone)]
pub(super) struct ContainerExecutor {
    /// Where a [`Failure`] goes as JSON; closed by a successful exec.
    pub(super) report: RawFd,
    /// Capabilities of the program, as bits.
    pub(super) caps: u64,
    pub(super) filter: Option<Rc<Vec<Instruction>>>,
}

impl ContainerExecutor {
    /// Tells the shim; the error that libcontainer passes on is wrapped many times and has no code.
    fn report(&self, failure: &Failure) {
        let text = serde_json::to_vec(failure).unwrap_or_default();
        // The shim holds the other end until it has read this.
        let mut pipe = ManuallyDrop::new(file_of(self.report));
        let _ = pipe.write_all(&text);
    }

    fn execute(&self, process: &Process) -> Result<(), Failure> {
        let empty = Vec::new();
        let args = process.args().as_ref().unwrap_or(&empty);
        let env = process.env().as_ref().unwrap_or(&empty);
        let program = find(args, env)?;
        let failed = |what: &str, source: &dyn std::fmt::Display| Failure {
            message: format!("cannot start {}: {what}: {source}", program.display()),
            code: Some(CODE_NOT_EXECUTABLE),
        };
        let c_strings =
            |texts: &[String]| texts.iter().map(|text| CString::new(text.as_bytes())).collect::<Result<Vec<_>, _>>();
        let argv = c_strings(args).map_err(|err| failed("an argument", &err))?;
        let envp = c_strings(env).map_err(|err| failed("an environment variable", &err))?;
        let path = CString::new(program.as_os_str().as_bytes()).map_err(|err| failed("its path", &err))?;

        if process.terminal().unwrap_or(false) {
            // Programs that are not root reopen their terminal by name.
            own_terminal(process.user().uid()).map_err(|err| failed("handing over the terminal", &err))?;
        }
        reset_signals();
        if let Some(filter) = &self.filter {
            load_filter(filter).map_err(|err| failed("loading the system call filter", &err))?;
        }
        bound_capabilities(self.caps).map_err(|err| failed("bounding capabilities", &err))?;
        keep_capabilities(self.caps).map_err(|err| failed("dropping capabilities", &err))?;
        die_with_the_shim();
        let Err(err) = unistd::execve(&path, &argv, &envp);
        Err(cannot_execute(&args[0], err))
    }
}

impl Executor for ContainerExecutor {
    /// Runs before the container counts as created, so that a missing program is known early.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let nothing = (Vec::new(), Vec::new());
        let (args, env) = spec.process().as_ref().map_or(nothing, |process| {
            (process.args().clone().unwrap_or_default(), process.env().clone().unwrap_or_default())
        });
        find(&args, &env).map(drop).map_err(|failure| {
            self.report(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    /// The environment goes to `execve` as it stands in the specification, in its order.
    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        self.execute(process).map_err(|failure| {
            self.report(&failure);
            ExecutorError::Other(failure.message)
        })
    }
}

/// The program's path inside the container, as a shell would look it up.
pub(super) fn find(args: &[String], env: &[String]) -> Result<PathBuf, Failure> {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err(Failure { message: "no command specified".to_owned(), code: Some(CODE_NOT_FOUND) });
    };
    if name.contains('/') {
        return check_executable(Path::new(name)).map_err(|errno| cannot_execute(name, errno));
    }
    let search = env.iter().find_map(|var| var.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = None;
    for folder in search.split(':').map(|folder| if folder.is_empty() { "." } else { folder }) {
        match check_executable(&Path::new(folder).join(OsStr::new(name))) {
            Ok(path) => return Ok(path),
            Err(Errno::EACCES) => denied = Some(Errno::EACCES),
            Err(_) => {}
        }
    }
    Err(denied.map_or_else(
        || Failure {
            message: format!("exec: {name:?}: executable file not found in $PATH"),
            code: Some(CODE_NOT_FOUND),
        },
        |errno| cannot_execute(name, errno),
    ))
}

fn check_executable(path: &Path) -> Result<PathBuf, Errno> {
    let metadata = path.metadata().map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(libc::ENOENT)))?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        Ok(path.to_owned())
    } else {
        Err(Errno::EACCES)
    }
}

pub(super) fn cannot_execute(name: &str, errno: Errno) -> Failure {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => Failure {
            message: format!("exec: {name:?}: stat {name}: no such file or directory"),
            code: Some(CODE_NOT_FOUND),
        },
        Errno::EACCES | Errno::EPERM => {
            Failure { message: format!("exec: {name:?}: permission denied"), code: Some(CODE_NOT_EXECUTABLE) }
        }
        Errno::ENOEXEC => Failure {
            message: format!(
                "exec: {name:?}: exec format error (a script without \"#!\", or built for another machine)"
            ),
            code: Some(CODE_NOT_EXECUTABLE),
        },
        other => Failure { message: format!("exec: {name:?}: {}", other.desc()), code: Some(CODE_NOT_EXECUTABLE) },
    }
}

#[allow(unsafe_code)]
fn file_of(fd: RawFd) -> std::fs::File {
    // SAFETY: the descriptor was opened by the shim for this purpose; the caller does not let the file close it.
    unsafe { std::fs::File::from_raw_fd(fd) }
}

#[allow(unsafe_code)]
fn own_terminal(uid: u32) -> Result<(), Errno> {
    // SAFETY: changes the owner of an open descriptor; no memory involved.
    Errno::result(unsafe { libc::fchown(0, uid, u32::MAX) }).map(drop)
}

/// A container without its shim is nobody's: the kernel ends it at once, whether or not a worker is there to do it. Asked
/// for last, because a change of rights cancels it, as does a program with the setuid bit; then the worker does it. Where
/// the container's filter forbids the call, too.
#[allow(unsafe_code)]
pub(super) fn die_with_the_shim() {
    // SAFETY: prctl takes integers here.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

/// The shim blocks signals and the Rust runtime ignores SIGPIPE: both would be inherited. By system calls, because the
/// C library keeps two signals to itself and leaves them as they are.
#[allow(unsafe_code)]
pub(super) fn reset_signals() {
    const LAST_SIGNAL: libc::c_int = 64;
    const SET_BYTES: usize = 8;
    let none = 0_u64;
    // SIG_DFL, no flags, no restorer, empty mask: all zeros.
    let default_action = [0_u64; 4];
    let nothing = std::ptr::null_mut::<u8>();
    // SAFETY: the kernel reads an action of 32 bytes and a mask of 8; SIGKILL and SIGSTOP are refused.
    unsafe {
        for number in 1..=LAST_SIGNAL {
            libc::syscall(libc::SYS_rt_sigaction, number, default_action.as_ptr(), nothing, SET_BYTES);
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, nothing, SET_BYTES);
    }
}

/// Without "no new privileges", which a caller that has CAP_SYS_ADMIN need not set.
#[allow(unsafe_code)]
pub(super) fn load_filter(filter: &[Instruction]) -> Result<(), Errno> {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const Instruction,
    }
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program { len, filter: filter.as_ptr() };
    // As crun does, and runc since 1.2: without the flag, kernels before 5.16 slow down every process with a filter on
    // processors that they deem to need that (and later ones where they are told to). The mitigation is for programs
    // that run others' code in their own memory; those ask for it themselves, by prctl.
    let load = |flags: libc::c_ulong| {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the kernel copies `len` instructions from memory that lives until the call returns.
        Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) }).map(drop)
    };
    match load(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
        // Before Linux 4.17.
        Err(Errno::EINVAL) => load(0),
        loaded => loaded,
    }
}

/// Makes effective what is permitted: a change of user takes it away.
#[allow(unsafe_code)]
pub(super) fn raise_capabilities() -> Result<(), Errno> {
    // Version 3: effective, permitted and inheritable, in two halves.
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: capget fills two elements of three numbers each, as version 3 prescribes; capset reads them.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()))?;
        (sets[0], sets[3]) = (sets[1], sets[4]);
        Errno::result(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr())).map(drop)
    }
}

/// Leaves `wanted` in the bounding set, and nothing in the ambient one. What is permitted stays so until a program is
/// executed.
#[allow(unsafe_code)]
pub(super) fn bound_capabilities(wanted: u64) -> Result<(), Errno> {
    // SAFETY: prctl takes integers here.
    unsafe {
        for cap in (0..=LAST_CAP).filter(|cap| wanted & (1 << cap) == 0) {
            // Fails for numbers that the kernel does not have.
            if libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) == 1 {
                Errno::result(libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0))?;
            }
        }
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    }
    Ok(())
}

/// Leaves `wanted` in the permitted and effective sets, and nothing in the inheritable and ambient ones.
#[allow(unsafe_code)]
pub(super) fn keep_capabilities(wanted: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    // The two halves of a 64-bit set.
    #[allow(clippy::cast_possible_truncation)]
    let halves =
        [wanted as u32, (wanted >> 32) as u32].map(|half| Sets { effective: half, permitted: half, inheritable: 0 });
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: capset reads a header and two elements, as version 3 prescribes.
    unsafe { Errno::result(libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr())).map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str], path: &str, want: Result<&str, (&str, i32)>) {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let got = find(&args, &[format!("PATH={path}")]);
        let got = got.as_ref().map(|path| path.to_str().unwrap()).map_err(|f| (f.message.as_str(), f.code.unwrap()));
        assert_eq!(got, want);
    }

    #[test]
    fn programs_are_found_as_a_shell_does() {
        check(&["sh"], "/nowhere:/bin", Ok("/bin/sh"));
        check(&["/bin/sh"], "", Ok("/bin/sh"));
        check(&["nosuch"], "/bin", Err(("exec: \"nosuch\": executable file not found in $PATH", 127)));
        check(&["/no/such"], "/bin", Err(("exec: \"/no/such\": stat /no/such: no such file or directory", 127)));
        check(&["/etc/passwd"], "/bin", Err(("exec: \"/etc/passwd\": permission denied", 126)));
        check(&["/etc"], "/bin", Err(("exec: \"/etc\": permission denied", 126)));
        check(&[], "/bin", Err(("no command specified", 127)));
    }
}
