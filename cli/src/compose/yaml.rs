//! YAML to a tree that knows where in the file each part is. Aliases and merge keys are resolved.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::{
    error::{ComposeError, Place, Source},
    scalar::{ScalarKind, resolve},
};

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Yaml,
    /// Of a scalar.
    pub(super) kind: ScalarKind,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Yaml {
    Null,
    /// A text, or what a number or boolean means: `0x10` is `16`.
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) text: String,
    /// `yes` and `a` are texts, `1` and `true` are not.
    pub(super) is_text: bool,
    pub(super) place: Place,
}

/// A larger file is no stack file.
const MAX_FILE_BYTES: usize = 5 << 20;

/// Parses one of the source's files.
pub(super) fn parse(source: &Source, file: usize) -> Result<Node, ComposeError> {
    let text = source.files.get(file).map(|f| f.text.as_str()).unwrap_or_default();
    if text.len() > MAX_FILE_BYTES {
        let message = format!("this file has {} bytes; a stack file has at most {MAX_FILE_BYTES}", text.len());
        return Err(source.error(Place { file, ..Place::default() }, message));
    }
    match super::quick::read(first_document(text), file) {
        Some(node) => Ok(node),
        None => slow(source, file),
    }
}

/// As [`parse`], for every file.
pub(super) fn slow(source: &Source, file: usize) -> Result<Node, ComposeError> {
    let text = source.files.get(file).map(|f| f.text.as_str()).unwrap_or_default();
    let text = first_document(text);
    let reader = Reader { text, file };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let error = error.without_snippet();
        let place = error.location().map(|at| reader.place_of(at)).unwrap_or(Place { file, ..Place::default() });
        let said = error.to_string();
        source.error_with_help(
            place,
            format!("this is not valid YAML: {}", reader.in_go_words(&said, place)),
            Some("check the indentation (spaces, not tabs), the colons and the quotes around here".into()),
        )
    })?;
    Ok(reader.convert(raw))
}

/// One anchor may be used as often as anybody likes: what its uses come to is limited by the nodes.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { enforce_alias_anchor_ratio: false },
    }
}

/// A file may hold several documents; Docker's client reads the first.
pub(super) fn first_document(text: &str) -> &str {
    let mut at = 0;
    let mut begun = false;
    for line in text.split_inclusive('\n') {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if begun && (is_marker("---") || is_marker("...")) {
            return &text[..at];
        }
        begun |= !line.trim().is_empty() && !line.starts_with(['#', '%']);
        at += line.len();
    }
    text
}

impl Node {
    pub(super) fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Yaml::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Yaml::List(items) => items,
            _ => &[],
        }
    }

    /// A key whose value is null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries().iter().find(|(k, _)| k.text == key)?;
        (!matches!(entry.1.value, Yaml::Null)).then_some(&entry.1)
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Yaml::Scalar(text) => Some(text),
            _ => None,
        }
    }
}

/// What serde sees. What an unquoted word means is found out from the file's text.
enum Raw {
    Null,
    Text(String),
    /// What the parser takes for a number or boolean.
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

/// How the parser's complaints begin, and what Docker's client says then.
const IN_GO: &[(&str, &str)] = &[
    ("unexpected character: `@'", "found character that cannot start any token"),
    ("unexpected character: ``'", "found character that cannot start any token"),
    ("unexpected character: `%'", "found character that cannot start any token"),
    ("simple key expected ':'", "could not find expected ':'"),
    ("unclosed bracket '['", "did not find expected ',' or ']'"),
    ("unclosed bracket '{'", "did not find expected ',' or '}'"),
    ("unexpected EOF while parsing an implicit flow mapping", "did not find expected node content"),
    ("invalid indentation in multiline quoted scalar", "found unexpected end of stream"),
    ("non-finite float `.nan`", "json: unsupported value: NaN"),
    ("non-finite float `.inf`", "json: unsupported value: +Inf"),
    ("non-finite float `-.inf`", "json: unsupported value: -Inf"),
];

struct Reader<'a> {
    text: &'a str,
    file: usize,
}

