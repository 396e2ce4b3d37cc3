//! A stack's files as one normalised document: every short form written out, as `docker stack config` prints it.

use serde_json::{Map, Number, Value};

use super::{
    check,
    convert::Reader,
    error::ComposeError,
    keys, nanos, ports,
    scalar::ScalarKind,
    schema::{FILE, Field, MOUNT, PORT, ROOT, Shape, ULIMIT},
    service, volumes,
    yaml::{Node, Yaml},
};
use crate::flags::{mount, quantity, words};

pub(super) struct Writer<'a> {
    pub(super) reader: Reader<'a>,
}

impl Writer<'_> {
    pub(super) fn document(&self, root: &Node) -> Result<Value, ComposeError> {
        let mut document = self.object(root, ROOT)?;
        document.remove("name");
        document.entry("services").or_insert_with(|| Value::Object(Map::new()));
        let services = document.get_mut("services").and_then(Value::as_object_mut);
        for (name, service) in services.into_iter().flatten() {
            if let (Some(node), Some(service)) = (self.reader.defined("services", name), service.as_object_mut()) {
                self.environment(name, node, service)?;
            }
        }
        for section in ["networks", "volumes", "secrets", "configs"] {
            let entries = document.get_mut(section).and_then(Value::as_object_mut);
            for (name, entry) in entries.into_iter().flatten() {
                if entry.is_null() {
                    *entry = Value::Object(Map::new());
                }
                if let Some(entry) = entry.as_object_mut() {
                    self.definition(section, name, entry);
                }
            }
        }
        Ok(Value::Object(document))
    }

    /// With the values of the shell's environment and of env files, which then need no naming.
    fn environment(&self, name: &str, node: &Node, service: &mut Map<String, Value>) -> Result<(), ComposeError> {
        let known = service::environment(&self.reader, node, &format!("services.{name}"))?;
        let known: Map<String, Value> =
            known.into_iter().map(|(name, value)| (name, value.map_or(Value::Null, Value::String))).collect();
        if !known.is_empty() {
            let all = service.entry("environment").or_insert_with(|| Value::Object(Map::new()));
            if let Some(all) = all.as_object_mut() {
                all.extend(known);
            }
        }
        Ok(())
    }

    fn definition(&self, section: &str, name: &str, entry: &mut Map<String, Value>) {
        if let Some(Value::Object(cluster)) = entry.get_mut("x-cluster-spec") {
            cluster_volume(cluster);
        }
        let external = entry.get("external").cloned().filter(|external| external.as_bool() != Some(false));
        let Some(external) = external else {
            entry.remove("external");
            // Docker's client keeps the user's own keys of what somebody else made only.
            if ["networks", "volumes"].contains(&section) && self.reader.version != keys::MODERN {
                entry.retain(|key, _| !key.starts_with("x-") || key == "x-cluster-spec");
            }
            if let Some(Value::String(file)) = entry.get_mut("file") {
                *file = self.absolute(file);
            }
            let is_data = ["secrets", "configs"].contains(&section) && self.reader.version != keys::MODERN;
            if is_data && !entry.contains_key("file") && !entry.contains_key("driver") {
                // A folder is no content, but it is what Docker's client says.
                entry.insert("file".into(), self.reader.around.dir.into());
            }
            return;
        };
        entry.insert("external".into(), Value::Bool(true));
        let inner = external.get("name").filter(|name| *name != "").cloned();
        let real = inner.or_else(|| entry.get("name").cloned()).unwrap_or_else(|| name.into());
        entry.insert("name".into(), real);
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { mount::join(self.reader.around.dir, path) }
    }

    fn object(&self, node: &Node, fields: &[Field]) -> Result<Map<String, Value>, ComposeError> {
        let mut object = Map::new();
        for (key, inner) in node.entries() {
            let name = key.text.as_str();
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                if name.starts_with("x-") {
                    object.insert(name.to_owned(), plain(inner));
                }
                continue;
            };
            let value = self.value(inner, &field.shape)?;
            let value = if name == "depends_on" { names_only(value) } else { value };
            // Docker's client reads it and forgets it.
            let is_forgotten = name == "oom_score_adj" && self.reader.version != keys::MODERN;
            let is_empty = name == "build" && inner.text() == Some("");
            if is_forgotten || is_empty {
                continue;
            }
            let value = if name == "discrete_resource_spec" { with_defaults(value) } else { value };
            if says_something(name, &value) {
                object.insert(name.to_owned(), value);
            }
        }
        Ok(object)
    }

    fn value(&self, node: &Node, shape: &Shape) -> Result<Value, ComposeError> {
        if matches!(node.value, Yaml::Null) {
            return Ok(Value::Null);
        }
        let text = node.text();
        let refused = |reason: String| self.reader.source.error(node.place, reason);
        Ok(match (shape, text) {
            (Shape::Text | Shape::TextOrNumber | Shape::TextOrNull | Shape::Word(..), Some(text)) => {
                Value::String(text.into())
            }
            (Shape::Device | Shape::Expose | Shape::WholeOrText, Some(text)) => Value::String(text.into()),
            (Shape::EnvFile, Some(text)) => Value::Array(vec![Value::String(text.into())]),
            (Shape::EnvFile, None) => plain(node),
            (Shape::Ulimit, Some("0")) => Value::Object(Map::new()),
            (Shape::Whole | Shape::Natural | Shape::Ulimit | Shape::Real, Some(text)) => number(text),
            (Shape::Count, Some(text)) => number(text.split_once('.').map_or(text, |(whole, _)| whole)),
            (Shape::Ulimit, _) => Value::Object(self.object(node, ULIMIT)?),
            (Shape::Flag | Shape::External(_), Some(text)) => flag(text),
            (Shape::External(_), None) => plain(node),
            (Shape::Pause, Some(text)) if nanos::parse(text) == Ok(0) => Value::Null,
            (Shape::Duration | Shape::Pause, Some(text)) => {
                Value::String(nanos::parse(text).map_or_else(|_| text.to_owned(), nanos::show))
            }
            // What is ignored stays as it is written.
            (Shape::Bytes, Some(text)) if self.reader.version != keys::MODERN => Value::String(text.into()),
            (Shape::Size | Shape::Bytes, Some(text)) => {
                let bytes = quantity::bytes(text).map_err(refused)?;
                Value::String(if bytes == 0 { String::new() } else { bytes.to_string() })
            }
            (Shape::Texts, Some(text)) => Value::Array(vec![Value::String(text.into())]),
            (Shape::Words, Some(text)) => strings(words::split(text).map_err(refused)?),
            (Shape::HealthTest, Some(text)) => strings(["CMD-SHELL".to_owned(), text.to_owned()]),
            (Shape::Detailed(name, _), Some(text)) => {
                Value::Object(Map::from_iter([((*name).to_owned(), Value::String(text.into()))]))
            }
            (Shape::Build(..), Some(text)) => serde_json::json!({ "context": text }),
            (Shape::List(inner) | Shape::Set(inner), _) => {
                Value::Array(node.items().iter().map(|item| self.value(item, inner)).collect::<Result<_, _>>()?)
            }
            (Shape::Map(inner) | Shape::Section(inner), _) => {
                let entry = |(key, value): &(super::yaml::Key, Node)| Ok((key.text.clone(), self.value(value, inner)?));
                Value::Object(node.entries().iter().map(entry).collect::<Result<_, ComposeError>>()?)
            }
            (Shape::Build(_, fields), _) => {
                let mut build = self.known(node, fields)?;
                build.remove("shm_size");
                Value::Object(build)
            }
            (Shape::Open(fields), _) => Value::Object(self.known(node, fields)?),
            (Shape::Options(_), _) => pairs(node, Value::String(String::new())),
            (Shape::Pairs, _) => pairs(node, Value::Null),
            (Shape::Labels, _) => pairs(node, Value::String(String::new())),
            (Shape::Texts | Shape::Words | Shape::HealthTest, _) => {
                strings(node.items().iter().filter_map(Node::text).map(str::to_owned))
            }
            (Shape::Hosts, _) => hosts(node),
            (Shape::Named(fields) | Shape::Names(fields), _) => self.named(node, fields)?,
            (Shape::Ports, _) => self.ports(node)?,
            (Shape::Volumes, _) => {
                let mounts = node.items().iter().map(|item| self.mount(item));
                Value::Array(mounts.collect::<Result<_, _>>()?)
            }
            (Shape::Files, _) => {
                let file = |item: &Node| match item.text() {
                    Some("") => Ok(serde_json::json!({})),
                    Some(source) => Ok(serde_json::json!({"source": source})),
                    None if self.reader.version == keys::MODERN => Ok(Value::Object(self.object(item, FILE)?)),
                    None => Ok(Value::Object(self.known(item, FILE)?)),
                };
                Value::Array(node.items().iter().map(file).collect::<Result<_, ComposeError>>()?)
            }
            (shape, _) => match shape.fields() {
                Some(fields) => Value::Object(self.object(node, fields)?),
                None => plain(node),
            },
        })
    }

    /// Without what Docker overlooks.
    fn known(&self, node: &Node, fields: &[Field]) -> Result<Map<String, Value>, ComposeError> {
        let mut object = self.object(node, fields)?;
        object.retain(|key, _| fields.iter().any(|field| field.name == key && (field.since <= self.reader.version)));
        Ok(object)
    }

    fn named(&self, node: &Node, fields: &[Field]) -> Result<Value, ComposeError> {
        let mut object = Map::new();
        for item in node.items() {
            object.insert(item.text().unwrap_or_default().into(), Value::Null);
        }
        for (key, inner) in node.entries() {
            let detail = if matches!(inner.value, Yaml::Null) {
                Value::Null
            } else {
                Value::Object(self.object(inner, fields)?)
            };
            object.insert(key.text.clone(), detail);
        }
        Ok(Value::Object(object))
    }

    fn ports(&self, node: &Node) -> Result<Value, ComposeError> {
        let mut all = Vec::new();
        for item in node.items() {
            let Some(text) = item.text() else {
                all.push(Value::Object(self.object(item, PORT)?));
                continue;
            };
            let (_, ports) = ports::short(text).map_err(|reason| self.reader.source.error(item.place, reason))?;
            for port in ports {
                let mut object = Map::new();
                object.insert("mode".into(), "ingress".into());
                for (key, number) in [("target", port.target), ("published", port.published)] {
                    if number != 0 {
                        object.insert(key.into(), number.into());
                    }
                }
                object.insert("protocol".into(), format!("{:?}", port.protocol).to_lowercase().into());
                all.push(Value::Object(object));
            }
        }
        Ok(Value::Array(all))
    }

    fn mount(&self, item: &Node) -> Result<Value, ComposeError> {
        let Some(text) = item.text() else { return self.long_mount(item) };
        let parsed = volumes::parse(text).map_err(|reason| self.reader.source.error(item.place, reason))?;
        let source = match parsed.is_bind {
            true => volumes::host_path(self.reader.around, &parsed.source),
            false => parsed.source,
        };
        let mut object = Map::new();
        object.insert("type".into(), if parsed.is_bind { "bind" } else { "volume" }.into());
        for (key, value) in [("source", source), ("target", parsed.target)] {
            if !value.is_empty() {
                object.insert(key.into(), value.into());
            }
        }
        if parsed.read_only {
            object.insert("read_only".into(), true.into());
        }
        if parsed.no_copy {
            object.insert("volume".into(), serde_json::json!({"nocopy": true}));
        }
        if !parsed.propagation.is_empty() {
            object.insert("bind".into(), serde_json::json!({"propagation": parsed.propagation}));
        }
        Ok(Value::Object(object))
    }

    fn long_mount(&self, item: &Node) -> Result<Value, ComposeError> {
        let mut object = self.object(item, MOUNT)?;
        let is_bind = object.get("type").is_some_and(|kind| kind == "bind");
        if let Some(Value::String(source)) = object.get_mut("source").filter(|_| is_bind) {
            *source = volumes::host_path(self.reader.around, source);
        }
        Ok(Value::Object(object))
    }
}

