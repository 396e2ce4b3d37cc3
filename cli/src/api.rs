//! The manager's control API with the model's types, and the sentences for when there is no manager to ask.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use orch_model::{
    Kind, Object, ObjectId, Version,
    image::Image,
    network::Network,
    node::Node,
    secret::{Config, Secret},
    service::Service,
    task::Task,
};
use orch_proto::{
    conv::{FromProto, ToProto},
    paths::Paths,
    transport::unix_channel,
    wire::{
        self, control_client::ControlClient, node_control_client::NodeControlClient,
        worker_local_client::WorkerLocalClient,
    },
};
use tonic::{Code, Status, transport::Channel};

use crate::watching::Watching;

pub(crate) const NOT_A_MANAGER: &str = "This node is not a manager. Worker nodes can't be used to view or modify \
                                        cluster state. Please run this command on a manager node or promote the \
                                        current node to a manager.";
pub(crate) const IN_NO_CLUSTER: &str = "This node is not part of a cluster. Use \"orch init\" or \"orch join\" to \
                                        connect this node to one and try again.";

/// Lists of a large cluster are longer than tonic's default of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

pub(crate) type Control = ControlClient<Channel>;
pub(crate) type Worker = WorkerLocalClient<Channel>;

/// An object kind that the API stores.
pub(crate) trait Stored: Sized {
    const KIND: Kind;
    fn from_object(object: Object) -> Option<Arc<Self>>;
}

macro_rules! stored {
    ($($name:ident),+) => {$(
        impl Stored for $name {
            const KIND: Kind = Kind::$name;
            fn from_object(object: Object) -> Option<Arc<Self>> {
                match object {
                    Object::$name(inner) => Some(inner),
                    _ => None,
                }
            }
        }
    )+};
}
stored!(Service, Task, Node, Network, Secret, Config, Image);

pub(crate) struct Api {
    pub(crate) control: Control,
    paths: Paths,
}

