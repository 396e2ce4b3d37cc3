//! `orch run` and `orch create`: a container of this node alone, from one command line.

mod given;
mod joined;
#[cfg(test)]
mod surface;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use orch_model::{
    Duration,
    service::{
        ContainerSpec, DnsConfig, LogDriver, Mount, MountKind, PortConfig, PublishMode, ResourceLimits, TaskSpec,
        Ulimit,
    },
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use self::given::{Given, VolumesFrom};
use super::{
    container_attach::{self, DetachKeys, Session},
    health::HealthFlags,
    image,
    network::{NetworkFlags, is_joined},
};
use crate::{
    api::{Worker, explain, worker},
    flags::{key_value, linux, mount, port, quantity, resolver},
};

/// What Docker's client ends with when the container could not even be started.
pub(crate) const NOT_RUN: u8 = 125;

#[derive(Debug, Clone, Args)]
#[command(override_usage = "orch run [OPTIONS] IMAGE [COMMAND] [ARG...]", disable_help_flag = true)]
pub(crate) struct RunArgs {
    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = container_attach::detach_keys, default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Proxy received signals to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    create: CreateArgs,
}

#[derive(Debug, Clone, Args)]
#[command(override_usage = "orch create [OPTIONS] IMAGE [COMMAND] [ARG...]", disable_help_flag = true)]
pub(crate) struct CreateArgs {
    /// Assign a name to the container
    #[arg(long, default_value = "")]
    name: String,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Publish a container's port(s) to the host
    #[arg(short, long, value_name = "PORT", value_parser = port::parse_of_container)]
    publish: Vec<port::ContainerPorts>,
    /// Publish all exposed ports to free ports
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Expose a port or a range of ports: -P publishes it too
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port::parse_exposed)]
    expose: Vec<port::PortList>,
    /// Bind mount a volume
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long, value_name = "CONTAINER[:ro]", value_parser = given::volumes_from)]
    volumes_from: Vec<VolumesFrom>,
    /// Attach a filesystem mount to the container
    #[arg(long, value_name = "MOUNT", value_parser = mount::parse)]
    mount: Vec<Mount>,
    /// Mount a tmpfs directory
    #[arg(long, value_name = "PATH[:OPTIONS]", value_parser = tmpfs)]
    tmpfs: Vec<Tmpfs>,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value::variable)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    #[command(flatten)]
    networks: NetworkFlags,
    /// Restart policy to apply when a container exits (no, on-failure[:max], always, unless-stopped)
    #[arg(long, value_name = "POLICY", value_parser = restart, default_value = "no")]
    restart: Restart,
    /// Give extended privileges to this container
    #[arg(long)]
    privileged: bool,
    /// Automatically remove the container when it exits
    #[arg(long)]
    rm: bool,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "COMMAND", value_parser = entrypoint)]
    entrypoint: Option<Words>,
    /// Working directory inside the container
    #[arg(short, long, default_value = "", value_name = "DIR", value_parser = linux::working_dir)]
    workdir: String,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, default_value = "", value_name = "USER", value_parser = linux::user)]
    user: String,
    /// Add additional groups to join
    #[arg(long, value_name = "GROUP", value_parser = linux::group)]
    group_add: Vec<String>,
    /// Container host name
    // `-h` is the host name here, as with Docker; `--help` is for help.
    #[arg(short = 'h', long, default_value = "", value_name = "NAME", value_parser = resolver::hostname)]
    hostname: String,
    /// Set meta data on a container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Read in a line delimited file of labels
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    read_only: bool,
    /// Memory limit
    #[arg(short, long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory: Option<u64>,
    /// Number of CPUs
    #[arg(long, value_name = "CPUS", value_parser = quantity::nano_cpus)]
    cpus: Option<u64>,
    /// Limit CPU CFS (Completely Fair Scheduler) period, in microseconds (default 100000)
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    cpu_period: Option<u64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota, in microseconds of each period (-1: unlimited)
    #[arg(long, value_name = "US", value_parser = cpu_quota, allow_hyphen_values = true)]
    cpu_quota: Option<u64>,
    /// Tune container pids limit (0 or -1: unlimited)
    #[arg(long, value_name = "N", value_parser = quantity::processes, allow_hyphen_values = true)]
    pids_limit: Option<u64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    shm_size: Option<u64>,
    /// Memory soft limit
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory_reservation: Option<u64>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, value_name = "BYTES", value_parser = swap, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short = 'c', long, value_name = "N", value_parser = quantity::count)]
    cpu_shares: Option<u64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "CPUS", default_value = "", value_parser = linux::number_list)]
    cpuset_cpus: String,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "MEMS", default_value = "", value_parser = linux::number_list)]
    cpuset_mems: String,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "SCORE", value_parser = linux::oom_score, allow_hyphen_values = true, default_value = "0")]
    oom_score_adj: i32,
    /// Security options (no-new-privileges, seccomp=unconfined, apparmor=PROFILE, systempaths=unconfined)
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// PID namespace to use (host, container:NAME)
    #[arg(long, value_name = "MODE", default_value = "")]
    pid: String,
    /// IPC mode to use (private, host, container:NAME)
    #[arg(long, value_name = "MODE", default_value = "")]
    ipc: String,
    /// UTS namespace to use (host)
    #[arg(long, value_name = "MODE", default_value = "")]
    uts: String,
    /// User namespace to use (host: not remapped)
    #[arg(long, value_name = "MODE", default_value = "")]
    userns: String,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
    /// Add Linux capabilities
    #[arg(long, value_name = "CAPABILITY", value_parser = linux::capability)]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "CAPABILITY", value_parser = linux::capability)]
    cap_drop: Vec<String>,
    /// Add a host device to the container
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Ulimit options (name=soft[:hard])
    #[arg(long, value_name = "ULIMIT", value_parser = linux::ulimit)]
    ulimit: Vec<Ulimit>,
    /// Sysctl options
    #[arg(long, value_name = "KEY=VALUE", value_parser = linux::sysctl)]
    sysctl: Vec<(String, String)>,
    /// Add a custom host-to-IP mapping (host:ip, host:host-gateway for this node)
    #[arg(long, value_name = "HOST:IP", value_parser = resolver::host_entry)]
    add_host: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "ADDRESS", value_parser = resolver::address)]
    dns: Vec<std::net::IpAddr>,
    /// Set DNS options
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", value_parser = resolver::option)]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "DOMAIN", value_parser = resolver::search_domain)]
    dns_search: Vec<String>,
    /// Signal to stop the container
    #[arg(long, default_value = "", value_name = "SIGNAL", value_parser = linux::signal)]
    stop_signal: String,
    /// Timeout (in seconds) to stop the container
    #[arg(long, value_name = "SECONDS", value_parser = quantity::count)]
    stop_timeout: Option<u64>,
    /// Logging driver for the container
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Log driver options
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    log_opt: Vec<(String, String)>,
    #[command(flatten)]
    health: HealthFlags,
    /// Set platform: only this node's own is taken
    #[arg(long, value_name = "OS/ARCH", value_parser = platform)]
    platform: Option<()>,
    /// Pull image before running (always, missing, never)
    #[arg(long, default_value = "missing", value_parser = ["always", "missing", "never"])]
    pull: String,
    /// Suppress the pull output
    #[arg(short, long)]
    quiet: bool,
    /// Write the container ID to the file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// The image, then the command and its arguments
    #[arg(value_name = "IMAGE [COMMAND] [ARG...]", required = true, trailing_var_arg = true)]
    image_and_command: Vec<String>,
}

