//! `orch service create`.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use orch_model::{
    Annotations,
    service::{EndpointSpec, Mount, Service, ServiceMode, ServiceSpec, TaskSpec, Ulimit},
};
use orch_proto::paths::Paths;

use super::{capabilities, change, flags::SpecFlags, registry, resolve};
use crate::{
    api::Api,
    commands::warn,
    flags::{
        file_ref, file_ref::NamedFile, key_value, linux, mount, network, network::NamedAttachment, port, resolver,
    },
    progress,
};

#[derive(Debug, Clone, Args)]
#[command(override_usage = "orch service create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub(crate) struct CreateArgs {
    /// Service name
    #[arg(long, default_value = "")]
    name: String,
    /// Service mode
    #[arg(long, value_enum, default_value = "replicated")]
    mode: ModeFlag,
    /// Specify configurations to expose to the service
    #[arg(long, value_name = "CONFIG", value_parser = file_ref::parse)]
    config: Vec<NamedFile>,
    /// Placement constraints, such as node.role==manager
    #[arg(long, value_name = "EXPRESSION", value_parser = change::constraint)]
    constraint: Vec<String>,
    /// Container labels
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    container_label: Vec<(String, String)>,
    /// Set custom DNS servers
    #[arg(long, value_name = "ADDRESS", value_parser = resolver::address)]
    dns: Vec<std::net::IpAddr>,
    /// Set DNS options
    #[arg(long, value_name = "OPTION", value_parser = resolver::option)]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "DOMAIN", value_parser = resolver::search_domain)]
    dns_search: Vec<String>,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value::variable)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// User defined resources that each task reserves (KIND=NUMBER)
    #[arg(long, value_name = "KIND=NUMBER", value_parser = linux::generic_resource)]
    generic_resource: Vec<(String, u64)>,
    /// Set one or more supplementary user groups for the container
    #[arg(long, value_name = "GROUP", value_parser = linux::group)]
    group: Vec<String>,
    /// Set one or more custom host-to-IP mappings (host:ip, host:host-gateway for the task's node)
    #[arg(long, value_name = "HOST:IP", value_parser = resolver::host_entry)]
    host: Vec<String>,
    /// Service labels
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label: Vec<(String, String)>,
    /// Attach a filesystem mount to the service
    #[arg(long, value_name = "MOUNT", value_parser = mount::parse)]
    mount: Vec<Mount>,
    /// Network attachments
    #[arg(long, value_name = "NETWORK", value_parser = network::parse)]
    network: Vec<NamedAttachment>,
    /// Add a placement preference (spread=node.labels.zone)
    #[arg(long, value_name = "PREFERENCE", value_parser = change::spread)]
    placement_pref: Vec<String>,
    /// Publish a port on every node
    #[arg(short, long, value_name = "PORT", value_parser = port::parse_flag)]
    publish: Vec<port::PortList>,
    /// Specify secrets to expose to the service
    #[arg(long, value_name = "SECRET", value_parser = file_ref::parse)]
    secret: Vec<NamedFile>,
    /// Sysctl options
    #[arg(long, value_name = "KEY=VALUE", value_parser = linux::sysctl)]
    sysctl: Vec<(String, String)>,
    /// Ulimit options (name=soft[:hard])
    #[arg(long, value_name = "ULIMIT", value_parser = linux::ulimit)]
    ulimit: Vec<Ulimit>,
    #[command(flatten)]
    flags: SpecFlags,
    /// The image, then the command and its arguments
    #[arg(value_name = "IMAGE [COMMAND] [ARG...]", required = true, trailing_var_arg = true)]
    image_and_command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeFlag {
    Replicated,
    Global,
    ReplicatedJob,
    GlobalJob,
}

