//! Sends any signal that the kernel has, real-time ones too: nix knows those with a name alone.

use nix::errno::Errno;

/// To one process, never to a group. A number that is no signal is refused by the kernel.
#[allow(unsafe_code)]
pub(crate) fn send(pid: i32, number: i32) -> Result<(), Errno> {
    if pid <= 0 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::kill(pid, number) }).map(drop)
}