/// Docker's client shows what a resource says nothing about, too.
fn with_defaults(value: Value) -> Value {
    let Value::Object(mut resource) = value else { return value };
    resource.entry("kind").or_insert_with(|| "".into());
    resource.entry("value").or_insert_with(|| 0.into());
    Value::Object(resource)
}

/// Sizes and segments of a cluster volume, as Docker's client prints them.
fn cluster_volume(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(range)) = spec.get_mut("capacity_range") {
        for (_, size) in range.iter_mut() {
            if let Some(bytes) = size.as_str().and_then(|text| quantity::bytes(text).ok()) {
                *size = bytes.to_string().into();
            }
        }
    }
    let Some(Value::Object(requirements)) = spec.get_mut("accessibility_requirements") else { return };
    for topology in requirements.values_mut().filter_map(Value::as_array_mut).flatten() {
        let Some(segments) = topology.get_mut("segments") else { continue };
        let Some(items) = segments.as_array() else { continue };
        let pairs = items.iter().filter_map(Value::as_str).map(|text| text.split_once('=').unwrap_or((text, "")));
        *segments = Value::Object(pairs.map(|(key, value)| (key.to_owned(), value.into())).collect());
    }
}

/// Whether a value is more than its default, which Docker's client leaves out.
fn says_something(key: &str, value: &Value) -> bool {
    // Of these, the default is not what the zero says.
    const COUNTED: &[&str] = &[
        "replicas",
        "parallelism",
        "init",
        "retries",
        "mode",
        "interval",
        "timeout",
        "start_period",
        "start_interval",
        "stop_grace_period",
        "delay",
        "max_attempts",
        "window",
        "external",
    ];
    const KEPT: &[&str] = &[
        "update_config",
        "rollback_config",
        "limits",
        "reservations",
        "restart_policy",
        "healthcheck",
        "logging",
        "bind",
        "volume",
        "tmpfs",
        "services",
        "external",
        "x-cluster-spec",
        "block_volume",
    ];
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty() || KEPT.contains(&key),
        Value::Bool(flag) => *flag || COUNTED.contains(&key),
        Value::Number(number) => number.as_f64() != Some(0.0) || COUNTED.contains(&key),
    }
}

