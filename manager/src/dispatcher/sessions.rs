//! Which agents are connected, since when they were last heard, and how to tell them something.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use orch_model::{NodeId, SessionId};
use orch_proto::wire::StreamAnnouncement;
use tokio::sync::mpsc;

/// Announcements that a session may have waiting; an agent takes them at once.
const ANNOUNCEMENTS: usize = 64;
/// A node is down after this many missed heartbeats.
const MISSED_BEATS: u32 = 3;
/// Everyone has to find the new leader first.
const AFTER_CHANGE_OF_LEADER: u32 = 2;

/// The sessions of one reign.
pub(super) struct Sessions {
    started: Mutex<Instant>,
    by_node: Mutex<HashMap<NodeId, Presence>>,
}

/// What is known of a node that was heard in this reign.
struct Presence {
    heard: Instant,
    session: Option<Session>,
}

struct Session {
    id: SessionId,
    announcements: mpsc::Sender<StreamAnnouncement>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self { started: Mutex::new(Instant::now()), by_node: Mutex::default() }
    }

    /// Replaces the node's session: its old stream ends, because the channel behind it closes.
    pub(super) fn open(&self, node: NodeId, id: SessionId) -> mpsc::Receiver<StreamAnnouncement> {
        let (announcements, receiver) = mpsc::channel(ANNOUNCEMENTS);
        let session = Some(Session { id, announcements });
        self.lock().insert(node, Presence { heard: Instant::now(), session });
        receiver
    }

    /// Notes a sign of life; says whether the session is still the node's.
    pub(super) fn heard(&self, node: &NodeId, id: &str) -> bool {
        match self.lock().get_mut(node) {
            Some(presence) if presence.session.as_ref().is_some_and(|session| session.id.as_str() == id) => {
                presence.heard = Instant::now();
                true
            }
            _ => false,
        }
    }

    /// The session's stream broke. When the node was last heard stays known, so that an agent which reconnects in time
    /// is never declared down.
    pub(super) fn close(&self, node: &NodeId, id: &SessionId) {
        if let Some(presence) = self.lock().get_mut(node) {
            presence.session.take_if(|session| session.id == *id);
        }
    }

    /// Ends the node's session whatever it is.
    pub(super) fn expel(&self, node: &NodeId) {
        self.lock().remove(node);
    }

    /// Passes an announcement to the node; `false` when it is not connected.
    pub(super) fn announce(&self, node: &NodeId, announcement: StreamAnnouncement) -> bool {
        let sessions = self.lock();
        let session = sessions.get(node).and_then(|presence| presence.session.as_ref());
        session.is_some_and(|session| session.announcements.try_send(announcement).is_ok())
    }

    /// This manager itself stood still for so long (paused, starved): what nodes said meanwhile has yet to be heard, so
    /// that time is not held against them.
    pub(super) fn forgive(&self, stall: Duration) {
        let now = Instant::now();
        let later = |at: Instant| (at + stall).min(now);
        for presence in self.lock().values_mut() {
            presence.heard = later(presence.heard);
        }
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        *started = later(*started);
    }

    /// Whether a node that should be there has been silent for too long. `known_for`: how long ago its state last
    /// changed, which counts while it was never heard in this reign (a node that has just joined).
    pub(super) fn is_silent(&self, node: &NodeId, known_for: Duration, period: Duration) -> bool {
        match self.lock().get(node) {
            Some(presence) => presence.heard.elapsed() > period * MISSED_BEATS,
            None => self.reigns_for().min(known_for) > period * MISSED_BEATS * AFTER_CHANGE_OF_LEADER,
        }
    }

    fn reigns_for(&self) -> Duration {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Presence>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_last_sign_of_life_whatever_became_of_the_stream() {
        let sessions = Sessions::new();
        let (node, first, second) = (NodeId::from_random(1), SessionId::from_random(2), SessionId::from_random(3));
        let long = Duration::from_secs(3600);
        assert!(!sessions.is_silent(&node, long, Duration::from_millis(50)), "it has time to find the leader");
        std::thread::sleep(Duration::from_millis(20));
        assert!(sessions.is_silent(&node, long, Duration::from_millis(1)));
        assert!(!sessions.is_silent(&node, Duration::ZERO, Duration::from_millis(1)), "it has only just joined");

        let _old = sessions.open(node.clone(), first.clone());
        let mut new = sessions.open(node.clone(), second.clone());
        assert!(!sessions.heard(&node, first.as_str()), "the old session was replaced");
        assert!(sessions.heard(&node, second.as_str()));
        assert!(sessions.announce(&node, StreamAnnouncement::default()) && new.try_recv().is_ok());
        sessions.close(&node, &first);
        assert!(sessions.heard(&node, second.as_str()), "closing the old one does not touch the new one");
        sessions.close(&node, &second);
        assert!(!sessions.announce(&node, StreamAnnouncement::default()));
        assert!(!sessions.is_silent(&node, long, Duration::from_secs(5)), "a broken stream is not yet silence");
    }

    #[test]
    fn a_manager_that_stood_still_blames_nobody() {
        let sessions = Sessions::new();
        let (known, unknown) = (NodeId::from_random(1), NodeId::from_random(2));
        let long = Duration::from_secs(3600);
        let _session = sessions.open(known.clone(), SessionId::from_random(3));
        let stall = Duration::from_millis(50);
        std::thread::sleep(stall);
        let period = Duration::from_millis(4);
        assert!(sessions.is_silent(&known, long, period) && sessions.is_silent(&unknown, long, period));
        sessions.forgive(stall);
        // The clock goes on while this is checked, so the period is a longer one.
        let period = Duration::from_millis(15);
        assert!(!sessions.is_silent(&known, long, period) && !sessions.is_silent(&unknown, long, period));
    }
}
