//! Placeholders of services: `{{.Service.Name}}`, `{{.Node.Hostname}}`, `{{.Task.Slot}}` in the environment, the host name
//! and the mounts of a task, as Docker fills them in.
//!
//! Managers check them when a service is stored ([`check`]), the task's node fills them in ([`fill`]).

use orch_model::{service::ContainerSpec, task::Task};
use serde_json::{Value, json};

use crate::{Template, TemplateError, eval::Allowance};

/// What filling in all texts of a container may take together, as the evaluation counts it: more than the kernel gives a
/// program at its start (6 MiB), and done in a fraction of a second.
const MAX_WORK: usize = 8 << 20;

/// What placeholders can name, by Docker's names.
const FIELDS: [(&str, &[&str]); 3] = [
    ("Service", &["ID", "Name", "Labels"]),
    ("Node", &["ID", "Hostname", "Platform"]),
    ("Task", &["ID", "Name", "Slot"]),
];

/// The node that a task runs on, as its placeholders show it.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub id: String,
    pub hostname: String,
    pub os: String,
    pub arch: String,
}

/// The values of a task's placeholders.
#[must_use]
pub fn values(task: &Task, node: &NodeFacts) -> Value {
    let slot = if task.slot == 0 { node.id.clone() } else { task.slot.to_string() };
    json!({
        "Service": {
            "ID": task.service.as_str(),
            "Name": task.service_annotations.name,
            "Labels": task.service_annotations.labels,
        },
        "Node": {
            "ID": node.id,
            "Hostname": node.hostname,
            "Platform": {"Architecture": node.arch, "OS": node.os},
        },
        "Task": {"ID": task.id.as_str(), "Name": task.container_name(), "Slot": slot},
    })
}

/// The container with its placeholders filled in; `None` where it has none.
///
/// # Errors
/// With the text that cannot be filled in, and why.
pub fn fill(container: &ContainerSpec, values: &Value) -> Result<Option<ContainerSpec>, TemplateError> {
    if !texts(container).any(|text| text.contains("{{")) {
        return Ok(None);
    }
    let (mut filled, allowance) = (container.clone(), allowance());
    let strings = filled.env.iter_mut().chain(std::iter::once(&mut filled.hostname));
    for text in strings.chain(filled.mounts.iter_mut().flat_map(|m| [&mut m.source, &mut m.target])) {
        if text.contains("{{") {
            *text = render(text, values, &allowance)?;
        }
    }
    Ok(Some(filled))
}

/// Whether every placeholder is one that [`fill`] can fill in.
///
/// # Errors
/// With the first one that is not.
pub fn check(container: &ContainerSpec) -> Result<(), TemplateError> {
    let allowance = allowance();
    for text in texts(container).filter(|text| text.contains("{{")) {
        let failed = |error: &str| Err(TemplateError(format!("{text:?}: {error}")));
        let template = match Template::parse(text) {
            Ok(template) => template,
            Err(error) => return failed(&error.0),
        };
        for path in template.paths() {
            if let Err(error) = check_path(path) {
                return failed(&error);
            }
        }
        // Also what only shows when it is filled in: an unknown function, an index into a text.
        if let Err(error) = template.render_within(&example(), &allowance) {
            return failed(&error.0);
        }
    }
    Ok(())
}

/// Values of the right shape, for a task that does not exist yet.
pub(crate) fn example() -> Value {
    json!({
        "Service": {"ID": "x", "Name": "x", "Labels": {}},
        "Node": {"ID": "x", "Hostname": "x", "Platform": {"Architecture": "x86_64", "OS": "linux"}},
        "Task": {"ID": "x", "Name": "x.1.x", "Slot": "1"},
    })
}

pub(crate) fn check_path(path: &[String]) -> Result<(), String> {
    let Some(first) = path.first() else { return Ok(()) };
    let Some((_, fields)) = FIELDS.iter().find(|(name, _)| name == first) else {
        return Err(format!(".{first} is not known; there are .Service, .Node and .Task"));
    };
    match path.get(1).filter(|second| !fields.contains(&second.as_str())) {
        Some(second) => Err(format!(".{first} has no {second}; it has {}", fields.join(", "))),
        None => Ok(()),
    }
}

fn texts(container: &ContainerSpec) -> impl Iterator<Item = &String> {
    let mounts = container.mounts.iter().flat_map(|m| [&m.source, &m.target]);
    container.env.iter().chain(std::iter::once(&container.hostname)).chain(mounts)
}

fn allowance() -> Allowance {
    Allowance::new(MAX_WORK, "this, with the container's other placeholders,")
}

