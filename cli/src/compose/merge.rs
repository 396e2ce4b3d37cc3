//! Several files as one: what later ones say wins, lists grow.

use super::{
    error::{Place, Source},
    schema::{Field, Shape},
    yaml::{Key, Node, Yaml},
};
use crate::flags::{mount, port};

/// What a file says about the same key of earlier files.
#[derive(PartialEq, Eq)]
enum Tag {
    /// `!reset`: as if it had never been there.
    Reset,
    /// `!override`: this instead, not in addition.
    Override,
}

pub(super) struct Merger<'a> {
    pub(super) source: &'a Source,
}

impl Merger<'_> {
    /// The parser drops tags; they stand just before their value.
    fn tag(&self, place: Place) -> Option<Tag> {
        let text = &self.source.files.get(place.file)?.text;
        let (before, after) = text.split_at_checked(place.offset)?;
        let is = |tag: &str| before.trim_end().ends_with(tag) || after.starts_with(tag);
        if is("!reset") {
            Some(Tag::Reset)
        } else if is("!override") {
            Some(Tag::Override)
        } else {
            None
        }
    }

    /// Lays `over` on `base`, both of which look like `fields`.
    pub(super) fn merge(&self, base: &mut Node, over: Node, fields: &'static [Field]) {
        self.objects(base, over, |name| fields.iter().find(|field| field.name == name).map(|field| &field.shape));
    }

    fn value(&self, base: &mut Node, over: Node, shape: &'static Shape) {
        match (&over.value, shape) {
            (Yaml::Null, _) => {}
            _ if matches!(base.value, Yaml::Null) => *base = over,
            (Yaml::Map(_), Shape::Object(fields) | Shape::Detailed(_, fields)) if is_map(base) => {
                if other_driver(base, &over, fields) {
                    *base = over;
                } else {
                    self.merge(base, over, fields);
                }
            }
            (Yaml::Map(_), Shape::Map(inner)) if is_map(base) => self.objects(base, over, |_| Some(inner)),
            (_, Shape::Named(fields)) => {
                named(base);
                let mut over = over;
                named(&mut over);
                let Yaml::Map(entries) = over.value else { return };
                for (key, detail) in entries {
                    match member(base, &key) {
                        Some(known) => *known = self.merged(known.clone(), detail, fields),
                        None => push(base, key, detail),
                    }
                }
            }
            (_, Shape::Pairs | Shape::Labels) => {
                pairs(base);
                let mut over = over;
                pairs(&mut over);
                self.objects(base, over, |_| None);
            }
            (_, Shape::Ports) => keyed(base, over, port_key),
            (_, Shape::Volumes) => keyed(base, over, |item| text_of(item, "target").or_else(|| target(item))),
            (_, Shape::Files) => {
                keyed(base, over, |item| text_of(item, "source").or_else(|| item.text().map(str::to_owned)))
            }
            (_, Shape::List(_) | Shape::Texts | Shape::Hosts) => keyed(base, over, |_| None),
            _ => *base = over,
        }
    }

    fn merged(&self, mut base: Node, over: Node, fields: &'static [Field]) -> Node {
        match (&base.value, &over.value) {
            (Yaml::Map(_), Yaml::Map(_)) => {
                self.merge(&mut base, over, fields);
                base
            }
            (_, Yaml::Null) => base,
            _ => over,
        }
    }

    fn objects(&self, base: &mut Node, over: Node, shape: impl Fn(&str) -> Option<&'static Shape>) {
        let Yaml::Map(entries) = over.value else { return };
        for (key, inner) in entries {
            if let Some(tag) = self.tag(inner.place) {
                remove(base, &key);
                if tag == Tag::Override {
                    push(base, key, inner);
                }
                continue;
            }
            match (member(base, &key), shape(&key.text)) {
                (Some(known), Some(shape)) => self.value(known, inner, shape),
                (Some(known), None) => *known = inner,
                (None, _) => push(base, key, inner),
            }
        }
    }
}

fn remove(node: &mut Node, key: &Key) {
    if let Yaml::Map(entries) = &mut node.value {
        entries.retain(|(k, _)| k.text != key.text);
    }
}

fn is_map(node: &Node) -> bool {
    matches!(node.value, Yaml::Map(_))
}

/// Options of one log driver mean nothing to another.
fn other_driver(base: &Node, over: &Node, fields: &[Field]) -> bool {
    let is_logging = fields.iter().any(|f| f.name == "driver") && fields.iter().any(|f| f.name == "options");
    let driver = |node: &Node| text_of(node, "driver");
    is_logging && driver(base).is_some() && driver(over).is_some() && driver(base) != driver(over)
}

fn member<'a>(node: &'a mut Node, key: &Key) -> Option<&'a mut Node> {
    match &mut node.value {
        Yaml::Map(entries) => entries.iter_mut().find(|(k, _)| k.text == key.text).map(|(_, inner)| inner),
        _ => None,
    }
}

fn push(node: &mut Node, key: Key, inner: Node) {
    if let Yaml::Map(entries) = &mut node.value {
        entries.push((key, inner));
    }
}

/// A list of names becomes a mapping of names to nothing.
fn named(node: &mut Node) {
    let Yaml::List(items) = &node.value else { return };
    let entry = |item: &Node| {
        let key = Key { text: item.text().unwrap_or_default().to_owned(), place: item.place };
        (key, Node { value: Yaml::Null, place: item.place })
    };
    node.value = Yaml::Map(items.iter().map(entry).collect());
}

/// A list of `KEY=value` becomes a mapping.
fn pairs(node: &mut Node) {
    let Yaml::List(items) = &node.value else { return };
    let entry = |item: &Node| {
        let text = item.text().unwrap_or_default();
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Yaml::Scalar(value.to_owned())),
            None => (text, Yaml::Null),
        };
        (Key { text: key.to_owned(), place: item.place }, Node { value, place: item.place })
    };
    node.value = Yaml::Map(items.iter().map(entry).collect());
}

/// Items of `over` take the place of those with the same key, or come after all others.
fn keyed(base: &mut Node, over: Node, key: impl Fn(&Node) -> Option<String>) {
    if let Yaml::Scalar(_) = base.value {
        base.value = Yaml::List(vec![base.clone()]);
    }
    let items = match over.value {
        Yaml::List(items) => items,
        _ => vec![over],
    };
    let Yaml::List(known) = &mut base.value else { return };
    for item in items {
        let wanted = key(&item);
        match known.iter_mut().find(|k| wanted.is_some() && key(k) == wanted) {
            Some(same) => *same = item,
            None => known.push(item),
        }
    }
}

fn text_of(node: &Node, key: &str) -> Option<String> {
    node.get(key).and_then(Node::text).map(str::to_owned)
}

/// The same port twice is one port.
fn port_key(item: &Node) -> Option<String> {
    let parsed = match item.text() {
        Some(text) => port::parse(text).ok()?,
        None => {
            let fields = item.entries().iter().filter(|(key, _)| key.text != "host_ip" && key.text != "app_protocol");
            let long: Option<Vec<String>> =
                fields.map(|(key, value)| Some(format!("{}={}", key.text, value.text()?))).collect();
            port::parse(&long?.join(",")).ok()?
        }
    };
    Some(format!("{parsed:?}"))
}

/// Where a short form is mounted.
fn target(item: &Node) -> Option<String> {
    Some(mount::short_form(item.text()?, "/").ok()?.target)
}
