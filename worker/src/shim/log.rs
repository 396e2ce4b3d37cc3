//! The container's output as Docker's json-file: one JSON object per line, cut into files of a limited size; or, with the
//! driver journald, the same objects as entries of systemd's journal.
//!
//! A line of the program longer than [`MAX_PIECE_BYTES`] becomes several objects, all but the last without the newline. No
//! file is longer than its limit, unless a single object is.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{journal::Journal, protocol::LogConfig};

/// Longest piece of a line in one object.
const MAX_PIECE_BYTES: usize = 16 * 1024;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Collects the bytes of one source until a line is whole.
#[derive(Debug)]
pub(crate) struct Lines {
    source: Source,
    pending: Vec<u8>,
    /// What is between an object's stream and its time.
    details: String,
}

impl Lines {
    pub(crate) fn new(source: Source, log: &LogWriter) -> Self {
        Self { source, pending: Vec::new(), details: details_json(&log.config.details) }
    }

    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Appends an object to `out` for each line that `bytes` complete.
    pub(crate) fn push(&mut self, bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        let tail = self.tail(now);
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.pending.is_empty() && part.len() <= MAX_PIECE_BYTES && part.ends_with(b"\n") {
                object(part, &tail, out);
                continue;
            }
            self.pending.extend_from_slice(part);
            while self.pending.len() > MAX_PIECE_BYTES {
                let rest = self.pending.split_off(whole_characters(&self.pending, MAX_PIECE_BYTES));
                let piece = std::mem::replace(&mut self.pending, rest);
                object(&piece, &tail, out);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                object(&line, &tail, out);
            }
        }
    }

    /// What all objects of one moment end with.
    fn tail(&self, now: Timestamp) -> String {
        format!(",\"stream\":\"{}\",{}\"time\":\"{now}\"}}\n", self.source.name(), self.details)
    }

    /// What is left when the source ends without a newline.
    pub(crate) fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            let line = std::mem::take(&mut self.pending);
            object(&line, &self.tail(now), out);
        }
    }
}

fn object(text: &[u8], tail: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"log\":");
    // Writing JSON into a vector cannot fail.
    let _ = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(text));
    out.extend_from_slice(tail.as_bytes());
}

/// The largest cut at or before `at` that does not split a UTF-8 character.
fn whole_characters(bytes: &[u8], at: usize) -> usize {
    let is_inside = |i: usize| bytes[i] & 0b1100_0000 == 0b1000_0000;
    (at.saturating_sub(3)..=at).rev().find(|&i| !is_inside(i)).unwrap_or(at)
}

/// `"attrs":{…},`, as Docker writes it; nothing without any.
fn details_json(details: &BTreeMap<String, String>) -> String {
    match serde_json::to_string(details) {
        Ok(text) if !details.is_empty() => format!("\"attrs\":{text},"),
        _ => String::new(),
    }
}

/// Where the objects go.
#[derive(Debug)]
pub(crate) struct LogWriter {
    config: LogConfig,
    to: To,
    /// The last object in the file may have no end: the disk was full, or lost its power.
    is_torn: bool,
    /// What came last could not be written.
    is_losing: bool,
}

#[derive(Debug)]
enum To {
    /// The current file and how much is in it.
    File(File, u64),
    Journal(Journal),
}

impl LogWriter {
    pub(crate) fn open(config: LogConfig) -> io::Result<Self> {
        let to = match &config.journal {
            Some(fields) => To::Journal(Journal::open(fields)?),
            None => {
                let file = append(&config.path)?;
                let size_bytes = file.metadata()?.len();
                To::File(file, size_bytes)
            }
        };
        let is_torn = config.journal.is_none() && !ends_with_line(&config.path).unwrap_or(true);
        Ok(Self { config, to, is_torn, is_losing: false })
    }

    /// Appends whole objects, or loses them: why, unless that was so before. Whoever tells of it on a full disk writes to
    /// memory, and the program goes on printing.
    pub(crate) fn write_or_lose(&mut self, objects: &[u8]) -> Option<io::Error> {
        if objects.is_empty() {
            return None;
        }
        let failed = self.write(objects).err();
        let is_known = std::mem::replace(&mut self.is_losing, failed.is_some());
        failed.filter(|_| !is_known)
    }

