//! A process executed in a container, and its streams.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use nix::{fcntl::OFlag, pty::Winsize, unistd::pipe2};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::pipe,
};

use super::{client::Connection, error::RuntimeError};
use crate::shim::protocol::{Reply, STDIO_FDS};

/// A running process; take it apart to use its parts from several tasks. Dropping the parts closes its streams (a
/// process with a terminal gets SIGHUP); it is not killed.
pub struct Exec {
    /// On the host.
    pub pid: u32,
    pub stdin: Option<ExecInput>,
    /// With a terminal, everything the process prints.
    pub stdout: ExecOutput,
    /// `None` with a terminal.
    pub stderr: Option<ExecOutput>,
    terminal: Option<Terminal>,
    pub exit: ExecExit,
}

/// The streams of a container's own program, from the moment of attaching. Dropping them detaches.
pub struct Attachment {
    /// When asked for.
    pub stdin: Option<ExecInput>,
    /// With a terminal, everything.
    pub stdout: ExecOutput,
    pub stderr: ExecOutput,
}

/// Changes the size of a process's terminal.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<OwnedFd>);

/// Tells when the process has ended.
pub struct ExecExit(Connection);

/// Write end of a process's standard input; shutting it down closes it.
pub struct ExecInput(Option<pipe::Sender>);

/// Read end of a process's output.
pub struct ExecOutput(pipe::Receiver);

impl Exec {
    /// With a terminal only.
    #[must_use]
    pub fn resizer(&self) -> Option<Terminal> {
        self.terminal.clone()
    }
}

impl Terminal {
    /// Tells the program, as a terminal emulator does.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        set_size(&self.0, rows, cols)
    }
}

impl ExecExit {
    /// The process's code; 128 + n when signal n ended it; 137 too when its container was gone first.
    pub async fn wait(mut self) -> Result<i32, RuntimeError> {
        const KILLED: i32 = 137;
        match self.0.receive().await? {
            Some(Reply::Ended { code }) => Ok(code),
            Some(other) => Err(RuntimeError::Protocol(format!("{other:?}"))),
            None => Ok(KILLED),
        }
    }
}

/// The worker's and the process's ends of three pipes.
pub(super) struct Pipes {
    theirs: [OwnedFd; STDIO_FDS],
    stdin: Option<ExecInput>,
    stdout: ExecOutput,
    stderr: ExecOutput,
}

impl Pipes {
    pub(super) fn open(stdin: bool) -> io::Result<Self> {
        let (their_stdin, our_stdin) = if stdin {
            let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
            (theirs, Some(ExecInput(Some(pipe::Sender::from_owned_fd(ours)?))))
        } else {
            (OpenOptions::new().read(true).open("/dev/null")?.into(), None)
        };
        let (our_stdout, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (our_stderr, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self {
            theirs: [their_stdin, stdout, stderr],
            stdin: our_stdin,
            stdout: ExecOutput::over(our_stdout)?,
            stderr: ExecOutput::over(our_stderr)?,
        })
    }

    /// For a process that nobody listens to.
    pub(super) fn nowhere() -> io::Result<Self> {
        let mut pipes = Self::open(false)?;
        for output in &mut pipes.theirs[1..] {
            *output = OpenOptions::new().write(true).open("/dev/null")?.into();
        }
        Ok(pipes)
    }

    pub(super) fn theirs(&self) -> &[OwnedFd] {
        &self.theirs
    }

    /// Ours, once the others are with the shim.
    pub(super) fn into_attachment(self) -> Attachment {
        Attachment { stdin: self.stdin, stdout: self.stdout, stderr: self.stderr }
    }

    /// Lets go of the process's ends: its streams must end when it does.
    pub(super) fn attach(self, pid: u32, connection: Connection) -> Exec {
        Exec {
            pid,
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: Some(self.stderr),
            terminal: None,
            exit: ExecExit(connection),
        }
    }
}

/// The process's streams over the master side of its terminal.
pub(super) fn attach_terminal(
    pid: u32,
    connection: Connection,
    master: OwnedFd,
    size: Option<(u16, u16)>,
) -> io::Result<Exec> {
    if let Some((rows, cols)) = size {
        set_size(&master, rows, cols)?;
    }
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let input = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
    let output = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
    Ok(Exec {
        pid,
        stdin: Some(ExecInput(Some(input))),
        stdout: ExecOutput(output),
        stderr: None,
        terminal: Some(Terminal(Arc::new(master))),
        exit: ExecExit(connection),
    })
}

#[allow(unsafe_code)]
fn set_size(master: &OwnedFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one Winsize.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl ExecOutput {
    /// A pipe's read end.
    pub(crate) fn over(pipe: OwnedFd) -> io::Result<Self> {
        pipe::Receiver::from_owned_fd(pipe).map(Self)
    }

    /// Bytes that have been printed and not read yet: all of them, for a pipe; at least, for a terminal, in which some are
    /// still on their way.
    pub(crate) fn held_bytes(&self) -> usize {
        rustix::io::ioctl_fionread(&self.0).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

impl AsyncRead for ExecOutput {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buf) {
            // How a terminal's master side says that nobody is on the other one.
            Poll::Ready(Err(err)) if err.raw_os_error() == Some(libc::EIO) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

impl AsyncWrite for ExecInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(pipe) => Pin::new(pipe).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
