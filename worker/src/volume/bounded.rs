//! A system call on a file system whose server may be away, in a process of its own: a process that waits for a server can
//! be killed, a thread cannot.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, waitpid},
};

/// For a killed process to go. One that the kernel does not let go is left to a thread.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Makes the call, or gives it up after `limit`. It must not allocate, lock or panic; of the descriptors it has `kept`.
pub(super) fn within(
    limit: Duration,
    kept: Option<BorrowedFd<'_>>,
    call: impl FnOnce() -> Result<(), Errno>,
) -> io::Result<()> {
    let pid = start(kept, call)?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        // Without it nobody could tell when to stop waiting.
        Err(error) => {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            reap_later(pid);
            return Err(error.into());
        }
    };
    if has_ended(&process, limit)? {
        return match waitpid(Some(pid), WaitOptions::empty())?.and_then(|(_, status)| errno(status)) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::from(io::ErrorKind::Interrupted)),
        };
    }
    pidfd_send_signal(&process, Signal::KILL)?;
    if has_ended(&process, END_LIMIT)? {
        waitpid(Some(pid), WaitOptions::empty())?;
    } else {
        reap_later(pid);
    }
    let text = format!("no answer within {} s: is its server up, and is there a way to it?", limit.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

fn start(kept: Option<BorrowedFd<'_>>, call: impl FnOnce() -> Result<(), Errno>) -> io::Result<Pid> {
    let flags = libc::c_ulong::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: this process has threads, so the child does nothing but system calls until it ends: no allocation, no lock,
    // no destructor.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if pid == 0 {
            close_all_but(kept.map(|fd| fd.as_raw_fd().unsigned_abs()));
            libc::_exit(call().map_or_else(Errno::raw_os_error, |()| 0));
        }
        pid
    };
    let pid = i32::try_from(nix::errno::Errno::result(pid)?).map_err(io::Error::other)?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process without a number"))
}

/// Else whoever talks to this process would not notice that it has closed a connection.
unsafe fn close_all_but(kept: Option<u32>) {
    let close = |first: u32, last: u32| {
        // SAFETY: takes numbers; the child's owners of these descriptors are never dropped.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }
    };
    let Some(kept) = kept else {
        close(0, u32::MAX);
        return;
    };
    if kept > 0 {
        close(0, kept - 1);
    }
    close(kept + 1, u32::MAX);
}

fn has_ended(process: &OwnedFd, limit: Duration) -> io::Result<bool> {
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn errno(status: WaitStatus) -> Option<i32> {
    status.exit_status()
}

fn reap_later(pid: Pid) {
    thread::spawn(move || waitpid(Some(pid), WaitOptions::empty()));
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_call_ends_with_its_error_or_in_time() {
        let limit = Duration::from_secs(10);
        within(limit, None, || Ok(())).unwrap();
        let refused = within(limit, None, || Err(Errno::CONNREFUSED)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
        let started = Instant::now();
        let endless = || {
            // SAFETY: a system call without arguments.
            unsafe { libc::pause() };
            Ok(())
        };
        let given_up = within(Duration::from_millis(100), None, endless).unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < limit);
    }
}
