//! What a build is made from: a folder and its Dockerfile, of which standard input may be one or both, as with Docker.
//!
//! Knows no builder: whatever comes in becomes files, because the Dockerfile is read before the builder is.

use std::{
    fs::{self, File},
    io::{self, Read, Seek as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Standard input, as a folder or as a Dockerfile.
const STDIN: &str = "-";
/// What tells an archive from a Dockerfile is in its first block.
const BLOCK_BYTES: u64 = 512;

/// Where the builder finds things.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) context: PathBuf,
    pub(super) dockerfile: PathBuf,
    /// Whether the Dockerfile is where builders look for it by themselves.
    pub(super) is_usual: bool,
}

/// Puts what comes from `input` into `folder`, when something does.
pub(super) fn find(context: &Path, file: Option<&Path>, folder: &Path, input: impl Read) -> anyhow::Result<Sources> {
    let from_input = |path: &Path| path == Path::new(STDIN);
    match file {
        Some(file) if from_input(file) && from_input(context) => {
            bail!("invalid argument: can't use stdin for both build context and dockerfile: give one of them as a path")
        }
        _ if from_input(context) => all_from(input, file, folder),
        _ if !context.is_dir() => {
            bail!("{} is not a folder: give the folder with the Dockerfile, or - for standard input", context.display())
        }
        Some(file) if from_input(file) => {
            let dockerfile = folder.join("Dockerfile");
            spool(input, &dockerfile)?;
            Ok(Sources { context: context.to_owned(), dockerfile, is_usual: false })
        }
        Some(file) => Ok(Sources { context: context.to_owned(), dockerfile: file.to_owned(), is_usual: false }),
        None => Ok(Sources { context: context.to_owned(), dockerfile: context.join("Dockerfile"), is_usual: true }),
    }
}

/// A tar is the folder; anything else is a Dockerfile, and the folder is empty.
fn all_from(input: impl Read, file: Option<&Path>, folder: &Path) -> anyhow::Result<Sources> {
    let (arrived, context) = (folder.join("stdin"), folder.join("context"));
    fs::create_dir(&context).with_context(|| format!("cannot make {}", context.display()))?;
    let is_archive = spool(input, &arrived)?;
    match file {
        _ if is_archive => {
            unpack(&arrived, &context)?;
            let dockerfile = context.join(file.unwrap_or(Path::new("Dockerfile")));
            Ok(Sources { context, dockerfile, is_usual: file.is_none() })
        }
        Some(file) => bail!(
            "ambiguous Dockerfile source: standard input is one, and --file {} another: give a tar on standard input, or \
             leave --file out",
            file.display()
        ),
        None => Ok(Sources { context, dockerfile: arrived, is_usual: false }),
    }
}

/// Whether it is an archive.
fn spool(mut input: impl Read, to: &Path) -> anyhow::Result<bool> {
    let failed = || format!("cannot write {}", to.display());
    let mut file = File::options().read(true).write(true).create_new(true).open(to).with_context(failed)?;
    if io::copy(&mut input, &mut file).context("cannot keep what comes on standard input")? == 0 {
        bail!("nothing came on standard input: a Dockerfile, or a tar with one in it, should");
    }
    file.flush().and_then(|()| file.rewind()).with_context(failed)?;
    let mut head = Vec::new();
    file.take(BLOCK_BYTES).read_to_end(&mut head).with_context(failed)?;
    Ok(is_archive(&head))
}

/// No text has zeros, which fill a tar's header; compressed ones say what they are.
fn is_archive(head: &[u8]) -> bool {
    const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
    head.contains(&0) || COMPRESSED.iter().any(|magic| head.starts_with(magic))
}

/// By `tar`, which knows what it is compressed with and lets no name lead out of the folder.
fn unpack(archive: &Path, to: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    let status = tar.arg("-xf").arg(archive).arg("-C").arg(to).stdin(Stdio::null()).status();
    let status = status.context("cannot run tar, which reads the archive on standard input")?;
    fs::remove_file(archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    if !status.success() {
        bail!("tar cannot read what came on standard input ({status}); its words are above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in ["Dockerfile", "sub/Other"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(12);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &b"FROM scratch"[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn standard_input_is_a_folder_or_a_dockerfile() {
        let tar = tar();
        let text = &b"FROM scratch"[..];
        for (context, file, input, want) in [
            ("HERE", None, &b""[..], "HERE HERE/Dockerfile true"),
            ("HERE", Some("x/File"), b"", "HERE x/File false"),
            ("HERE", Some("-"), text, "HERE AT/Dockerfile false"),
            ("HERE", Some("-"), b"", "nothing came on standard input"),
            ("-", None, text, "AT/context AT/stdin false"),
            ("-", None, &tar, "AT/context AT/context/Dockerfile true"),
            ("-", Some("sub/Other"), &tar, "AT/context AT/context/sub/Other false"),
            ("-", Some("x/File"), text, "ambiguous Dockerfile source"),
            ("-", Some("-"), text, "can't use stdin for both"),
            ("-", None, b"", "nothing came on standard input"),
            ("-", None, b"\x1f\x8bbroken", "tar cannot read"),
            ("/nowhere", None, text, "/nowhere is not a folder"),
            ("https://host/team/app.git", None, text, "is not a folder"),
        ] {
            let (here, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let context = if context == "HERE" { here.path() } else { Path::new(context) };
            let found = find(context, file.map(Path::new), at.path(), input);
            let seen = match &found {
                Ok(found) => {
                    let shown = [&found.context, &found.dockerfile].map(|path| path.display().to_string()).join(" ");
                    format!("{shown} {}", found.is_usual)
                }
                Err(error) => error.to_string(),
            };
            let path = |folder: &tempfile::TempDir| folder.path().display().to_string();
            let seen = seen.replace(&path(&here), "HERE").replace(&path(&at), "AT");
            assert!(seen.contains(want), "{context:?} {file:?}: {seen}");
            if let Ok(found) = found
                && !input.is_empty()
            {
                assert_eq!(fs::read(found.dockerfile).unwrap(), text, "{context:?} {file:?}");
            }
        }
    }
}
