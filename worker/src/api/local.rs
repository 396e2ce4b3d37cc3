//! One-off containers for the command line: create, start, attach, stop, remove; inspect, stats and top of any.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use orch_proto::wire::{
    AttachInput, AttachStart, ConnectContainerRequest, ContainerDetails, ContainerExit, CreateContainerRequest,
    CreateContainerResponse, DisconnectContainerRequest, ExecOutput, LocalNetwork, LocalNetworkList,
    StopContainerRequest, TraceNameRequest, TraceRequest, TraceResponse, attach_input::Input, exec_output::Output,
};
use tokio::{io::AsyncWriteExt, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, metadata::MetadataValue};

use crate::{
    agent::{self, Agent},
    image::{ImageError, chain},
    local::{self, LocalError, Locals, NetworkError, One},
    netd_client::NetdError,
    runtime::{Attachment, Container},
};

const BUFFERED_MESSAGES: usize = 64;
/// In an error's metadata: what `orch run` ends with.
const EXIT_CODE_KEY: &str = "orch-exit-code";

pub(super) async fn create(agent: &Agent, request: CreateContainerRequest) -> Result<CreateContainerResponse, Status> {
    let one = agent.locals.create(request).await.map_err(|error| status(&error))?;
    Ok(CreateContainerResponse { container_id: one.container_id(), name: one.name(), warnings: Vec::new() })
}

pub(super) async fn start(agent: &Agent, reference: &str) -> Result<(), Status> {
    let one = find(agent, reference)?;
    agent.locals.start(&one, None).await.map(drop).map_err(|error| status(&error))
}

pub(super) async fn stop(agent: &Agent, request: StopContainerRequest) -> Result<(), Status> {
    let one = find(agent, &request.reference)?;
    let grace = request.grace_ms.map(Duration::from_millis);
    let done = match request.restart {
        true => agent.locals.restart(&one, &request.signal, grace).await,
        false => agent.locals.stop(&one, &request.signal, grace).await,
    };
    done.map_err(|error| status(&error))
}

pub(super) async fn kill(agent: &Agent, reference: &str, signal: &str) -> Result<(), Status> {
    let one = find(agent, reference)?;
    agent.locals.kill(&one, signal).await.map_err(|error| status(&error))
}

pub(super) async fn remove(agent: &Agent, reference: &str, force: bool, volumes: bool) -> Result<(), Status> {
    let one = find(agent, reference)?;
    agent.locals.remove(&one, force, volumes).await.map_err(|error| status(&error))
}

pub(super) async fn rename(agent: &Agent, reference: &str, name: &str) -> Result<(), Status> {
    let one = find(agent, reference)?;
    agent.locals.rename(&one, name).await.map_err(|error| status(&error))
}

pub(super) async fn create_network(agent: &Agent, network: LocalNetwork) -> Result<LocalNetwork, Status> {
    agent.locals.create_network(network).await.map_err(|error| status(&error))
}

pub(super) async fn list_networks(agent: &Agent) -> LocalNetworkList {
    LocalNetworkList { networks: agent.locals.list_networks().await }
}

pub(super) fn remove_network(agent: &Agent, reference: &str) -> Result<(), Status> {
    agent.locals.remove_network(reference).map_err(|error| status(&error))
}

pub(super) async fn connect(agent: &Agent, request: ConnectContainerRequest) -> Result<(), Status> {
    let one = find(agent, &request.container)?;
    let network = request.network.ok_or_else(|| Status::invalid_argument("the network is not named"))?;
    agent.locals.connect(&one, network).await.map_err(|error| status(&error))
}

/// From a task's container or a one-off one; from any, when none is named.
pub(super) async fn trace(agent: &Agent, request: TraceNameRequest) -> Result<TraceResponse, Status> {
    let TraceNameRequest { container, name, port } = request;
    let task_id = match (container.as_str(), agent.locals.find(&container)) {
        ("", _) => String::new(),
        (_, Ok(one)) => one.id.to_string(),
        (_, Err(_)) => super::tasks::find(&agent.host, &container)?.to_string(),
    };
    let traced = agent.host.netd.trace(TraceRequest { task_id, name, port }).await;
    traced.map_err(|error| match error {
        NetdError::Refused(status) => *status,
        other => Status::unavailable(chain(&other)),
    })
}

