//! Whether a container answers yet: it listens on one of the ports that it publishes or that its image exposes.
//!
//! Without this a task would be balanced to while its program still starts, and clients would be refused. Docker leaves
//! that to health checks; most images have none, but nearly all say which port they serve.

use std::{collections::BTreeSet, time::Duration};

use orch_model::service::{PortConfig, Protocol};
use tokio::time::{Instant, sleep};

use super::quiet::{listening_ports, own_tables};

/// A program that listens nowhere it said is taken as running all the same after this.
const LIMIT: Duration = Duration::from_secs(15);
/// Programs that start at once are seen at once, slow ones do not keep the worker busy.
const FIRST_POLL: Duration = Duration::from_millis(5);
const LAST_POLL: Duration = Duration::from_millis(100);

/// Waits until the container of process `pid` listens on one of `ports`. Does not wait without ports.
pub(crate) async fn await_listening(pid: u32, ports: BTreeSet<u16>) {
    let deadline = Instant::now() + LIMIT;
    let mut pause = FIRST_POLL;
    while !ports.is_empty() && Instant::now() < deadline {
        // With the node's own network there is no telling whose socket listens.
        let Some(tables) = own_tables(pid) else { return };
        if !listening_ports(&tables).is_disjoint(&ports) {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_POLL);
    }
}

/// The TCP ports of a service's published ports, on the task's side.
pub(crate) fn published(ports: &[PortConfig]) -> impl Iterator<Item = u16> + '_ {
    ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.target_port)
}

/// The TCP ports of an image's `EXPOSE`: `80/tcp`, `8000-8010/tcp`, `80`.
pub(crate) fn exposed<'a>(entries: impl Iterator<Item = &'a String>) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for entry in entries {
        let (range, protocol) = entry.split_once('/').unwrap_or((entry, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (true, Ok(first), Ok(last)) = (protocol == "tcp", first.parse::<u16>(), last.parse::<u16>()) {
            ports.extend(first..=last);
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_tcp_ports_count() {
        let entries =
            ["80/tcp", "53/udp", "8000-8002/tcp", "9000", "nonsense", "70000/tcp", "9-8/tcp"].map(String::from);
        assert_eq!(exposed(entries.iter()), BTreeSet::from([80, 8000, 8001, 8002, 9000]));
    }
}
