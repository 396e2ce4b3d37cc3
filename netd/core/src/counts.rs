//! What the kernel's counters of a ruleset's elements say, in the operator's words.

use orch_model::TaskId;

use crate::{
    desired::Desired,
    names,
    ns::NsName,
    plan::guard::{OFFENDERS, STRANGERS},
    ruleset::{Key, word},
};

/// Something that is counted, with what tells it from others of its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// Connections from this node's tasks to a service's virtual address.
    ToService { service: String, network: String },
    /// Connections that came to this node by a published port.
    ToPort { service: String, protocol: &'static str, port: u16 },
    /// Packets that a task sent in another's name.
    Spoofed { network: String },
    /// Questions that the tasks of a service asked their DNS servers.
    Asked { service: String },
    /// Packets that came to a tunnel from no node of the cluster.
    Strange { port: u16 },
}

/// What network the ways out of tasks are on.
const GATEWAY: &str = "gateway";

/// What the counter of `key` in `set` counts; `None`: nothing that anybody is told.
#[must_use]
pub fn meaning(desired: &Desired, ns: &NsName, set: &str, key: &Key) -> Option<Counted> {
    match (set, key) {
        ("vips", Key::Addr(vip)) => {
            let of = |n| desired.services_of(n).find(|s| s.vips.contains(vip));
            let (network, service) = desired.networks.values().find_map(|n| Some((n, of(&n.id)?)))?;
            Some(Counted::ToService { service: name(&service.names), network: network.name.clone() })
        }
        ("ports" | "host_ports", Key::Port(protocol, port))
        | ("bound_host_ports", Key::AddrPort(_, protocol, port)) => {
            let mut services = desired.services.values().flat_map(|of| of.values());
            let publishes = |s: &&orch_model::assignment::ServiceEndpointItem| {
                s.ports.iter().any(|p| (p.protocol, p.published_port) == (*protocol, *port))
            };
            let service = services.find(publishes).map_or_else(String::new, |s| name(&s.names));
            Some(Counted::ToPort { service, protocol: word(*protocol), port: *port })
        }
        (OFFENDERS, Key::Link(_)) => {
            let network = match ns {
                NsName::Sandbox(id) => desired.networks.get(id)?.name.clone(),
                NsName::Host | NsName::Crypt | NsName::Task(_) => GATEWAY.to_owned(),
            };
            Some(Counted::Spoofed { network })
        }
        (STRANGERS, Key::Port(_, port)) => Some(Counted::Strange { port: *port }),
        _ => None,
    }
}

fn name(names: &[String]) -> String {
    names.first().cloned().unwrap_or_default()
}

/// Which of `tasks` is behind a link of a sandbox or of the node.
pub fn behind<'a>(link: &str, mut tasks: impl Iterator<Item = &'a TaskId>) -> Option<&'a TaskId> {
    tasks.find(|task| names::task_port(task) == link || names::gateway_port(task) == link)
}
