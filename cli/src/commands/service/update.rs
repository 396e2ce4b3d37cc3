//! `orch service update`.

use std::collections::BTreeMap;

use clap::Args;
use orch_model::service::{Mount, PortConfig, Protocol, Service, ServiceMode, ServiceSpec, Ulimit};
use orch_proto::paths::Paths;

use super::{
    change,
    flags::{SpecFlags, Words, command_words},
    registry, resolve, store,
};
use crate::{
    api::Api,
    flags::{file_ref, file_ref::NamedFile, key_value, linux, mount, network, network::NamedAttachment, port},
    progress,
};

type Target = (u16, Option<Protocol>);

#[derive(Debug, Clone, Args)]
pub(crate) struct UpdateArgs {
    /// Service image tag
    #[arg(long)]
    image: Option<String>,
    /// Service command args
    #[arg(long, value_name = "COMMAND", value_parser = command_words, allow_hyphen_values = true)]
    args: Option<Words>,
    /// Force update even if no changes require it
    #[arg(long)]
    force: bool,
    /// Rollback to previous specification
    #[arg(long)]
    rollback: bool,
    /// Add or update an environment variable
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_value::variable)]
    env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Add or update a service label
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label_add: Vec<(String, String)>,
    /// Remove a label by its key
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Add or update a container label
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    container_label_add: Vec<(String, String)>,
    /// Remove a container label by its key
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Add or update a placement constraint
    #[arg(long, value_name = "EXPRESSION", value_parser = change::constraint)]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "EXPRESSION")]
    constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "PREFERENCE", value_parser = change::spread)]
    placement_pref_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long, value_name = "PREFERENCE", value_parser = change::spread)]
    placement_pref_rm: Vec<String>,
    /// Add or update a mount on a service
    #[arg(long, value_name = "MOUNT", value_parser = mount::parse)]
    mount_add: Vec<Mount>,
    /// Remove a mount by its target path
    #[arg(long, value_name = "PATH")]
    mount_rm: Vec<String>,
    /// Add or update a published port
    #[arg(long, value_name = "PORT", value_parser = port::parse_flag)]
    publish_add: Vec<port::PortList>,
    /// Remove a published port by its target port
    #[arg(long, value_name = "PORT", value_parser = port::parse_target)]
    publish_rm: Vec<Target>,
    /// Add a network
    #[arg(long, value_name = "NETWORK", value_parser = network::parse)]
    network_add: Vec<NamedAttachment>,
    /// Remove a network
    #[arg(long, value_name = "NETWORK", value_parser = network::parse)]
    network_rm: Vec<NamedAttachment>,
    /// Add or update a secret on a service
    #[arg(long, value_name = "SECRET", value_parser = file_ref::parse)]
    secret_add: Vec<NamedFile>,
    /// Remove a secret
    #[arg(long, value_name = "SECRET")]
    secret_rm: Vec<String>,
    /// Add or update a config file on a service
    #[arg(long, value_name = "CONFIG", value_parser = file_ref::parse)]
    config_add: Vec<NamedFile>,
    /// Remove a configuration file
    #[arg(long, value_name = "CONFIG")]
    config_rm: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP", value_parser = change::host_entry)]
    host_add: Vec<String>,
    /// Remove a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP", value_parser = change::host_entry)]
    host_rm: Vec<String>,
    /// Add or update a custom DNS server
    #[arg(long, value_name = "ADDRESS", value_parser = change::address)]
    dns_add: Vec<std::net::IpAddr>,
    /// Remove a custom DNS server
    #[arg(long, value_name = "ADDRESS", value_parser = change::address)]
    dns_rm: Vec<std::net::IpAddr>,
    /// Add or update a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Remove a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add or update a custom DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Remove a DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Add a generic resource that each task reserves
    #[arg(long, value_name = "KIND=NUMBER", value_parser = linux::generic_resource)]
    generic_resource_add: Vec<(String, u64)>,
    /// Remove a generic resource by its kind
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
    /// Add a supplementary user group to the container
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Remove a supplementary user group from the container
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add or update a sysctl option
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    sysctl_add: Vec<(String, String)>,
    /// Remove a sysctl option
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
    /// Add or update a ulimit option
    #[arg(long, value_name = "ULIMIT", value_parser = change::ulimit)]
    ulimit_add: Vec<Ulimit>,
    /// Remove a ulimit option
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
    #[command(flatten)]
    flags: SpecFlags,
    service: String,
}