fn render(text: &str, values: &Value, allowance: &Allowance) -> Result<String, TemplateError> {
    let rendered = Template::parse(text).and_then(|template| template.render_within(values, allowance));
    rendered.map_err(|error| TemplateError(format!("{text:?}: {}", error.0)))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use orch_model::{
        Annotations, Meta, NodeId, ServiceId, TaskId, Timestamp, Version,
        service::{Mount, MountKind, TaskSpec},
        task::{TaskState, TaskStatus},
    };

    use super::*;

    fn task(slot: u64) -> Task {
        Task {
            id: TaskId::from_random(3),
            meta: Meta::default(),
            service: ServiceId::from_random(2),
            service_annotations: Arc::new(Annotations {
                name: "web".into(),
                labels: BTreeMap::from([("com.example.team".into(), "a".into())]),
            }),
            slot,
            node: Some(NodeId::from_random(1)),
            spec: Arc::new(TaskSpec::default()),
            spec_version: Version::default(),
            status: TaskStatus {
                state: TaskState::Assigned,
                at: Timestamp::default(),
                message: String::new(),
                error: None,
                container: None,
            },
            running_since: None,
            generic: orch_model::node::GenericResources::default(),
            displaced: false,
            desired_state: TaskState::Running,
            start_at: None,
            networks: Vec::new(),
            host_ports: Vec::new(),
        }
    }

    fn node() -> NodeFacts {
        NodeFacts { id: "node1".into(), hostname: "n1".into(), os: "linux".into(), arch: "x86_64".into() }
    }

    fn env(text: &str) -> ContainerSpec {
        ContainerSpec { env: vec![text.to_owned()], ..ContainerSpec::default() }
    }

    #[test]
    fn every_placeholder_has_its_value() {
        let task_id = TaskId::from_random(3);
        for (slot, text, expected) in [
            (2, "A={{.Service.Name}}.{{.Task.Slot}}", "A=web.2".to_owned()),
            (0, "A={{.Task.Slot}}", "A=node1".to_owned()),
            (2, "A={{ .Task.Name }}", format!("A=web.2.{task_id}")),
            (2, "A={{.Task.ID}} {{.Service.ID}}", format!("A={task_id} {}", ServiceId::from_random(2))),
            (2, "A={{.Node.Hostname}}-{{.Node.ID}}", "A=n1-node1".to_owned()),
            (2, "A={{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "A=linux/x86_64".to_owned()),
            (2, "A={{index .Service.Labels \"com.example.team\"}}", "A=a".to_owned()),
            (2, "A={{.Service.Labels.none}}", "A=<no value>".to_owned()),
            (2, "A={{if eq .Task.Slot \"2\"}}first{{else}}other{{end}}", "A=first".to_owned()),
            (2, "PS1={{", "refused".to_owned()),
        ] {
            let filled = fill(&env(text), &values(&task(slot), &node()));
            match filled {
                Ok(filled) => assert_eq!(filled.expect("it has placeholders").env[0], expected, "{text}"),
                Err(error) => assert_eq!(expected, "refused", "{text}: {error}"),
            }
        }
    }

    #[test]
    fn host_name_and_mounts_are_filled_in_and_nothing_else() {
        let mut spec = ContainerSpec {
            hostname: "{{.Service.Name}}-{{.Task.Slot}}".into(),
            args: vec!["{{.Task.Slot}}".into()],
            ..ContainerSpec::default()
        };
        spec.mounts.push(Mount {
            kind: MountKind::Volume,
            source: "data-{{.Task.Slot}}".into(),
            target: "/data/{{.Node.Hostname}}".into(),
            ..Mount::default()
        });
        let filled = fill(&spec, &values(&task(4), &node())).expect("it fits").expect("it has placeholders");
        assert_eq!((filled.hostname.as_str(), filled.args[0].as_str()), ("web-4", "{{.Task.Slot}}"));
        assert_eq!((filled.mounts[0].source.as_str(), filled.mounts[0].target.as_str()), ("data-4", "/data/n1"));
        assert_eq!(fill(&env("A=b"), &Value::Null), Ok(None));
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused_before_it_is_stored() {
        for (text, words) in [
            ("A={{.Task.Slots}}", ".Task has no Slots; it has ID, Name, Slot"),
            ("A={{.Image}}", ".Image is not known; there are .Service, .Node and .Task"),
            ("A={{.Task.Slot", "template parsing error"),
            ("A={{if .Task.Nope}}x{{end}}", ".Task has no Nope"),
            ("A={{frobnicate .Task.Slot}}", "function \"frobnicate\" not defined"),
            ("A={{slice .Service}}", "can't slice map"),
            ("A={{slice .Service.Labels}}", "can't slice map"),
        ] {
            let error = check(&env(text)).expect_err(text).to_string();
            assert!(error.contains(words) && error.contains(text.split('=').next().expect("a name")), "{error}");
        }
        assert_eq!(check(&env("A={{.Task.Slot}}")), Ok(()));
        assert_eq!(check(&env("A=plain")), Ok(()));
    }

    #[test]
    fn the_texts_of_a_container_have_one_allowance() {
        let of = |text: &str, count| ContainerSpec { env: vec![text.to_owned(); count], ..ContainerSpec::default() };
        let values = values(&task(2), &node());
        let large = r#"A={{range split (printf "%200s" "") ""}}{{printf "%4096s" ""}}{{end}}"#;
        for (spec, is_taken) in [
            (of("A={{.Service.Name}}.{{.Task.Slot}} {{.Node.Hostname}}", 4000), true),
            (of(large, 4), true),
            (of(large, 10), false),
        ] {
            let (checked, filled) = (check(&spec), fill(&spec, &values));
            assert_eq!((checked.is_ok(), filled.is_ok()), (is_taken, is_taken), "{checked:?}");
            for error in [checked.err(), filled.err()].into_iter().flatten() {
                assert!(error.0.contains("other placeholders, takes too many steps"), "{error}");
            }
        }
    }
}
