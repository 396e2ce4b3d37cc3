//! Whether a file looks as the table says.
//!
//! Every mistake is collected, so that one attempt shows them all, each in the words of Docker's client. What only the
//! Compose specification allows is odd in a file of version 3: refused when the caller is strict, else warned of.

use super::{
    error::{ComposeError, Finding, Place, Source},
    keys::{MODERN, Version},
    nanos, ports,
    scalar::ScalarKind,
    schema::{EXTERNAL, FILE, Field, MOUNT, PORT, ROOT, Shape, ULIMIT},
    volumes,
    yaml::{Key, Node, Yaml},
};
use crate::flags::{quantity, words};

/// What is wrong with a file, and what is only odd, each in the file's order.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) findings: Vec<Finding>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn check(root: &Node, version: Version, strict: bool, source: &Source) -> Checked {
    let mut checker = Checker { version, strict, source, checked: Checked::default() };
    checker.names(root, "");
    checker.object(root, "", ROOT, Rest::Own(4));
    checker.externals(root);
    checker.drivers(root);
    checker.checked
}

/// Sections whose objects may be of others' making.
const EXTERNALS: [(&str, &str); 4] =
    [("networks", "network"), ("volumes", "volume"), ("secrets", "secret"), ("configs", "config")];

/// What an object may have beside its fields.
#[derive(Clone, Copy)]
enum Rest {
    /// `x-` keys from this version on.
    Own(Version),
    Anything,
}

struct Checker<'a> {
    version: Version,
    strict: bool,
    source: &'a Source,
    checked: Checked,
}