#[derive(Debug, Clone)]
struct Words(Vec<String>);

#[derive(Debug, Clone)]
pub(super) struct Restart(pub(super) wire::LocalRestart);

/// A mount and the options as they were written.
#[derive(Debug, Clone)]
struct Tmpfs {
    mount: Mount,
    options: String,
}

/// Ends with the container's own code, or with 125 to 127 as Docker's client does.
pub(crate) async fn run(args: RunArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let outcome = try_run(args, paths).await;
    Ok(match outcome {
        Ok(code) => exit_code(code),
        Err(Failure { error, code }) => {
            remark!("orch: {error:#}\n\nRun 'orch run --help' for more information");
            exit_code(code)
        }
    })
}

pub(crate) async fn create(args: CreateArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let created = make(&args, Attaching::Perhaps, &mut worker).await.map_err(|failure| failure.error)?;
    println!("{}", created.container_id);
    Ok(())
}

pub(crate) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

struct Failure {
    error: anyhow::Error,
    code: i32,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { error, code: NOT_RUN.into() }
    }
}

impl From<tonic::Status> for Failure {
    /// The worker says in the metadata when it was the program that could not be started.
    fn from(status: tonic::Status) -> Self {
        let code = status.metadata().get("orch-exit-code").and_then(|code| code.to_str().ok()?.parse().ok());
        Self { code: code.unwrap_or(NOT_RUN.into()), error: explain(status) }
    }
}

