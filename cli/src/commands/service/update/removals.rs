//! `--…-rm` of what is not there, and of what the same command adds: said, or refused, before anything changes.

use orch_model::service::{PortConfig, PublishMode, ServiceSpec};

use super::UpdateArgs;
use crate::flags::resolver::HostRemoval;

/// What the operator should hear although the command goes on: scripts remove what may be gone already, as with Docker, but a
/// name that was mistyped must not pass in silence.
///
/// # Errors
/// When one command adds and removes the same, or gives back a resource that no task reserves.
pub(super) fn check(args: &UpdateArgs, spec: &ServiceSpec) -> Result<Vec<String>, String> {
    at_once(args)?;
    resources(args, spec)?;
    let container = &spec.task.container;
    let keys = |labels: &std::collections::BTreeMap<String, String>| labels.keys().cloned().collect::<Vec<_>>();
    let names = |entries: &[String]| entries.iter().filter_map(|e| e.split('=').next().map(str::to_owned)).collect();
    let targets = container.mounts.iter().map(|mount| mount.target.clone()).collect();
    let files = |of: Vec<[&str; 2]>| of.into_iter().flatten().map(str::to_owned).collect();
    let secrets = files(container.secrets.iter().map(|file| [file.name.as_str(), file.id.as_str()]).collect());
    let configs = files(container.configs.iter().map(|file| [file.name.as_str(), file.id.as_str()]).collect());
    let addresses = container.dns.nameservers.iter().map(ToString::to_string).collect();
    let limits = container.ulimits.iter().map(|limit| limit.name.clone()).collect();
    let nameservers: Vec<String> = args.dns_rm.iter().map(ToString::to_string).collect();
    let settings: Vec<String> = args.sysctl_rm.iter().map(|text| key_of(text).to_owned()).collect();
    let ulimits: Vec<String> = args.ulimit_rm.iter().map(|text| key_of(text).to_owned()).collect();
    let lists: [(&str, &[String], Vec<String>); 14] = [
        ("env-rm", &args.env_rm, names(&container.env)),
        ("label-rm", &args.label_rm, keys(&spec.annotations.labels)),
        ("container-label-rm", &args.container_label_rm, keys(&container.labels)),
        ("constraint-rm", &args.constraint_rm, spec.task.placement.constraints.clone()),
        ("placement-pref-rm", &args.placement_pref_rm, spec.task.placement.spread.clone()),
        ("mount-rm", &args.mount_rm, targets),
        ("secret-rm", &args.secret_rm, secrets),
        ("config-rm", &args.config_rm, configs),
        ("dns-rm", &nameservers, addresses),
        ("dns-option-rm", &args.dns_option_rm, container.dns.options.clone()),
        ("dns-search-rm", &args.dns_search_rm, container.dns.search.clone()),
        ("group-rm", &args.group_rm, container.groups.clone()),
        ("sysctl-rm", &settings, keys(&container.sysctls)),
        ("ulimit-rm", &ulimits, limits),
    ];
    let mut notes: Vec<String> = lists
        .iter()
        .flat_map(|(flag, gone, there)| gone.iter().filter(|one| !there.contains(one)).map(|one| note(flag, one)))
        .collect();
    notes.extend(hosts_and_ports(args, spec));
    Ok(notes)
}

/// `NAME=VALUE` names what `NAME` does.
pub(super) fn key_of(text: &str) -> &str {
    text.split('=').next().unwrap_or(text)
}

fn note(flag: &str, what: &str) -> String {
    format!("--{flag} {what}: the service has none of that name, so nothing was removed")
}

fn hosts_and_ports(args: &UpdateArgs, spec: &ServiceSpec) -> Vec<String> {
    let hosts = args.host_rm.iter().filter(|gone| !spec.task.container.hosts.iter().any(|line| gone.names(line)));
    let hosts = hosts.map(|gone| match gone {
        HostRemoval::Entry(line) | HostRemoval::Host(line) => note("host-rm", line),
    });
    let published = &spec.endpoint.ports;
    let ports = args.publish_rm.iter().filter(|gone| !published.iter().any(|port| gone.names(port))).map(|gone| {
        let why = match published.iter().find(|port| gone.names_but_for_the_mode(port)) {
            Some(port) => format!("this port is published in {}", of_other_mode(port)),
            None => "no such target port is published, so nothing was removed; it is the container's port".to_owned(),
        };
        format!("--publish-rm {}: {why}", gone.text)
    });
    hosts.chain(ports).collect()
}

fn of_other_mode(port: &PortConfig) -> String {
    let (target, protocol) = (port.target_port, format!("{:?}", port.protocol).to_lowercase());
    let (mode, form) = match port.publish_mode {
        PublishMode::Ingress => ("ingress", format!("{target}/{protocol}")),
        PublishMode::Host => ("host", format!("target={target},protocol={protocol},mode=host")),
    };
    format!("{mode} mode, so nothing was removed; give --publish-rm {form}")
}

/// To replace a value by its key is one command; to add and remove the very same is a mistake.
fn at_once(args: &UpdateArgs) -> Result<(), String> {
    let text = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let lists: [(&str, &[String], &[String]); 6] = [
        ("constraint", &args.constraint_add, &args.constraint_rm),
        ("placement-pref", &args.placement_pref_add, &args.placement_pref_rm),
        ("dns", &text(&args.dns_add), &text(&args.dns_rm)),
        ("dns-option", &args.dns_option_add, &args.dns_option_rm),
        ("dns-search", &args.dns_search_add, &args.dns_search_rm),
        ("group", &args.group_add, &args.group_rm),
    ];
    for (what, added, gone) in lists {
        if let Some(both) = added.iter().find(|one| gone.contains(one)) {
            return Err(format!("--{what}-add and --{what}-rm both name {both}: leave one of them out"));
        }
    }
    Ok(())
}

/// In Docker's words.
fn resources(args: &UpdateArgs, spec: &ServiceSpec) -> Result<(), String> {
    match args.generic_resource_rm.iter().find(|kind| !spec.task.generic.contains_key(kind.as_str())) {
        Some(kind) => {
            let kinds: Vec<&str> = spec.task.generic.keys().map(String::as_str).collect();
            let have = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
            Err(format!("could not find generic-resource `{kind}` to remove it: the service's tasks reserve {have}"))
        }
        None => Ok(()),
    }
}
