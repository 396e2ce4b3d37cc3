//! YAML to a tree that knows where in the file each part is. Aliases and merge keys are resolved.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::{
    error::{ComposeError, Finding, Place, Source},
    events::{Event, Events},
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
/// What an alias stands for counts each time that it is used.
const MAX_NODES: usize = 250_000;
const MAX_DEPTH: usize = 256;

/// What Docker's client says of a `<<` that is no mapping.
const NO_MERGE: &str = "map merge requires map or sequence of maps as the value";

/// A file's first document.
pub(super) struct Parsed {
    pub(super) root: Node,
    /// Where the document ends although what follows is no other one, which Docker's client overlooks.
    pub(super) cut: Option<ComposeError>,
}

/// Parses the first document of one of the source's files, which is the one that Docker's client reads.
pub(super) fn parse(source: &Source, file: usize) -> Result<Parsed, ComposeError> {
    let text = source.files.get(file).map(|f| f.text.as_str()).unwrap_or_default();
    if text.len() > MAX_FILE_BYTES {
        let message = format!("this file has {} bytes; a stack file has at most {MAX_FILE_BYTES}", text.len());
        return Err(source.error(Place { file, ..Place::default() }, message));
    }
    let told = |wrong: Wrong| {
        let place = Place { file, ..wrong.place };
        source.finding(place, format!("this is not valid YAML: {}", wrong.words), wrong.help.map(str::to_owned))
    };
    let (composed, cut) = compose(text).map_err(|wrong| ComposeError::from(told(wrong)))?;
    let mut reader = Reader::of(text, &composed, file);
    let root = reader.node(0).map_err(|wrong| ComposeError::from(told(wrong)))?;
    let more = reader.more_duplicates;
    let duplicates = reader.duplicates.into_iter().map(told).chain((0..more).map(|_| Finding::more()));
    let duplicates: Vec<Finding> = duplicates.collect();
    match ComposeError::of(&duplicates) {
        Some(error) => Err(error),
        None => Ok(Parsed { root, cut: cut.map(|wrong| told(wrong).into()) }),
    }
}

impl Yaml {
    fn into_entries(self) -> Vec<(Key, Node)> {
        match self {
            Yaml::Map(entries) => entries,
            _ => Vec::new(),
        }
    }
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

/// A mistake, in the words of Docker's client.
#[derive(Debug)]
struct Wrong {
    words: String,
    place: Place,
    help: Option<&'static str>,
}

/// As it is written: aliases and merge keys are there, and nothing has been said of what words mean.
struct Raw {
    value: RawValue,
    place: Place,
    /// Where the node begins with its tag and anchor.
    start: usize,
}

enum RawValue {
    Scalar { text: String, is_plain: bool, tag: Option<String> },
    List(Vec<usize>),
    Map(Vec<(usize, usize)>),
    Alias { to: usize, name: String },
}

fn wrong(words: impl Into<String>, place: Place) -> Wrong {
    Wrong { words: words.into(), place, help: None }
}

/// The nodes of the first document, the root first, and what makes its end no end.
fn compose(text: &str) -> Result<(Vec<Raw>, Option<Wrong>), Wrong> {
    // libyaml would not count a byte order mark.
    let mark = text.len() - text.trim_start_matches('\u{feff}').len();
    let events = Events::of(&text[mark..]);
    let mut composer = Composer { text, mark, events, nodes: Vec::new(), anchors: HashMap::new() };
    let mut cut = None;
    match composer.next()? {
        (Event::DocumentStart, _) => {
            let (event, range) = composer.next()?;
            composer.node(event, range, 0)?;
            composer.next()?;
            // Another document is nobody's business.
            cut = composer.next().err().filter(|wrong| wrong.words.contains("<document start>"));
        }
        (_, range) => {
            composer.begin(range.start, None)?;
        }
    }
    Ok((composer.nodes, cut))
}

struct Composer<'a> {
    text: &'a str,
    /// Bytes before the text that the parser sees.
    mark: usize,
    events: Events<'a>,
    nodes: Vec<Raw>,
    /// The latest node of each name, from its beginning on.
    anchors: HashMap<String, usize>,
}

