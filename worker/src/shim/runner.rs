//! Starts a container's health checks: a process that has become all that they have in common, and waits for orders.
//!
//! A fork of the shim pays for the shim's memory, for moving into every control group and namespace, and for loading the
//! system call filter: several times what a small program takes by itself. The runner does that once. It is outside the
//! container's process numbers, hence invisible to it and out of its reach; it keeps the shim's rights, and sheds them in
//! the child that becomes the check, which shares its memory until then (it stands still meanwhile).
//!
//! Checks are children of the shim, not of the runner: the shim sees their ends as any other's, also those whose runner is
//! gone. It learns their numbers from memory that both have. The runner says something only when it cannot do its work.

#![allow(unsafe_code)]

use std::{
    cell::Cell,
    convert::Infallible,
    ffi::{CString, c_char, c_int, c_void},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid},
};

use super::{
    entry::{Entry, Program, failure, join_one, step, take_place},
    executor::{cannot_execute, die_with_the_shim, find, keep_capabilities},
    fork::{close_all_but, in_child},
    nursery::Arguments,
    protocol::Failure,
    wire,
};

/// An order; the descriptor that comes with it is what matters.
const ORDER: &[u8] = b"!";
/// Longest complaint.
const MAX_FAILURE_BYTES: usize = 4096;
/// Room for a child's way to its program.
const STACK_BYTES: usize = 64 * 1024;
/// What a check that could not be started returns when nothing better is known.
const CODE_NOT_STARTED: i32 = 126;

/// The shim's side; dropping it ends the process.
pub(super) struct Runner {
    /// 0 once its end was collected.
    pid: i32,
    /// Until it has said why it can do no more.
    socket: Option<OwnedFd>,
    number: SharedNumber,
}

impl Runner {
    /// For checks that are `program`. Whether it could do what is needed is heard later.
    pub(super) fn start(entry: &Entry, program: &Program<'_>) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        let null = File::open("/dev/null")?;
        let number = SharedNumber::new()?;
        let pid = in_child(|| {
            let mut kept = vec![entry.process().as_raw_fd(), theirs.as_raw_fd(), null.as_raw_fd()];
            close_all_but(&mut kept);
            Arguments::find().rename(&[b"orch", b"checks"]);
            let said = match dup2_stdin(&null).map_err(step("standard input")) {
                Ok(()) => serve(entry, program, &theirs, &number),
                Err(failure) => Err(failure),
            };
            let Err(failure) = said else { return 0 };
            let _ = wire::send(&theirs, &serde_json::to_vec(&failure).unwrap_or_default(), &[]);
            CODE_NOT_STARTED
        })?;
        Ok(Self { pid, socket: Some(ours), number })
    }

    /// Starts a check that prints to `output`. An error: the process is gone.
    pub(super) fn order(&self, output: BorrowedFd<'_>) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        self.number.get().store(0, Ordering::Relaxed);
        wire::send(socket, ORDER, &[output.as_raw_fd()]).map(drop)
    }

    /// Readable when the process complains or is gone.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// What it complains of; it is of no use any more then. Nothing: all is well.
    pub(super) fn complaint(&mut self) -> Option<Failure> {
        let mut buffer = [0; MAX_FAILURE_BYTES];
        let complaint = match wire::receive(self.socket.as_ref()?, &mut buffer) {
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return None,
            Ok((len @ 1.., _)) => {
                let unclear = || failure(String::from_utf8_lossy(&buffer[..len]).into_owned());
                serde_json::from_slice(&buffer[..len]).unwrap_or_else(|_| unclear())
            }
            Ok(_) | Err(_) => failure("the process that starts checks was killed".to_owned()),
        };
        self.socket = None;
        Some(complaint)
    }

    /// The number of the check that was ordered last, once there is one.
    pub(super) fn check(&self) -> Option<i32> {
        Some(self.number.get().load(Ordering::Relaxed)).filter(|&pid| pid > 0)
    }

