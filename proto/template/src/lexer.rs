//! Text to tokens: literal text as it is, actions cut into words.

use super::TemplateError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Text(String),
    /// The words of one `{{…}}`.
    Action(Vec<Word>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// `.` on its own.
    Dot,
    /// `.a.b`, also right after a variable or a closing parenthesis.
    Field(Vec<String>),
    Variable(String),
    Name(String),
    Text(String),
    Number(serde_json::Number),
    Pipe,
    Open,
    Close,
    Comma,
    Declare,
    Assign,
    /// Space: tells `$x .y` from `$x.y`.
    Space,
}

pub(super) fn lex(text: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    while !rest.is_empty() {
        let open = rest.find("{{");
        let mut literal = &rest[..open.unwrap_or(rest.len())];
        if trim_next {
            literal = literal.trim_start();
        }
        let Some(at) = open else {
            push_text(&mut tokens, literal);
            break;
        };
        let mut body = &rest[at + 2..];
        if let Some(trimmed) = body.strip_prefix('-').filter(|b| b.starts_with([' ', '\t', '\n'])) {
            literal = literal.trim_end();
            body = trimmed;
        }
        push_text(&mut tokens, literal);
        let (inside, after) = split_action(body).ok_or_else(|| TemplateError("unclosed action".into()))?;
        let inside = match inside.strip_suffix('-').filter(|b| b.ends_with([' ', '\t', '\n'])) {
            Some(trimmed) => {
                trim_next = true;
                trimmed
            }
            None => {
                trim_next = false;
                inside
            }
        };
        if !inside.trim().starts_with("/*") {
            tokens.push(Token::Action(words(inside)?));
        }
        rest = after;
    }
    Ok(tokens)
}

fn push_text(tokens: &mut Vec<Token>, literal: &str) {
    if !literal.is_empty() {
        tokens.push(Token::Text(literal.to_owned()));
    }
}

/// Finds the `}}` that is not inside a string.
fn split_action(body: &str) -> Option<(&str, &str)> {
    // A quote in a comment opens nothing, and is not looked for to the end of the text for every comment.
    if body.trim_start().starts_with("/*") {
        let closed = body.find("*/")?;
        let at = closed + body[closed..].find("}}")?;
        return Some((&body[..at], &body[at + 2..]));
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match quote {
            Some(q) if escaped => {
                escaped = false;
                let _: char = q;
            }
            Some('"') if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if body[at..].starts_with("}}") => return Some((&body[..at], &body[at + 2..])),
            None => {}
        }
    }
    // A string that is never closed: let the words' lexer say so.
    quote.and_then(|_| body.find("}}")).map(|at| (&body[..at], &body[at + 2..]))
}

fn words(text: &str) -> Result<Vec<Word>, TemplateError> {
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let mut out = Vec::new();
    while at < chars.len() {
        let c = chars[at];
        let word = match c {
            c if c.is_whitespace() => {
                at += 1;
                if out.last() != Some(&Word::Space) {
                    out.push(Word::Space);
                }
                continue;
            }
            '|' => single(&mut at, Word::Pipe),
            '(' => single(&mut at, Word::Open),
            ')' => single(&mut at, Word::Close),
            ',' => single(&mut at, Word::Comma),
            '=' => single(&mut at, Word::Assign),
            ':' if chars.get(at + 1) == Some(&'=') => {
                at += 2;
                Word::Declare
            }
            '"' => Word::Text(quoted(&chars, &mut at)?),
            '`' => Word::Text(raw(&chars, &mut at)?),
            '.' => field(&chars, &mut at),
            '$' => {
                at += 1;
                Word::Variable(format!("${}", identifier(&chars, &mut at)))
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => number(&chars, &mut at)?,
            c if c.is_alphabetic() || c == '_' => Word::Name(identifier(&chars, &mut at)),
            c => return Err(TemplateError(format!("unexpected {c:?} in {{{{{text}}}}}"))),
        };
        out.push(word);
    }
    Ok(out)
}

fn single(at: &mut usize, word: Word) -> Word {
    *at += 1;
    word
}

fn identifier(chars: &[char], at: &mut usize) -> String {
    let start = *at;
    while chars.get(*at).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
        *at += 1;
    }
    chars[start..*at].iter().collect()
}

fn field(chars: &[char], at: &mut usize) -> Word {
    let mut path = Vec::new();
    while chars.get(*at) == Some(&'.') {
        *at += 1;
        let name = identifier(chars, at);
        if name.is_empty() {
            break;
        }
        path.push(name);
    }
    if path.is_empty() { Word::Dot } else { Word::Field(path) }
}

fn quoted(chars: &[char], at: &mut usize) -> Result<String, TemplateError> {
    let mut out = String::new();
    *at += 1;
    while let Some(c) = chars.get(*at) {
        *at += 1;
        match c {
            '"' => return Ok(out),
            '\\' => {
                let escaped = chars.get(*at).copied().unwrap_or('\\');
                *at += 1;
                out.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other => other,
                });
            }
            c => out.push(*c),
        }
    }
    Err(TemplateError("unterminated quoted string".into()))
}

fn raw(chars: &[char], at: &mut usize) -> Result<String, TemplateError> {
    *at += 1;
    let start = *at;
    while let Some(c) = chars.get(*at) {
        *at += 1;
        if *c == '`' {
            return Ok(chars[start..*at - 1].iter().collect());
        }
    }
    Err(TemplateError("unterminated raw quoted string".into()))
}

fn number(chars: &[char], at: &mut usize) -> Result<Word, TemplateError> {
    let start = *at;
    *at += 1;
    while chars.get(*at).is_some_and(|c| c.is_ascii_digit() || *c == '.') {
        *at += 1;
    }
    let text: String = chars[start..*at].iter().collect();
    let parsed = match text.parse::<i64>() {
        Ok(whole) => Some(whole.into()),
        Err(_) => text.parse::<f64>().ok().and_then(serde_json::Number::from_f64),
    };
    parsed.map(Word::Number).ok_or_else(|| TemplateError(format!("bad number syntax: {text:?}")))
}
