//! `orch init`: a new cluster with this node as its first manager.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use orch_model::{
    Annotations, ClusterId, NodeId,
    cluster::{
        ClusterSpec, DEFAULT_ADDRESS_POOL, DEFAULT_CERT_EXPIRY, DEFAULT_HEARTBEAT_PERIOD, DEFAULT_SUBNET_PREFIX_LEN,
        DEFAULT_TASK_HISTORY_LIMIT, JoinTokens, MAX_CERT_EXPIRY, MAX_HEARTBEAT_PERIOD, MIN_HEARTBEAT_PERIOD, RootCa,
    },
    network::ENCRYPTED_PORT,
    node::NodeRole,
};
use orch_proto::{
    ca::{generate_root, min_cert_expiry, sign_csr},
    conv::ToProto,
    tls::JoinToken,
    wire::{self, daemon_config::FirstStart},
};

use super::{
    address,
    credentials::NewKeys,
    daemon::Role,
    error::{NodeError, Result},
    force,
    member::Member,
    supervisor::Supervisor,
    wait,
};

const DEFAULT_DATA_PATH_PORT: u16 = 4789;
const MIN_DATA_PATH_PORT: u32 = 1024;
const MAX_DATA_PATH_PORT: u32 = 49151;

/// Makes the cluster, or leaves the machine as it was.
pub(super) async fn init(supervisor: &Supervisor, request: wire::InitRequest) -> Result<wire::InitResponse> {
    let _operation = supervisor.turn().await?;
    if request.force_new_cluster {
        return force::go_on_alone(supervisor, &request).await;
    }
    supervisor.refuse_member()?;
    let plan = Plan::new(&request)?;
    super::ports::manager(plan.listen, plan.advertise).await?;
    super::ports::peer()?;
    // What a leave or an init that was cut short left behind.
    super::leave::finish(supervisor).await?;
    supervisor.make_room()?;
    match plan.carry_out(supervisor).await {
        Ok(response) => Ok(response),
        Err(error) => {
            supervisor.stop_daemons().await;
            super::leave::clean_up(supervisor).await;
            Err(error)
        }
    }
}

/// Everything that can be refused before anything is written.
struct Plan {
    spec: ClusterSpec,
    availability: String,
    advertise: SocketAddr,
    listen: SocketAddr,
    data: IpAddr,
    hostname: String,
}

impl Plan {
    fn new(request: &wire::InitRequest) -> Result<Self> {
        let locals = address::local_addresses()?;
        let advertise = address::advertised(&request.advertise_addr, &request.listen_addr, &locals)?;
        let listen = address::listened(&request.listen_addr, advertise, &locals)?;
        Ok(Self {
            spec: cluster_spec(request)?,
            availability: availability(&request.availability)?,
            advertise,
            listen,
            data: address::data_path(&request.data_path_addr, advertise, &locals)?,
            hostname: hostname()?,
        })
    }

    async fn carry_out(self, supervisor: &Supervisor) -> Result<wire::InitResponse> {
        let now = SystemTime::now();
        let (cluster_id, node_id) = (ClusterId::from_random(rand::random()), NodeId::from_random(rand::random()));
        let root = generate_root(&cluster_id, now)?;
        let tokens = JoinTokens {
            worker: JoinToken::generate(&root.cert_pem, rand::random())?,
            manager: JoinToken::generate(&root.cert_pem, rand::random())?,
        };
        self.save_identities(supervisor, &root, &node_id, &cluster_id, now)?;
        let advertise = self.advertise.to_string();
        let member = Member {
            cluster_id: cluster_id.to_string(),
            node_id: node_id.to_string(),
            manager: true,
            hostname: self.hostname,
            advertise_addr: advertise.clone(),
            listen_addr: self.listen.to_string(),
            data_addr: self.data.to_string(),
            managers: vec![advertise.clone()],
            chosen: false,
        };
        let bootstrap = wire::BootstrapConfig {
            spec: Some(self.spec.to_proto()),
            root_ca: Some(root.to_proto()),
            join_tokens: Some(tokens.to_proto()),
            availability: self.availability,
        };
        supervisor.write_config(Role::Manager, &daemon_config(&member, Some(FirstStart::Bootstrap(bootstrap))))?;
        supervisor.write_config(Role::Worker, &daemon_config(&member, None))?;
        supervisor.hand_over(Role::Manager)?;
        supervisor.start_daemon(Role::Manager)?;
        wait::manager_ready(supervisor).await?;
        supervisor.start_daemon(Role::Netd)?;
        supervisor.start_daemon(Role::Worker)?;
        wait::worker_ready(supervisor).await?;
        supervisor.become_member(member)?;
        Ok(wire::InitResponse {
            node_id: node_id.to_string(),
            cluster_id: cluster_id.to_string(),
            worker_token: tokens.worker,
            manager_token: tokens.manager,
            advertise_addr: advertise,
            locked: false,
        })
    }

    /// Signs this node's own certificates: there is nobody else to ask yet.
    fn save_identities(
        &self,
        supervisor: &Supervisor,
        root: &RootCa,
        node: &NodeId,
        cluster: &ClusterId,
        now: SystemTime,
    ) -> Result<()> {
        let keys = NewKeys::generate()?;
        let expiry = self.spec.cert_expiry;
        let sign = |csr: &str, role| sign_csr(root, csr, node, cluster, role, expiry, now);
        let answer = wire::JoinResponse {
            node_id: node.to_string(),
            cluster_id: cluster.to_string(),
            root_cert_pem: root.cert_pem.clone(),
            worker_cert_pem: sign(&keys.worker.csr_pem, NodeRole::Worker)?,
            manager_cert_pem: sign(&keys.manager.csr_pem, NodeRole::Manager)?,
            managers: Vec::new(),
        };
        keys.save(&answer, &supervisor.paths)?;
        Ok(())
    }
}

