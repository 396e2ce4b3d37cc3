//! What happens to one-off containers, for whoever listens: `orch events`. Kept in memory only, the last of them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use orch_proto::wire::ContainerEvent;
use tokio::sync::broadcast;

use super::{Locals, One};

/// Events that are remembered for `--since`.
const REMEMBERED: usize = 256;
/// Events that a listener may be behind.
const BEHIND: usize = 256;

pub(crate) struct Events {
    past: Mutex<VecDeque<ContainerEvent>>,
    listeners: broadcast::Sender<ContainerEvent>,
}

impl Default for Events {
    fn default() -> Self {
        Self { past: Mutex::default(), listeners: broadcast::Sender::new(BEHIND) }
    }
}

impl Events {
    pub(crate) fn tell(&self, kind: &str, action: &str, id: String, attributes: BTreeMap<String, String>) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = ContainerEvent {
            at_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
            kind: kind.to_owned(),
            action: action.to_owned(),
            id,
            attributes: attributes.into_iter().collect(),
        };
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.listeners.send(event);
    }

    /// Those since then, and what will come. Nothing is lost between the two.
    pub(crate) fn listen(&self, since_ms: u64) -> (Vec<ContainerEvent>, broadcast::Receiver<ContainerEvent>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.listeners.subscribe();
        let wanted = past.iter().filter(|event| since_ms > 0 && event.at_ns / 1_000_000 >= since_ms).cloned().collect();
        (wanted, receiver)
    }
}

impl Locals {
    pub(super) fn tell(&self, one: &One, action: &str) {
        self.tell_with(one, action, &[]);
    }

    pub(super) fn tell_with(&self, one: &One, action: &str, more: &[(&str, String)]) {
        let mut attributes = one.task.spec.container.labels.clone();
        attributes.insert("image".to_owned(), one.task.spec.container.image.clone());
        attributes.insert("name".to_owned(), one.name());
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.tell("container", action, one.container_id(), attributes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_get_what_was_and_what_comes() {
        let events = Events::default();
        for n in 0..300 {
            events.tell("container", "start", n.to_string(), BTreeMap::new());
        }
        let (past, mut coming) = events.listen(1);
        assert_eq!((past.len(), past[0].id.as_str()), (REMEMBERED, "44"));
        assert!(events.listen(0).0.is_empty());
        events.tell("container", "die", "x".to_owned(), BTreeMap::new());
        assert_eq!(coming.try_recv().unwrap().action, "die");
    }
}