pub(crate) async fn run(args: UpdateArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let before = api.get::<Service>(&args.service).await?;
    let watched = if args.rollback {
        only_rollback(&args, &before.spec).map_err(anyhow::Error::msg)?;
        super::roll_back(&mut api, &before).await?
    } else {
        let mut spec = before.spec.clone();
        change_spec(&args, &mut spec, |name| std::env::var(name).ok()).map_err(anyhow::Error::msg)?;
        resolve_changes(&args, &mut api, &mut spec).await?;
        let wanted = args.flags.image_wanted(args.image.is_some());
        let login = registry::settle(&mut api, &before.spec.annotations.name, &mut spec.task.container, wanted).await?;
        match store(&mut api, &before, &spec).await {
            Ok(watched) => watched,
            Err(error) => {
                login.take_back(&mut api).await;
                return Err(error);
            }
        }
    };
    println!("{}", args.service);
    if args.flags.detached() {
        return Ok(());
    }
    progress::wait(&mut api, &watched, args.flags.quiet).await
}

/// Docker's words: what a rollback leads to is the previous spec and nothing else.
pub(super) fn only_rollback(args: &UpdateArgs, before: &ServiceSpec) -> Result<(), String> {
    let mut spec = before.clone();
    change_spec(args, &mut spec, |_| None)?;
    let files = [&args.secret_add, &args.config_add].iter().any(|files| !files.is_empty());
    if spec != *before || files || !args.network_add.is_empty() || !args.network_rm.is_empty() {
        return Err("other flags may not be combined with --rollback: leave them out, or --rollback".into());
    }
    Ok(())
}

pub(super) fn change_spec(
    args: &UpdateArgs,
    spec: &mut ServiceSpec,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    match (&mut spec.mode, args.flags.replicas) {
        (_, None) => {}
        (ServiceMode::Replicated { replicas }, Some(count)) => *replicas = count,
        (ServiceMode::ReplicatedJob { total_completions, .. }, Some(count)) => *total_completions = count,
        (ServiceMode::Global | ServiceMode::GlobalJob, Some(_)) => {
            return Err(
                "--replicas can only be used with replicated or replicated-job mode; this service is global".into()
            );
        }
    }
    match (&mut spec.mode, args.flags.max_concurrent) {
        (_, None) => {}
        (ServiceMode::ReplicatedJob { max_concurrent, .. }, Some(count)) => *max_concurrent = count,
        (ServiceMode::Replicated { .. } | ServiceMode::Global | ServiceMode::GlobalJob, Some(_)) => {
            return Err("--max-concurrent can only be used with replicated-job mode; leave it out".into());
        }
    }
    labels(&mut spec.annotations.labels, &args.label_rm, &args.label_add);
    let placement = &mut spec.task.placement;
    change::list(&mut placement.constraints, &args.constraint_rm, &args.constraint_add, Clone::clone);
    change::list(&mut placement.spread, &args.placement_pref_rm, &args.placement_pref_add, Clone::clone);
    change_container(args, spec, environment);
    // Docker takes KIND=NUMBER here too, and looks at the kind.
    let gone = |kind: &str| args.generic_resource_rm.iter().any(|rm| rm.split('=').next() == Some(kind));
    spec.task.generic.retain(|kind, _| !gone(kind));
    spec.task.generic.extend(args.generic_resource_add.iter().cloned());
    change_ports(args, &mut spec.endpoint.ports);
    if args.force {
        spec.task.force_update += 1;
    }
    args.flags.apply(spec)
}

fn change_container(args: &UpdateArgs, spec: &mut ServiceSpec, environment: impl Fn(&str) -> Option<String>) {
    let container = &mut spec.task.container;
    if let Some(image) = &args.image {
        // Its name may mean another content by now.
        container.image_digest = None;
        container.image = image.clone();
    }
    if let Some(Words(words)) = &args.args {
        container.args = words.clone();
    }
    container.env.retain(|entry| !args.env_rm.iter().any(|gone| entry.split('=').next() == Some(gone)));
    let all = std::mem::take(&mut container.env).into_iter().chain(args.env_add.iter().cloned());
    container.env = key_value::merge_env(all, environment);
    labels(&mut container.labels, &args.container_label_rm, &args.container_label_add);
    labels(&mut container.sysctls, &args.sysctl_rm, &args.sysctl_add);
    change::list(&mut container.mounts, &args.mount_rm, &args.mount_add, |m| m.target.clone());
    change::list(&mut container.hosts, &args.host_rm, &args.host_add, Clone::clone);
    change::list(&mut container.dns.nameservers, &args.dns_rm, &args.dns_add, |a| *a);
    change::list(&mut container.dns.options, &args.dns_option_rm, &args.dns_option_add, Clone::clone);
    change::list(&mut container.dns.search, &args.dns_search_rm, &args.dns_search_add, Clone::clone);
    change::list(&mut container.groups, &args.group_rm, &args.group_add, Clone::clone);
    change::list(&mut container.ulimits, &args.ulimit_rm, &args.ulimit_add, |u| u.name.clone());
    container.secrets.retain(|f| !args.secret_rm.iter().any(|gone| *gone == f.name || *gone == f.id.as_str()));
    container.configs.retain(|f| !args.config_rm.iter().any(|gone| *gone == f.name || *gone == f.id.as_str()));
}