/// What a daemon of this node starts from.
pub(super) fn daemon_config(member: &Member, first_start: Option<FirstStart>) -> wire::DaemonConfig {
    wire::DaemonConfig {
        node_id: member.node_id.clone(),
        cluster_id: member.cluster_id.clone(),
        hostname: member.hostname.clone(),
        advertise_addr: member.advertise_addr.clone(),
        listen_addr: member.listen_addr.clone(),
        data_addr: member.data_addr.clone(),
        managers: member.managers.clone(),
        first_start,
    }
}

/// The availability that a new node gets, in the CLI's words.
pub(super) fn availability(text: &str) -> Result<String> {
    match text {
        "" => Ok("active".to_owned()),
        "active" | "pause" | "drain" => Ok(text.to_owned()),
        _ => Err(NodeError::Invalid(format!("invalid availability {text:?}: only active, pause and drain are known"))),
    }
}

pub(super) fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname().context("cannot read this machine's hostname")?;
    Ok(name.to_string_lossy().into_owned())
}

fn cluster_spec(request: &wire::InitRequest) -> Result<ClusterSpec> {
    let or_default = |ms: u64, default| if ms == 0 { default } else { Duration::from_millis(ms) };
    let cert_expiry = or_default(request.cert_expiry_ms, DEFAULT_CERT_EXPIRY);
    if !(min_cert_expiry()..=MAX_CERT_EXPIRY).contains(&cert_expiry) {
        return Err(NodeError::Invalid("--cert-expiry must be from 1h to 876000h".to_owned()));
    }
    let heartbeat_period = or_default(request.heartbeat_period_ms, DEFAULT_HEARTBEAT_PERIOD);
    if !(MIN_HEARTBEAT_PERIOD..=MAX_HEARTBEAT_PERIOD).contains(&heartbeat_period) {
        return Err(NodeError::Invalid("--dispatcher-heartbeat must be from 1s to 24h".to_owned()));
    }
    let history = if request.task_history_limit_set { request.task_history_limit } else { DEFAULT_TASK_HISTORY_LIMIT };
    let address_pools = address_pools(&request.address_pools)?;
    Ok(ClusterSpec {
        annotations: Annotations { name: "default".to_owned(), ..Annotations::default() },
        task_history_limit: history,
        heartbeat_period,
        cert_expiry,
        subnet_prefix_len: subnet_prefix_len(request.subnet_prefix_len, &address_pools)?,
        address_pools,
        data_path_port: data_path_port(request.data_path_port)?,
        autolock: request.autolock,
    })
}

fn address_pools(texts: &[String]) -> Result<Vec<IpNetwork>> {
    if texts.is_empty() {
        let default = DEFAULT_ADDRESS_POOL.parse().context("the default address pool is not a network")?;
        return Ok(vec![default]);
    }
    let pools = texts.iter().map(|text| {
        let pool: Option<IpNetwork> = text.parse().ok().filter(|_| text.contains('/'));
        pool.filter(|pool| pool.ip() == pool.network()).ok_or_else(|| {
            NodeError::Invalid(format!("invalid --default-addr-pool {text:?}: expected a network such as 10.20.0.0/16"))
        })
    });
    let pools: Vec<IpNetwork> = pools.collect::<Result<_>>()?;
    for (place, pool) in pools.iter().enumerate() {
        if let Some(other) = pools[..place].iter().find(|other| other.contains(pool.ip()) || pool.contains(other.ip()))
        {
            return Err(NodeError::Invalid(format!("the address pools {other} and {pool} overlap; give only one")));
        }
    }
    Ok(pools)
}

fn subnet_prefix_len(wanted: u32, pools: &[IpNetwork]) -> Result<u8> {
    const MAX: u32 = 29;
    let wanted = if wanted == 0 { u32::from(DEFAULT_SUBNET_PREFIX_LEN) } else { wanted };
    if wanted > MAX {
        return Err(NodeError::Invalid(format!(
            "invalid --default-addr-pool-mask-length {wanted}: a subnet of more than /{MAX} has no room for tasks"
        )));
    }
    if let Some(pool) = pools.iter().find(|pool| u32::from(pool.prefix()) > wanted) {
        return Err(NodeError::Invalid(format!(
            "the address pool {pool} is smaller than one subnet (/{wanted}); give a larger pool or a longer \
             --default-addr-pool-mask-length"
        )));
    }
    u8::try_from(wanted).map_err(|error| NodeError::Failed(error.into()))
}

fn data_path_port(wanted: u32) -> Result<u16> {
    match wanted {
        0 => Ok(DEFAULT_DATA_PATH_PORT),
        port if port == u32::from(ENCRYPTED_PORT) => Err(NodeError::Invalid(format!(
            "invalid --data-path-port {port}: encrypted networks use it: choose another"
        ))),
        MIN_DATA_PATH_PORT..=MAX_DATA_PATH_PORT => {
            u16::try_from(wanted).map_err(|error| NodeError::Failed(error.into()))
        }
        _ => Err(NodeError::Invalid(format!(
            "invalid --data-path-port {wanted}: it must be from {MIN_DATA_PATH_PORT} to {MAX_DATA_PATH_PORT}"
        ))),
    }
}
