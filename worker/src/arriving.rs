//! Reads, where waiting is allowed, what arrives in pieces where it is not: one end of `orch cp` on either side.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// What arrives, as a file is read. Only for threads that may wait.
#[derive(Debug)]
pub struct Arriving {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Arriving {
    #[must_use]
    pub fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self { receiver, chunk: Bytes::new() }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let len = self.chunk.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.chunk.split_to(len));
        Ok(len)
    }
}
