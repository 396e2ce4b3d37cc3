//! The archive that `load` and `import` send: a file or standard input, unpacked by `xz` or `bzip2` where it is packed so.
//! The worker knows the rest.

use std::{
    fs::File,
    io::{self, Cursor, Read as _},
    os::fd::AsFd as _,
    path::Path,
    pin::Pin,
    process::{ExitStatus, Stdio},
    task::{Context, Poll, ready},
    thread,
};

use anyhow::{Context as _, anyhow};
use nix::sys::signal::{SigSet, Signal};
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    process::{ChildStdout, Command},
    task::JoinHandle,
};

pub(super) type Source = Box<dyn AsyncRead + Send + Unpin>;

/// How an archive begins that a program unpacks, as with Docker; the program and its package.
const PACKED: [(&[u8], &str, &str); 2] = [(b"\xfd7zXZ\0", "xz", "xz-utils"), (b"BZh", "bzip2", "bzip2")];
const HEAD_LEN: u64 = 6;

/// Opens a file, or standard input.
pub(super) fn open(file: Option<&Path>) -> anyhow::Result<Source> {
    let mut source = match file {
        Some(file) => File::open(file).with_context(|| format!("cannot read {}", file.display()))?,
        // A descriptor of its own: the library's would read ahead.
        None => io::stdin().as_fd().try_clone_to_owned().context("cannot read standard input")?.into(),
    };
    let mut head = Vec::new();
    (&mut source).take(HEAD_LEN).read_to_end(&mut head).context("cannot read the archive")?;
    match PACKED.iter().find(|(magic, ..)| head.starts_with(magic)) {
        Some((_, program, package)) => Ok(Box::new(unpacked(head, source, program, package)?)),
        None => Ok(Box::new(AsyncReadExt::chain(Cursor::new(head), tokio::fs::File::from_std(source)))),
    }
}

fn unpacked(head: Vec<u8>, source: File, program: &'static str, package: &str) -> anyhow::Result<Unpacked> {
    let spawned = Command::new(program).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "the archive is packed with {program}, which is not on this machine: install it ({package}), or unpack the \
             archive elsewhere"
        ),
        _ => anyhow!(error).context(format!("cannot start {program}")),
    })?;
    let (Some(stdin), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both were asked for")
    };
    let (mut stdin, mut whole) = (File::from(stdin.into_owned_fd()?), io::Read::chain(Cursor::new(head), source));
    thread::spawn(move || {
        // The program may end before it has read all: that says its exit code, and must not end this one.
        let _ = SigSet::from(Signal::SIGPIPE).thread_block();
        let _ = io::copy(&mut whole, &mut stdin);
    });
    let ended = Some(tokio::spawn(async move { child.wait().await }));
    Ok(Unpacked { output, ended, program })
}

/// What a program unpacks. It has only ended well with exit code 0.
struct Unpacked {
    output: ChildStdout,
    ended: Option<JoinHandle<io::Result<ExitStatus>>>,
    program: &'static str,
}

impl AsyncRead for Unpacked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.output).poll_read(cx, buf))?;
        if buf.filled().len() > before || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(ended) = &mut self.ended else { return Poll::Ready(Ok(())) };
        let status = ready!(Pin::new(ended).poll(cx)).map_err(io::Error::other)??;
        self.ended = None;
        let program = self.program;
        Poll::Ready(if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program}: {status}"))) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn read(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("archive");
        fs::write(&file, bytes).unwrap();
        let mut all = Vec::new();
        let mut source = open(Some(&file)).map_err(|error| error.to_string())?;
        source.read_to_end(&mut all).await.map_err(|error| error.to_string())?;
        // Whoever reads on is told the same again.
        assert_eq!(source.read(&mut [0; 8]).await.unwrap(), 0);
        Ok(all)
    }

    fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plain");
        fs::write(&file, bytes).unwrap();
        let output = std::process::Command::new(program).arg("-c").arg(&file).output().expect(program);
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[tokio::test]
    async fn what_is_packed_by_xz_or_bzip2_arrives_unpacked_and_the_rest_as_it_is() {
        let long: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        for bytes in [&b""[..], b"BZ", b"a tar", &long] {
            assert_eq!(read(bytes).await.as_deref(), Ok(bytes));
            for program in ["xz", "bzip2"] {
                assert_eq!(read(&packed(program, bytes)).await.as_deref(), Ok(bytes), "{program}");
            }
        }
        let half = packed("xz", &long);
        let error = read(&half[..half.len() / 2]).await.unwrap_err();
        assert!(error.starts_with("xz: exit status"), "{error}");
    }
}