impl Composer<'_> {
    fn next(&mut self) -> Result<(Event, Range<usize>), Wrong> {
        let (event, range) = self.events.next().map_err(|problem| {
            let at_end = self.text[self.mark + problem.offset..].trim().is_empty();
            let offset = self.mark + problem.began.filter(|_| at_end).unwrap_or(problem.offset);
            let help = match self.text[offset..].starts_with('\t') {
                true => "there is a tab here: indent with spaces",
                false => "check the indentation (spaces, not tabs), the colons and the quotes around here",
            };
            Wrong { words: problem.words, place: Place { file: 0, offset, len: 0 }, help: Some(help) }
        })?;
        Ok((event, range.start + self.mark..range.end + self.mark))
    }

    /// A node that is null until it has been read.
    fn begin(&mut self, start: usize, anchor: Option<String>) -> Result<usize, Wrong> {
        let place = Place { file: 0, offset: start, len: 0 };
        if self.nodes.len() >= MAX_NODES {
            return Err(wrong(format!("a stack file has at most {MAX_NODES} nodes"), place));
        }
        let value = RawValue::Scalar { text: String::new(), is_plain: true, tag: None };
        self.nodes.push(Raw { value, place, start });
        let index = self.nodes.len() - 1;
        if let Some(name) = anchor {
            self.anchors.insert(name, index);
        }
        Ok(index)
    }

    fn node(&mut self, event: Event, range: Range<usize>, depth: usize) -> Result<usize, Wrong> {
        let place = self.place(&range);
        if depth > MAX_DEPTH {
            return Err(wrong(format!("this is nested deeper than {MAX_DEPTH} levels"), place));
        }
        let (index, value) = match event {
            Event::Scalar { value, is_plain, tag, anchor } => {
                (self.begin(range.start, anchor)?, RawValue::Scalar { text: value, is_plain, tag })
            }
            Event::Alias(name) => {
                let to = self.anchors.get(&name).copied();
                let to = to.ok_or_else(|| wrong(format!("unknown anchor '{name}' referenced"), place))?;
                (self.begin(range.start, None)?, RawValue::Alias { to, name })
            }
            Event::ListStart { anchor } => {
                let (index, mut items) = (self.begin(range.start, anchor)?, Vec::new());
                loop {
                    match self.next()? {
                        (Event::ListEnd, _) => break (index, RawValue::List(items)),
                        (event, range) => items.push(self.node(event, range, depth + 1)?),
                    }
                }
            }
            Event::MapStart { anchor } => {
                let (index, mut entries) = (self.begin(range.start, anchor)?, Vec::new());
                loop {
                    let key = match self.next()? {
                        (Event::MapEnd, _) => break (index, RawValue::Map(entries)),
                        (event, range) => self.node(event, range, depth + 1)?,
                    };
                    let (event, range) = self.next()?;
                    entries.push((key, self.node(event, range, depth + 1)?));
                }
            }
            // The parser closes what it opens.
            Event::ListEnd | Event::MapEnd | Event::DocumentStart | Event::DocumentEnd | Event::End => {
                return Err(wrong("did not find expected node content", place));
            }
        };
        self.nodes[index].value = value;
        self.nodes[index].place = place;
        Ok(index)
    }

    /// Without the tag and the anchor before a value.
    fn place(&self, range: &Range<usize>) -> Place {
        let mut rest = &self.text[range.clone()];
        while rest.starts_with(['!', '&']) {
            let word = rest.find(char::is_whitespace).unwrap_or(rest.len());
            rest = rest[word..].trim_start();
        }
        Place { file: 0, offset: range.end - rest.len(), len: rest.len() }
    }
}

/// Says what the nodes mean.
struct Reader<'a> {
    text: &'a str,
    raw: &'a [Raw],
    file: usize,
    /// How many nodes have been made.
    nodes: usize,
    /// Levels above the node that is being read, with those that aliases lead to.
    depth: usize,
    /// The aliases that are being followed.
    active: Vec<usize>,
    /// The first names that are there twice, and how many more there are.
    duplicates: Vec<Wrong>,
    more_duplicates: usize,
}

impl<'a> Reader<'a> {
    fn of(text: &'a str, raw: &'a [Raw], file: usize) -> Self {
        let (active, duplicates) = (Vec::new(), Vec::new());
        Self { text, raw, file, nodes: 0, depth: 0, active, duplicates, more_duplicates: 0 }
    }

    fn node(&mut self, index: usize) -> Result<Node, Wrong> {
        self.depth += 1;
        let node = self.node_here(index);
        self.depth -= 1;
        node
    }

