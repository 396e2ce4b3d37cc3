//! What the manager tells Prometheus.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use orch_proto::metrics::{Counter, Histogram, Histograms, Page};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{
    api::{Budget, calls},
    leader::Throne,
    raft::{Consensus, Proposer},
};

/// Syncs of the raft log's file, from a fast drive's to a stuck one's.
static FSYNC_SECONDS: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0]));
static PROPOSALS: LazyLock<Counter> = LazyLock::new(Counter::default);
static SNAPSHOT_SECONDS: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0]));
static CALL_SECONDS: LazyLock<Histograms> =
    LazyLock::new(|| Histograms::new("call", &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]));

/// The log took so long to be safe on the disk.
pub(crate) fn note_fsync(took: Duration) {
    FSYNC_SECONDS.observe(took.as_secs_f64());
}

/// A snapshot took so long to be safe on the disk.
pub(crate) fn note_snapshot(took: Duration) {
    SNAPSHOT_SECONDS.observe(took.as_secs_f64());
}

/// Somebody proposed a transaction.
pub(crate) fn note_proposal() {
    PROPOSALS.inc();
}

/// The page, from what is true now.
pub(crate) fn page(consensus: &Consensus, proposer: &Proposer, throne: &Throne, budget: &Budget) -> Page {
    let mut page = Page::default();
    let leadership = consensus.leadership().borrow().clone();
    let view = consensus.store().view();
    let (voters, reachable) = consensus.voters();
    page.gauge("raft_term", "Term that this manager is in", leadership.term);
    page.gauge("raft_is_leader", "1 while this manager leads", leadership.is_own.into());
    page.gauge("raft_has_leader", "1 while this manager knows a leader", leadership.leader.is_some().into());
    page.gauge("raft_last_log_index", "Last entry of this manager's log", consensus.last_log_index());
    page.gauge("raft_commit_index", "Last entry that this manager knows to be committed", consensus.commit_index());
    page.gauge("raft_applied_index", "Last entry that changed this manager's state", view.index);
    page.gauge("raft_voters", "Managers that vote", count(voters.len()));
    page.gauge("raft_voters_reachable", "Voters that answer this leader (itself included)", count(reachable.len()));
    page.counter("raft_proposals", "Transactions proposed here", &PROPOSALS);
    page.gauge("raft_proposals_waiting", "Transactions that the next entry has no room for", count(proposer.waiting()));
    page.histogram("raft_log_fsync_seconds", "Time to make the raft log safe on the disk", &FSYNC_SECONDS);
    page.histogram("raft_snapshot_seconds", "Time to make a snapshot of the state on the disk", &SNAPSHOT_SECONDS);
    let sessions = throne.load().as_ref().map_or(0, |reign| reign.session_count());
    page.gauge("agent_sessions", "Nodes with a session at this leader", count(sessions));
    let (calls, requests, answers) = budget.in_use();
    page.gauge("api_calls_in_flight", "Calls under way", count(calls));
    page.histograms("api_call_seconds", "Time until a call was answered, or a stream began", &CALL_SECONDS);
    page.gauge("api_request_bytes", "Bytes of requests under way", count(requests));
    page.gauge("api_unread_answer_bytes", "Bytes of long answers that callers have yet to read", count(answers));
    let (mut tasks, mut nodes) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    view.state.tasks().for_each(|task| *tasks.entry(task.status.state.to_string().to_lowercase()).or_default() += 1);
    let word = |node: &orch_model::node::Node| format!("{:?}", node.status.state).to_lowercase();
    view.state.nodes().for_each(|node| *nodes.entry(word(node)).or_default() += 1);
    page.gauges("tasks", "Tasks by state", "state", tasks);
    page.gauges("nodes", "Nodes by state", "state", nodes);
    page.gauge("services", "Services", count(view.state.services().count()));
    page
}

/// Times the calls of a server.
#[derive(Clone)]
pub(crate) struct CallTimes(Arc<BTreeMap<&'static str, Histogram>>);

impl CallTimes {
    /// Knows the calls that there are; a client cannot add to them.
    pub(crate) fn new() -> Self {
        let short = |path: &'static str| path.strip_prefix("/orch.v1.").unwrap_or(path);
        Self(Arc::new(calls().map(|path| (path, CALL_SECONDS.of(short(path)))).collect()))
    }
}

impl<S> Layer<S> for CallTimes {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Timed { times: self.clone(), inner }
    }
}

/// A service whose calls are timed.
#[derive(Clone)]
pub(crate) struct Timed<S> {
    times: CallTimes,
    inner: S,
}

impl<S> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let times = self.times.0.get(request.uri().path()).cloned();
        let (start, answering) = (Instant::now(), self.inner.call(request));
        Box::pin(async move {
            let answer = answering.await;
            if let Some(times) = times {
                times.observe(start.elapsed().as_secs_f64());
            }
            answer
        })
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