    /// Whether the process itself is this one, which has ended and was collected.
    pub(super) fn reaped(&mut self, pid: i32) -> bool {
        let own = self.pid == pid;
        if own {
            self.pid = 0;
        }
        own
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if self.pid > 0 {
            // Not collected yet: the number is its.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// In the runner: carries out orders until the shim is gone.
fn serve(entry: &Entry, program: &Program<'_>, shim: &OwnedFd, number: &SharedNumber) -> Result<(), Failure> {
    let call = Call::new(program)?;
    let counted = entry.settle(program)?;
    die_with_the_shim();
    let mut stack = vec![0; STACK_BYTES];
    let mut order = [0; ORDER.len()];
    // Written by the children, whose memory it is too.
    let is_uncounted = Cell::new(false);
    loop {
        let fds = match wire::receive(shim, &mut order) {
            Ok((0, _)) => return Ok(()),
            Ok((_, fds)) => fds,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            Err(err) => return Err(failure(format!("hear from the shim: {err}"))),
        };
        let Some(output) = fds.first() else { return Err(failure("an order came without output".to_owned())) };
        // Here, because a child that executes its program frees nothing, and its memory is this process's.
        let mut path = None;
        let started = beside(&mut stack, number, &mut || {
            let Err(failure) = become_check(&counted, &is_uncounted, program, &call, output, &mut path);
            // Said where the program would have printed.
            let _ = nix::unistd::write(output, failure.message.as_bytes());
            failure.code.unwrap_or(CODE_NOT_STARTED)
        });
        started.map_err(|err| failure(format!("start a process: {err}")))?;
        if is_uncounted.get() {
            // The next one finds where the container's processes are now.
            return Err(failure("the container's control group takes no process any more".to_owned()));
        }
    }
}

/// In the child: what is not the same for all checks, or must not happen to the runner.
fn become_check(
    counted: &[File],
    is_uncounted: &Cell<bool>,
    program: &Program<'_>,
    call: &Call,
    output: &OwnedFd,
    path: &mut Option<CString>,
) -> Result<Infallible, Failure> {
    setsid().map_err(step("new session"))?;
    // No reason to call the container sick.
    is_uncounted.set(!counted.is_empty() && join_one(counted).is_err());
    dup2_stdout(output).map_err(step("standard output"))?;
    dup2_stderr(output).map_err(step("standard error"))?;
    take_place(program.process)?;
    let path = match call.argv_pointers.first() {
        // A path needs no search, and what is wrong with it the kernel says.
        Some(&name) if program.args.first().is_some_and(|name| name.contains('/')) => name,
        _ => {
            let found = find(program.args, &program.process.env)?.into_os_string().into_encoded_bytes();
            let found = CString::new(found).map_err(|_| failure("its path has a zero byte in it".to_owned()))?;
            path.insert(found).as_ptr()
        }
    };
    keep_capabilities(program.caps).map_err(step("drop capabilities"))?;
    // SAFETY: texts and lists of them end with zeros, and live until the program has taken this memory's place.
    unsafe { libc::execve(path, call.argv_pointers.as_ptr(), call.envp_pointers.as_ptr()) };
    Err(cannot_execute(&program.args[0], Errno::last()))
}

/// What `execve` takes, made once.
struct Call {
    argv_pointers: Vec<*const c_char>,
    envp_pointers: Vec<*const c_char>,
    /// What the pointers point to.
    _texts: [Vec<CString>; 2],
}

impl Call {
    fn new(program: &Program<'_>) -> Result<Self, Failure> {
        let c_strings = |texts: &[String]| {
            let strings = texts.iter().map(|text| CString::new(text.as_bytes()));
            strings.collect::<Result<Vec<_>, _>>().map_err(|_| failure("an argument has a zero byte in it".to_owned()))
        };
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        let texts = [c_strings(program.args)?, c_strings(&program.process.env)?];
        Ok(Self { argv_pointers: pointers(&texts[0]), envp_pointers: pointers(&texts[1]), _texts: texts })
    }
}

/// Runs `body` in a child of this process's parent. Until the child executes a program or ends with the code that `body`
/// returned, it shares this process's memory, and this process stands still. The child's number is known before it runs.
fn beside(stack: &mut [u8], number: &SharedNumber, mut body: &mut dyn FnMut() -> i32) -> io::Result<()> {
    extern "C" fn run(body: *mut c_void) -> c_int {
        // SAFETY: it is the address of `body` below, which lives: the function that has it stands still.
        let body = unsafe { &mut *body.cast::<&mut dyn FnMut() -> i32>() };
        body()
    }
    const ALIGNMENT: usize = 16;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    let top = stack.as_mut_ptr_range().end;
    let top = top.wrapping_sub(top.addr() % ALIGNMENT);
    // SAFETY: the stack grows down and is the child's alone while it runs; `body` outlives that, because this process goes
    // on when the child no longer uses this memory; there is one thread.
    let pid = unsafe { libc::clone(run, top.cast(), flags, (&raw mut body).cast(), number.get().as_ptr()) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A number that the shim and its runner both see.
struct SharedNumber(NonNull<AtomicI32>);

impl SharedNumber {
    fn new() -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: new memory at an address that the kernel chooses; zeros are a number.
        let memory = unsafe { libc::mmap(ptr::null_mut(), size_of::<AtomicI32>(), protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn get(&self) -> &AtomicI32 {
        // SAFETY: mapped, aligned and initialized from `new` to `drop`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedNumber {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` in this size; references to it do not outlive this.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<AtomicI32>()) };
    }
}
