//! The worker's side of the network daemon's socket.
//!
//! Keeps netd at the desired networks and attachments: whoever restarts, netd gets all of it again. Invariants: a task
//! is attached only after netd has applied what was desired when it asked; a task whose process is gone is never
//! attached again, and its namespace goes, if not at once then when netd is back; what netd has of tasks that nobody here
//! knows, because the worker that knew them ended first, goes too.

mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, UdpSocket},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use ipnetwork::IpNetwork;
use orch_model::{NetworkId, TaskId, node::Encryption, service::PortConfig};
use orch_proto::{
    conv::FromProto as _,
    transport::{TransportError, unix_channel},
    wire::{
        Assignment, AttachTaskRequest, AttachTaskResponse, DesiredNetworks, Empty, RefusedPort, TaskRequest,
        TraceRequest, TraceResponse, assignment, netd_client::NetdClient,
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::transport::Channel;

/// How often netd is asked whether it still has what it was told.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The kernel's work for one message; a large cluster's first set is the longest.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A task that netd cannot attach for so long is rejected.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(60);
/// An exit is reported to the manager no later than this, netd or not.
const DOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// Whoever ended waits no longer for its namespace to go: what netd does not take away by then goes later.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);
/// Managers tell of a network as soon as the first container is on it.
const TOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// netd answers a little after it has opened its socket.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(2);
/// netd starts together with the worker and opens its socket once it has looked at all that is there.
const FIRST_SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
const PARALLEL_ATTACHES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetdError {
    #[error("reach the network daemon")]
    Connect(#[from] TransportError),
    #[error("network daemon: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the network daemon did not get ready within {} s", ATTACH_TIMEOUT.as_secs())]
    NotReady,
    #[error("no manager told this node of the network within {} s", TOLD_TIMEOUT.as_secs())]
    NotTold,
}

impl NetdError {
    /// Whether trying again may help: netd is away or only just starting.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Refused(status) => {
                matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown)
            }
            Self::NotReady => true,
            Self::NotTold => false,
        }
    }
}

impl From<tonic::Status> for NetdError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Clones share the connection and what is desired.
#[derive(Clone)]
pub(crate) struct Netd {
    inner: Arc<Inner>,
}

struct Inner {
    socket: PathBuf,
    started: Instant,
    node_id: String,
    desired: watch::Sender<Desired>,
    /// The last revision that netd has applied.
    applied: watch::Sender<u64>,
    channel: Mutex<Option<Channel>>,
    attached: Mutex<BTreeMap<TaskId, AttachTaskRequest>>,
    /// Whose namespaces are still to go: netd was away.
    left: Mutex<BTreeSet<TaskId>>,
    /// Held while one of those goes: who is attached again must not lose the new one.
    leaving: tokio::sync::Mutex<()>,
    /// What netd said last of encrypted networks; `None` until it has answered once.
    encryption: watch::Sender<Option<Encryption>>,
    /// Published ports that IPv6 clients get no answer on, as netd said last.
    refused_v6: Mutex<Vec<RefusedPort>>,
}

#[derive(Clone, Default)]
struct Desired {
    /// 0: nothing is known yet, and netd is left with what it has.
    revision: u64,
    /// As managers want it.
    items: Arc<Vec<Assignment>>,
    /// Networks of this node alone.
    own: Arc<Vec<Assignment>>,
}