impl Checker<'_> {
    fn wrong(&mut self, place: Place, path: &str, what: &str, help: Option<String>) {
        if self.is_full() {
            self.checked.findings.push(Finding::more());
            return;
        }
        let finding = self.source.finding(place, format!("{} {what}", shown(path)), help);
        self.checked.findings.push(finding);
    }

    /// More would not be shown, so that they need not be found out.
    fn is_full(&self) -> bool {
        self.checked.findings.len() >= ComposeError::MOST
    }

    /// Not of version 3, but of the Compose specification.
    fn odd(&mut self, place: Place, path: &str, what: &str) {
        if self.version == MODERN {
        } else if self.strict {
            self.wrong(place, path, what, None);
        } else {
            let warning = format!("{} {what} in version 3 of the format: Docker refuses it", shown(path));
            self.checked.warnings.push(warning);
        }
    }

    fn value(&mut self, node: &Node, path: &str, shape: &Shape) {
        match &node.value {
            Yaml::Null => {
                if !matches!(shape, Shape::Anything | Shape::TextOrNull | Shape::Maybe(..)) {
                    self.odd(node.place, path, &must_be(shape));
                }
            }
            Yaml::Scalar(text) => self.scalar(node, text, path, shape),
            Yaml::List(items) => self.list(node, items, path, shape),
            Yaml::Map(entries) => self.map(node, entries, path, shape),
        }
    }

    fn scalar(&mut self, node: &Node, text: &str, path: &str, shape: &Shape) {
        let outcome = match shape {
            Shape::Anything => Fit::Right,
            Shape::Bytes | Shape::Expose if node.kind != ScalarKind::Bool => Fit::Right,
            Shape::WholeOrText
                if matches!(node.kind, ScalarKind::Whole | ScalarKind::Real) && text.parse::<i64>().is_ok() =>
            {
                Fit::Right
            }
            Shape::Whole
            | Shape::Natural
            | Shape::Count
            | Shape::Ulimit
            | Shape::Real
            | Shape::Flag
            | Shape::External(_) => self.typed(node, text, path, shape),
            Shape::Ports => Fit::Wrong,
            Shape::TextOrNumber => match node.kind {
                ScalarKind::Whole | ScalarKind::Real => Fit::Odd,
                kind => text_fit(kind),
            },
            _ if takes_text(shape) => text_fit(node.kind),
            _ => Fit::Wrong,
        };
        match outcome {
            Fit::Right => self.format(node, text, path, shape),
            Fit::Odd => self.odd(node.place, path, &must_be(shape)),
            // A number where a text is meant can mean one thing only.
            Fit::Wrong if self.version == MODERN && takes_text(shape) => {}
            Fit::Wrong => self.wrong(node.place, path, &must_be(shape), None),
        }
    }

    /// Numbers and booleans; a text that a variable gave counts as what it says.
    fn typed(&mut self, node: &Node, text: &str, path: &str, shape: &Shape) -> Fit {
        let is_whole = text.parse::<i64>().is_ok();
        let is_flag = boolean(text).is_some();
        let (fits, written) = match shape {
            Shape::Flag | Shape::External(_) => (is_flag, node.kind == ScalarKind::Bool),
            Shape::Real => (text.parse::<f64>().is_ok(), matches!(node.kind, ScalarKind::Whole | ScalarKind::Real)),
            Shape::Count if node.kind == ScalarKind::Real => (true, true),
            _ => (is_whole, matches!(node.kind, ScalarKind::Whole | ScalarKind::Real) && is_whole),
        };
        match (written, fits, node.kind) {
            (true, ..) => Fit::Right,
            (_, true, ScalarKind::Filled) if is_cast(path) => Fit::Right,
            (_, false, ScalarKind::Filled) if is_cast(path) => {
                let reason = match shape {
                    Shape::Flag | Shape::External(_) => format!("invalid boolean: {text}"),
                    Shape::Real => format!("strconv.ParseFloat: parsing {text:?}: invalid syntax"),
                    _ => format!("strconv.Atoi: parsing {text:?}: invalid syntax"),
                };
                let path = path.split('.').map(|part| if part.parse::<usize>().is_ok() { "[]" } else { part });
                let path = format!("error while interpolating {}:", path.collect::<Vec<_>>().join("."));
                self.wrong(node.place, &path, &format!("failed to cast to expected type: {reason}"), None);
                Fit::Right
            }
            (_, true, ScalarKind::Text | ScalarKind::Filled) => Fit::Odd,
            _ => Fit::Wrong,
        }
    }

    /// What a value of the right type must look like.
    fn format(&mut self, node: &Node, text: &str, path: &str, shape: &Shape) {
        let place = node.place;
        match shape {
            Shape::Duration | Shape::Pause => {
                let help = match nanos::parse(text) {
                    Ok(_) => return,
                    Err(nanos::Unreadable::Form) => "write 10s, 1m30s or 500ms (units ns, us, ms, s, m, h)",
                    Err(nanos::Unreadable::TooLong) => "no duration is longer than 292 years",
                };
                let older = if self.version < 4 { format!(": {}", nanos::complaint(text)) } else { String::new() };
                self.wrong(place, path, &format!("Does not match format 'duration'{older}"), Some(help.into()));
            }
            Shape::Ulimit if node.kind == ScalarKind::Real => {
                self.odd(place, path, "must be a integer: invalid type float64 for ulimits");
            }
            Shape::Size => {
                if let Err(reason) = quantity::bytes(text) {
                    self.wrong(place, path, &reason, None);
                }
            }
            Shape::Bytes if self.version != MODERN && matches!(node.kind, ScalarKind::Whole | ScalarKind::Real) => {
                let kind = if node.kind == ScalarKind::Whole { "int" } else { "float64" };
                let key = path.rsplit('.').next().unwrap_or_default();
                let in_docker =
                    format!("'{key}' expected type 'string', got unconvertible type '{kind}', value: '{text}'");
                self.odd(place, path, &format!("must be a string: {in_docker}"));
            }
            Shape::Words => {
                if let Err(reason) = words::split(text) {
                    self.wrong(place, path, &reason, None);
                }
            }
            Shape::Natural | Shape::Count if text.starts_with('-') => {
                let in_docker = format!("cannot parse '{}', {text} overflows uint", field_of_docker(path));
                self.wrong(place, path, &format!("Must be greater than or equal to 0: {in_docker}"), None);
            }
            Shape::Word(since, words) if self.version >= *since && !words.contains(&text) => {
                let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                self.wrong(place, path, &format!("must be one of the following: {}", words.join(", ")), None);
            }
            _ => {}
        }
    }

    fn list(&mut self, node: &Node, items: &[Node], path: &str, shape: &Shape) {
        let each = |checker: &mut Self, shape: &Shape| {
            for (at, item) in items.iter().enumerate() {
                checker.value(item, &join(path, &at.to_string()), shape);
            }
        };
        match shape {
            Shape::Anything => {}
            Shape::Words | Shape::HealthTest => each(self, &Shape::Text),
            Shape::List(inner) => each(self, inner),
            Shape::Set(inner) => {
                each(self, inner);
                self.unique(items, path);
            }
            Shape::Texts | Shape::Pairs | Shape::Labels | Shape::Hosts | Shape::Names(_) | Shape::Named(_) => {
                each(self, &Shape::Text);
                self.unique(items, path);
            }
            Shape::EnvFile => {
                for (at, item) in items.iter().enumerate() {
                    let shape = if item.items().is_empty() { &Shape::EnvFile } else { &Shape::Text };
                    self.value(item, &join(path, &at.to_string()), shape);
                }
                self.unique(items, path);
            }
            Shape::Ports => {
                for (at, item) in items.iter().enumerate() {
                    self.port(item, &join(path, &at.to_string()));
                }
                self.unique(items, path);
            }
            Shape::Volumes => {
                self.details(items, path, MOUNT, true);
                if self.version < 2 {
                    self.unique(items, path);
                }
            }
            Shape::Files => self.details(items, path, FILE, false),
            _ => self.wrong(node.place, path, &must_be(shape), None),
        }
    }

    fn map(&mut self, node: &Node, entries: &[(Key, Node)], path: &str, shape: &Shape) {
        match shape {
            Shape::Anything => {}
            Shape::Pairs | Shape::Labels | Shape::Hosts => self.pairs(entries, path, Options::Nothing),
            Shape::Options(true) => self.pairs(entries, path, Options::Nothing),
            Shape::Options(false) => self.pairs(entries, path, Options::Something),
            Shape::Section(inner) => self.section(entries, path, inner),
            Shape::Map(inner) => {
                for (key, value) in entries {
                    if !self.is_own(key) {
                        self.value(value, &join(path, &key.text), inner);
                    }
                }
            }
            Shape::Names(fields) => {
                self.odd(node.place, path, "must be a list");
                for (key, value) in entries {
                    self.value(value, &join(path, &key.text), &Shape::Maybe(MODERN, fields));
                }
            }
            Shape::Named(fields) => self.section(entries, path, &Shape::Maybe(MODERN, fields)),
            Shape::Ulimit => {
                if !has_any(node, ULIMIT, self.version) {
                    self.odd(node.place, path, "must be a integer");
                }
                self.object(node, path, ULIMIT, Rest::Own(MODERN));
                for needed in ["hard", "soft"] {
                    if node.get(needed).is_none() {
                        self.odd(node.place, path, &format!("{needed} is required"));
                    }
                }
            }
            Shape::External(open) => {
                self.object(node, path, EXTERNAL, if *open { Rest::Anything } else { Rest::Own(MODERN) });
            }
            Shape::EnvFile | Shape::Device => self.odd(node.place, path, &must_be(shape)),
            Shape::Object(fields) => self.object(node, path, fields, Rest::Own(MODERN)),
            Shape::Detailed(_, fields) => self.object(node, path, fields, Rest::Own(MODERN)),
            Shape::Maybe(own, fields) | Shape::Owned(own, fields) => self.object(node, path, fields, Rest::Own(*own)),
            Shape::Open(fields) => self.object(node, path, fields, Rest::Anything),
            Shape::Build(open, fields) => {
                let is_open = self.version >= *open;
                let rest = if is_open { Rest::Anything } else { Rest::Own(MODERN) };
                if !is_open && !entries.is_empty() && !has_any(node, fields, self.version) {
                    self.odd(node.place, path, "must be a string");
                }
                self.object(node, path, fields, rest);
            }
            _ => self.wrong(node.place, path, &must_be(shape), None),
        }
    }

    fn pairs(&mut self, entries: &[(Key, Node)], path: &str, least: Options) {
        for (key, value) in entries {
            if key.text.is_empty() {
                self.odd(key.place, path, "Additional property  is not allowed");
            }
            let path = join(path, &key.text);
            let what = match least {
                Options::Nothing => "must be a string, number or null",
                Options::Something => "must be a string or number",
            };
            match (&value.value, value.kind) {
                (Yaml::Scalar(_), ScalarKind::Bool) => self.odd(value.place, &path, what),
                (Yaml::Scalar(_), _) => {}
                (Yaml::Null, _) if matches!(least, Options::Nothing) => {}
                (Yaml::Null, _) => self.odd(value.place, &path, what),
                // More than one address of a host.
                (Yaml::List(_), _) if path.contains(".extra_hosts.") => self.odd(value.place, &path, what),
                _ => self.wrong(value.place, &path, what, None),
            }
        }
    }

    fn section(&mut self, entries: &[(Key, Node)], path: &str, inner: &Shape) {
        for (key, value) in entries {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if key.text.is_empty() || !key.text.chars().all(is_name) {
                let help = "a name has letters, digits, `.`, `_` and `-` only";
                let what = format!("Additional property {} is not allowed", key.text);
                self.wrong(key.place, path, &what, Some(help.into()));
            } else if !self.is_own(key) {
                self.value(value, &join(path, &key.text), inner);
            }
        }
    }

    /// Docker takes `x-` names for any others among services and the like; here they are the user's own.
    fn is_own(&self, key: &Key) -> bool {
        key.text.starts_with("x-") && !self.strict
    }

    /// That every name is a text, before anything else.
    fn names(&mut self, node: &Node, path: &str) {
        if self.version == MODERN {
            return;
        }
        for (key, inner) in node.entries() {
            if !key.is_text {
                let in_docker = "json: unsupported type: map[interface {}]interface {}";
                self.odd(key.place, path, &format!("must have names that are texts, not {}: {in_docker}", key.text));
            }
            self.names(inner, &join(path, &key.text));
        }
        for (at, item) in node.items().iter().enumerate() {
            self.names(item, &join(path, &at.to_string()));
        }
    }

    fn port(&mut self, item: &Node, path: &str) {
        match &item.value {
            Yaml::Map(_) if self.version < 2 => self.odd(item.place, path, "must be a string or number"),
            Yaml::Map(_) => self.object(item, path, PORT, Rest::Own(MODERN)),
            Yaml::Scalar(text) if item.kind != ScalarKind::Bool => {
                if item.kind == ScalarKind::Real {
                    self.odd(item.place, path, "must be a integer or string: invalid type float64 for port");
                }
                if let Err(reason) = ports::short(text) {
                    self.wrong(item.place, path, "Does not match format 'ports'", Some(reason));
                }
            }
            _ if self.version < 2 => self.wrong(item.place, path, "must be a string or number", None),
            _ => self.wrong(item.place, path, "must be a number", None),
        }
    }

    /// A list of texts and of mappings.
    fn details(&mut self, items: &[Node], path: &str, fields: &'static [Field], is_mount: bool) {
        for (at, item) in items.iter().enumerate() {
            let path = join(path, &at.to_string());
            if !matches!(item.value, Yaml::Map(_)) {
                self.value(item, &path, &Shape::Text);
                if let (true, Some(Err(reason))) = (is_mount, item.text().map(volumes::parse)) {
                    self.wrong(item.place, &path, &reason, None);
                }
                continue;
            }
            if is_mount && self.version < 2 {
                self.odd(item.place, &path, "must be a string");
            }
            self.object(item, &path, fields, if is_mount { Rest::Own(MODERN) } else { Rest::Anything });
            if is_mount && item.get("type").is_none() {
                self.wrong(item.place, &path, "type is required", Some("write `type: volume`, bind or tmpfs".into()));
            }
            let text = |key: &str| item.get(key).and_then(Node::text).unwrap_or_default();
            if is_mount && text("type") == "bind" && text("source").is_empty() {
                let what = "invalid mount config for type \"bind\": field Source must not be empty";
                self.wrong(item.place, &format!("{path}:"), what, None);
            }
        }
    }

    fn object(&mut self, node: &Node, path: &str, fields: &'static [Field], rest: Rest) {
        if !matches!(node.value, Yaml::Map(_)) {
            self.wrong(node.place, path, "must be a mapping", None);
            return;
        }
        let version = self.version;
        for (key, inner) in node.entries() {
            let name = &key.text;
            let mut allowed = format!("Additional property {name} is not allowed");
            if FORBIDDEN.contains(&name.as_str()) {
                allowed.push_str(": Configuration contains forbidden properties");
            }
            match (fields.iter().find(|field| field.name == name), rest) {
                (Some(field), _) if field.since <= version => {
                    self.value(inner, &join(path, name), &field.shape);
                }
                (Some(field), Rest::Anything) => {
                    if version == MODERN {
                        self.value(inner, &join(path, name), &field.shape);
                    }
                }
                (_, Rest::Anything) => {}
                (None, Rest::Own(since)) if name.starts_with("x-") => {
                    if since > version {
                        self.odd(key.place, path, &allowed);
                    }
                }
                (Some(field), Rest::Own(_)) if field.since == MODERN => {
                    self.odd(key.place, path, &allowed);
                    self.value(inner, &join(path, name), &field.shape);
                }
                (Some(field @ Field { since, .. }), _) => {
                    let help = format!("{name} exists from version 3.{since} on: write version: \"3.{since}\"");
                    self.wrong(key.place, path, &allowed, Some(help));
                    // Docker's client fills in variables first, and complains of those first.
                    if is_filled(inner) {
                        self.value(inner, &join(path, name), &field.shape);
                    }
                }
                (None, _) => {
                    let near = if self.is_full() { None } else { nearest(name, fields) };
                    let help = near.map(|near| format!("did you mean {near}?"));
                    self.wrong(key.place, path, &allowed, help.or_else(|| choices(fields, version)));
                }
            }
        }
    }

    /// A secret is kept by a driver or brought by the file.
    fn drivers(&mut self, root: &Node) {
        for (key, node) in root.get("secrets").map(Node::entries).unwrap_or_default() {
            if let (Some(driver), Some(_)) = (node.get("driver"), node.get("file")) {
                let what = "secret.driver and secret.file conflict; only use secret.driver";
                self.wrong(driver.place, &format!("secret {}:", key.text), what, None);
            }
        }
    }

    /// What somebody else makes cannot be described here as well.
    fn externals(&mut self, root: &Node) {
        for (section, kind) in EXTERNALS {
            for (key, node) in root.get(section).map(Node::entries).unwrap_or_default() {
                let Some(external) = node.get("external").filter(|e| e.text() != Some("false")) else { continue };
                let name = &key.text;
                if let (Some(_), Some(_)) = (external.get("name"), node.get("name")) {
                    let what = format!("{kind}.external.name and {kind}.name conflict; only use {kind}.name");
                    self.wrong(external.place, &format!("{kind} {name}:"), &what, None);
                }
                for other in ["driver", "driver_opts", "labels"] {
                    if kind == "volume" && node.get(other).is_some() {
                        let what = format!("\"external\" and {other:?} specified for volume {name:?}");
                        self.wrong(external.place, "conflicting parameters", &what, None);
                    }
                }
                if external.get("name").is_some() {
                    let what = format!("{kind}.external.name is deprecated in favor of {kind}.name");
                    self.checked.warnings.push(format!("{kind} {name}: {what}"));
                }
            }
        }
    }

    fn unique(&mut self, items: &[Node], path: &str) {
        // The Compose specification says so, too, but nobody minds.
        if self.version == MODERN {
            return;
        }
        let written: Vec<String> = items.iter().map(fingerprint).collect();
        let mut seen = std::collections::HashMap::new();
        for (at, text) in written.iter().enumerate() {
            if let Some(first) = seen.insert(text, at)
                && let Some(item) = items.get(at)
            {
                self.wrong(item.place, path, &format!("array items[{first},{at}] must be unique"), None);
                return;
            }
        }
    }
}

