//! `.env` files: what stack files get their variables from, in Compose's form.
//!
//! Not the env files of containers, which Docker takes as they are written ([`super::key_value::env_file`]).

use super::Refusal;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Dotenv {
    /// In the file's order: of one name, the last counts.
    pub(crate) variables: Vec<(String, String)>,
    /// Lines that say nothing, each with its number. Never what stands in them, which may be a secret.
    pub(crate) refused: Vec<Refusal>,
}

/// `NAME=value`, also after `export`; values may be quoted, also over several lines; ` #` starts a comment.
/// A name alone is the shell's variable, which goes before the file's anyway.
pub(crate) fn parse(text: &str) -> Dotenv {
    let mut found = Dotenv::default();
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut number = 0;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        number += 1;
        let mut taken = rest.len() - after.len();
        match entry(line, rest) {
            Ok(Some(Entry { name, value, len })) => {
                taken = len;
                found.variables.push((name, value));
            }
            Ok(None) => {}
            Err(reason) => found.refused.push(format!("line {number}: {reason}")),
        }
        number += rest[..taken].trim_end_matches('\n').matches('\n').count();
        rest = &rest[taken..];
    }
    found
}

struct Entry {
    name: String,
    value: String,
    /// How much of the text the entry's lines are.
    len: usize,
}

/// What the line says; a quoted value may go on in the text that it begins.
fn entry(line: &str, text: &str) -> Result<Option<Entry>, Refusal> {
    const FORM: &str = "expected NAME=VALUE, with a name of one word";
    let said = line.trim();
    if said.is_empty() || said.starts_with('#') {
        return Ok(None);
    }
    let exported = said.strip_prefix("export").filter(|rest| rest.starts_with(char::is_whitespace));
    let Some((name, value)) = exported.unwrap_or(said).split_once(['=', ':']) else {
        return if exported.unwrap_or(said).trim().contains(char::is_whitespace) { Err(FORM.into()) } else { Ok(None) };
    };
    let name = name.trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(FORM.into());
    }
    let begin = line.find(['=', ':']).map_or(line.len(), |at| at + 1);
    let begin = begin + line[begin..].len() - line[begin..].trim_start().len();
    let (value, end) = match text[begin..].chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (value, len) = quoted(&text[begin + 1..], quote).ok_or("the value's quote is not closed")?;
            let end = begin + 1 + len;
            let after = text[end..].lines().next().unwrap_or_default();
            if !after.trim().is_empty() && !after.trim().starts_with('#') {
                return Err("something follows the value's closing quote".into());
            }
            (value, end)
        }
        _ => (without_comment(value).trim().to_owned(), 0),
    };
    let len = text[end..].find('\n').map_or(text.len(), |at| end + at + 1);
    Ok(Some(Entry { name: name.to_owned(), value, len }))
}

/// The value before its closing quote, and how long it is with that.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some((value, at + c.len_utf8()));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let (_, escaped) = chars.next()?;
        match escaped {
            c if c == quote => value.push(c),
            'n' if quote == '"' => value.push('\n'),
            'r' if quote == '"' => value.push('\r'),
            't' if quote == '"' => value.push('\t'),
            '\\' | '$' if quote == '"' => value.push(escaped),
            c => value.extend(['\\', c]),
        }
    }
    None
}

/// Without the `#` that stands behind a space, and what follows it.
fn without_comment(value: &str) -> &str {
    let begins = |(at, _): &(usize, &str)| value[..*at].ends_with(char::is_whitespace);
    value.match_indices('#').find(begins).map_or(value, |(at, _)| &value[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_mean_what_compose_makes_of_them() {
        for (line, value) in [
            ("A=b", "b"),
            ("A=", ""),
            ("export A=b", "b"),
            ("  export\tA = b c ", "b c"),
            ("A: b", "b"),
            ("A=b # prod", "b"),
            ("A=b#c", "b#c"),
            ("A=#b", "#b"),
            ("A=#b # prod", "#b"),
            ("A= # none", ""),
            ("A=\"b c\" # prod", "b c"),
            ("A='b # c'#d", "b # c"),
            ("A=\"b\\\"c\\n\\d\"", "b\"c\n\\d"),
            ("A='b\\'c\\n'", "b'c\\n"),
            ("A=b\"c\"", "b\"c\""),
            ("A=a=b:c", "a=b:c"),
            ("A=\"\"", ""),
            ("A=b\r", "b"),
        ] {
            let expected = Dotenv { variables: vec![("A".into(), value.into())], refused: Vec::new() };
            assert_eq!(parse(line), expected, "{line:?}");
            assert_eq!(parse(&format!("\u{feff}# x\n\n{line}\n\nNAME\n")), expected, "{line:?}");
        }
        for line in ["a b", "a b=c", "=c", "A=\"b", "A='b", "A='b' c", "export =b"] {
            let parsed = parse(line);
            assert!(parsed.variables.is_empty() && parsed.refused.len() == 1, "{line:?}: {parsed:?}");
        }
    }

    #[test]
    fn a_line_that_is_refused_takes_no_other_one_with_it() {
        let parsed = parse("A=1\nnot this\nKEY=\"first\n\nlast\" # c\nB=2\nC='x\nD=é\n= \n");
        let variables = parsed.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let expected = [("A", "1"), ("KEY", "first\n\nlast"), ("B", "2"), ("D", "é")];
        assert_eq!(variables.collect::<Vec<_>>(), expected);
        let lines: Vec<_> = parsed.refused.iter().map(|reason| reason.split_once(':').unwrap().0).collect();
        assert_eq!(lines, ["line 2", "line 7", "line 9"]);
    }
}
