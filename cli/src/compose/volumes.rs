//! `volumes:` of a service in their short form: `data:/var/lib/data:ro`.

use orch_model::service::{Mount, MountKind};

use super::Surroundings;
use crate::flags::mount;

/// As written: what Docker's client prints. Whether a cluster can use it is asked later.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Short {
    pub(super) is_bind: bool,
    pub(super) source: String,
    pub(super) target: String,
    pub(super) read_only: bool,
    pub(super) no_copy: bool,
    pub(super) propagation: String,
}

const PROPAGATIONS: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];

pub(super) fn parse(text: &str) -> Result<Short, String> {
    let mut volume = Short::default();
    if text.is_empty() {
        return Err("invalid empty volume spec".into());
    }
    if text.len() <= 2 {
        return Ok(Short { target: text.to_owned(), ..volume });
    }
    let sections = sections(text);
    let invalid = |why: &str| format!("invalid spec: {text}: {why}; write [SOURCE:]TARGET[:OPTIONS]");
    if sections.iter().any(|section| section.is_empty()) {
        return Err(invalid("empty section between colons"));
    }
    match sections.as_slice() {
        [target] => volume.target = (*target).to_owned(),
        [source, target, options @ ..] => {
            volume.source = (*source).to_owned();
            volume.target = (*target).to_owned();
            match options {
                [] => {}
                [options] => volume.set(options),
                _ => return Err(invalid("too many colons")),
            }
        }
        [] => {}
    }
    volume.is_bind = is_path(&volume.source);
    Ok(volume)
}

impl Short {
    /// Options that are not known are overlooked, as Docker's client does.
    fn set(&mut self, options: &str) {
        for option in options.split(',') {
            match option {
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "nocopy" => self.no_copy = true,
                option if PROPAGATIONS.contains(&option) => self.propagation = option.to_owned(),
                _ => {}
            }
        }
    }

    pub(super) fn mount(self, around: &Surroundings<'_>) -> Result<Mount, String> {
        let mut made = mount::empty(if self.is_bind { MountKind::Bind } else { MountKind::Volume });
        made.source = if self.is_bind { host_path(around, &self.source) } else { self.source };
        made.target = self.target;
        made.read_only = self.read_only;
        made.no_copy = self.no_copy;
        made.propagation = self.propagation;
        mount::check(made)
    }
}

/// Between colons, except those after the letter of a Windows drive.
fn sections(text: &str) -> Vec<&str> {
    let mut sections = Vec::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        let section = &text[start..at];
        let is_drive = section.chars().count() == 1 && section.chars().all(char::is_alphabetic);
        if c == ':' && !is_drive {
            sections.push(section);
            start = at + 1;
        }
    }
    sections.push(&text[start..]);
    sections
}

fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~']) || source.starts_with("\\\\") || has_drive(source)
}

/// `C:\\data`.
fn has_drive(path: &str) -> bool {
    let mut chars = path.chars();
    chars.next().is_some_and(char::is_alphabetic) && chars.next() == Some(':')
}

/// A path of the host, absolute: relative ones start from the file's folder, `~` is the home of whoever deploys.
pub(super) fn host_path(around: &Surroundings<'_>, path: &str) -> String {
    let is_absolute = path.starts_with('/') || has_drive(path) && path.chars().nth(2).is_none_or(|c| "\\/".contains(c));
    if is_absolute || path.is_empty() {
        return path.to_owned();
    }
    match (path.strip_prefix('~'), (around.variable)("HOME")) {
        (Some(rest), Some(home)) => format!("{}{rest}", home.trim_end_matches('/')),
        _ => mount::join(around.dir, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_dockers() {
        let shown = |text: &str| parse(text).map(|v| format!("{} {} {}", v.is_bind, v.source, v.target));
        for (text, expected) in [
            ("/data", "false  /data"),
            ("data:/d", "false data /d"),
            ("./x:/y", "true ./x /y"),
            ("~/x:/y", "true ~/x /y"),
            ("C:\\a:/b", "true C:\\a /b"),
            ("D:/x:E:/y:ro", "true D:/x E:/y"),
            ("\\\\.\\pipe\\x:/y", "true \\\\.\\pipe\\x /y"),
            ("d:/d", "false  d:/d"),
            (":", "false  :"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
        let full = parse("vol:/y:ro,nocopy,rslave,other").unwrap();
        assert!(full.read_only && full.no_copy && full.propagation == "rslave", "{full:?}");
        for text in ["", "aa::b", ":/abc", "abc:", "aa:/b:cc:d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_of_the_host_are_absolute() {
        let variable = |name: &str| (name == "HOME").then(|| "/home/u".to_owned());
        let around = Surroundings { stack: "s", dir: "/srv", variable: &variable, read: &|_| Err(String::new()) };
        for (path, expected) in [("./a", "/srv/a"), ("../a", "/a"), ("~/a", "/home/u/a"), ("/a/../b", "/a/../b")] {
            assert_eq!(host_path(&around, path), expected);
        }
    }
}