/// Dependencies without conditions are a list.
fn names_only(value: Value) -> Value {
    match value {
        Value::Object(names) if names.values().all(Value::is_null) => strings(names.into_iter().map(|(name, _)| name)),
        other => other,
    }
}

fn strings(texts: impl IntoIterator<Item = String>) -> Value {
    Value::Array(texts.into_iter().map(Value::String).collect())
}

fn number(text: &str) -> Value {
    let whole = text.parse::<i64>().ok().map(Number::from);
    let any = whole.or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64));
    any.map_or_else(|| Value::String(text.into()), Value::Number)
}

fn flag(text: &str) -> Value {
    check::boolean(text).map_or_else(|| Value::String(text.into()), Value::Bool)
}

/// As it stands, with scalars as YAML reads them.
fn plain(node: &Node) -> Value {
    match &node.value {
        Yaml::Null => Value::Null,
        Yaml::Scalar(text) => match node.kind {
            ScalarKind::Bool => Value::Bool(text == "true"),
            ScalarKind::Whole | ScalarKind::Real => number(text),
            ScalarKind::Text | ScalarKind::Filled => Value::String(text.clone()),
        },
        Yaml::List(items) => Value::Array(items.iter().map(plain).collect()),
        Yaml::Map(entries) => {
            Value::Object(entries.iter().map(|(key, inner)| (key.text.clone(), plain(inner))).collect())
        }
    }
}

fn pairs(node: &Node, none: Value) -> Value {
    let value = |inner: &Node| inner.text().map_or(none.clone(), |text| Value::String(text.into()));
    let listed = node.items().iter().filter_map(Node::text).map(|text| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Value::String(value.into())),
        None => (text.to_owned(), none.clone()),
    });
    let written = node.entries().iter().map(|(key, inner)| (key.text.clone(), value(inner)));
    Value::Object(listed.chain(written).collect())
}

/// Of each host its name and an address; what has only one of the two is nothing.
fn hosts(node: &Node) -> Value {
    let mut mapped: Vec<String> = Vec::new();
    for (key, inner) in node.entries() {
        let addresses = if inner.items().is_empty() { std::slice::from_ref(inner) } else { inner.items() };
        mapped.extend(addresses.iter().filter_map(|a| Some(format!("{}:{}", key.text, a.text()?))));
    }
    mapped.sort();
    let listed = node.items().iter().filter_map(Node::text);
    let listed = listed.filter_map(|text| text.split_once('=').or_else(|| text.split_once(':')));
    let bare = |address: &str| {
        let inside = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        inside.unwrap_or(address).to_owned()
    };
    strings(listed.map(|(host, address)| format!("{host}:{}", bare(address))).chain(mapped))
}
