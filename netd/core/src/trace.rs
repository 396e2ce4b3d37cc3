//! Where a task's question for a name leads: name, virtual address, backends, routes; and where that breaks.
//!
//! Says what this node was told and has planned. Whether packets arrive is for the daemon to try: it is given the
//! [`Probe`]s.

use std::net::IpAddr;

use orch_model::{
    TaskId,
    assignment::{EndpointItem, NetworkItem, Peer, ServiceEndpointItem},
};

use crate::{
    desired::{Desired, LocalTask, Out},
    plan::Inputs,
};

/// What a step is about, in the order of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    From,
    Name,
    Vip,
    Rules,
    Backend,
    Route,
    Reach,
}

impl Stage {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::Name => "name",
            Self::Vip => "vip",
            Self::Rules => "rules",
            Self::Backend => "backend",
            Self::Route => "route",
            Self::Reach => "reach",
        }
    }
}

/// One thing on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub stage: Stage,
    pub text: String,
    /// The way ends here.
    pub broken: bool,
}

impl Step {
    #[must_use]
    pub fn fine(stage: Stage, text: String) -> Self {
        Self { stage, text, broken: false }
    }

    #[must_use]
    pub fn broken(stage: Stage, text: String) -> Self {
        Self { stage, text, broken: true }
    }
}

/// An address to connect to from the task's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// `the virtual address`, or a task's name.
    pub what: String,
    pub addr: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    pub steps: Vec<Step>,
    pub probes: Vec<Probe>,
    /// Where the service says it listens; `None` when it does not say.
    pub port: Option<u16>,
}

/// A task of this node that can ask for `name`.
#[must_use]
pub fn asker<'a>(inputs: &Inputs<'a>, name: &str) -> Option<&'a TaskId> {
    let can_ask = |task: &&LocalTask| !task.down && find(inputs.desired, task, name).is_some();
    inputs.tasks.values().find(can_ask).map(|task| &task.id)
}

/// The way from `task` to `name`.
#[must_use]
pub fn trace(inputs: &Inputs<'_>, task: &LocalTask, name: &str) -> Trace {
    let mut trace = Trace::default();
    let networks: Vec<_> = user_networks(inputs.desired, task).map(|network| network.name.as_str()).collect();
    let networks = if networks.is_empty() { "no network that has names".to_owned() } else { networks.join(", ") };
    trace.steps.push(Step::fine(Stage::From, format!("{} on {networks}", task.hostname)));
    let Some((network, known)) = find(inputs.desired, task, name) else {
        trace.steps.push(Step::broken(
            Stage::Name,
            format!(
                "no network of this container knows {name}: put both on one network; names of services and containers on \
                 other networks are not seen from here"
            ),
        ));
        return trace;
    };
    match known {
        Known::Service(service) => of_service(inputs, network, service, name, &mut trace),
        Known::Task(endpoint) => {
            let text = format!("{name} is a container of network {}", network.name);
            trace.steps.push(Step::fine(Stage::Name, text));
            of_endpoint(inputs, network, endpoint, &mut trace);
        }
    }
    trace
}

enum Known<'a> {
    Service(&'a ServiceEndpointItem),
    Task(&'a EndpointItem),
}

fn user_networks<'a>(desired: &'a Desired, task: &'a LocalTask) -> impl Iterator<Item = &'a NetworkItem> {
    task.attachments.iter().filter_map(|a| desired.networks.get(&a.network)).filter(|network| !network.ingress)
}

fn find<'a>(desired: &'a Desired, task: &LocalTask, name: &str) -> Option<(&'a NetworkItem, Known<'a>)> {
    let networks = task.attachments.iter().filter_map(|a| desired.networks.get(&a.network));
    networks.filter(|network| !network.ingress).find_map(|network| {
        let is_it = |known: &String| {
            let plain = name.strip_prefix("tasks.").unwrap_or(name);
            let plain = plain.strip_suffix(&format!(".{}", network.name)).unwrap_or(plain);
            known.eq_ignore_ascii_case(plain)
        };
        let service = desired.services_of(&network.id).find(|service| service.names.iter().any(is_it));
        let endpoint = || desired.endpoints_of(&network.id).find(|endpoint| endpoint.names.iter().any(is_it));
        let known = service.map(Known::Service).or_else(|| endpoint().map(Known::Task))?;
        Some((network, known))
    })
}

