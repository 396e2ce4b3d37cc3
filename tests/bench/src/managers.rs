//! Managers as processes of their own on loopback, with what a supervisor would have given them.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use orch_model::{ClusterId, NodeId, cluster::RootCa, node::NodeRole};
use orch_proto::{
    ca,
    conv::ToProto,
    paths::Paths,
    tls::{Identity, JoinToken},
    transport,
    wire::{self, ca_client::CaClient, control_client::ControlClient, daemon_config::FirstStart},
};
use prost::Message;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A cluster of managers, each a process.
pub(crate) struct Managers {
    binary: PathBuf,
    cluster: ClusterId,
    root: RootCa,
    tokens: wire::JoinTokens,
    pub(crate) members: Vec<Member>,
}

pub(crate) struct Member {
    dir: PathBuf,
    pub(crate) node: String,
    pub(crate) addr: String,
    process: Option<Process>,
}

impl Member {
    pub(crate) fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().context("this manager does not run")
    }

    fn paths(&self) -> Paths {
        Paths::under(&self.dir)
    }

    pub(crate) async fn local(&self) -> anyhow::Result<ControlClient<Channel>> {
        Ok(ControlClient::new(transport::unix_channel(&self.paths().manager_sock()).await?))
    }

    async fn info(&self) -> Option<wire::ClusterInfo> {
        self.local().await.ok()?.info(wire::Empty {}).await.ok().map(tonic::Response::into_inner)
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }
}

impl Managers {
    /// Starts so many managers in folders under `dir` and waits until all are members.
    pub(crate) async fn start(binary: &Path, dir: &Path, count: usize, heartbeat: Duration) -> anyhow::Result<Self> {
        let cluster = ClusterId::from_random(rand::random());
        let root = ca::generate_root(&cluster, SystemTime::now())?;
        let mut members = Vec::new();
        for number in 0..count {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let node = NodeId::from_random(rand::random()).to_string();
            members.push(Member { dir: dir.join(format!("m{number}")), node, addr: port.to_string(), process: None });
        }
        let token = || JoinToken::generate(&root.cert_pem, rand::random());
        let tokens = wire::JoinTokens { worker: token()?, manager: token()? };
        let mut managers = Self { binary: binary.into(), cluster, root, tokens, members };
        managers.prepare_first(heartbeat)?;
        managers.launch(0)?;
        managers.serving(0).await?;
        for number in 1..count {
            managers.join(number).await?;
            managers.launch(number)?;
            managers.serving(number).await?;
        }
        managers.all_reachable(count).await?;
        Ok(managers)
    }

