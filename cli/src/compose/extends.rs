//! `include:` and `extends:`: what a file takes from others, and a service laid over another one.

use super::{
    Surroundings, check,
    error::{ComposeError, Source},
    interpolate,
    merge::Merger,
    schema,
    yaml::{self, Node, Yaml},
};
use crate::flags::mount;

/// A chain that is longer is a circle.
const LONGEST_CHAIN: usize = 32;

/// Replaces each service that extends another by the two laid over each other.
pub(super) fn resolve(root: &mut Node, source: &mut Source, around: &Surroundings<'_>) -> Result<(), ComposeError> {
    let names: Vec<String> = services(root).iter().map(|(key, _)| key.text.clone()).collect();
    for name in names {
        let Some(service) = find(root, &name).filter(|service| service.get("extends").is_some()) else { continue };
        let resolved = extended(service.clone(), root, source, around, 0)?;
        if let Yaml::Map(sections) = &mut root.value
            && let Some((_, section)) = sections.iter_mut().find(|(key, _)| key.text == "services")
            && let Yaml::Map(entries) = &mut section.value
            && let Some((_, entry)) = entries.iter_mut().find(|(key, _)| key.text == name)
        {
            *entry = resolved;
        }
    }
    Ok(())
}

/// Lays a file over those that it includes.
pub(super) fn include(root: Node, source: &mut Source, around: &Surroundings<'_>) -> Result<Node, ComposeError> {
    include_within(root, source, around, 0)
}

fn include_within(
    root: Node,
    source: &mut Source,
    around: &Surroundings<'_>,
    depth: usize,
) -> Result<Node, ComposeError> {
    let Some(list) = root.get("include").cloned() else { return Ok(root) };
    if depth > LONGEST_CHAIN {
        return Err(source.error(list.place, "this file includes itself, over others"));
    }
    let mut all: Option<Node> = None;
    for item in list.items() {
        let path = item.get("path").unwrap_or(item);
        for file in if path.items().is_empty() { std::slice::from_ref(path) } else { path.items() } {
            let included = open(file.text().unwrap_or_default(), file, source, around)?;
            let included = include_within(included, source, around, depth + 1)?;
            match &mut all {
                Some(all) => Merger { source, as_docker: false }.merge(all, included, schema::ROOT),
                None => all = Some(included),
            }
        }
    }
    let Some(mut all) = all else { return Ok(root) };
    Merger { source, as_docker: false }.merge(&mut all, root, schema::ROOT);
    if let Yaml::Map(sections) = &mut all.value {
        sections.retain(|(key, _)| key.text != "include");
    }
    Ok(all)
}

fn services(root: &Node) -> &[(yaml::Key, Node)] {
    root.get("services").map(Node::entries).unwrap_or_default()
}

fn find<'a>(root: &'a Node, name: &str) -> Option<&'a Node> {
    services(root).iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
}

fn extended(
    mut service: Node,
    root: &Node,
    source: &mut Source,
    around: &Surroundings<'_>,
    depth: usize,
) -> Result<Node, ComposeError> {
    let Some(extends) = service.get("extends").cloned() else { return Ok(service) };
    if depth > LONGEST_CHAIN {
        return Err(source.error(extends.place, "this service extends itself, over others"));
    }
    let name = extends.text().or_else(|| extends.get("service").and_then(Node::text)).unwrap_or_default().to_owned();
    let other = match extends.get("file").and_then(Node::text) {
        Some(file) => Some(open(file, &extends, source, around)?),
        None => None,
    };
    let root = other.as_ref().unwrap_or(root);
    let Some(base) = find(root, &name) else {
        return Err(source.error(extends.place, format!("there is no service {name:?} to extend")));
    };
    let mut base = extended(base.clone(), root, source, around, depth + 1)?;
    if let Yaml::Map(entries) = &mut service.value {
        entries.retain(|(key, _)| key.text != "extends");
    }
    Merger { source, as_docker: false }.merge(&mut base, service, schema::SERVICE);
    Ok(base)
}

fn open(file: &str, at: &Node, source: &mut Source, around: &Surroundings<'_>) -> Result<Node, ComposeError> {
    let path = if file.starts_with('/') { file.to_owned() } else { mount::join(around.dir, file) };
    let text =
        (around.read)(&path).map_err(|reason| source.error(at.place, format!("cannot read {file}: {reason}")))?;
    let number = source.add(file, &text);
    let yaml::Parsed { mut root, cut } = yaml::parse(source, number)?;
    if let Some(error) = cut {
        return Err(error);
    }
    let variables = interpolate::Variables { lookup: around.variable, strict: false };
    interpolate::document(&mut root, source, variables)?;
    let findings = check::check(&root, super::keys::MODERN, false, source).findings;
    match ComposeError::of(&findings) {
        Some(error) => Err(error),
        None => Ok(root),
    }
}
