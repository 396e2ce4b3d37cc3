//! What a deployment would do: which objects it makes, changes field by field, restarts and removes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use orch_model::{Annotations, Kind, service::TaskSpec};
use serde_json::Value;

use crate::compose::{Content, Stack, StackData, StackService, export};

/// What happens to one object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    /// The fields with what they were and will be; whether tasks are replaced for it.
    Change {
        fields: Vec<String>,
        restarts: bool,
    },
    Remove,
    /// Not in the file, but nobody asked to remove it.
    Leave,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<(Kind, String, Step)>,
    pub(super) unchanged: usize,
}

/// What there is besides services, by name.
pub(super) struct Existing {
    pub(super) stack: Stack,
    pub(super) networks: BTreeSet<String>,
}

/// `wanted` names the versions of secrets and configs that will be used; `new_data` are those to be made.
pub(super) fn plan(name: &str, existing: &Existing, wanted: &Stack, new_data: &[(Kind, String)], prune: bool) -> Plan {
    let mut plan = Plan::default();
    for network in wanted.networks.iter().filter(|network| !network.external) {
        let name = &network.spec.annotations.name;
        if existing.networks.contains(name) {
            plan.unchanged += 1;
        } else {
            plan.steps.push((Kind::Network, name.clone(), Step::Create));
        }
    }
    plan.steps.extend(new_data.iter().map(|(kind, name)| (*kind, name.clone(), Step::Create)));
    let before: BTreeMap<&str, &StackService> =
        existing.stack.services.iter().map(|service| (service.spec.annotations.name.as_str(), service)).collect();
    for service in &wanted.services {
        let full = &service.spec.annotations.name;
        match before.get(full.as_str()) {
            None => plan.steps.push((Kind::Service, full.clone(), Step::Create)),
            Some(before) => match change(name, before, service) {
                Some(step) => plan.steps.push((Kind::Service, full.clone(), step)),
                None => plan.unchanged += 1,
            },
        }
    }
    let kept: BTreeSet<&str> = wanted.services.iter().map(|s| s.spec.annotations.name.as_str()).collect();
    for gone in before.keys().filter(|name| !kept.contains(**name)) {
        plan.steps.push((Kind::Service, (*gone).to_owned(), if prune { Step::Remove } else { Step::Leave }));
    }
    plan
}

/// What a file leaves open, and the order of services and networks, as they are in what runs.
pub(super) fn align(existing: &Stack, wanted: &mut Stack) {
    for service in &mut wanted.services {
        let name = &service.spec.annotations.name;
        if let Some(before) = existing.services.iter().find(|s| s.spec.annotations.name == *name) {
            keep_content(before, service);
        }
    }
    wanted.services.sort_by(|a, b| a.spec.annotations.name.cmp(&b.spec.annotations.name));
    wanted.networks.sort_by(|a, b| a.spec.annotations.name.cmp(&b.spec.annotations.name));
    let mentioned: BTreeSet<(Kind, String)> = wanted
        .services
        .iter()
        .flat_map(|service| {
            let secrets = service.secrets.iter().map(|file| (Kind::Secret, file.source.clone()));
            secrets.chain(service.configs.iter().map(|file| (Kind::Config, file.source.clone())))
        })
        .collect();
    wanted.data = mentioned
        .into_iter()
        .map(|(kind, name)| StackData {
            kind,
            annotations: Annotations { name, ..Annotations::default() },
            content: Content::External,
            template: None,
        })
        .collect();
}

/// Which content an image's name means is found out when it is deployed; variables have no order.
fn keep_content(before: &StackService, after: &mut StackService) {
    let (old, new) = (&before.spec.task, &mut after.spec.task);
    new.force_update = old.force_update;
    new.container.registry_auth.clone_from(&old.container.registry_auth);
    if new.container.image == old.container.image && new.container.image_digest.is_none() {
        new.container.image_digest.clone_from(&old.container.image_digest);
    }
    let sorted = |env: &[String]| env.iter().cloned().collect::<BTreeSet<String>>();
    if sorted(&old.container.env) == sorted(&new.container.env) {
        new.container.env.clone_from(&old.container.env);
    }
}

