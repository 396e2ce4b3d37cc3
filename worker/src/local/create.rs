//! Makes a one-off container from what the user asked for; nothing runs yet.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    sync::Arc,
    time::SystemTime,
};

use orch_model::{
    Annotations, Meta, ServiceId, TaskId, Timestamp, Version, logging,
    service::{PortConfig, Protocol, PublishMode, TaskSpec},
    task::{Task, TaskState, TaskStatus},
};
use orch_proto::{
    conv::{DecodeError, FromProto, ToProto},
    wire::{self, CreateContainerRequest, LocalContainer, LocalState, RegistryAuth},
};

use super::{
    LocalError, Locals, One, attachment::check_aliases, joined, limits, names, names::Reserved, policy::Restart,
    port_holder, starting::Starting,
};
use crate::{
    agent::{container_id_of, prepare, unix_ms},
    image::{claims::Claim, config::ImageConfig, reference::Reference, store::StoredImage},
};

/// The node's own network: addresses behind its NAT.
pub(crate) const BRIDGE: &str = "bridge";
pub(crate) const HOST: &str = "host";
pub(crate) const NONE: &str = orch_model::network::NONE;
/// In a record: none of these, only networks that have a name.
pub(crate) const NAMED: &str = "named";
/// Of some 7,000 that the kernel chooses among, by chance.
const PORT_DRAWS: usize = 1000;
/// Tries to make up a name that is free.
const NAME_ATTEMPTS: u32 = 100;