async fn try_run(args: RunArgs, paths: &Paths) -> Result<i32, Failure> {
    let options = &args.create;
    if args.detach && options.rm && options.restart.0.condition != "no" {
        return Err(anyhow!("conflicting options: cannot specify both --restart and --rm").into());
    }
    if options.tty && options.interactive && !args.detach && !container_attach::is_terminal() {
        return Err(
            anyhow!("the input device is not a TTY: leave out -t when standard input is a pipe or a file").into()
        );
    }
    let mut worker = worker(paths).await?;
    let attaching = if args.detach { Attaching::Never } else { Attaching::Perhaps };
    let created = make(options, attaching, &mut worker).await?;
    if args.detach {
        let reference = created.container_id.clone();
        let started = worker.start_container(wire::ContainerReference { reference }).await;
        if let Err(status) = started {
            discard(options, &created, &mut worker).await;
            return Err(status.into());
        }
        println!("{}", created.container_id);
        return Ok(0);
    }
    let session = Session {
        reference: created.container_id.clone(),
        run: true,
        stdin: options.interactive,
        tty: options.tty,
        keys: args.detach_keys,
        signals: args.sig_proxy,
    };
    match container_attach::attach(session, &mut worker, paths).await {
        Ok(code) => Ok(code.unwrap_or(0)),
        Err(status) => {
            discard(options, &created, &mut worker).await;
            Err(status.into())
        }
    }
}

/// `--rm` also holds for what could not be started. What runs is not removed: if the session broke, the program goes on, and
/// its node removes it when it has ended.
async fn discard(args: &CreateArgs, created: &wire::CreateContainerResponse, worker: &mut Worker) {
    if args.rm {
        let reference = created.container_id.clone();
        let request = wire::RemoveContainerRequest { reference, force: false, volumes: true };
        // What it failed of matters more.
        let _ = worker.remove_container(request).await;
    }
}

/// Whether the container is made for somebody's input, and ends with it. Docker's `StdinOnce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attaching {
    Perhaps,
    Never,
}

async fn make(
    args: &CreateArgs,
    attaching: Attaching,
    worker: &mut Worker,
) -> Result<wire::CreateContainerResponse, Failure> {
    let request = request(args, attaching, &Given::ask(args, worker).await?)?;
    let mut id_file = args.cidfile.as_deref().map(IdFile::create).transpose()?;
    let image = &args.image_and_command[0];
    let auth = image::credentials_for(image)?;
    let here = worker.inspect_image(wire::ImageReference { reference: image.clone() }).await.is_ok();
    if args.pull == "always" || (args.pull == "missing" && !here) {
        if !here && !args.quiet {
            remark!("Unable to find image '{}' locally", image::with_tag(image));
        }
        let pull = wire::PullImageRequest { reference: image.clone(), auth, ..Default::default() };
        image::show_pull(worker, pull, image::Show::on_stderr(args.quiet)).await?;
    }
    let request = wire::CreateContainerRequest { pull: "never".into(), ..request };
    let created = worker.create_container(request).await?.into_inner();
    created.warnings.iter().for_each(|warning| remark!("WARNING: {warning}"));
    if let Some(file) = &mut id_file {
        file.write(&created.container_id)?;
    }
    Ok(created)
}

