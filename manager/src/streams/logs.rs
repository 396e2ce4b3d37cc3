//! `orch logs` and `orch service logs`: the output of one or many tasks in one stream.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::Stream;
use orch_manager_core::{State, resolve};
use orch_model::{
    NodeId, ServiceId, TaskId,
    task::{Task, TaskState},
};
use orch_proto::wire::{self, from_node, stream_announcement};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{Attached, Kind, Place, Share, StreamHub, cancel, crowded, merge::Merger, node_of, open};
use crate::{api::status, dispatcher::Reign};

/// What a client of logs receives.
pub(crate) type LogStream = Pin<Box<dyn Stream<Item = Result<wire::LogLine, Status>> + Send>>;

/// Lines that may wait for a slow reader.
const LINES: usize = 256;
/// How often a followed service is looked at for new tasks.
const NEW_TASKS: Duration = Duration::from_millis(500);
/// Before a node is asked again for a log that was cut off.
const AGAIN: Duration = Duration::from_millis(500);
/// What waits longer for its turn is told of it: logs that are followed seldom end, others do.
const FOLLOWED_PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
const NANOS_PER_MILLI: u64 = 1_000_000;

/// Finds the tasks and merges their output. A task whose node cannot be reached gives a notice, not an error.
pub(crate) fn logs(reign: Arc<Reign>, request: wire::LogsRequest) -> Result<LogStream, Status> {
    let options = request.options.unwrap_or_default();
    let view = reign.consensus().store().view();
    let mut wanted = Wanted::default();
    for reference in &request.tasks {
        let task = resolve::task(&view.state, reference).map_err(|e| status::from_resolve(&e))?;
        wanted.tasks.insert(task.id.clone());
    }
    for reference in &request.services {
        let service = resolve::service(&view.state, reference).map_err(|e| status::from_resolve(&e))?;
        wanted.services.insert(service.id.clone());
    }
    if wanted.tasks.is_empty() && wanted.services.is_empty() {
        return Err(Status::invalid_argument("logs of what? name a task or a service"));
    }
    let (lines, outgoing) = mpsc::channel(LINES);
    tokio::spawn(merge(reign, wanted, options, lines));
    Ok(Box::pin(ReceiverStream::new(outgoing)))
}

#[derive(Default)]
struct Wanted {
    tasks: BTreeSet<TaskId>,
    services: BTreeSet<ServiceId>,
}

impl Wanted {
    /// The tasks that have, or had, a container.
    fn find(&self, state: &State) -> Vec<Arc<Task>> {
        let named = self.tasks.iter().filter_map(|id| state.task(id));
        let of_services = self.services.iter().flat_map(|id| state.tasks_of(id));
        let has_output = |t: &&Arc<Task>| t.node.is_some() && t.status.state >= TaskState::Starting;
        named.chain(of_services.filter(has_output)).cloned().collect()
    }
}

type Outgoing = mpsc::Sender<Result<wire::LogLine, Status>>;

/// Where the reader of one task puts its lines, and what it shares with the other readers of the request.
#[derive(Clone)]
struct Lines {
    source: usize,
    share: Arc<Share>,
    pieces: mpsc::Sender<Piece>,
}

/// A line of a source; without one, the source has ended.
type Piece = (usize, Option<wire::LogLine>);

impl Lines {
    /// `false`: nobody reads any more.
    async fn send(&self, line: wire::LogLine) -> bool {
        self.pieces.send((self.source, Some(line))).await.is_ok()
    }

    async fn end(&self) {
        // Nobody may be reading any more.
        let _ = self.pieces.send((self.source, None)).await;
    }

    fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }
}

