//! What was written last, in a file that is always there: the quick way to the disk.
//!
//! sled takes two waits for the drive and a growing file to make a write durable. So whatever is written to it goes into a
//! frame of this journal as well, and the frame is what waiters wait for: one write and one sync into blocks that the
//! file has had since it was made. sled is brought to the disk in the background; frames that it covers are overwritten.
//!
//! The file has two halves. Frames are numbered; a half is written from its start, and only when sled covers all frames
//! that it held before. Reading stops at the first frame that is torn or out of turn. A frame is begun only when the one
//! before it is safe: one that lies behind the end shows that the end is damage, and not where writing stopped.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{LogError, snapshot_file::sync_parent};

/// A frame that does not fit goes to sled alone.
const HALF_BYTES: usize = 4 * 1024 * 1024;
const HALVES: usize = 2;
/// A frame begins on a sector of its own: a torn write never reaches into one that is safe.
const SECTOR_BYTES: usize = 512;
/// `magic u32 | payload length u32 | number u64 | last index u64 | crc32 of all this and the payload`.
const HEADER_BYTES: usize = 28;
const CRC_AT: usize = 24;
const MAGIC: u32 = 0x4F52_4A31;

/// One thing that was done to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    Append { index: u64, bytes: Vec<u8> },
    Truncate { first: u64 },
    Purge { last: u64 },
    Meta { key: Vec<u8>, value: Vec<u8> },
}

/// Things that were done, on their way into a frame.
#[derive(Debug, Default)]
pub(super) struct Staged(Vec<u8>);

impl Staged {
    pub(super) fn append(&mut self, index: u64, bytes: &[u8]) {
        self.0.push(1);
        self.0.extend_from_slice(&index.to_le_bytes());
        self.put_bytes(bytes);
    }

    pub(super) fn truncate(&mut self, first: u64) {
        self.0.push(2);
        self.0.extend_from_slice(&first.to_le_bytes());
    }

    pub(super) fn purge(&mut self, last: u64) {
        self.0.push(3);
        self.0.extend_from_slice(&last.to_le_bytes());
    }

    pub(super) fn meta(&mut self, key: &[u8], value: &[u8]) {
        self.0.push(4);
        self.put_bytes(key);
        self.put_bytes(value);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }
}

/// What was done between two flushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) number: u64,
    /// Where the log ends after it.
    pub(super) last_index: u64,
    pub(super) ops: Vec<Op>,
}

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Those that can be read, oldest first.
    pub(super) frames: Vec<Frame>,
    /// The greatest number of any whole frame, also behind one that cannot be read: all up to there were safe once.
    pub(super) newest: u64,
}

/// Whether a frame was written, or has to be made safe by sled alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Safe,
    /// The other half holds frames up to this one that sled does not cover yet.
    NoRoom {
        until: u64,
    },
    TooLarge,
}

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    half: usize,
    /// Behind the last frame of this half.
    at: usize,
    /// The last frame in each half.
    last_in: [u64; HALVES],
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path) -> Result<(Self, Found), LogError> {
        let error = |what| move |source| LogError::Io { what, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(error("open"))?;
        let content = read_all(&file).map_err(error("read"))?;
        let missing = (HALVES * HALF_BYTES).saturating_sub(content.len());
        if missing > 0 {
            file.write_all_at(&vec![0; missing], content.len() as u64).map_err(error("make room in"))?;
            file.sync_all().and_then(|()| sync_parent(path)).map_err(error("sync"))?;
        }
        let mut runs: Vec<Vec<Frame>> = content.chunks(HALF_BYTES).take(HALVES).map(run).collect();
        runs.retain(|run| !run.is_empty());
        runs.sort_by_key(|run| run[0].number);
        let frames = runs.into_iter().reduce(|older, newer| match older.last().map(|f| f.number + 1) {
            Some(next) if next == newer[0].number => older.into_iter().chain(newer).collect(),
            _ => newer,
        });
        let found = Found { frames: frames.unwrap_or_default(), newest: newest(&content) };
        // Everything is folded into sled before the first write.
        let journal =
            Self { file, path: path.into(), half: 0, at: 0, last_in: [0; HALVES], buffer: Vec::with_capacity(8192) };
        Ok((journal, found))
    }

    /// Writes and syncs one frame. sled covers every frame up to `folded`.
    pub(super) fn write(
        &mut self,
        number: u64,
        last_index: u64,
        staged: &Staged,
        folded: u64,
    ) -> Result<Written, LogError> {
        let size = (HEADER_BYTES + staged.0.len()).next_multiple_of(SECTOR_BYTES);
        if size > HALF_BYTES {
            return Ok(Written::TooLarge);
        }
        if self.at + size > HALF_BYTES {
            let other = (self.half + 1) % HALVES;
            let until = self.last_in[other];
            if until > folded {
                return Ok(Written::NoRoom { until });
            }
            (self.half, self.at) = (other, 0);
        }
        self.encode(number, last_index, staged, size);
        let offset = (self.half * HALF_BYTES + self.at) as u64;
        self.file.write_all_at(&self.buffer, offset).map_err(|e| self.error("write", e))?;
        let start = std::time::Instant::now();
        self.file.sync_data().map_err(|e| self.error("sync", e))?;
        crate::metrics::note_fsync(start.elapsed());
        self.at += size;
        self.last_in[self.half] = number;
        Ok(Written::Safe)
    }

    /// The next frame does not follow the last one here: sled covers what is between. Older frames must not stand before it.
    pub(super) fn skip(&mut self) {
        self.half = (self.half + 1) % HALVES;
        self.at = 0;
    }

    fn encode(&mut self, number: u64, last_index: u64, staged: &Staged, size: usize) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(&MAGIC.to_le_bytes());
        buffer.extend_from_slice(&u32::try_from(staged.0.len()).unwrap_or(u32::MAX).to_le_bytes());
        buffer.extend_from_slice(&number.to_le_bytes());
        buffer.extend_from_slice(&last_index.to_le_bytes());
        let crc = checksum(buffer, &staged.0);
        buffer.extend_from_slice(&crc.to_le_bytes());
        buffer.extend_from_slice(&staged.0);
        buffer.resize(size, 0);
    }

    fn error(&self, what: &'static str, source: io::Error) -> LogError {
        LogError::Io { what, path: self.path.clone(), source }
    }
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(HALVES * HALF_BYTES);
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CRC_AT]);
    hasher.update(payload);
    hasher.finalize()
}

