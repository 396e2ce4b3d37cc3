//! Blobs on their way into the store.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{ImageStore, Result, StoreError, hex_of, io_error};
use crate::image::{partial::Partial, room::Room};

/// What is read at once of a layer that is gone on with.
const TAKE_UP_BYTES: usize = 256 << 10;

impl ImageStore {
    /// Starts a blob of unknown digest.
    pub(crate) fn blob_writer(&self) -> Result<BlobWriter> {
        let ingest = self.dir.join("ingest");
        let file = tempfile::NamedTempFile::new_in(&ingest).map_err(io_error("create a file in", &ingest))?;
        Ok(BlobWriter {
            store: self.clone(),
            aside: Aside::Temporary(file),
            hash: Sha256::new(),
            bytes: 0,
            room: Room::default(),
        })
    }

    /// Goes on with a layer: what an earlier try has left of it is there, but not [taken up](BlobWriter::take_up) yet.
    pub(in crate::image) fn layer_writer(&self, digest: &str) -> Result<BlobWriter> {
        let folder = self.partial_dir();
        let partial = Partial::take(&folder, hex_of(digest)?).map_err(io_error("go on with a layer in", &folder))?;
        let Some(partial) = partial else { return self.blob_writer() };
        Ok(BlobWriter {
            store: self.clone(),
            aside: Aside::Partial(partial),
            hash: Sha256::new(),
            bytes: 0,
            room: Room::default(),
        })
    }
}

/// A blob on its way into the store; dropped, it leaves nothing, or what the next try begins with.
pub(crate) struct BlobWriter {
    store: ImageStore,
    aside: Aside,
    hash: Sha256,
    /// That went into the hash.
    bytes: u64,
    room: Room,
}

/// Where a blob is written.
enum Aside {
    Temporary(tempfile::NamedTempFile),
    Partial(Partial),
}

impl BlobWriter {
    pub(crate) fn append(&mut self, data: &[u8]) -> Result<()> {
        let file = match &self.aside {
            Aside::Temporary(file) => file.as_file(),
            Aside::Partial(partial) => partial.file(),
        };
        self.room.write(file, data.len()).map_err(io_error("write", &self.store.dir))?;
        self.file().write_all(data).map_err(io_error("write", self.path()))?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// The next piece of what was there before; `None` when all of it has been taken up.
    pub(in crate::image) fn take_up(&mut self) -> Result<Option<Vec<u8>>> {
        let Aside::Partial(partial) = &self.aside else { return Ok(None) };
        let mut piece = Vec::with_capacity(TAKE_UP_BYTES);
        let read = partial.file().take(TAKE_UP_BYTES as u64).read_to_end(&mut piece);
        if read.map_err(io_error("read", partial.path()))? == 0 {
            return Ok(None);
        }
        self.hash.update(&piece);
        self.bytes += piece.len() as u64;
        Ok(Some(piece))
    }

    /// The next try begins anew.
    pub(in crate::image) fn spoil(&mut self) {
        if let Aside::Partial(partial) = &mut self.aside {
            partial.spoil();
        }
    }

    /// Checks the digest, when one is expected, and makes the blob part of the store.
    pub(crate) fn commit(mut self, expected: Option<&str>) -> Result<String> {
        let actual = format!("sha256:{}", hex::encode(self.hash.clone().finalize()));
        if let Some(expected) = expected
            && expected != actual
        {
            self.spoil();
            return Err(StoreError::DigestMismatch { expected: expected.to_owned(), actual });
        }
        let path = self.store.blob_path(&actual)?;
        let length = self.file().metadata().map_err(io_error("read the size of", &path))?.len();
        if length != self.bytes {
            self.spoil();
            let other = io::Error::other(format!("{length} bytes are there, {} were written", self.bytes));
            return Err(io_error("store", &path)(other));
        }
        self.file().sync_all().map_err(io_error("sync", &path))?;
        let persisted = match self.aside {
            Aside::Temporary(file) => file.persist(&path).map(drop).map_err(|error| error.error),
            Aside::Partial(partial) => partial.persist(&path),
        };
        persisted.map_err(io_error("rename a blob to", &path))?;
        Ok(actual)
    }

    fn file(&self) -> &File {
        match &self.aside {
            Aside::Temporary(file) => file.as_file(),
            Aside::Partial(partial) => partial.file(),
        }
    }

    fn path(&self) -> &Path {
        match &self.aside {
            Aside::Temporary(file) => file.path(),
            Aside::Partial(partial) => partial.path(),
        }
    }
}
