//! The watch: objects as they are, then every change; or only what changed since a watcher was last here.
//!
//! Any manager serves it from its own copy of the state, so a watch outlives the leader. What it says is committed, in
//! the order of the raft index, which is the same on every manager.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_stream::try_stream;
use futures::Stream;
use orch_manager_core::Event;
use orch_model::{Kind, Object, ObjectId};
use orch_proto::{
    conv::ToProto,
    wire::{self, watch_event},
};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, timeout_at},
};
use tonic::{Code, Status};

use super::{
    filter::{Filter, of_kind},
    outgoing, status,
};
use crate::raft::{Commit, Commits, Committed, Consensus, Store};

/// Objects in one message of the initial set.
const OBJECTS_PER_MESSAGE: usize = 100;
/// A manager that is cut off from the others hears of no changes: it makes sure that it is not, so often.
const CHECK_PERIOD: Duration = Duration::from_secs(10);
/// A watcher that is shown nothing learns at least so often how far it is, so that it can go on from there.
const COMMITS_PER_BOOKMARK: u64 = 256;

/// What a watcher receives.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchResponse, Status>> + Send>>;

/// Objects of `kinds` that the filter shows and their changes; only what came after index `after`, unless that is 0.
/// This manager must have caught up.
pub(super) fn watch(consensus: Consensus, kinds: Vec<Kind>, filter: Filter, after: u64) -> Result<WatchStream, Status> {
    let store = Arc::clone(consensus.store());
    let (past, commits) = match after {
        // Before the view is taken, so that nothing falls in between.
        0 => (Vec::new(), store.commits()),
        _ => store.commits_after(after).ok_or_else(resync)?,
    };
    Ok(Box::pin(try_stream! {
        let mut index = after;
        if after == 0 {
            let (now, beginning) = beginning(&store, &kinds, &filter);
            index = now;
            for message in beginning {
                yield message;
            }
        }
        let mut shown = index;
        let mut future = Future { consensus, commits };
        for commit in past {
            let commit = commit.upgrade().ok_or_else(resync)?;
            index = commit.index;
            if let Some(message) = message(&commit, &kinds, &filter)? {
                shown = index;
                yield message;
            }
        }
        yield wire::WatchResponse { index, events: Vec::new(), synced: true };
        loop {
            let commit = future.next().await?;
            if commit.index <= index {
                continue;
            }
            index = commit.index;
            let message = match message(&commit, &kinds, &filter)? {
                Some(message) => message,
                None if index - shown >= COMMITS_PER_BOOKMARK => wire::WatchResponse { index, ..wire::WatchResponse::default() },
                None => continue,
            };
            shown = index;
            yield message;
        }
    }))
}

/// What there is, in messages of a bearable size.
fn beginning(store: &Store, kinds: &[Kind], filter: &Filter) -> (u64, Vec<wire::WatchResponse>) {
    let view = store.view();
    let index = view.index;
    let all = kinds.iter().flat_map(|kind| of_kind(&view.state, *kind));
    let objects: Vec<_> = all.filter(|object| filter.matches(object)).collect();
    let message =
        |part: &[Object]| wire::WatchResponse { index, events: part.iter().map(put).collect(), synced: false };
    (index, objects.chunks(OBJECTS_PER_MESSAGE).map(message).collect())
}

/// Commits as they come, from a manager that knows that it hears of them.
struct Future {
    consensus: Consensus,
    commits: Commits,
}

impl Future {
    async fn next(&mut self) -> Result<Arc<Commit>, Status> {
        loop {
            match timeout_at(Instant::now() + CHECK_PERIOD, self.commits.recv()).await {
                Ok(Ok(commit)) => return Ok(commit),
                Ok(Err(RecvError::Lagged(_))) => return Err(resync()),
                Ok(Err(RecvError::Closed)) => return Err(status::no_leader()),
                Err(_) => self.consensus.catch_up().await.map_err(|error| status::from_catch_up(&error))?,
            }
        }
    }
}

/// All that an entry changed, in one message: a watcher that goes on after its index has missed nothing.
fn message(commit: &Commit, kinds: &[Kind], filter: &Filter) -> Result<Option<wire::WatchResponse>, Status> {
    let Committed::Transactions(transactions) = &commit.change else { return Err(resync()) };
    let all = transactions.iter().flat_map(|events| events.iter());
    let shown = all.filter(|event| kinds.contains(&event.id().kind()));
    let events: Vec<_> = shown.filter_map(|event| shown_event(event, filter)).collect();
    Ok((!events.is_empty()).then_some(wire::WatchResponse { index: commit.index, events, synced: false }))
}

/// An object that no longer matches is gone for the watcher.
fn shown_event(event: &Event, filter: &Filter) -> Option<wire::WatchEvent> {
    match event {
        Event::Created(object) => filter.matches(object).then(|| put(object)),
        Event::Removed(object) => filter.matches(object).then(|| removed(&object.id())),
        Event::Updated { new, .. } if filter.matches(new) => Some(put(new)),
        Event::Updated { old, .. } => filter.matches(old).then(|| removed(&old.id())),
    }
}

fn put(object: &Object) -> wire::WatchEvent {
    wire::WatchEvent { event: Some(watch_event::Event::Put(outgoing::object(object))) }
}

fn removed(id: &ObjectId) -> wire::WatchEvent {
    wire::WatchEvent { event: Some(watch_event::Event::Removed(id.to_proto())) }
}

fn resync() -> Status {
    status::with_code(
        Code::Aborted,
        "resync",
        "this manager does not remember what changed since: start the watch anew",
    )
}
