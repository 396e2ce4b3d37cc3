//! Ports that every node answers on: those that the user named, and automatic ones from 30000 to 32767.

use std::{cell::OnceCell, collections::BTreeSet};

use orch_model::{
    service::{DYNAMIC_PORTS, PortConfig, Protocol, PublishMode, Service},
    task::TaskState,
};

use crate::state::{State, check::protocol_word};

/// Hands out published ports.
pub struct Ports<'a> {
    state: &'a State,
    given: BTreeSet<(Protocol, u16)>,
    /// Those that tasks have on their nodes: looked for once, and only when an automatic port is asked for.
    on_nodes: OnceCell<BTreeSet<(Protocol, u16)>>,
}

impl<'a> Ports<'a> {
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self { state, given: BTreeSet::new(), on_nodes: OnceCell::new() }
    }

    /// The ports of a service with automatic ones filled in; what it was given before it keeps.
    ///
    /// # Errors
    /// With a sentence for the operator when a port cannot be had.
    pub fn allocate(&mut self, service: &Service) -> Result<Vec<PortConfig>, String> {
        let mut before: Vec<&PortConfig> = service.endpoint.ports.iter().collect();
        let mut ports = Vec::with_capacity(service.spec.endpoint.ports.len());
        for asked in &service.spec.endpoint.ports {
            let mut port = asked.clone();
            if asked.publish_mode == PublishMode::Ingress && asked.published_port == 0 {
                let same = |p: &&PortConfig| {
                    let asks = |p: &PortConfig| (p.name.clone(), p.protocol, p.target_port, p.publish_mode);
                    asks(p) == asks(asked) && DYNAMIC_PORTS.contains(&p.published_port)
                };
                port.published_port = match before.iter().position(same) {
                    Some(at) => before.swap_remove(at).published_port,
                    None => self.automatic(asked.protocol)?,
                };
            }
            ports.push(port);
        }
        Ok(ports)
    }

    fn automatic(&mut self, protocol: Protocol) -> Result<u16, String> {
        let state = self.state;
        let on_nodes =
            self.on_nodes.get_or_init(|| state.services().flat_map(|service| on_nodes(state, service)).collect());
        let is_free = |port: &u16| {
            let wanted = (protocol, *port);
            let is_held = state.port_holder(protocol, *port).is_some();
            !is_held && !self.given.contains(&wanted) && !on_nodes.contains(&wanted)
        };
        let found = DYNAMIC_PORTS.into_iter().find(is_free);
        match found {
            Some(port) => {
                self.given.insert((protocol, port));
                Ok(port)
            }
            None => Err(format!(
                "every automatic {} port from {} to {} is in use: publish fewer ports or name one",
                protocol_word(protocol),
                DYNAMIC_PORTS.start(),
                DYNAMIC_PORTS.end()
            )),
        }
    }
}

/// Ports that the service's tasks have on their own nodes: those that the user named, and automatic ones.
pub(crate) fn on_nodes<'a>(state: &'a State, service: &'a Service) -> impl Iterator<Item = (Protocol, u16)> + use<'a> {
    let hosts = || service.spec.endpoint.ports.iter().filter(|port| port.publish_mode == PublishMode::Host);
    let named = hosts().filter(|port| port.published_port != 0);
    let has_automatic = hosts().any(|port| port.published_port == 0);
    let tasks = has_automatic.then(|| state.tasks_of(&service.id)).into_iter().flatten();
    let given = tasks.filter(|task| task.status.state <= TaskState::Running).flat_map(|task| &task.host_ports);
    named.chain(given).map(|port| (port.protocol, port.published_port)).filter(|(_, number)| *number != 0)
}