pub(crate) async fn run(args: CreateArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for file in &args.env_file {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read --env-file {}", file.display()))?;
        files.extend(key_value::env_file(&text).map_err(|e| anyhow::anyhow!("--env-file {}: {e}", file.display()))?);
    }
    let name = if args.name.is_empty() { generated_name(rand::random()) } else { args.name.clone() };
    let mut spec = spec(&args, name, files, |name| std::env::var(name).ok()).map_err(anyhow::Error::msg)?;

    let mut api = Api::connect(paths).await?;
    let networks = resolve::networks(&mut api, &args.network).await?;
    (spec.task.networks, spec.task.node_network) = (networks.of_cluster, networks.of_node);
    spec.task.container.secrets = resolve::secrets(&mut api, &args.secret).await?;
    spec.task.container.configs = resolve::configs(&mut api, &args.config).await?;
    let service_name = spec.annotations.name.clone();
    let login =
        registry::settle(&mut api, &service_name, &mut spec.task.container, args.flags.image_wanted(true)).await?;
    let created = api.create::<Service>(resolve::asked(&spec)).await;
    let (service, warnings) = match created {
        Ok(created) => created,
        Err(error) => {
            login.take_back(&mut api).await;
            return Err(error);
        }
    };
    warn(&warnings);
    println!("{}", service.id);
    if args.flags.detached() {
        return Ok(());
    }
    progress::wait(&mut api, &progress::Watched::after_create(&service), args.flags.quiet).await
}

