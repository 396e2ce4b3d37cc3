//! `orch exec`: a client's stream joined to a node's.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_stream::try_stream;
use futures::Stream;
use orch_manager_core::resolve;
use orch_model::task::{Task, TaskState};
use orch_proto::wire::{self, exec_input, exec_output, from_node, stream_announcement, to_node};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::{Attached, Kind, Place, Share, cancel, crowded, node_of, open};
use crate::{api::status, dispatcher::Reign};

/// What a client of exec receives.
pub(crate) type ExecStream = Pin<Box<dyn Stream<Item = Result<wire::ExecOutput, Status>> + Send>>;

/// For a place among the commands that a node carries.
const PLACE_LIMIT: Duration = Duration::from_secs(10);

/// Finds the task, has its node start the command, and joins the two streams.
pub(crate) async fn exec(reign: Arc<Reign>, mut input: Streaming<wire::ExecInput>) -> Result<ExecStream, Status> {
    let first = input.message().await?;
    let Some(wire::ExecInput { input: Some(exec_input::Input::Start(start)) }) = first else {
        return Err(Status::invalid_argument("the first message of exec is its start"));
    };
    if start.argv.is_empty() {
        return Err(Status::invalid_argument("no command to run: name one after the task"));
    }
    let task = running_task(&reign, &start.task)?;
    let (share, node) = (Share::default(), node_of(&task)?);
    let place = reign.streams().place(&share, node, Kind::Command);
    let place = timeout(PLACE_LIMIT, place).await.map_err(|_| {
        let crowded = crowded(&reign, &task, Kind::Command);
        status::with_code(Code::ResourceExhausted, "too-much", format!("{crowded}: wait for one of them to end"))
    })?;
    let attached = open(&reign, &task, stream_announcement::What::Exec(start)).await?;
    let pump = tokio::spawn(pass_input(input, attached.to_node.clone()));
    Ok(Box::pin(output(reign, attached, place, AbortOnDrop(pump))))
}

fn running_task(reign: &Reign, reference: &str) -> Result<Arc<Task>, Status> {
    let view = reign.consensus().store().view();
    let task = resolve::task(&view.state, reference).map_err(|e| status::from_resolve(&e))?;
    if task.status.state != TaskState::Running {
        return Err(Status::failed_precondition(format!(
            "task {} is not running but {}: exec needs a running container",
            task.name(),
            task.status.state
        )));
    }
    Ok(task)
}

async fn pass_input(mut input: Streaming<wire::ExecInput>, to_node: tokio::sync::mpsc::Sender<wire::ToNode>) {
    while let Ok(Some(message)) = input.message().await {
        let message = wire::ToNode { message: Some(to_node::Message::Exec(message)) };
        if to_node.send(message).await.is_err() {
            return;
        }
    }
}

fn output(
    reign: Arc<Reign>,
    attached: Attached,
    place: Place,
    pump: AbortOnDrop,
) -> impl Stream<Item = Result<wire::ExecOutput, Status>> {
    let mut ended = reign.ended();
    drop(reign);
    let mut guard = CancelOnDrop(attached);
    try_stream! {
        let (_place, _pump) = (place, pump);
        loop {
            let message = tokio::select! {
                () = ended.over() => Err(status::no_leader()),
                message = guard.0.from_node.message() => message,
            };
            match message?.and_then(|m| m.message) {
                Some(from_node::Message::Exec(output)) => {
                    let is_last = matches!(output.output, Some(exec_output::Output::ExitCode(_)));
                    yield output;
                    if is_last {
                        break;
                    }
                }
                Some(from_node::Message::Error(error)) => Err(Status::failed_precondition(error))?,
                Some(from_node::Message::Hello(_) | from_node::Message::Log(_)) => {}
                None => {
                    Err(Status::unavailable("the connection to the task's node broke"))?;
                    break;
                }
            }
        }
    }
}

struct CancelOnDrop(Attached);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        cancel(&self.0);
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
