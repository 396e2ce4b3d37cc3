//! What the network daemon tells Prometheus.

use std::sync::LazyLock;

use orch_proto::metrics::{Counter, Page};
use tokio::sync::mpsc::WeakSender;

use crate::{MAX_WAITING, engine::Command};

pub(crate) static DNS_QUERIES: LazyLock<Counter> = LazyLock::new(Counter::default);
pub(crate) static OPERATIONS: LazyLock<Counter> = LazyLock::new(Counter::default);
pub(crate) static FAILED_OPERATIONS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// The page, from what is true now.
pub(crate) fn page(requests: &WeakSender<Command>) -> Page {
    let mut page = Page::default();
    let waiting = requests.upgrade().map_or(0, |requests| MAX_WAITING - requests.capacity().min(MAX_WAITING));
    page.gauge("netd_requests_waiting", "Requests that wait for the engine", waiting as u64);
    page.counter("netd_operations", "Changes to links, routes, rules and settings", &OPERATIONS);
    page.counter("netd_operations_failed", "Those that the kernel refused", &FAILED_OPERATIONS);
    page.counter("dns_queries", "Questions from containers", &DNS_QUERIES);
    page
}
