//! `${NAME:-default}` and its kin, in values only.

use std::collections::BTreeSet;

use super::{
    error::{ComposeError, Finding, Source},
    scalar::ScalarKind,
    yaml::{Node, Yaml},
};

const SECTIONS: [&str; 5] = ["services", "networks", "volumes", "secrets", "configs"];

/// Where values come from.
#[derive(Clone, Copy)]
pub(super) struct Variables<'a> {
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
    /// As Docker's client does it for version 3: defaults are taken as they stand, and there is no `+`.
    pub(super) strict: bool,
}

/// Returns a warning for every variable that is not set and has no default, or all that cannot be read.
pub(super) fn document(
    root: &mut Node,
    source: &Source,
    variables: Variables<'_>,
) -> Result<Vec<String>, ComposeError> {
    let mut filler = Filler { source, variables, unset: BTreeSet::new(), findings: Vec::new() };
    if let Yaml::Map(entries) = &mut root.value {
        for (key, value) in entries.iter_mut() {
            if SECTIONS.contains(&key.text.as_str()) || key.text.starts_with("x-") {
                filler.node(value, &key.text);
            }
        }
    }
    let warn = |name| format!("The {name:?} variable is not set. Defaulting to a blank string.");
    match ComposeError::of(&filler.findings) {
        Some(error) => Err(error),
        None => Ok(filler.unset.into_iter().map(warn).collect()),
    }
}

struct Filler<'a> {
    source: &'a Source,
    variables: Variables<'a>,
    unset: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl Filler<'_> {
    fn node(&mut self, node: &mut Node, path: &str) {
        match &mut node.value {
            Yaml::Scalar(text) if text.contains('$') => match expand(text, self.variables, &mut self.unset) {
                Ok(filled) if filled != *text => {
                    *text = filled;
                    node.kind = ScalarKind::Filled;
                }
                Ok(_) => {}
                Err(_) if self.findings.len() >= ComposeError::MOST => self.findings.push(Finding::more()),
                Err(reason) => {
                    let message = format!("invalid interpolation format for {path}: {reason}");
                    self.findings.push(self.source.finding(node.place, message, Some(help(&reason).into())));
                }
            },
            Yaml::Null | Yaml::Scalar(_) => {}
            Yaml::List(items) => items.iter_mut().for_each(|item| self.node(item, &format!("{path}.[]"))),
            Yaml::Map(entries) => {
                entries.iter_mut().for_each(|(key, value)| self.node(value, &format!("{path}.{}", key.text)));
            }
        }
    }
}

