//! Forks of the shim. There is one thread, so a child's memory is whole; what it must not do is go on as a second shim.

#![allow(unsafe_code)]

use std::{io, os::fd::RawFd};

use nix::unistd::{ForkResult, fork};

/// What a child that panicked returns.
const CODE_PANICKED: i32 = 70;

/// Runs `body` in a child, which ends with the code that it returns. The child's number.
pub(super) fn in_child(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: there is one thread, so the child's memory is whole.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            let unwound = End(CODE_PANICKED);
            let code = End(body());
            std::mem::forget(unwound);
            drop(code);
            Err(io::Error::other("a child that went on"))
        }
    }
}

/// In a child that lives on: of the shim's descriptors it must hold only those that it uses. Else who asks the socket of a
/// killed shim would wait for an answer, and who reads to the end what the shim wrote to would wait for the end. Owners of
/// these descriptors are never dropped: the child ends without.
pub(super) fn close_all_but(kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for &fd in kept.iter() {
        if fd > first {
            // SAFETY: takes numbers.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = first.max(fd + 1);
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Ends the process when it is dropped, without running what the shim had registered.
struct End(i32);

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(self.0) };
    }
}
