//! `--network container:NAME`: another container's network instead of one of its own.
//!
//! The namespace is the other's: what it is given there (addresses, ports, names) is asked for and given back by the other
//! alone. It lasts as long as a process is in it, but when the other ends netd takes its links away: who shares it is left
//! with the loopback, as with Docker, until both are started again.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::PathBuf,
};

use orch_model::TaskId;
use orch_proto::wire::{LocalContainer, LocalState};
use tonic::Code;

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
    /// Whose /etc/hosts and the like it has: its own, or those of the container whose network it shares itself.
    files_of: TaskId,
    container_id: String,
    pub(super) hostname: String,
    /// While it runs.
    container: Option<Container>,
    is_restarting: bool,
}

/// What is shared while both run.
pub(super) struct Joined {
    /// Whose /etc/hosts, /etc/hostname and /etc/resolv.conf it has, too.
    pub(super) files_of: TaskId,
    /// Held open: what its number stands for may be another process by the time that the container is made. `None`: the
    /// node's own network.
    netns: Option<File>,
}

impl Joined {
    pub(super) fn is_nodes(&self) -> bool {
        self.netns.is_none()
    }

    /// Good while this is held.
    pub(super) fn netns(&self) -> Option<PathBuf> {
        self.netns.as_ref().map(path_of)
    }
}

/// By which other processes find what is held open here.
pub(super) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

impl Other {
    /// 0: it does not run.
    fn pid(&self) -> u32 {
        self.container.as_ref().map_or(0, Container::pid)
    }

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
            Ok(one) => {
                let (container, record) = one.running();
                // Made before it, by its id: there is an end.
                let shared = self::reference(&record.network).map(|other| self.other(other)).transpose()?;
                Ok(Other {
                    files_of: shared.map_or_else(|| one.id.clone(), |other| other.files_of),
                    container_id: one.container_id(),
                    hostname: prepare::hostname(&one.task),
                    container,
                    is_restarting: record.state() == LocalState::Restarting,
                })
            }
            Err(LocalError::NotFound(_)) => {
                let task = api::find_task(&self.host, reference).map_err(|status| match status.code() {
                    Code::NotFound => LocalError::NotFound(reference.to_owned()),
                    _ => LocalError::Invalid(status.message().to_owned()),
                })?;
                let entry = self.host.book.entry(&task).ok_or_else(|| LocalError::NotFound(reference.to_owned()))?;
                Ok(Other {
                    files_of: task,
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
        let stopped = |other: Other| {
            let error = if other.is_restarting { LocalError::JoinsRestarting } else { LocalError::JoinsStopped };
            Err(error(other.container_id))
        };
        let pid = other.pid();
        if pid == 0 {
            return stopped(other);
        }
        let path = format!("/proc/{pid}/ns/net");
        // A link to a namespace says which one it is.
        let is_nodes = fs::read_link(&path).ok() == fs::read_link("/proc/self/ns/net").ok();
        let netns = if is_nodes { Ok(None) } else { File::open(&path).map(Some) };
        // Still it, and not who got its number.
        let now = self.other(reference)?;
        match netns {
            Ok(netns) if now.pid() == pid => Ok(Some(Joined { files_of: other.files_of, netns })),
            _ => stopped(now),
        }
    }
}