pub(super) async fn disconnect(agent: &Agent, request: DisconnectContainerRequest) -> Result<(), Status> {
    let one = match find(agent, &request.container) {
        Err(status) if request.force && status.code() == Code::NotFound => return Ok(()),
        found => found?,
    };
    match agent.locals.disconnect(&one, &request.network).await {
        Err(LocalError::NotConnected { .. }) if request.force => Ok(()),
        done => done.map_err(|error| status(&error)),
    }
}

pub(super) async fn wait(agent: &Agent, reference: &str) -> Result<ContainerExit, Status> {
    let one = find(agent, reference)?;
    let ended = agent.locals.wait(&one).await;
    Ok(ContainerExit { exit_code: ended.code, error: ended.error })
}

pub(super) async fn inspect(agent: &Agent, reference: &str) -> Result<ContainerDetails, Status> {
    match agent.locals.find(reference) {
        Ok(one) => {
            let log = agent.locals.log_files(&one).path.display().to_string();
            Ok(local::details(&agent.host, &one, log).await)
        }
        Err(LocalError::NotFound(_)) => super::tasks::details(&agent.host, reference).await,
        Err(error) => Err(status(&error)),
    }
}

/// Attaches, starts when asked to, and copies streams until the container ends or the caller goes.
pub(super) async fn attach(
    agent: Arc<Agent>,
    mut inputs: Streaming<AttachInput>,
) -> Result<impl Stream<Item = Result<ExecOutput, Status>>, Status> {
    let Some(Input::Start(start)) = inputs.message().await?.and_then(|first| first.input) else {
        return Err(Status::invalid_argument("the first message must say what to attach to"));
    };
    let one = find(&agent, &start.reference)?;
    let attachment = attach_to(&agent, &one, &start).await?;
    let container = one.container();
    if let (Some(container), Some(size)) = (&container, &start.size) {
        resize(container, size).await;
    }
    let (outputs, receiver) = mpsc::channel(BUFFERED_MESSAGES);
    tokio::spawn(async move {
        let mut feed = tokio::spawn(feed(inputs, attachment.stdin, container, agent.locals.clone(), one.clone()));
        let out = agent::pass_on(attachment.stdout, outputs.clone(), Output::Stdout);
        let err = agent::pass_on(attachment.stderr, outputs.clone(), Output::Stderr);
        tokio::select! {
            ((), ()) = async { tokio::join!(out, err) } => {
                let ended = agent.locals.wait(&one).await;
                let _ = outputs.send(Output::ExitCode(ended.code)).await;
            }
            // Detached: gone, or all that was typed before has been passed on.
            () = outputs.closed() => {}
            _ = &mut feed => {}
        }
        feed.abort();
    });
    Ok(ReceiverStream::new(receiver).map(|output| Ok(ExecOutput { output: Some(output) })))
}

async fn attach_to(agent: &Agent, one: &Arc<One>, start: &AttachStart) -> Result<Attachment, Status> {
    if start.run {
        let (locals, one, stdin) = (agent.locals.clone(), one.clone(), start.stdin);
        let work = async move { locals.start(&one, Some(stdin)).await.map_err(|error| status(&error)) };
        let started = super::to_the_end(work).await?;
        if let Some(attachment) = started {
            return Ok(attachment);
        }
    }
    let not_running = || {
        Status::failed_precondition(
            "You cannot attach to a stopped container, start it first: `orch start`, or `orch start -a`",
        )
    };
    let container = one.container().ok_or_else(not_running)?;
    if one.now().record.paused {
        return Err(Status::failed_precondition("You cannot attach to a paused container, unpause it first"));
    }
    container.attach(start.stdin).await.map_err(|error| Status::failed_precondition(chain(&error)))
}

