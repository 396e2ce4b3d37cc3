//! Which networks a one-off container is on: asked for, given while it runs, changed while it runs, taken back.
//!
//! Networks of the cluster are the managers': they give the address and let the name be found everywhere. What managers
//! are to know is said as a whole ([`Presence`]), so that what got lost on the way is mended by the next time. Networks of
//! this node alone are the worker's.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnetwork::IpNetwork;
use orch_model::{
    NetworkId, NodeId, TaskId,
    network::{is_host_name, is_predefined},
    task::TaskAttachment,
};
use orch_proto::{
    conv::{FromProto, ToProto},
    wire::{
        ContainerNetwork, KeepContainersRequest, LocalContainer, LocalNetwork, NetworkMember,
        SetContainerNetworksRequest, SetContainerNetworksResponse, WantedNetwork,
    },
};
use tokio::{sync::watch, time::timeout};

use super::{
    LocalError, Locals, One,
    create::{BRIDGE, HOST, NAMED, NONE},
    joined::is_joined,
    networks::{NetworkError, Taken},
};
use crate::agent::{
    CurrentSession, Live, has_ipv6, host_networks,
    prepare::{self, PrepareError},
    unix_ms,
};

/// A manager's answer may wait for its disk.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Characters of a container's id that are a name of it.
const SHORT_ID_LEN: usize = 12;

/// The one-off containers of this node that are on networks of the cluster.
pub(crate) struct Presence {
    session: Arc<CurrentSession>,
    held: Mutex<BTreeSet<TaskId>>,
    /// Rises when something was given back.
    released: watch::Sender<u64>,
    /// One at a time, so that managers hear of things in their order.
    turn: tokio::sync::Mutex<()>,
}

impl Presence {
    pub(crate) fn new(session: Arc<CurrentSession>) -> Self {
        Self {
            session,
            held: Mutex::default(),
            released: watch::Sender::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    async fn set(&self, one: &One, networks: Vec<WantedNetwork>) -> Result<SetContainerNetworksResponse, LocalError> {
        let _turn = self.turn.lock().await;
        self.hold(&one.id);
        self.ask(one, networks, false).await
    }

    async fn ask(
        &self,
        one: &One,
        networks: Vec<WantedNetwork>,
        check_only: bool,
    ) -> Result<SetContainerNetworksResponse, LocalError> {
        let Live { session, mut dispatcher, .. } = self.session.wait().await.ok_or(LocalError::NoManager)?;
        let (task_id, name) = (one.id.to_string(), one.name());
        let request = SetContainerNetworksRequest { session_id: session, task_id, name, networks, check_only };
        let answer = timeout(CALL_TIMEOUT, dispatcher.set_container_networks(request)).await;
        let answer = answer.map_err(|_| LocalError::NoManager)?;
        Ok(answer.map_err(|status| LocalError::Managers(Box::new(status)))?.into_inner())
    }

    fn hold(&self, id: &TaskId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
    }

    /// Managers hear of it with the next list.
    fn release(&self, id: &TaskId) {
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
            self.released.send_modify(|count| *count += 1);
        }
    }

    /// Keeps the managers' list at what is here, for the length of a session.
    pub(crate) async fn keep(&self, live: &Live) -> Result<std::convert::Infallible, tonic::Status> {
        let mut released = self.released.subscribe();
        let mut dispatcher = live.dispatcher.clone();
        loop {
            {
                let _turn = self.turn.lock().await;
                released.borrow_and_update();
                let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let task_ids = held.iter().map(ToString::to_string).collect();
                let request = KeepContainersRequest { session_id: live.session.clone(), task_ids };
                let kept = timeout(CALL_TIMEOUT, dispatcher.keep_containers(request)).await;
                kept.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the manager does not answer")))?;
            }
            // The sender lives as long as `self`.
            let _ = released.changed().await;
        }
    }
}

/// Of what is new: a container from before aliases were looked at keeps what it has.
pub(super) fn check_aliases(networks: &[ContainerNetwork]) -> Result<(), LocalError> {
    let mut aliases = networks.iter().flat_map(|network| &network.aliases);
    aliases.find(|alias| !is_host_name(alias)).map_or(Ok(()), |alias| Err(LocalError::Alias(alias.clone())))
}

impl Locals {
    /// Refuses networks that are not there or not for containers; fills in which one each is.
    pub(super) async fn check_networks(
        &self,
        one: &One,
        mut networks: Vec<ContainerNetwork>,
    ) -> Result<Vec<ContainerNetwork>, LocalError> {
        for network in &mut networks {
            self.resolve(network)?;
        }
        let seen = |n: usize| networks[..n].iter().any(|other| other.network == networks[n].network);
        if let Some(twice) = (0..networks.len()).find(|n| seen(*n)) {
            return Err(LocalError::Twice(networks[twice].network.clone()));
        }
        let of_cluster: Vec<_> = networks.iter().filter(|network| !network.local).map(wanted).collect();
        if !of_cluster.is_empty() {
            let answer = self.presence.ask(one, of_cluster, true).await?;
            name_them(&mut networks, &answer);
        }
        Ok(networks)
    }

