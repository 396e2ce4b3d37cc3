//! `include:` and `extends:`: what a file takes from others, and a service laid over another one.

use std::collections::BTreeMap;

use super::{
    Surroundings, check,
    error::{ComposeError, Source},
    interpolate,
    merge::Merger,
    schema,
    yaml::{self, Node, Yaml},
};
use crate::flags::{dotenv, mount};

/// A chain that is longer is a circle.
const LONGEST_CHAIN: usize = 32;

/// How other files are read, and what there is to say of them.
pub(super) struct Others<'a> {
    pub(super) source: &'a mut Source,
    /// Variables are left as they are written.
    pub(super) is_raw: bool,
    pub(super) warnings: &'a mut Vec<String>,
}

/// Replaces each service that extends another by the two laid over each other.
pub(super) fn resolve(root: &mut Node, others: &mut Others<'_>, around: &Surroundings<'_>) -> Result<(), ComposeError> {
    let names: Vec<String> = services(root).iter().map(|(key, _)| key.text.clone()).collect();
    for name in names {
        let Some(service) = find(root, &name).filter(|service| service.get("extends").is_some()) else { continue };
        let resolved = extended(service.clone(), root, others, around, 0)?;
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
pub(super) fn include(root: Node, others: &mut Others<'_>, around: &Surroundings<'_>) -> Result<Node, ComposeError> {
    include_within(root, others, around, 0)
}

fn include_within(
    root: Node,
    others: &mut Others<'_>,
    around: &Surroundings<'_>,
    depth: usize,
) -> Result<Node, ComposeError> {
    let Some(list) = root.get("include").cloned() else { return Ok(root) };
    if depth > LONGEST_CHAIN {
        return Err(others.source.error(list.place, "this file includes itself, over others"));
    }
    let mut all: Option<Node> = None;
    for item in list.items() {
        let defaults = defaults(item, others.source, around)?;
        let variable = |name: &str| (around.variable)(name).or_else(|| defaults.get(name).cloned());
        let around = &Surroundings { variable: &variable, ..*around };
        for file in one_or_more(item.get("path").unwrap_or(item)) {
            let included = open(file.text().unwrap_or_default(), file, others, around)?;
            let included = include_within(included, others, around, depth + 1)?;
            match &mut all {
                Some(all) => Merger { source: others.source, as_docker: false }.merge(all, included, schema::ROOT),
                None => all = Some(included),
            }
        }
    }
    let Some(mut all) = all else { return Ok(root) };
    Merger { source: others.source, as_docker: false }.merge(&mut all, root, schema::ROOT);
    if let Yaml::Map(sections) = &mut all.value {
        sections.retain(|(key, _)| key.text != "include");
    }
    Ok(all)
}

/// The variables that the long form brings along for the files that it includes.
fn defaults(item: &Node, source: &Source, around: &Surroundings<'_>) -> Result<BTreeMap<String, String>, ComposeError> {
    let mut defaults = BTreeMap::new();
    for (key, value) in item.entries() {
        match key.text.as_str() {
            "path" => {}
            "env_file" => {
                for file in one_or_more(value) {
                    let name = file.text().unwrap_or_default();
                    let refused = |reason: &str| source.error(file.place, format!("cannot read {name}: {reason}"));
                    let text = (around.read)(&absolute(name, around)).map_err(|reason| refused(&reason))?;
                    let dotenv::Dotenv { variables, refused: lines } = dotenv::parse(&text);
                    if let Some(reason) = lines.first() {
                        return Err(refused(reason));
                    }
                    defaults.extend(variables);
                }
            }
            "project_directory" => {
                let folder = absolute(value.text().unwrap_or_default(), around);
                if mount::join("/", &folder) != mount::join("/", around.dir) {
                    let what = "include.project_directory can only be the folder of the first -c file";
                    let help = "relative paths in included files start there: write them so, and leave this out";
                    return Err(source.error_with_help(key.place, what, Some(help.into())));
                }
            }
            name if name.starts_with("x-") => {}
            name => {
                let allowed = Some("allowed here: path, env_file".into());
                let what = format!("include Additional property {name} is not allowed");
                return Err(source.error_with_help(key.place, what, allowed));
            }
        }
    }
    Ok(defaults)
}

fn one_or_more(node: &Node) -> &[Node] {
    if node.items().is_empty() { std::slice::from_ref(node) } else { node.items() }
}

fn absolute(file: &str, around: &Surroundings<'_>) -> String {
    if file.starts_with('/') { file.to_owned() } else { mount::join(around.dir, file) }
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
    others: &mut Others<'_>,
    around: &Surroundings<'_>,
    depth: usize,
) -> Result<Node, ComposeError> {
    let Some(extends) = service.get("extends").cloned() else { return Ok(service) };
    if depth > LONGEST_CHAIN {
        return Err(others.source.error(extends.place, "this service extends itself, over others"));
    }
    let name = extends.text().or_else(|| extends.get("service").and_then(Node::text)).unwrap_or_default().to_owned();
    let other = match extends.get("file").and_then(Node::text) {
        Some(file) => Some(open(file, &extends, others, around)?),
        None => None,
    };
    let root = other.as_ref().unwrap_or(root);
    let Some(base) = find(root, &name) else {
        return Err(others.source.error(extends.place, format!("there is no service {name:?} to extend")));
    };
    let mut base = extended(base.clone(), root, others, around, depth + 1)?;
    if let Yaml::Map(entries) = &mut service.value {
        entries.retain(|(key, _)| key.text != "extends");
    }
    Merger { source: others.source, as_docker: false }.merge(&mut base, service, schema::SERVICE);
    Ok(base)
}

fn open(file: &str, at: &Node, others: &mut Others<'_>, around: &Surroundings<'_>) -> Result<Node, ComposeError> {
    let Others { source, is_raw, warnings } = others;
    let text = (around.read)(&absolute(file, around))
        .map_err(|reason| source.error(at.place, format!("cannot read {file}: {reason}")))?;
    let number = source.add(file, &text);
    let yaml::Parsed { mut root, cut } = yaml::parse(source, number)?;
    if let Some(error) = cut {
        return Err(error);
    }
    let variables = interpolate::Variables { lookup: around.variable, strict: false };
    let unset = if *is_raw { Vec::new() } else { interpolate::document(&mut root, source, variables)? };
    let checked = check::check(&root, super::keys::MODERN, false, source);
    // Services that extend others of one file read it anew each.
    for warning in unset.into_iter().chain(checked.warnings) {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    match ComposeError::of(&checked.findings) {
        Some(error) => Err(error),
        None => Ok(root),
    }
}
