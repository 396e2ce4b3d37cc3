//! Which files a stack is read from, and what they may ask of their surroundings.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;

use crate::{
    compose::{Document, Stack, Surroundings},
    flags::dotenv,
};

/// What a stack file is called where nobody says so.
const USUAL_NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// Path to a Compose file, or "-" to read from stdin; of several, later ones are laid over earlier ones
    #[arg(short, long, value_name = "FILE", required = true, value_delimiter = ',')]
    compose_file: Vec<PathBuf>,
    /// File with variables for the Compose file, instead of the .env beside it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Refuse what Docker's client refuses; without it, what only the Compose specification has is taken with a warning
    #[arg(long)]
    strict: bool,
}

/// As [`FileArgs`], for commands that find the file of the folder by themselves.
#[derive(Debug, Args)]
pub(crate) struct FoundFileArgs {
    /// Path to a Compose file, or "-" to read from stdin; without it compose.yaml or docker-compose.yml of the folder
    #[arg(short, long, value_name = "FILE", value_delimiter = ',')]
    compose_file: Vec<PathBuf>,
    /// File with variables for the Compose file, instead of the .env beside it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Refuse what Docker's client refuses
    #[arg(long)]
    strict: bool,
}

impl FoundFileArgs {
    pub(super) fn found(self) -> anyhow::Result<FileArgs> {
        let mut compose_file = self.compose_file;
        if compose_file.is_empty() {
            let usual = USUAL_NAMES.iter().map(PathBuf::from).find(|file| file.is_file());
            let missing = || anyhow!("no {} in this folder: name the file with -c", USUAL_NAMES.join(", "));
            compose_file.push(usual.ok_or_else(missing)?);
        }
        Ok(FileArgs { compose_file, env_file: self.env_file, strict: self.strict })
    }
}

/// A stack from a text that is no file, as an earlier deployment is kept. It names no variables.
pub(super) fn load_text(stack: &str, name: &str, text: &str) -> anyhow::Result<Stack> {
    let document = Document::parse(&[(name.to_owned(), text.to_owned())], false)?;
    let read = |path: &str| Err(format!("{path} is not part of what is kept"));
    Ok(document.resolve(&Surroundings { stack, dir: "/", variable: &|_| None, read: &read })?)
}

/// The stack's name and what the files say. Without a name: the files' `name:`, else their folder's name.
pub(super) fn load(args: &FileArgs, stack: Option<&str>) -> anyhow::Result<(String, Stack)> {
    with_surroundings(args, stack, |document, around| Ok((around.stack.to_owned(), document.resolve(around)?)))
}

/// The files as one normalised document, and warnings.
pub(super) fn normalised_document(
    args: &FileArgs,
    skip_variables: bool,
) -> anyhow::Result<(serde_json::Value, Vec<String>)> {
    // The document does not depend on the stack's name.
    with_surroundings(args, Some("stack"), |document, around| {
        let document = if skip_variables { document.without_variables() } else { document };
        Ok(document.normalised(around)?)
    })
}