    /// The manager that leads now, as its number.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let start = Instant::now();
        loop {
            for member in &self.members {
                let leader = match member.info().await {
                    Some(info) => self.members.iter().position(|m| m.node == info.leader_id && m.process.is_some()),
                    None => None,
                };
                if let Some(leader) = leader {
                    return Ok(leader);
                }
            }
            anyhow::ensure!(start.elapsed() < START_LIMIT, "no manager leads");
            sleep(POLL).await;
        }
    }

    /// A connection over the network with a manager's rights.
    pub(crate) async fn connect(&self, number: usize) -> anyhow::Result<Channel> {
        let identity = Identity::load(&self.members[number].paths().manager_dir().join("tls"))?;
        Ok(transport::tls_channel(&self.members[number].addr, &identity, NodeRole::Manager).await?)
    }

    /// A new worker of this cluster, as far as its certificate goes.
    pub(crate) async fn join_worker(&self, hostname: &str) -> anyhow::Result<Identity> {
        let (joined, key, _) = self.ask_to_join(hostname, "", false).await?;
        Ok(Identity::from_pem(joined.root_cert_pem, joined.worker_cert_pem, key.key_pem)?)
    }

    /// How often a manager's log says something, other than of the managers themselves: they have no worker here.
    pub(crate) fn count_in_log(&self, number: usize, words: &str) -> anyhow::Result<usize> {
        let log = self.members[number].dir.join("log");
        let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let is_of_manager = |line: &str| self.members.iter().any(|member| line.contains(&member.node));
        Ok(text.lines().filter(|line| line.contains(words) && !is_of_manager(line)).count())
    }

    pub(crate) fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        let member = &mut self.members[number];
        let paths = member.paths();
        let mut command = Command::new(&self.binary);
        command
            .arg("manager")
            .env("ORCH_ROOT_DIR", &paths.root)
            .env("ORCH_RUN_DIR", &paths.run)
            .env("ORCH_ETC_DIR", &paths.etc);
        member.process = Some(Process::start(&mut command, &member.dir.join("log"))?);
        Ok(())
    }

    /// Waits until this manager answers and knows who leads; says how long that took.
    pub(crate) async fn serving(&self, number: usize) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            let info = self.members[number].info().await;
            if info.is_some_and(|info| !info.leader_id.is_empty() && !info.worker_token.is_empty()) {
                return Ok(start.elapsed());
            }
            let log = self.members[number].dir.join("log");
            anyhow::ensure!(start.elapsed() < START_LIMIT, "manager {number} does not serve: see {}", log.display());
            sleep(POLL).await;
        }
    }

    async fn all_reachable(&self, count: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let leader = self.leader().await?;
            let info = self.members[leader].info().await.unwrap_or_default();
            if info.reachability.iter().filter(|m| m.reachable).count() == count {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < START_LIMIT, "not all managers are reachable");
            sleep(POLL).await;
        }
    }

    fn prepare_first(&self, heartbeat: Duration) -> anyhow::Result<()> {
        let mut spec = orch_manager_core::bootstrap::default_cluster_spec();
        spec.heartbeat_period = heartbeat;
        let material = wire::BootstrapConfig {
            spec: Some(spec.to_proto()),
            root_ca: Some(self.root.to_proto()),
            join_tokens: Some(self.tokens.clone()),
            // No worker runs here.
            availability: "drain".to_owned(),
        };
        let first = &self.members[0];
        identity(&self.root, &self.cluster, &first.node)?.save(&first.paths().manager_dir().join("tls"))?;
        self.configure(0, &[], FirstStart::Bootstrap(material))
    }

    async fn join(&mut self, number: usize) -> anyhow::Result<()> {
        let addr = self.members[number].addr.clone();
        let (joined, _, key) = self.ask_to_join(&format!("m{number}"), &addr, true).await?;
        let identity = Identity::from_pem(joined.root_cert_pem, joined.manager_cert_pem, key.key_pem)?;
        identity.save(&self.members[number].paths().manager_dir().join("tls"))?;
        self.members[number].node = joined.node_id;
        self.configure(number, &joined.managers, FirstStart::Join(wire::Empty {}))
    }

    async fn ask_to_join(
        &self,
        hostname: &str,
        addr: &str,
        as_manager: bool,
    ) -> anyhow::Result<(wire::JoinResponse, ca::KeyAndCsr, ca::KeyAndCsr)> {
        let text = if as_manager { &self.tokens.manager } else { &self.tokens.worker }.clone();
        let (worker, manager) = (ca::new_key_and_csr()?, ca::new_key_and_csr()?);
        let channel = transport::token_channel(&self.members[0].addr, &JoinToken::parse(&text)?).await?;
        let request = wire::JoinRequest {
            token: text,
            worker_csr_pem: worker.csr_pem.clone(),
            manager_csr_pem: if as_manager { manager.csr_pem.clone() } else { String::new() },
            hostname: hostname.to_owned(),
            advertise_addr: addr.to_owned(),
            // The managers have no workers here.
            availability: if as_manager { "drain".to_owned() } else { String::new() },
            ..wire::JoinRequest::default()
        };
        let joined = CaClient::new(channel).join(request).await?.into_inner();
        Ok((joined, worker, manager))
    }

    fn configure(&self, number: usize, managers: &[String], first_start: FirstStart) -> anyhow::Result<()> {
        let member = &self.members[number];
        let config = wire::DaemonConfig {
            node_id: member.node.clone(),
            cluster_id: self.cluster.to_string(),
            hostname: format!("m{number}"),
            advertise_addr: member.addr.clone(),
            listen_addr: member.addr.clone(),
            data_addr: "127.0.0.1".to_owned(),
            managers: managers.to_vec(),
            first_start: Some(first_start),
        };
        let dir = member.paths().manager_dir();
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("daemon.pb"), config.encode_to_vec())?;
        Ok(())
    }
}

/// A manager's identity in a cluster with this root.
pub(crate) fn identity(root: &RootCa, cluster: &ClusterId, node: &str) -> anyhow::Result<Identity> {
    let key = ca::new_key_and_csr()?;
    let (node, now) = (node.parse()?, SystemTime::now());
    let cert = ca::sign_csr(root, &key.csr_pem, &node, cluster, NodeRole::Manager, CERTIFICATE_LIFE, now)?;
    Ok(Identity::from_pem(root.cert_pem.clone(), cert, key.key_pem)?)
}