impl Plan {
    /// Whether anything would be done.
    pub(super) fn does_something(&self) -> bool {
        self.steps.iter().any(|(.., step)| *step != Step::Leave)
    }
}

fn change(stack: &str, before: &StackService, after: &StackService) -> Option<Step> {
    let mut after = StackService {
        spec: after.spec.clone(),
        networks: after.networks.clone(),
        secrets: after.secrets.clone(),
        configs: after.configs.clone(),
    };
    keep_content(before, &mut after);
    let fields = fields(&export::service(stack, before), &export::service(stack, &after));
    if fields.is_empty() {
        return None;
    }
    // A task that still fits its node is not moved for the placement's sake.
    let task = |service: &StackService| TaskSpec { placement: Default::default(), ..service.spec.task.clone() };
    let same_files = before.secrets == after.secrets && before.configs == after.configs;
    let restarts = task(before) != task(&after) || before.networks != after.networks || !same_files;
    Some(Step::Change { fields, restarts })
}

/// `deploy.replicas: 2 -> 3`, in order of the fields' names.
fn fields(before: &Value, after: &Value) -> Vec<String> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", before, &mut old);
    flatten("", after, &mut new);
    let paths: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "(nothing)".into());
    let different = paths.into_iter().filter(|path| old.get(*path) != new.get(*path));
    different.map(|path| format!("{path}: {} -> {}", shown(old.get(path)), shown(new.get(path)))).collect()
}

fn flatten(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            entries.iter().for_each(|(key, inner)| flatten(&join(key), inner, out));
        }
        // A variable each, wherever it stands.
        Value::Array(items) if path == "environment" => {
            for text in items.iter().filter_map(Value::as_str) {
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                out.insert(join(name), Value::String(value.into()).to_string());
            }
        }
        other => {
            out.insert(path.to_owned(), other.to_string());
        }
    }
}

/// As it is printed.
pub(super) fn show(plan: &Plan) -> String {
    let mut out = String::new();
    let count = |wanted: fn(&Step) -> bool| plan.steps.iter().filter(|(.., step)| wanted(step)).count();
    for (kind, name, step) in &plan.steps {
        let _ = match step {
            Step::Create => writeln!(out, "+ {kind} {name}"),
            Step::Remove => writeln!(out, "- {kind} {name}"),
            Step::Leave => writeln!(out, "  {kind} {name}: not in the file; stays (--prune would remove it)"),
            Step::Change { fields, restarts } => {
                let note = if *restarts { "its tasks are replaced" } else { "no task is replaced" };
                let _ = writeln!(out, "~ {kind} {name} ({note})");
                fields.iter().try_for_each(|field| writeln!(out, "    {field}"))
            }
        };
    }
    let created = count(|step| *step == Step::Create);
    let changed = count(|step| matches!(step, Step::Change { .. }));
    let removed = count(|step| *step == Step::Remove);
    let restarted = count(|step| matches!(step, Step::Change { restarts: true, .. }));
    let _ = writeln!(
        out,
        "{created} to create, {changed} to change ({restarted} with new tasks), {removed} to remove, {} unchanged",
        plan.unchanged
    );
    out
}

/// The lines of two texts, `-` and `+` where they differ, with a few equal ones around.
pub(super) fn line_diff(before: &str, after: &str) -> String {
    const AROUND: usize = 3;
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let marked = marked(&old, &new);
    let mut out = String::new();
    let mut skipped = false;
    for (at, (mark, line)) in marked.iter().enumerate() {
        let near = at.saturating_sub(AROUND)..(at + AROUND + 1).min(marked.len());
        if marked[near].iter().any(|(mark, _)| *mark != ' ') {
            if skipped {
                out.push_str("...\n");
            }
            skipped = false;
            let _ = writeln!(out, "{mark} {line}");
        } else {
            skipped = true;
        }
    }
    out
}

