//! `depends_on:` of services: what is waited for, and the order that follows from it.

use std::collections::{BTreeMap, BTreeSet};

use orch_model::service::{Dependency, DependencyCondition};

use super::{
    StackService,
    convert::Reader,
    error::ComposeError,
    keys,
    yaml::{Node, Yaml},
};

/// What the service at `path` depends on, with full names. `wanted` says which services the stack has.
pub(super) fn of(
    reader: &Reader<'_>,
    node: &Node,
    path: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Dependency>, ComposeError> {
    let Some(list) = node.get("depends_on") else { return Ok(Vec::new()) };
    let path = format!("{path}.depends_on");
    let mut all = Vec::new();
    for item in list.items() {
        let name = reader.text(item, &path)?;
        add(reader, &mut all, item, &path, &name, (DependencyCondition::Started, true), &wanted)?;
    }
    for (key, detail) in list.entries() {
        let required = detail.get("required").map(|n| reader.boolean(n, &path)).transpose()?.unwrap_or(true);
        let condition = match detail.get("condition") {
            Some(node) => reader.parsed(node, &format!("{path}.{}.condition", key.text), condition)?,
            None => DependencyCondition::Started,
        };
        let place = if matches!(detail.value, Yaml::Null) { list } else { detail };
        add(reader, &mut all, place, &path, &key.text, (condition, required), &wanted)?;
    }
    Ok(all)
}

fn condition(text: &str) -> Result<DependencyCondition, String> {
    match text {
        "service_started" => Ok(DependencyCondition::Started),
        "service_healthy" => Ok(DependencyCondition::Healthy),
        "service_completed_successfully" => Ok(DependencyCondition::Completed),
        _ => Err("expected service_started, service_healthy or service_completed_successfully".into()),
    }
}

fn add(
    reader: &Reader<'_>,
    all: &mut Vec<Dependency>,
    place: &Node,
    path: &str,
    name: &str,
    (condition, required): (DependencyCondition, bool),
    wanted: &impl Fn(&str) -> bool,
) -> Result<(), ComposeError> {
    let service = reader.scoped(name);
    if all.iter().any(|known: &Dependency| known.service == service) {
        return Ok(());
    }
    if wanted(name) {
        all.push(Dependency { service, condition, required });
    } else if reader.version != keys::MODERN {
        // Docker's client does not look.
        reader.warnings.borrow_mut().push(format!("{path}: there is no service {name:?} to wait for"));
    } else if required {
        let message = format!("{path}: there is no service {name:?} in this stack; add it, or write `required: false`");
        return Err(reader.error(place, message));
    }
    Ok(())
}

/// Services after those that they depend on, else as they were. `Err`: the names of services that wait for each other.
pub(super) fn ordered(services: Vec<StackService>) -> Result<Vec<StackService>, Vec<String>> {
    let at: BTreeMap<&str, usize> =
        services.iter().enumerate().map(|(at, s)| (s.spec.annotations.name.as_str(), at)).collect();
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); services.len()];
    let mut open: Vec<usize> = vec![0; services.len()];
    for (number, service) in services.iter().enumerate() {
        for other in service.spec.depends_on.iter().filter_map(|d| at.get(d.service.as_str())) {
            dependants[*other].push(number);
            open[number] += 1;
        }
    }
    let mut ready: BTreeSet<usize> = (0..services.len()).filter(|number| open[*number] == 0).collect();
    let mut order = Vec::with_capacity(services.len());
    while let Some(number) = ready.pop_first() {
        order.push(number);
        for dependant in &dependants[number] {
            open[*dependant] -= 1;
            if open[*dependant] == 0 {
                ready.insert(*dependant);
            }
        }
    }
    let mut services: Vec<Option<StackService>> = services.into_iter().map(Some).collect();
    let sorted: Vec<StackService> = order.into_iter().filter_map(|number| services[number].take()).collect();
    let left: Vec<String> = services.into_iter().flatten().map(|service| service.spec.annotations.name).collect();
    if left.is_empty() { Ok(sorted) } else { Err(left) }
}