    fn node_here(&mut self, index: usize) -> Result<Node, Wrong> {
        let Raw { value, place, .. } = &self.raw[index];
        let place = Place { file: self.file, ..*place };
        if self.depth > MAX_DEPTH {
            return Err(wrong(format!("with its aliases, this is nested deeper than {MAX_DEPTH} levels"), place));
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(wrong(format!("with what its aliases stand for, this has more than {MAX_NODES} nodes"), place));
        }
        let (kind, value) = match value {
            RawValue::Scalar { text, is_plain, tag } => scalar(text, *is_plain, tag.as_deref(), place)?,
            RawValue::List(items) => {
                let items: Result<_, _> = items.iter().map(|item| self.node(*item)).collect();
                (ScalarKind::Text, Yaml::List(items?))
            }
            RawValue::Map(entries) => (ScalarKind::Text, Yaml::Map(self.mapping(entries)?)),
            RawValue::Alias { to, name } => return self.follow(*to, name, place),
        };
        Ok(Node { value, kind, place })
    }

    fn follow(&mut self, to: usize, name: &str, place: Place) -> Result<Node, Wrong> {
        self.following(to, name, place, |reader| reader.node(to))
    }

    fn following<T>(
        &mut self,
        to: usize,
        name: &str,
        place: Place,
        read: impl FnOnce(&mut Self) -> Result<T, Wrong>,
    ) -> Result<T, Wrong> {
        if self.active.contains(&to) {
            return Err(wrong(format!("anchor '{name}' value contains itself"), place));
        }
        self.active.push(to);
        let found = read(self);
        self.active.pop();
        found
    }

    /// The mapping's own entries, then what is merged into it.
    fn mapping(&mut self, entries: &'a [(usize, usize)]) -> Result<Vec<(Key, Node)>, Wrong> {
        if self.has_duplicates(entries) {
            return Ok(Vec::new());
        }
        let (mut own, mut merged) = (Vec::with_capacity(entries.len()), None);
        for (key, value) in entries {
            if self.is_merge(*key) {
                merged = Some(*value);
                continue;
            }
            let key = self.key(*key)?;
            own.push((key, self.node(*value)?));
        }
        if let Some(merged) = merged {
            self.merge(&mut own, merged)?;
        }
        Ok(own)
    }

    fn is_merge(&self, key: usize) -> bool {
        match &self.raw[key].value {
            RawValue::Scalar { text, is_plain, tag } => {
                text == "<<" && tag.as_deref().map_or(*is_plain, |tag| tag == "!" || tag == "tag:yaml.org,2002:merge")
            }
            _ => false,
        }
    }

    /// An entry of the mapping goes before one that is merged, an earlier merged one before a later one.
    fn merge(&mut self, own: &mut Vec<(Key, Node)>, value: usize) -> Result<(), Wrong> {
        let raw = &self.raw[value];
        let parts = match &raw.value {
            RawValue::List(items) => items.as_slice(),
            _ => std::slice::from_ref(&value),
        };
        let mut known: HashSet<String> = own.iter().map(|(key, _)| key.text.clone()).collect();
        for part in parts {
            let to = match &self.raw[*part].value {
                RawValue::Alias { to, .. } => *to,
                _ => *part,
            };
            if !matches!(self.raw[to].value, RawValue::Map(_)) {
                return Err(wrong(NO_MERGE, raw.place));
            }
            for (key, value) in self.node(*part)?.value.into_entries() {
                if known.insert(key.text.clone()) {
                    own.push((key, value));
                }
            }
        }
        Ok(())
    }

    /// Notes every name that is there twice.
    fn has_duplicates(&mut self, entries: &[(usize, usize)]) -> bool {
        // A name; of anything else Docker's client compares nothing.
        let (raw, text) = (self.raw, self.text);
        let name = |index: usize| match &raw[index].value {
            RawValue::Scalar { text, .. } => (0, text.as_str()),
            RawValue::Alias { name, .. } => (1, name.as_str()),
            RawValue::List(_) => (2, ""),
            RawValue::Map(_) => (3, ""),
        };
        let mut known: HashMap<(u8, &str), Vec<usize>> = HashMap::with_capacity(entries.len());
        let mut has_some = false;
        for (key, _) in entries {
            let name = name(*key);
            let earlier = known.entry(name).or_default();
            for other in earlier.iter() {
                has_some = true;
                if self.duplicates.len() >= ComposeError::MOST {
                    self.more_duplicates += 1;
                    break;
                }
                let line = 1 + text[..raw[*other].start].matches('\n').count();
                let words = format!("mapping key {:?} already defined at line {line}", name.1);
                self.duplicates.push(wrong(words, raw[*key].place));
            }
            if earlier.len() < ComposeError::MOST {
                earlier.push(*key);
            }
        }
        has_some
    }