/// By the longest common subsequence of what is between the equal beginning and end.
fn marked<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old_mid, new_mid) = (&old_rest[..old_rest.len() - tail], &new_rest[..new_rest.len() - tail]);
    const MOST_PAIRS: usize = 25_000_000;
    if old_mid.len().saturating_mul(new_mid.len()) > MOST_PAIRS {
        let mut out: Vec<(char, &str)> = old.iter().map(|line| ('-', *line)).collect();
        out.extend(new.iter().map(|line| ('+', *line)));
        return out;
    }
    // longest[i][j]: of what is left from line i and line j on.
    let mut longest = vec![vec![0_u32; new_mid.len() + 1]; old_mid.len() + 1];
    for i in (0..old_mid.len()).rev() {
        for j in (0..new_mid.len()).rev() {
            longest[i][j] = if old_mid[i] == new_mid[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let mut out: Vec<(char, &str)> = old[..head].iter().map(|line| (' ', *line)).collect();
    let (mut i, mut j) = (0, 0);
    while i < old_mid.len() || j < new_mid.len() {
        if i < old_mid.len() && j < new_mid.len() && old_mid[i] == new_mid[j] {
            out.push((' ', old_mid[i]));
            (i, j) = (i + 1, j + 1);
        } else if j >= new_mid.len() || (i < old_mid.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            out.push(('-', old_mid[i]));
            i += 1;
        } else {
            out.push(('+', new_mid[j]));
            j += 1;
        }
    }
    out.extend(old_rest[old_rest.len() - tail..].iter().map(|line| (' ', *line)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::{Document, Surroundings};

    fn load(text: &str) -> Stack {
        let around = Surroundings { stack: "shop", dir: "/", variable: &|_| None, read: &|_| Err(String::new()) };
        Document::parse(&[("f.yml".into(), text.into())], false).unwrap().resolve(&around).unwrap()
    }

    fn between(before: &str, after: &str, prune: bool) -> String {
        let stack = load(before);
        let networks = stack.networks.iter().map(|network| network.spec.annotations.name.clone()).collect();
        show(&plan("shop", &Existing { stack, networks }, &load(after), &[], prune))
    }

    #[test]
    fn every_kind_of_step_is_shown() {
        let before = "services:
  web: {image: 'web:1', environment: {A: '1', B: '2'}, deploy: {replicas: 2}}
  db: {image: db}
  old: {image: old}
";
        let after = "services:
  web: {image: 'web:1', environment: {A: '1', C: '3'}, deploy: {replicas: 3}, networks: [default, front]}
  db: {image: db, deploy: {placement: {constraints: [node.role==manager]}}}
  new: {image: new}
networks: {front: }
";
        assert_eq!(
            between(before, after, true),
            "+ network shop_front
~ service shop_web (its tasks are replaced)
    deploy.replicas: 2 -> 3
    environment.B: \"2\" -> (nothing)
    environment.C: (nothing) -> \"3\"
    networks.front: (nothing) -> {}
~ service shop_db (no task is replaced)
    deploy.placement.constraints: (nothing) -> [\"node.role==manager\"]
+ service shop_new
- service shop_old
2 to create, 2 to change (1 with new tasks), 1 to remove, 1 unchanged
"
        );
        assert!(between(before, after, false).contains("service shop_old: not in the file; stays"));
        let same = between(before, before, true);
        assert_eq!(same, "0 to create, 0 to change (0 with new tasks), 0 to remove, 4 unchanged\n");
    }

    #[test]
    fn lines_that_differ_are_marked() {
        assert_eq!(line_diff("a\nb\nc\n", "a\nx\nc\n"), "  a\n- b\n+ x\n  c\n");
        assert_eq!(line_diff("a\n", "a\n"), "");
        let long: String = (0..20).map(|n| format!("{n}\n")).collect();
        let diff = line_diff(&long, &long.replace("10\n", "ten\n"));
        assert_eq!(diff, "...\n  7\n  8\n  9\n- 10\n+ ten\n  11\n  12\n  13\n");
    }
}
