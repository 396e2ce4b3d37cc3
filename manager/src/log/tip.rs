//! A witness beside the log: the last index that is known to be on the disk.
//!
//! sled reads a damaged file as if its log ended there, so entries that were acknowledged could vanish without a word.
//! The witness is written only after the data is safe and is lowered (and synced) before the log is cut, so it is
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

#[derive(Debug)]
pub(super) struct Tip {
    file: File,
    path: PathBuf,
}

impl Tip {
    /// Opens the witness and returns what it says; 0 when it is new.
    pub(super) fn open(path: PathBuf) -> Result<(Self, u64), LogError> {
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
        let index = match text.trim() {
            "" => 0,
            digits => digits.parse().map_err(|_| LogError::Damaged {
                path: path.clone(),
                detail: "it should hold the number of the last safe entry".to_owned(),
            })?,
        };
        Ok((Self { file, path }, index))
    }

    /// Everything up to `index` is on the disk.
    pub(super) fn raise(&self, index: u64) -> Result<(), LogError> {
        self.write(index)
    }

    /// The log is about to be cut after `index`.
    pub(super) fn lower(&self, index: u64) -> Result<(), LogError> {
        self.write(index)?;
        self.file.sync_data().map_err(|e| self.error("sync", e))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, index: u64) -> Result<(), LogError> {
        let text = format!("{index:0WIDTH$}\n");
        self.file.write_all_at(text.as_bytes(), 0).map_err(|e| self.error("write", e))
    }

    fn error(&self, what: &'static str, source: std::io::Error) -> LogError {
        LogError::Io { what, path: self.path.clone(), source }
    }
}