/// `--cidfile`: made before the container, so that none is left behind because of it, and gone with a refusal.
struct IdFile {
    path: PathBuf,
    file: std::fs::File,
    is_written: bool,
}

impl IdFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        match std::fs::File::create_new(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file, is_written: false }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => bail!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot write --cidfile {}", path.display())),
        }
    }

    fn write(&mut self, container_id: &str) -> anyhow::Result<()> {
        use std::io::Write as _;
        let written = self.file.write_all(container_id.as_bytes());
        written.with_context(|| format!("cannot write --cidfile {}", self.path.display()))?;
        self.is_written = true;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.is_written {
            // Somebody else may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn request(args: &CreateArgs, attaching: Attaching, given: &Given) -> anyhow::Result<wire::CreateContainerRequest> {
    if args.rm && args.restart.0.condition != "no" {
        bail!("conflicting options: cannot specify both --restart and --rm");
    }
    let (network, networks) = args.networks.chosen()?;
    if is_joined(&network) {
        joined::check(args)?;
    }
    Ok(wire::CreateContainerRequest {
        name: args.name.clone(),
        spec: Some(task_spec(args, given)?.to_proto()),
        ports: ports(args).to_proto(),
        publish_all: args.publish_all,
        network,
        networks,
        restart: Some(args.restart.0.clone()),
        auto_remove: args.rm,
        options: Some(local_options(args, attaching)),
        ..Default::default()
    })
}

/// With `-P` what is exposed too, unless it is published already.
fn ports(args: &CreateArgs) -> Vec<PortConfig> {
    let mut ports: Vec<PortConfig> = args.publish.iter().flat_map(|given| given.ports.clone()).collect();
    if args.publish_all {
        let mut taken: BTreeSet<_> = ports.iter().map(|port| (port.protocol, port.target_port)).collect();
        let exposed = args.expose.iter().flat_map(|list| list.0.clone());
        ports.extend(exposed.filter(|port| taken.insert((port.protocol, port.target_port))));
    }
    ports.iter_mut().for_each(|port| port.publish_mode = PublishMode::Host);
    ports
}

fn port_range(given: &port::ContainerPorts) -> Option<wire::PortRange> {
    let (last, first) = (given.last?, given.ports.first()?);
    let port = PortConfig { publish_mode: PublishMode::Host, ..first.clone() };
    Some(wire::PortRange { port: Some(port.to_proto()), last: last.into() })
}

fn local_options(args: &CreateArgs, attaching: Attaching) -> wire::LocalOptions {
    wire::LocalOptions {
        shm_bytes: args.shm_size.unwrap_or(0),
        security: args.security_opt.clone(),
        pid_mode: args.pid.clone(),
        ipc_mode: args.ipc.clone(),
        userns_mode: args.userns.clone(),
        uts_mode: args.uts.clone(),
        tmpfs: args.tmpfs.iter().map(|tmpfs| (tmpfs.mount.target.clone(), tmpfs.options.clone())).collect(),
        limits: Some(wire::LocalLimits {
            cpu_shares: args.cpu_shares.unwrap_or(0),
            cpuset_cpus: args.cpuset_cpus.clone(),
            cpuset_mems: args.cpuset_mems.clone(),
            memory_swap_bytes: args.memory_swap.unwrap_or(0),
            memory_reservation_bytes: args.memory_reservation.unwrap_or(0),
        }),
        stdin_once: Some(args.interactive && attaching == Attaching::Perhaps),
        port_ranges: args.publish.iter().filter_map(port_range).collect(),
    }
}

fn task_spec(args: &CreateArgs, given: &Given) -> anyhow::Result<TaskSpec> {
    let limits = ResourceLimits {
        nano_cpus: nano_cpus(args)?,
        memory_bytes: args.memory.unwrap_or(0),
        pids: args.pids_limit.unwrap_or(0),
    };
    let log_driver = (args.log_driver.is_some() || !args.log_opt.is_empty()).then(|| LogDriver {
        name: args.log_driver.clone().unwrap_or_default(),
        options: args.log_opt.iter().cloned().collect(),
    });
    Ok(TaskSpec { container: container_spec(args, given)?, limits, log_driver, ..TaskSpec::default() })
}

fn container_spec(args: &CreateArgs, given: &Given) -> anyhow::Result<ContainerSpec> {
    let mut check = None;
    args.health.apply(&mut check).map_err(anyhow::Error::msg)?;
    let (image, arguments) =
        args.image_and_command.split_first().ok_or_else(|| anyhow!("an image is required: orch run IMAGE"))?;
    Ok(ContainerSpec {
        image: image.clone(),
        command: args.entrypoint.clone().map(|Words(words)| words).unwrap_or_default(),
        args: arguments.to_vec(),
        hostname: args.hostname.clone(),
        env: environment(&args.env_file, &args.env)?,
        dir: args.workdir.clone(),
        user: args.user.clone(),
        groups: args.group_add.clone(),
        labels: labels(args)?,
        tty: args.tty,
        open_stdin: args.interactive,
        read_only: args.read_only,
        init: args.init.then_some(true),
        privileged: args.privileged,
        stop_signal: args.stop_signal.clone(),
        stop_grace_period: args.stop_timeout.map(Duration::from_secs),
        mounts: mounts(args, given)?,
        hosts: args.add_host.iter().map(|line| given.host(line)).collect(),
        dns: DnsConfig {
            nameservers: args.dns.clone(),
            search: args.dns_search.clone(),
            options: args.dns_option.clone(),
        },
        health: check,
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        sysctls: args.sysctl.iter().cloned().collect(),
        ulimits: args.ulimit.clone(),
        devices: args.device.clone(),
        oom_score_adj: args.oom_score_adj,
        ..ContainerSpec::default()
    })
}

/// `--cpus`, or what a quota of each period comes to.
fn nano_cpus(args: &CreateArgs) -> anyhow::Result<u64> {
    const DEFAULT_PERIOD_US: u64 = 100_000;
    const LEAST_NANO_CPUS: u64 = 10_000_000;
    let (flag, nano_cpus) = match (args.cpus, args.cpu_quota.unwrap_or(0), args.cpu_period) {
        (Some(_), 1.., _) => bail!("conflicting options: --cpus and --cpu-quota say the same, leave one out"),
        (Some(_), 0, Some(_)) => bail!("conflicting options: --cpus has a period of its own, leave --cpu-period out"),
        (Some(cpus), 0, None) => ("--cpus", cpus),
        (None, quota_us, period_us) => (
            "--cpu-quota of each --cpu-period",
            quota_us.saturating_mul(1_000_000_000) / period_us.unwrap_or(DEFAULT_PERIOD_US),
        ),
    };
    match nano_cpus {
        1..LEAST_NANO_CPUS => bail!("range of CPUs is from 0.01: {flag} is less"),
        _ => Ok(nano_cpus),
    }
}

/// Those of files first.
fn labels(args: &CreateArgs) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for file in &args.label_file {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read --label-file {}", file.display()))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = label(line).map_err(|e| anyhow!("--label-file {}: {line:?}: {e}", file.display()))?;
            labels.insert(key, value);
        }
    }
    labels.extend(args.label.iter().cloned());
    Ok(labels)
}