/// Of older versions of the format, which Docker's client refuses before it looks at anything else.
const FORBIDDEN: &[&str] =
    &["extends", "volume_driver", "volumes_from", "cpu_quota", "cpu_shares", "cpuset", "mem_limit", "memswap_limit"];

/// Whether a variable was put in anywhere.
fn is_filled(node: &Node) -> bool {
    match &node.value {
        Yaml::Null => false,
        Yaml::Scalar(_) => node.kind == ScalarKind::Filled,
        Yaml::List(items) => items.iter().any(is_filled),
        Yaml::Map(entries) => entries.iter().any(|(_, value)| is_filled(value)),
    }
}

fn has_any(node: &Node, fields: &[Field], version: Version) -> bool {
    let knows = |key: &Key| fields.iter().any(|field| field.name == key.text && field.since <= version);
    node.entries().is_empty() || node.entries().iter().any(|(key, _)| knows(key))
}

/// The place in Docker's own words: `services.a.deploy.replicas` is `Deploy.Replicas`.
fn field_of_docker(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('.').skip(2) {
        if part.parse::<usize>().is_ok() {
            out.push_str(&format!("[{part}]"));
            continue;
        }
        let mut letters = part.chars();
        let first = letters.next().unwrap_or_default();
        let named = match part {
            "healthcheck" => "HealthCheck".to_owned(),
            part if part.contains('_') => part.to_owned(),
            _ => first.to_uppercase().chain(letters).collect(),
        };
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(&named);
    }
    out
}

