//! Several files as one: what later ones say wins, lists grow.

use super::{
    error::{Place, Source},
    nanos, ports,
    scalar::ScalarKind,
    schema::{Field, Shape},
    volumes,
    yaml::{Key, Node, Yaml},
};

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
    /// As Docker's client merges files of version 3, which is not as the Compose specification has it.
    pub(super) as_docker: bool,
}

/// Of these, Docker's client tells zero from nothing.
const COUNTED: &[&str] = &["replicas", "parallelism", "max_attempts", "retries"];
/// What a later file says of one of these is all that there is to it.
const REPLACED: &[&str] = &["networks", "volumes", "secrets", "configs"];

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

    fn value(&self, base: &mut Node, over: Node, shape: &'static Shape, counted: bool) {
        match (&over.value, shape) {
            (Yaml::Null, _) => {}
            (Yaml::Scalar(_) | Yaml::List(_), Shape::Words | Shape::Text | Shape::Flag | Shape::TextOrNumber)
                if self.as_docker && is_empty(&over) => {}
            (Yaml::Scalar(_), _) if self.as_docker && !counted && is_nothing(&over, shape) => {}
            _ if matches!(base.value, Yaml::Null) => *base = over,
            (Yaml::Map(_), shape) if is_map(base) && shape.fields().is_some() => {
                let fields = shape.fields().unwrap_or_default();
                if other_driver(base, &over, fields) {
                    *base = over;
                } else {
                    self.merge(base, over, fields);
                }
                if self.as_docker && fields.iter().any(|field| field.name == "image") {
                    sort_lists(base);
                }
            }
            (Yaml::Map(_), Shape::Map(inner) | Shape::Section(inner)) if is_map(base) => {
                self.objects(base, over, |_| Some(inner));
            }
            (Yaml::Map(_), Shape::Options(_)) if is_map(base) => self.objects(base, over, |_| None),
            (_, Shape::Named(fields) | Shape::Names(fields)) => {
                named(base);
                let mut over = over;
                named(&mut over);
                let Yaml::Map(entries) = over.value else { return };
                for (key, detail) in entries {
                    match member(base, &key) {
                        Some(known) if self.as_docker && is_map(&detail) => *known = detail,
                        Some(known) => *known = self.merged(known.clone(), detail, fields),
                        None => push(base, key, detail),
                    }
                }
            }
            (_, Shape::Pairs | Shape::Labels) => {
                pairs(base);
                let mut over = over;
                pairs(&mut over);
                if matches!(shape, Shape::Labels) {
                    fill(&mut over);
                }
                self.objects(base, over, |_| None);
            }
            (_, Shape::Ports) if self.as_docker => self.ports(base, over),
            (_, Shape::Ports) => keyed(base, over, port_key),
            (_, Shape::Volumes) => keyed(base, over, |item| text_of(item, "target").or_else(|| target(item))),
            (_, Shape::Files) => {
                keyed(base, over, |item| text_of(item, "source").or_else(|| item.text().map(str::to_owned)))
            }
            (_, Shape::List(_) | Shape::Set(_) | Shape::Texts | Shape::Hosts | Shape::EnvFile) => {
                keyed(base, over, |_| None)
            }
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
        let is_root = shape("services").is_some() && shape("volumes").is_some() && shape("image").is_none();
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
                (Some(known), Some(_)) if self.as_docker && REPLACED.contains(&key.text.as_str()) && is_root => {
                    replace_members(known, inner);
                }
                (Some(known), Some(shape)) => self.value(known, inner, shape, COUNTED.contains(&key.text.as_str())),
                (Some(_), None) if self.as_docker && matches!(inner.value, Yaml::Null) => {}
                (Some(known), None) if self.as_docker && key.text.starts_with("x-") => {
                    if !is_root {
                        overlay(known, inner);
                    }
                }
                (None, None) if self.as_docker && is_root => {}
                (Some(known), None) => *known = inner,
                (None, _) => push(base, key, inner),
            }
        }
    }

    /// By the published port; several that have none are one to Docker's client.
    fn ports(&self, base: &mut Node, over: Node) {
        let Yaml::List(known) = &mut base.value else { return };
        for item in over.items() {
            let published: Vec<u16> = published(item);
            known.retain(|k| !self::published(k).iter().any(|port| published.contains(port)));
            known.push(item.clone());
        }
    }
}

