//! How much one caller may have under way: calls, bytes of requests, bytes of answers that it has yet to read.
//!
//! Whoever floods or stalls is refused more of the same; others do not notice. What is under way is given back when the
//! caller has read the answer, or has gone.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use orch_model::NodeId;
use orch_proto::transport::pace::{Pace, Rate};
use tokio::time::{Sleep, sleep, sleep_until};
use tonic::{Code, Status, body::Body};

use super::status;

/// For a request that is not a stream to arrive.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Calls of one worker, or of a stranger at one address. A busy worker gathers what it has to say into some ten a second.
const CALLS: Rate = Rate { burst: 256, per_second: 256 };
/// No call waits longer for its turn.
const LONGEST_TURN: Duration = Duration::from_secs(1);
/// Lists of one caller that are put together or not read yet.
const LISTS_PER_CALLER: usize = 16;
/// Bytes of requests of all callers together.
const ALL_REQUESTS_BYTES: usize = 48 << 20;
/// Bytes of long answers that all callers together have yet to read.
const ALL_ANSWERS_BYTES: usize = 64 << 20;

/// Whose account a call goes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Payer {
    /// A process of this machine.
    Process(i32),
    /// A manager, for itself and for the processes whose calls it passes on.
    Manager(NodeId),
    Worker(NodeId),
    /// Nobody with a certificate; the address is missing for calls that another manager passed on.
    Stranger(Option<IpAddr>),
}

struct Limit {
    calls: usize,
    request_bytes: usize,
    /// One answer is always possible, however long it is.
    answer_bytes: usize,
}

impl Payer {
    /// Managers speak for others as well, and whoever may use the local socket is no stranger.
    fn has_a_pace(&self) -> bool {
        match self {
            Self::Process(_) | Self::Manager(_) => false,
            Self::Worker(_) | Self::Stranger(_) => true,
        }
    }

    fn limit(&self) -> Limit {
        match self {
            Self::Process(_) | Self::Manager(_) => {
                Limit { calls: 1024, request_bytes: 24 << 20, answer_bytes: 16 << 20 }
            }
            Self::Worker(_) => Limit { calls: 256, request_bytes: 16 << 20, answer_bytes: 16 << 20 },
            Self::Stranger(_) => Limit { calls: 16, request_bytes: 256 << 10, answer_bytes: 256 << 10 },
        }
    }
}

/// The accounts of all callers of a manager. Clones share them.
#[derive(Clone)]
pub struct Budget(Arc<Mutex<Accounts>>);

struct Accounts {
    by_payer: HashMap<Payer, Use>,
    all: Use,
    pace: Pace<Payer>,
}