fn with_surroundings<T>(
    args: &FileArgs,
    stack: Option<&str>,
    use_it: impl FnOnce(Document, &Surroundings<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let texts = args.compose_file.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let dir = folder(args.compose_file.first())?;
    let document = Document::parse(&texts, args.strict)?;
    let defaults = variables(&args.env_file, &dir)?;
    let variable = |name: &str| std::env::var(name).ok().or_else(|| defaults.get(name).cloned());
    let given = match stack {
        Some(name) => Some(name.to_owned()),
        None => document.name(&variable)?,
    };
    let folder = || dir.file_name().map(|name| normalised(&name.to_string_lossy())).unwrap_or_default();
    let name = given.unwrap_or_else(folder);
    check_name(&name)?;
    let surroundings = Surroundings {
        stack: &name,
        dir: dir.to_str().ok_or_else(|| anyhow!("the path {} is not UTF-8", dir.display()))?,
        variable: &variable,
        read: &|path| {
            std::fs::read_to_string(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => "no such file or directory".into(),
                std::io::ErrorKind::IsADirectory => "is a directory".into(),
                _ => error.to_string(),
            })
        },
    };
    use_it(document, &surroundings)
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Name for messages, and text.
fn read(file: &Path) -> anyhow::Result<(String, String)> {
    if is_stdin(file) {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read the stack file from standard input")?;
        return Ok(("stdin".into(), text));
    }
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = decoded(bytes).with_context(|| format!("{} is neither UTF-8 nor UTF-16", file.display()))?;
    Ok((file.display().to_string(), text))
}

/// Editors of Windows write UTF-16, with a mark at the beginning.
fn decoded(bytes: Vec<u8>) -> anyhow::Result<String> {
    let unit: fn([u8; 2]) -> u16 = match bytes.get(..2) {
        Some([0xff, 0xfe]) => u16::from_le_bytes,
        Some([0xfe, 0xff]) => u16::from_be_bytes,
        _ => return Ok(String::from_utf8(bytes)?),
    };
    let units: Vec<u16> = bytes[2..].as_chunks().0.iter().copied().map(unit).collect();
    Ok(String::from_utf16(&units)?)
}

/// Where relative paths start: beside the first file.
fn folder(first: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    match first.filter(|file| !is_stdin(file)) {
        Some(file) => Ok(std::path::absolute(file)?.parent().unwrap_or(Path::new("/")).to_owned()),
        None => Ok(std::env::current_dir()?),
    }
}

/// What the shell's environment does not say: of the files given, else of the `.env` beside the stack file. That one may
/// be meant for something else, so that what is wrong with it is only said.
fn variables(given: &[PathBuf], dir: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let beside = dir.join(".env");
    if given.is_empty() && beside.is_file() {
        return Ok(match of_file(&beside) {
            Ok((variables, refused)) => {
                refused.iter().for_each(|error| remark!("WARNING: {error}; this is left out"));
                variables
            }
            Err(error) => {
                remark!("WARNING: {error:#}; no variables are taken from it");
                BTreeMap::new()
            }
        });
    }
    let mut variables = BTreeMap::new();
    for file in given {
        let (more, refused) = of_file(file)?;
        if let Some(error) = refused.into_iter().next() {
            bail!(error);
        }
        variables.extend(more);
    }
    Ok(variables)
}

/// A file's variables, and what is wrong with other lines of it.
fn of_file(file: &Path) -> anyhow::Result<(BTreeMap<String, String>, Vec<String>)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let dotenv::Dotenv { variables, refused } = dotenv::parse(&text);
    let refused = refused.into_iter().map(|reason| format!("{}: {reason}", file.display()));
    Ok((variables.into_iter().collect(), refused.collect()))
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !valid {
        bail!(
            "invalid stack name {name:?}: it starts with a letter or digit and has letters, digits, _, . and - only; \
             give one: orch stack deploy -c FILE STACK"
        );
    }
    Ok(())
}

/// A folder's name as a stack's name.
fn normalised(folder: &str) -> String {
    let kept =
        folder.to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).collect::<String>();
    kept.trim_start_matches(['_', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(normalised("My Shop_2"), "myshop_2");
        for name in ["shop", "shop-1.x", "1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-x", "a b", "é"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn texts_of_windows_are_read() {
        assert_eq!(decoded(b"\xff\xfea\0\xe9\0".to_vec()).unwrap(), "aé");
        assert_eq!(decoded(b"\xfe\xff\0a".to_vec()).unwrap(), "a");
        assert_eq!(decoded("aé".as_bytes().to_vec()).unwrap(), "aé");
        assert!(decoded(b"\xff\xff".to_vec()).is_err());
    }

    #[test]
    fn a_file_of_variables_stops_a_command_only_when_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(".env");
        let read = |given: &[PathBuf]| variables(given, dir.path()).map(|found| found.into_iter().collect::<Vec<_>>());
        assert_eq!(read(&[]).unwrap(), []);
        std::fs::write(&file, "export A='1' # one\nB=2\nneither this\nB = 3\n").unwrap();
        let expected = [("A", "1"), ("B", "3")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(read(&[]).unwrap(), expected);
        let error = read(std::slice::from_ref(&file)).unwrap_err().to_string();
        assert!(error.contains("/.env: line 3: expected NAME=VALUE"), "{error}");
        std::fs::write(&file, b"A=\xff\n").unwrap();
        assert_eq!(read(&[]).unwrap(), []);
        assert!(read(&[file]).is_err());
    }
}
