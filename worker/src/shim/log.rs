//! The container's output as Docker's json-file: one JSON object per line, cut into files of a limited size.
//!
//! A line of the program longer than [`MAX_PIECE_BYTES`] becomes several objects, all but the last without the newline.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::protocol::LogConfig;

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
}

impl Lines {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, pending: Vec::new() }
    }

    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Appends an object to `out` for each line that `bytes` complete.
    pub(crate) fn push(&mut self, bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.pending.extend_from_slice(part);
            while self.pending.len() > MAX_PIECE_BYTES {
                let rest = self.pending.split_off(whole_characters(&self.pending, MAX_PIECE_BYTES));
                let piece = std::mem::replace(&mut self.pending, rest);
                object(&piece, self.source, now, out);
            }
            if part.ends_with(b"\n") {
                object(&std::mem::take(&mut self.pending), self.source, now, out);
            }
        }
    }

    /// What is left when the source ends without a newline.
    pub(crate) fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            object(&std::mem::take(&mut self.pending), self.source, now, out);
        }
    }
}

/// The largest cut at or before `at` that does not split a UTF-8 character.
fn whole_characters(bytes: &[u8], at: usize) -> usize {
    let is_inside = |i: usize| bytes[i] & 0b1100_0000 == 0b1000_0000;
    (at.saturating_sub(3)..=at).rev().find(|&i| !is_inside(i)).unwrap_or(at)
}

fn object(text: &[u8], source: Source, now: Timestamp, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"log\":");
    // Writing JSON into a vector cannot fail.
    let _ = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(text));
    let _ = writeln!(out, ",\"stream\":\"{}\",\"time\":\"{now}\"}}", source.name());
}

/// The current log file.
#[derive(Debug)]
pub(crate) struct LogWriter {
    config: LogConfig,
    file: File,
    size_bytes: u64,
}

impl LogWriter {
    pub(crate) fn open(config: LogConfig) -> io::Result<Self> {
        let file = append(&config.path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { config, file, size_bytes })
    }

    /// Appends whole objects. A full disk loses output rather than the container: the error is the caller's to ignore.
    pub(crate) fn write(&mut self, objects: &[u8]) -> io::Result<()> {
        let len = objects.len() as u64;
        if self.size_bytes > 0 && self.size_bytes + len > self.config.max_size_bytes && self.config.max_size_bytes > 0 {
            self.rotate()?;
        }
        self.file.write_all(objects)?;
        self.size_bytes += len;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let kept = self.config.max_files.max(1);
        for n in (1..kept).rev() {
            let from = if n == 1 { self.config.path.clone() } else { numbered(&self.config.path, n - 1) };
            match fs::rename(from, numbered(&self.config.path, n)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        if kept == 1 {
            fs::remove_file(&self.config.path)?;
        }
        self.file = append(&self.config.path)?;
        self.size_bytes = 0;
        Ok(())
    }
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

    fn check(pieces: &[&[u8]], want: &str) {
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let (mut lines, mut out) = (Lines::new(Source::Stdout), Vec::new());
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
        let (mut lines, mut out) = (Lines::new(Source::Stderr), Vec::new());
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
        let config = LogConfig { path: path.clone(), max_size_bytes: 10, max_files: 3 };
        let mut log = LogWriter::open(config).unwrap();
        for text in ["1111111\n", "2222222\n", "3333333\n", "4444444\n"] {
            log.write(text.as_bytes()).unwrap();
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(path.clone()), "4444444\n");
        assert_eq!(read(numbered(&path, 1)), "3333333\n");
        assert_eq!(read(numbered(&path, 2)), "2222222\n");
        assert!(!numbered(&path, 3).exists());
    }
}