impl Default for Budget {
    fn default() -> Self {
        let accounts = Accounts { by_payer: HashMap::new(), all: Use::default(), pace: Pace::new(CALLS) };
        Self(Arc::new(Mutex::new(accounts)))
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Use {
    calls: usize,
    request_bytes: usize,
    /// Lists that are put together or not read yet.
    lists: usize,
    answer_bytes: usize,
}

impl Budget {
    /// Lets a caller who calls faster than anybody needs to wait for its turn.
    pub(super) async fn turn(&self, payer: &Payer) {
        if !payer.has_a_pace() {
            return;
        }
        let now = Instant::now();
        let turn = self.lock().pace.turn(payer.clone(), now, LONGEST_TURN);
        if turn > now {
            sleep_until(turn.into()).await;
        }
    }

    /// Opens the tab of a call.
    pub(super) fn open(&self, payer: Payer) -> Result<Tab, Box<Status>> {
        let limit = payer.limit();
        let mut accounts = self.lock();
        let used = accounts.by_payer.get(&payer).copied().unwrap_or_default();
        if used.calls >= limit.calls {
            return Err(Box::new(exhausted(format!(
                "{} calls of this caller are under way: wait for them",
                limit.calls
            ))));
        }
        accounts.by_payer.entry(payer.clone()).or_default().calls += 1;
        accounts.all.calls += 1;
        Ok(Tab(Arc::new(TabInner { budget: self.clone(), payer, used: Mutex::default() })))
    }

    /// Calls under way, and the bytes of their requests and of answers that nobody has read.
    pub(crate) fn in_use(&self) -> (usize, usize, usize) {
        let all = self.lock().all;
        (all.calls, all.request_bytes, all.answer_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one call has on its caller's account; given back when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Tab(Arc<TabInner>);

struct TabInner {
    budget: Budget,
    payer: Payer,
    used: Mutex<Use>,
}

impl Tab {
    /// Notes that part of the request has arrived.
    fn receive(&self, bytes: usize) -> Result<(), Status> {
        let limit = self.0.payer.limit();
        self.add(Use { request_bytes: bytes, ..Use::default() }, |own, all| {
            own.request_bytes <= limit.request_bytes && all.request_bytes <= ALL_REQUESTS_BYTES
        })
    }

    /// A tab of the same caller for a list that is part of something longer; given back when dropped.
    pub(super) fn for_a_list(&self) -> Result<Self, Status> {
        let tab = self.0.budget.open(self.0.payer.clone()).map_err(|refused| *refused)?;
        tab.begin_list()?;
        Ok(tab)
    }

    /// Notes that a list is about to be put together, which takes time as well as memory.
    pub(super) fn begin_list(&self) -> Result<(), Status> {
        self.add(Use { lists: 1, ..Use::default() }, |own, _| own.lists <= LISTS_PER_CALLER)
    }

    /// Notes that a long answer is there for the caller to read.
    pub(super) fn owe(&self, bytes: usize) -> Result<(), Status> {
        let limit = self.0.payer.limit();
        self.add(Use { answer_bytes: bytes, ..Use::default() }, |own, all| {
            own.answer_bytes == bytes
                || (own.answer_bytes <= limit.answer_bytes && all.answer_bytes <= ALL_ANSWERS_BYTES)
        })
    }

    fn add(&self, more: Use, fits: impl Fn(Use, Use) -> bool) -> Result<(), Status> {
        let mut accounts = self.0.budget.lock();
        let own = plus(accounts.by_payer.get(&self.0.payer).copied().unwrap_or_default(), more);
        let all = plus(accounts.all, more);
        if !fits(own, all) {
            return Err(exhausted("too much of this caller is under way: finish some calls first".to_owned()));
        }
        accounts.by_payer.insert(self.0.payer.clone(), own);
        accounts.all = all;
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = plus(*used, more);
        Ok(())
    }
}

impl Drop for TabInner {
    fn drop(&mut self) {
        let used = Use { calls: 1, ..*self.used.lock().unwrap_or_else(PoisonError::into_inner) };
        let mut accounts = self.budget.lock();
        accounts.all = minus(accounts.all, used);
        let left = minus(accounts.by_payer.get(&self.payer).copied().unwrap_or_default(), used);
        if left == Use::default() {
            accounts.by_payer.remove(&self.payer);
        } else {
            accounts.by_payer.insert(self.payer.clone(), left);
        }
    }
}

fn plus(a: Use, b: Use) -> Use {
    Use {
        calls: a.calls + b.calls,
        request_bytes: a.request_bytes + b.request_bytes,
        lists: a.lists + b.lists,
        answer_bytes: a.answer_bytes + b.answer_bytes,
    }
}

fn minus(a: Use, b: Use) -> Use {
    Use {
        calls: a.calls.saturating_sub(b.calls),
        request_bytes: a.request_bytes.saturating_sub(b.request_bytes),
        lists: a.lists.saturating_sub(b.lists),
        answer_bytes: a.answer_bytes.saturating_sub(b.answer_bytes),
    }
}

fn exhausted(message: String) -> Status {
    status::with_code(Code::ResourceExhausted, "too-much", message)
}

/// A request that has to arrive in time and within its caller's budget.
pub(super) struct Metered {
    body: Body,
    tab: Tab,
    deadline: Pin<Box<Sleep>>,
}

impl Metered {
    pub(super) fn wrap(body: Body, tab: Tab) -> Body {
        Body::new(Self { body, tab, deadline: Box::pin(sleep(REQUEST_LIMIT)) })
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if let Err(refused) = self.tab.receive(bytes) {
                    return Poll::Ready(Some(Err(refused)));
                }
            }
            Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => {
                let late = Status::deadline_exceeded("the request did not arrive in time");
                return Poll::Ready(Some(Err(late)));
            }
            Poll::Ready(_) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer; its call is over when it has been read.
pub(super) struct Answer {
    body: Body,
    _tab: Tab,
}

impl Answer {
    pub(super) fn wrap(body: Body, tab: Tab) -> Body {
        Body::new(Self { body, _tab: tab })
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_who_has_too_much_under_way_is_refused_and_others_are_not() {
        let budget = Budget::default();
        let worker = |n| Payer::Worker(NodeId::from_random(n));
        let calls: Vec<_> = (0..worker(1).limit().calls).map(|_| budget.open(worker(1)).unwrap()).collect();
        assert_eq!(budget.open(worker(1)).err().unwrap().code(), Code::ResourceExhausted);
        let other = budget.open(worker(2)).unwrap();
        calls[0].receive(worker(1).limit().request_bytes).unwrap();
        assert!(calls[1].receive(1).is_err(), "the account is the caller's, not the call's");
        other.receive(1).unwrap();
        drop(calls);
        drop(other);
        assert_eq!(budget.in_use(), (0, 0, 0));
        assert!(budget.lock().by_payer.is_empty());
    }

    #[test]
    fn streams_leave_a_node_calls_for_its_session() {
        let worker = Payer::Worker(NodeId::from_random(1));
        assert!(worker.limit().calls >= crate::streams::STREAMS_PER_NODE + 32);
    }

    #[test]
    fn a_caller_has_only_so_many_lists_at_once() {
        let budget = Budget::default();
        let calls: Vec<_> = (0..=LISTS_PER_CALLER).map(|_| budget.open(Payer::Process(1)).unwrap()).collect();
        assert!(calls[1..].iter().all(|call| call.begin_list().is_ok()));
        assert!(calls[0].begin_list().is_err());
        assert!(budget.open(Payer::Process(2)).unwrap().begin_list().is_ok());
        drop(calls);
        assert!(budget.lock().by_payer.is_empty());
    }

    #[test]
    fn one_long_answer_is_always_possible_and_a_second_only_within_the_limit() {
        let budget = Budget::default();
        let first = budget.open(Payer::Process(1)).unwrap();
        let second = budget.open(Payer::Process(1)).unwrap();
        first.owe(ALL_ANSWERS_BYTES).unwrap();
        assert!(second.owe(1).is_err());
        let other = budget.open(Payer::Process(2)).unwrap();
        other.owe(1000).unwrap();
        drop(first);
        second.owe(1000).unwrap();
        assert_eq!(budget.in_use(), (2, 0, 2000));
    }
}