/// Whether a value may be left out.
#[derive(Clone, Copy)]
enum Options {
    Nothing,
    Something,
}

enum Fit {
    Right,
    Odd,
    Wrong,
}

fn text_fit(kind: ScalarKind) -> Fit {
    if matches!(kind, ScalarKind::Text | ScalarKind::Filled) { Fit::Right } else { Fit::Wrong }
}

fn takes_text(shape: &Shape) -> bool {
    matches!(
        shape,
        Shape::Text
            | Shape::TextOrNumber
            | Shape::TextOrNull
            | Shape::Duration
            | Shape::Pause
            | Shape::Size
            | Shape::Word(..)
            | Shape::WholeOrText
            | Shape::Texts
            | Shape::Words
            | Shape::HealthTest
            | Shape::EnvFile
            | Shape::Device
            | Shape::Build(..)
            | Shape::Detailed(..)
    )
}

/// Docker's client makes numbers and booleans of the texts that variables gave, but not everywhere.
fn is_cast(path: &str) -> bool {
    let key = path.rsplit('.').next().unwrap_or_default();
    !["init", "pids", "size", "value"].contains(&key)
}

fn must_be(shape: &Shape) -> String {
    let what = match shape {
        Shape::Whole | Shape::Natural | Shape::Ulimit => "a integer",
        Shape::Real | Shape::Count => "a number",
        Shape::Flag => "a boolean",
        Shape::External(_) => "a boolean or mapping",
        Shape::Bytes => "a number or string",
        Shape::Expose => "a string or number",
        Shape::WholeOrText => "a integer or string",
        Shape::TextOrNull => "a string or null",
        Shape::List(_) | Shape::Set(_) | Shape::Names(_) | Shape::Named(_) => "a list",
        Shape::Ports | Shape::Volumes | Shape::Files => "a list",
        Shape::Pairs | Shape::Labels | Shape::Hosts | Shape::Options(_) => "a mapping",
        Shape::Section(_) | Shape::Map(_) | Shape::Object(_) | Shape::Open(_) | Shape::Owned(..) => "a mapping",
        Shape::Maybe(..) => "a mapping or null",
        _ => "a string",
    };
    format!("must be {what}")
}