async fn merge(reign: Arc<Reign>, wanted: Wanted, options: wire::LogOptions, outgoing: Outgoing) {
    let started = Instant::now();
    let mut ended = reign.ended();
    let mut known = BTreeSet::new();
    let mut readers = JoinSet::new();
    let share = Arc::new(Share::default());
    let mut merger = Merger::new(options.follow);
    let (pieces, mut incoming) = mpsc::channel::<Piece>(LINES);
    let mut follows_services = options.follow && !wanted.services.is_empty();
    // What comes later is not wanted: then the readers end by themselves, and no others come.
    let past = sleep(left(options.until_ms).unwrap_or_default());
    tokio::pin!(past);
    let mut look = interval(NEW_TASKS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some(line) = merger.next(started.elapsed()) {
            if outgoing.send(Ok(line)).await.is_err() {
                // Dropping the readers ends their streams.
                return;
            }
        }
        if !known.is_empty() && readers.is_empty() && incoming.is_empty() && merger.is_empty() && !follows_services {
            return;
        }
        let wake = merger.wake().unwrap_or(Duration::MAX).saturating_sub(started.elapsed()).min(LONGEST_SLEEP);
        tokio::select! {
            () = outgoing.closed() => return,
            () = ended.over() => {
                let _ = outgoing.send(Err(status::no_leader())).await;
                return;
            }
            Some((source, piece)) = incoming.recv() => match piece {
                Some(line) => merger.put(source, line.at_unix_ns, line),
                None => merger.end(source),
            },
            Some(_) = readers.join_next() => {}
            _ = look.tick(), if known.is_empty() || follows_services => {
                let view = reign.consensus().store().view();
                let is_later = !known.is_empty();
                let found = wanted.find(&view.state);
                for task in found {
                    if !known.insert(task.id.clone()) {
                        continue;
                    }
                    let mut options = options;
                    // `tail` is about what was there when the user asked.
                    options.tail = options.tail.filter(|_| !is_later);
                    let lines = Lines { source: known.len(), share: Arc::clone(&share), pieces: pieces.clone() };
                    merger.open(lines.source, started.elapsed());
                    let reign = Arc::clone(&reign);
                    readers.spawn(async move {
                        read(reign, task, options, lines.clone()).await;
                        lines.end().await;
                    });
                }
                if known.is_empty() && !follows_services {
                    return;
                }
            }
            () = &mut past, if follows_services && options.until_ms.is_some() => follows_services = false,
            () = sleep(wake), if wake < LONGEST_SLEEP => {}
        }
    }
}

/// Until the time that the user named; `None` when there is none.
fn left(until_ms: Option<u64>) -> Option<Duration> {
    let until = UNIX_EPOCH + Duration::from_millis(until_ms?);
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

/// One task's output until it ends. While it is followed, a node whose worker restarts is asked again for the rest.
async fn read(reign: Arc<Reign>, task: Arc<Task>, options: wire::LogOptions, lines: Lines) {
    let mut options = options;
    let mut last = Position::default();
    let mut told = false;
    let mut attempt = carry(&reign, &task, options, &mut last, &lines).await;
    while let Err(lost) = attempt {
        if !options.follow || lost.code() == Code::NotFound {
            return notice(&lines, &task, lost.message()).await;
        }
        tracing::debug!(task = %task.id, error = lost.message(), "a followed log was cut off");
        if last == Position::default() && !told {
            told = true;
            notice(&lines, &task, &format!("{}; waiting for it", lost.message())).await;
        }
        sleep(AGAIN).await;
        let is_past = left(options.until_ms).is_some_and(|left| left.is_zero());
        if lines.is_closed() || is_past || !may_write(&reign, &task.id) {
            return;
        }
        if last != Position::default() {
            options.tail = None;
            options.since_ms = Some(last.at_unix_ns / NANOS_PER_MILLI);
            options.since_unix_ns = Some(last.at_unix_ns);
        }
        attempt = carry(&reign, &task, options, &mut last, &lines).await;
    }
}

fn may_write(reign: &Reign, task: &TaskId) -> bool {
    let view = reign.consensus().store().view();
    view.state.task(task).is_some_and(|task| task.node.is_some() && !task.status.state.is_terminal())
}

/// The last line that was passed on: its time, and how many lines had that time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    at_unix_ns: u64,
    lines: u64,
}

impl Position {
    /// What a stream that is read again begins with, before anything new: nothing where none was read.
    fn replayed(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }

    /// Whether the line is new, given that lines are read again up to `replayed`.
    fn passes(&mut self, at_unix_ns: u64, replayed: &mut Option<Self>) -> bool {
        if let Some(known) = replayed {
            match at_unix_ns.cmp(&known.at_unix_ns) {
                Ordering::Less => return false,
                Ordering::Equal if known.lines > 0 => {
                    known.lines -= 1;
                    return false;
                }
                Ordering::Equal | Ordering::Greater => *replayed = None,
            }
        }
        match at_unix_ns.cmp(&self.at_unix_ns) {
            // The node's clock was set back: it is new all the same.
            Ordering::Less => {}
            Ordering::Equal => self.lines += 1,
            Ordering::Greater => *self = Self { at_unix_ns, lines: 1 },
        }
        true
    }
}

