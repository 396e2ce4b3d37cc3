//! A stack's files as one normalised document: every short form written out, as `docker stack config` prints it.

use serde_json::{Map, Number, Value};

use super::{
    convert::Reader,
    error::ComposeError,
    ports,
    schema::{Field, ROOT, Shape},
    service::{self, at_home, file_mode},
    yaml::{Node, Yaml},
};
use crate::flags::{duration, mount, quantity, words};

pub(super) struct Writer<'a> {
    pub(super) reader: Reader<'a>,
}

impl Writer<'_> {
    pub(super) fn document(&self, root: &Node) -> Result<Value, ComposeError> {
        let mut document = self.object(root, ROOT)?;
        document.remove("name");
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
                    self.definition(name, entry);
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

    fn definition(&self, name: &str, entry: &mut Map<String, Value>) {
        if let Some(external) = entry.get("external").cloned() {
            let inner = external.get("name").and_then(Value::as_str).map(str::to_owned);
            if inner.is_none() && external.as_bool() != Some(true) {
                entry.remove("external");
                return;
            }
            entry.insert("external".into(), Value::Bool(true));
            let real = inner.unwrap_or_else(|| name.to_owned());
            entry.entry("name").or_insert(Value::String(real));
        } else if let Some(Value::String(file)) = entry.get_mut("file") {
            *file = self.absolute(file);
        }
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { mount::join(self.reader.around.dir, path) }
    }

    fn object(&self, node: &Node, fields: &[Field]) -> Result<Map<String, Value>, ComposeError> {
        let mut object = Map::new();
        for (key, inner) in node.entries() {
            let value = match fields.iter().find(|field| field.name == key.text) {
                Some(field) => self.value(inner, &field.shape)?,
                None => plain(inner),
            };
            let value = if key.text == "depends_on" { names_only(value) } else { value };
            let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !is_empty {
                object.insert(key.text.clone(), value);
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
            (Shape::Text, Some(text)) => Value::String(text.into()),
            (Shape::Whole | Shape::Ulimit, Some(text)) => number(text),
            (Shape::Real, Some(text)) => number(text),
            (Shape::Flag | Shape::External, Some(text)) => flag(text),
            (Shape::Duration, Some(text)) => Value::String(duration::show(duration::parse(text).map_err(refused)?)),
            (Shape::Size, Some(text)) => Value::String(quantity::bytes(text).map_err(refused)?.to_string()),
            (Shape::Texts, Some(text)) => Value::Array(vec![Value::String(text.into())]),
            (Shape::Words, Some(text)) => strings(words::split(text).map_err(refused)?),
            (Shape::HealthTest, Some(text)) => strings(["CMD-SHELL".to_owned(), text.to_owned()]),
            (Shape::Detailed(name, _), Some(text)) => {
                Value::Object(Map::from_iter([((*name).to_owned(), Value::String(text.into()))]))
            }
            (Shape::Object(fields) | Shape::Detailed(_, fields), _) => Value::Object(self.object(node, fields)?),
            (Shape::List(inner), _) => {
                Value::Array(node.items().iter().map(|item| self.value(item, inner)).collect::<Result<_, _>>()?)
            }
            (Shape::Map(inner), _) => {
                let entry = |(key, value): &(super::yaml::Key, Node)| Ok((key.text.clone(), self.value(value, inner)?));
                Value::Object(node.entries().iter().map(entry).collect::<Result<_, ComposeError>>()?)
            }
            (Shape::Pairs, _) => pairs(node, Value::Null),
            (Shape::Labels, _) => pairs(node, Value::String(String::new())),
            (Shape::Texts | Shape::Words | Shape::HealthTest, _) => {
                strings(node.items().iter().filter_map(Node::text).map(str::to_owned))
            }
            (Shape::Hosts, _) => hosts(node),
            (Shape::Named(fields), _) => self.named(node, fields)?,
            (Shape::Ports, _) => self.ports(node)?,
            (Shape::Volumes, _) => {
                let mounts = node.items().iter().map(|item| self.mount(item));
                Value::Array(mounts.collect::<Result<_, _>>()?)
            }
            (Shape::Files, _) => Value::Array(node.items().iter().map(file).collect()),
            _ => plain(node),
        })
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
            let parsed = ports::parse(item).map_err(|reason| self.reader.source.error(item.place, reason))?;
            let given = |key: &str| item.text().is_some() || item.get(key).is_some();
            for port in parsed.ports {
                let mut object = Map::new();
                if given("mode") {
                    object.insert("mode".into(), format!("{:?}", port.publish_mode).to_lowercase().into());
                }
                object.insert("target".into(), port.target_port.into());
                if port.published_port != 0 {
                    object.insert("published".into(), port.published_port.into());
                }
                if given("protocol") {
                    object.insert("protocol".into(), format!("{:?}", port.protocol).to_lowercase().into());
                }
                all.push(Value::Object(object));
            }
        }
        Ok(Value::Array(all))
    }

    fn mount(&self, item: &Node) -> Result<Value, ComposeError> {
        let Some(text) = item.text() else { return Ok(self.long_mount(item)) };
        let parsed = mount::short_form(&at_home(self.reader.around, text), self.reader.around.dir);
        let parsed = parsed.map_err(|reason| self.reader.source.error(item.place, reason))?;
        let mut object = Map::new();
        object.insert("type".into(), format!("{:?}", parsed.kind).to_lowercase().into());
        for (key, value) in [("source", parsed.source), ("target", parsed.target)] {
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
        let consistency = text.rsplit(':').next().filter(|o| ["cached", "delegated", "consistent"].contains(o));
        if let Some(consistency) = consistency {
            object.insert("consistency".into(), consistency.into());
        }
        Ok(Value::Object(object))
    }

    fn long_mount(&self, item: &Node) -> Value {
        let mut value = plain(item);
        let is_bind = value.get("type").is_some_and(|kind| kind == "bind");
        if let Some(object) = value.as_object_mut() {
            for key in ["read_only"] {
                if let Some(Value::String(text)) = object.get(key) {
                    let typed = flag(text);
                    object.insert(key.into(), typed);
                }
            }
            if let Some(Value::String(source)) = object.get_mut("source").filter(|_| is_bind) {
                *source = self.absolute(&at_home(self.reader.around, source));
            }
        }
        value
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
    match text.to_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Value::Bool(true),
        "false" | "no" | "off" | "n" => Value::Bool(false),
        _ => Value::String(text.into()),
    }
}

