//! The user's keyboard, terminal size and signals on their way to a program elsewhere: for `exec` and `attach`.

use std::{
    io::{IsTerminal as _, Read as _},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use nix::sys::termios::{self, SetArg, Termios};
use orch_proto::wire;
use tokio::sync::mpsc;

/// What is read from the keyboard or a pipe at once.
const STDIN_CHUNK_BYTES: usize = 16 << 10;

/// Sent before the other side has said what it has room for.
const ROOM_UNTOLD: u64 = 64 << 10;
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// What the user does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FromUser {
    Keys(Vec<u8>),
    /// No more keys.
    Closed,
    Resized(wire::TerminalSize),
    Signal(i32),
}

impl From<FromUser> for wire::ExecInput {
    fn from(user: FromUser) -> Self {
        use wire::exec_input::Input;
        let input = match user {
            FromUser::Keys(keys) => Input::Stdin(keys.into()),
            FromUser::Closed => Input::StdinClosed(wire::Empty {}),
            FromUser::Resized(size) => Input::Resize(size),
            FromUser::Signal(number) => Input::Signal(number),
        };
        Self { input: Some(input) }
    }
}

impl From<FromUser> for wire::AttachInput {
    fn from(user: FromUser) -> Self {
        use wire::attach_input::Input;
        let input = match user {
            FromUser::Keys(keys) => Input::Stdin(keys.into()),
            FromUser::Closed => Input::StdinClosed(wire::Empty {}),
            FromUser::Resized(size) => Input::Resize(size),
            FromUser::Signal(number) => Input::Signal(number),
        };
        Self { input: Some(input) }
    }
}

/// The keys that leave a program running, and how many of them were just typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

impl DetachKeys {
    /// `ctrl-p,ctrl-q`, `ctrl-]`, `a,b`; empty: never.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let key = |name: &str| match name.strip_prefix("ctrl-") {
            Some(rest) => match rest.as_bytes() {
                [letter @ b'a'..=b'z'] => Ok(letter - b'a' + 1),
                [sign @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Ok(sign - b'@'),
                _ => Err(format!(
                    "{name:?} is not a key: a single letter, or ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-\\, ctrl-], ctrl-^, ctrl-_"
                )),
            },
            None => match name.as_bytes() {
                [byte] => Ok(*byte),
                _ => Err(format!("{name:?} is not a key: a single letter, or ctrl- and a letter")),
            },
        };
        let keys: Result<Vec<u8>, String> = text.split(',').filter(|name| !name.is_empty()).map(key).collect();
        Ok(Self { keys: keys?, typed: 0 })
    }

    /// What of `bytes` goes to the program, and whether the user wants to leave.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            // It was no sequence after all: what was held back is the program's.
            passed.extend(&self.keys[..self.typed]);
            self.typed = usize::from(self.keys.first() == Some(&byte));
            if self.typed == 0 || self.keys.len() == 1 {
                self.typed = 0;
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

/// How much input may be sent in all: what the other side has room for. Until it says, a little.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<(Mutex<Option<u64>>, Condvar)>);

impl Room {
    pub(crate) fn unlimited() -> Self {
        let room = Self::default();
        room.set(u64::MAX);
        room
    }

    pub(crate) fn set(&self, bytes: u64) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        self.0.1.notify_all();
    }

    /// Blocks until there is some for who has sent so much.
    fn wait(&self, sent: u64) {
        let (room, told) = &*self.0;
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *room {
                Some(bytes) if sent < bytes => return,
                Some(_) => room = told.wait(room).unwrap_or_else(PoisonError::into_inner),
                None if sent < ROOM_UNTOLD => return,
                None => {
                    let (now, waited) = told.wait_timeout(room, TOLD_WITHIN).unwrap_or_else(PoisonError::into_inner);
                    room = now;
                    // A node or manager of an older version says nothing.
                    if waited.timed_out() && room.is_none() {
                        *room = Some(u64::MAX);
                    }
                }
            }
        }
    }
}

/// Sends keys until there are no more; tells `detached` when the user typed the sequence. A thread of its own: a blocked
/// read of a terminal cannot be cancelled.
pub(crate) fn forward_stdin<T: From<FromUser> + Send + 'static>(
    sender: mpsc::Sender<T>,
    mut keys: Option<DetachKeys>,
    detached: mpsc::Sender<()>,
    room: Room,
) {
    std::thread::spawn(move || {
        let mut chunk = vec![0; STDIN_CHUNK_BYTES];
        let mut sent = 0;
        while let Ok(read) = std::io::stdin().read(&mut chunk) {
            if read == 0 {
                break;
            }
            let (data, leave) = match &mut keys {
                Some(keys) => keys.take(&chunk[..read]),
                None => (chunk[..read].to_vec(), false),
            };
            if !data.is_empty() {
                room.wait(sent);
                sent += data.len() as u64;
                if sender.blocking_send(FromUser::Keys(data).into()).is_err() {
                    return;
                }
            }
            if leave {
                // The session may be over already.
                let _ = detached.blocking_send(());
                return;
            }
        }
        // The receiver is gone when the program has ended first.
        let _ = sender.blocking_send(FromUser::Closed.into());
    });
}