pub(super) fn expand(text: &str, variables: Variables<'_>, unset: &mut BTreeSet<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = if variables.strict { inner.find('}') } else { closing(inner) };
            let end = end.ok_or_else(|| invalid(text))?;
            out.push_str(&braced(&inner[..end], text, variables, unset)?);
            rest = &inner[end + 1..];
        } else {
            let len = name_len(after);
            if len == 0 {
                return Err(invalid(text));
            }
            out.push_str(&lookup(&after[..len], variables, unset));
            rest = &after[len..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn invalid(text: &str) -> String {
    format!("{text:?}; you may need to escape any $ with another $")
}

fn braced(inner: &str, text: &str, variables: Variables<'_>, unset: &mut BTreeSet<String>) -> Result<String, String> {
    let len = name_len(inner);
    let (name, operator) = inner.split_at(len);
    if len == 0 {
        return Err(invalid(text));
    }
    if variables.strict {
        return as_docker(inner, operator, text, variables, unset);
    }
    let value = (variables.lookup)(name);
    // With a colon, an empty value counts as none.
    let (value, operator) = match operator.strip_prefix(':') {
        Some(operator) if !operator.is_empty() => (value.filter(|v| !v.is_empty()), operator),
        Some(_) => return Err(invalid(text)),
        None => (value, operator),
    };
    let argument = operator.get(1..).unwrap_or_default();
    match operator.chars().next() {
        None => Ok(lookup(name, variables, unset)),
        Some('-') => Ok(value.unwrap_or_else(|| nested(argument, variables, unset))),
        Some('+') => Ok(value.map(|_| nested(argument, variables, unset)).unwrap_or_default()),
        Some('?') => value.ok_or_else(|| missing(name, argument)),
        Some(_) => Err(invalid(text)),
    }
}

/// Docker's client looks for the operators one by one, wherever they stand.
fn as_docker(
    inner: &str,
    operator: &str,
    text: &str,
    variables: Variables<'_>,
    unset: &mut BTreeSet<String>,
) -> Result<String, String> {
    let argument = operator.strip_prefix(':').unwrap_or(operator);
    if !operator.is_empty() && !argument.starts_with(['-', '?']) {
        return Err(invalid(text));
    }
    let find = |name: &str, may_be_empty: bool| (variables.lookup)(name).filter(|v| may_be_empty || !v.is_empty());
    for (mark, may_be_empty) in [(":-", false), ("-", true)] {
        if let Some((name, default)) = inner.split_once(mark) {
            return Ok(find(name, may_be_empty).unwrap_or_else(|| default.to_owned()));
        }
    }
    for (mark, may_be_empty) in [(":?", false), ("?", true)] {
        if let Some((name, reason)) = inner.split_once(mark) {
            return find(name, may_be_empty).ok_or_else(|| missing(name, reason));
        }
    }
    Ok(lookup(inner, variables, unset))
}

/// How the reason begins when nothing is wrong with the file.
const REQUIRED: &str = "\"required variable ";

fn help(reason: &str) -> &'static str {
    match reason.starts_with(REQUIRED) {
        true => "set it in the shell, in a file given by --env-file, or in .env beside the first stack file",
        false => "write ${NAME}, ${NAME:-default}, or $$ for a dollar sign",
    }
}

fn missing(name: &str, why: &str) -> String {
    let reason = format!("required variable {name} is missing a value: {why}");
    format!("{reason:?}; you may need to escape any $ with another $")
}

/// A default may name variables; one that cannot be read that way (a password hash, say) is meant as it is written.
fn nested(argument: &str, variables: Variables<'_>, unset: &mut BTreeSet<String>) -> String {
    let mut inner = BTreeSet::new();
    match expand(argument, variables, &mut inner) {
        Ok(expanded) => {
            unset.extend(inner);
            expanded
        }
        Err(_) => argument.to_owned(),
    }
}

fn lookup(name: &str, variables: Variables<'_>, unset: &mut BTreeSet<String>) -> String {
    (variables.lookup)(name).unwrap_or_else(|| {
        unset.insert(name.to_owned());
        String::new()
    })
}

fn name_len(text: &str) -> usize {
    let valid = |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
    text.char_indices().take_while(|&pair| valid(pair)).count()
}

/// The brace that closes this level.
fn closing(inner: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let variable = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let variables = Variables { lookup: &variable, strict: false };
        let mut unset = BTreeSet::new();
        for (text, expected) in [
            ("x$A-${A}y", Ok("xa-ay")),
            ("$$A $${A}", Ok("$A ${A}")),
            ("${B:-d}${EMPTY:-d}${EMPTY-d}", Ok("dd")),
            ("${B:-${A}}", Ok("a")),
            ("${A:+set}${B:+set}", Ok("set")),
            ("${NONE}", Ok("")),
            ("${B:-$2y$05$hash}", Ok("$2y$05$hash")),
        ] {
            assert_eq!(expand(text, variables, &mut unset).as_deref(), expected, "{text}");
        }
        assert_eq!(unset.into_iter().collect::<Vec<_>>(), ["NONE"]);
        let mut unset = BTreeSet::new();
        for (text, fragment, advice) in [
            ("${B:?say why}", "say why", "--env-file"),
            ("${A", "you may need", "write ${NAME}"),
            ("$ x", "escape any $", "$$ for a dollar"),
            ("${A:}", "escape", "write ${NAME}"),
        ] {
            let error = expand(text, variables, &mut unset).unwrap_err();
            assert!(error.contains(fragment) && help(&error).contains(advice), "{text}: {error}");
        }
        let variables = Variables { strict: true, ..variables };
        assert_eq!(expand("${B:-${A}}", variables, &mut unset).as_deref(), Ok("${A}"));
        assert_eq!(expand("${B-:-x}${B:?-y}", variables, &mut unset).as_deref(), Ok("xy"));
        assert!(expand("${A:+b}", variables, &mut unset).is_err());
    }
}
