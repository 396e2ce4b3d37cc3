//! A witness beside the log: the last index, and the last frame of the journal, that are known to be on the disk.
//!
//! sled reads a damaged file as if its log ended there, and so does the journal: what was acknowledged could vanish
//! without a word. The witness is written only after the data is safe and is lowered (and synced) before the log is cut, so it is
//! never ahead of an undamaged log.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::LogError;

/// Fixed width, so that a write replaces the whole content within one sector.
const WIDTH: usize = 20;

/// What is known to be safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Safe {
    pub(super) index: u64,
    pub(super) frame: u64,
}

#[derive(Debug)]
pub(super) struct Tip {
    file: File,
    path: PathBuf,
}

impl Tip {
    /// Opens the witness and returns what it says; nothing when it is new.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Safe), LogError> {
        let error = |what| {
            let path = path.clone();
            move |source| LogError::Io { what, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(error("open"))?;
        let mut text = String::new();
        match file.read_to_string(&mut text) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::InvalidData => text = "?".to_owned(),
            Err(e) => return Err(error("read")(e)),
        }
        // Witnesses from before there was a journal have one number.
        let mut numbers = text.split_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next().transpose().map(Option::unwrap_or_default);
        let read = next().and_then(|index| Ok(Safe { index, frame: next()? }));
        let safe = read.map_err(|_| LogError::Damaged {
            path: path.clone(),
            detail: "it should hold the numbers of the last safe entry and frame".to_owned(),
        })?;
        Ok((Self { file, path }, safe))
    }

    /// Everything up to there is on the disk.
    pub(super) fn raise(&self, safe: Safe) -> Result<(), LogError> {
        self.write(safe)
    }

    /// The log is about to be cut.
    pub(super) fn lower(&self, safe: Safe) -> Result<(), LogError> {
        self.write(safe)?;
        self.file.sync_data().map_err(|e| self.error("sync", e))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, safe: Safe) -> Result<(), LogError> {
        let text = format!("{:0WIDTH$}\n{:0WIDTH$}\n", safe.index, safe.frame);
        self.file.write_all_at(text.as_bytes(), 0).map_err(|e| self.error("write", e))
    }

    fn error(&self, what: &'static str, source: std::io::Error) -> LogError {
        LogError::Io { what, path: self.path.clone(), source }
    }
}
