//! A command line as one text, cut into words the way Docker's client does: quotes, backslashes and
//! comments, nothing else. Within double quotes, too, a backslash stands for what follows it.

use super::Refusal;

pub(crate) fn split(text: &str) -> Result<Vec<String>, Refusal> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => word.get_or_insert_default().push_str(&until(&mut chars, '\'')?),
            '"' => word.get_or_insert_default().push_str(&until(&mut chars, '"')?),
            '\\' => match chars.next() {
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err("EOF found after escape character: write \\\\ for a backslash at the end".into()),
            },
            c if c.is_whitespace() => words.extend(word.take()),
            '#' if word.is_none() => {
                chars.by_ref().find(|c| *c == '\n');
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn until(chars: &mut std::str::Chars<'_>, quote: char) -> Result<String, Refusal> {
    let mut out = String::new();
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(out),
            '\\' if quote == '"' => match chars.next() {
                Some(escaped) => out.push(escaped),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(format!("EOF found when expecting closing quote: the {quote} is not closed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_a_shell_does() {
        for (text, expected) in [
            ("a b  c", vec!["a", "b", "c"]),
            ("sh -c 'echo \"x\" y'", vec!["sh", "-c", "echo \"x\" y"]),
            ("\"a b\"c \\ d ''", vec!["a bc", " d", ""]),
            ("\"q\\\"w\\n\"", vec!["q\"wn"]),
            ("", vec![]),
            ("a#b # c\nd", vec!["a#b", "d"]),
        ] {
            assert_eq!(split(text), Ok(expected.into_iter().map(String::from).collect()), "{text}");
        }
        assert!(split("'a").is_err() && split("a\\").is_err());
    }
}
