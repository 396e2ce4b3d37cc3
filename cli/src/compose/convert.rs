//! The sections of a file: which objects a stack has and what they are called.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use orch_model::{
    Annotations, Kind,
    network::{DRIVER_OVERLAY, IpamConfig, NetworkSpec, is_predefined},
    secret::TemplateDriver,
};

use super::{
    Content, NAMESPACE_LABEL, Stack, StackData, StackNetwork, Surroundings, depends,
    error::{ComposeError, Source},
    keys::{self, Version},
    scalar::ScalarKind,
    service,
    yaml::{Key, Node, Yaml},
};
use crate::flags::mount::join;

/// What converters of parts need: where they are, and how to complain.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) version: Version,
    pub(super) around: &'a Surroundings<'a>,
    pub(super) root: &'a Node,
    pub(super) warnings: RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(root: &'a Node, version: Version, source: &'a Source, around: &'a Surroundings<'a>) -> Self {
        Self { source, version, around, root, warnings: RefCell::default() }
    }
}

impl Reader<'_> {
    pub(super) fn error(&self, node: &Node, message: impl Into<String>) -> ComposeError {
        self.source.error(node.place, message)
    }

    pub(super) fn text(&self, node: &Node, path: &str) -> Result<String, ComposeError> {
        node.text().map(str::to_owned).ok_or_else(|| self.error(node, format!("{path} must be a text")))
    }

    pub(super) fn parsed<T>(
        &self,
        node: &Node,
        path: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ComposeError> {
        let text = self.text(node, path)?;
        parse(&text).map_err(|reason| self.error(node, format!("{path}: invalid value {text:?}: {reason}")))
    }

    pub(super) fn boolean(&self, node: &Node, path: &str) -> Result<bool, ComposeError> {
        self.parsed(node, path, |text| match text.to_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err("expected true or false".into()),
        })
    }

    pub(super) fn number(&self, node: &Node, path: &str) -> Result<u64, ComposeError> {
        self.parsed(node, path, |text| text.parse().map_err(|_| "expected a whole number from 0 up".to_owned()))
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&self, node: &Node, path: &str) -> Result<Vec<String>, ComposeError> {
        match &node.value {
            Yaml::Scalar(text) => Ok(vec![text.clone()]),
            Yaml::List(items) => items.iter().map(|item| self.text(item, path)).collect(),
            _ => Err(self.error(node, format!("{path} must be a text or a list of texts"))),
        }
    }

    /// `KEY: value`, or a list of `KEY=value`; a key alone has no value.
    pub(super) fn pairs(&self, node: &Node, path: &str) -> Result<Vec<(String, Option<String>)>, ComposeError> {
        match &node.value {
            Yaml::Map(entries) => {
                let pair = |(key, value): &(Key, Node)| {
                    let value = match value.value {
                        Yaml::Null => None,
                        _ => Some(self.text(value, &format!("{path}.{}", key.text))?),
                    };
                    Ok((key.text.clone(), value))
                };
                entries.iter().map(pair).collect()
            }
            Yaml::List(items) => {
                let pair = |item: &Node| {
                    let text = self.text(item, path)?;
                    Ok(match text.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (text, None),
                    })
                };
                items.iter().map(pair).collect()
            }
            _ => Err(self.error(node, format!("{path} must be a mapping or a list"))),
        }
    }

    pub(super) fn map(&self, node: Option<&Node>, path: &str) -> Result<BTreeMap<String, String>, ComposeError> {
        let pairs = node.map(|node| self.pairs(node, path)).transpose()?.unwrap_or_default();
        Ok(pairs.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect())
    }

    /// The user's labels and the one that says which stack it is.
    pub(super) fn labels(&self, node: Option<&Node>, path: &str) -> Result<BTreeMap<String, String>, ComposeError> {
        let mut labels = self.map(node, path)?;
        labels.insert(NAMESPACE_LABEL.into(), self.around.stack.into());
        Ok(labels)
    }

    pub(super) fn scoped(&self, name: &str) -> String {
        format!("{}_{name}", self.around.stack)
    }

    /// The definition under a top-level section; a null one counts as empty.
    pub(super) fn defined(&self, section: &str, name: &str) -> Option<&Node> {
        let entries = self.root.get(section)?.entries();
        entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    /// What an object of a top-level section is called in the cluster, and whether the file makes it.
    pub(super) fn real_name(&self, section: &str, name: &str) -> Result<(String, bool), ComposeError> {
        let Some(node) = self.defined(section, name) else { return Ok((self.scoped(name), false)) };
        let given = node.get("name").map(|n| self.text(n, &format!("{section}.{name}.name"))).transpose()?;
        let Some(external) = node.get("external") else {
            return Ok((given.unwrap_or_else(|| self.scoped(name)), false));
        };
        let inner =
            external.get("name").map(|n| self.text(n, &format!("{section}.{name}.external.name"))).transpose()?;
        let is_external = matches!(external.value, Yaml::Map(_)) || self.boolean(external, "external")?;
        if !is_external {
            return Ok((given.unwrap_or_else(|| self.scoped(name)), false));
        }
        Ok((inner.or(given).unwrap_or_else(|| name.to_owned()), true))
    }
}
pub(super) fn stack(
    root: &Node,
    version: Version,
    source: &Source,
    around: &Surroundings<'_>,
) -> Result<Stack, ComposeError> {
    let reader = Reader::new(root, version, source, around);
    let mut stack = Stack::default();
    let Some(services) = root.get("services") else {
        return Err(
            source.error(root.place, "there is no `services:` in this file; a stack needs at least one service")
        );
    };
    if services.entries().is_empty() {
        return Err(reader.error(services, "services must be a mapping with at least one service"));
    }
    let mut used = BTreeSet::new();
    let mut ignored = Ignored { version, ..Ignored::default() };
    let wanted: BTreeMap<&str, (&Key, &Node)> = services
        .entries()
        .iter()
        .filter(|(key, node)| is_wanted(&reader, key, node))
        .map(|(key, node)| (key.text.as_str(), (key, node)))
        .collect();
    for (key, node) in services.entries().iter().filter(|(key, _)| wanted.contains_key(key.text.as_str())) {
        ignored.note(node);
        let mut service = service::service(&reader, key, node, &mut used)?;
        let path = format!("services.{}", key.text);
        service.spec.depends_on = depends::of(&reader, node, &path, |name| wanted.contains_key(name))?;
        stack.services.push(service);
    }
    stack.services = depends::ordered(stack.services).map_err(|names| {
        reader.error(services, format!("these services wait for each other by depends_on: {}", names.join(", ")))
    })?;
    stack.warnings = ignored.warnings();
    stack.warnings.append(&mut reader.warnings.borrow_mut());
    for name in &used {
        stack.networks.push(network(&reader, name)?);
    }
    for (section, kind) in [("secrets", Kind::Secret), ("configs", Kind::Config)] {
        for (key, node) in root.get(section).map(Node::entries).unwrap_or_default() {
            stack.data.push(data(&reader, section, kind, key, node)?);
        }
    }
    Ok(stack)
}

