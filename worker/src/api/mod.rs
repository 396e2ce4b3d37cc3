//! `WorkerLocal` on the worker's socket: this node's containers, images and volumes.

mod copy;
mod images;
mod live;
mod local;
mod tasks;

pub(crate) use images::forget as forget_image;

use std::{path::Path, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use orch_proto::{
    conv::ToProto,
    metrics::MetricsLayer,
    tls::role_word,
    transport::{TransportError, UnixIncoming, unix_incoming},
    wire::{
        self, AttachInput, ConnectContainerRequest, ContainerDetails, ContainerExit, ContainerList, ContainerReference,
        CreateContainerRequest, CreateContainerResponse, DisconnectContainerRequest, Empty, ExecInput, ExecOutput,
        FileChunk, ImageList, ImageReference, ImageReferences, ImportImageRequest, KillContainerRequest,
        LoadImagesResponse, LocalImage, LocalNetwork, LocalNetworkList, LogLine, LogsRequest, NetworkReference,
        PruneImagesRequest, PruneImagesResponse, PullImageRequest, PullProgress, RegistryAuth, RemoveContainerRequest,
        RemoveImageRequest, RemoveImageResponse, RenameContainerRequest, StopContainerRequest, TagImageRequest,
        TraceNameRequest, TraceResponse, Volume, VolumeList, VolumeReference, WorkerInfo,
        worker_local_server::{WorkerLocal, WorkerLocalServer},
    },
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    agent::{Agent, Host, cgroup_version},
    image::chain,
    local as local_containers,
    volume::VolumeError,
};

pub(crate) use tasks::{count, find as find_task, port_words};

/// Root and the socket's group.
const SOCKET_MODE: u32 = 0o660;
const MAX_MESSAGE_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("open the worker's socket")]
    Socket(#[from] TransportError),
    #[error("serve the worker's socket")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until the process ends.
pub(crate) async fn serve(socket: &Path, agent: Arc<Agent>) -> Result<(), ApiError> {
    Ok(serve_incoming(unix_incoming(socket, SOCKET_MODE)?, agent).await?)
}

async fn serve_incoming(incoming: UnixIncoming, agent: Arc<Agent>) -> Result<(), tonic::transport::Error> {
    let counted = Arc::clone(&agent);
    let service = WorkerLocalServer::new(Api { agent }).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .accept_http1(true)
        .layer(MetricsLayer::new(move || crate::metrics::page(&counted)))
        .add_service(service)
        .serve_with_incoming(incoming)
        .await
}

struct Api {
    agent: Arc<Agent>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Api {
    /// For what must not be left half done: it goes on when the caller has gone.
    async fn to_the_end<T, Work>(&self, work: impl FnOnce(Arc<Agent>) -> Work) -> Result<T, Status>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, Status>> + Send + 'static,
    {
        to_the_end(work(self.agent.clone())).await
    }

    /// The same on a thread of its own, for what waits for disks, servers, or for others that do.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Host) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let host = self.agent.host.clone();
        let ended = tokio::task::spawn_blocking(move || work(&host)).await;
        ended.unwrap_or_else(|error| Err(unfinished(&error)))
    }
}

fn unfinished(error: &tokio::task::JoinError) -> Status {
    Status::internal(format!("the worker did not finish this: {error}"))
}

/// See [`Api::to_the_end`].
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|error| Err(unfinished(&error)))
}

#[tonic::async_trait]
impl WorkerLocal for Api {
    type PullImageStream = BoxStream<'static, Result<PullProgress, Status>>;
    type LogsStream = BoxStream<'static, Result<LogLine, Status>>;
    type ExecStream = BoxStream<'static, Result<ExecOutput, Status>>;
    type SaveImagesStream = BoxStream<'static, Result<FileChunk, Status>>;
    type PushImageStream = BoxStream<'static, Result<PullProgress, Status>>;
    type CopyFromContainerStream = BoxStream<'static, Result<wire::CopyFromResponse, Status>>;
    type EventsStream = BoxStream<'static, Result<wire::ContainerEvent, Status>>;
    type AttachContainerStream = BoxStream<'static, Result<ExecOutput, Status>>;

    async fn list_containers(&self, _: Request<Empty>) -> Answer<ContainerList> {
        let of_tasks = self.agent.host.entries();
        let one_off = self.agent.locals.all();
        let one_off = one_off.iter().map(|one| local_containers::list_entry(&self.agent.host, one));
        let of_tasks = of_tasks.iter().map(|entry| tasks::container(&self.agent.host, entry));
        let mut containers: Vec<_> = of_tasks.chain(one_off).collect();
        live::name_volumes(&self.agent, &mut containers);
        Ok(Response::new(ContainerList { containers }))
    }

    async fn list_images(&self, _: Request<Empty>) -> Answer<ImageList> {
        Ok(Response::new(ImageList { images: images::list(&self.agent) }))
    }

