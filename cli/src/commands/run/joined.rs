//! What `run` and `create` refuse beside `--network container:NAME`: all that the other container has and decides.

use anyhow::bail;

use super::CreateArgs;

/// In Docker's words. Options and search domains go with `--dns`: Docker takes them there without effect.
pub(super) fn check(args: &CreateArgs) -> anyhow::Result<()> {
    let has_dns = !(args.dns.is_empty() && args.dns_search.is_empty() && args.dns_option.is_empty());
    let conflicts = [
        (!args.hostname.is_empty(), "hostname and the network mode"),
        (has_dns, "dns and the network mode"),
        (!args.add_host.is_empty(), "custom host-to-IP mapping and the network mode"),
        (!args.publish.is_empty() || args.publish_all, "port publishing and the container type network mode"),
        (!args.expose.is_empty(), "port exposing and the container type network mode"),
    ];
    match conflicts.into_iter().find(|(is_given, _)| *is_given) {
        None => Ok(()),
        Some((_, what)) => {
            bail!("conflicting options: {what}: the other container decides that, leave one of them out")
        }
    }
}