/// Not the user's own `x-…`, nor of a profile that is not asked for.
fn is_wanted(reader: &Reader<'_>, key: &Key, service: &Node) -> bool {
    let profiles = service.get("profiles").map(Node::items).unwrap_or_default();
    let asked = (reader.around.variable)("COMPOSE_PROFILES").unwrap_or_default();
    let is_active = |profile: &str| asked.split(',').map(str::trim).any(|asked| asked == profile || asked == "*");
    let has_active = profiles.iter().filter_map(Node::text).any(is_active);
    !key.text.starts_with("x-") && (profiles.is_empty() || has_active)
}

/// Options without meaning in a cluster, collected over all services.
#[derive(Default)]
struct Ignored {
    version: Version,
    unsupported: BTreeSet<&'static str>,
    deprecated: BTreeSet<(&'static str, &'static str)>,
}

impl Ignored {
    fn note(&mut self, service: &Node) {
        for (key, _) in service.entries() {
            if self.version != keys::MODERN || !keys::SUPPORTED_WITHOUT_VERSION.contains(&key.text.as_str()) {
                self.unsupported.extend(keys::UNSUPPORTED.iter().find(|known| **known == key.text));
            }
            self.deprecated.extend(keys::DEPRECATED.iter().find(|known| known.0 == key.text));
        }
    }

    fn warnings(self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.unsupported.is_empty() {
            let names: Vec<_> = self.unsupported.into_iter().collect();
            warnings.push(format!("Ignoring unsupported options: {}\n", names.join(", ")));
        }
        if !self.deprecated.is_empty() {
            let lines: String = self.deprecated.iter().map(|(name, why)| format!("{name}: {why}\n\n")).collect();
            warnings
                .push(format!("Ignoring deprecated options:\n\n{}", lines.trim_end_matches('\n').to_owned() + "\n"));
        }
        warnings
    }
}

