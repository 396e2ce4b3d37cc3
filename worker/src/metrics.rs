//! What the worker tells Prometheus.

use std::sync::LazyLock;

use orch_proto::metrics::{Counter, Page};

use crate::{agent::Agent, api};

pub(crate) static IMAGE_PULLS: LazyLock<Counter> = LazyLock::new(Counter::default);
pub(crate) static CONTAINERS_STARTED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// The page, from what is true now.
pub(crate) fn page(agent: &Agent) -> Page {
    let mut page = Page::default();
    let (running, stopped) = api::count(&agent.host);
    page.gauges("containers", "Containers of this node", "state", [("running", running), ("stopped", stopped)]);
    page.gauge("images", "Images on this node", agent.host.images.store.list().len() as u64);
    page.gauge("session_open", "1 while there is a session with a manager", agent.session.get().is_some().into());
    page.counter("containers_started", "Containers that this worker has started", &CONTAINERS_STARTED);
    page.counter("image_pulls", "Images that this worker has pulled, or tried to", &IMAGE_PULLS);
    page
}