    fn key(&mut self, index: usize) -> Result<Key, Wrong> {
        let Raw { value, place, .. } = &self.raw[index];
        let place = Place { file: self.file, ..*place };
        let (text, is_text) = match value {
            RawValue::Scalar { text, is_plain, tag } => match scalar(text, *is_plain, tag.as_deref(), place)? {
                (kind, Yaml::Scalar(_)) => (text.clone(), kind == ScalarKind::Text),
                _ if text.is_empty() => ("null".to_owned(), false),
                _ => (text.clone(), false),
            },
            RawValue::Alias { to, name } => {
                let key = self.following(*to, name, place, |reader| reader.key(*to))?;
                (key.text, key.is_text)
            }
            RawValue::List(_) | RawValue::Map(_) => {
                let said = in_go(&self.node(index)?);
                return Err(wrong(format!("invalid map key: {said}"), place));
            }
        };
        Ok(Key { text, is_text, place })
    }
}

/// What a word means, by its tag where it has one that says so.
fn scalar(text: &str, is_plain: bool, tag: Option<&str>, place: Place) -> Result<(ScalarKind, Yaml), Wrong> {
    let short = tag.and_then(|tag| tag.strip_prefix("tag:yaml.org,2002:"));
    let resolved = match short {
        Some(said @ ("int" | "float" | "bool" | "null")) => {
            let resolved = resolve(text);
            let is = match &resolved {
                None => "null",
                Some((ScalarKind::Whole, _)) if said == "float" => said,
                Some((ScalarKind::Whole, _)) => "int",
                Some((ScalarKind::Real, _)) => "float",
                Some((ScalarKind::Bool, _)) => "bool",
                Some((ScalarKind::Text | ScalarKind::Filled, _)) => "str",
            };
            if is != said {
                return Err(wrong(format!("cannot decode !!{is} `{text}` as a !!{said}"), place));
            }
            resolved
        }
        Some("binary") => {
            let bytes = BASE64_STANDARD.decode(text.split_whitespace().collect::<String>());
            let bytes = bytes.map_err(|_| wrong("!!binary value contains invalid base64 data", place))?;
            Some((ScalarKind::Text, String::from_utf8_lossy(&bytes).into_owned()))
        }
        None if tag.is_none() && is_plain => {
            if let Some(words) = endless(text) {
                return Err(wrong(words, place));
            }
            resolve(text)
        }
        // Our own tags are about where the value goes, not about what it is.
        None if is_plain && matches!(tag, Some("!reset" | "!override")) => resolve(text),
        _ => Some((ScalarKind::Text, text.to_owned())),
    };
    Ok(match resolved {
        Some((kind, text)) => (kind, Yaml::Scalar(text)),
        None => (ScalarKind::Text, Yaml::Null),
    })
}

/// A value as Go prints it.
fn in_go(node: &Node) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match &node.value {
        Yaml::Null => "interface {}(nil)".to_owned(),
        Yaml::Scalar(text) if node.kind == ScalarKind::Text => format!("{text:?}"),
        Yaml::Scalar(text) => text.clone(),
        Yaml::List(items) => format!("[]interface {{}}{{{}}}", joined(items.iter().map(in_go).collect())),
        Yaml::Map(entries) => {
            let mut entries: Vec<_> = entries.iter().map(|(k, v)| format!("{:?}:{}", k.text, in_go(v))).collect();
            entries.sort_unstable();
            format!("map[string]interface {{}}{{{}}}", joined(entries))
        }
    }
}

/// What Docker's client says of numbers that it reads but cannot say.
fn endless(text: &str) -> Option<&'static str> {
    Some(match text {
        ".nan" | ".NaN" | ".NAN" => "json: unsupported value: NaN",
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => "json: unsupported value: +Inf",
        "-.inf" | "-.Inf" | "-.INF" => "json: unsupported value: -Inf",
        _ => return None,
    })
}
