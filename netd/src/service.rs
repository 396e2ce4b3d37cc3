//! The `Netd` service: turns requests into the engine's commands and its errors into gRPC's.

use orch_model::{ParseIdError, TaskId};
use orch_proto::wire::{
    AttachTaskRequest, AttachTaskResponse, DesiredNetworks, Empty, NetdStatus, SetDesiredResponse, SuspectNodes,
    TaskRequest, TraceRequest, TraceResponse, netd_server,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::{
    engine::{Command, EngineError},
    netlink,
    netns::NetNs,
    store::Store,
    trace,
};

/// Answers on the socket.
pub(crate) struct Netd {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) store: Store,
}

impl Netd {
    /// Takes a dead task's links down without waiting for the engine: until they are, its kernel answers new connections
    /// with resets, which clients see, while silence only makes them try again (and by then they go elsewhere).
    async fn cut_off(&self, id: &TaskId) {
        // The engine does it again and reports what fails; a task that is not here needs nothing.
        if let Ok(Some(ns)) = NetNs::open(&self.store.task_netns(id)) {
            let done = ns.run(netlink::cut_off).await;
            done.unwrap_or_else(|error| tracing::warn!(task = %id, %error, "cannot take a dead task's links down"));
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) -> Command,
    ) -> Result<Response<T>, Status> {
        let (send, receive) = oneshot::channel();
        let stopping = || Status::unavailable("the network daemon is stopping; try again");
        self.commands.send(command(send)).await.map_err(|_| stopping())?;
        receive.await.map_err(|_| stopping())?.map(Response::new).map_err(Status::from)
    }
}

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::Invalid(_) => Self::invalid_argument(text),
            EngineError::NobodyAsks(_) | EngineError::NotHere(_) => Self::not_found(text),
            EngineError::UnknownNetwork { .. } | EngineError::NoEncryption { .. } => Self::failed_precondition(text),
            EngineError::NoAddress => Self::resource_exhausted(text),
            EngineError::Io { .. } => Self::internal(text),
        }
    }
}

fn task_id(request: &TaskRequest) -> Result<TaskId, Status> {
    request.task_id.parse().map_err(|error: ParseIdError| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl netd_server::Netd for Netd {
    async fn set_desired(&self, request: Request<DesiredNetworks>) -> Result<Response<SetDesiredResponse>, Status> {
        self.ask(|done| Command::SetDesired(request.into_inner(), done)).await
    }

    async fn attach_task(&self, request: Request<AttachTaskRequest>) -> Result<Response<AttachTaskResponse>, Status> {
        self.ask(|done| Command::Attach(request.into_inner(), done)).await
    }

    async fn task_down(&self, request: Request<TaskRequest>) -> Result<Response<Empty>, Status> {
        let id = task_id(request.get_ref())?;
        self.cut_off(&id).await;
        self.ask(|done| Command::Down(id, done)).await
    }

    async fn detach_task(&self, request: Request<TaskRequest>) -> Result<Response<Empty>, Status> {
        let id = task_id(request.get_ref())?;
        self.ask(|done| Command::Detach(id, done)).await
    }

    async fn set_suspects(&self, request: Request<SuspectNodes>) -> Result<Response<Empty>, Status> {
        let parse = |id: String| id.parse().map_err(|error: ParseIdError| Status::invalid_argument(error.to_string()));
        let nodes = request.into_inner().node_ids.into_iter().map(parse).collect::<Result<_, _>>()?;
        self.ask(|done| Command::Suspects(nodes, done)).await
    }

    async fn trace(&self, request: Request<TraceRequest>) -> Result<Response<TraceResponse>, Status> {
        let TraceRequest { task_id, name, port } = request.into_inner();
        let parse = |id: String| id.parse().map_err(|error: ParseIdError| Status::invalid_argument(error.to_string()));
        let task = Some(task_id).filter(|id| !id.is_empty()).map(parse).transpose()?;
        let port = u16::try_from(port).map_err(|_| Status::invalid_argument(format!("{port} is no port")))?;
        // Tried here, so that nobody else waits for it.
        let traced = self.ask(|done| Command::Trace(task, name, done)).await?.into_inner();
        Ok(Response::new(trace::walk(traced, port).await))
    }

    async fn status(&self, _: Request<Empty>) -> Result<Response<NetdStatus>, Status> {
        self.ask(Command::Status).await
    }
}