    /// Which network of this node it is, if it is one.
    fn resolve(&self, network: &mut ContainerNetwork) -> Result<(), LocalError> {
        if is_predefined(&network.network) {
            return Err(LocalError::Predefined(network.network.clone()));
        }
        let known = network.network_id.clone();
        let reference = if known.is_empty() { &network.network } else { &known };
        match self.networks.find(reference) {
            Some((id, name)) => {
                let wanted = addresses(&network.addresses)?;
                if network.given.is_empty() {
                    self.networks.check(&id, &wanted)?;
                }
                (network.network_id, network.network, network.local) = (id.to_string(), name, true);
                Ok(())
            }
            None if network.local => Err(NetworkError::NotFound(network.network.clone()).into()),
            None => Ok(()),
        }
    }

    /// Gives a container that starts, or runs, its place on each of its networks. What it has it keeps.
    pub(super) async fn join_networks(&self, one: &One) -> Result<Vec<TaskAttachment>, LocalError> {
        let mut networks = self.check_resolved(one)?;
        let of_cluster: Vec<_> =
            networks.iter().filter(|network| !network.local).map(|n| self.as_wanted(one, n)).collect();
        let mut given = std::collections::VecDeque::new();
        if of_cluster.is_empty() {
            self.presence.release(&one.id);
        } else {
            let answer = self.presence.set(one, of_cluster).await?;
            name_them(&mut networks, &answer);
            given.extend(Vec::<TaskAttachment>::from_proto(answer.networks).map_err(super::invalid)?);
        }
        let mut attachments = Vec::new();
        for network in &mut networks {
            let attachment = if network.local {
                let id: NetworkId = network.network_id.parse().map_err(super::invalid)?;
                self.networks.join(&id, &one.id, names(one, network), &addresses(&network.addresses)?)?
            } else {
                given.pop_front().ok_or(LocalError::NoManager)?
            };
            network.given = attachment.addresses.iter().map(ToString::to_string).collect();
            attachments.push(attachment);
        }
        let kept: Vec<_> = attachments.iter().map(|attachment| attachment.network.clone()).collect();
        self.networks.leave_but(&one.id, &kept);
        self.tell_netd();
        let of_cluster: Vec<_> =
            networks.iter().filter(|n| !n.local).filter_map(|n| n.network_id.parse().ok()).collect();
        self.host.netd.told_of(&of_cluster).await.map_err(prepare::PrepareError::from)?;
        self.change(one, |now| now.record.networks = networks);
        Ok(attachments)
    }

    fn check_resolved(&self, one: &One) -> Result<Vec<ContainerNetwork>, LocalError> {
        let mut networks = one.now().record.networks.clone();
        networks.iter_mut().try_for_each(|network| self.resolve(network))?;
        Ok(networks)
    }

    /// After a change of the container's networks or name while it runs.
    pub(super) async fn rejoin_networks(&self, one: &One) -> Result<(), LocalError> {
        let attachments = self.join_networks(one).await?;
        let request = attach_request(one, &one.now().record.clone(), &attachments);
        let attached = self.host.netd.attach(&one.id, request).await.map_err(prepare::PrepareError::from)?;
        one.now().address = attached.primary_address;
        Ok(())
    }

    /// What it was given goes back.
    pub(super) fn leave_networks(&self, one: &One) {
        self.presence.release(&one.id);
        self.networks.leave_but(&one.id, &[]);
        self.tell_netd();
        if one.now().record.networks.iter().any(|network| !network.given.is_empty()) {
            self.change(one, |now| now.record.networks.iter_mut().for_each(|network| network.given.clear()));
        }
    }

