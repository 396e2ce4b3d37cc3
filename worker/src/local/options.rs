//! What only `orch run` can ask for: read, checked and turned into the runtime's words.

use std::fs::File;

use orch_proto::wire::{LocalContainer, LocalOptions};

use super::{
    LocalError, Locals,
    create::HOST,
    joined::{is_joined, path_of},
};
use crate::{
    runtime::{HostOptions, MoreLimits, Sharing},
    users::{Remap, RemapError},
};

const OWN_USERS: &str = "add --userns host";

impl Locals {
    /// Everything that can be refused without looking at other containers.
    pub(super) fn check_options(&self, options: &LocalOptions) -> Result<(), LocalError> {
        for mode in [&options.pid_mode, &options.ipc_mode, &options.uts_mode] {
            match mode.as_str() {
                "" | "private" | "shareable" | "host" => {}
                other => match other.strip_prefix("container:") {
                    Some(reference) => drop(self.find(reference)?),
                    None => {
                        return Err(LocalError::Invalid(format!(
                            "unknown namespace mode {other:?}: private, host or container:NAME"
                        )));
                    }
                },
            }
        }
        if !matches!(options.userns_mode.as_str(), "" | "host") {
            return Err(LocalError::Invalid(format!(
                "--userns: invalid USER mode {:?}: host is the only one",
                options.userns_mode
            )));
        }
        security(&options.security).map(drop)
    }

    /// For the runtime, with what is to be held until the container is made; containers whose namespaces are shared must run.
    pub(super) fn host_options(&self, options: &LocalOptions) -> Result<(HostOptions, Vec<File>), LocalError> {
        let mut held = Vec::new();
        let base = security(&options.security)?;
        let limits = options.limits.clone().unwrap_or_default();
        let tmpfs = options.tmpfs.iter().map(|(target, words)| {
            let words = words.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
            (target.clone(), words)
        });
        let options = HostOptions {
            shm_bytes: options.shm_bytes,
            pid: self.sharing(&options.pid_mode, "pid", &mut held)?,
            ipc: self.sharing(&options.ipc_mode, "ipc", &mut held)?,
            uts: self.sharing(&options.uts_mode, "uts", &mut held)?,
            tmpfs: tmpfs.collect(),
            limits: MoreLimits {
                cpu_shares: limits.cpu_shares,
                cpuset_cpus: limits.cpuset_cpus,
                cpuset_mems: limits.cpuset_mems,
                memory_swap_bytes: limits.memory_swap_bytes,
                memory_reservation_bytes: limits.memory_reservation_bytes,
            },
            stdin_once: options.stdin_once.unwrap_or(true),
            ..base
        };
        Ok((options, held))
    }

    /// Whose numbers the container has on the node.
    pub(crate) fn remap_of(&self, record: &LocalContainer) -> Option<Remap> {
        let own = record.options.as_ref().is_some_and(|options| options.userns_mode == "host");
        self.host.remap.filter(|_| !own)
    }

    /// What cannot be beside remapped users: what Docker refuses, and other containers' namespaces, which belong to the users
    /// of those.
    pub(super) fn check_remap(&self, record: &LocalContainer) -> Result<(), LocalError> {
        let refused = self.remap_of(record).and_then(|_| beside_remapped_users(record));
        refused.map_or(Ok(()), |error| Err(LocalError::Invalid(error.to_string())))
    }

    fn sharing(&self, mode: &str, namespace: &str, held: &mut Vec<File>) -> Result<Sharing, LocalError> {
        match (mode, mode.strip_prefix("container:")) {
            ("host", _) => Ok(Sharing::Host),
            (_, None) => Ok(Sharing::Own),
            (_, Some(reference)) => {
                let other = self.find(reference)?;
                let pid = || other.container().map(|container| container.pid());
                let before = pid();
                // What is in the folder stays that process's; what its number stands for may be another one by the time that
                // the container is made.
                let process = before.and_then(|pid| File::open(format!("/proc/{pid}")).ok());
                // Still it, and not who got its number.
                let process = process.filter(|_| pid() == before);
                let process = process.ok_or_else(|| LocalError::NotRunning(other.container_id()))?;
                let path = path_of(&process).join("ns").join(namespace);
                held.push(process);
                Ok(Sharing::Other(path))
            }
        }
    }
}