/// As it stands, with scalars as YAML reads them.
fn plain(node: &Node) -> Value {
    match &node.value {
        Yaml::Null => Value::Null,
        Yaml::Scalar(text) => match (text.as_str(), text.parse::<i64>()) {
            ("true", _) => Value::Bool(true),
            ("false", _) => Value::Bool(false),
            (_, Ok(whole)) => whole.into(),
            _ => Value::String(text.clone()),
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

fn hosts(node: &Node) -> Value {
    let mut mapped: Vec<String> = node
        .entries()
        .iter()
        .map(|(key, inner)| format!("{}:{}", key.text, inner.text().unwrap_or_default()))
        .collect();
    mapped.sort();
    strings(node.items().iter().filter_map(Node::text).map(str::to_owned).chain(mapped))
}

fn file(item: &Node) -> Value {
    if let Some(source) = item.text() {
        return serde_json::json!({"source": source});
    }
    let mut object = Map::new();
    for (key, inner) in item.entries() {
        let Some(text) = inner.text() else { continue };
        let value = match key.text.as_str() {
            "mode" => file_mode(text).map_or_else(|_| Value::String(text.into()), Value::from),
            _ => Value::String(text.into()),
        };
        object.insert(key.text.clone(), value);
    }
    Value::Object(object)
}