impl Locals {
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Result<Arc<One>, LocalError> {
        Restart::parse(request.restart.as_ref())?;
        let options = request.options.clone().unwrap_or_default();
        self.check_options(&options)?;
        let asked = request.spec.as_ref().and_then(|spec| spec.limits).unwrap_or_default();
        limits::check(asked.memory_bytes, &options.limits.unwrap_or_default())?;
        limits::cpus(asked.nano_cpus)?;
        let joined = joined::reference(&request.network).map(|other| self.other(other)).transpose()?;
        let network = match &joined {
            Some(other) => other.mode(),
            None => network_of(&request.network, !request.networks.is_empty())?.to_owned(),
        };
        let has_own = joined.is_none() && !matches!(network.as_str(), HOST | NONE);
        if !has_own && !request.networks.is_empty() {
            return Err(if network == NONE { LocalError::NoneMode } else { LocalError::HostMode });
        }
        let invalid = |error: DecodeError| LocalError::Invalid(error.to_string());
        let mut spec = TaskSpec::from_proto(request.spec.unwrap_or_default()).map_err(invalid)?;
        if let Some(driver) = &spec.log_driver {
            logging::check(driver).map_err(super::invalid)?;
        }
        let mut ports = Vec::<PortConfig>::from_proto(request.ports).map_err(invalid)?;
        // Only the kernel passes it on, and only within one family.
        if let Some(port) = ports.iter().find(|port| port.protocol == Protocol::Sctp && of_v6(port)) {
            return Err(LocalError::SctpOfV6(port.target_port));
        }
        // Until the container is on record.
        let (image, _claim) = self.image_for(&spec.container.image, &request.pull, request.auth).await?;
        let config = self.host.images.store.config(&image.record.config).map_err(prepare::PrepareError::from)?;
        spec.container.image_digest = Some(image.digest.clone());
        // As with Docker, the image's labels are the container's from here on, whatever becomes of the image.
        for (key, value) in &config.config.labels {
            spec.container.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        if request.publish_all {
            ports.extend(exposed(&config, &ports));
        }
        if !has_own && !ports.is_empty() {
            return Err(LocalError::PortsOn(request.network));
        }
        let command = prepare::command_line(&spec.container, &config.config.entrypoint, &config.config.cmd);
        if command.is_empty() {
            return Err(LocalError::Invalid("no command specified".to_owned()));
        }
        match &joined {
            Some(other) => spec.container.hostname.clone_from(&other.hostname),
            None if network == HOST && spec.container.hostname.is_empty() => {
                spec.container.hostname = prepare::host_name()
            }
            None => {}
        }
        let id = TaskId::from_random(rand::random());
        // Until others find it by its name.
        let reserved = self.reserve(&request.name, &id)?;
        let mut record = LocalContainer {
            task_id: id.to_string(),
            name: reserved.name.clone(),
            spec: Some(spec.to_proto()),
            ports: ports.to_proto(),
            network,
            restart: request.restart,
            auto_remove: request.auto_remove,
            created_at_ms: unix_ms(SystemTime::now()),
            image_digest: image.digest,
            command,
            state: LocalState::Created.into(),
            networks: request.networks,
            options: request.options,
            ..LocalContainer::default()
        };
        self.check_remap(&record)?;
        let task = task_of(&record).map_err(invalid)?;
        if !record.networks.is_empty() {
            check_aliases(&record.networks)?;
            let one = One::new(Arc::new(task.clone()), record.clone());
            record.networks = self.check_networks(&one, record.networks).await?;
        }
        self.host.store.save_local(&record)?;
        let one = self.add(Arc::new(task), record);
        self.tell(&one, "create");
        Ok(one)
    }

    pub(crate) async fn rename(&self, one: &One, name: &str) -> Result<(), LocalError> {
        if name.is_empty() {
            return Err(LocalError::Invalid("Neither old nor new names may be empty".to_owned()));
        }
        let reserved = self.reserve(name, &one.id)?;
        let _turn = one.turn.lock().await;
        if one.is_removed() {
            return Err(LocalError::NotFound(one.container_id()));
        }
        let before = one.now().record.clone();
        // Its old name is to be had again when this fails.
        let _old = self.reserved.turn().take(before.name.clone(), &one.id);
        {
            let mut now = one.now();
            let mut record = now.record.clone();
            record.name.clone_from(&reserved.name);
            self.host.store.save_local(&record)?;
            now.record = record;
        }
        // Where nobody finds it by its name there is nothing to tell.
        if before.networks.is_empty() { Ok(()) } else { self.carry_out(one, before).await }
    }

    /// The given name, if nobody has it or is about to, or one that is free.
    fn reserve(&self, wanted: &str, id: &TaskId) -> Result<Reserved, LocalError> {
        // Before anything is looked at: whoever gives a reservation up is found by that name by then.
        let turn = self.reserved.turn();
        let all = self.all();
        let owner = |name: &str| {
            let has_it = all.iter().find(|one| one.name() == name).map(|one| &one.id);
            has_it.or_else(|| turn.owner(name)).map(container_id_of)
        };
        if wanted.is_empty() {
            let bits = rand::random();
            let free = (0..NAME_ATTEMPTS).map(|n| names::made_up(bits, n)).find(|name| owner(name).is_none());
            let none = || LocalError::Invalid("no free name was found: give one with --name".to_owned());
            return Ok(turn.take(free.ok_or_else(none)?, id));
        }
        let name = wanted.strip_prefix('/').unwrap_or(wanted);
        if !names::is_valid(name) {
            return Err(LocalError::Name(name.to_owned()));
        }
        let of_task = self.host.entries().into_iter().find(|entry| entry.task.container_name() == name);
        match owner(name).or(of_task.map(|entry| container_id_of(&entry.task.id))) {
            Some(id) => Err(LocalError::NameTaken { name: name.to_owned(), id }),
            None => Ok(turn.take(name.to_owned(), id)),
        }
    }

    async fn image_for(
        &self,
        image: &str,
        pull: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<(StoredImage, Claim), LocalError> {
        let reference = Reference::parse(image)?;
        loop {
            let here = self.host.images.store.find(image);
            let found = match (pull, here) {
                ("never", None) => return Err(LocalError::NoImage(reference.familiar())),
                ("never" | "missing" | "", Some(found)) => found,
                ("missing" | "always" | "", _) => {
                    let progress = tokio::sync::mpsc::channel(1).0;
                    self.host.images.pull(&reference, auth.as_ref(), &progress).await?
                }
                (other, _) => {
                    return Err(LocalError::Invalid(format!(
                        "invalid pull option: '{other}': must be one of \"always\", \"missing\" or \"never\""
                    )));
                }
            };
            if let Some(kept) = self.host.images.keep(found).await {
                return Ok(kept);
            }
        }
    }

    /// Published ports of 0 become free ones; others must be free. What the container had before it keeps, if it can.
    pub(super) fn assign_ports(&self, one: &One) -> Result<(Vec<PortConfig>, Starting), LocalError> {
        let wanted = one.task.host_ports.clone();
        let ranges = ranges(&one.now().record)?;
        let turn = self.starting.turn();
        let mut taken = self.ports_of_running(&one.id);
        taken.extend(turn.of_others(&one.id, |_| true));
        taken.extend(
            self.host.entries().iter().filter(|e| e.container.is_some()).flat_map(|e| e.task.host_ports.clone()),
        );
        let everywhere = self.host.items.published_by_all();
        let mut ports = Vec::new();
        for mut port in wanted {
            if let Some(addr) = port.host_ip.filter(|addr| UdpSocket::bind((*addr, 0)).is_err()) {
                return Err(LocalError::NoAddress(addr));
            }
            if let Some(range) = ranges.iter().find(|range| range.covers(&port)) {
                let all = || everywhere.iter().chain(&taken).chain(&ports);
                port = range.choose(|one| !all().any(|other| clash(other, one)) && is_free(one));
            }
            if port.published_port == 0 {
                let drawn = draw_port(
                    &port,
                    || free_port(port.protocol, port.host_ip),
                    |drawn| everywhere.iter().chain(&taken).chain(&ports).any(|other| clash(other, drawn)),
                );
                port.published_port = drawn.ok_or(LocalError::NoPort(port.target_port))?;
            } else if everywhere.iter().any(|other| clash(other, &port)) {
                return Err(LocalError::port(&port, Some("a service, for all nodes".into())));
            } else if taken.iter().chain(&ports).any(|other| clash(other, &port)) || !is_free(&port) {
                let holder = port_holder::holder(&port);
                // It may be netd that listens there, for this container's last run, until it attaches the next.
                if holder.is_some() || !of_v6(&port) || taken.iter().any(|other| clash(other, &port)) {
                    return Err(LocalError::port(&port, holder));
                }
            }
            ports.push(port);
        }
        let starting = turn.take(&one.id, &ports);
        Ok((ports, starting))
    }

    /// Refuses a task the ports that a one-off container of this node has, or a program that listens: who asks for them
    /// would find that one, or find it no more.
    pub(crate) fn leave_ports(&self, task: &Task) -> Result<Starting, LocalError> {
        let turn = self.starting.turn();
        let mut taken = self.ports_of_running(&task.id);
        // Managers keep tasks apart; the one before this may be about to end.
        taken.extend(turn.of_others(&task.id, |id| self.knows(id)));
        for port in &task.host_ports {
            let holder = if taken.iter().any(|other| clash(other, port)) {
                Some("a container of `orch run`".to_owned())
            } else if is_free(port) {
                None
            } else {
                // Another reason is none for a task: a connection that has the number goes away.
                port_holder::holder(port)
            };
            if holder.is_some() {
                return Err(LocalError::port(port, holder));
            }
        }
        Ok(turn.take(&task.id, &task.host_ports))
    }

    /// Those of all running one-off containers but this one.
    fn ports_of_running(&self, but: &TaskId) -> Vec<PortConfig> {
        let others = self.all().into_iter().filter(|other| other.id != *but && other.now().container.is_some());
        let ports = |other: Arc<One>| Vec::<PortConfig>::from_proto(other.now().record.ports.clone());
        others.flat_map(|other| ports(other).unwrap_or_default()).collect()
    }
}

/// Published ports of which a port of the container takes one.
struct Range {
    first: PortConfig,
    last: u16,
}

impl Range {
    /// Also when the port has been given one of them.
    fn covers(&self, port: &PortConfig) -> bool {
        let but_for_the_number = PortConfig { published_port: self.first.published_port, ..port.clone() };
        but_for_the_number == self.first && (self.first.published_port..=self.last).contains(&port.published_port)
    }

    /// The first that is free; the last where none is, which then tells who has it.
    fn choose(&self, is_free: impl Fn(&PortConfig) -> bool) -> PortConfig {
        let of = |published_port| PortConfig { published_port, ..self.first.clone() };
        (self.first.published_port..=self.last).map(of).find(is_free).unwrap_or_else(|| of(self.last))
    }
}

fn ranges(record: &LocalContainer) -> Result<Vec<Range>, LocalError> {
    let invalid = |error: DecodeError| LocalError::Invalid(error.to_string());
    let given = record.options.iter().flat_map(|options| &options.port_ranges);
    let range = |range: &wire::PortRange| {
        let first = PortConfig::from_proto(range.port.clone().unwrap_or_default()).map_err(invalid)?;
        let last = u16::try_from(range.last).map_err(|_| LocalError::Invalid("a port is 65535 at most".to_owned()))?;
        Ok(Range { first, last })
    };
    given.map(range).collect()
}

fn of_v6(port: &PortConfig) -> bool {
    port.host_ip.is_some_and(|addr| addr.is_ipv6())
}

/// Whether two cannot be had at once. A port of 0 is none yet.
fn clash(a: &PortConfig, b: &PortConfig) -> bool {
    let elsewhere = matches!((a.host_ip, b.host_ip), (Some(theirs), Some(ours)) if theirs != ours);
    a.published_port != 0 && (a.published_port, a.protocol) == (b.published_port, b.protocol) && !elsewhere
}

/// The container in the form of a task. The service is nobody's: an id that no manager gives.
pub(super) fn task_of(record: &LocalContainer) -> Result<Task, DecodeError> {
    let created_at = Timestamp::from_unix_ms(record.created_at_ms);
    let annotations = Annotations { name: record.name.clone(), ..Annotations::default() };
    Ok(Task {
        id: TaskId::from_proto(record.task_id.clone())?,
        meta: Meta { version: Version(0), created_at, updated_at: created_at },
        service: ServiceId::nobody(),
        service_annotations: Arc::new(annotations),
        slot: 0,
        node: None,
        spec: Arc::new(TaskSpec::from_proto(record.spec.clone().unwrap_or_default())?),
        spec_version: Version(0),
        status: TaskStatus {
            state: TaskState::New,
            at: created_at,
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
        host_ports: Vec::from_proto(record.ports.clone())?,
    })
}

fn network_of(wanted: &str, has_others: bool) -> Result<&'static str, LocalError> {
    match wanted {
        "" if has_others => Ok(NAMED),
        "" | "default" | BRIDGE => Ok(BRIDGE),
        NONE => Ok(NONE),
        HOST => Ok(HOST),
        other => Err(LocalError::Network(other.to_owned())),
    }
}

/// What the image exposes and the user did not publish.
fn exposed(config: &ImageConfig, published: &[PortConfig]) -> Vec<PortConfig> {
    let ports = config.config.exposed_ports.keys().filter_map(|entry| {
        let (port, protocol) = entry.split_once('/').unwrap_or((entry, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let target_port = port.parse().ok()?;
        let publish_mode = PublishMode::Host;
        Some(PortConfig::new(protocol, 0, target_port, publish_mode))
    });
    ports
        .filter(|port| !published.iter().any(|p| p.target_port == port.target_port && p.protocol == port.protocol))
        .collect()
}

/// One that nobody here has: what rules of the kernel pass on has no socket that would tell.
fn draw_port(
    port: &PortConfig,
    draw: impl FnMut() -> Option<u16>,
    is_taken: impl Fn(&PortConfig) -> bool,
) -> Option<u16> {
    let draws = std::iter::repeat_with(draw).take(PORT_DRAWS).map_while(|drawn| drawn);
    draws
        .map(|published_port| PortConfig { published_port, ..port.clone() })
        .find(|drawn| !is_taken(drawn))
        .map(|drawn| drawn.published_port)
}

fn free_port(protocol: Protocol, addr: Option<IpAddr>) -> Option<u16> {
    let at = (addr.filter(IpAddr::is_ipv6).unwrap_or(Ipv4Addr::UNSPECIFIED.into()), 0);
    match protocol {
        Protocol::Tcp | Protocol::Sctp => TcpListener::bind(at).and_then(|socket| socket.local_addr()),
        Protocol::Udp => UdpSocket::bind(at).and_then(|socket| socket.local_addr()),
    }
    .ok()
    .map(|addr| addr.port())
}

/// Whether no socket of the node is in its way. An address that the node does not have is nobody's.
fn is_free(port: &PortConfig) -> bool {
    let addr = port.bound_to();
    let bound = match port.protocol {
        Protocol::Tcp => TcpListener::bind(addr).map(drop),
        Protocol::Udp => UdpSocket::bind(addr).map(drop),
        Protocol::Sctp => Ok(()),
    };
    bound.err().is_none_or(|error| error.kind() != io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_drawn_is_nobodys() {
        let port = |number| PortConfig::new(Protocol::Tcp, number, 80, PublishMode::Host);
        let taken = [port(32_769), port(32_771)];
        let is_taken = |drawn: &PortConfig| taken.iter().any(|other| clash(other, drawn));
        let drawn = |numbers: &[u16]| {
            let mut numbers = numbers.iter().copied();
            draw_port(&port(0), || numbers.next(), is_taken)
        };
        assert_eq!(drawn(&[32_771, 32_769, 32_771, 40_001, 40_003]), Some(40_001));
        assert_eq!(drawn(&[32_771]), None);
        assert_eq!(draw_port(&port(0), || Some(32_769), is_taken), None);
    }

    #[test]
    fn of_a_range_the_first_that_is_free_is_taken() {
        let port = |number, target| PortConfig::new(Protocol::Tcp, number, target, PublishMode::Host);
        let range = Range { first: port(8000, 80), last: 8002 };
        let chosen = |taken: &[u16]| range.choose(|one| !taken.contains(&one.published_port));
        for (taken, want) in
            [(&[][..], 8000), (&[8001], 8000), (&[8000], 8001), (&[8001, 8000], 8002), (&[8000, 8001, 8002], 8002)]
        {
            assert_eq!(chosen(taken), port(want, 80), "{taken:?}");
        }
        for (of, want) in [
            (port(8000, 80), true),
            (port(8002, 80), true),
            (port(8003, 80), false),
            (port(7999, 80), false),
            (port(8000, 81), false),
            (PortConfig::new(Protocol::Udp, 8000, 80, PublishMode::Host), false),
        ] {
            assert_eq!(range.covers(&of), want, "{of:?}");
        }
    }
}
