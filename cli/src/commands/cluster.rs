//! `orch init|join|join-token|leave`, and the same under `orch swarm`.

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::sys::termios;
use orch_model::{
    Duration,
    cluster::{ClusterSpec, MAX_CERT_EXPIRY, MAX_HEARTBEAT_PERIOD, MIN_HEARTBEAT_PERIOD, UNLIMITED_TASK_HISTORY},
};
use orch_proto::{
    code,
    conv::{FromProto, ToProto},
    paths::Paths,
    wire::{self, lock_client::LockClient},
};
use tokio::time::{Instant, sleep};

use super::ca::{CaArgs, ca};
use crate::{
    api::{Api, Silence, explain, is_denied, node, node_info},
    flags::duration,
};

/// Managers elect a leader within two seconds; those of a cluster that starts need some more to be there.
const LEADER_PATIENCE: Duration = Duration::from_secs(60);
const LEADER_PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Subcommand)]
pub(crate) enum SwarmCommand {
    /// Initialize a cluster
    Init(Box<InitArgs>),
    /// Join a cluster as a worker or manager
    Join(JoinArgs),
    /// Manage join tokens
    JoinToken(JoinTokenArgs),
    /// Leave the cluster
    Leave(LeaveArgs),
    /// Update the cluster's settings
    Update(UpdateArgs),
    /// Display and rotate the root certificate
    Ca(Box<CaArgs>),
    /// Unlock a locked manager
    Unlock,
    /// Manage the unlock key
    UnlockKey(UnlockKeyArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "ADDR", default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:2377", value_parser = address)]
    listen_addr: String,
    /// Address or interface to use for data path traffic (format: "<ip|interface>")
    #[arg(long, value_name = "ADDR", default_value = "")]
    data_path_addr: String,
    /// Port number to use for data path traffic (1024 - 49151; 0 for the default, 4789)
    #[arg(long, value_name = "PORT", default_value_t = 0, value_parser = data_path_port)]
    data_path_port: u32,
    /// Default address pool in CIDR format (may be given several times)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    default_addr_pool: Vec<ipnetwork::IpNetwork>,
    /// Prefix length of the subnets cut from the pools
    #[arg(long, value_name = "BITS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(8..=30))]
    default_addr_pool_mask_length: u32,
    /// Availability of the node
    #[arg(long, value_enum, default_value = "active")]
    availability: AvailabilityFlag,
    /// Validity period for node certificates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = cert_expiry)]
    cert_expiry: Option<Duration>,
    /// Dispatcher heartbeat period (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = heartbeat)]
    dispatcher_heartbeat: Option<Duration>,
    /// Task history retention limit (-1: no limit)
    #[arg(long, value_name = "N", value_parser = history_limit)]
    task_history_limit: Option<u64>,
    /// Force create a new cluster from current state
    #[arg(long)]
    force_new_cluster: bool,
    /// Enable manager autolocking
    #[arg(long)]
    autolock: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct JoinArgs {
    /// Token for entry into the cluster
    #[arg(long)]
    token: String,
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "ADDR", default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:2377", value_parser = address)]
    listen_addr: String,
    /// Address or interface to use for data path traffic (format: "<ip|interface>")
    #[arg(long, value_name = "ADDR", default_value = "")]
    data_path_addr: String,
    /// Availability of the node
    #[arg(long, value_enum, default_value = "active")]
    availability: AvailabilityFlag,
    /// Address of a manager
    #[arg(value_name = "HOST:PORT", value_parser = host_port)]
    remote: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct JoinTokenArgs {
    /// Only display the token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate the join token
    #[arg(long)]
    rotate: bool,
    #[arg(value_enum)]
    role: RoleFlag,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LeaveArgs {
    /// Force this node to leave the cluster, ignoring warnings
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Clone, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct UpdateArgs {
    /// Validity period for node certificates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = cert_expiry)]
    cert_expiry: Option<Duration>,
    /// Dispatcher heartbeat period (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = heartbeat)]
    dispatcher_heartbeat: Option<Duration>,
    /// Task history retention limit (-1: no limit)
    #[arg(long, value_name = "N", value_parser = history_limit)]
    task_history_limit: Option<u64>,
    /// Change manager autolocking setting (true|false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    autolock: Option<bool>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UnlockKeyArgs {
    /// Only display the key
    #[arg(short, long)]
    quiet: bool,
    /// Rotate the unlock key
    #[arg(long)]
    rotate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AvailabilityFlag {
    Active,
    Pause,
    Drain,
}

impl AvailabilityFlag {
    fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleFlag {
    Worker,
    Manager,
}

pub(crate) async fn swarm(command: SwarmCommand, paths: &Paths) -> anyhow::Result<()> {
    match command {
        SwarmCommand::Init(args) => init(*args, paths).await,
        SwarmCommand::Join(args) => join(args, paths).await,
        SwarmCommand::JoinToken(args) => join_token(args, paths).await,
        SwarmCommand::Leave(args) => leave(args, paths).await,
        SwarmCommand::Update(args) => update(args, paths).await,
        SwarmCommand::Ca(args) => ca(&args, paths).await,
        SwarmCommand::Unlock => unlock(paths).await,
        SwarmCommand::UnlockKey(args) => unlock_key(&args, paths).await,
    }
}

pub(crate) async fn init(args: InitArgs, paths: &Paths) -> anyhow::Result<()> {
    crate::node::ensure_running(paths).await?;
    let request = wire::InitRequest {
        advertise_addr: args.advertise_addr,
        listen_addr: args.listen_addr,
        address_pools: args.default_addr_pool.iter().map(ToString::to_string).collect(),
        subnet_prefix_len: args.default_addr_pool_mask_length,
        data_path_port: args.data_path_port,
        data_path_addr: args.data_path_addr,
        cert_expiry_ms: args.cert_expiry.map_or(0, millis),
        task_history_limit: args.task_history_limit.unwrap_or_default(),
        task_history_limit_set: args.task_history_limit.is_some(),
        heartbeat_period_ms: args.dispatcher_heartbeat.map_or(0, millis),
        availability: args.availability.word().into(),
        force_new_cluster: args.force_new_cluster,
        autolock: args.autolock,
    };
    let forced = request.force_new_cluster;
    let made = node(paths).await?.init(request).await.map_err(explain)?.into_inner();
    if forced && made.locked {
        println!(
            "This node ({}) will be the only manager of its cluster as soon as it is unlocked: run \"orch unlock\".\n\
             {FORCED_NEXT}",
            made.node_id
        );
        return Ok(());
    }
    if forced {
        println!("This node ({}) is the only manager of its cluster now.\n{FORCED_NEXT}", made.node_id);
        return Ok(());
    }
    print!("{}", init_text(&made));
    if args.autolock {
        println!("{}", unlock_text(&current_unlock_key(&mut Api::connect(paths).await?).await?));
    }
    Ok(())
}

fn init_text(made: &wire::InitResponse) -> String {
    format!(
        "Cluster initialized: current node ({}) is now a manager.\n\n{}\nTo add a manager to this cluster, run 'orch \
         join-token manager' and follow the instructions.\n\n",
        made.node_id,
        join_text("worker", &made.worker_token, &made.advertise_addr)
    )
}

fn join_text(role: &str, token: &str, addr: &str) -> String {
    format!("To add a {role} to this cluster, run the following command:\n\n    orch join --token {token} {addr}\n")
}

pub(crate) async fn join(args: JoinArgs, paths: &Paths) -> anyhow::Result<()> {
    crate::node::ensure_running(paths).await?;
    let request = wire::JoinNodeRequest {
        token: args.token,
        remote_addr: args.remote,
        advertise_addr: args.advertise_addr,
        listen_addr: args.listen_addr,
        data_path_addr: args.data_path_addr,
        availability: args.availability.word().into(),
    };
    let joined = join_a_led_cluster(request, paths).await?;
    let role = if joined.manager { "manager" } else { "worker" };
    if joined.came_back {
        println!("This node came back to its cluster as a {role}.");
    } else {
        println!("This node joined a cluster as a {role}.");
    }
    Ok(())
}

/// Asks again while nobody leads: a manager that says so has changed nothing.
async fn join_a_led_cluster(request: wire::JoinNodeRequest, paths: &Paths) -> anyhow::Result<wire::JoinNodeResponse> {
    let give_up_at = Instant::now() + LEADER_PATIENCE;
    let (patience, remote) = (LEADER_PATIENCE.as_secs(), request.remote_addr.clone());
    let mut client = node(paths).await?;
    let mut was_told = false;
    loop {
        let status = match client.join(request.clone()).await {
            Ok(joined) => return Ok(joined.into_inner()),
            Err(status) => status,
        };
        if !code::of(&status).is_some_and(code::is_leaderless) {
            return Err(explain(status));
        }
        if Instant::now() >= give_up_at {
            let what = format!("this node did not join: {remote} found no leader for {patience} s");
            return Err(explain(status).context(what));
        }
        if !was_told {
            remark!("Waiting up to {patience} s until {remote} finds a leader: {}", status.message());
            was_told = true;
        }
        sleep(LEADER_PAUSE).await;
    }
}

pub(crate) async fn join_token(args: JoinTokenArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let is_worker = args.role == RoleFlag::Worker;
    let role = if is_worker { "worker" } else { "manager" };
    let info = api.info().await?;
    let (worker, manager) = if args.rotate {
        let request = wire::RotateJoinTokenRequest { worker: is_worker, manager: !is_worker };
        let rotated = api.control.rotate_join_token(request).await.map_err(explain)?.into_inner();
        if !args.quiet {
            println!("Successfully rotated {role} join token.\n");
        }
        (rotated.worker_token, rotated.manager_token)
    } else {
        (info.worker_token, info.manager_token)
    };
    let token = if is_worker { worker } else { manager };
    if args.quiet {
        println!("{token}");
    } else {
        // This manager answers; of the others nobody knows right now.
        let own = node_info(paths).await.map(|node| node.advertise_addr).filter(|addr| !addr.is_empty());
        let addr = own.or_else(|| info.manager_addrs.first().cloned()).unwrap_or(info.leader_addr);
        println!("{}", join_text(role, &token, &addr));
    }
    Ok(())
}

pub(crate) async fn leave(args: LeaveArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut client = node(paths).await?;
    client.leave(wire::LeaveNodeRequest { force: args.force }).await.map_err(explain)?;
    println!("Node left the cluster.");
    Ok(())
}

pub(crate) async fn update(args: UpdateArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let info = api.info().await?;
    let get = wire::GetRequest { kind: orch_model::Kind::Cluster.to_proto(), reference: info.cluster_id };
    let object = api.control.get(get).await.map_err(explain)?.into_inner();
    let Some(wire::object::Object::Cluster(cluster)) = object.object else { bail!("the manager sent no cluster") };
    let mut spec = ClusterSpec::from_proto(cluster.spec.ok_or_else(|| anyhow!("the manager sent no settings"))?)?;
    spec.cert_expiry = args.cert_expiry.unwrap_or(spec.cert_expiry);
    spec.heartbeat_period = args.dispatcher_heartbeat.unwrap_or(spec.heartbeat_period);
    spec.task_history_limit = args.task_history_limit.unwrap_or(spec.task_history_limit);
    let was_locked = spec.autolock;
    spec.autolock = args.autolock.unwrap_or(spec.autolock);
    let locks_now = spec.autolock && !was_locked;
    let request = wire::UpdateRequest {
        kind: orch_model::Kind::Cluster.to_proto(),
        id: cluster.id,
        version: cluster.meta.map_or(0, |m| m.version),
        spec: Some(wire::Spec { spec: Some(wire::spec::Spec::Cluster(spec.to_proto())) }),
        rollback: false,
        new_version: false,
        rebalance: false,
        unpin: false,
        slots: Vec::new(),
    };
    api.control.update(request).await.map_err(explain)?;
    println!("Cluster updated.");
    if locks_now {
        println!("{}", unlock_text(&current_unlock_key(&mut api).await?));
    }
    Ok(())
}

/// Gives the manager of this node the key that it waits for.
pub(crate) async fn unlock(paths: &Paths) -> anyhow::Result<()> {
    let Ok(channel) = orch_proto::transport::unix_channel(&paths.manager_sock()).await else {
        let socket = paths.manager_sock();
        if is_denied(&socket) {
            bail!(Silence::Denied(socket));
        }
        bail!("no manager runs on this node, so there is nothing to unlock");
    };
    let key = wire::UnlockKey { key: read_unlock_key()? };
    LockClient::new(channel).unlock(key).await.map_err(explain)?;
    Ok(())
}

/// From the terminal without showing it, or else the first line of standard input.
fn read_unlock_key() -> anyhow::Result<String> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    let stdin = std::io::stdin();
    let mut line = String::new();
    if !stdin.is_terminal() {
        stdin.lock().read_line(&mut line).context("cannot read the key from standard input")?;
        return Ok(line.trim().to_owned());
    }
    let shown = termios::tcgetattr(&stdin).context("cannot read the terminal's settings")?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(termios::LocalFlags::ECHO);
    drop(write!(std::io::stderr(), "Enter unlock key: "));
    termios::tcsetattr(&stdin, termios::SetArg::TCSANOW, &hidden).context("cannot hide what is typed")?;
    let read = stdin.lock().read_line(&mut line);
    let restored = termios::tcsetattr(&stdin, termios::SetArg::TCSANOW, &shown);
    remark!("");
    read.context("cannot read the key")?;
    restored.context("cannot restore the terminal")?;
    Ok(line.trim().to_owned())
}

pub(crate) async fn unlock_key(args: &UnlockKeyArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let key = if args.rotate {
        let key = api.control.rotate_unlock_key(wire::Empty {}).await.map_err(explain)?.into_inner().key;
        if !args.quiet {
            println!("Successfully rotated manager unlock key.\n");
        }
        key
    } else {
        current_unlock_key(&mut api).await?
    };
    if args.quiet {
        println!("{key}");
    } else {
        println!("{}", unlock_text(&key));
    }
    Ok(())
}

async fn current_unlock_key(api: &mut Api) -> anyhow::Result<String> {
    let key = api.control.get_unlock_key(wire::Empty {}).await.map_err(explain)?.into_inner().key;
    if key.is_empty() {
        bail!("no unlock key is set: autolock is off; turn it on with \"orch update --autolock\"");
    }
    Ok(key)
}

fn unlock_text(key: &str) -> String {
    format!(
        "To unlock a manager after it restarts, run the `orch unlock` command and provide the following key:\n\n    \
         {key}\n\nRemember to store this key in a password manager, since without it you will not be able to restart the \
         manager."
    )
}

/// What to do after the quorum was lost and one manager went on alone.
const FORCED_NEXT: &str = "
Workers come back by themselves. Managers that were lost become workers when they come back; do not start so many of them
at once that they are a quorum without this node. Add managers again with 'orch node promote'.";

pub(super) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn cert_expiry(text: &str) -> Result<Duration, String> {
    let expiry = duration::parse(text)?;
    if expiry < orch_proto::ca::min_cert_expiry() {
        return Err("expected at least 1h".into());
    }
    if expiry > MAX_CERT_EXPIRY { Err("expected at most 876000h".into()) } else { Ok(expiry) }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    let period = duration::parse(text)?;
    let is_good = (MIN_HEARTBEAT_PERIOD..=MAX_HEARTBEAT_PERIOD).contains(&period);
    if is_good { Ok(period) } else { Err("expected from 1s to 24h".into()) }
}

/// As with Docker, below zero is without a limit.
fn history_limit(text: &str) -> Result<u64, String> {
    let limit: i64 = text.parse().map_err(|_| "expected a whole number, or -1 for no limit")?;
    Ok(u64::try_from(limit).unwrap_or(UNLIMITED_TASK_HISTORY))
}

fn data_path_port(text: &str) -> Result<u32, String> {
    let port = text.parse().ok().filter(|port| *port == 0 || (1024..=49151).contains(port));
    port.ok_or_else(|| "expected a port from 1024 to 49151, or 0 for the default".into())
}

/// `ADDR`, `IFACE`, either with `:PORT`.
fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((_, port)) if !text.ends_with(']') && port.parse::<u16>().is_err() && !text.contains("::") => {
            Err(format!("{port:?} is not a port; expected <ip|interface>[:port]"))
        }
        _ if text.is_empty() => Err("expected <ip|interface>[:port]".into()),
        _ => Ok(text.to_owned()),
    }
}

/// The port may be left out: managers listen on 2377.
fn host_port(text: &str) -> Result<String, String> {
    let bad = || Err("expected HOST:PORT, such as 192.168.0.10:2377".into());
    if text.is_empty() || text.contains(char::is_whitespace) || text.contains('/') {
        return bad();
    }
    match text.rsplit_once(':') {
        None => Ok(format!("{text}:2377")),
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0) => Ok(text.to_owned()),
        Some(_) => bad(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_prints_the_line_to_paste() {
        let made = wire::InitResponse {
            node_id: "n".into(),
            worker_token: "ORCHTKN-1-a-b".into(),
            advertise_addr: "10.0.0.1:2377".into(),
            ..wire::InitResponse::default()
        };
        assert_eq!(
            init_text(&made),
            "Cluster initialized: current node (n) is now a manager.\n\nTo add a worker to this cluster, run the \
             following command:\n\n    orch join --token ORCHTKN-1-a-b 10.0.0.1:2377\n\nTo add a manager to this \
             cluster, run 'orch join-token manager' and follow the instructions.\n\n"
        );
    }

    #[test]
    fn history_limits() {
        for (text, limit) in [("0", 0), ("5", 5), ("-1", UNLIMITED_TASK_HISTORY), ("-2", UNLIMITED_TASK_HISTORY)] {
            assert_eq!(history_limit(text), Ok(limit), "{text}");
        }
        for text in ["", "x", "1.5", "--1"] {
            assert!(history_limit(text).unwrap_err().contains("-1 for no limit"), "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(host_port("m1"), Ok("m1:2377".into()));
        assert_eq!(host_port("m1:99"), Ok("m1:99".into()));
        assert_eq!(host_port("[::1]:2377"), Ok("[::1]:2377".into()));
        for text in ["", "m1:", ":1", "m1:x", "http://x", "a b"] {
            assert!(host_port(text).is_err(), "{text}");
        }
        assert!(address("eth0").is_ok() && address("eth0:1").is_ok() && address("1.2.3.4:x").is_err());
    }
}