async fn feed(
    mut inputs: Streaming<AttachInput>,
    mut stdin: Option<crate::runtime::ExecInput>,
    container: Option<Container>,
    locals: Arc<Locals>,
    one: Arc<One>,
) {
    while let Ok(Some(message)) = inputs.message().await {
        match message.input {
            Some(Input::Stdin(data)) => {
                let Some(to) = &mut stdin else { continue };
                if to.write_all(&data).await.is_err() {
                    stdin = None;
                }
            }
            Some(Input::StdinClosed(_)) => stdin = None,
            Some(Input::Resize(size)) => {
                if let Some(container) = &container {
                    resize(container, &size).await;
                }
            }
            Some(Input::Signal(number)) => {
                // As if the user had typed `orch kill`.
                if let Err(error) = locals.kill(&one, &number.to_string()).await {
                    tracing::debug!(error = chain(&error), "a signal was not delivered");
                }
            }
            Some(Input::Start(_)) | None => {}
        }
    }
}

async fn resize(container: &Container, size: &orch_proto::wire::TerminalSize) {
    let (rows, columns) = agent::terminal_size(size);
    // The container may have ended.
    let _ = container.resize(rows, columns).await;
}

/// A one-off container; others are a service's, and its to start and stop.
pub(super) fn find(agent: &Agent, reference: &str) -> Result<Arc<One>, Status> {
    match agent.locals.find(reference) {
        Err(LocalError::NotFound(_)) if super::tasks::find(&agent.host, reference).is_ok() => {
            Err(status(&LocalError::OfService(reference.to_owned())))
        }
        found => found.map_err(|error| status(&error)),
    }
}

pub(super) fn status(error: &LocalError) -> Status {
    let code = match error {
        LocalError::NotFound(_) | LocalError::NoImage(_) | LocalError::Image(ImageError::NotFound { .. }) => {
            Code::NotFound
        }
        LocalError::Network(_) | LocalError::UserNetwork(NetworkError::NotFound(_)) => Code::NotFound,
        LocalError::NameTaken { .. } | LocalError::UserNetwork(NetworkError::Exists(_)) => Code::AlreadyExists,
        LocalError::Managers(status) => status.code(),
        LocalError::NoManager => Code::Unavailable,
        LocalError::Ambiguous(_)
        | LocalError::Name(_)
        | LocalError::Signal(_)
        | LocalError::Alias(_)
        | LocalError::Twice(_)
        | LocalError::Predefined(_)
        | LocalError::UserNetwork(
            NetworkError::Name(_)
            | NetworkError::Predefined(_)
            | NetworkError::Driver(_)
            | NetworkError::Option(_)
            | NetworkError::Subnet { .. }
            | NetworkError::Overlap { .. }
            | NetworkError::Outside(_)
            | NetworkError::NoUserSubnet,
        )
        | LocalError::PortsOn(_)
        | LocalError::NoAddress(_)
        | LocalError::SctpOfV6(_)
        | LocalError::Invalid(_)
        | LocalError::Policy(_)
        | LocalError::Reference(_) => Code::InvalidArgument,
        LocalError::HostMode
        | LocalError::NoneMode
        | LocalError::Connected { .. }
        | LocalError::NotConnected { .. }
        | LocalError::UserNetwork(
            NetworkError::PredefinedRemoval(_)
            | NetworkError::InUse { .. }
            | NetworkError::NoSubnet
            | NetworkError::NoV6
            | NetworkError::TooMany
            | NetworkError::Full { .. }
            | NetworkError::AddressTaken(_),
        )
        | LocalError::OfService(_)
        | LocalError::NotRunning(_)
        | LocalError::JoinsStopped(_)
        | LocalError::JoinsRestarting(_)
        | LocalError::Running(_)
        | LocalError::Port { .. }
        | LocalError::NoPort(_)
        | LocalError::Prepare(_)
        | LocalError::Runtime(_) => Code::FailedPrecondition,
        LocalError::Image(error) => super::images::pull_status(error).code(),
        LocalError::Store(_) | LocalError::UserNetwork(NetworkError::Store(_)) => Code::Internal,
    };
    let mut status = Status::new(code, chain(error));
    if let Ok(value) = MetadataValue::try_from(error.exit_code().to_string()) {
        status.metadata_mut().insert(EXIT_CODE_KEY, value);
    }
    status
}