/// What the files say, then the flags.
pub(super) fn environment(files: &[PathBuf], flags: &[String]) -> anyhow::Result<Vec<String>> {
    let mut env = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read --env-file {}", file.display()))?;
        env.extend(key_value::env_file(&text).map_err(|e| anyhow!("--env-file {}: {e}", file.display()))?);
    }
    Ok(key_value::merge_env(env, flags.iter().cloned(), |name| std::env::var(name).ok()))
}

/// `-v` makes the host's folder where it is missing, as Docker does; `--mount` refuses.
fn mounts(args: &CreateArgs, given: &Given) -> anyhow::Result<Vec<Mount>> {
    let here = std::env::current_dir().context("find the current folder")?;
    let mut mounts = Vec::new();
    for text in &args.volume {
        let mount = volume(text, &here).map_err(|error| anyhow!("--volume {error}"))?;
        if mount.kind == MountKind::Bind && !Path::new(&mount.source).exists() {
            std::fs::create_dir_all(&mount.source).with_context(|| format!("cannot make {}", mount.source))?;
        }
        mounts.push(mount);
    }
    mounts.extend(args.mount.iter().chain(args.tmpfs.iter().map(|tmpfs| &tmpfs.mount)).cloned());
    for (at, mount) in mounts.iter().enumerate() {
        let is_same = |other: &Mount| mount::join("/", &other.target) == mount::join("/", &mount.target);
        if mounts[..at].iter().any(is_same) {
            bail!("Duplicate mount point: {}", mount.target);
        }
    }
    // The container's own come first, then those of the last one named.
    for borrowed in given.mounts.iter().rev() {
        if !mounts.iter().any(|own| mount::join("/", &own.target) == mount::join("/", &borrowed.target)) {
            mounts.push(borrowed.clone());
        }
    }
    Ok(mounts)
}

