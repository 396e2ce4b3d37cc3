//! What the network daemon tells Prometheus.

use std::sync::{LazyLock, PoisonError};

use orch_netd_core::counts::Counted;
use orch_proto::metrics::{Counter, Page};
use tokio::sync::mpsc::WeakSender;

use crate::{MAX_WAITING, counts, engine::Command};

pub(crate) static DNS_QUERIES: LazyLock<Counter> = LazyLock::new(Counter::default);
pub(crate) static OPERATIONS: LazyLock<Counter> = LazyLock::new(Counter::default);
pub(crate) static FAILED_OPERATIONS: LazyLock<Counter> = LazyLock::new(Counter::default);

type Labels = Vec<(&'static str, String)>;

/// The page, from what is true now.
pub(crate) fn page(requests: &WeakSender<Command>) -> Page {
    let mut page = Page::default();
    let waiting = requests.upgrade().map_or(0, |requests| MAX_WAITING - requests.capacity().min(MAX_WAITING));
    page.gauge("netd_requests_waiting", "Requests that wait for the engine", waiting as u64);
    page.counter("netd_operations", "Changes to links, routes, rules and settings", &OPERATIONS);
    page.counter("netd_operations_failed", "Those that the kernel refused", &FAILED_OPERATIONS);
    page.counter("dns_queries", "Questions from containers", &DNS_QUERIES);
    add_totals(&mut page);
    page
}

fn add_totals(page: &mut Page) {
    let totals = counts::TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |labels: &dyn Fn(&Counted) -> Option<Labels>| {
        totals.iter().filter_map(|(counted, total)| Some((labels(counted)?, *total))).collect::<Vec<_>>()
    };
    let to_service = of(&|counted| match counted {
        Counted::ToService { service, network } => {
            Some(vec![("service", service.clone()), ("network", network.clone())])
        }
        _ => None,
    });
    let help = "Connections from containers of this node to a service's virtual address";
    page.counters("service_connections", help, to_service);
    let to_port = of(&|counted| match counted {
        Counted::ToPort { service, protocol, port } => {
            Some(vec![("service", service.clone()), ("protocol", (*protocol).to_owned()), ("port", port.to_string())])
        }
        _ => None,
    });
    page.counters("published_connections", "Connections that came to this node by a published port", to_port);
    let spoofed = of(&|counted| match counted {
        Counted::Spoofed { network } => Some(vec![("network", network.clone())]),
        _ => None,
    });
    page.counters("spoofed_packets", "Packets that a container sent in another's name, dropped", spoofed);
    let strange = of(&|counted| match counted {
        Counted::Strange { port } => Some(vec![("port", port.to_string())]),
        _ => None,
    });
    page.counters("tunnel_packets_refused", "Packets for a tunnel that no node of the cluster sent, dropped", strange);
    let asked = of(&|counted| match counted {
        Counted::Asked { service } => Some(vec![("service", service.clone())]),
        _ => None,
    });
    page.counters("service_dns_queries", "Questions from the containers of a service", asked);
}
