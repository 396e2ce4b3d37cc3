//! What changes of the cluster's objects amount to, in Docker's words. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use orch_model::{
    Annotations, Object, ObjectId, Timestamp,
    node::Node,
    service::{Service, ServiceMode},
};

use super::Event;
use crate::{
    api::WatchEvent,
    inspect::{availability_word, role_word, state_word, update_state_word},
    render::time,
};

type Objects = HashMap<ObjectId, Object>;

/// The objects as they were told last.
#[derive(Default)]
pub(super) struct Ledger {
    known: Objects,
    /// What comes (again) from the beginning, until it is complete.
    coming: Option<Objects>,
    /// What is there at first is no news.
    has_begun: bool,
}

impl Ledger {
    /// Everything comes (again).
    pub(super) fn begin(&mut self) {
        self.coming = Some(Objects::new());
    }

    pub(super) fn note(&mut self, event: WatchEvent, now: Timestamp) -> Option<Event> {
        if let Some(coming) = &mut self.coming {
            match event {
                WatchEvent::Put(object) => coming.insert(object.id(), object),
                WatchEvent::Removed(id) => coming.remove(&id),
            };
            return None;
        }
        match event {
            WatchEvent::Put(object) => {
                let before = self.known.insert(object.id(), object.clone());
                change(before.as_ref(), &object)
            }
            WatchEvent::Removed(id) => self.known.remove(&id).and_then(|object| removal(&object, now)),
        }
    }

    /// All has come: what has changed since it was known last.
    pub(super) fn settle(&mut self, now: Timestamp) -> Vec<Event> {
        let Some(coming) = self.coming.take() else { return Vec::new() };
        let before = mem::replace(&mut self.known, coming);
        if !mem::replace(&mut self.has_begun, true) {
            return Vec::new();
        }
        let changes = self.known.values().filter_map(|object| change(before.get(&object.id()), object));
        let gone = before.values().filter(|object| !self.known.contains_key(&object.id()));
        let mut events: Vec<Event> = changes.chain(gone.filter_map(|object| removal(object, now))).collect();
        events.sort_by(|a, b| (a.at_ns, &a.id).cmp(&(b.at_ns, &b.id)));
        events
    }
}

fn change(before: Option<&Object>, now: &Object) -> Option<Event> {
    let Some(before) = before else { return Some(event(now, "create", now.meta().created_at, Attributes::new())) };
    if is_removed(before) || before.meta().version == now.meta().version {
        return None;
    }
    if is_removed(now) {
        return Some(event(now, "remove", now.meta().updated_at, Attributes::new()));
    }
    Some(event(now, "update", now.meta().updated_at, differences(before, now)?))
}

/// Whoever asked for it was told when it was asked for, not when the last task had gone.
fn removal(last: &Object, now: Timestamp) -> Option<Event> {
    (!is_removed(last)).then(|| event(last, "remove", now, Attributes::new()))
}

fn is_removed(object: &Object) -> bool {
    match object {
        Object::Service(o) => o.removing,
        Object::Network(o) => o.removing,
        Object::Secret(o) => o.removing,
        Object::Config(o) => o.removing,
        Object::Node(_) | Object::Cluster(_) | Object::Task(_) | Object::Image(_) => false,
    }
}

type Attributes = BTreeMap<String, String>;

fn event(object: &Object, action: &str, at: Timestamp, mut attributes: Attributes) -> Event {
    attributes.insert("name".into(), name(object).to_owned());
    let id = object.id().as_str().to_owned();
    let at_ns = at.unix_ms.saturating_mul(time::NANOS_PER_MILLI);
    Event { at_ns, kind: object.kind().word().to_owned(), action: action.to_owned(), id, attributes }
}

fn name(object: &Object) -> &str {
    let annotations: &Annotations = match object {
        Object::Node(o) if o.spec.annotations.name.is_empty() => return &o.description.hostname,
        Object::Node(o) => &o.spec.annotations,
        Object::Service(o) => &o.spec.annotations,
        Object::Network(o) => &o.spec.annotations,
        Object::Secret(o) => &o.annotations,
        Object::Config(o) => &o.annotations,
        Object::Cluster(_) | Object::Task(_) | Object::Image(_) => return "",
    };
    &annotations.name
}