/// `data:/var/lib/data:ro`, `/host:/inside`, `./here:/inside`, `/anonymous`.
fn volume(text: &str, here: &Path) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(format!("invalid spec: {text}: empty section between colons: expected [SOURCE:]TARGET[:OPTIONS]"));
    }
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(format!("{text:?}: expected [SOURCE:]TARGET[:OPTIONS], such as data:/var/lib/data:ro")),
    };
    let is_path = source.starts_with(['/', '.']);
    let mut mount = mount::empty(if is_path { MountKind::Bind } else { MountKind::Volume });
    mount.source = if source.starts_with('.') { here.join(source).to_string_lossy().into() } else { source.into() };
    mount.target = target.to_owned();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            // Labels are for SELinux, the others for Docker on a Mac.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" => mount.no_copy = true,
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => mount.propagation = option.into(),
            other => return Err(format!("{text:?}: unknown option {other:?}")),
        }
    }
    mount::check(mount)
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let is_word = !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_word {
        Ok((key.into(), value.into()))
    } else {
        Err("expected KEY or KEY=VALUE, with a key of one word".into())
    }
}

/// 0: unlimited.
fn cpu_quota(text: &str) -> Result<u64, String> {
    match text {
        "-1" | "0" => Ok(0),
        _ => text
            .parse()
            .ok()
            .filter(|us| *us >= 1000)
            .ok_or_else(|| "expected a whole number of microseconds, at least 1000, or -1 for no limit".to_owned()),
    }
}

/// A node runs what it is; scripts say so all the same.
fn platform(text: &str) -> Result<(), String> {
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let named = match text.split('/').collect::<Vec<_>>()[..] {
        [arch] | ["linux", arch] | ["linux", arch, "v8"] => arch,
        _ => text,
    };
    let named = match named {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    if named == own {
        return Ok(());
    }
    Err(format!("this node runs linux/{own} alone: leave --platform out, or use a node of that platform"))
}

/// A program's path, spaces and all, as with Docker (services split theirs); empty resets the image's. Besides, a list.
fn entrypoint(text: &str) -> Result<Words, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map(Words).map_err(|_| "expected [\"program\", \"argument\"]".into());
    }
    Ok(Words(vec![text.to_owned()]))
}