fn is_empty(node: &Node) -> bool {
    match &node.value {
        Yaml::Scalar(text) => text.is_empty() || super::check::boolean(text) == Some(false),
        Yaml::List(items) => items.is_empty(),
        _ => false,
    }
}

/// A zero where Docker's client takes it for no answer.
fn is_nothing(node: &Node, shape: &Shape) -> bool {
    let Some(text) = node.text() else { return false };
    match shape {
        Shape::Duration | Shape::Pause => nanos::parse(text) == Some(0),
        Shape::Whole | Shape::Real => text.parse() == Ok(0.0),
        Shape::Natural => text == "0",
        _ => false,
    }
}

/// What each name means now is what `over` says.
fn replace_members(base: &mut Node, over: Node) {
    let Yaml::Map(entries) = over.value else { return };
    for (key, inner) in entries {
        match member(base, &key) {
            Some(known) => *known = inner,
            None => push(base, key, inner),
        }
    }
}

/// The user's own mappings, one over the other.
fn overlay(base: &mut Node, over: Node) {
    match over.value {
        Yaml::Map(entries) if is_map(base) => {
            for (key, inner) in entries {
                match member(base, &key) {
                    Some(known) => overlay(known, inner),
                    None => push(base, key, inner),
                }
            }
        }
        _ => *base = over,
    }
}

/// As Docker's client leaves a service that several files describe.
fn sort_lists(service: &mut Node) {
    let Yaml::Map(entries) = &mut service.value else { return };
    for (key, node) in entries {
        let Yaml::List(items) = &mut node.value else { continue };
        let source = |item: &Node| text_of(item, "source").or_else(|| item.text().map(str::to_owned));
        match key.text.as_str() {
            "ports" => items.sort_by_key(|item| published(item).first().copied().unwrap_or(0)),
            "volumes" => items.sort_by_key(|item| text_of(item, "target").or_else(|| target(item))),
            "secrets" | "configs" => items.sort_by_key(source),
            _ => {}
        }
    }
}

/// The ports of the nodes; 0 is one that is not said.
fn published(item: &Node) -> Vec<u16> {
    match item.text() {
        Some(text) => {
            let ports = ports::short(text).map(|(_, ports)| ports).unwrap_or_default();
            ports.into_iter().map(|port| port.published).collect()
        }
        None => vec![text_of(item, "published").and_then(|text| text.parse().ok()).unwrap_or(0)],
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
        let key = Key { text: item.text().unwrap_or_default().to_owned(), is_text: true, place: item.place };
        (key, Node { value: Yaml::Null, kind: ScalarKind::Text, place: item.place })
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
        let key = Key { text: key.to_owned(), is_text: true, place: item.place };
        (key, Node { value, kind: ScalarKind::Text, place: item.place })
    };
    node.value = Yaml::Map(items.iter().map(entry).collect());
}

/// A label that has no value has an empty one.
fn fill(node: &mut Node) {
    let Yaml::Map(entries) = &mut node.value else { return };
    for (_, value) in entries.iter_mut().filter(|(_, value)| matches!(value.value, Yaml::Null)) {
        value.value = Yaml::Scalar(String::new());
    }
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
    Some(format!("{:?}", ports::parse(item).ok()?.ports))
}

/// Where a short form is mounted.
fn target(item: &Node) -> Option<String> {
    Some(volumes::parse(item.text()?).ok()?.target)
}
