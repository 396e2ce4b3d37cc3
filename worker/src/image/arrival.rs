//! A blob on its way into the store. A layer is unpacked while it arrives, so that a pull takes as long as the slower of the
//! two and not as long as both. What an earlier try has left of it is taken up first.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::{sync::mpsc, task::JoinHandle};

use super::store::{BlobWriter, ImageStore, StoreError, UnpackedLayer};

/// Pieces that the network may be ahead of unpacking.
const PIECES_AHEAD: usize = 64;

/// Dropped, it leaves nothing but, of a layer, what the next try begins with.
pub(crate) struct Arrival {
    writer: BlobWriter,
    unpacking: Option<Unpacking>,
    pub bytes: u64,
}

struct Unpacking {
    pieces: mpsc::Sender<Bytes>,
    thread: JoinHandle<Result<UnpackedLayer, StoreError>>,
}

impl Arrival {
    /// A manifest or configuration.
    pub(crate) fn of_blob(store: &ImageStore) -> Result<Self, StoreError> {
        Ok(Self { writer: store.blob_writer()?, unpacking: None, bytes: 0 })
    }

    /// A layer that is not here yet, or not all of it.
    pub(crate) async fn of_layer(store: &ImageStore, digest: &str) -> Result<Self, StoreError> {
        let mut arrival = Self::begin(store, digest)?;
        match arrival.take_up().await {
            Ok(()) => Ok(arrival),
            Err(error) => {
                tracing::info!(digest, %error, "what an earlier download has left is of no use");
                arrival.spoil();
                drop(arrival);
                Self::begin(store, digest)
            }
        }
    }

    fn begin(store: &ImageStore, digest: &str) -> Result<Self, StoreError> {
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        let (store, digest) = (store.clone(), digest.to_owned());
        let writer = store.layer_writer(&digest)?;
        let thread = tokio::task::spawn_blocking(move || {
            store.unpack_aside(&digest, Pieces { receiver, current: Bytes::new() })
        });
        Ok(Self { writer, unpacking: Some(Unpacking { pieces, thread }), bytes: 0 })
    }

    async fn take_up(&mut self) -> Result<(), StoreError> {
        while let Some(piece) = self.writer.take_up()? {
            self.pass_on(piece.into()).await?;
        }
        Ok(())
    }

    pub(crate) async fn append(&mut self, piece: Bytes) -> Result<(), StoreError> {
        let appended = match self.writer.append(&piece) {
            Ok(()) => self.pass_on(piece).await,
            Err(error) => Err(error),
        };
        // Neither a full disk nor a layer that cannot be unpacked is helped by keeping it.
        appended.inspect_err(|_| self.writer.spoil())
    }

    /// What has arrived is not what was asked for.
    pub(crate) fn spoil(&mut self) {
        self.writer.spoil();
    }

    async fn pass_on(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.bytes += piece.len() as u64;
        if let Some(unpacking) = &self.unpacking
            && unpacking.pieces.send(piece).await.is_err()
        {
            // It ended before its time: why is in its result.
            self.unpacked().await?;
        }
        Ok(())
    }

    /// Checks the digest and makes the blob part of the store. The unpacked layer is not part of it yet.
    pub(crate) async fn finish(mut self, digest: &str) -> Result<Option<UnpackedLayer>, StoreError> {
        let digest = digest.to_owned();
        // What is unpacked of a forged layer is thrown away here.
        let writer = self.writer;
        let committed = tokio::task::spawn_blocking(move || writer.commit(Some(&digest)));
        committed.await.map_err(StoreError::Interrupted)??;
        match self.unpacking.take() {
            Some(Unpacking { pieces, thread }) => {
                drop(pieces);
                Ok(Some(thread.await.map_err(StoreError::Interrupted)??))
            }
            None => Ok(None),
        }
    }

    async fn unpacked(&mut self) -> Result<(), StoreError> {
        if let Some(Unpacking { thread, .. }) = self.unpacking.take() {
            thread.await.map_err(StoreError::Interrupted)??;
        }
        Ok(())
    }
}

/// What has arrived, as the unpacking thread reads it; ends when the other side is dropped.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}
