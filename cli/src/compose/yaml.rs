//! YAML to a tree that knows where in the file each part is. Aliases and merge keys are resolved.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::{ComposeError, Place, Source};

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Yaml,
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
    let reader = Reader { text, file };
    let raw: Spanned<Raw> = serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let place = error.location().map(|at| reader.place_of(at)).unwrap_or(Place { file, ..Place::default() });
        let said = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        source.error_with_help(
            place,
            format!("this is not valid YAML: {said}"),
            Some("check the indentation (spaces, not tabs), the colons and the quotes around here".into()),
        )
    })?;
    Ok(reader.convert(raw))
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

/// A leading zero means octal to Docker's client, though no longer to YAML.
fn octal(written: &str) -> Option<String> {
    let digits = written.strip_prefix('0')?;
    let value = u64::from_str_radix(digits, 8).ok()?;
    Some(value.to_string())
}

/// As Go prints it, which is what Docker's client makes of a number where a text is meant: `0.10` is `0.1`.
fn shown(value: f64) -> String {
    if value == 0.0 || (1e-4..1e21).contains(&value.abs()) || !value.is_finite() {
        return match (value.is_nan(), value.is_infinite()) {
            (true, _) => "NaN".into(),
            (_, true) => if value > 0.0 { "+Inf" } else { "-Inf" }.into(),
            _ => value.to_string(),
        };
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// What serde sees; scalars that are not strings are texts of what they mean.
enum Raw {
    Null,
    Text(String),
    /// `yes` is a text where a text is meant.
    Bool(bool),
    Other(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
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
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Other(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Other(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Other(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Other(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Other(shown(value)))
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

struct Reader<'a> {
    text: &'a str,
    file: usize,
}

impl Reader<'_> {
    fn convert(&self, raw: Spanned<Raw>) -> Node {
        let place = self.place_of(raw.defined);
        let value = match raw.value {
            Raw::Null => Yaml::Null,
            Raw::Text(scalar) => Yaml::Scalar(scalar),
            Raw::Bool(value) => {
                let written = self.text.get(place.offset..place.offset + place.len).map(str::trim);
                Yaml::Scalar(written.filter(|w| !w.is_empty()).map_or(value.to_string(), str::to_owned))
            }
            Raw::Other(shown) => {
                let written = self.text.get(place.offset..place.offset + place.len).unwrap_or_default();
                Yaml::Scalar(octal(written.trim()).unwrap_or(shown))
            }
            Raw::List(items) => Yaml::List(items.into_iter().map(|item| self.convert(item)).collect()),
            Raw::Map(entries) => Yaml::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let place = self.place_of(key.defined);
                        (Key { text: key.value, place }, self.convert(value))
                    })
                    .collect(),
            ),
        };
        Node { value, place }
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
