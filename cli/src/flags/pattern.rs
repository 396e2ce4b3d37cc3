//! Patterns of names as Docker's filters have them, Go's `path.Match`: `*` and `?` stop at slashes, `[a-c]`, `[^a-c]`, `\` before a
//! character that means itself.

use std::ops::RangeInclusive;

use super::Refusal;

#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<Token>);

#[derive(Debug, Clone)]
enum Token {
    Star,
    Any,
    Class { is_negated: bool, ranges: Vec<RangeInclusive<char>> },
    Char(char),
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => c != '/',
            Self::Class { is_negated, ranges } => ranges.iter().any(|range| range.contains(&c)) != *is_negated,
            Self::Char(own) => *own == c,
        }
    }
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let mut chars = text.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(c) = chars.next() {
            let token = match c {
                '*' => Some(Token::Star),
                '?' => Some(Token::Any),
                '[' => class(&mut chars),
                '\\' => chars.next().map(Token::Char),
                c => Some(Token::Char(c)),
            };
            tokens.push(token.ok_or_else(|| {
                format!("invalid pattern {text:?}: expected a name with *, ?, [a-c] or \\ before one of these")
            })?);
        }
        Ok(Self(tokens))
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // After the last star: where the pattern goes on, and how much of the name the star has.
        let mut star: Option<(usize, usize)> = None;
        loop {
            match (self.0.get(token), name.get(at)) {
                (None, None) => return true,
                (Some(Token::Star), _) => {
                    star = Some((token + 1, at));
                    token += 1;
                }
                (Some(one), Some(&c)) if one.takes(c) => {
                    token += 1;
                    at += 1;
                }
                _ => match star {
                    Some((after, taken)) if name.get(taken).is_some_and(|&c| c != '/') => {
                        star = Some((after, taken + 1));
                        (token, at) = (after, taken + 1);
                    }
                    _ => return false,
                },
            }
        }
    }
}

/// What is between `[` and `]`; `None`: nothing, or it does not end.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let is_negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Token::Class { is_negated, ranges });
        }
        let from = class_char(chars)?;
        let to = if chars.next_if_eq(&'-').is_some() { class_char(chars)? } else { from };
        ranges.push(from..=to);
    }
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_gos() {
        for (pattern, name, is_match) in [
            ("b*", "busybox", true),
            ("b*", "team/box", false),
            ("b*", "busybox/x", false),
            ("*:1", "web:1", true),
            ("*:1", "web:11", false),
            ("*/*:1", "team/web:1", true),
            ("*box*", "busybox:latest", true),
            ("a*b*c", "axxbxbxc", true),
            ("a*b*c", "axxb/xc", false),
            ("web:?", "web:2", true),
            ("web?", "web/", false),
            ("web:[1-3]", "web:2", true),
            ("web:[^1-3]", "web:2", false),
            ("w\\*b", "w*b", true),
            ("w\\*b", "web", false),
            ("", "", true),
            ("*", "", true),
            ("web", "web", true),
            ("we", "web", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), is_match, "{pattern} {name}");
        }
        for pattern in ["[", "[]", "[a", "[a-]", "a\\", "[-a]"] {
            assert!(Pattern::parse(pattern).unwrap_err().contains("invalid pattern"), "{pattern}");
        }
    }
}
