//! Those who are attached to a container: its output goes to them as well as to the log, its input comes from them.
//!
//! As with Docker, who is attached and does not read holds up the program: nothing is lost, and nothing grows without
//! limit. Who goes away is forgotten.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{log::Source, protocol::STDIO_FDS};

/// Read at once from somebody's input.
const INPUT_BYTES: usize = 16 * 1024;
/// How long the rest of the output of a container that has ended waits for a slow reader.
const LAST_OUTPUT_LIMIT: Duration = Duration::from_secs(5);
/// How large a reader's pipe gets for it: what a pipe may have without privileges, by default. The container's own pipe and
/// what was read of it are an eighth of that.
const LAST_OUTPUT_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;

#[derive(Default)]
pub(super) struct Attached {
    peers: Vec<Peer>,
    /// Where input goes: a pipe, or the terminal.
    stdin: Option<File>,
    /// Input that the container has not taken yet.
    input: Vec<u8>,
    /// The first who gave input and closes it closes the container's, once it has taken the rest.
    is_once: bool,
    closing: bool,
}

struct Peer {
    stdin: Option<File>,
    stdout: Output,
    stderr: Output,
    /// It reads no more. What it has still to say is heard to its end.
    is_deaf: bool,
}

impl Peer {
    fn flush(&mut self) {
        self.is_deaf |= !(self.stdout.flush() && self.stderr.flush());
        if self.is_deaf {
            self.stdout.pending.clear();
            self.stderr.pending.clear();
        }
    }

    fn is_gone(&self) -> bool {
        self.is_deaf && self.stdin.is_none()
    }
}

struct Output {
    file: File,
    pending: Vec<u8>,
}

/// What [`Attached::poll_fds`] says of each descriptor.
#[derive(Clone, Copy)]
pub(super) enum Waits {
    Input(usize),
    Output,
    /// Nothing but the end of its reader.
    Reader(usize),
    Container,
}

impl Attached {
    /// `stdin` is our end of the container's input; `None` when it has none. `is_once`: it ends with the input of whoever is
    /// attached; else others may go on with it.
    pub(super) fn new(stdin: Option<OwnedFd>, is_once: bool) -> Self {
        Self { stdin: stdin.map(File::from), is_once, ..Self::default() }
    }

    pub(super) fn add(&mut self, fds: Vec<OwnedFd>, stdin: bool) -> io::Result<()> {
        let fds: [OwnedFd; STDIO_FDS] =
            fds.try_into().map_err(|_| io::Error::other("the request came without streams"))?;
        for fd in &fds {
            super::server::set_nonblocking(fd.as_fd())?;
        }
        let [input, stdout, stderr] = fds;
        let output = |fd: OwnedFd| Output { file: fd.into(), pending: Vec::new() };
        let stdin = stdin.then(|| input.into());
        self.peers.push(Peer { stdin, stdout: output(stdout), stderr: output(stderr), is_deaf: false });
        Ok(())
    }