/// Everything but what needs the cluster to resolve.
pub(super) fn spec(
    args: &CreateArgs,
    name: String,
    env_files: Vec<String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<ServiceSpec, String> {
    let (image, words) = args.image_and_command.split_first().ok_or("an image is required")?;
    let mut spec = ServiceSpec {
        annotations: Annotations { name, labels: key_value::map(&args.label) },
        task: TaskSpec::default(),
        mode: mode(args)?,
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
        depends_on: Vec::new(),
    };
    if capabilities::resets(&args.flags.cap_add) || capabilities::resets(&args.flags.cap_drop) {
        return Err("RESET is for service update: a new service has added and dropped nothing yet; leave it out".into());
    }
    let container = &mut spec.task.container;
    container.image = image.clone();
    container.args = words.to_vec();
    container.env = key_value::merge_env(env_files, args.env.iter().cloned(), environment);
    container.labels = key_value::map(&args.container_label);
    container.mounts = args.mount.clone();
    container.groups = args.group.clone();
    container.hosts = args.host.clone();
    container.dns.nameservers = args.dns.clone();
    container.dns.search = args.dns_search.clone();
    container.dns.options = args.dns_option.clone();
    container.sysctls = key_value::map(&args.sysctl);
    container.ulimits = args.ulimit.clone();
    for (kind, count) in &args.generic_resource {
        if spec.task.generic.insert(kind.clone(), *count).is_some() {
            return Err(format!("--generic-resource {kind}={count}: {kind} is there twice, name it once with the sum"));
        }
    }
    spec.task.placement.constraints = args.constraint.clone();
    spec.task.placement.spread = args.placement_pref.clone();
    spec.endpoint.ports = args.publish.iter().flat_map(|list| list.0.clone()).collect();
    args.flags.apply(&mut spec)?;
    let is_job = matches!(spec.mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob);
    if is_job && (spec.update.is_some() || spec.rollback.is_some()) {
        return Err(
            "update and rollback configuration is not supported for jobs: leave out --update-… and --rollback-…".into(),
        );
    }
    Ok(spec)
}

fn mode(args: &CreateArgs) -> Result<ServiceMode, String> {
    let replicas = args.flags.replicas;
    let concurrent = args.flags.max_concurrent;
    let global = matches!(args.mode, ModeFlag::Global | ModeFlag::GlobalJob);
    if global && replicas.is_some() {
        return Err("--replicas can only be used with replicated or replicated-job mode; leave it out, or use --mode replicated".into());
    }
    if concurrent.is_some() && args.mode != ModeFlag::ReplicatedJob {
        return Err("--max-concurrent can only be used with --mode replicated-job".into());
    }
    Ok(match args.mode {
        ModeFlag::Replicated => ServiceMode::Replicated { replicas: replicas.unwrap_or(1) },
        ModeFlag::Global => ServiceMode::Global,
        ModeFlag::GlobalJob => ServiceMode::GlobalJob,
        ModeFlag::ReplicatedJob => {
            // As many as may run at once, unless it is said how many.
            let total_completions = replicas.or(concurrent).unwrap_or(1);
            ServiceMode::ReplicatedJob { max_concurrent: concurrent.unwrap_or(total_completions), total_completions }
        }
    })
}

/// Two words, for a service that was given no name.
fn generated_name(random: u32) -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "dapper", "eager", "fond", "gentle", "hazel", "jolly", "keen", "lucid", "mellow",
        "nimble", "quiet", "sunny", "vivid",
    ];
    const SECOND: [&str; 16] = [
        "badger", "cello", "dolphin", "ember", "falcon", "garnet", "heron", "iris", "juniper", "kestrel", "lantern",
        "maple", "otter", "pebble", "quartz", "willow",
    ];
    let pick = |shift: u32| ((random >> shift) & 15) as usize;
    format!("{}_{}{}", FIRST[pick(0)], SECOND[pick(4)], (random >> 8) % 1000)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use orch_model::{Duration, service::RestartCondition};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn parse(line: &str) -> Result<ServiceSpec, String> {
        let words = crate::flags::words::split(line).unwrap();
        let line = Line::try_parse_from(std::iter::once("create".into()).chain(words)).map_err(|e| e.to_string())?;
        spec(&line.args, "web".into(), Vec::new(), |_| None)
    }

    #[test]
    fn flags_end_at_the_image() {
        let spec = parse(
            "--name web --replicas 3 -p 8080:80 --limit-cpu 0.5 --limit-memory 50M -e A=1 --restart-condition on-failure \
             --restart-delay 2s --mount source=d,target=/d --constraint node.role==manager -l a=b --container-label c=d \
             --update-parallelism 2 --tty --read-only=false --hostname h web:1 sh -c 'echo hi' --name x",
        )
        .unwrap();
        assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 3 });
        let task = &spec.task;
        assert_eq!(task.container.image, "web:1");
        assert_eq!(task.container.args, ["sh", "-c", "echo hi", "--name", "x"]);
        assert_eq!((task.limits.nano_cpus, task.limits.memory_bytes), (500_000_000, 50 << 20));
        assert_eq!(task.restart.condition, RestartCondition::OnFailure);
        assert_eq!(task.restart.delay, Duration::from_secs(2));
        assert_eq!(spec.endpoint.ports.len(), 1);
        assert!(task.container.tty && !task.container.read_only && spec.rollback.is_none());
        assert_eq!(spec.update.unwrap().parallelism, 2);
    }

    #[test]
    fn wrong_values_name_flag_value_and_form() {
        for (line, fragments) in [
            ("--limit-memory 5x i", &["--limit-memory", "5x", "50M"][..]),
            ("--limit-cpu two i", &["--limit-cpu", "two", "0.5"]),
            ("--publish 1:x i", &["--publish", "1:x", "8080:80"]),
            ("--restart-delay soon i", &["--restart-delay", "soon", "1m30s"]),
            ("--restart-condition never i", &["--restart-condition", "never", "on-failure"]),
            ("--mode lots i", &["--mode", "lots", "replicated"]),
            ("--replicas -1 i", &["-1"]),
            ("--replicas x i", &["--replicas", "x"]),
            ("--mode global --replicas 2 i", &["--replicas", "replicated"]),
            ("--constraint role i", &["--constraint", "role", "=="]),
            ("--mount target=x i", &["--mount", "absolute"]),
            ("--bogus i", &["--bogus"]),
            ("--workdir rel i", &["--workdir", "absolute"]),
            ("", &["IMAGE"]),
        ] {
            let refusal = parse(line).unwrap_err();
            for fragment in fragments {
                assert!(refusal.contains(fragment), "{line}: {fragment:?} is not in {refusal}");
            }
        }
    }

    #[test]
    fn generated_names_are_names() {
        assert_eq!(generated_name(0), "amber_badger0");
    }
}