fn beside_remapped_users(record: &LocalContainer) -> Option<RemapError> {
    let options = record.options.clone().unwrap_or_default();
    let privileged = record.spec.as_ref().and_then(|spec| spec.container.as_ref()).is_some_and(|c| c.privileged);
    let of_other = |mode: &str| mode.starts_with("container:");
    match () {
        () if privileged => Some(RemapError::Privileged("run the container with --userns host")),
        () if record.network == HOST => Some(RemapError::Shared("network", OWN_USERS)),
        () if is_joined(record) => Some(RemapError::Joined("network")),
        () if options.pid_mode == HOST => Some(RemapError::Shared("PID", OWN_USERS)),
        () if of_other(&options.pid_mode) => Some(RemapError::Joined("PID")),
        () if options.ipc_mode == HOST => Some(RemapError::Shared("IPC", OWN_USERS)),
        () if of_other(&options.ipc_mode) => Some(RemapError::Joined("IPC")),
        () if options.uts_mode == HOST => Some(RemapError::Shared("UTS", OWN_USERS)),
        () => None,
    }
}

fn security(words: &[String]) -> Result<HostOptions, LocalError> {
    let mut options = HostOptions::default();
    for word in words {
        // Docker takes both signs.
        let (key, value) = word.split_once(['=', ':']).unwrap_or((word, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => options.no_new_privileges = true,
            ("no-new-privileges", "false") => options.no_new_privileges = false,
            ("seccomp", "unconfined") => options.seccomp_off = true,
            ("seccomp", "builtin") => options.seccomp_off = false,
            ("apparmor", profile) if !profile.is_empty() => options.apparmor = Some(profile.to_owned()),
            ("systempaths", "unconfined") => options.paths_shown = true,
            // Labels are SELinux's, which is not used here.
            ("label", _) => {}
            _ => {
                return Err(LocalError::Invalid(format!(
                    "invalid --security-opt {word:?}: one of no-new-privileges, seccomp=unconfined, apparmor=PROFILE, \
                     systempaths=unconfined"
                )));
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remapped_users_have_namespaces_of_their_own() {
        use orch_proto::wire::LocalOptions;
        let (other, own) = ("container:other".to_owned(), LocalOptions::default());
        for (options, said) in [
            (own.clone(), ""),
            (LocalOptions { pid_mode: "host".to_owned(), ..own.clone() }, "the host's PID namespace"),
            (LocalOptions { pid_mode: other.clone(), ..own.clone() }, "another container's PID namespace"),
            (LocalOptions { ipc_mode: other, ..own }, "another container's IPC namespace"),
        ] {
            let record = LocalContainer { options: Some(options), ..LocalContainer::default() };
            let refused = beside_remapped_users(&record).map_or_else(String::new, |error| error.to_string());
            assert!(refused.contains(said) && refused.is_empty() == said.is_empty(), "{said}: {refused}");
        }
    }

    #[test]
    fn security_options_are_dockers() {
        let read = |words: &[&str]| security(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let options = read(&["no-new-privileges", "seccomp=unconfined", "apparmor:own", "label=disable"]).unwrap();
        assert!(options.no_new_privileges && options.seccomp_off && !options.paths_shown);
        assert_eq!(options.apparmor.as_deref(), Some("own"));
        assert!(!read(&["no-new-privileges:false"]).unwrap().no_new_privileges);
        for bad in ["seccomp=/etc/profile.json", "nothing", "no-new-privileges=perhaps", "apparmor"] {
            assert!(read(&[bad]).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