pub(crate) fn control_client(channel: Channel) -> Control {
    ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Api {
    pub(crate) async fn connect(paths: &Paths) -> anyhow::Result<Self> {
        let Ok(channel) = unix_channel(&paths.manager_sock()).await else {
            return Err(no_manager(paths).await);
        };
        Ok(Self { control: control_client(channel), paths: paths.clone() })
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) async fn info(&mut self) -> anyhow::Result<wire::ClusterInfo> {
        Ok(self.control.info(wire::Empty {}).await.map_err(explain)?.into_inner())
    }

    pub(crate) async fn list<T: Stored>(&mut self, filters: wire::Filters) -> anyhow::Result<Vec<Arc<T>>> {
        let request = wire::ListRequest { kind: T::KIND.to_proto(), filters: Some(filters) };
        let response = self.control.list(request).await.map_err(explain)?.into_inner();
        response.objects.into_iter().map(decode::<T>).collect()
    }

    pub(crate) async fn all<T: Stored>(&mut self) -> anyhow::Result<Vec<Arc<T>>> {
        self.list(wire::Filters::default()).await
    }

    /// By id, unique prefix, name or short stack name.
    pub(crate) async fn get<T: Stored>(&mut self, reference: &str) -> anyhow::Result<Arc<T>> {
        self.find::<T>(reference).await.map_err(explain)?.map_or_else(|| bail!("the manager sent nothing"), decode::<T>)
    }

    /// As [`Api::get`], but `None` when there is no such object.
    pub(crate) async fn get_optional<T: Stored>(&mut self, reference: &str) -> anyhow::Result<Option<Arc<T>>> {
        match self.find::<T>(reference).await {
            Ok(object) => object.map(decode::<T>).transpose(),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(explain(status)),
        }
    }

    async fn find<T: Stored>(&mut self, reference: &str) -> Result<Option<wire::Object>, Status> {
        let request = wire::GetRequest { kind: T::KIND.to_proto(), reference: reference.into() };
        Ok(Some(self.control.get(request).await?.into_inner()))
    }

    /// The stored object and the manager's warnings.
    pub(crate) async fn create<T: Stored>(&mut self, spec: wire::spec::Spec) -> anyhow::Result<(Arc<T>, Vec<String>)> {
        let request = wire::CreateRequest { spec: Some(wire::Spec { spec: Some(spec) }) };
        let response = self.control.create(request).await.map_err(explain)?.into_inner();
        Ok((decode::<T>(response.object.context("the manager sent no object")?)?, response.warnings))
    }

    /// Changes the object at this version; without a spec, to what it was before. See [`updated`] for the answer.
    pub(crate) async fn try_update(
        &mut self,
        kind: Kind,
        id: &str,
        version: Version,
        spec: Option<wire::spec::Spec>,
    ) -> Result<wire::UpdateResponse, Status> {
        let rollback = spec.is_none();
        let request = wire::UpdateRequest {
            kind: kind.to_proto(),
            id: id.into(),
            version: version.0,
            spec: spec.map(|spec| wire::Spec { spec: Some(spec) }),
            rollback,
            new_version: false,
            rebalance: false,
            unpin: false,
            slots: Vec::new(),
        };
        Ok(self.control.update(request).await?.into_inner())
    }

    /// Another content for a secret or config: the version that has it, and the manager's warnings.
    pub(crate) async fn replace<T: Stored>(
        &mut self,
        id: &str,
        version: Version,
        spec: wire::spec::Spec,
    ) -> anyhow::Result<(Arc<T>, Vec<String>)> {
        let request = wire::UpdateRequest {
            kind: T::KIND.to_proto(),
            id: id.into(),
            version: version.0,
            spec: Some(wire::Spec { spec: Some(spec) }),
            rollback: false,
            new_version: true,
            rebalance: false,
            unpin: false,
            slots: Vec::new(),
        };
        let response = self.control.update(request).await.map_err(explain)?.into_inner();
        Ok((decode::<T>(response.object.context("the manager sent no object")?)?, response.warnings))
    }

    /// Has a service's tasks spread anew; returns what the manager says of it.
    pub(crate) async fn rebalance(&mut self, service: &str) -> anyhow::Result<Vec<String>> {
        let kind = Kind::Service.to_proto();
        let request =
            wire::UpdateRequest { kind, id: service.into(), rebalance: true, ..wire::UpdateRequest::default() };
        Ok(self.control.update(request).await.map_err(explain)?.into_inner().warnings)
    }

    /// Lets slots of a service start without their volumes; returns what the manager says of it.
    pub(crate) async fn unpin(&mut self, service: &str, slots: Vec<u64>) -> anyhow::Result<Vec<String>> {
        let kind = Kind::Service.to_proto();
        let request =
            wire::UpdateRequest { kind, id: service.into(), unpin: true, slots, ..wire::UpdateRequest::default() };
        Ok(self.control.update(request).await.map_err(explain)?.into_inner().warnings)
    }

    pub(crate) async fn remove(&mut self, kind: Kind, reference: &str, force: bool) -> anyhow::Result<()> {
        self.try_remove(kind, reference, force).await.map_err(explain)
    }

    /// As [`Api::remove`], for callers that tell refusals apart.
    pub(crate) async fn try_remove(&mut self, kind: Kind, reference: &str, force: bool) -> Result<(), Status> {
        let request =
            wire::RemoveRequest { kind: kind.to_proto(), reference: reference.into(), force, when_free: false };
        self.control.remove(request).await.map(drop)
    }

    /// As [`Api::try_remove`], but tasks that stop may still have a network, secret or config: the managers remove it after
    /// the last of them.
    pub(crate) async fn remove_when_free(&mut self, kind: Kind, reference: &str) -> Result<(), Status> {
        let (kind, reference) = (kind.to_proto(), reference.into());
        let request = wire::RemoveRequest { kind, reference, force: false, when_free: true };
        self.control.remove(request).await.map(drop)
    }

    /// What the filter shows of a kind, and how it changes from now on.
    pub(crate) fn watch(&self, kind: Kind, filters: wire::Filters) -> Watching {
        Watching::new(self.paths.clone(), vec![kind], filters)
    }
}

fn decode<T: Stored>(object: wire::Object) -> anyhow::Result<Arc<T>> {
    let object = Object::from_proto(object).context("cannot read the manager's answer")?;
    T::from_object(object).ok_or_else(|| anyhow!("the manager sent another kind of object than a {}", T::KIND))
}

pub(crate) enum WatchEvent {
    Put(Object),
    Removed(ObjectId),
}

pub(crate) fn watch_events(response: wire::WatchResponse) -> anyhow::Result<Vec<WatchEvent>> {
    let events = response.events.into_iter().filter_map(|event| event.event);
    events
        .map(|event| {
            Ok(match event {
                wire::watch_event::Event::Put(object) => WatchEvent::Put(Object::from_proto(object)?),
                wire::watch_event::Event::Removed(id) => WatchEvent::Removed(ObjectId::from_proto(id)?),
            })
        })
        .collect()
}

/// The object as it is after an update, and what its users are warned of.
pub(crate) fn updated<T: Stored>(response: wire::UpdateResponse) -> anyhow::Result<(Arc<T>, Vec<String>)> {
    Ok((decode::<T>(response.object.context("the manager sent no object")?)?, response.warnings))
}

/// What the manager said, without gRPC's words around it.
pub(crate) fn explain(status: Status) -> anyhow::Error {
    let message = plain(status.message());
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::Unknown if is_transport(&status) => {
            anyhow!("the daemon closed the connection: {message}. See its log, then try again")
        }
        code if message.is_empty() => anyhow!("the daemon refused: {code}"),
        _ => anyhow!("{message}"),
    }
}

