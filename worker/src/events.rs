//! What happens to this node's containers and volumes, for whoever listens: `orch events`. One-off containers and tasks
//! tell it in the same words. Kept in memory only, the last of them: telling costs no call, no write and no wait.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orch_model::task::{Health, Task};
use orch_proto::wire::ContainerEvent;
use tokio::sync::broadcast;

/// Events that are remembered for `--since`.
const REMEMBERED: usize = 256;
/// Events that a listener may be behind: all tasks of a node may start or stop at once.
const BEHIND: usize = 4096;

pub(crate) struct Events {
    past: Mutex<VecDeque<Arc<ContainerEvent>>>,
    listeners: broadcast::Sender<Arc<ContainerEvent>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { past: Mutex::default(), listeners: broadcast::Sender::new(BEHIND) }
    }
}

/// Whom an event is about: the container's id, and what else is said of it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

impl Subject {
    pub(crate) fn new(id: String, name: String, image: &str, mut labels: BTreeMap<String, String>) -> Self {
        labels.insert("image".to_owned(), image.to_owned());
        labels.insert("name".to_owned(), name);
        Self { id, attributes: labels }
    }

    pub(crate) fn of_task(task: &Task) -> Self {
        let image = &task.spec.container.image;
        Self::new(crate::agent::container_id(task), task.container_name(), image, task_labels(task))
    }
}

/// A task's container's labels: the service's for it, and Docker's that say whose it is.
pub(crate) fn task_labels(task: &Task) -> BTreeMap<String, String> {
    let whose = [
        ("node.id", task.node.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("service.id", task.service.to_string()),
        ("service.name", task.service_annotations.name.clone()),
        ("task", String::new()),
        ("task.id", task.id.to_string()),
        ("task.name", task.container_name()),
    ];
    let mut labels = task.spec.container.labels.clone();
    labels.extend(whose.map(|(key, value)| (format!("com.docker.swarm.{key}"), value)));
    labels
}

/// What a change of health is called; `None` where there is no change, or what was before is not known.
pub(crate) fn health_action(before: Option<Health>, now: Health) -> Option<String> {
    (before? != now).then(|| format!("health_status: {}", now.word()))
}

impl Events {
    pub(crate) fn tell(&self, kind: &str, action: &str, subject: Subject) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Arc::new(ContainerEvent {
            at_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
            kind: kind.to_owned(),
            action: action.to_owned(),
            id: subject.id,
            attributes: subject.attributes.into_iter().collect(),
        });
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.listeners.send(event);
    }

    pub(crate) fn of_container(&self, mut subject: Subject, action: &str, more: &[(&str, String)]) {
        subject.attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.tell("container", action, subject);
    }

    /// How a container ended.
    pub(crate) fn died(&self, subject: Subject, code: i32, oom_killed: bool, ran: Duration) {
        if oom_killed {
            self.of_container(subject.clone(), "oom", &[]);
        }
        let more = [("exitCode", code.to_string()), ("execDuration", ran.as_secs().to_string())];
        self.of_container(subject, "die", &more);
    }

    pub(crate) fn of_volume(&self, action: &str, name: String) {
        self.tell("volume", action, Subject { id: name, attributes: [("driver".into(), "local".into())].into() });
    }

    /// Those since then, and what will come. Nothing is lost between the two.
    pub(crate) fn listen(&self, since_ms: u64) -> (Vec<Arc<ContainerEvent>>, broadcast::Receiver<Arc<ContainerEvent>>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.listeners.subscribe();
        let wanted = past.iter().filter(|event| since_ms > 0 && event.at_ns / 1_000_000 >= since_ms).cloned().collect();
        (wanted, receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_get_what_was_and_what_comes() {
        let events = Events::default();
        let subject = |id: &str| Subject { id: id.to_owned(), attributes: BTreeMap::new() };
        for n in 0..300 {
            events.tell("container", "start", subject(&n.to_string()));
        }
        let (past, mut coming) = events.listen(1);
        assert_eq!((past.len(), past[0].id.as_str()), (REMEMBERED, "44"));
        assert!(events.listen(0).0.is_empty());
        events.died(subject("x"), 137, true, Duration::from_millis(2900));
        let told: Vec<_> = std::iter::from_fn(|| coming.try_recv().ok()).collect();
        assert_eq!(told.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), ["oom", "die"]);
        assert_eq!((&*told[1].attributes["exitCode"], &*told[1].attributes["execDuration"]), ("137", "2"));
    }

    #[test]
    fn changes_of_health_are_told() {
        use Health::{Healthy, Starting, Unhealthy};
        for (before, now, told) in [
            (None, Healthy, None),
            (Some(Starting), Starting, None),
            (Some(Starting), Healthy, Some("health_status: healthy")),
            (Some(Healthy), Unhealthy, Some("health_status: unhealthy")),
        ] {
            assert_eq!(health_action(before, now).as_deref(), told, "{before:?} {now:?}");
        }
    }
}
