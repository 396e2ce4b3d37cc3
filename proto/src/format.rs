//! The format number of a data folder: a folder that a newer version wrote is refused, and a file that says no number is
//! named together with the way out.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(
        "{path} says format {found}, and this version of orch knows {known}: install the version that wrote it, or a \
         newer one",
        path = path.display()
    )]
    Other { path: PathBuf, found: u32, known: u32 },
    #[error(
        "{path} {what}, and should say the number of the format that this folder has. If no newer version of orch has run \
         here, move it away: it is written anew then (this version writes {known})",
        path = path.display()
    )]
    Damaged { path: PathBuf, what: String, known: u32 },
}

/// Whether the file says the format that is `known`; `false`: there is no file, the folder is new.
///
/// # Errors
/// It says something else, or nothing.
pub fn is_known(path: &Path, known: u32) -> Result<bool, FormatError> {
    let damaged = |what: String| FormatError::Damaged { path: path.to_owned(), what, known };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(damaged(format!("cannot be read ({error})"))),
    };
    match text.trim().parse() {
        Ok(found) if found == known => Ok(true),
        Ok(found) => Err(FormatError::Other { path: path.to_owned(), found, known }),
        Err(_) if text.trim().is_empty() => Err(damaged("is empty".to_owned())),
        Err(_) => Err(damaged("says no number".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("format");
        assert!(!is_known(&path, 1).unwrap());
        for (text, want) in [
            ("1", ""),
            (" 1\n", ""),
            ("2\n", "/format says format 2, and this version of orch knows 1: install"),
            ("", "/format is empty, and should"),
            ("\n", "/format is empty, and should"),
            ("\0\0", "/format says no number, and should"),
        ] {
            fs::write(&path, text).unwrap();
            let said = is_known(&path, 1).map_or_else(
                |error| error.to_string(),
                |known| {
                    assert!(known);
                    String::new()
                },
            );
            assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{text:?}: {said}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let said = is_known(&path, 1).unwrap_err().to_string();
        assert!(said.contains("cannot be read (Is a directory") && said.contains("move it away"), "{said}");
    }
}