/// The same for equal values only.
fn fingerprint(node: &Node) -> String {
    match &node.value {
        Yaml::Null => "~".into(),
        Yaml::Scalar(text) if matches!(node.kind, ScalarKind::Text | ScalarKind::Filled) => format!("{text:?}"),
        Yaml::Scalar(text) => text.clone(),
        Yaml::List(items) => format!("[{}]", items.iter().map(fingerprint).collect::<Vec<_>>().join(",")),
        Yaml::Map(entries) => {
            let mut pairs: Vec<_> =
                entries.iter().map(|(key, value)| format!("{:?}:{}", key.text, fingerprint(value))).collect();
            pairs.sort();
            format!("{{{}}}", pairs.join(","))
        }
    }
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "(root)" } else { path }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What may stand there, when that is little enough to be read.
fn choices(fields: &[Field], version: Version) -> Option<String> {
    const MOST: usize = 12;
    let names: Vec<&str> = fields.iter().filter(|field| field.since <= version).map(|field| field.name).collect();
    (names.len() <= MOST).then(|| format!("allowed here: {}", names.join(", ")))
}

/// The known key that a mistyped one is closest to.
fn nearest(name: &str, fields: &[Field]) -> Option<&'static str> {
    const LONGEST: usize = 40;
    if name.len() > LONGEST {
        return None;
    }
    let close = fields.iter().map(|field| (distance(name, field.name), field.name)).min()?;
    (close.0 <= name.len().max(3) / 3).then_some(close.1)
}

/// How many letters must be added, removed or replaced.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