fn change_ports(args: &UpdateArgs, ports: &mut Vec<PortConfig>) {
    let gone = |port: &PortConfig| {
        args.publish_rm
            .iter()
            .any(|(target, protocol)| *target == port.target_port && protocol.unwrap_or(Protocol::Tcp) == port.protocol)
    };
    ports.retain(|port| !gone(port));
    let added: Vec<PortConfig> = args.publish_add.iter().flat_map(|list| list.0.clone()).collect();
    let key = |p: &PortConfig| (p.target_port, p.published_port, p.protocol, p.publish_mode);
    change::list(ports, &[], &added, key);
}

async fn resolve_changes(args: &UpdateArgs, api: &mut Api, spec: &mut ServiceSpec) -> anyhow::Result<()> {
    let gone: Vec<_> = resolve::networks(api, &args.network_rm).await?.into_iter().map(|n| n.network).collect();
    let added = resolve::networks(api, &args.network_add).await?;
    change::list(&mut spec.task.networks, &gone, &added, |n| n.network.clone());
    let container = &mut spec.task.container;
    let secrets = resolve::secrets(api, &args.secret_add).await?;
    change::list(&mut container.secrets, &[], &secrets, |f| f.target.clone());
    let configs = resolve::configs(api, &args.config_add).await?;
    change::list(&mut container.configs, &[], &configs, |f| f.target.clone());
    Ok(())
}

fn labels(labels: &mut BTreeMap<String, String>, gone: &[String], added: &[(String, String)]) {
    labels.retain(|key, _| !gone.contains(key));
    labels.extend(added.iter().cloned());
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use orch_model::{
        Annotations,
        service::{EndpointSpec, TaskSpec},
    };

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn updated(line: &str) -> Result<ServiceSpec, String> {
        let words = crate::flags::words::split(line).unwrap();
        let line = Line::try_parse_from(std::iter::once("update".into()).chain(words)).map_err(|e| e.to_string())?;
        let mut spec = ServiceSpec {
            annotations: Annotations { name: "web".into(), labels: [("old".into(), "1".into())].into() },
            task: TaskSpec::default(),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            endpoint: EndpointSpec { ports: port::parse("8080:80").unwrap(), ..EndpointSpec::default() },
            depends_on: Vec::new(),
        };
        spec.task.container.env = vec!["A=1".into(), "B=2".into()];
        spec.task.container.image = "web:1".into();
        spec.task.container.image_digest = Some("sha256:00".into());
        change_spec(&line.args, &mut spec, |_| None)?;
        Ok(spec)
    }

    #[test]
    fn only_what_is_named_changes() {
        let before = updated("web").unwrap();
        assert_eq!(before.task.container.image_digest.as_deref(), Some("sha256:00"));
        let after = updated(
            "--image web:2 --env-add A=9 --env-rm B --env-add C=3 --label-rm old --label-add new=1 --replicas 4 --force \
             --publish-rm 80 --publish-add 9090:90 --args '-v x' --limit-memory 64M web",
        )
        .unwrap();
        assert_eq!(after.task.container.env, ["A=9", "C=3"]);
        assert_eq!(after.task.container.image_digest, None);
        assert_eq!(after.task.container.args, ["-v", "x"]);
        assert_eq!(after.annotations.labels, [("new".to_owned(), "1".to_owned())].into());
        assert_eq!(after.mode, ServiceMode::Replicated { replicas: 4 });
        assert_eq!(after.task.force_update, 1);
        assert_eq!(after.endpoint.ports, port::parse("9090:90").unwrap());
        assert_eq!(after.task.restart, before.task.restart);
    }
}
