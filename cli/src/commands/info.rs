//! `orch info` and `orch version`.

use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;
use orch_model::{cluster::UNLIMITED_TASK_HISTORY, size};
use orch_proto::{
    code,
    paths::Paths,
    wire::{self, control_client::ControlClient},
};
use serde_json::{Value, json};

use super::print_inspected;
use crate::{
    api::{Silence, node_info, silence, worker},
    render::time,
};

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Names the way out: other commands send here.
const NO_QUORUM: &str = "this manager reaches no leader that has a quorum: more than half of the managers must be up and reach \
                         each other. Start the missing ones; where they are lost for good, let this one go on alone by \
                         \"orch init --force-new-cluster\"";

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output: 'json' or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

pub(crate) async fn version(args: FormatArgs, paths: &Paths) -> anyhow::Result<()> {
    let daemon = node_info(paths).await.map(|info| info.version);
    if args.format.is_some() {
        let value = json!({
            "Client": {"Version": VERSION, "Os": "linux", "Arch": std::env::consts::ARCH},
            "Server": daemon.map(|version| json!({"Version": version})),
        });
        return print_inspected(vec![value], args.format.as_deref());
    }
    println!("Client: Orch\n Version:    {VERSION}\n OS/Arch:    linux/{}", std::env::consts::ARCH);
    match daemon {
        Some(version) => println!("\nServer: Orch node\n Version:    {version}"),
        None => println!("\nServer: no answer: {}", silence(paths)),
    }
    Ok(())
}

/// What can be found out; a missing daemon is a fact, not an error.
struct Facts {
    node: Option<wire::NodeInfo>,
    worker: Option<wire::WorkerInfo>,
    cluster: Option<wire::ClusterInfo>,
    /// The manager waits for its unlock key.
    locked: bool,
    /// Why the manager does not serve.
    failure: Option<String>,
}

pub(crate) async fn info(args: FormatArgs, paths: &Paths) -> anyhow::Result<()> {
    let node = node_info(paths).await;
    let worker = match worker(paths).await {
        Ok(mut worker) => worker.info(wire::Empty {}).await.ok().map(tonic::Response::into_inner),
        Err(_) => None,
    };
    let cluster = match orch_proto::transport::unix_channel(&paths.manager_sock()).await {
        Ok(channel) => {
            ControlClient::new(channel).info(wire::Empty {}).await.map(tonic::Response::into_inner).map_err(Some)
        }
        Err(_) => Err(None),
    };
    let says = |status: &tonic::Status, word: &str| code::of(status) == Some(word);
    let locked = matches!(&cluster, Err(Some(status)) if says(status, "locked"));
    let failure = match &cluster {
        Err(Some(status)) if says(status, "failed") => Some(status.message().to_owned()),
        _ => None,
    };
    if node.is_none() && cluster.is_err() {
        match silence(paths) {
            Silence::NoMember => {}
            reason => bail!(reason),
        }
    }
    let facts = Facts { node, worker, cluster: cluster.ok(), locked, failure };
    match args.format.as_deref() {
        Some(format) => print_inspected(vec![facts.json()], Some(format)),
        None => {
            print!("{}", facts.text());
            Ok(())
        }
    }
}

impl Facts {
    fn state(&self) -> &str {
        match (&self.node, &self.cluster) {
            _ if self.locked => "locked",
            _ if self.failure.is_some() => "error",
            (Some(node), _) => &node.state,
            // A manager without a supervisor, as tests run it.
            (None, Some(_)) => "active",
            (None, None) => "inactive",
        }
    }

    fn error<'a>(&'a self, node: &'a wire::NodeInfo) -> Option<&'a str> {
        let without_quorum = || self.cluster.as_ref().filter(|cluster| !has_quorum(cluster)).map(|_| NO_QUORUM);
        self.failure.as_deref().or((!node.error.is_empty()).then_some(node.error.as_str())).or_else(without_quorum)
    }

