//! A log's files in order of age, line by line: from the beginning or from near the end, and on, also after rotations.
//!
//! Waits for the disk, so it belongs on a thread that may. A file is left only when it has been read to its end after its
//! successor was seen: nobody writes to it then.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::{DirEntryExt, FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;

use super::{LogLine, LogSource};
use crate::{
    runtime::{container::io_error, error::RuntimeError, plan::LogFiles},
    shim::log::numbered,
};

/// A longer line in a log's file is none of ours: a piece of 16 KiB, escaped, and its details are far shorter.
pub(super) const MAX_OBJECT_BYTES: usize = 4 << 20;
/// Read at once when lines are counted from the end.
const COUNTED_BYTES: usize = 64 * 1024;
/// A rotation in the middle of looking at the files' names means looking again; not for ever where they change all the time.
const LOOKS: usize = 100;

/// What reading once gave.
pub(super) enum Step {
    Line(LogLine),
    /// A line that is no log line.
    Skipped,
    /// For now there is nothing more.
    End,
}

pub(super) struct Reader {
    files: LogFiles,
    current: Option<Current>,
    /// What comes after the current file, which nobody writes to any more.
    next: Option<File>,
    pub(super) partial: Vec<u8>,
    /// The beginning of this line was thrown away.
    is_too_long: bool,
    read_bytes: u64,
    end: Option<End>,
}

struct Current {
    file: BufReader<File>,
    id: u64,
    position: u64,
}

impl Current {
    fn new(mut file: File, position: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(position))?;
        Ok(Self { id: id(&file)?, file: BufReader::new(file), position })
    }
}

/// How far a log went when it was looked at: its newest file, which keeps its inode while it is open, and that one's length.
struct End {
    file: File,
    id: u64,
    bytes: u64,
}

impl Reader {
    /// At the oldest line that there is.
    pub(super) fn open(files: &LogFiles) -> Result<Self, RuntimeError> {
        let failed = |err| io_error("cannot read the log", &files.path, err);
        let first = after(files, None)?;
        Ok(Self {
            files: files.clone(),
            current: first.map(|file| Current::new(file, 0)).transpose().map_err(failed)?,
            next: None,
            partial: Vec::new(),
            is_too_long: false,
            read_bytes: 0,
            end: None,
        })
    }

    /// What is written from now on is not read: of a container that writes faster than this reads there would be no end.
    pub(super) fn stop_at_present(&mut self) -> Result<(), RuntimeError> {
        let failed = |err| io_error("cannot read the log", &self.files.path, err);
        let end = |file: File| -> io::Result<End> {
            let found = file.metadata()?;
            Ok(End { file, id: found.ino(), bytes: found.len() })
        };
        self.end = open(&self.files.path)?.map(end).transpose().map_err(failed)?;
        Ok(())
    }

    /// Also what is written later.
    pub(super) fn go_on(&mut self) {
        self.end = None;
    }

    /// Before the last `lines` lines, whatever is in them; and whether all that there is comes after that.
    pub(super) fn open_before(files: &LogFiles, lines: usize) -> Result<(Self, bool), RuntimeError> {
        let mut reader = Self::open(files)?;
        let mut chain: Vec<File> = reader.current.take().map(|current| current.file.into_inner()).into_iter().collect();
        while let Some(newest) = chain.last()
            && let Some(newer) = after(files, Some(newest))?
        {
            chain.push(newer);
        }
        let failed = |err| io_error("cannot read the log", &files.path, err);
        let mut left = lines;
        while let Some(file) = chain.pop() {
            let begin = before_last(&file, &mut left).map_err(failed)?;
            if begin.is_some() || chain.is_empty() {
                reader.current = Some(Current::new(file, begin.unwrap_or(0)).map_err(failed)?);
                return Ok((reader, begin.is_none()));
            }
        }
        Ok((reader, true))
    }

