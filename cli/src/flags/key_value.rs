//! `KEY=VALUE` lists: labels, variables, options.

use std::collections::BTreeMap;

use super::Refusal;

/// A label may have no value; an empty key is refused.
pub(crate) fn pair(text: &str) -> Result<(String, String), Refusal> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let key = key.trim();
    if key.is_empty() {
        return Err("expected KEY=VALUE with a key".into());
    }
    if key.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("'{key}' contains whitespaces: expected KEY=VALUE, with a key of one word"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME=VALUE`, or `NAME` for the value that the caller's environment has.
pub(crate) fn variable(text: &str) -> Result<String, Refusal> {
    let name = text.split('=').next().unwrap_or_default();
    if name.trim().is_empty() || name.contains(char::is_whitespace) {
        return Err("expected NAME=VALUE, or NAME to take the value from this shell".into());
    }
    Ok(text.to_owned())
}

/// Lines of an env file: `NAME=VALUE` or `NAME`; `#` starts a comment line.
pub(crate) fn env_file(text: &str) -> Result<Vec<String>, Refusal> {
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    lines
        .map(|(at, line)| (at, line.trim_start()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(at, line)| variable(line).map_err(|refusal| format!("{} (line {}: {refusal})", in_docker(line), at + 1)))
        .collect()
}

/// What Docker's client says of such a line.
fn in_docker(line: &str) -> String {
    match line.split('=').next().unwrap_or_default() {
        "" => format!("no variable name on line '{line}'"),
        name => format!("variable '{name}' contains whitespaces"),
    }
}

/// What env files and then `--env` say; later ones win.
///
/// A bare name takes the value from `environment`. Where that has none, a name in a file says nothing, while one in
/// `--env` stays as it is: it takes the image's variable of that name away, as with Docker.
pub(crate) fn merge_env(
    files: impl IntoIterator<Item = String>,
    flags: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let of_files = files.into_iter().map(|entry| resolve(entry, &environment)).filter(|entry| entry.contains('='));
    let of_flags = flags.into_iter().map(|entry| resolve(entry, &environment));
    last_of_each(of_files.chain(of_flags))
}

/// With the value that `environment` has, when the entry is a bare name that has one there.
fn resolve(entry: String, environment: impl Fn(&str) -> Option<String>) -> String {
    match environment(&entry).filter(|_| !entry.contains('=')) {
        Some(value) => format!("{entry}={value}"),
        None => entry,
    }
}

fn last_of_each(entries: impl Iterator<Item = String>) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut merged: Vec<String> = Vec::new();
    for entry in entries {
        match merged.iter_mut().find(|known| name(known) == name(&entry)) {
            Some(slot) => *slot = entry,
            None => merged.push(entry),
        }
    }
    merged
}

pub(crate) fn map(pairs: &[(String, String)]) -> BTreeMap<String, String> {
    pairs.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win_and_bare_names_are_looked_up() {
        let environment = |name: &str| (name == "B").then(|| "b".into());
        for (files, flags, want) in [
            (&[][..], &["A=1", "B", "A=2", "C="][..], &["A=2", "B=b", "C="][..]),
            (&["A=1", "B", "NONE"], &["A=2"], &["A=2", "B=b"]),
            // Docker drops an unset name of a file, and hands one of --env on: the container goes without it.
            (&["NONE=1"], &["NONE", "A=1"], &["NONE", "A=1"]),
        ] {
            let list = |entries: &[&str]| entries.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(merge_env(list(files), list(flags), environment), want);
        }
    }

    #[test]
    fn env_files() {
        assert_eq!(env_file("# c\n\n A=x y\nB\n"), Ok(vec!["A=x y".into(), "B".into()]));
        assert!(env_file("ok=1\n=x").unwrap_err().contains("line 2"));
        assert!(env_file("a b=c").unwrap_err().starts_with("variable 'a b' contains whitespaces"));
    }

    #[test]
    fn pairs() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a"), Ok(("a".into(), String::new())));
        for text in ["", " ", "=x", "a b=c", "a\nb=c", "a\u{1}=c"] {
            assert!(pair(text).unwrap_err().contains("KEY=VALUE"), "{text:?}");
        }
    }
}