    /// Appends whole objects. A full disk loses output rather than the container: the error is the caller's to ignore.
    pub(crate) fn write(&mut self, objects: &[u8]) -> io::Result<()> {
        let mut rest = objects;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.fits(rest));
            rest = later;
            match &mut self.to {
                To::Journal(journal) => journal.write(now)?,
                To::File(file, size_bytes) => {
                    // Else what comes now would be lost with it.
                    if std::mem::replace(&mut self.is_torn, true) {
                        file.write_all(b"\n")?;
                        *size_bytes += 1;
                    }
                    file.write_all(now)?;
                    *size_bytes += now.len() as u64;
                    self.is_torn = false;
                }
            }
            if !rest.is_empty() {
                self.rotate()?;
            }
        }
        Ok(())
    }

    /// How much of the objects the current file takes: whole ones, and at least one in an empty file.
    fn fits(&self, objects: &[u8]) -> usize {
        let To::File(_, size_bytes) = self.to else { return objects.len() };
        let limit = self.config.max_size_bytes;
        let room = usize::try_from(limit.saturating_sub(size_bytes)).unwrap_or(usize::MAX);
        if limit == 0 || objects.len() <= room {
            return objects.len();
        }
        let end_of_first = || objects.iter().position(|&byte| byte == b'\n').map_or(objects.len(), |end| end + 1);
        match objects[..room].iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None if size_bytes == 0 => end_of_first(),
            None => 0,
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let kept = self.config.max_files.max(1);
        // However many may be: only those that there are move up.
        let there_are = (1..kept).find(|&n| !numbered(&self.config.path, n).exists()).unwrap_or(kept - 1);
        for n in (1..=there_are.min(kept - 1)).rev() {
            let from = if n == 1 { self.config.path.clone() } else { numbered(&self.config.path, n - 1) };
            match fs::rename(from, numbered(&self.config.path, n)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        if kept == 1 {
            match fs::remove_file(&self.config.path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        self.to = To::File(append(&self.config.path)?, 0);
        Ok(())
    }
}

fn ends_with_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// `PATH.n`: the n-th last file.
pub(crate) fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: Source, details: &[(&str, &str)]) -> Lines {
        let details = details.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Lines { source, pending: Vec::new(), details: details_json(&details) }
    }

    fn config(path: &Path, max_size_bytes: u64, max_files: u32) -> LogConfig {
        LogConfig { path: path.to_owned(), max_size_bytes, max_files, details: BTreeMap::new(), journal: None }
    }

    fn check(pieces: &[&[u8]], want: &str) {
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let (mut lines, mut out) = (lines(Source::Stdout, &[]), Vec::new());
        pieces.iter().for_each(|piece| lines.push(piece, now, &mut out));
        lines.finish(now, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn output_becomes_dockers_objects() {
        let tail = "\"stream\":\"stdout\",\"time\":\"2026-01-02T03:04:05.000000006Z\"}\n";
        check(&[b"a\nb", b"c\n"], &format!("{{\"log\":\"a\\n\",{tail}{{\"log\":\"bc\\n\",{tail}"));
        check(&[b"no newline"], &format!("{{\"log\":\"no newline\",{tail}"));
        check(&[b"\"q\"\t\xff\n"], &format!("{{\"log\":\"\\\"q\\\"\\t\u{fffd}\\n\",{tail}"));
        check(&[], "");
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut line = vec![b'x'; MAX_PIECE_BYTES - 1];
        line.extend("é tail\n".bytes());
        let (mut lines, mut out) = (lines(Source::Stderr, &[]), Vec::new());
        lines.push(&line, Timestamp::UNIX_EPOCH, &mut out);
        let logs: Vec<String> = String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["log"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(logs.len(), 2);
        assert_eq!(logs[0].len(), MAX_PIECE_BYTES - 1);
        assert_eq!(logs[1], "é tail\n");
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(config(&path, 10, 3)).unwrap();
        for text in ["1111111\n", "2222222\n", "3333333\n", "4444444\n"] {
            log.write(text.as_bytes()).unwrap();
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(path.clone()), "4444444\n");
        assert_eq!(read(numbered(&path, 1)), "3333333\n");
        assert_eq!(read(numbered(&path, 2)), "2222222\n");
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn a_file_that_somebody_removed_is_made_again() {
        for max_files in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = LogWriter::open(config(&path, 10, max_files)).unwrap();
            log.write(b"1111111\n").unwrap();
            fs::remove_file(&path).unwrap();
            log.write(b"2222222\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "2222222\n");
        }
    }

    #[test]
    fn as_many_files_as_there_may_be_cost_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(config(&path, 5, u32::MAX)).unwrap();
        for n in 0..50 {
            log.write(format!("{n:04}\n").as_bytes()).unwrap();
        }
        for n in 1..50 {
            assert_eq!(fs::read_to_string(numbered(&path, n)).unwrap(), format!("{:04}\n", 49 - n));
        }
    }

    #[test]
    fn an_object_without_end_takes_no_other_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (before, after) in [("", "{2}\n"), ("{1}\n", "{1}\n{2}\n"), ("{1}\n{\"lo", "{1}\n{\"lo\n{2}\n")] {
            fs::write(&path, before).unwrap();
            LogWriter::open(config(&path, 1000, 1)).unwrap().write(b"{2}\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
        let mut log = LogWriter::open(config(&path, 0, 1)).unwrap();
        log.to = To::File(append(Path::new("/dev/full")).unwrap(), 0);
        log.write(b"{3}\n").unwrap_err();
        fs::write(&path, "{").unwrap();
        log.to = To::File(append(&path).unwrap(), 0);
        log.write(b"{4}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n{4}\n");
    }

    #[test]
    fn what_is_lost_is_told_once_until_something_can_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(config(&path, 0, 1)).unwrap();
        let mut told = |to: &Path, objects: &[u8]| {
            log.to = To::File(append(to).unwrap(), 0);
            log.write_or_lose(objects).is_some()
        };
        let full = Path::new("/dev/full");
        assert_eq!(
            [&b"{1}\n"[..], b"{2}\n", b"", b"{3}\n"].map(|objects| told(full, objects)),
            [true, false, false, false]
        );
        assert!(!told(&path, b"{4}\n"));
        assert!(told(full, b"{5}\n") && !told(full, b"{6}\n"));
    }

    #[test]
    fn details_are_part_of_each_object() {
        let (mut lines, mut out) = (lines(Source::Stdout, &[("team", "a\"b")]), Vec::new());
        lines.push(b"x\n", Timestamp::UNIX_EPOCH, &mut out);
        let want = "{\"log\":\"x\\n\",\"stream\":\"stdout\",\"attrs\":{\"team\":\"a\\\"b\"},\"time\":\"1970-01-01T00:00:00Z\"}\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    /// However much comes at once: no file is longer than its limit, no object is cut, none is lost but the oldest.
    #[test]
    fn a_flood_stays_within_size_times_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(config(&path, 100, 3)).unwrap();
        let number = |n: usize| format!("{n:09}\n");
        for batch in 0..20 {
            let objects: String = (0..37).map(|n| number(batch * 37 + n)).collect();
            log.write(objects.as_bytes()).unwrap();
        }
        let kept: String = [numbered(&path, 2), numbered(&path, 1), path.clone()]
            .into_iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .inspect(|text| assert!(text.len() <= 100, "{}", text.len()))
            .collect();
        let last = 20 * 37;
        let count = kept.lines().count();
        assert!(count > 20, "{count}");
        assert_eq!(kept, (last - count..last).map(number).collect::<String>());
        // An object that fits nowhere has a file of its own.
        let long = "x".repeat(150) + "\n";
        log.write(long.as_bytes()).unwrap();
        log.write(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(numbered(&path, 1)).unwrap(), long);
        assert_eq!(fs::read_to_string(path).unwrap(), "after\n");
    }
}
