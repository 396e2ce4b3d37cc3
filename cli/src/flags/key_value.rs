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

/// Later values win; a bare name takes the value from `environment` and is dropped when it has none there.
pub(crate) fn merge_env(
    lists: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut merged: Vec<(String, String)> = Vec::new();
    for entry in lists {
        let (name, value) = match entry.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (entry.clone(), environment(&entry)),
        };
        let Some(value) = value else { continue };
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some(slot) => slot.1 = value,
            None => merged.push((name, value)),
        }
    }
    merged.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

pub(crate) fn map(pairs: &[(String, String)]) -> BTreeMap<String, String> {
    pairs.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win_and_bare_names_are_looked_up() {
        let list = ["A=1", "B", "A=2", "NONE", "C="].map(String::from);
        assert_eq!(merge_env(list, |name| (name == "B").then(|| "b".into())), ["A=2", "B=b", "C="]);
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
