//! `orch service update`.

mod removals;

use std::collections::BTreeMap;

use clap::Args;
use orch_model::{
    network::NodeNetwork,
    service::{FileRef, Mount, PortConfig, Service, ServiceMode, ServiceSpec, TaskSpec, Ulimit},
};
use orch_proto::paths::Paths;

use super::{
    change,
    flags::{SpecFlags, Words, command_words},
    registry,
    resolve::{self, Networks},
    store,
};
use crate::{
    api::Api,
    commands::warn,
    flags::{
        file_ref, file_ref::NamedFile, key_value, linux, mount, network, network::NamedAttachment, port, resolver,
        resolver::HostRemoval,
    },
    progress,
};

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
    #[arg(long, value_name = "PORT", value_parser = port::PortRemoval::parse)]
    publish_rm: Vec<port::PortRemoval>,
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
    /// Add a custom host-to-IP mapping (host:ip, host:host-gateway for the task's node)
    #[arg(long, value_name = "HOST:IP", value_parser = resolver::host_entry)]
    host_add: Vec<String>,
    /// Remove a custom host-to-IP mapping (host:ip), or all of a host
    #[arg(long, value_name = "HOST[:IP]", value_parser = HostRemoval::parse)]
    host_rm: Vec<HostRemoval>,
    /// Add or update a custom DNS server
    #[arg(long, value_name = "ADDRESS", value_parser = resolver::address)]
    dns_add: Vec<std::net::IpAddr>,
    /// Remove a custom DNS server
    #[arg(long, value_name = "ADDRESS", value_parser = resolver::address)]
    dns_rm: Vec<std::net::IpAddr>,
    /// Add or update a DNS option
    #[arg(long, value_name = "OPTION", value_parser = resolver::option)]
    dns_option_add: Vec<String>,
    /// Remove a DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Add or update a custom DNS search domain
    #[arg(long, value_name = "DOMAIN", value_parser = resolver::search_domain)]
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
    #[arg(long, value_name = "GROUP", value_parser = linux::group)]
    group_add: Vec<String>,
    /// Remove a supplementary user group from the container
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add or update a sysctl option
    #[arg(long, value_name = "KEY=VALUE", value_parser = linux::sysctl)]
    sysctl_add: Vec<(String, String)>,
    /// Remove a sysctl option
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
    /// Add or update a ulimit option
    #[arg(long, value_name = "ULIMIT", value_parser = linux::ulimit)]
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
        let notes = removals::check(&args, &spec).map_err(anyhow::Error::msg)?;
        change_spec(&args, &mut spec, |name| std::env::var(name).ok()).map_err(anyhow::Error::msg)?;
        let nowhere = |name: &&String| !name.contains('=') && std::env::var(name).is_err();
        let unset = args.env_add.iter().filter(nowhere);
        let unset =
            unset.map(|name| format!("--env-add {name}: this shell has no such variable, so nothing was changed"));
        warn(&notes.into_iter().chain(unset).collect::<Vec<_>>());
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
    let notes = removals::check(args, before)?;
    change_spec(args, &mut spec, |_| None)?;
    let files = [&args.secret_add, &args.config_add].iter().any(|files| !files.is_empty());
    if spec != *before || !notes.is_empty() || files || !args.network_add.is_empty() || !args.network_rm.is_empty() {
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
    spec.task.generic.retain(|kind, _| !args.generic_resource_rm.contains(kind));
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
    let added = key_value::merge_env([], args.env_add.iter().cloned(), environment);
    // What is there already is not looked up again: it was meant in another shell.
    let known = std::mem::take(&mut container.env);
    container.env = key_value::merge_env([], known.into_iter().chain(added), |_| None);
    labels(&mut container.labels, &args.container_label_rm, &args.container_label_add);
    container.sysctls.retain(|key, _| !args.sysctl_rm.iter().any(|gone| removals::key_of(gone) == key));
    container.sysctls.extend(args.sysctl_add.iter().cloned());
    change::list(&mut container.mounts, &args.mount_rm, &args.mount_add, |m| m.target.clone());
    container.hosts.retain(|line| !args.host_rm.iter().any(|gone| gone.names(line)));
    change::list(&mut container.hosts, &[], &args.host_add, Clone::clone);
    change::list(&mut container.dns.nameservers, &args.dns_rm, &args.dns_add, |a| *a);
    change::list(&mut container.dns.options, &args.dns_option_rm, &args.dns_option_add, Clone::clone);
    change::list(&mut container.dns.search, &args.dns_search_rm, &args.dns_search_add, Clone::clone);
    change::list(&mut container.groups, &args.group_rm, &args.group_add, Clone::clone);
    let limits: Vec<String> = args.ulimit_rm.iter().map(|gone| removals::key_of(gone).to_owned()).collect();
    change::list(&mut container.ulimits, &limits, &args.ulimit_add, |u| u.name.clone());
    container.secrets.retain(|f| !args.secret_rm.iter().any(|gone| *gone == f.name || *gone == f.id.as_str()));
    container.configs.retain(|f| !args.config_rm.iter().any(|gone| *gone == f.name || *gone == f.id.as_str()));
}

