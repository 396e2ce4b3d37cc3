//! The watch: objects as they are, then every change.

use std::{pin::Pin, sync::Arc};

use async_stream::try_stream;
use futures::Stream;
use orch_manager_core::Event;
use orch_model::{Kind, Object, ObjectId};
use orch_proto::{
    conv::ToProto,
    wire::{self, watch_event},
};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Code, Status};

use super::{
    filter::{Filter, of_kind},
    outgoing, status,
};
use crate::{
    dispatcher::Reign,
    raft::{Commit, Committed},
};

/// Objects in one message of the initial set.
const OBJECTS_PER_MESSAGE: usize = 100;

/// What a watcher receives.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchResponse, Status>> + Send>>;

/// Objects of `kinds` that the filter shows, and their changes, until the reign ends.
pub(super) fn watch(reign: &Arc<Reign>, kinds: Vec<Kind>, filter: Filter) -> WatchStream {
    let store = Arc::clone(reign.consensus().store());
    // Before the view is taken, so that nothing falls in between.
    let mut commits = store.commits();
    let mut ended = reign.ended();
    Box::pin(try_stream! {
        let view = store.view();
        let index = view.index;
        let mut objects = Vec::new();
        for kind in &kinds {
            objects.extend(of_kind(&view.state, *kind).into_iter().filter(|o| filter.matches(o)));
        }
        drop(view);
        for part in objects.chunks(OBJECTS_PER_MESSAGE) {
            yield wire::WatchResponse { index, events: part.iter().map(put).collect(), synced: false };
        }
        drop(objects);
        yield wire::WatchResponse { index, events: Vec::new(), synced: true };
        loop {
            let commit = tokio::select! {
                () = ended.over() => Err(status::no_leader()),
                commit = commits.recv() => Ok(commit),
            };
            match commit? {
                Ok(commit) if commit.index <= index => {}
                Ok(commit) => {
                    for message in messages(&commit, &kinds, &filter)? {
                        yield message;
                    }
                }
                Err(RecvError::Lagged(_)) => Err(resync())?,
                Err(RecvError::Closed) => break,
            }
        }
    })
}

fn messages(commit: &Commit, kinds: &[Kind], filter: &Filter) -> Result<Vec<wire::WatchResponse>, Status> {
    let Committed::Transactions(transactions) = &commit.change else { return Err(resync()) };
    let mut messages = Vec::new();
    for events in transactions {
        let shown = events.iter().filter(|event| kinds.contains(&event.id().kind()));
        let events: Vec<_> = shown.filter_map(|event| shown_event(event, filter)).collect();
        if !events.is_empty() {
            messages.push(wire::WatchResponse { index: commit.index, events, synced: false });
        }
    }
    Ok(messages)
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
    status::with_code(Code::Aborted, "resync", "this watch fell behind: start it again")
}