/// The frames of a half, up to the first that is not whole or does not follow.
fn run(half: &[u8]) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut rest = half;
    while let Some((frame, size)) = frame(rest) {
        if frames.last().is_some_and(|last| last.number + 1 != frame.number) {
            break;
        }
        frames.push(frame);
        rest = rest.get(size..).unwrap_or_default();
    }
    frames
}

fn newest(content: &[u8]) -> u64 {
    let (mut newest, mut at) = (0, 0);
    while let Some(rest) = content.get(at..).filter(|rest| !rest.is_empty()) {
        // A frame never reaches into the other half.
        let rest = &rest[..rest.len().min(HALF_BYTES - at % HALF_BYTES)];
        match frame(rest) {
            Some((frame, size)) => {
                newest = newest.max(frame.number);
                at += size;
            }
            None => at += SECTOR_BYTES,
        }
    }
    newest
}

fn frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let header = bytes.get(..HEADER_BYTES)?;
    let mut fields = Reader(header);
    let (magic, length) = (fields.u32()?, usize::try_from(fields.u32()?).ok()?);
    let (number, last_index, crc) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let payload = bytes.get(HEADER_BYTES..)?.get(..length)?;
    if magic != MAGIC || crc != checksum(header, payload) {
        return None;
    }
    let mut ops = Vec::new();
    let mut reader = Reader(payload);
    while !reader.0.is_empty() {
        ops.push(reader.op()?);
    }
    Some((Frame { number, last_index, ops }, (HEADER_BYTES + length).next_multiple_of(SECTOR_BYTES)))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length).map(<[u8]>::to_vec)
    }

    fn op(&mut self) -> Option<Op> {
        Some(match self.take(1)? {
            [1] => Op::Append { index: self.u64()?, bytes: self.bytes()? },
            [2] => Op::Truncate { first: self.u64()? },
            [3] => Op::Purge { last: self.u64()? },
            [4] => Op::Meta { key: self.bytes()?, value: self.bytes()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn staged(index: u64, bytes: usize) -> Staged {
        let mut staged = Staged::default();
        staged.append(index, &vec![7; bytes]);
        staged.meta(b"vote", &index.to_le_bytes());
        staged
    }

    fn numbers(path: &Path) -> Vec<u64> {
        Journal::open(path).unwrap().1.frames.iter().map(|f| f.number).collect()
    }

    #[test]
    fn frames_come_back_in_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, none) = Journal::open(&path).unwrap();
        assert!(none.frames.is_empty() && none.newest == 0);
        let mut all = Staged::default();
        all.append(9, b"entry");
        all.truncate(5);
        all.purge(3);
        all.meta(b"k", b"v");
        assert_eq!(journal.write(1, 9, &all, 0).unwrap(), Written::Safe);
        assert_eq!(journal.write(2, 10, &staged(10, 0), 0).unwrap(), Written::Safe);
        let frames = Journal::open(&path).unwrap().1.frames;
        let ops = vec![
            Op::Append { index: 9, bytes: b"entry".to_vec() },
            Op::Truncate { first: 5 },
            Op::Purge { last: 3 },
            Op::Meta { key: b"k".to_vec(), value: b"v".to_vec() },
        ];
        assert_eq!(frames[0], Frame { number: 1, last_index: 9, ops });
        assert_eq!((frames.len(), frames[1].last_index), (2, 10));
    }

    #[test]
    fn halves_are_overwritten_only_when_sled_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let big = staged(1, HALF_BYTES / 3);
        for number in 1..=4 {
            assert_eq!(journal.write(number, number, &big, 0).unwrap(), Written::Safe);
        }
        assert_eq!(numbers(&path), [1, 2, 3, 4]);
        assert_eq!(journal.write(5, 5, &big, 1).unwrap(), Written::NoRoom { until: 2 });
        assert_eq!(journal.write(5, 5, &big, 2).unwrap(), Written::Safe);
        assert_eq!(numbers(&path), [3, 4, 5]);
        assert_eq!(journal.write(6, 6, &staged(6, HALF_BYTES), 5).unwrap(), Written::TooLarge);
        // Frame 6 went to sled alone: 7 opens a half, and nothing before it counts.
        journal.skip();
        assert_eq!(journal.write(7, 7, &big, 6).unwrap(), Written::Safe);
        assert_eq!(numbers(&path), [7]);
    }

    #[test]
    fn a_torn_or_changed_frame_ends_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for number in 1..=3 {
            journal.write(number, number, &staged(number, 700), 0).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[2 * SECTOR_BYTES + 40] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(numbers(&path), [1]);
        assert_eq!(Journal::open(&path).unwrap().1.newest, 3, "2 cannot be read, and was safe");
        fs::write(&path, &whole[..5 * SECTOR_BYTES]).unwrap();
        assert_eq!(numbers(&path), [1, 2]);
        assert_eq!(Journal::open(&path).unwrap().1.newest, 2);
        assert_eq!(fs::metadata(&path).unwrap().len(), (HALVES * HALF_BYTES) as u64);
    }
}