fn change_ports(args: &UpdateArgs, ports: &mut Vec<PortConfig>) {
    ports.retain(|port| !args.publish_rm.iter().any(|gone| gone.names(port)));
    let added: Vec<PortConfig> = args.publish_add.iter().flat_map(|list| list.0.clone()).collect();
    let key = |p: &PortConfig| (p.target_port, p.published_port, p.protocol, p.publish_mode);
    change::list(ports, &[], &added, key);
}

async fn resolve_changes(args: &UpdateArgs, api: &mut Api, spec: &mut ServiceSpec) -> anyhow::Result<()> {
    let gone = resolve::networks(api, &args.network_rm).await?;
    let added = resolve::networks(api, &args.network_add).await?;
    change_networks(args, &mut spec.task, &gone, added).map_err(anyhow::Error::msg)?;
    let container = &mut spec.task.container;
    add_files("secret", &mut container.secrets, resolve::secrets(api, &args.secret_add).await?)?;
    add_files("config", &mut container.configs, resolve::configs(api, &args.config_add).await?)
}

fn change_networks(args: &UpdateArgs, task: &mut TaskSpec, gone: &Networks, added: Networks) -> Result<(), String> {
    let of_cluster = |named: &&NamedAttachment| NodeNetwork::find(&named.network).is_none();
    let not_there = |name: &str| warn(&[format!("--network-rm {name}: the service is not attached to it")]);
    let already = |name: &str| {
        Err(format!("service is already attached to network {name}: to change how, give --network-rm {name} as well"))
    };
    let networks = &mut task.networks;
    for (attachment, named) in gone.of_cluster.iter().zip(args.network_rm.iter().filter(of_cluster)) {
        if !networks.iter().any(|have| have.network == attachment.network) {
            not_there(&named.network);
        }
    }
    networks.retain(|have| !gone.of_cluster.iter().any(|gone| gone.network == have.network));
    for (attachment, named) in added.of_cluster.into_iter().zip(args.network_add.iter().filter(of_cluster)) {
        if networks.iter().any(|have| have.network == attachment.network) {
            return already(&named.network);
        }
        networks.push(attachment);
    }
    match gone.of_node {
        Some(gone) if task.node_network != Some(gone) => not_there(gone.name()),
        Some(_) => task.node_network = None,
        None => {}
    }
    match (added.of_node, task.node_network) {
        (Some(added), Some(have)) if added == have => already(have.name()),
        (Some(added), Some(have)) => Err(format!(
            "a service is on one network of its nodes at most: to have {added} instead of {have}, give --network-rm {have} \
             as well"
        )),
        (Some(_), None) => {
            task.node_network = added.of_node;
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

/// In Docker's words: one file takes no other's place unless the other goes.
fn add_files<Id: Clone>(what: &str, files: &mut Vec<FileRef<Id>>, added: Vec<FileRef<Id>>) -> anyhow::Result<()> {
    for file in added {
        if let Some(have) = files.iter().find(|have| have.target == file.target) {
            anyhow::bail!(
                "{what} references '{}' and '{}' have a conflicting target: '{}'; to replace the first, give --{what}-rm \
                 {0} as well",
                have.name,
                file.name,
                file.target
            );
        }
        files.push(file);
    }
    Ok(())
}

fn labels(labels: &mut BTreeMap<String, String>, gone: &[String], added: &[(String, String)]) {
    labels.retain(|key, _| !gone.contains(key));
    labels.extend(added.iter().cloned());
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use orch_model::{Annotations, service::EndpointSpec};

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
    fn what_is_not_there_is_said_and_what_contradicts_itself_refused() {
        let check = |line: &str| {
            let before = updated(
                "--constraint-add node.role==manager --host-add db:1.2.3.4 --generic-resource-add GPU=1 --mount-add \
                 target=/v --ulimit-add nofile=5 --sysctl-add net.a=1 --dns-add 1.1.1.1 --group-add g web",
            );
            let words = crate::flags::words::split(&format!("update {line} web")).unwrap();
            removals::check(&Line::try_parse_from(words).unwrap().args, &before.unwrap())
        };
        for line in [
            "--env-rm A --label-rm old --constraint-rm node.role==manager --host-rm db --generic-resource-rm GPU",
            "--mount-rm /v --ulimit-rm nofile=5 --sysctl-rm net.a=1 --dns-rm 1.1.1.1 --group-rm g --publish-rm 80",
            "--host-rm db:1.2.3.4 --host-add db:5.6.7.8 --env-rm A --env-add A=2",
        ] {
            assert_eq!(check(line), Ok(Vec::new()), "{line}");
        }
        for flag in [
            "env-rm NOPE",
            "env-rm A=1",
            "label-rm nope",
            "container-label-rm nope",
            "constraint-rm node.role==worker",
            "mount-rm /w",
            "secret-rm nope",
            "config-rm nope",
            "dns-rm 9.9.9.9",
            "dns-option-rm x",
            "dns-search-rm x",
            "group-rm nope",
            "sysctl-rm nope",
            "ulimit-rm core",
            "publish-rm 8080",
            "publish-rm 80/udp",
            "publish-rm 81-82",
        ] {
            let notes = check(&format!("--{flag}")).unwrap();
            assert!(notes.len() == 1 && notes[0].starts_with(&format!("--{flag}: ")), "{flag}: {notes:?}");
        }
        for (line, words) in [
            (
                "--constraint-add node.id==x --constraint-rm node.id==x",
                "--constraint-add and --constraint-rm both name",
            ),
            ("--group-add g --group-rm g", "--group-add and --group-rm both name g: leave one of them out"),
            ("--dns-add 1.1.1.1 --dns-rm 1.1.1.1", "--dns-add and --dns-rm both name 1.1.1.1"),
            (
                "--generic-resource-rm NOPE",
                "could not find generic-resource `NOPE` to remove it: the service's tasks reserve GPU",
            ),
        ] {
            assert!(check(line).unwrap_err().starts_with(words), "{line}");
        }
    }

    #[test]
    fn a_file_takes_no_others_place() {
        let file = |name: &str, target: &str| FileRef {
            id: (),
            name: name.into(),
            target: target.into(),
            uid: "0".into(),
            gid: "0".into(),
            mode: 0o444,
        };
        let mut files = vec![file("s1", "s1")];
        let refusal = add_files("secret", &mut files, vec![file("s2", "s1")]).unwrap_err().to_string();
        assert!(refusal.starts_with("secret references 's1' and 's2' have a conflicting target: 's1'"), "{refusal}");
        assert!(refusal.contains("--secret-rm s1"), "{refusal}");
        add_files("secret", &mut files, vec![file("s2", "s2")]).unwrap();
        assert_eq!(files.len(), 2);
    }

    /// Where the service is, what is asked for, and where it is afterwards or what the refusal begins with.
    #[test]
    fn networks_of_the_nodes_come_and_go() {
        const HOST: Option<NodeNetwork> = Some(NodeNetwork::Host);
        const BRIDGE: Option<NodeNetwork> = Some(NodeNetwork::Bridge);
        for (before, line, want) in [
            (None, "--network-add host", Ok(HOST)),
            (HOST, "--network-rm host", Ok(None)),
            (HOST, "--network-rm host --network-add bridge", Ok(BRIDGE)),
            (HOST, "--network-rm bridge", Ok(HOST)),
            (HOST, "--network-rm host --network-add host", Ok(HOST)),
            (HOST, "--network-add host", Err("service is already attached to network host: to change how, give")),
            (
                BRIDGE,
                "--network-add host",
                Err("a service is on one network of its nodes at most: to have host instead"),
            ),
            (None, "--network-add host --network-add bridge", Err("a service is on one network of its nodes at most")),
            (None, "--network-add name=host,alias=a", Err("the network host is each node's own and knows neither")),
            (None, "--network-add none", Err("a service cannot be on the network none")),
        ] {
            let words = crate::flags::words::split(&format!("update {line} web")).unwrap();
            let args = Line::try_parse_from(words).unwrap().args;
            let mut task = TaskSpec { node_network: before, ..TaskSpec::default() };
            let of = |named: &[NamedAttachment]| -> anyhow::Result<Networks> {
                Ok(Networks { of_node: resolve::of_node(named)?, ..Networks::default() })
            };
            let changed = of(&args.network_rm)
                .and_then(|gone| Ok((gone, of(&args.network_add)?)))
                .map_err(|error| error.to_string())
                .and_then(|(gone, added)| change_networks(&args, &mut task, &gone, added));
            match want {
                Ok(want) => assert_eq!((changed, task.node_network), (Ok(()), want), "{line}"),
                Err(start) => {
                    assert!(changed.as_ref().is_err_and(|said| said.starts_with(start)), "{line}: {changed:?}")
                }
            }
        }
    }

    #[test]
    fn a_port_that_is_published_in_the_other_mode_stays_and_that_is_said() {
        let there = "8081:80 published=8083,target=80,mode=host 9000-9002:9000-9002";
        let there: Vec<_> = there.split(' ').flat_map(|text| port::parse(text).unwrap()).collect();
        for (line, gone, note) in [
            ("80", vec![8081], None),
            ("target=80,mode=host", vec![8083], None),
            ("9000-9002", vec![9000, 9001, 9002], None),
            ("9000-9002 --publish-rm 80", vec![8081, 9000, 9001, 9002], None),
            ("9001-9010", vec![9001, 9002], None),
            (
                "9000/udp",
                vec![],
                Some("no such target port is published, so nothing was removed; it is the container's port"),
            ),
            (
                "target=9000,mode=host",
                vec![],
                Some("this port is published in ingress mode, so nothing was removed; give --publish-rm 9000/tcp"),
            ),
        ] {
            let words = crate::flags::words::split(&format!("update --publish-rm {line} web")).unwrap();
            let args = Line::try_parse_from(words).unwrap().args;
            let mut spec = updated("web").unwrap();
            spec.endpoint.ports.clone_from(&there);
            let notes = removals::check(&args, &spec).unwrap();
            assert_eq!(notes, note.map(|note| format!("--publish-rm {line}: {note}")).into_iter().collect::<Vec<_>>());
            change_spec(&args, &mut spec, |_| None).unwrap();
            let stays = there.iter().filter(|port| !gone.contains(&port.published_port)).cloned().collect::<Vec<_>>();
            assert_eq!(spec.endpoint.ports, stays, "{line}");
        }
        let words = crate::flags::words::split("update --publish-rm 80 web").unwrap();
        let mut spec = updated("web").unwrap();
        spec.endpoint.ports = port::parse("published=8083,target=80,mode=host").unwrap();
        let notes = removals::check(&Line::try_parse_from(words).unwrap().args, &spec).unwrap();
        let said = "--publish-rm 80: this port is published in host mode, so nothing was removed; give --publish-rm \
                    target=80,protocol=tcp,mode=host";
        assert_eq!(notes, [said]);
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
