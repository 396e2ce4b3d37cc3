//! The ports of what is being started: until it runs, nothing else tells that they are taken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orch_model::{TaskId, service::PortConfig};

type Ports = BTreeMap<TaskId, Vec<PortConfig>>;

#[derive(Debug, Default)]
pub(super) struct StartingPorts(Arc<Mutex<Ports>>);

/// Who looks for a port and takes it: nobody else does meanwhile.
pub(super) struct Turn<'a> {
    all: &'a StartingPorts,
    ports: MutexGuard<'a, Ports>,
}

/// Keeps the ports of one, until others see them at what runs.
#[derive(Debug)]
pub(crate) struct Starting {
    id: TaskId,
    all: Arc<Mutex<Ports>>,
}

impl StartingPorts {
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { all: self, ports: lock(&self.0) }
    }
}

impl Turn<'_> {
    /// Those of the others that are `counted`.
    pub(super) fn of_others(&self, own: &TaskId, counted: impl Fn(&TaskId) -> bool) -> Vec<PortConfig> {
        let others = self.ports.iter().filter(|(id, _)| *id != own && counted(id));
        others.flat_map(|(_, ports)| ports.clone()).collect()
    }

    pub(super) fn take(mut self, id: &TaskId, ports: &[PortConfig]) -> Starting {
        self.ports.insert(id.clone(), ports.to_vec());
        Starting { id: id.clone(), all: self.all.0.clone() }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.id);
    }
}

fn lock(ports: &Mutex<Ports>) -> MutexGuard<'_, Ports> {
    // Each holder adds or removes one entry as a whole.
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use orch_model::service::{Protocol, PublishMode};

    use super::*;

    #[test]
    fn ports_are_others_until_their_owner_has_started() {
        let [one, two] = [1, 2].map(TaskId::from_random);
        let all = StartingPorts::default();
        let ports = [PortConfig::new(Protocol::Tcp, 9100, 80, PublishMode::Host)];
        let starting = all.turn().take(&one, &ports);
        assert_eq!(all.turn().of_others(&two, |_| true), ports);
        assert_eq!(all.turn().of_others(&two, |id| *id != one), []);
        assert_eq!(all.turn().of_others(&one, |_| true), []);
        drop(starting);
        assert_eq!(all.turn().of_others(&two, |_| true), []);
    }
}
