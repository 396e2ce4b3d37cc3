//! Snapshot files: a stream of bytes in sealed chunks, complete or not there at all.
//!
//! A file is a list of `length | sealed chunk`. It is written under another name, synced and renamed, so a crash leaves
//! the old one; the last chunk is sealed as the last, so a file that was cut short is refused.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::seal::{Aad, Kind, Lease, SealError, Sealer, key_of};

const CHUNK_BYTES: usize = 1024 * 1024;
/// A chunk's seal adds less than this.
const SEALED_CHUNK_LIMIT_BYTES: usize = CHUNK_BYTES + 1024;

/// What a snapshot file could not do.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    #[error("cannot {what} the snapshot {path}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the snapshot {path} is damaged (chunk {chunk})", path = path.display())]
    Damaged {
        path: PathBuf,
        chunk: u64,
        #[source]
        source: SealError,
    },
    #[error("the snapshot {path} is cut short after chunk {chunk}", path = path.display())]
    CutShort { path: PathBuf, chunk: u64 },
}

/// What an unfinished snapshot is called; a process that was killed leaves it.
pub const UNFINISHED_EXTENSION: &str = "new";

/// Writes a snapshot; nothing is there until [`SnapshotWriter::finish`], or if that does not come.
pub struct SnapshotWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    sealer: Arc<Sealer>,
    /// Until it has its name nobody sees which keys it is written with.
    _lease: Lease,
    buffer: Vec<u8>,
    chunk: u64,
    has_its_name: bool,
}