    /// Takes up a container that an earlier worker started.
    pub(super) fn recover_networks(&self, one: &One) -> Vec<TaskAttachment> {
        let record = one.now().record.clone();
        let mut attachments = Vec::new();
        for network in &record.networks {
            let Ok(id) = network.network_id.parse::<NetworkId>() else { continue };
            let addresses: Vec<IpNetwork> = network.given.iter().filter_map(|address| address.parse().ok()).collect();
            if network.local {
                self.networks.rejoin(&id, &one.id, names(one, network), addresses.clone());
            } else {
                self.presence.hold(&one.id);
            }
            attachments.push(TaskAttachment { network: id, addresses, aliases: Vec::new() });
        }
        self.tell_netd();
        attachments
    }

    /// `orch network connect`.
    pub(crate) async fn connect(&self, one: &Arc<One>, network: ContainerNetwork) -> Result<(), LocalError> {
        let _turn = one.turn.lock().await;
        let before = one.now().record.clone();
        match before.network.as_str() {
            _ if is_shared(&before) => return Err(LocalError::HostMode),
            NONE => return Err(LocalError::NoneMode),
            _ => {}
        }
        let there = |name: &str| LocalError::Connected { container: before.name.clone(), network: name.to_owned() };
        if network.network == BRIDGE {
            if before.network == BRIDGE {
                return Err(there(BRIDGE));
            }
            self.change(one, |now| BRIDGE.clone_into(&mut now.record.network));
        } else {
            check_aliases(std::slice::from_ref(&network))?;
            let wanted = before.networks.iter().cloned().chain([network]).collect();
            // It may take long, and what else happens to the container is recorded meanwhile.
            let checked = self.check_networks(one, wanted).await;
            let networks = checked.map_err(|error| match error {
                LocalError::Twice(name) => there(&name),
                other => other,
            })?;
            self.change(one, |now| now.record.networks = networks);
        }
        self.carry_out(one, before).await
    }

    /// `orch network disconnect`.
    pub(crate) async fn disconnect(&self, one: &Arc<One>, network: &str) -> Result<(), LocalError> {
        let _turn = one.turn.lock().await;
        let before = one.now().record.clone();
        let not_there = || LocalError::NotConnected { container: before.name.clone(), network: network.to_owned() };
        if is_shared(&before) {
            return Err(LocalError::HostMode);
        }
        if network == BRIDGE {
            if before.network != BRIDGE {
                return Err(not_there());
            }
            self.change(one, |now| NAMED.clone_into(&mut now.record.network));
        } else {
            let is_it = |n: &ContainerNetwork| {
                n.network == network || (network.len() >= 3 && n.network_id.starts_with(network))
            };
            if !before.networks.iter().any(is_it) {
                return Err(not_there());
            }
            self.change(one, |now| now.record.networks.retain(|n| !is_it(n)));
        }
        self.carry_out(one, before).await
    }

    /// Lets a container that runs have the networks and the name of its record; they are what they were before when that
    /// fails.
    pub(super) async fn carry_out(&self, one: &One, before: LocalContainer) -> Result<(), LocalError> {
        if one.running().0.is_none() {
            return Ok(());
        }
        let done = self.rejoin_networks(one).await;
        if one.running().0.is_none() {
            // It ended meanwhile: what it just got would stay with nobody.
            self.give_back(one).await;
            return Ok(());
        }
        if done.is_err() {
            self.change(one, |now| {
                now.record.networks.clone_from(&before.networks);
                now.record.network.clone_from(&before.network);
                now.record.name.clone_from(&before.name);
            });
            // A netd that is away attaches it as before once it is back: it is not waited for a second time.
            let rejoined = match &done {
                Err(LocalError::Prepare(PrepareError::Network(error))) if error.is_passing() => {
                    self.join_networks(one).await.map(drop)
                }
                _ => self.rejoin_networks(one).await,
            };
            if let Err(error) = rejoined {
                tracing::warn!(name = before.name, %error, "a container is not on the networks that it was on");
            }
        }
        done
    }