/// `None` where nothing has changed that an operator asked for or waits for: a network that was given its subnet.
fn differences(before: &Object, now: &Object) -> Option<Attributes> {
    let (is_other, pairs) = match (before, now) {
        (Object::Node(before), Object::Node(now)) => (before.spec != now.spec, of_node(before, now)),
        (Object::Service(before), Object::Service(now)) => (before.spec != now.spec, of_service(before, now)),
        (Object::Network(before), Object::Network(now)) => (before.spec != now.spec, Vec::new()),
        _ => (true, Vec::new()),
    };
    let mut attributes = Attributes::new();
    for (key, before, now) in pairs.into_iter().filter(|(_, before, now)| before != now) {
        let both = [("old", before), ("new", now)];
        attributes.extend(both.into_iter().filter_map(|(which, value)| Some((format!("{key}.{which}"), value?))));
    }
    (is_other || !attributes.is_empty()).then_some(attributes)
}

/// What is compared, as it was and as it is.
type Pair = (&'static str, Option<String>, Option<String>);

fn pair(key: &'static str, before: impl ToString, now: impl ToString) -> Pair {
    (key, Some(before.to_string()), Some(now.to_string()))
}

fn of_node(before: &Node, now: &Node) -> Vec<Pair> {
    vec![
        pair("availability", availability_word(before.spec.availability), availability_word(now.spec.availability)),
        pair("role", role_word(before.role), role_word(now.role)),
        pair("state", state_word(before.status.state), state_word(now.status.state)),
    ]
}

fn of_service(before: &Service, now: &Service) -> Vec<Pair> {
    let replicas = |service: &Service| match service.spec.mode {
        ServiceMode::Replicated { replicas } => Some(replicas.to_string()),
        ServiceMode::Global | ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => None,
    };
    let image = |service: &Service| service.spec.task.container.image.clone();
    let update = |service: &Service| service.update_status.as_ref().map(|s| update_state_word(s.state).to_owned());
    vec![
        pair("image", image(before), image(now)),
        ("replicas", replicas(before), replicas(now)),
        ("updatestate", update(before), update(now)),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use orch_model::{
        Meta, NodeId, SecretId, ServiceId, Version,
        node::{Availability, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus},
        secret::Secret,
        service::{Endpoint, EndpointSpec, ServiceSpec, TaskSpec, UpdateState, UpdateStatus},
    };

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_ms(90);

    fn meta(version: u64) -> Meta {
        let at = Timestamp::from_unix_ms;
        Meta { version: Version(version), created_at: at(1), updated_at: at(version) }
    }

    fn called(name: &str) -> Annotations {
        Annotations { name: name.into(), ..Annotations::default() }
    }

    fn service(version: u64, image: &str, replicas: u64, state: Option<UpdateState>) -> Service {
        let mut task = TaskSpec::default();
        task.container.image = image.into();
        let update_status = state.map(|state| UpdateStatus {
            state,
            started_at: NOW,
            first_started_at: None,
            completed_at: None,
            message: String::new(),
        });
        Service {
            id: ServiceId::from_random(1),
            meta: meta(version),
            spec: ServiceSpec {
                annotations: called("web"),
                task,
                mode: ServiceMode::Replicated { replicas },
                update: None,
                rollback: None,
                endpoint: EndpointSpec::default(),
                depends_on: Vec::new(),
            },
            spec_version: Version(version),
            previous_spec: None,
            endpoint: Endpoint::default(),
            update_status,
            removing: false,
        }
    }

    fn web(version: u64, image: &str, replicas: u64, state: Option<UpdateState>) -> Object {
        Object::Service(Arc::new(service(version, image, replicas, state)))
    }

    fn node(version: u64, state: NodeState, availability: Availability) -> Object {
        Object::Node(Arc::new(Node {
            id: NodeId::from_random(2),
            meta: meta(version),
            spec: NodeSpec { annotations: Annotations::default(), role: NodeRole::Worker, availability },
            role: NodeRole::Worker,
            description: NodeDescription { hostname: "n2".into(), ..NodeDescription::default() },
            status: NodeStatus { state, message: String::new(), addr: None, since: NOW },
            manager: None,
            index: 1,
            attachments: BTreeMap::new(),
            certificates: None,
        }))
    }

    fn secret(version: u64, removing: bool) -> Object {
        let (id, annotations) = (SecretId::from_random(3), called("key"));
        Object::Secret(Arc::new(Secret {
            id,
            meta: meta(version),
            annotations,
            data: Vec::new(),
            template: None,
            removing,
        }))
    }

    /// `service update name=web,replicas.new=2,replicas.old=1`
    fn told(event: &Event) -> String {
        let words: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} {} {}", event.kind, event.action, words.join(","))
    }

    /// A ledger that knows these.
    fn ledger(objects: &[Object]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.begin();
        for object in objects {
            assert_eq!(ledger.note(WatchEvent::Put(object.clone()), NOW), None);
        }
        assert_eq!(ledger.settle(NOW), [], "what is there at first is no news");
        ledger
    }

    #[test]
    fn a_change_says_what_was_and_what_is() {
        let (drain, active) = (Availability::Drain, Availability::Active);
        for (before, now, expected) in [
            (web(5, "a", 1, None), web(5, "a", 1, None), None),
            (web(5, "a", 1, None), web(6, "a", 1, None), None),
            (web(5, "a", 1, None), web(6, "a", 2, None), Some("service update name=web,replicas.new=2,replicas.old=1")),
            (
                web(5, "a", 1, None),
                web(6, "b", 1, Some(UpdateState::Updating)),
                Some("service update image.new=b,image.old=a,name=web,updatestate.new=updating"),
            ),
            (
                web(5, "b", 1, Some(UpdateState::Updating)),
                web(6, "b", 1, Some(UpdateState::RollbackStarted)),
                Some("service update name=web,updatestate.new=rollback_started,updatestate.old=updating"),
            ),
            (node(5, NodeState::Ready, active), node(6, NodeState::Ready, active), None),
            (
                node(5, NodeState::Ready, active),
                node(6, NodeState::Down, active),
                Some("node update name=n2,state.new=down,state.old=ready"),
            ),
            (
                node(5, NodeState::Ready, active),
                node(6, NodeState::Ready, drain),
                Some("node update availability.new=drain,availability.old=active,name=n2"),
            ),
            (secret(5, false), secret(6, false), Some("secret update name=key")),
            (secret(5, false), secret(6, true), Some("secret remove name=key")),
            (secret(6, true), secret(7, true), None),
        ] {
            let event = ledger(&[before]).note(WatchEvent::Put(now), NOW);
            assert_eq!(event.as_ref().map(told).as_deref(), expected);
        }
    }

    #[test]
    fn what_comes_and_goes_is_told_once() {
        let mut ledger = ledger(&[]);
        let created = ledger.note(WatchEvent::Put(secret(7, false)), NOW).unwrap();
        assert_eq!((told(&created).as_str(), created.at_ns), ("secret create name=key", 1_000_000));
        let asked = ledger.note(WatchEvent::Put(secret(8, true)), NOW).unwrap();
        assert_eq!((told(&asked).as_str(), asked.at_ns), ("secret remove name=key", 8_000_000));
        assert_eq!(ledger.note(WatchEvent::Removed(secret(8, true).id()), NOW), None, "told when it was asked for");
        ledger.note(WatchEvent::Put(web(9, "a", 1, None)), NOW).unwrap();
        let gone = ledger.note(WatchEvent::Removed(web(9, "a", 1, None).id()), NOW).unwrap();
        assert_eq!((told(&gone).as_str(), gone.at_ns), ("service remove name=web", 90_000_000));
    }

    #[test]
    fn what_happened_while_no_manager_answered_is_told_afterwards() {
        let mut ledger = ledger(&[web(5, "a", 1, None), secret(6, false)]);
        ledger.begin();
        let active = Availability::Active;
        for object in [web(8, "a", 3, None), node(7, NodeState::Ready, active)] {
            assert_eq!(ledger.note(WatchEvent::Put(object), NOW), None);
        }
        let events: Vec<String> = ledger.settle(NOW).iter().map(told).collect();
        let expected =
            ["node create name=n2", "service update name=web,replicas.new=3,replicas.old=1", "secret remove name=key"];
        assert_eq!(events, expected);
    }
}