    /// Whether nobody reads.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.iter().all(|peer| peer.is_deaf)
    }

    /// Whether somebody has not read what was sent: then the container's output is left where it is.
    pub(super) fn is_behind(&self) -> bool {
        self.peers.iter().any(|peer| !peer.stdout.pending.is_empty() || !peer.stderr.pending.is_empty())
    }

    /// Copies output to everybody.
    pub(super) fn output(&mut self, source: Source, bytes: &[u8]) {
        for peer in self.peers.iter_mut().filter(|peer| !peer.is_deaf) {
            let output = match source {
                Source::Stdout => &mut peer.stdout,
                Source::Stderr => &mut peer.stderr,
            };
            output.pending.extend_from_slice(bytes);
        }
        self.flush();
    }

    /// Whoever has gone keeps a place: what waits to be served is known by places.
    fn flush(&mut self) {
        self.peers.iter_mut().for_each(Peer::flush);
    }

    /// The descriptors to wait for, and what to do when they are ready.
    pub(super) fn poll_fds(&self) -> Vec<(Waits, BorrowedFd<'_>, PollFlags)> {
        let mut fds = Vec::new();
        for (n, peer) in self.peers.iter().enumerate() {
            // More input is read when the container has taken the last.
            if let Some(stdin) = peer.stdin.as_ref().filter(|_| self.input.is_empty()) {
                fds.push((Waits::Input(n), stdin.as_fd(), PollFlags::POLLIN));
            }
            for output in [&peer.stdout, &peer.stderr].into_iter().filter(|_| !peer.is_deaf) {
                fds.push(match output.pending.is_empty() {
                    // Of a program that prints nothing, nobody would be forgotten otherwise.
                    true => (Waits::Reader(n), output.file.as_fd(), PollFlags::empty()),
                    false => (Waits::Output, output.file.as_fd(), PollFlags::POLLOUT),
                });
            }
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            fds.push((Waits::Container, stdin.as_fd(), PollFlags::POLLOUT));
        }
        fds
    }

    /// Does what descriptors are ready for, and forgets who has gone.
    pub(super) fn serve(&mut self, ready: &[Waits]) {
        for waits in ready {
            match waits {
                Waits::Input(n) => self.read_input(*n),
                Waits::Output => {}
                // Only errors are waited for.
                Waits::Reader(n) => self.peers.get_mut(*n).into_iter().for_each(|peer| peer.is_deaf = true),
                Waits::Container => self.write_input(),
            }
        }
        self.flush();
        self.peers.retain(|peer| !peer.is_gone());
    }

    /// The container has ended: what its readers have not taken yet goes to them all the same. Where their pipes get no
    /// larger, they are waited for, but not for ever.
    pub(super) fn finish(&mut self) {
        for peer in &self.peers {
            peer.stdout.make_room();
            peer.stderr.make_room();
        }
        self.serve(&[]);
        let deadline = Instant::now() + LAST_OUTPUT_LIMIT;
        while self.is_behind() {
            let left = deadline.saturating_duration_since(Instant::now());
            let behind =
                |fds: &[(Waits, BorrowedFd<'_>, PollFlags)]| fds.iter().any(|(w, ..)| matches!(w, Waits::Output));
            let fds = self.poll_fds();
            if left.is_zero() || !behind(&fds) {
                return;
            }
            let mut polled: Vec<PollFd<'_>> = fds
                .iter()
                .filter(|(waits, ..)| matches!(waits, Waits::Output))
                .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
                .collect();
            let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut polled, timeout);
            self.serve(&[]);
        }
    }

    fn read_input(&mut self, n: usize) {
        let Some(peer) = self.peers.get_mut(n) else { return };
        let Some(stdin) = &mut peer.stdin else { return };
        let mut buffer = [0; INPUT_BYTES];
        match stdin.read(&mut buffer) {
            Ok(len @ 1..) => {
                self.input.extend_from_slice(&buffer[..len]);
                self.write_input();
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => {
                peer.stdin = None;
                self.closing |= self.is_once;
                self.write_input();
            }
        }
    }

    fn write_input(&mut self) {
        let Some(stdin) = &mut self.stdin else {
            self.input.clear();
            return;
        };
        while !self.input.is_empty() {
            match stdin.write(&self.input) {
                Ok(len) => drop(self.input.drain(..len)),
                Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
                Err(_) => {
                    self.input.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.closing {
            self.stdin = None;
        }
    }
}

impl Output {
    /// Makes the pipe large enough for what is pending: it waits there for its reader, not here.
    fn make_room(&self) {
        let has = fcntl(&self.file, FcntlArg::F_GETPIPE_SZ).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0));
        // What was written in parts may fill the last page of each only partly.
        let wanted = has + self.pending.len() + PAGE_BYTES;
        if !self.pending.is_empty() && wanted <= LAST_OUTPUT_BYTES {
            // Where it is refused, the reader is waited for.
            let _ = i32::try_from(wanted).map(|wanted| fcntl(&self.file, FcntlArg::F_SETPIPE_SZ(wanted)));
        }
    }

    /// Writes what is taken; `false` when nobody reads any more.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(len) => drop(self.pending.drain(..len)),
                Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    /// Somebody attaches, says `text` and goes.
    fn say(attached: &mut Attached, text: &str) {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let null = || OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
        attached.add(vec![theirs, null(), null()], true).unwrap();
        let mut ours = File::from(ours);
        ours.write_all(text.as_bytes()).unwrap();
        drop(ours);
        let last = attached.peers.len() - 1;
        attached.serve(&[Waits::Input(last)]);
        attached.serve(&[Waits::Input(last)]);
    }

    /// One of two goes while both are written to: the other is no worse for it.
    #[test]
    fn who_goes_takes_nobody_along() {
        let mut attached = Attached::new(None, false);
        let mut attach = || {
            let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
            attached.add(vec![null(), theirs, null()], false).unwrap();
            File::from(ours)
        };
        let (goes, mut stays) = (attach(), attach());
        drop(goes);
        // As the shim's loop does it: waits, reads what the container printed, and serves whom it waited for.
        let ready = [Waits::Reader(0)];
        attached.output(Source::Stdout, b"one");
        attached.serve(&ready);
        assert_eq!(attached.peers.len(), 1);
        attached.output(Source::Stdout, b"two");
        drop(attached);
        let mut heard = String::new();
        stays.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "onetwo");
    }

    #[test]
    fn input_ends_with_the_first_who_gave_some_only_where_it_should() {
        for (is_once, want) in [(true, "one"), (false, "onetwo")] {
            let (container, ours) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let mut attached = Attached::new(Some(ours), is_once);
            say(&mut attached, "one");
            assert_eq!(attached.stdin.is_none(), is_once);
            say(&mut attached, "two");
            drop(attached);
            let mut heard = String::new();
            File::from(container).read_to_string(&mut heard).unwrap();
            assert_eq!(heard, want);
        }
    }
}