    /// Bytes that were looked at, to know when to pause.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    pub(super) fn next(&mut self) -> Result<Step, RuntimeError> {
        let failed = |err| io_error("cannot read the log", &self.files.path, err);
        loop {
            let Some(current) = &mut self.current else {
                let first = after(&self.files, None)?;
                self.current = first.map(|file| Current::new(file, 0)).transpose().map_err(failed)?;
                if self.current.is_none() {
                    return Ok(Step::End);
                }
                continue;
            };
            let last = self.end.as_ref().filter(|end| end.id == current.id);
            let wanted = last.map_or(u64::MAX, |end| end.bytes.saturating_sub(current.position));
            let room = (MAX_OBJECT_BYTES - self.partial.len()) as u64;
            let part = (&mut current.file).take(room.min(wanted)).read_until(b'\n', &mut self.partial);
            let read = part.map_err(failed)? as u64;
            self.read_bytes += read;
            current.position += read;
            if self.partial.ends_with(b"\n") {
                let line = parse(&self.partial).filter(|_| !self.is_too_long);
                self.partial.clear();
                self.is_too_long = false;
                return Ok(line.map_or(Step::Skipped, Step::Line));
            }
            if self.partial.len() == MAX_OBJECT_BYTES {
                self.partial.clear();
                self.is_too_long = true;
                continue;
            }
            if last.is_some() {
                return Ok(Step::End);
            }
            if let Some(next) = self.next.take() {
                *current = Current::new(next, 0).map_err(failed)?;
                continue;
            }
            let found = current.file.get_ref().metadata().map_err(failed)?;
            if found.len() < current.position {
                // Somebody has emptied it to have room.
                current.file.rewind().map_err(failed)?;
                current.position = 0;
                self.partial.clear();
                continue;
            }
            // All that is left is newer than a file that is gone.
            if self.end.as_ref().is_some_and(|end| end.file.metadata().is_ok_and(|found| found.nlink() == 0)) {
                return Ok(Step::End);
            }
            self.next = after(&self.files, Some(current.file.get_ref()))?;
            if self.next.is_none() {
                return Ok(Step::End);
            }
        }
    }
}

/// The file that follows `file`: the oldest when that one is gone, or there is none; `None` when it is the newest.
fn after(files: &LogFiles, file: Option<&File>) -> Result<Option<File>, RuntimeError> {
    let failed = |err| io_error("cannot read the log", &files.path, err);
    let own = file.map(id).transpose().map_err(failed)?;
    if own.is_some() && fs::metadata(&files.path).is_ok_and(|newest| Some(newest.ino()) == own) {
        return Ok(None);
    }
    for _ in 0..LOOKS {
        let names = names(files).map_err(failed)?;
        let place = names.iter().find(|(_, found)| Some(**found) == own).map_or(u32::MAX, |(n, _)| *n);
        // A rotation under way leaves a name out for a moment.
        let Some((&n, &meant)) = names.range(..place).next_back() else { return Ok(None) };
        let Some(opened) = open(&path(files, n))? else { continue };
        if id(&opened).map_err(failed)? == meant && self::names(files).map_err(failed)? == names {
            return Ok(Some(opened));
        }
    }
    Ok(None)
}

/// Which file has which number now; the newest has 0. They are in one folder, so a file is known by its inode.
fn names(files: &LogFiles) -> io::Result<BTreeMap<u32, u64>> {
    let name = files.path.file_name().unwrap_or_default().as_encoded_bytes();
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(files.path.parent().unwrap_or(&files.path))? {
        let entry = entry?;
        let found = entry.file_name();
        let number = match found.as_encoded_bytes().strip_prefix(name) {
            Some([]) => Some(0),
            Some([b'.', number @ ..]) => str::from_utf8(number).ok().and_then(|number| number.parse().ok()),
            Some(_) | None => None,
        };
        names.extend(number.filter(|&number| number < files.max_files.max(1)).map(|number| (number, entry.ino())));
    }
    Ok(names)
}

fn id(file: &File) -> io::Result<u64> {
    file.metadata().map(|found| found.ino())
}

fn path(files: &LogFiles, n: u32) -> PathBuf {
    if n == 0 { files.path.clone() } else { numbered(&files.path, n) }
}

fn open(path: &Path) -> Result<Option<File>, RuntimeError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(io_error("cannot open the log", path, err)),
    }
}

/// Where the last `left` lines of the file begin; `None`, and fewer left, when it has no more than that.
fn before_last(file: &File, left: &mut usize) -> io::Result<Option<u64>> {
    let mut end = file.metadata()?.len();
    let mut buffer = vec![0; COUNTED_BYTES];
    while end > 0 {
        let begin = end.saturating_sub(COUNTED_BYTES as u64);
        let part = &mut buffer[..usize::try_from(end - begin).unwrap_or(COUNTED_BYTES)];
        file.read_exact_at(part, begin)?;
        for (n, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if *left == 0 {
                return Ok(Some(begin + n as u64 + 1));
            }
            *left -= 1;
        }
        end = begin;
    }
    Ok(None)
}

/// One object of Docker's json-file.
fn parse(line: &[u8]) -> Option<LogLine> {
    #[derive(Deserialize)]
    struct Object {
        log: String,
        stream: String,
        time: String,
        #[serde(default)]
        attrs: BTreeMap<String, String>,
    }
    let object: Object = serde_json::from_slice(line).ok()?;
    let time: Timestamp = object.time.parse().ok()?;
    let stream = if object.stream == "stderr" { LogSource::Stderr } else { LogSource::Stdout };
    Some(LogLine { stream, time: time.into(), line: object.log, details: object.attrs })
}
