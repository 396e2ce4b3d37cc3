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
            (Yaml::Scalar(text), Shape::Flag)
                if self.as_docker && (text.is_empty() || super::check::boolean(text) == Some(false)) => {}
            (Yaml::Scalar(text), _) if self.as_docker && text.is_empty() => {}
            (Yaml::List(items), Shape::Words) if self.as_docker && items.is_empty() => {}
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
                        Some(known) if self.as_docker && is_map(&detail) && is_map(known) => attach(known, detail),
                        Some(known) if self.as_docker && is_map(&detail) => *known = detail,
                        Some(known) => *known = self.merged(known.clone(), detail, fields),
                        None => push(base, key, detail),
                    }
                }
            }
            (_, Shape::Pairs) if self.as_docker => variables(base, over),
            (_, Shape::Hosts) => hosts(base, over),
            (_, Shape::Build(_, fields)) => {
                detailed(base, "context");
                let mut over = over;
                detailed(&mut over, "context");
                self.merge(base, over, fields);
            }
            (_, Shape::Detailed(name, fields)) => {
                detailed(base, name);
                let mut over = over;
                detailed(&mut over, name);
                self.merge(base, over, fields);
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
            (_, Shape::List(_) | Shape::Set(_) | Shape::Texts | Shape::EnvFile) => keyed(base, over, |_| None),
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
        single_ports(base);
        let mut over = over;
        single_ports(&mut over);
        let Yaml::List(known) = &mut base.value else { return };
        for item in over.items() {
            let published: Vec<u16> = published(item);
            known.retain(|k| !self::published(k).iter().any(|port| published.contains(port)));
            known.push(item.clone());
        }
    }
}

/// A network of a service, of which Docker's client takes over these only.
fn attach(base: &mut Node, over: Node) {
    let Yaml::Map(entries) = over.value else { return };
    remove_named(base, "aliases");
    for (key, inner) in entries {
        let is_said = inner.text().is_some_and(|text| !text.is_empty());
        match key.text.as_str() {
            "aliases" => push(base, key, inner),
            "ipv4_address" | "ipv6_address" if is_said => {
                remove(base, &key);
                push(base, key, inner);
            }
            _ => {}
        }
    }
}

/// To Docker's client an empty value says nothing where there is one already.
fn variables(base: &mut Node, mut over: Node) {
    pairs(base);
    pairs(&mut over);
    let Yaml::Map(entries) = over.value else { return };
    for (key, inner) in entries {
        let says_nothing = inner.text().is_none_or(str::is_empty);
        match member(base, &key) {
            Some(known) if says_nothing && known.text().is_some_and(|text| !text.is_empty()) => {}
            Some(known) => *known = inner,
            None => push(base, key, inner),
        }
    }
}

/// Hosts of both, whichever way they are written.
fn hosts(base: &mut Node, mut over: Node) {
    listed_hosts(base);
    listed_hosts(&mut over);
    if let (Yaml::List(known), Yaml::List(more)) = (&mut base.value, over.value) {
        known.extend(more);
    }
}

fn listed_hosts(node: &mut Node) {
    let Yaml::Map(entries) = &node.value else { return };
    let mut lines = Vec::new();
    for (key, inner) in entries {
        for address in if inner.items().is_empty() { std::slice::from_ref(inner) } else { inner.items() } {
            let line = format!("{}={}", key.text, address.text().unwrap_or_default());
            lines.push(Node { value: Yaml::Scalar(line), kind: ScalarKind::Text, place: address.place });
        }
    }
    lines.sort_by(|a, b| a.text().cmp(&b.text()));
    node.value = Yaml::List(lines);
}

/// The text becomes a mapping with that one field.
fn detailed(node: &mut Node, field: &str) {
    if let Yaml::Scalar(_) = node.value {
        let key = Key { text: field.to_owned(), is_text: true, place: node.place };
        node.value = Yaml::Map(vec![(key, node.clone())]);
    }
}

/// A range becomes as many ports.
fn single_ports(node: &mut Node) {
    let Yaml::List(items) = &mut node.value else { return };
    let mut single = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        match item.text().and_then(|text| ports::short(text).ok()) {
            Some((_, ports)) if ports.len() > 1 => {
                let suffix = |port: &ports::Short| format!("{:?}", port.protocol).to_lowercase();
                let short = |port: &ports::Short| match port.published {
                    0 => format!("{}/{}", port.target, suffix(port)),
                    published => format!("{published}:{}/{}", port.target, suffix(port)),
                };
                single.extend(ports.iter().map(|port| Node { value: Yaml::Scalar(short(port)), ..item.clone() }));
            }
            _ => single.push(item),
        }
    }
    *items = single;
}

/// A zero where Docker's client takes it for no answer.
fn is_nothing(node: &Node, shape: &Shape) -> bool {
    let Some(text) = node.text() else { return false };
    match shape {
        Shape::Duration | Shape::Pause => nanos::parse(text) == Ok(0),
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
        Yaml::List(more) => match &mut base.value {
            Yaml::List(known) => known.extend(more),
            _ => base.value = Yaml::List(more),
        },
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
    remove_named(node, &key.text);
}

fn remove_named(node: &mut Node, name: &str) {
    if let Yaml::Map(entries) = &mut node.value {
        entries.retain(|(k, _)| k.text != name);
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