pub(super) fn restart(text: &str) -> Result<Restart, String> {
    let (condition, retries) = text.split_once(':').unwrap_or((text, "0"));
    let form = "expected no, on-failure[:max-retries], always or unless-stopped";
    let max_retries = retries.parse().map_err(|_| form.to_owned())?;
    let known = matches!(condition, "no" | "always" | "unless-stopped" | "on-failure");
    if !known || (max_retries > 0 && condition != "on-failure") {
        return Err(form.into());
    }
    Ok(Restart(wire::LocalRestart { condition: condition.into(), max_retries }))
}

/// Docker's words; what they mean, the runtime knows.
fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    const FLAGS: [&str; 12] = [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "defaults",
        "noatime",
        "nodiratime",
        "relatime",
    ];
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = mount::empty(MountKind::Tmpfs);
    mount.target = target.to_owned();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => {
                mount.tmpfs_size_bytes = if size.ends_with('%') { 0 } else { quantity::bytes(size)? }
            }
            Some(("mode", mode)) => mount.tmpfs_mode = mount::octal(mode)?,
            Some(("uid" | "gid" | "nr_inodes" | "nr_blocks", number)) if number.parse::<u64>().is_ok() => {}
            None if FLAGS.contains(&option) => mount.read_only |= option == "ro",
            _ => {
                return Err(format!(
                    "invalid tmpfs option {option:?}: size=BYTES, mode=MODE, uid=N, gid=N, ro, exec, suid, dev are known"
                ));
            }
        }
    }
    let options = options.to_owned();
    Ok(Tmpfs { mount: mount::check(mount)?, options })
}

/// Bytes, or -1.
pub(super) fn swap(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    i64::try_from(quantity::bytes(text)?).map_err(|_| "that is more than there can be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_anonymous_or_folders() {
        for (text, expected) in [
            ("data:/d", "Volume data /d rw"),
            ("/anon", "Volume  /anon rw"),
            ("./www:/srv:ro", "Bind /home/u/./www /srv ro"),
            ("/h:/c", "Bind /h /c rw"),
        ] {
            let mount = volume(text, Path::new("/home/u")).unwrap();
            let mode = if mount.read_only { "ro" } else { "rw" };
            assert_eq!(format!("{:?} {} {} {mode}", mount.kind, mount.source, mount.target), expected);
        }
        for text in ["a:/b:c:d", "a:b", "", ":/x", "x:", "/tmp:/"] {
            assert!(volume(text, Path::new("/")).is_err(), "{text}");
        }
    }

    #[test]
    fn an_id_file_is_there_before_the_container_and_gone_with_a_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        drop(IdFile::create(&path).unwrap());
        assert!(!path.exists());
        let mut file = IdFile::create(&path).unwrap();
        assert!(IdFile::create(&path).err().unwrap().to_string().starts_with("container ID file found"));
        file.write("abc").unwrap();
        drop(file);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        assert!(IdFile::create(&folder.path().join("no/id")).err().unwrap().to_string().contains("--cidfile"));
    }

    #[test]
    fn policies_and_tmpfs_have_dockers_forms() {
        let policy = |text| restart(text).map(|Restart(policy)| (policy.condition, policy.max_retries));
        assert_eq!(policy("on-failure:3"), Ok(("on-failure".into(), 3)));
        assert_eq!(policy("unless-stopped"), Ok(("unless-stopped".into(), 0)));
        assert!(policy("always:3").is_err() && policy("often").is_err() && policy("on-failure:x").is_err());
        let mount = tmpfs("/run:size=64m,mode=755,exec").unwrap().mount;
        assert_eq!((mount.target.as_str(), mount.tmpfs_size_bytes, mount.tmpfs_mode), ("/run", 64 << 20, 0o755));
        assert!(tmpfs("/run:what").is_err() && tmpfs("run").is_err());
    }
}