fn of_service(
    inputs: &Inputs<'_>,
    network: &NetworkItem,
    service: &ServiceEndpointItem,
    name: &str,
    trace: &mut Trace,
) {
    let others: Vec<_> = service.names.iter().filter(|other| *other != name).cloned().collect();
    let also = if others.is_empty() { String::new() } else { format!(" (also {})", others.join(", ")) };
    let text = format!("{name} is a service of network {}{also}", network.name);
    trace.steps.push(Step::fine(Stage::Name, text));
    trace.port = service.declared.first().map(|port| port.target_port);
    let direct = name.starts_with("tasks.");
    let vips = if direct { &[][..] } else { &service.vips[..] };
    for vip in vips {
        trace.steps.push(Step::fine(Stage::Vip, vip.to_string()));
        trace.probes.push(Probe { what: "the virtual address".to_owned(), addr: *vip });
    }
    if vips.is_empty() {
        trace.steps.push(Step::fine(Stage::Vip, "none: the name leads to the tasks themselves".to_owned()));
    }
    let endpoints: Vec<_> =
        inputs.desired.endpoints_of(&network.id).filter(|endpoint| endpoint.service == service.service).collect();
    let out = out(inputs);
    let backends = inputs.desired.backends(&network.id, &service.service, &out);
    let (serving, idle): (Vec<&EndpointItem>, Vec<_>) =
        endpoints.iter().partition(|endpoint| endpoint.addresses.iter().any(|addr| backends.contains(addr)));
    for endpoint in &idle {
        let text = format!("{}: takes no connections: {}", label(inputs, endpoint), why_idle(endpoint, &out));
        trace.steps.push(Step::fine(Stage::Backend, text));
    }
    if serving.is_empty() {
        let text = match endpoints.len() {
            0 => "the service has no task that is ready: connections are refused at once; see `orch service ps`"
                .to_owned(),
            n => {
                format!("none of its {n} tasks takes connections now: they are refused at once; see `orch service ps`")
            }
        };
        trace.steps.push(Step::broken(Stage::Backend, text));
    }
    for endpoint in serving {
        let text = format!("{}: takes connections", label(inputs, endpoint));
        trace.steps.push(Step::fine(Stage::Backend, text));
        of_endpoint(inputs, network, endpoint, trace);
    }
}

fn of_endpoint(inputs: &Inputs<'_>, network: &NetworkItem, endpoint: &EndpointItem, trace: &mut Trace) {
    let name = endpoint.names.first().cloned().unwrap_or_else(|| endpoint.task.to_string());
    trace.steps.push(route(inputs, network, endpoint, &name));
    let probes = endpoint.addresses.iter().map(|addr| Probe { what: name.clone(), addr: *addr });
    trace.probes.extend(probes);
}

fn route(inputs: &Inputs<'_>, network: &NetworkItem, endpoint: &EndpointItem, name: &str) -> Step {
    let is_here = inputs.tasks.contains_key(&endpoint.task) || Some(&endpoint.node) == inputs.desired.node.as_ref();
    match (is_here, inputs.desired.peers.get(&endpoint.node)) {
        (true, _) => Step::fine(Stage::Route, format!("to {name}: by the network's bridge on this node")),
        (false, Some(peer)) if !network.is_encrypted() => {
            let text = format!("to {name}: through the tunnel {} to {}", network.vni, peer.data_addr);
            Step::fine(Stage::Route, text)
        }
        (false, Some(peer)) => encrypted_route(inputs, network, peer, name),
        (false, None) => {
            let text = format!(
                "to {name}: node {} has no tunnel address that this node knows: check its session with the managers \
                 (`orch node ls`)",
                endpoint.node
            );
            Step::broken(Stage::Route, text)
        }
    }
}

fn encrypted_route(inputs: &Inputs<'_>, network: &NetworkItem, peer: &Peer, name: &str) -> Step {
    let why = if !inputs.facts.encrypts {
        "this node's kernel has no WireGuard"
    } else if peer.tunnel_key.is_none() {
        "its node has told no key: see `orch node inspect` there"
    } else {
        let text = format!("to {name}: through the tunnel {}, encrypted, to {}", network.vni, peer.data_addr);
        return Step::fine(Stage::Route, text);
    };
    Step::broken(Stage::Route, format!("to {name}: network {} is encrypted, and {why}", network.name))
}

fn label(inputs: &Inputs<'_>, endpoint: &EndpointItem) -> String {
    let name = endpoint.names.first().cloned().unwrap_or_else(|| endpoint.task.to_string());
    let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
    let place = if Some(&endpoint.node) == inputs.desired.node.as_ref() { "here" } else { "elsewhere" };
    format!("{name} {} ({place})", addresses.join(" "))
}

fn why_idle(endpoint: &EndpointItem, out: &Out) -> &'static str {
    if out.tasks.contains(&endpoint.task) {
        "its process is gone"
    } else if !endpoint.serving {
        "it is starting, unhealthy or about to stop"
    } else if out.nodes.contains(&endpoint.node) {
        "its node is taken for dead"
    } else {
        "it has no address of the wanted kind"
    }
}

fn out(inputs: &Inputs<'_>) -> Out {
    let tasks = inputs.tasks.values().filter(|task| task.down).map(|task| task.id.clone()).collect();
    Out { tasks, nodes: inputs.desired.withdrawn(inputs.suspects) }
}
