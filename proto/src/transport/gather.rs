//! Gathers what is written to a connection in small parts into one write.
//!
//! HTTP/2 flushes a call's headers, its message and its end one by one, and each would be a TLS record, a system call and
//! a packet that wakes the peer up. Whoever flushes lets the other tasks of the thread have their turn first: they are
//! about to write the next part.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Written out without waiting for a flush.
const GATHERED_BYTES: usize = 64 * 1024;
/// A flush steps back so often at most, and only while more comes.
const TURNS: u8 = 4;

/// A stream that gathers writes.
#[derive(Debug)]
pub(super) struct Gathering<S> {
    inner: S,
    gathered: Vec<u8>,
    written: usize,
    turns: u8,
    /// Something was written since the last turn was given away.
    is_growing: bool,
}

impl<S> Gathering<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, gathered: Vec::new(), written: 0, turns: 0, is_growing: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.gathered[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.gathered.clear();
        (self.written, self.turns, self.is_growing) = (0, 0, false);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Part of it is out already: the rest goes first.
        if self.written > 0 || self.gathered.len() + bytes.len() > GATHERED_BYTES {
            ready!(self.poll_drain(cx))?;
        }
        if bytes.len() > GATHERED_BYTES {
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        self.gathered.extend_from_slice(bytes);
        self.is_growing = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_growing && self.written == 0 && self.turns < TURNS {
            self.is_growing = false;
            self.turns += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_whatever_the_sizes() {
        // A pipe so small that writes are cut.
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let parts: Vec<Vec<u8>> = (0..200_u32)
            .map(|i| vec![i.to_le_bytes()[0]; usize::try_from(i * i * 7 % (2 * 64 * 1024)).unwrap_or_default()])
            .collect();
        let sent = parts.concat();
        let sending = tokio::spawn(async move {
            let mut stream = Gathering::new(ours);
            for (number, part) in parts.iter().enumerate() {
                stream.write_all(part).await?;
                if number % 3 == 0 {
                    stream.flush().await?;
                }
            }
            stream.shutdown().await
        });
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        sending.await.unwrap().unwrap();
        assert!(received == sent);
    }

    #[tokio::test]
    async fn parts_that_follow_each_other_go_together() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut stream = Gathering::new(ours);
        stream.write_all(b"headers").await.unwrap();
        assert!(flush_once(&mut stream).is_pending(), "the first flush steps back");
        stream.write_all(b" and message").await.unwrap();
        assert!(flush_once(&mut stream).is_pending());
        assert!(flush_once(&mut stream).is_ready());
        let mut received = [0; 32];
        let count = theirs.read(&mut received).await.unwrap();
        assert_eq!(&received[..count], b"headers and message");
    }

    fn flush_once(stream: &mut Gathering<tokio::io::DuplexStream>) -> Poll<io::Result<()>> {
        Pin::new(stream).poll_flush(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