    async fn import_image(&self, request: Request<Streaming<ImportImageRequest>>) -> Answer<LocalImage> {
        images::import(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<Self::PullImageStream> {
        images::pull(&self.agent, request.into_inner()).map(Response::new)
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        images::remove(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn inspect_image(&self, request: Request<ImageReference>) -> Answer<LocalImage> {
        images::inspect(&self.agent, &request.into_inner().reference).map(Response::new)
    }

    async fn list_volumes(&self, _: Request<Empty>) -> Answer<VolumeList> {
        let volumes = self.agent.host.volumes.list().map_err(|error| Status::internal(chain(&error)))?;
        let users = live::volume_users(&self.agent);
        Ok(Response::new(VolumeList {
            volumes: volumes.into_iter().map(|volume| wire_volume(volume, &users)).collect(),
        }))
    }

    async fn remove_volume(&self, request: Request<VolumeReference>) -> Answer<Empty> {
        let VolumeReference { name, force } = request.into_inner();
        if let Some(users) = live::volume_users(&self.agent).get(&name) {
            let users = users.iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(Status::failed_precondition(format!("remove {name}: volume is in use - [{users}]")));
        }
        let remove = move |host: &Host| match host.volumes.remove(&name) {
            Err(VolumeError::NotFound(_)) if force => Ok(()),
            Err(error @ VolumeError::NotFound(_)) => Err(Status::not_found(error.to_string())),
            Err(error @ VolumeError::Name(_)) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => Err(Status::internal(chain(&error))),
            Ok(()) => {
                host.events.of_volume("destroy", name);
                Ok(())
            }
        };
        self.aside(remove).await.map(done)
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        tasks::logs(&self.agent, request.into_inner()).map(Response::new)
    }

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Answer<Self::ExecStream> {
        tasks::exec(self.agent.clone(), request.into_inner()).await.map(|outputs| Response::new(outputs.boxed()))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        local::create(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(&self, request: Request<ContainerReference>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { local::start(&agent, &request.into_inner().reference).await })
            .await
            .map(done)
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { local::stop(&agent, request.into_inner()).await }).await.map(done)
    }

    async fn kill_container(&self, request: Request<KillContainerRequest>) -> Answer<Empty> {
        let KillContainerRequest { reference, signal } = request.into_inner();
        self.to_the_end(|agent| async move { local::kill(&agent, &reference, &signal).await }).await.map(done)
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<Empty> {
        let RemoveContainerRequest { reference, force, volumes } = request.into_inner();
        self.to_the_end(|agent| async move { local::remove(&agent, &reference, force, volumes).await }).await.map(done)
    }

    async fn rename_container(&self, request: Request<RenameContainerRequest>) -> Answer<Empty> {
        let RenameContainerRequest { reference, name } = request.into_inner();
        self.to_the_end(|agent| async move { local::rename(&agent, &reference, &name).await }).await.map(done)
    }

    async fn wait_container(&self, request: Request<ContainerReference>) -> Answer<ContainerExit> {
        local::wait(&self.agent, &request.into_inner().reference).await.map(Response::new)
    }

    async fn attach_container(&self, request: Request<Streaming<AttachInput>>) -> Answer<Self::AttachContainerStream> {
        let outputs = local::attach(self.agent.clone(), request.into_inner()).await?;
        Ok(Response::new(outputs.boxed()))
    }

    async fn inspect_container(&self, request: Request<ContainerReference>) -> Answer<ContainerDetails> {
        local::inspect(&self.agent, &request.into_inner().reference).await.map(Response::new)
    }

    async fn save_images(&self, request: Request<ImageReferences>) -> Answer<Self::SaveImagesStream> {
        images::save(&self.agent, &request.into_inner().references).map(Response::new)
    }

    async fn load_images(&self, request: Request<Streaming<FileChunk>>) -> Answer<LoadImagesResponse> {
        images::load(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn tag_image(&self, request: Request<TagImageRequest>) -> Answer<Empty> {
        let TagImageRequest { source, target } = request.into_inner();
        images::tag(&self.agent, &source, &target).await.map(done)
    }

    async fn push_image(&self, request: Request<PullImageRequest>) -> Answer<Self::PushImageStream> {
        images::push(&self.agent, request.into_inner()).map(Response::new)
    }

    async fn prune_images(&self, request: Request<PruneImagesRequest>) -> Answer<PruneImagesResponse> {
        images::prune(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn create_volume(&self, request: Request<Volume>) -> Answer<Volume> {
        let Volume { name, labels, options, driver, .. } = request.into_inner();
        if !matches!(driver.as_str(), "" | "local") {
            let said = format!("create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found");
            return Err(Status::not_found(said));
        }
        let (labels, options) = (labels.into_iter().collect(), options.into_iter().collect());
        let create = move |host: &Host| {
            let made = host.volumes.create(&name, &labels, &options, std::time::SystemTime::now());
            let volume = made.map_err(|error| match error {
                VolumeError::Name(_) | VolumeError::Option(_) | VolumeError::OptionMissing(_) => {
                    Status::invalid_argument(error.to_string())
                }
                VolumeError::Differs(_) => Status::already_exists(error.to_string()),
                error => Status::internal(chain(&error)),
            })?;
            host.events.of_volume("create", volume.name.clone());
            Ok(wire_volume(volume, &std::collections::BTreeMap::new()))
        };
        self.aside(create).await.map(Response::new)
    }

    async fn pause_container(&self, request: Request<ContainerReference>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { live::set_paused(&agent, &request.into_inner().reference, true).await })
            .await
            .map(done)
    }

    async fn unpause_container(&self, request: Request<ContainerReference>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { live::set_paused(&agent, &request.into_inner().reference, false).await })
            .await
            .map(done)
    }

    async fn update_container(&self, request: Request<wire::UpdateContainerRequest>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { live::update(&agent, request.into_inner()).await }).await.map(done)
    }

    async fn container_stats(&self, request: Request<wire::ContainerReferences>) -> Answer<wire::ContainerStatsList> {
        live::stats(&self.agent, &request.into_inner().references).map(Response::new)
    }

    async fn container_processes(&self, request: Request<ContainerReference>) -> Answer<wire::ProcessList> {
        live::processes(&self.agent, &request.into_inner().reference).map(Response::new)
    }

    async fn container_changes(&self, request: Request<ContainerReference>) -> Answer<wire::FileChangeList> {
        copy::changes(&self.agent, &request.into_inner().reference).await.map(Response::new)
    }

    async fn copy_from_container(
        &self,
        request: Request<wire::CopyFromRequest>,
    ) -> Answer<Self::CopyFromContainerStream> {
        Ok(Response::new(copy::copy_from(&self.agent, request.into_inner())))
    }

    async fn copy_to_container(&self, request: Request<Streaming<wire::CopyToRequest>>) -> Answer<Empty> {
        copy::copy_to(&self.agent, request.into_inner()).await.map(done)
    }

    async fn disk_usage(&self, _: Request<Empty>) -> Answer<wire::DiskUsageReport> {
        live::disk_usage(&self.agent).await.map(Response::new)
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Answer<Self::EventsStream> {
        Ok(Response::new(live::events(&self.agent, request.into_inner())))
    }

    async fn create_network(&self, request: Request<LocalNetwork>) -> Answer<LocalNetwork> {
        local::create_network(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn list_networks(&self, _: Request<Empty>) -> Answer<LocalNetworkList> {
        Ok(Response::new(local::list_networks(&self.agent).await))
    }

    async fn remove_network(&self, request: Request<NetworkReference>) -> Answer<Empty> {
        local::remove_network(&self.agent, &request.into_inner().reference).map(done)
    }

    async fn connect_container(&self, request: Request<ConnectContainerRequest>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { local::connect(&agent, request.into_inner()).await }).await.map(done)
    }

    async fn disconnect_container(&self, request: Request<DisconnectContainerRequest>) -> Answer<Empty> {
        self.to_the_end(|agent| async move { local::disconnect(&agent, request.into_inner()).await }).await.map(done)
    }

    async fn resolve_image(&self, request: Request<PullImageRequest>) -> Answer<ImageReference> {
        images::resolve(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn trace_name(&self, request: Request<TraceNameRequest>) -> Answer<TraceResponse> {
        local::trace(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn check_login(&self, request: Request<PullImageRequest>) -> Answer<RegistryAuth> {
        images::check_login(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn info(&self, _: Request<Empty>) -> Answer<WorkerInfo> {
        let description = self.agent.describe().map_err(|error| Status::failed_precondition(chain(&error)))?;
        let (running, stopped) = tasks::count(&self.agent.host);
        let trust = self.agent.trust();
        Ok(Response::new(WorkerInfo {
            containers_running: running,
            containers_stopped: stopped,
            images: self.agent.host.images.store.list().len() as u64,
            description: Some(description.to_proto()),
            cgroup_version: cgroup_version().to_owned(),
            manager: self.agent.session.get().map(|live| live.manager).unwrap_or_default(),
            node_role: self.agent.node_role().map(role_word).unwrap_or_default().to_owned(),
            root_cert_pem: trust.roots_pem,
            certificate_issuer: trust.issuer,
            security_options: security_options(self.agent.host.remap.is_some()),
        }))
    }
}

/// As `docker info` names them.
fn security_options(remapped: bool) -> Vec<String> {
    let all = [
        ("name=apparmor", crate::runtime::apparmor::is_on()),
        ("name=seccomp,profile=builtin", true),
        ("name=userns", remapped),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect()
}

fn wire_volume(
    volume: crate::volume::Volume,
    users: &std::collections::BTreeMap<String, std::collections::BTreeSet<String>>,
) -> Volume {
    Volume {
        users: users.get(&volume.name).into_iter().flatten().cloned().collect(),
        options: volume.options.into_iter().collect(),
        anonymous: volume.anonymous,
        name: volume.name,
        driver: "local".to_owned(),
        mountpoint: volume.mountpoint.display().to_string(),
        labels: volume.labels.into_iter().collect(),
        created_at_ms: volume.created_at_ms,
    }
}

fn done((): ()) -> Response<Empty> {
    Response::new(Empty {})
}

#[cfg(test)]
mod tests;
