//! `orch logs` and `orch service logs`: the output of one or many tasks in one stream.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use orch_manager_core::{State, resolve};
use orch_model::{
    ServiceId, TaskId,
    task::{Task, TaskState},
};
use orch_proto::wire::{self, from_node, stream_announcement};
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Attached, cancel, open};
use crate::{api::status, dispatcher::Reign};

/// What a client of logs receives.
pub(crate) type LogStream = Pin<Box<dyn Stream<Item = Result<wire::LogLine, Status>> + Send>>;

/// Lines that may wait for a slow reader.
const LINES: usize = 256;
/// How often a followed service is looked at for new tasks.
const NEW_TASKS: Duration = Duration::from_millis(500);

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

type Lines = mpsc::Sender<Result<wire::LogLine, Status>>;

async fn merge(reign: Arc<Reign>, wanted: Wanted, options: wire::LogOptions, lines: Lines) {
    let mut ended = reign.ended();
    let mut known = BTreeSet::new();
    let mut readers = JoinSet::new();
    loop {
        let view = reign.consensus().store().view();
        let is_later = !known.is_empty();
        for task in wanted.find(&view.state) {
            if known.insert(task.id.clone()) {
                let mut options = options;
                // `tail` is about what was there when the user asked.
                options.tail = options.tail.filter(|_| !is_later);
                readers.spawn(read(Arc::clone(&reign), task, options, lines.clone()));
            }
        }
        drop(view);
        let follows_services = options.follow && !wanted.services.is_empty();
        tokio::select! {
            // Dropping the readers ends their streams.
            () = lines.closed() => return,
            () = ended.over() => {
                let _ = lines.send(Err(status::no_leader())).await;
                return;
            }
            next = readers.join_next(), if !readers.is_empty() && !follows_services => {
                if next.is_none() {
                    return;
                }
            }
            () = sleep(NEW_TASKS), if follows_services => {}
        }
        while readers.try_join_next().is_some() {}
        if readers.is_empty() && !follows_services {
            return;
        }
    }
}

/// One task's output until it ends.
async fn read(reign: Arc<Reign>, task: Arc<Task>, options: wire::LogOptions, lines: Lines) {
    let attached = match open(&reign, &task, stream_announcement::What::Logs(options)).await {
        Ok(attached) => attached,
        Err(error) => return notice(&lines, &task, error.message()).await,
    };
    drop(reign);
    let mut attached = CancelOnDrop(attached);
    loop {
        let message = match attached.0.from_node.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => return notice(&lines, &task, error.message()).await,
        };
        match message.message {
            Some(from_node::Message::Log(mut line)) => {
                line.task_id = task.id.to_string();
                if lines.send(Ok(line)).await.is_err() {
                    return;
                }
            }
            Some(from_node::Message::Error(error)) => return notice(&lines, &task, &error).await,
            Some(from_node::Message::Hello(_) | from_node::Message::Exec(_)) | None => {}
        }
    }
}

async fn notice(lines: &Lines, task: &Task, text: &str) {
    let line = wire::LogLine { task_id: task.id.to_string(), notice: text.to_owned(), ..wire::LogLine::default() };
    // The reader may have gone away.
    let _ = lines.send(Ok(line)).await;
}

struct CancelOnDrop(Attached);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        cancel(&self.0);
    }
}