/// A daemon's words may quote what others wrote, an archive for one: without what steers terminals.
fn plain(text: &str) -> String {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

pub(crate) async fn worker(paths: &Paths) -> anyhow::Result<Worker> {
    match unix_channel(&paths.worker_sock()).await {
        Ok(channel) => Ok(WorkerLocalClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)),
        Err(error) => Err(match node_info(paths).await {
            Some(info) if info.state == "active" => match info.daemons.iter().find(|daemon| daemon.name == "worker") {
                Some(daemon) if daemon.pid == 0 => anyhow!(
                    "the worker daemon of this node does not run. It is started again all the time; its log ({}) ends \
                     with: {}",
                    daemon.log,
                    daemon.last_words
                ),
                _ => anyhow!(
                    "the worker daemon of this node does not answer: {error}. It is restarted by itself; 'orch info' \
                     shows why if that does not help"
                ),
            },
            Some(_) => anyhow!(IN_NO_CLUSTER),
            None => anyhow!(silence(paths).to_string()),
        }),
    }
}

pub(crate) async fn node(paths: &Paths) -> anyhow::Result<NodeControlClient<Channel>> {
    let channel = unix_channel(&paths.node_sock()).await.map_err(|_| anyhow!(silence(paths).to_string()))?;
    Ok(NodeControlClient::new(channel))
}

pub(crate) async fn node_info(paths: &Paths) -> Option<wire::NodeInfo> {
    let mut client = node(paths).await.ok()?;
    Some(client.info(wire::Empty {}).await.ok()?.into_inner())
}

async fn no_manager(paths: &Paths) -> anyhow::Error {
    let socket = paths.manager_sock();
    match node_info(paths).await {
        Some(info) if info.state == "active" && !info.manager => anyhow!(NOT_A_MANAGER),
        Some(info) if info.state == "active" || info.state == "pending" => anyhow!(
            "the manager of this node does not answer on {}. It is restarted by itself; try again, and see the \
             node's log if that does not help",
            socket.display()
        ),
        Some(info) if info.state == "error" => anyhow!("this node is in error: {}", info.error),
        Some(_) => anyhow!(IN_NO_CLUSTER),
        None if is_denied(&socket) => anyhow!(Silence::Denied(socket).to_string()),
        None => anyhow!(silence(paths).to_string()),
    }
}

/// Why nobody answers for this node. Only the last of them means that a cluster can be made or joined here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Silence {
    #[error("permission denied on {}: run this as root, or as a member of the group that owns the socket", .0.display())]
    Denied(PathBuf),
    #[error("orch does not answer on this node, and {} says why to root only: run this as root", .0.display())]
    Private(PathBuf),
    #[error(
        "orch does not run on this node, which is part of a cluster: start it with \"systemctl start orch\", or with \
         \"orch node\" where there is no systemd. Its containers go on meanwhile"
    )]
    Stopped,
    #[error("{IN_NO_CLUSTER}")]
    NoMember,
}

/// Asks the node's own files, since its supervisor has nothing to say.
pub(crate) fn silence(paths: &Paths) -> Silence {
    let socket = paths.node_sock();
    if is_denied(&socket) {
        return Silence::Denied(socket);
    }
    let state = crate::node::state_file(paths);
    let found = std::fs::metadata(&state).map(drop).map_err(|error| error.kind());
    silence_by(state, found)
}

/// No group may look into the folder of the state file, unlike that of the socket.
fn silence_by(state: PathBuf, found: Result<(), ErrorKind>) -> Silence {
    match found {
        Ok(()) => Silence::Stopped,
        Err(ErrorKind::PermissionDenied) => Silence::Private(state),
        Err(_) => Silence::NoMember,
    }
}

pub(crate) fn is_denied(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_explained_by_the_state_file() {
        for (found, said) in [
            (Ok(()), "start it with"),
            (
                Err(ErrorKind::PermissionDenied),
                "orch does not answer on this node, and /state.json says why to root only: run this as root",
            ),
            (Err(ErrorKind::NotFound), IN_NO_CLUSTER),
        ] {
            let text = silence_by("/state.json".into(), found).to_string();
            assert!(text.contains(said) && !text.contains("group"), "{found:?}: {text}");
        }
    }

    #[test]
    fn what_a_daemon_quotes_does_not_steer_the_terminal() {
        for (said, shown) in [
            ("no such image", "no such image"),
            ("first\n\tsecond", "first\n\tsecond"),
            ("\u{1b}[2J\r\u{7}x\u{9b}", "\u{fffd}[2J\u{fffd}\u{fffd}x\u{fffd}"),
        ] {
            assert_eq!(explain(Status::not_found(said)).to_string(), shown);
        }
    }
}