    /// `orch network create -d bridge`.
    pub(crate) async fn create_network(&self, asked: LocalNetwork) -> Result<LocalNetwork, LocalError> {
        let wants_v6 = asked.ipv6 || asked.ipam.iter().any(|ipam| ipam.subnet.contains(':'));
        if wants_v6 && !has_ipv6() {
            return Err(NetworkError::NoV6.into());
        }
        let mut taken: Vec<(IpNetwork, String)> =
            host_networks().into_iter().map(|net| (net, "a network that this node is on".to_owned())).collect();
        let gateway = self.host.netd.gateway_subnet().await.map_err(prepare::PrepareError::from)?;
        taken.extend(gateway.map(|net| (net, "the node's gateway network".to_owned())));
        let created =
            self.networks.create(asked, Taken(taken), rand::random(), unix_ms(std::time::SystemTime::now()))?;
        self.tell_netd();
        Ok(created)
    }

    pub(crate) fn remove_network(&self, reference: &str) -> Result<(), LocalError> {
        self.networks.remove(reference)?;
        self.tell_netd();
        Ok(())
    }

    pub(crate) async fn list_networks(&self) -> Vec<LocalNetwork> {
        // A netd that is away is no reason to list nothing.
        let gateway = self.host.netd.gateway_subnet().await.ok().flatten();
        let on_bridge = self.all().into_iter().filter_map(|one| {
            let now = one.now();
            let is_member = now.record.network == BRIDGE && now.container.is_some();
            is_member.then(|| NetworkMember {
                container_id: one.container_id(),
                name: now.record.name.clone(),
                addresses: vec![now.address.clone()],
            })
        });
        self.networks.list(on_bridge.collect(), gateway)
    }

    fn tell_netd(&self) {
        let Ok(node) = self.host.netd.node_id().parse::<NodeId>() else { return };
        self.host.netd.set_own(|| self.networks.items(&node));
    }

    fn as_wanted(&self, one: &One, network: &ContainerNetwork) -> WantedNetwork {
        let reference = if network.network_id.is_empty() { &network.network } else { &network.network_id };
        let aliases = names(one, network).into_iter().skip(1).collect();
        WantedNetwork { network: reference.clone(), aliases, addresses: network.addresses.clone() }
    }
}

/// How netd attaches a one-off container.
pub(super) fn attach_request(
    one: &One,
    record: &LocalContainer,
    attachments: &[TaskAttachment],
) -> prepare::AttachTaskRequest {
    prepare::AttachTaskRequest {
        attachments: attachments.to_vec().to_proto(),
        host_ports: record.ports.clone(),
        no_way_out: record.network == NAMED && attachments.is_empty(),
        ..prepare::attach_request(&one.task)
    }
}

/// Whether netd makes its namespace.
pub(super) fn has_namespace(record: &LocalContainer) -> bool {
    record.network != NONE && !is_shared(record)
}

/// Whether its network is the node's or another container's.
pub(super) fn is_shared(record: &LocalContainer) -> bool {
    record.network == HOST || is_joined(record)
}

/// What `orch ps` and `orch inspect` call its networks.
pub(super) fn network_names(record: &LocalContainer) -> Vec<String> {
    let own = Some(record.network.clone()).filter(|name| name != NAMED && !is_joined(record));
    own.into_iter().chain(record.networks.iter().map(|network| network.network.clone())).collect()
}

fn wanted(network: &ContainerNetwork) -> WantedNetwork {
    let reference = if network.network_id.is_empty() { &network.network } else { &network.network_id };
    WantedNetwork { network: reference.clone(), aliases: network.aliases.clone(), addresses: network.addresses.clone() }
}

/// Its name first; Docker's short id is a name too.
fn names(one: &One, network: &ContainerNetwork) -> Vec<String> {
    let short_id = one.container_id()[..SHORT_ID_LEN].to_owned();
    let mut names = vec![one.name(), short_id];
    names.extend(network.aliases.iter().cloned());
    names
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, LocalError> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|_| LocalError::Invalid(format!("invalid IP address: {text}"))))
        .collect()
}

/// Managers answer in the order in which they were asked.
fn name_them(networks: &mut [ContainerNetwork], answer: &SetContainerNetworksResponse) {
    let of_cluster = networks.iter_mut().filter(|network| !network.local);
    for ((network, given), name) in of_cluster.zip(&answer.networks).zip(&answer.names) {
        network.network_id.clone_from(&given.network);
        network.network.clone_from(name);
    }
}