    fn json(&self) -> Value {
        let node = self.node.clone().unwrap_or_default();
        let worker = self.worker.clone().unwrap_or_default();
        let description = worker.description.clone().unwrap_or_default();
        let resources = description.resources.unwrap_or_default();
        let managers = self.managers().iter().map(|addr| json!({"Addr": addr})).collect::<Value>();
        let cluster = self.cluster.as_ref().map(|c| {
            let (spec, root) = (c.spec.clone().unwrap_or_default(), c.root.clone().unwrap_or_default());
            json!({
                "ID": c.cluster_id,
                "CreatedAt": time::rfc3339(orch_model::Timestamp::from_unix_ms(c.created_at_ms)),
                "Spec": {
                    "Dispatcher": {"HeartbeatPeriod": spec.heartbeat_period_ms.saturating_mul(1_000_000)},
                    "CAConfig": {"NodeCertExpiry": spec.cert_expiry_ms.saturating_mul(1_000_000), "ForceRotate": root.rotations},
                    "EncryptionConfig": {"AutoLockManagers": spec.autolock},
                },
                "TLSInfo": {"TrustRoot": c.root_cert_pem},
                "RootRotationInProgress": root.rotating,
            })
        });
        let daemons = node.daemons.iter().map(daemon_json).collect::<Value>();
        json!({
            "Containers": worker.containers_running + worker.containers_stopped,
            "ContainersRunning": worker.containers_running,
            "ContainersStopped": worker.containers_stopped,
            "Images": worker.images,
            "NCPU": resources.nano_cpus / 1_000_000_000,
            "MemTotal": resources.memory_bytes,
            "Name": description.hostname,
            "ServerVersion": node.version,
            "CgroupVersion": worker.cgroup_version,
            "SecurityOptions": worker.security_options,
            "Daemons": daemons,
            "Warnings": node.broken_files.iter().map(|file| warning(file)).collect::<Value>(),
            "Swarm": {
                "NodeID": node.node_id,
                "NodeAddr": host(&node.advertise_addr),
                "LocalNodeState": self.state(),
                "ControlAvailable": self.cluster.is_some(),
                "Error": self.error(&node).unwrap_or_default(),
                "RemoteManagers": managers,
                "Nodes": self.cluster.as_ref().map_or(0, |c| c.nodes),
                "Managers": self.cluster.as_ref().map_or(0, |c| c.managers),
                "Cluster": cluster,
            },
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "Client: Orch\n Version:    {VERSION}\n\nServer:")?;
        if let Some(worker) = &self.worker {
            let (running, stopped) = (worker.containers_running, worker.containers_stopped);
            writeln!(out, " Containers: {}\n  Running: {running}\n  Stopped: {stopped}", running + stopped)?;
            writeln!(out, " Images: {}\n Cgroup Version: {}", worker.images, worker.cgroup_version)?;
            for (i, option) in worker.security_options.iter().enumerate() {
                let title = if i == 0 { " Security Options:\n" } else { "" };
                writeln!(out, "{title}  {}", security_option(option))?;
            }
            if let Some(description) = &worker.description {
                let resources = description.resources.unwrap_or_default();
                writeln!(out, " Name: {}\n CPUs: {}", description.hostname, resources.nano_cpus / 1_000_000_000)?;
                writeln!(out, " Total Memory: {}", size::human_binary(resources.memory_bytes))?;
            }
        }
        writeln!(out, " Cluster: {}", self.state())?;
        let Some(node) = self.node.as_ref().filter(|node| !node.node_id.is_empty() || !node.error.is_empty()) else {
            return Ok(());
        };
        writeln!(out, "  NodeID: {}", node.node_id)?;
        if let Some(error) = self.error(node) {
            writeln!(out, "  Error: {error}")?;
        }
        writeln!(out, "  Is Manager: {}", node.manager)?;
        if let Some(cluster) = &self.cluster {
            writeln!(
                out,
                "  ClusterID: {}\n  Managers: {}\n  Nodes: {}",
                cluster.cluster_id, cluster.managers, cluster.nodes
            )?;
            if let Some(spec) = &cluster.spec {
                writeln!(out, "  Default Address Pool: {}", spec.address_pools.join(", "))?;
                writeln!(out, "  SubnetSize: {}\n  Data Path Port: {}", spec.subnet_prefix_len, spec.data_path_port)?;
                let limit = match spec.task_history_limit {
                    UNLIMITED_TASK_HISTORY => "-1".to_owned(),
                    limit => limit.to_string(),
                };
                writeln!(out, "  Orchestration:\n   Task History Retention Limit: {limit}")?;
                let length = |ms| time::human(std::time::Duration::from_millis(ms));
                writeln!(out, "  Dispatcher:\n   Heartbeat Period: {}", length(spec.heartbeat_period_ms))?;
                let root = cluster.root.clone().unwrap_or_default();
                writeln!(out, "  CA Configuration:\n   Expiry Duration: {}", length(spec.cert_expiry_ms))?;
                writeln!(out, "   Force Rotate: {}\n  Autolock Managers: {}", root.rotations, spec.autolock)?;
                writeln!(out, "  Root Rotation In Progress: {}", root.rotating)?;
                if root.rotating {
                    writeln!(out, "   Waiting For: {}", root.awaited.join(", "))?;
                }
            }
        }
        writeln!(out, "  Node Address: {}", host(&node.advertise_addr))?;
        let managers = self.managers();
        if !managers.is_empty() {
            writeln!(out, "  Manager Addresses:")?;
            managers.iter().try_for_each(|addr| writeln!(out, "   {addr}"))?;
        }
        for daemon in &node.daemons {
            writeln!(out, " Daemon {}: pid {}, restarts {}", daemon.name, daemon.pid, daemon.restarts)?;
            if daemon.pid == 0 {
                writeln!(out, "  Last Words: {}\n  Log: {}", daemon.last_words, daemon.log)?;
            }
        }
        node.broken_files.iter().try_for_each(|file| writeln!(out, "{}", warning(file)))
    }

    /// A manager knows them all; a worker those that it was told of.
    fn managers(&self) -> &[String] {
        match (&self.cluster, &self.node) {
            (Some(cluster), _) if !cluster.manager_addrs.is_empty() => &cluster.manager_addrs,
            (_, Some(node)) => &node.managers,
            (_, None) => &[],
        }
    }
}

/// A leader that has lost the others goes on calling itself one.
pub(crate) fn has_quorum(info: &wire::ClusterInfo) -> bool {
    let reachable = info.reachability.iter().filter(|manager| manager.reachable).count();
    !info.leader_id.is_empty() && (info.reachability.len() <= 1 || reachable > info.reachability.len() / 2)
}

fn warning(broken_file: &str) -> String {
    format!(
        "WARNING: {broken_file} was damaged and is put aside: see the worker's log for what was lost with it, look after \
         the disk, and delete the file"
    )
}

fn daemon_json(daemon: &wire::DaemonInfo) -> Value {
    json!({
        "Name": daemon.name,
        "Pid": daemon.pid,
        "Restarts": daemon.restarts,
        "LastWords": daemon.last_words,
        "Log": daemon.log,
    })
}

/// `name=seccomp,profile=builtin` as `docker info` prints it.
fn security_option(words: &str) -> String {
    let lines = words.split(',').filter_map(|word| word.split_once('=')).map(|(key, value)| match key {
        "name" => value.to_owned(),
        "profile" => format!("\n   Profile: {value}"),
        other => format!("\n   {other}: {value}"),
    });
    lines.collect()
}

/// `host` of `host:port`.
fn host(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host.trim_start_matches('[').trim_end_matches(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_without_a_quorum_says_so() {
        // (whether a leader is known, who answers), whether they decide.
        for (leads, answering, expected) in [
            (true, &[true][..], true),
            (false, &[true], false),
            (true, &[true, true], true),
            (true, &[true, false], false),
            (true, &[true, true, false], true),
            (true, &[true, false, false], false),
            (false, &[true, true, true], false),
        ] {
            let reachability = answering
                .iter()
                .map(|reachable| wire::ManagerReachability { reachable: *reachable, ..Default::default() })
                .collect();
            let leader_id = if leads { "n" } else { "" }.to_owned();
            let cluster = wire::ClusterInfo { leader_id, reachability, ..Default::default() };
            assert_eq!(has_quorum(&cluster), expected, "{leads} {answering:?}");
            let node = wire::NodeInfo { node_id: "n".into(), state: "active".into(), ..Default::default() };
            let facts = Facts { node: Some(node), worker: None, cluster: Some(cluster), locked: false, failure: None };
            let error = if expected { "" } else { NO_QUORUM };
            assert_eq!(facts.json()["Swarm"]["Error"], error, "{leads} {answering:?}");
            assert_eq!(facts.text().contains("Error: "), !expected, "{leads} {answering:?}");
        }
    }

    #[test]
    fn a_daemon_that_does_not_run_has_its_last_words_in_both_forms() {
        let daemon = |name: &str, pid, last_words: &str| wire::DaemonInfo {
            name: name.into(),
            pid,
            last_words: last_words.into(),
            ..Default::default()
        };
        let daemons = vec![daemon("worker", 0, "no certificate"), daemon("netd", 7, "")];
        let node = wire::NodeInfo { node_id: "n".into(), daemons, ..Default::default() };
        let facts = Facts { node: Some(node), worker: None, cluster: None, locked: false, failure: None };
        assert_eq!(facts.json()["Daemons"][0]["LastWords"], "no certificate");
        assert!(
            facts.text().contains(" Daemon worker: pid 0, restarts 0\n  Last Words: no certificate\n"),
            "{}",
            facts.text()
        );
        assert_eq!(facts.text().matches("Last Words").count(), 1);
    }

    #[test]
    fn files_that_lie_aside_are_named_in_both_forms() {
        let broken_files = vec!["/w/images/index.json.broken-7".to_owned()];
        let node = wire::NodeInfo { node_id: "n".into(), broken_files, ..Default::default() };
        let facts = Facts { node: Some(node), worker: None, cluster: None, locked: false, failure: None };
        assert!(
            facts.text().ends_with("delete the file\n")
                && facts.text().contains("\nWARNING: /w/images/index.json.broken-7 was")
        );
        assert!(
            facts.json()["Warnings"][0].as_str().is_some_and(|text| text.contains("/w/images/index.json.broken-7"))
        );
    }
}
