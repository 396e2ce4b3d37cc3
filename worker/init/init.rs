//! The first process of a container that was started with `--init`: runs the program, passes signals on to it, reaps
//! what becomes an orphan, and ends with the program's code.
//!
//! It is mounted into containers of any image, so it needs nothing: no C library, no loader, no memory but its stack.
//! Compiled by the build script and carried in the binary.
#![no_std]
#![no_main]

use core::{
    arch::{asm, global_asm},
    mem::MaybeUninit,
    panic::PanicInfo,
};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETPGID: usize = 109;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const IOCTL: usize = 29;
    pub const WRITE: usize = 64;
    pub const EXIT_GROUP: usize = 94;
    pub const KILL: usize = 129;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const SETPGID: usize = 154;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
}

const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;
const SIGCHLD: usize = 17;
const SIGTTIN: isize = 21;
const SIGTTOU: isize = 22;
const TIOCSPGRP: usize = 0x5410;
const WNOHANG: usize = 1;
const SET_BYTES: usize = 8;
const ENOENT: isize = -2;
const EACCES: isize = -13;

const CODE_NOT_FOUND: usize = 127;
const CODE_NOT_EXECUTABLE: usize = 126;
const CODE_NO_FORK: usize = 125;
/// Longest path that is tried.
const MAX_PATH_BYTES: usize = 4096;

// The kernel leaves the number of arguments, then pointers to them, a null, then the environment and a null.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {main}", "brk #1", main = sym main);

type Text = *const u8;

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the stack is as the kernel has made it: the pointers behind the count are those of arguments and
    // environment, each list with a null at its end, each text with a zero.
    unsafe {
        let count = *stack;
        let args = stack.add(1).cast::<Text>();
        let env = args.add(count + 1);
        // `init -- program arguments…`
        if count < 3 {
            fail(b"usage: init -- PROGRAM [ARGUMENT...]", CODE_NOT_FOUND);
        }
        run(args.add(2), env)
    }
}

/// # Safety
/// `args` and `env` are lists of texts that end with a null; there is at least one argument.
unsafe fn run(args: *const Text, env: *const Text) -> ! {
    let all = u64::MAX;
    let mut before = 0_u64;
    call(number::RT_SIGPROCMASK, SIG_BLOCK, &raw const all as usize, &raw mut before as usize, SET_BYTES, 0);
    let program = call(number::CLONE, SIGCHLD, 0, 0, 0, 0);
    if program < 0 {
        fail(b"cannot fork", CODE_NO_FORK);
    }
    if program == 0 {
        // A group of its own, in the foreground of the terminal when there is one.
        call(number::SETPGID, 0, 0, 0, 0, 0);
        let own = call_getpgid();
        call(number::IOCTL, 0, TIOCSPGRP, &raw const own as usize, 0, 0);
        call(number::RT_SIGPROCMASK, SIG_SETMASK, &raw const before as usize, 0, SET_BYTES, 0);
        // SAFETY: the lists are the caller's.
        let error = unsafe { execute(args, env) };
        match error {
            ENOENT => fail(b"executable file not found in $PATH", CODE_NOT_FOUND),
            _ => fail(b"the program cannot be executed", CODE_NOT_EXECUTABLE),
        }
    }
    loop {
        let signal = call(number::RT_SIGTIMEDWAIT, &raw const all as usize, 0, 0, SET_BYTES, 0);
        match signal {
            17 => reap(program),
            SIGTTIN | SIGTTOU => {}
            signal if signal > 0 => drop(call(number::KILL, program.cast_unsigned(), signal.cast_unsigned(), 0, 0, 0)),
            _ => {}
        }
    }
}

/// The program's process is the leader of its group: its own number.
fn call_getpgid() -> i32 {
    #[cfg(target_arch = "x86_64")]
    const GETPID: usize = 39;
    #[cfg(target_arch = "aarch64")]
    const GETPID: usize = 172;
    call(GETPID, 0, 0, 0, 0, 0) as i32
}

/// Everything that has ended; ends with the program's code when it is among it.
fn reap(program: isize) {
    loop {
        let mut status = 0_i32;
        let ended = call(number::WAIT4, usize::MAX, &raw mut status as usize, WNOHANG, 0, 0);
        if ended <= 0 {
            return;
        }
        if ended == program {
            let signal = status & 0x7f;
            let code = if signal == 0 { (status >> 8) & 0xff } else { 128 + signal };
            exit(code as usize);
        }
    }
}

/// Replaces this process; returns the error when it cannot.
///
/// # Safety
/// As [`run`].
unsafe fn execute(args: *const Text, env: *const Text) -> isize {
    // SAFETY: by the caller.
    unsafe {
        let name = *args;
        let execve = |path: Text| call(number::EXECVE, path as usize, args as usize, env as usize, 0, 0);
        if has_slash(name) {
            return execve(name);
        }
        let mut folders = path_of(env);
        let mut outcome = ENOENT;
        loop {
            // Not filled with zeros: that would take a function of the C library.
            let mut space = MaybeUninit::<[u8; MAX_PATH_BYTES]>::uninit();
            let path = space.as_mut_ptr().cast::<u8>();
            let mut len = 0;
            while *folders != 0 && *folders != b':' {
                if len < MAX_PATH_BYTES {
                    *path.add(len) = *folders;
                }
                len += 1;
                folders = folders.add(1);
            }
            let mut rest = name;
            if len > 0 && len < MAX_PATH_BYTES {
                *path.add(len) = b'/';
                len += 1;
            }
            while *rest != 0 {
                if len < MAX_PATH_BYTES {
                    *path.add(len) = *rest;
                }
                len += 1;
                rest = rest.add(1);
            }
            if len < MAX_PATH_BYTES {
                *path.add(len) = 0;
                match execve(path) {
                    ENOENT => {}
                    error => outcome = if outcome == ENOENT || error == EACCES { error } else { outcome },
                }
            }
            if *folders == 0 {
                return outcome;
            }
            folders = folders.add(1);
        }
    }
}

/// # Safety
/// The text ends with a zero.
unsafe fn has_slash(mut text: Text) -> bool {
    // SAFETY: by the caller.
    unsafe {
        while *text != 0 {
            if *text == b'/' {
                return true;
            }
            text = text.add(1);
        }
    }
    false
}

/// The value of PATH.
///
/// # Safety
/// As [`run`].
unsafe fn path_of(env: *const Text) -> Text {
    // SAFETY: by the caller; a comparison stops at the end of the text.
    unsafe {
        let mut at = env;
        while !(*at).is_null() {
            let var = *at;
            if *var == b'P' && *var.add(1) == b'A' && *var.add(2) == b'T' && *var.add(3) == b'H' && *var.add(4) == b'='
            {
                return var.add(5);
            }
            at = at.add(1);
        }
    }
    c"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr().cast()
}

fn fail(what: &[u8], code: usize) -> ! {
    for part in [b"init: ".as_slice(), what, b"\n"] {
        call(number::WRITE, 2, part.as_ptr() as usize, part.len(), 0, 0);
    }
    exit(code)
}

fn exit(code: usize) -> ! {
    loop {
        call(number::EXIT_GROUP, code, 0, 0, 0, 0);
    }
}

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: callers pass pointers to memory that lives until the call returns; the kernel spoils rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: callers pass pointers to memory that lives until the call returns.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
             in("x4") e, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(CODE_NO_FORK)
}