impl Netd {
    pub(crate) fn new(socket: PathBuf, node_id: String) -> Self {
        let inner = Inner {
            socket,
            started: Instant::now(),
            node_id,
            desired: watch::Sender::default(),
            applied: watch::Sender::new(0),
            channel: Mutex::default(),
            attached: Mutex::default(),
            left: Mutex::default(),
            leaving: tokio::sync::Mutex::default(),
            encryption: watch::Sender::default(),
            refused_v6: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Replaces what should be and returns its revision.
    pub(crate) fn set_desired(&self, items: Vec<Assignment>) -> u64 {
        let mut revision = 0;
        self.inner.desired.send_modify(|desired| {
            revision = desired.revision + 1;
            *desired = Desired { revision, items: Arc::new(items), own: desired.own.clone() };
        });
        revision
    }

    /// Replaces what should be of networks of this node alone. It is asked for in here, so that who knew less than another
    /// does not have the last word.
    pub(crate) fn set_own(&self, own: impl FnOnce() -> Vec<Assignment>) {
        self.inner.desired.send_if_modified(|desired| {
            let own = own();
            let changed = *desired.own != own;
            if changed {
                *desired = Desired { revision: desired.revision + 1, items: desired.items.clone(), own: Arc::new(own) };
            }
            changed
        });
    }

    /// Waits until managers have told of these networks.
    pub(crate) async fn told_of(&self, networks: &[NetworkId]) -> Result<(), NetdError> {
        let known = |desired: &Desired| {
            let told = |id: &NetworkId| desired.items.iter().any(|item| is_network(item, id.as_str()));
            networks.iter().all(told)
        };
        let mut desired = self.inner.desired.subscribe();
        match timeout(TOLD_TIMEOUT, desired.wait_for(known)).await {
            // The sender lives as long as `self`.
            Ok(_) => Ok(()),
            Err(_) => Err(NetdError::NotTold),
        }
    }

    /// What managers call a network; its id while nothing of this node is on it.
    pub(crate) fn network_name(&self, id: &NetworkId) -> String {
        let desired = self.inner.desired.borrow();
        let name = desired.items.iter().find_map(|item| match &item.assignment {
            Some(assignment::Assignment::Network(network)) if network.id == id.as_str() => Some(network.name.clone()),
            _ => None,
        });
        name.unwrap_or_else(|| id.to_string())
    }

    /// The node's gateway network, by which containers reach the outside.
    pub(crate) async fn gateway_subnet(&self) -> Result<Option<IpNetwork>, NetdError> {
        let status = async { Ok::<_, NetdError>(self.client().await?.status(Empty {}).await?.into_inner()) };
        let status = timeout(CALL_TIMEOUT, status).await.map_err(|_| NetdError::NotReady)??;
        Ok(status.gateway_subnet.parse().ok())
    }

    /// What netd said last of encrypted networks; `None` until it has answered once.
    pub(crate) fn encryption(&self) -> Option<Encryption> {
        self.inner.encryption.borrow().clone()
    }

    /// Published ports as clients find them.
    pub(crate) fn answered(&self, ports: &[PortConfig]) -> Vec<PortConfig> {
        let has_v6 =
            ports.iter().any(|port| port.host_ip.is_none()) && UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        ports::answered(ports, has_v6, &lock(&self.inner.refused_v6))
    }

    /// Waits a little for netd's first word of encrypted networks: managers are told with the session's start, and another
    /// session for it is a detour.
    pub(crate) async fn first_encryption(&self) {
        let mut encryption = self.inner.encryption.subscribe();
        // A socket is there also when netd died. What managers knew before, they believe until netd has answered.
        let deadline = if self.inner.socket.exists() {
            Instant::now() + FIRST_WORD_TIMEOUT
        } else {
            self.inner.started + FIRST_SOCKET_TIMEOUT
        };
        drop(timeout_at(deadline, encryption.wait_for(Option::is_some)).await);
    }

    /// Waits until netd says otherwise of encrypted networks than `told`.
    pub(crate) async fn encryption_changed(&self, told: Option<Encryption>) {
        let mut encryption = self.inner.encryption.subscribe();
        // The sender lives as long as `self`.
        drop(encryption.wait_for(|now| now.is_some() && *now != told).await);
    }

    /// The way from a task of this node to a name.
    pub(crate) async fn trace(&self, request: TraceRequest) -> Result<TraceResponse, NetdError> {
        let traced = async { Ok::<_, NetdError>(self.client().await?.trace(request).await?.into_inner()) };
        timeout(CALL_TIMEOUT, traced).await.map_err(|_| NetdError::NotReady)?
    }

    pub(crate) fn node_id(&self) -> &str {
        &self.inner.node_id
    }

    /// Waits until netd has applied this revision or a later one.
    pub(crate) async fn applied(&self, revision: u64) {
        // The sender lives as long as `self`.
        let _ = self.inner.applied.subscribe().wait_for(|applied| *applied >= revision).await;
    }

    /// Waits until nothing is left of the namespace that a task had before: who makes the next one itself must not lose it.
    pub(crate) async fn clear(&self, task: &TaskId) -> Result<(), NetdError> {
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        while let Err(error) = self.detach_left(task).await {
            if Instant::now() >= deadline {
                return Err(error);
            }
            sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }

    /// Makes (or finds again) a task's network namespace.
    pub(crate) async fn attach(
        &self,
        task: &TaskId,
        request: AttachTaskRequest,
    ) -> Result<AttachTaskResponse, NetdError> {
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        let revision = self.inner.desired.borrow().revision;
        timeout_at(deadline, self.applied(revision)).await.map_err(|_| NetdError::NotReady)?;
        loop {
            let attempt = async {
                self.detach_left(task).await?;
                self.attach_once(request.clone()).await
            };
            match timeout_at(deadline, attempt).await.map_err(|_| NetdError::NotReady)? {
                Ok(response) => {
                    self.remember(task, request);
                    return Ok(response);
                }
                Err(error) if error.is_passing() && Instant::now() < deadline => {
                    self.disconnect();
                    sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A task that an earlier worker attached: a restarted netd must attach it again.
    pub(crate) fn remember(&self, task: &TaskId, request: AttachTaskRequest) {
        lock(&self.inner.attached).insert(task.clone(), request);
    }

    /// The task's process is gone: nothing may be sent to it any more. Gives up quickly; the manager takes the task
    /// out of everyone's balancing soon after.
    pub(crate) async fn task_down(&self, task: &TaskId) {
        lock(&self.inner.attached).remove(task);
        let down = async { Ok::<_, NetdError>(self.client().await?.task_down(request(task)).await?) };
        match timeout(DOWN_TIMEOUT, down).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%task, %error, "netd was not told that the task is down"),
            Err(_) => tracing::warn!(%task, "netd did not answer that the task is down"),
        }
    }

    /// Removes the task's namespace: now, or as soon as netd answers again.
    pub(crate) async fn detach(&self, task: &TaskId) -> Result<(), NetdError> {
        lock(&self.inner.attached).remove(task);
        match self.detach_once(task).await {
            Err(error) if error.is_passing() => {
                tracing::info!(%task, %error, "the network namespace goes as soon as netd answers");
                lock(&self.inner.left).insert(task.clone());
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn detach_once(&self, task: &TaskId) -> Result<(), NetdError> {
        let detach = async { Ok(self.client().await?.detach_task(request(task)).await.map(drop)?) };
        let outcome = timeout(DETACH_TIMEOUT, detach).await.unwrap_or(Err(NetdError::NotReady));
        if outcome.as_ref().is_err_and(NetdError::is_passing) {
            self.disconnect();
        }
        outcome
    }

    /// Removes the namespace of a task that netd could not detach before; fine when there is none.
    async fn detach_left(&self, task: &TaskId) -> Result<(), NetdError> {
        let is_left = || lock(&self.inner.left).contains(task);
        if !is_left() {
            return Ok(());
        }
        let _turn = self.inner.leaving.lock().await;
        if !is_left() {
            return Ok(());
        }
        match self.detach_once(task).await {
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => tracing::warn!(%task, %error, "the network namespace stays"),
            Ok(()) => {}
        }
        lock(&self.inner.left).remove(task);
        Ok(())
    }

    /// The same for all of them, until netd is away again.
    async fn detach_all_left(&self) {
        let left = lock(&self.inner.left).clone();
        for task in left {
            if self.detach_left(&task).await.is_err() {
                return;
            }
        }
    }

    /// What netd has and nobody here knows is to go. Looked up under the lock that whoever attaches takes first: a task is
    /// known before it is attached, so it either is seen here or gets a namespace of its own after the old one went.
    fn leave_strangers(&self, listed: &[String], is_known: &impl Fn(&TaskId) -> bool) {
        let mut left = lock(&self.inner.left);
        for task in strangers(listed, |task| left.contains(task) || is_known(task)) {
            tracing::info!(%task, "the network namespace goes: no task or container of this node is known by that id");
            left.insert(task);
        }
    }

    /// Keeps netd at what is desired; ends with the process. `is_known`: whether this node has a task or a container of that
    /// id, running or not; those of earlier workers count from the first.
    pub(crate) async fn keep(self, is_known: impl Fn(&TaskId) -> bool) {
        let mut desired = self.inner.desired.subscribe();
        // (revision, sequence) that netd has, while it is the same netd.
        let mut has: Option<(u64, u64)> = None;
        let mut next_sequence = 0;
        loop {
            let wanted = desired.borrow_and_update().clone();
            if wanted.revision > 0 && has.is_none_or(|(revision, _)| revision != wanted.revision) {
                let resync = has.is_none();
                match self.send(&wanted, next_sequence).await {
                    Ok(()) => {
                        has = Some((wanted.revision, next_sequence));
                        next_sequence += 1;
                        if resync {
                            self.attach_again().await;
                        }
                        self.inner.applied.send_replace(wanted.revision);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "netd did not take the desired networks; trying again");
                        self.disconnect();
                        has = None;
                        sleep(RETRY_PAUSE).await;
                        continue;
                    }
                }
            }
            self.detach_all_left().await;
            let pause = if self.inner.encryption.borrow().is_some() { CHECK_INTERVAL } else { RETRY_PAUSE };
            if timeout(pause, desired.changed()).await.is_err() {
                let sequence = self.ask_sequence(&is_known).await;
                let restarted = has.is_some_and(|(_, known)| sequence != Some(known));
                if restarted {
                    tracing::info!("netd restarted; telling it everything again");
                    has = None;
                }
                if restarted || sequence.is_none() {
                    self.disconnect();
                }
            }
        }
    }

    async fn send(&self, wanted: &Desired, sequence: u64) -> Result<(), NetdError> {
        let items = wanted.items.iter().chain(wanted.own.iter()).cloned().collect();
        let message = DesiredNetworks { sequence, node_id: self.inner.node_id.clone(), items };
        let mut client = self.client().await?;
        let response = timeout(CALL_TIMEOUT, client.set_desired(message)).await.map_err(|_| NetdError::NotReady)??;
        for problem in response.into_inner().problems {
            tracing::warn!(problem, "netd could not apply all of the desired networks");
        }
        Ok(())
    }

    /// What netd was told last, as it says; takes in what else it says. `None`: it does not answer.
    async fn ask_sequence(&self, is_known: &impl Fn(&TaskId) -> bool) -> Option<u64> {
        let status = async { Ok::<_, NetdError>(self.client().await?.status(Empty {}).await?.into_inner()) };
        let status = timeout(CALL_TIMEOUT, status).await.ok()?.ok()?;
        match status.encryption.map(Encryption::from_proto).transpose() {
            Ok(encryption) => drop(self.inner.encryption.send_if_modified(|known| {
                let changed = encryption.is_some() && *known != encryption;
                if changed {
                    known.clone_from(&encryption);
                }
                changed
            })),
            Err(error) => tracing::warn!(%error, "netd's word of encrypted networks makes no sense"),
        }
        self.leave_strangers(&status.tasks, is_known);
        *lock(&self.inner.refused_v6) = status.refused_v6;
        Some(status.sequence)
    }

    async fn attach_again(&self) {
        let requests: Vec<_> = lock(&self.inner.attached).values().cloned().collect();
        let attach = |request: AttachTaskRequest| async move {
            let task = request.task_id.clone();
            if let Err(error) = self.attach_once(request).await {
                tracing::error!(task, %error, "netd did not attach a running task again");
            }
        };
        stream::iter(requests.into_iter().map(attach)).buffer_unordered(PARALLEL_ATTACHES).collect::<()>().await;
    }

    async fn attach_once(&self, request: AttachTaskRequest) -> Result<AttachTaskResponse, NetdError> {
        Ok(self.client().await?.attach_task(request).await?.into_inner())
    }

    async fn client(&self) -> Result<NetdClient<Channel>, NetdError> {
        if let Some(channel) = lock(&self.inner.channel).clone() {
            return Ok(NetdClient::new(channel).max_decoding_message_size(usize::MAX));
        }
        let channel = unix_channel(&self.inner.socket).await?;
        *lock(&self.inner.channel) = Some(channel.clone());
        Ok(NetdClient::new(channel).max_decoding_message_size(usize::MAX))
    }

    fn disconnect(&self) {
        *lock(&self.inner.channel) = None;
    }
}

fn request(task: &TaskId) -> TaskRequest {
    TaskRequest { task_id: task.to_string() }
}

/// Whose namespaces netd has although nobody knows them.
fn strangers(listed: &[String], is_known: impl Fn(&TaskId) -> bool) -> Vec<TaskId> {
    listed.iter().filter_map(|id| id.parse().ok()).filter(|task| !is_known(task)).collect()
}

fn is_network(item: &Assignment, id: &str) -> bool {
    matches!(&item.assignment, Some(assignment::Assignment::Network(network)) if network.id == id)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder makes one change; a panic elsewhere leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use orch_proto::wire::NetworkItem;

    use super::*;

    #[test]
    fn who_is_known_keeps_its_namespace() {
        let id = |n: u8| format!("{n:025}");
        for (listed, known, want) in [
            (vec![], vec![], vec![]),
            (vec![id(1)], vec![id(1)], vec![]),
            // Not attached yet, or not any more.
            (vec![], vec![id(1)], vec![]),
            // The worker that knew it ended before netd was back.
            (vec![id(1)], vec![], vec![id(1)]),
            (vec![id(1), id(2), id(3)], vec![id(2), id(4)], vec![id(1), id(3)]),
            // Of a netd that names them otherwise: not ours to judge.
            (vec!["no id".to_owned(), String::new()], vec![], vec![]),
        ] {
            let found: Vec<_> = strangers(&listed, |task| known.contains(&task.to_string()));
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, want, "{listed:?} {known:?}");
        }
    }

    #[test]
    fn who_is_later_says_what_own_networks_there_are() {
        let netd = Netd::new(PathBuf::new(), String::new());
        let later = netd.clone();
        let mut second = None;
        netd.set_own(|| {
            // It comes while the first looks, and knows more.
            second = Some(std::thread::spawn(move || later.set_own(|| vec![Assignment::default()])));
            std::thread::sleep(Duration::from_millis(50));
            Vec::new()
        });
        second.unwrap().join().unwrap();
        assert_eq!(netd.inner.desired.borrow().own.len(), 1);
    }

    #[test]
    fn a_network_is_called_as_managers_say() {
        let netd = Netd::new(PathBuf::new(), String::new());
        let (shop, gone) = (NetworkId::from_random(1), NetworkId::from_random(2));
        let item = NetworkItem { id: shop.to_string(), name: "shop".to_owned(), ..NetworkItem::default() };
        let item = assignment::Assignment::Network(item);
        netd.set_desired(vec![Assignment { assignment: Some(item) }]);
        assert_eq!((netd.network_name(&shop), netd.network_name(&gone)), ("shop".to_owned(), gone.to_string()));
    }
}
