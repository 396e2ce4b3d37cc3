//! `orch network connect|disconnect`, and the networks that `orch run` names.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::bail;
use clap::Args;
use orch_proto::{paths::Paths, wire};

use crate::api::{explain, worker};

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Add network-scoped alias for the container
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// IPv4 address (e.g., "172.30.100.104")
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address (e.g., "2001:db8::33")
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// Not supported: containers find each other by name on every network that both are on
    #[arg(long, hide = true, value_name = "CONTAINER")]
    link: Vec<String>,
    /// Not supported: the drivers have no options for one container
    #[arg(long, hide = true, value_name = "KEY=VALUE")]
    driver_opt: Vec<String>,
    network: String,
    container: String,
}

#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// Force the container to disconnect from a network
    #[arg(short, long)]
    force: bool,
    network: String,
    container: String,
}

pub(super) async fn connect(args: ConnectArgs, paths: &Paths) -> anyhow::Result<()> {
    if !args.link.is_empty() {
        bail!(
            "--link: containers find each other by name on every network that both are on; use --alias for other names"
        );
    }
    if !args.driver_opt.is_empty() {
        bail!("--driver-opt: the drivers overlay and bridge have no options for one container");
    }
    let network = wire::ContainerNetwork {
        network: args.network,
        aliases: args.alias,
        addresses: wanted(args.ip, args.ip6),
        ..Default::default()
    };
    let request = wire::ConnectContainerRequest { container: args.container, network: Some(network) };
    worker(paths).await?.connect_container(request).await.map_err(explain)?;
    Ok(())
}

pub(super) async fn disconnect(args: DisconnectArgs, paths: &Paths) -> anyhow::Result<()> {
    let DisconnectArgs { force, network, container } = args;
    let request = wire::DisconnectContainerRequest { container, network, force };
    worker(paths).await?.disconnect_container(request).await.map_err(explain)?;
    Ok(())
}

fn wanted(ip: Option<Ipv4Addr>, ip6: Option<Ipv6Addr>) -> Vec<String> {
    ip.map(|ip| ip.to_string()).into_iter().chain(ip6.map(|ip| ip.to_string())).collect()
}

/// The flags of `orch run` and `orch create` that say where the container is.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkFlags {
    /// Connect a container to a network (bridge, none, host, container:NAME, or the name of one; NAME, or name=NAME[,alias=A][,ip=ADDRESS])
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = network)]
    network: Vec<wire::ContainerNetwork>,
    /// Add network-scoped alias for the container
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// IPv4 address (e.g., 172.30.100.104)
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address (e.g., 2001:db8::33)
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
}

impl NetworkFlags {
    /// The node's own network, `none` or `host` (empty: what is usual), and the networks that have a name.
    pub(crate) fn chosen(&self) -> anyhow::Result<(String, Vec<wire::ContainerNetwork>)> {
        let is_own = |network: &&wire::ContainerNetwork| {
            matches!(network.network.as_str(), "" | "default" | "bridge" | "none" | "host")
                || is_joined(&network.network)
        };
        let own: Vec<_> = self.network.iter().filter(is_own).collect();
        let mut named: Vec<_> = self.network.iter().filter(|network| !is_own(network)).cloned().collect();
        if let Some(joined) = own.iter().find(|network| is_joined(&network.network) && self.network.len() > 1) {
            bail!(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes: --network {} \
                 stands alone",
                joined.network
            );
        }
        let addresses = wanted(self.ip, self.ip6);
        let is_single = named.len() == 1 && own.is_empty();
        if (!addresses.is_empty() && !is_single) || own.iter().any(|network| !network.addresses.is_empty()) {
            bail!(
                "invalid config for network: --ip and --ip6 need one network with a subnet of its own (--network NAME); \
                 with several, write --network name=NAME,ip=ADDRESS"
            );
        }
        if (!self.network_alias.is_empty() && !is_single) || own.iter().any(|network| !network.aliases.is_empty()) {
            bail!(
                "network-scoped alias is supported only for containers in user defined networks: name one with \
                 --network NAME; with several, write --network name=NAME,alias=ALIAS"
            );
        }
        if let Some(single) = named.first_mut().filter(|_| is_single) {
            single.aliases.extend(self.network_alias.iter().cloned());
            single.addresses.extend(addresses);
        }
        match own.as_slice() {
            [] => Ok((String::new(), named)),
            [one] => Ok((one.network.clone(), named)),
            _ => {
                bail!("--network is given twice for the node's own networks: one of bridge, none and host is possible")
            }
        }
    }
}

