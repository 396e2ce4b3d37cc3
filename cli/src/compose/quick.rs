//! The quick way to the tree of a YAML file, for what nearly all files are made of: from the parser's events, without
//! serde between, which took more time than the parser itself.
//!
//! What is rare (tags, names that are no words, several documents) and whatever is wrong is none of its business: it gives
//! up, and the file is read again by [`super::yaml`], which has the words for it. Where it does not give up, the tree is
//! the same; the tests compare the two.

use std::{borrow::Cow, collections::BTreeMap};

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::{
    error::Place,
    scalar::{ScalarKind, resolve},
    yaml::{Key, Node, Yaml},
};

/// Fewer nodes than a file may have, so that the other reader draws the line. What an alias stands for counts each time.
const MAX_NODES: usize = 200_000;
const MAX_DEPTH: usize = 100;
const MAX_ALIASES: usize = 5_000;

/// The tree, if everything in the text is as usual.
pub(super) fn read(text: &str, file: usize) -> Option<Node> {
    let parser = Parser::new_from_str(text);
    let mut reader = Reader { parser, text, file, anchors: BTreeMap::new(), nodes: 0, aliases: 0 };
    let root = loop {
        match reader.next()? {
            (Event::StreamStart | Event::DocumentStart(_, None), _) => {}
            (event, span) => break reader.node(event, span, 0)?,
        }
    };
    let ends = matches!(reader.next()?.0, Event::DocumentEnd) && matches!(reader.next()?.0, Event::StreamEnd);
    ends.then_some(root)
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    text: &'a str,
    file: usize,
    /// What has an anchor, and how many nodes that is. An alias within it finds nothing yet.
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
    aliases: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        loop {
            match self.parser.next()?.ok()? {
                (Event::Comment(..), _) => {}
                found => return Some(found),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Option<Node> {
        let before = self.nodes;
        self.nodes += 1;
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            return None;
        }
        let place = self.place(span)?;
        let (anchor, kind, value) = match event {
            Event::Scalar(value, style, anchor, None) => {
                let (kind, value) = self.scalar(value, style, place)?;
                (anchor, kind, value)
            }
            Event::SequenceStart(_, anchor, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                (anchor, ScalarKind::Text, Yaml::List(items))
            }
            Event::MappingStart(_, anchor, None) => (anchor, ScalarKind::Text, Yaml::Map(self.mapping(depth)?)),
            Event::Alias(anchor) => {
                let (node, size) = self.anchors.get(&anchor)?;
                (self.nodes, self.aliases) = (self.nodes + size, self.aliases + 1);
                return (self.nodes <= MAX_NODES && self.aliases <= MAX_ALIASES).then(|| node.clone());
            }
            _ => return None,
        };
        let node = Node { value, kind, place };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before));
        }
        Some(node)
    }

    /// The mapping's own entries, then what is merged into it.
    fn mapping(&mut self, depth: usize) -> Option<Vec<(Key, Node)>> {
        let (mut entries, mut merged): (Vec<(Key, Node)>, Option<Node>) = (Vec::new(), None);
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(value, style, 0, None) => self.key(value, style, self.place(span)?)?,
                _ => return None,
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if key.text == "<<" {
                if !key.is_text || merged.replace(value).is_some() {
                    return None;
                }
            } else {
                entries.push((key, value));
            }
        }
        let mut names: Vec<&str> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        let merged = match merged.map(|node| node.value) {
            None => return Some(entries),
            Some(Yaml::Map(entries)) => entries,
            Some(_) => return None,
        };
        let more: Vec<_> =
            merged.into_iter().filter(|(key, _)| names.binary_search(&key.text.as_str()).is_err()).collect();
        entries.extend(more);
        Some(entries)
    }

    fn scalar(&self, value: Cow<'a, str>, style: ScalarStyle, place: Place) -> Option<(ScalarKind, Yaml)> {
        let written = self.written(place);
        if style != ScalarStyle::Plain || written.contains('\n') {
            return Some((ScalarKind::Text, Yaml::Scalar(value.into_owned())));
        }
        let unsigned = written.trim_start_matches(['-', '+']);
        let is_endless = [".inf", ".nan"].iter().any(|word| unsigned.eq_ignore_ascii_case(word));
        if is_endless || written.parse::<f64>().is_ok_and(|number| !number.is_finite()) {
            return None;
        }
        Some(match resolve(written) {
            Some((kind, text)) => (kind, Yaml::Scalar(text)),
            None => (ScalarKind::Text, Yaml::Null),
        })
    }

    fn key(&self, value: Cow<'a, str>, style: ScalarStyle, place: Place) -> Option<Key> {
        if style != ScalarStyle::Plain {
            // A quoted `<<` is a name, and rare enough.
            return (value != "<<").then(|| Key { text: value.into_owned(), is_text: true, place });
        }
        let written = self.written(place);
        let is_text = matches!(resolve(written), Some((ScalarKind::Text, _)));
        (is_text && written == value).then(|| Key { text: value.into_owned(), is_text, place })
    }

    fn written(&self, place: Place) -> &'a str {
        self.text.get(place.offset..place.offset + place.len).unwrap_or_default().trim()
    }

    fn place(&self, span: Span) -> Option<Place> {
        let range = span.byte_range()?;
        Some(Place { file: self.file, offset: range.start, len: range.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            error::{Source, SourceFile},
            fuzz, yaml,
        },
        *,
    };

    /// Whether the text is read quickly; what is, is what the other reader makes of it.
    fn is_quick(text: &str) -> bool {
        let Some(quick) = read(yaml::first_document(text), 0) else { return false };
        let source = Source { files: vec![SourceFile { name: "f.yml".into(), text: text.to_owned() }] };
        let slow = yaml::slow(&source, 0).unwrap_or_else(|error| panic!("{error}\nbut it was read quickly"));
        assert_eq!(format!("{quick:?}"), format!("{slow:?}"), "of {text:?}");
        true
    }

    #[test]
    fn what_is_usual_is_read_quickly() {
        for text in [
            "a: b\n",
            "# c\na: # c\n  - b\n  - \"c\\n\"\n  - 'it''s'\n",
            "a: |\n  x\n  y\nb: >-\n  x\n  y\nc: x\n  y\n",
            "a: [0x10, 1e3, 0755, yes, true, ~, null, -5, .5, ./x, 2020-01-01]\n",
            "a: {b: , c: ~, d: \"\"}\n",
            "---\na: b\n...\n---\nc: d\n",
            "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x\n",
            "x: &x [a, &y b]\nz: [*x, *y]\n",
        ] {
            assert!(is_quick(text), "{text:?}");
        }
    }

    #[test]
    fn what_is_rare_or_wrong_is_left_to_the_other_reader() {
        let deep = "[".repeat(MAX_DEPTH + 2) + &"]".repeat(MAX_DEPTH + 2);
        let laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned()
            + &('b'..='h').fold(String::new(), |text, name| {
                let before = char::from(name as u8 - 1);
                text + &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(", "))
            });
        for text in [
            "",
            "a: !reset null\n",
            "a: !!str 5\n",
            "a: b\na: c\n",
            "a: *b\n",
            "a: &a [*a]\n",
            "1: x\n",
            "~: x\n",
            "? [a]\n: b\n",
            "a: .nan\n",
            "a: -.Inf\n",
            "a: 1e999\n",
            "<<: [x]\n",
            "a: [\n",
            "a:\n\t- b\n",
            "\"<<\": x\n",
            &deep,
            &laughs,
        ] {
            assert!(!is_quick(text), "{text:?}");
        }
    }

    #[test]
    fn both_readers_agree_about_odd_files() {
        let mut quick = 0;
        fuzz::for_each_odd_text(|text| quick += usize::from(is_quick(text)));
        assert!(quick > 500, "only {quick} were read quickly");
    }
}
