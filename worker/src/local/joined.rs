//! `--network container:NAME`: another container's network instead of one of its own.
//!
//! The namespace is the other's: what it is given there (addresses, ports, names) is asked for and given back by the other
//! alone. It lasts as long as a process is in it, but when the other ends netd takes its links away: who shares it is left
//! with the loopback, as with Docker, until both are started again.

use std::{fs, path::PathBuf};

use orch_model::TaskId;
use orch_proto::wire::{LocalContainer, LocalState};

use super::{LocalError, Locals};
use crate::{
    agent::{container_id, prepare},
    api,
    runtime::Container,
};

/// In a record: before the id of the container whose network it is.
const PREFIX: &str = "container:";

/// The container that a network mode names.
pub(super) fn reference(mode: &str) -> Option<&str> {
    mode.strip_prefix(PREFIX)
}

pub(super) fn is_joined(record: &LocalContainer) -> bool {
    reference(&record.network).is_some()
}

/// Whose network it is to be: a one-off container, or a task's.
pub(super) struct Other {
    id: TaskId,
    container_id: String,
    pub(super) hostname: String,
    container: Option<Container>,
    is_restarting: bool,
}

/// What is shared while both run.
pub(super) struct Joined {
    /// Whose /etc/hosts, /etc/hostname and /etc/resolv.conf it has, too.
    pub(super) files_of: TaskId,
    /// `None`: the node's own network.
    pub(super) netns: Option<PathBuf>,
}

impl Other {
    /// With the id: names change.
    pub(super) fn mode(&self) -> String {
        format!("{PREFIX}{}", self.container_id)
    }
}

impl Locals {
    pub(super) fn other(&self, reference: &str) -> Result<Other, LocalError> {
        if reference.is_empty() {
            return Err(LocalError::Invalid("invalid container format container:<name|id>".to_owned()));
        }
        match self.find(reference) {
            Ok(one) => Ok(Other {
                id: one.id.clone(),
                container_id: one.container_id(),
                hostname: prepare::hostname(&one.task),
                container: one.container(),
                is_restarting: one.state() == LocalState::Restarting,
            }),
            Err(LocalError::NotFound(_)) => {
                let gone = |_| LocalError::NotFound(reference.to_owned());
                let task = api::find_task(&self.host, reference).map_err(gone)?;
                let entry = self.host.book.entry(&task).ok_or_else(|| LocalError::NotFound(reference.to_owned()))?;
                Ok(Other {
                    id: task,
                    container_id: container_id(&entry.task),
                    hostname: prepare::hostname_here(&self.host, &entry.task),
                    container: entry.container,
                    is_restarting: false,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// For a container that starts; `None`: it shares nobody's.
    pub(super) fn joined(&self, record: &LocalContainer) -> Result<Option<Joined>, LocalError> {
        let Some(reference) = reference(&record.network) else { return Ok(None) };
        let other = self.other(reference)?;
        let pid = other.container.as_ref().map_or(0, Container::pid);
        if pid == 0 {
            let error = if other.is_restarting { LocalError::JoinsRestarting } else { LocalError::JoinsStopped };
            return Err(error(other.container_id));
        }
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        // A link to a namespace says which one it is.
        let is_nodes = fs::read_link(&netns).ok() == fs::read_link("/proc/self/ns/net").ok();
        Ok(Some(Joined { files_of: other.id, netns: (!is_nodes).then_some(netns) }))
    }
}