fn network(reader: &Reader<'_>, name: &str) -> Result<StackNetwork, ComposeError> {
    let path = format!("networks.{name}");
    let (real, external) = reader.real_name("networks", name)?;
    let empty = Node { value: Yaml::Null, kind: ScalarKind::Text, place: reader.root.place };
    let node = reader.defined("networks", name).unwrap_or(&empty);
    if !external && is_predefined(&real) {
        let what = format!("{path}: every node has the network {real} already: write `external: true` to use it");
        return Err(reader.error(node, what));
    }
    let driver = node.get("driver").map(|n| reader.text(n, &path)).transpose()?;
    let driver = driver.filter(|d| d != "default").unwrap_or_else(|| DRIVER_OVERLAY.into());
    let flag = |key: &str| node.get(key).map(|n| reader.boolean(n, &format!("{path}.{key}"))).transpose();
    Ok(StackNetwork {
        external,
        spec: NetworkSpec {
            annotations: Annotations {
                name: real,
                labels: reader.labels(node.get("labels"), &format!("{path}.labels"))?,
            },
            driver,
            driver_options: reader.map(node.get("driver_opts"), &format!("{path}.driver_opts"))?,
            ipam: ipam(reader, node.get("ipam"), &path)?,
            internal: flag("internal")?.unwrap_or(false),
            attachable: flag("attachable")?.unwrap_or(false),
            ingress: false,
            ipv6: flag("enable_ipv6")?.unwrap_or(false),
        },
    })
}

fn ipam(reader: &Reader<'_>, node: Option<&Node>, path: &str) -> Result<Vec<IpamConfig>, ComposeError> {
    let Some(node) = node else { return Ok(Vec::new()) };
    let path = format!("{path}.ipam");
    let mut configs = Vec::new();
    for item in node.get("config").map(Node::items).unwrap_or_default() {
        let Some(subnet) = item.get("subnet") else { continue };
        let cidr = |text: &str| text.parse().map_err(|_| "expected ADDRESS/BITS, such as 10.5.0.0/24".to_owned());
        let address = |text: &str| text.parse().map_err(|_| "expected an address".to_owned());
        let mut auxiliary = BTreeMap::new();
        for (name, node) in item.get("aux_addresses").map(Node::entries).unwrap_or_default() {
            auxiliary.insert(name.text.clone(), reader.parsed(node, &format!("{path}.aux_addresses"), address)?);
        }
        configs.push(IpamConfig {
            subnet: reader.parsed(subnet, &format!("{path}.subnet"), cidr)?,
            range: item.get("ip_range").map(|n| reader.parsed(n, &path, cidr)).transpose()?,
            gateway: item.get("gateway").map(|n| reader.parsed(n, &path, address)).transpose()?,
            aux: auxiliary,
        });
    }
    Ok(configs)
}

fn data(reader: &Reader<'_>, section: &str, kind: Kind, key: &Key, node: &Node) -> Result<StackData, ComposeError> {
    let (name, external) = reader.real_name(section, &key.text)?;
    let path = format!("{section}.{}", key.text);
    let labels = reader.labels(node.get("labels"), &path)?;
    let text = |key: &str| node.get(key).map(|n| reader.text(n, &format!("{path}.{key}"))).transpose();
    let absolute = |file: String| if file.starts_with('/') { file } else { join(reader.around.dir, &file) };
    let content = if external {
        Content::External
    } else if let Some(file) = text("file")? {
        Content::File(absolute(file))
    } else if let Some(content) = text("content")? {
        Content::Text(content)
    } else if let Some(variable) = text("environment")? {
        let value = (reader.around.variable)(&variable);
        Content::Text(value.ok_or_else(|| {
            reader.error(node, format!("{path}: the variable {variable} is not set, so there is no content"))
        })?)
    } else {
        let message = format!("{path} has no content: write `file: PATH`, or `external: true` when it exists already");
        return Err(reader.source.error(key.place, message));
    };
    let template = |name: &str| match name {
        "golang" => Ok(TemplateDriver::Golang),
        _ => Err("expected golang".to_owned()),
    };
    let driver = node.get("template_driver").filter(|_| content != Content::External);
    let template = driver.map(|n| reader.parsed(n, &format!("{path}.template_driver"), template)).transpose()?;
    Ok(StackData { kind, annotations: Annotations { name, labels }, content, template })
}