/// Carries the lines of one stream that come after `last`; an error when the stream broke off.
async fn carry(
    reign: &Reign,
    task: &Task,
    options: wire::LogOptions,
    last: &mut Position,
    lines: &Lines,
) -> Result<(), Status> {
    let _place = turn(reign, task, options, lines).await?;
    let attached = open(reign, task, stream_announcement::What::Logs(options)).await?;
    let mut attached = CancelOnDrop(attached);
    let mut replayed = last.replayed();
    while let Some(message) = attached.0.from_node.message().await? {
        match message.message {
            Some(from_node::Message::Log(mut line)) => {
                // Both outputs are in one file, in the order of their times; a notice has none.
                if line.notice.is_empty() && !last.passes(line.at_unix_ns, &mut replayed) {
                    continue;
                }
                line.task_id = task.id.to_string();
                if !lines.send(line).await {
                    return Ok(());
                }
            }
            Some(from_node::Message::Error(error)) => return Err(Status::not_found(error)),
            Some(from_node::Message::Hello(_) | from_node::Message::Exec(_)) | None => {}
        }
    }
    Ok(())
}

/// Waits until the task's node has room for one more log, and says so where that takes long.
async fn turn(reign: &Reign, task: &Task, options: wire::LogOptions, lines: &Lines) -> Result<Place, Status> {
    let tell = |kind: Kind| async move {
        let (crowded, share) = (crowded(reign, task, kind), kind.share());
        notice(lines, task, &format!("{crowded}, {share} for one command; waiting for one of them to end")).await;
    };
    Ok(room(reign.streams(), &lines.share, node_of(task)?, options, tell).await)
}

/// What has to wait until the time up to which it was to be followed is read like any other.
async fn room<Told: Future<Output = ()>>(
    hub: &StreamHub,
    share: &Share,
    node: &NodeId,
    options: wire::LogOptions,
    tell: impl Fn(Kind) -> Told,
) -> Place {
    if !options.follow {
        return patiently(hub.place(share, node, Kind::Log), PATIENCE, tell(Kind::Log)).await;
    }
    let kind = Kind::FollowedLog;
    let followed = patiently(hub.place(share, node, kind), FOLLOWED_PATIENCE, tell(kind));
    let Some(left) = left(options.until_ms) else { return followed.await };
    match timeout(left, followed).await {
        Ok(place) => place,
        // Nothing comes any more that could be followed: what there is has only to be read.
        Err(_) => hub.place(share, node, Kind::Log).await,
    }
}

/// Tells of it, once, where it takes long.
async fn patiently<T>(wait: impl Future<Output = T>, patience: Duration, tell: impl Future<Output = ()>) -> T {
    tokio::pin!(wait);
    if let Ok(ready) = timeout(patience, &mut wait).await {
        return ready;
    }
    tell.await;
    wait.await
}

async fn notice(lines: &Lines, task: &Task, text: &str) {
    let line = wire::LogLine { task_id: task.id.to_string(), notice: text.to_owned(), ..wire::LogLine::default() };
    // The reader may have gone away.
    let _ = lines.send(line).await;
}

struct CancelOnDrop(Attached);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        cancel(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_read_again_goes_on_after_its_last_line() {
        let mut last = Position::default();
        let mut pass = |times: &[u64]| -> Vec<bool> {
            let mut replayed = last.replayed();
            times.iter().map(|at| last.passes(*at, &mut replayed)).collect()
        };
        assert_eq!(pass(&[1, 2, 2]), [true, true, true]);
        assert_eq!(pass(&[1, 2, 2, 2, 3]), [false, false, false, true, true]);
        assert_eq!(pass(&[3, 4]), [false, true]);
        assert_eq!(pass(&[4, 5, 2, 3, 5, 6]), [false, true, true, true, true, true], "a clock that was set back");
        assert_eq!(pass(&[5, 6, 7]), [false, false, true]);
    }

    #[tokio::test]
    async fn what_waits_to_be_followed_is_read_once_its_time_is_over() {
        let (hub, node) = (StreamHub::default(), NodeId::from_random(1));
        let mut others = Vec::new();
        for _ in 0..Kind::FollowedLog.limit() {
            others.push(hub.place(&Share::default(), &node, Kind::FollowedLog).await);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let wait = async |until: Option<Duration>| {
            let until_ms = until.map(|until| u64::try_from(until.as_millis()).unwrap());
            let options = wire::LogOptions { follow: true, until_ms, ..wire::LogOptions::default() };
            let share = Share::default();
            let waiting = room(&hub, &share, &node, options, |_| async {});
            timeout(Duration::from_secs(5), waiting).await.is_ok()
        };
        assert!(wait(Some(now + Duration::from_millis(100))).await);
        assert!(wait(Some(now - Duration::from_secs(60))).await);
        tokio::time::pause();
        assert!(!wait(None).await);
    }
}