impl Reader<'_> {
    fn convert(&self, raw: Spanned<Raw>) -> Node {
        let place = self.place_of(raw.defined);
        let mut kind = ScalarKind::Text;
        let value = match raw.value {
            // Only four words are null to Docker's client; the parser knows more.
            Raw::Null if self.plain(place).is_none_or(|plain| resolve(plain).is_none()) => Yaml::Null,
            Raw::Null => {
                let plain = self.plain(place).unwrap_or_default();
                Yaml::Scalar(plain.to_owned())
            }
            Raw::Text(read) if self.written(place) != read || self.is_block(place) => Yaml::Scalar(read),
            Raw::Text(read) | Raw::Typed(read) => match self.scalar(&read, place) {
                Some((known, text)) => {
                    kind = known;
                    Yaml::Scalar(text)
                }
                None => Yaml::Null,
            },
            Raw::List(items) => Yaml::List(items.into_iter().map(|item| self.convert(item)).collect()),
            Raw::Map(entries) => {
                let entry = |(key, value)| (self.key(key), self.convert(value));
                Yaml::Map(entries.into_iter().map(entry).collect())
            }
        };
        Node { value, kind, place }
    }

    fn key(&self, raw: Spanned<Raw>) -> Key {
        let place = self.place_of(raw.defined);
        let (text, is_text) = match raw.value {
            // As written: a name that looks like a number is a name.
            Raw::Text(read) | Raw::Typed(read) => match self.plain(place) {
                Some(plain) => (plain.to_owned(), matches!(resolve(plain), Some((ScalarKind::Text, _)))),
                None => (read, true),
            },
            Raw::Null => ("null".to_owned(), false),
            Raw::List(_) | Raw::Map(_) => (self.written(place).to_owned(), false),
        };
        Key { text, is_text, place }
    }

    /// The value of a scalar that the parser read as `read`.
    fn scalar(&self, read: &str, place: Place) -> Option<(ScalarKind, String)> {
        match (self.tag(place), self.plain(place)) {
            ("!!int" | "!!float" | "!!bool", _) => resolve(read),
            ("", Some(plain)) => resolve(plain),
            // Under a tag of the user's a word is what it looks like.
            (tag, Some(plain)) if !tag.starts_with("!!") => Some((ScalarKind::Text, plain.to_owned())),
            _ => Some((ScalarKind::Text, read.to_owned())),
        }
    }

    /// What Docker's client says of the same mistake, for those who search for it.
    fn in_go_words(&self, said: &str, place: Place) -> String {
        if let Some(key) = said.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split([',', ' ']).next()) {
            let before = self.text.get(..place.offset).unwrap_or_default();
            let is_key = |(at, _): (usize, &str), line: &str| {
                let follows = line[at + key.len()..].trim_start_matches(['"', '\'', ' ']).starts_with(':');
                follows && line[..at].chars().next_back().is_none_or(|c| " -{?,\"'".contains(c))
            };
            let names = |line: &str| line.match_indices(key).any(|found| is_key(found, line));
            let line = before.lines().enumerate().filter(|(_, line)| names(line)).last();
            let first = line.map_or_else(|| before.lines().count(), |(at, _)| at + 1);
            return format!("mapping key {key:?} already defined at line {first}");
        }
        if said.starts_with("tabs disallowed") {
            return format!("found character that cannot start any token: {said}");
        }
        let anchor = || -> String {
            let rest = self.text.get(place.offset..).unwrap_or_default().trim_start_matches('*');
            rest.chars().take_while(|c| !c.is_whitespace() && !",]}".contains(*c)).collect()
        };
        if said.contains("unknown anchor") {
            return format!("unknown anchor '{}' referenced", anchor());
        }
        if said.starts_with("unexpected character: `\\u{") {
            return format!("control characters are not allowed: {said}");
        }
        if said.contains("recursive references") {
            return format!("anchor '{}' value contains itself", anchor());
        }
        if let Some((_, words)) = IN_GO.iter().find(|(ours, _)| said.starts_with(ours)) {
            return format!("{words}: {said}");
        }
        if said.contains("merge value must be") {
            return "map merge requires map or sequence of maps as the value".into();
        }
        said.to_owned()
    }

    fn written(&self, place: Place) -> &str {
        self.text.get(place.offset..place.offset + place.len).unwrap_or_default().trim()
    }

    /// The word at the place when it is neither quoted nor a block nor of several lines.
    fn plain(&self, place: Place) -> Option<&str> {
        let written = self.written(place);
        let is_plain = !written.starts_with(['"', '\'', '|', '>', '!', '&', '*']) && !written.contains('\n');
        is_plain.then_some(written)
    }

    /// Whether the value stands on lines of its own, under `|` or `>`.
    fn is_block(&self, place: Place) -> bool {
        let before = self.text.get(..place.offset).unwrap_or_default().trim_end();
        let line = before.rsplit('\n').next().unwrap_or_default();
        let mark = line.trim_end_matches(|c: char| c.is_ascii_digit() || "+-".contains(c));
        mark.ends_with(['|', '>']) && self.text.get(before.len()..place.offset).is_some_and(|gap| gap.contains('\n'))
    }

    /// `!!str`, when that stands before the value.
    fn tag(&self, place: Place) -> &str {
        let line = self.text.get(..place.offset).and_then(|before| before.rsplit('\n').next()).unwrap_or_default();
        let word = line.split_ascii_whitespace().next_back().unwrap_or_default();
        if word.starts_with('!') { word } else { "" }
    }

    fn place_of(&self, at: serde_saphyr::Location) -> Place {
        let line_start = |line: u64| {
            let before = usize::try_from(line.saturating_sub(1)).unwrap_or(0);
            self.text.split_inclusive('\n').take(before).map(str::len).sum::<usize>()
        };
        let span = at.span();
        let offset = span.byte_offset().and_then(|o| usize::try_from(o).ok());
        let len = span.byte_len().and_then(|l| usize::try_from(l).ok());
        let column = usize::try_from(at.column().saturating_sub(1)).unwrap_or(0);
        let offset = offset.unwrap_or_else(|| line_start(at.line()) + column).min(self.text.len());
        Place { file: self.file, offset, len: len.unwrap_or(0) }
    }
}