pub(crate) async fn forward_resizes<T: From<FromUser>>(sender: mpsc::Sender<T>) {
    let Ok(mut changes) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        let Some(size) = size() else { continue };
        if sender.send(FromUser::Resized(size).into()).await.is_err() {
            return;
        }
    }
}

/// What the program gets of our signals. With a terminal in raw mode, keys are no signals: these come from elsewhere.
const PASSED_ON: [i32; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
];

/// Passes our signals on to the program.
pub(crate) async fn forward_signals<T: From<FromUser>>(sender: mpsc::Sender<T>) {
    let Ok(mut signals) = Signals::catch(&PASSED_ON) else { return };
    while sender.send(FromUser::Signal(signals.next().await).into()).await.is_ok() {}
}

/// Ends this program as these signals do, once whoever waits for it has put the terminal back: with 128 and the signal's
/// number.
pub(crate) async fn ended_by_signal() -> i32 {
    match Signals::catch(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT]) {
        Ok(mut signals) => 128 + signals.next().await,
        Err(_) => std::future::pending().await,
    }
}

/// Signals that no longer do to this program what they usually do.
struct Signals(Vec<(i32, tokio::signal::unix::Signal)>);

impl Signals {
    fn catch(numbers: &[i32]) -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let caught = numbers.iter().map(|&number| Ok((number, signal(SignalKind::from_raw(number))?)));
        caught.collect::<std::io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            let mut caught = self.0.iter_mut();
            let ready = caught.find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
            ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }
}

pub(crate) fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

pub(crate) fn size() -> Option<wire::TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    #[allow(unsafe_code)]
    // SAFETY: TIOCGWINSZ writes one winsize into the struct that the pointer is to.
    let outcome = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (outcome == 0).then(|| wire::TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// Puts the terminal back on drop.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(crate) fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let fd: BorrowedFd<'_> = stdin.as_fd();
        let before = termios::tcgetattr(fd).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(fd, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

/// For passwords: what is typed is not shown until this is dropped.
pub(crate) fn without_echo() -> Option<RawTerminal> {
    let stdin = std::io::stdin();
    let before = termios::tcgetattr(stdin.as_fd()).ok()?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(termios::LocalFlags::ECHO);
    termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &quiet).ok()?;
    Some(RawTerminal { before })
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sequence: &str, typed: &[&[u8]], want: &[(&[u8], bool)]) {
        let mut keys = DetachKeys::parse(sequence).unwrap();
        for (bytes, (passed, leave)) in typed.iter().zip(want) {
            assert_eq!(keys.take(bytes), (passed.to_vec(), *leave), "{bytes:?}");
        }
    }

    #[test]
    fn the_sequence_leaves_and_everything_else_passes() {
        check("ctrl-p,ctrl-q", &[b"ls\n\x10\x11more"], &[(b"ls\n", true)]);
        check("ctrl-p,ctrl-q", &[b"a\x10", b"\x11"], &[(b"a", false), (b"", true)]);
        check(
            "ctrl-p,ctrl-q",
            &[b"\x10", b"x", b"\x10\x10", b"\x11"],
            &[(b"", false), (b"\x10x", false), (b"\x10", false), (b"", true)],
        );
        check("ctrl-]", &[b"a\x1d"], &[(b"a", true)]);
        check("", &[b"\x10\x11"], &[(b"\x10\x11", false)]);
    }

    #[test]
    fn unknown_keys_are_refused() {
        for bad in ["ctrl-", "ctrl-1", "shift-a", "ab"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn input_is_sent_as_there_is_room() {
        let room = Room::default();
        room.wait(ROOM_UNTOLD - 1);
        room.set(10);
        room.wait(9);
        let (waits, (done, returned)) = (room.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            waits.wait(10);
            let _ = done.send(());
        });
        assert!(returned.recv_timeout(Duration::from_millis(100)).is_err(), "ten were sent, and there is room for ten");
        room.set(11);
        returned.recv_timeout(Duration::from_secs(10)).expect("now there is room");
        // A node that says nothing.
        let untold = Room::default();
        untold.wait(ROOM_UNTOLD);
        untold.wait(u64::MAX - 1);
        Room::unlimited().wait(u64::MAX - 1);
    }
}