/// Whether it is another container's network.
pub(crate) fn is_joined(network: &str) -> bool {
    network.starts_with("container:")
}

/// `web`, or `name=web,alias=www,ip=10.5.0.9`.
fn network(text: &str) -> Result<wire::ContainerNetwork, String> {
    let mut network = wire::ContainerNetwork::default();
    if !text.contains('=') {
        text.clone_into(&mut network.network);
        return Ok(network);
    }
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key.trim().to_lowercase().as_str() {
            "name" => value.clone_into(&mut network.network),
            "alias" => network.aliases.push(value.to_owned()),
            "ip" | "ip6" => {
                let address: std::net::IpAddr =
                    value.parse().map_err(|_| format!("invalid {key} address: {value:?}"))?;
                network.addresses.push(address.to_string());
            }
            other => return Err(format!("invalid field {other:?}: expected name, alias, ip or ip6")),
        }
    }
    if network.network.is_empty() { Err("expected name=NETWORK".to_owned()) } else { Ok(network) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(networks: &[&str], ip: Option<&str>, alias: &[&str]) -> anyhow::Result<(String, Vec<(String, String)>)> {
        let network =
            networks.iter().map(|text| network(text).map_err(anyhow::Error::msg)).collect::<Result<_, _>>()?;
        let network_alias = alias.iter().map(|a| (*a).to_owned()).collect();
        let flags = NetworkFlags { network, network_alias, ip: ip.map(|ip| ip.parse().unwrap()), ip6: None };
        let (own, named) = flags.chosen()?;
        let shown =
            named.iter().map(|n| (n.network.clone(), [n.aliases.clone(), n.addresses.clone()].concat().join(" ")));
        Ok((own, shown.collect()))
    }

    #[test]
    fn networks_of_a_container() {
        let named = |name: &str, rest: &str| (name.to_owned(), rest.to_owned());
        for (networks, ip, alias, expected) in [
            (&[][..], None, &[][..], (String::new(), vec![])),
            (&["host"], None, &[], ("host".to_owned(), vec![])),
            (&["web"], Some("10.5.0.9"), &["www"], (String::new(), vec![named("web", "www 10.5.0.9")])),
            (&["name=web,alias=a,alias=b,ip=10.5.0.9"], None, &[], (String::new(), vec![named("web", "a b 10.5.0.9")])),
            (&["bridge", "web"], None, &[], ("bridge".to_owned(), vec![named("web", "")])),
            (&["container:web"], None, &[], ("container:web".to_owned(), vec![])),
        ] {
            assert_eq!(flags(networks, ip, alias).unwrap(), expected, "{networks:?}");
        }
        for (networks, ip, alias) in [
            (&["bridge"][..], Some("10.5.0.9"), &[][..]),
            (&[], None, &["www"]),
            (&["a", "b"], None, &["www"]),
            (&["host", "none"], None, &[]),
            (&["name=a,ip=x"], None, &[]),
            (&["alias=x"], None, &[]),
            (&["container:web", "web"], None, &[]),
            (&["container:web", "bridge"], None, &[]),
            (&["container:web"], Some("10.5.0.9"), &[]),
            (&["container:web"], None, &["www"]),
            (&["name=container:web,alias=www"], None, &[]),
        ] {
            assert!(flags(networks, ip, alias).is_err(), "{networks:?}");
        }
    }
}