impl SnapshotWriter {
    pub fn create(path: &Path, sealer: Arc<Sealer>) -> Result<Self, SnapshotFileError> {
        let temporary = path.with_extension(UNFINISHED_EXTENSION);
        let file = File::create(&temporary).map_err(|source| SnapshotFileError::Io {
            what: "create",
            path: temporary.clone(),
            source,
        })?;
        let file = BufWriter::new(file);
        let (lease, buffer) = (sealer.lease(), Vec::with_capacity(CHUNK_BYTES));
        Ok(Self { path: path.into(), temporary, file, sealer, _lease: lease, buffer, chunk: 0, has_its_name: false })
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotFileError> {
        while !bytes.is_empty() {
            if self.buffer.len() == CHUNK_BYTES {
                self.write_chunk(Kind::Snapshot)?;
            }
            let room = CHUNK_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    pub fn finish(mut self) -> Result<(), SnapshotFileError> {
        self.write_chunk(Kind::SnapshotEnd)?;
        self.file.get_ref().sync_all().map_err(|e| self.error("sync", e))?;
        fs::rename(&self.temporary, &self.path).map_err(|e| self.error("rename", e))?;
        self.has_its_name = true;
        sync_parent(&self.path).map_err(|e| self.error("sync", e))
    }

    fn write_chunk(&mut self, kind: Kind) -> Result<(), SnapshotFileError> {
        let place = Aad { kind, index: self.chunk, term: 0 };
        let sealed = self.sealer.seal(place, &self.buffer).map_err(|source| SnapshotFileError::Damaged {
            path: self.path.clone(),
            chunk: self.chunk,
            source,
        })?;
        let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
        self.file
            .write_all(&length.to_be_bytes())
            .and_then(|()| self.file.write_all(&sealed))
            .and_then(|()| self.file.flush())
            .map_err(|e| self.error("write", e))?;
        // Piece by piece: all of it at once would hold up the drive, and whoever waits for the log.
        self.file.get_ref().sync_data().map_err(|e| self.error("sync", e))?;
        self.buffer.clear();
        self.chunk += 1;
        Ok(())
    }

    fn error(&self, what: &'static str, source: io::Error) -> SnapshotFileError {
        SnapshotFileError::Io { what, path: self.path.clone(), source }
    }
}

impl Drop for SnapshotWriter {
    /// The next one has another name and would not take its place: on a full disk it would keep what it has for ever.
    fn drop(&mut self) {
        if !self.has_its_name {
            // What cannot be removed now is removed at the next start.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The numbers of the keys that a snapshot's chunks are sealed with, without opening any.
pub fn keys_of_snapshot(path: &Path) -> Result<BTreeSet<u32>, SnapshotFileError> {
    let error = |source| SnapshotFileError::Io { what: "read", path: path.into(), source };
    let mut file = BufReader::new(File::open(path).map_err(error)?);
    let mut keys = BTreeSet::new();
    let mut chunk = 0;
    loop {
        let mut length = [0; 4];
        match file.read_exact(&mut length) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(keys),
            Err(e) => return Err(error(e)),
        }
        let mut header = [0; 5];
        file.read_exact(&mut header).map_err(error)?;
        let damaged = |source| SnapshotFileError::Damaged { path: path.into(), chunk, source };
        keys.insert(key_of(&header).map_err(damaged)?);
        file.seek_relative(i64::from(u32::from_be_bytes(length)) - 5).map_err(error)?;
        chunk += 1;
    }
}

/// Reads a snapshot chunk by chunk.
pub struct SnapshotReader {
    path: PathBuf,
    file: BufReader<File>,
    sealer: Arc<Sealer>,
    chunk: u64,
    ended: bool,
}

impl SnapshotReader {
    pub fn open(path: &Path, sealer: Arc<Sealer>) -> Result<Self, SnapshotFileError> {
        let file =
            File::open(path).map_err(|source| SnapshotFileError::Io { what: "open", path: path.into(), source })?;
        Ok(Self { path: path.into(), file: BufReader::new(file), sealer, chunk: 0, ended: false })
    }

    /// The next bytes; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, SnapshotFileError> {
        if self.ended {
            return Ok(None);
        }
        let sealed = self.read_record()?;
        let place = |kind| Aad { kind, index: self.chunk, term: 0 };
        let plain =
            match self.sealer.open(place(Kind::Snapshot), &sealed) {
                Ok(plain) => plain,
                Err(_) => {
                    self.ended = true;
                    self.sealer.open(place(Kind::SnapshotEnd), &sealed).map_err(|source| {
                        SnapshotFileError::Damaged { path: self.path.clone(), chunk: self.chunk, source }
                    })?
                }
            };
        self.chunk += 1;
        Ok(Some(plain))
    }

    fn read_record(&mut self) -> Result<Vec<u8>, SnapshotFileError> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > SEALED_CHUNK_LIMIT_BYTES {
            let (path, chunk) = (self.path.clone(), self.chunk);
            return Err(SnapshotFileError::Damaged { path, chunk, source: SealError::Malformed });
        }
        let mut sealed = vec![0; length];
        self.read_exact(&mut sealed)?;
        Ok(sealed)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), SnapshotFileError> {
        self.file.read_exact(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotFileError::CutShort { path: self.path.clone(), chunk: self.chunk },
            _ => SnapshotFileError::Io { what: "read", path: self.path.clone(), source },
        })
    }
}

/// Makes a rename in the file's folder durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use orch_model::{ClusterId, NodeId};

    use super::*;
    use crate::log::KeyRing;

    fn read_all(path: &Path, sealer: Arc<Sealer>) -> Result<Vec<u8>, SnapshotFileError> {
        let mut reader = SnapshotReader::open(path, sealer)?;
        let mut all = Vec::new();
        while let Some(chunk) = reader.next_chunk()? {
            all.extend(chunk);
        }
        Ok(all)
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load_or_create(&dir.path().join("keys"), None).unwrap();
        let sealer = Arc::new(Sealer::new(ring, ClusterId::from_random(1), NodeId::from_random(2)));
        let path = dir.path().join("1.snapshot");
        for size in [0, 10, CHUNK_BYTES, 2 * CHUNK_BYTES + 17] {
            let content: Vec<u8> = (0..size).map(|i| i.to_le_bytes()[0]).collect();
            let mut writer = SnapshotWriter::create(&path, Arc::clone(&sealer)).unwrap();
            content.chunks(7777).for_each(|piece| writer.write(piece).unwrap());
            writer.finish().unwrap();
            assert_eq!(read_all(&path, Arc::clone(&sealer)).unwrap(), content, "{size}");
        }
        let mut unfinished = SnapshotWriter::create(&dir.path().join("2.snapshot"), Arc::clone(&sealer)).unwrap();
        unfinished.write(&vec![0; 2 * CHUNK_BYTES]).unwrap();
        assert!(dir.path().join("2.new").exists());
        drop(unfinished);
        assert!(!dir.path().join("2.new").exists() && path.exists());
        let whole = fs::read(&path).unwrap();
        // Cut exactly after the first chunk: only the seal of the end can tell.
        let first = 4 + usize::try_from(u32::from_be_bytes(whole[..4].try_into().unwrap())).unwrap();
        fs::write(&path, &whole[..first]).unwrap();
        assert!(matches!(read_all(&path, Arc::clone(&sealer)), Err(SnapshotFileError::CutShort { chunk: 1, .. })));
        let mut flipped = whole;
        flipped[first + 100] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(matches!(read_all(&path, sealer), Err(SnapshotFileError::Damaged { chunk: 1, .. })));
    }
}
