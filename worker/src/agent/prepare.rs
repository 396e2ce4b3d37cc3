//! Gets everything that a container needs before it starts: image, root, volumes, network namespace, files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_model::{
    TaskId,
    network::NodeNetwork,
    resolver,
    service::{ContainerSpec, HealthConfig, Mount, MountKind},
    task::Task,
};
pub(crate) use orch_proto::wire::AttachTaskRequest;
use orch_proto::{conv::ToProto, wire::RegistryAuth};
use orch_template::placeholders;
use prost::Message as _;

use super::{
    Host, describe,
    executor::container_id,
    files::{self, FilesError},
    logging::{self, LoggingError},
    waiting::{Stage, Steps},
};
use crate::{
    image::{
        ImageError, Sources,
        claims::Claim,
        config::{Healthcheck, ImageConfig},
        rootfs::{Rootfs, RootfsError},
        store::StoreError,
    },
    netd_client::NetdError,
    runtime::{BindMount, ImageDefaults, UserNamespace},
    users::{self, Remap, RemapError},
    volume::{
        VolumeError, Wanted,
        propagation::{self, PropagationError},
    },
};

/// Length of the default hostname: a short container id.
const HOSTNAME_LEN: usize = 12;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// In Docker's words.
    #[error("invalid mount config for type \"bind\": bind source path does not exist: {0}")]
    NoBindSource(String),
    #[error("invalid mount config for type \"bind\": {0}")]
    Propagation(#[from] PropagationError),
    #[error("read the list of mounts")]
    Mountinfo(#[source] io::Error),
    #[error("invalid mount config for type \"volume\": volume driver {0:?} is not known, only \"local\" is")]
    VolumeDriver(String),
    /// In Docker's words.
    #[error("range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")]
    Cpus { cpus: u64 },
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Network(#[from] NetdError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("read the image")]
    Store(#[from] StoreError),
    #[error("delete {path:?}")]
    Delete {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Remap(#[from] RemapError),
    #[error("remap users at {path:?}")]
    Users {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a host with host-gateway: this node does not know its own address yet; it is told when it joins")]
    NoGateway,
    #[error("preparing was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// All that starting the container needs.
pub(crate) struct Prepared {
    pub image_digest: String,
    /// Until the container is on record with its image.
    pub _claim: Claim,
    pub rootfs: PathBuf,
    /// `None`: without one of netd's.
    pub netns: Option<PathBuf>,
    /// Its address on its first network; empty when it has none.
    pub address: String,
    pub defaults: ImageDefaults,
    pub binds: Vec<BindMount>,
    pub users: Option<UserNamespace>,
}

impl Prepared {
    /// The command line, as `orch ps` shows it.
    pub(crate) fn command(&self, task: &Task) -> Vec<String> {
        command_line(&task.spec.container, &self.defaults.entrypoint, &self.defaults.cmd)
    }
}

/// The service's command and arguments over the image's.
pub(crate) fn command_line(spec: &ContainerSpec, entrypoint: &[String], cmd: &[String]) -> Vec<String> {
    let (first, args) = spec.invocation(entrypoint, cmd);
    first.iter().chain(args).cloned().collect()
}

/// What a container stands on.
pub(crate) struct Ground {
    /// What an earlier run wrote stays.
    pub keep_root: bool,
    /// How netd attaches it; `None`: not at all.
    pub attach: Option<AttachTaskRequest>,
    /// Whose numbers it has on the node; `None`: the node's own.
    pub remap: Option<Remap>,
    /// Whose network it shares, and with it these files; `None`: it has its own.
    pub files_of: Option<TaskId>,
}

/// `folders` is held whenever the container's folders change.
pub(crate) async fn prepare(
    host: &Arc<Host>,
    task: &Arc<Task>,
    folders: Arc<tokio::sync::Mutex<()>>,
    steps: &Steps,
) -> Result<Prepared, PrepareError> {
    if host.remap.is_some() && !has_namespace(task) {
        return Err(RemapError::Shared("network", "let its tasks run on nodes without userns-remap").into());
    }
    let attach = has_namespace(task).then(|| attach_request(task));
    let ground = Ground { keep_root: false, attach, remap: host.remap, files_of: None };
    prepare_on(host, task, folders, ground, steps).await
}

pub(crate) async fn prepare_on(
    host: &Arc<Host>,
    task: &Arc<Task>,
    folders: Arc<tokio::sync::Mutex<()>>,
    ground: Ground,
    steps: &Steps,
) -> Result<Prepared, PrepareError> {
    let spec = &task.spec.container;
    let mounts = spec.mounts.clone();
    // A folder of a server that is away holds up whoever looks.
    tokio::task::spawn_blocking(move || check_mounts(&mounts)).await??;
    if task.spec.limits.nano_cpus > 0 {
        check_cpus(task.spec.limits.nano_cpus, describe::cpus())?;
    }
    logging::check(task.spec.log_driver.as_ref())?;
    let source = host.items.image_source(&task.id);
    let login = login_of(host, spec);
    let wanted = spec.image_digest.as_deref();
    steps.at(Stage::Image);
    let from = Sources { holders: source.as_ref(), login: login.as_ref() };
    let (image, claim) = host.images.ensure(&spec.image, wanted, from, &steps.progress).await?;
    steps.at(Stage::Ground);
    let (config, layers) = host.images.parts(&image)?;

    if ground.remap.is_some() && spec.privileged {
        return Err(RemapError::Privileged("leave --privileged out").into());
    }
    let (keep_root, remap) = (ground.keep_root, ground.remap);
    if remap.is_some() && ground.attach.is_some() {
        host.netd.clear(&task.id).await?;
    }
    let users = make_users(host, task, remap, ground.attach.is_some()).await?;
    let attach = async {
        match ground.attach {
            Some(request) => host.netd.attach(&task.id, request).await.map(Some),
            None => Ok(None),
        }
    };
    let turn = folders.clone().lock_owned().await;
    let (for_folders, for_task, image_config) = (host.clone(), task.clone(), config.clone());
    let root = tokio::task::spawn_blocking(move || {
        // Moved in here: whoever gives up waiting does not end this work.
        let _turn = turn;
        make_root(&for_folders, &for_task, &layers, &image_config, keep_root, remap)
    });
    let (attached, root) = tokio::join!(attach, root);
    let (rootfs, mut binds) = root??;
    let attached = attached?;
    let hostname = hostname(task);
    let extra = hosts_here(&spec.hosts, host.data_addr.get().copied()).ok_or(PrepareError::NoGateway)?;
    // Without a network of its own it has the node's, as the node's programs see it.
    let own = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let dns = &spec.dns;
    let (netns, address, resolv_conf, hosts) = match attached {
        Some(attached) => {
            let hosts = files::hosts_file(&hostname, &attached.primary_address, &extra);
            (Some(attached.netns_path.into()), attached.primary_address, attached.resolv_conf, hosts)
        }
        None => {
            let hosts = files::hosts_file_of_node(&own("/etc/hosts"), &extra);
            (None, String::new(), files::resolv_conf_of_node(own("/etc/resolv.conf"), dns), hosts)
        }
    };
    let network_files = match &ground.files_of {
        Some(other) => files::network_files_in(&network_files_dir(host, other)),
        None => files::write_network_files(&network_files_dir(host, &task.id), &hostname, &resolv_conf, hosts)?,
    };
    if let Some(remap) = remap {
        for path in network_files.iter().map(|bind| &bind.source) {
            remap.own(path).map_err(|source| PrepareError::Users { path: path.clone(), source })?;
        }
    }
    binds.extend(network_files);
    let defaults = defaults(config);
    Ok(Prepared { image_digest: image.digest, _claim: claim, rootfs, netns, address, defaults, binds, users })
}

/// Lines of /etc/hosts with the node's address where they ask for it; `None`: it is not known.
fn hosts_here(lines: &[String], node: Option<IpAddr>) -> Option<Vec<String>> {
    let line = |line: &String| match resolver::is_of_node(line) {
        true => Some(line.replacen(resolver::HOST_GATEWAY, &node?.to_string(), 1)),
        false => Some(line.clone()),
    };
    lines.iter().map(line).collect()
}

/// The namespace of the container's users, with one for its network, which netd finds there.
async fn make_users(
    host: &Arc<Host>,
    task: &Task,
    remap: Option<Remap>,
    network: bool,
) -> Result<Option<UserNamespace>, PrepareError> {
    let Some(remap) = remap else { return Ok(None) };
    let path = users_path(host, &task.id);
    let network = network.then(|| host.paths.netns(&task.id));
    let for_making = path.clone();
    let made = tokio::task::spawn_blocking(move || users::make(remap, &for_making, network.as_deref())).await?;
    made.map_err(|source| PrepareError::Users { path: path.clone(), source })?;
    Ok(Some(UserNamespace { path, uid: remap.uid, gid: remap.gid }))
}

/// Where namespaces of users are pinned.
pub(crate) fn users_dir(host: &Host) -> PathBuf {
    host.paths.run.join("users")
}

/// Where containers' /etc/hosts, /etc/hostname and /etc/resolv.conf are: in memory, as they are written anew for each start.
pub(crate) fn network_files(host: &Host) -> PathBuf {
    host.paths.run.join("files")
}

pub(crate) fn network_files_dir(host: &Host, task: &TaskId) -> PathBuf {
    network_files(host).join(task.as_str())
}

fn users_path(host: &Host, task: &TaskId) -> PathBuf {
    users_dir(host).join(task.as_str())
}

/// The login that the service came with. One that cannot be read is as none: the registry will say so.
fn login_of(host: &Host, spec: &ContainerSpec) -> Option<RegistryAuth> {
    let secret = host.items.secret(spec.registry_auth.as_ref()?)?;
    RegistryAuth::decode(secret.data.as_slice()).ok()
}

/// The request that attaches a task, the same after every restart.
pub(crate) fn attach_request(task: &Task) -> AttachTaskRequest {
    AttachTaskRequest {
        task_id: task.id.to_string(),
        service_id: task.service.to_string(),
        hostname: hostname(task),
        attachments: task.networks.to_proto(),
        host_ports: task.host_ports.to_proto(),
        dns: Some(task.spec.container.dns.to_proto()),
        no_way_out: false,
    }
}

/// Gives back what [`prepare`] took, except the log and the record. Goes on after a failure.
pub(crate) fn release(host: &Host, task: &TaskId) -> Result<(), PrepareError> {
    let users = remove_users(host, task);
    let unmounted = Rootfs::inside(&host.store.container_dir(task)).delete();
    let secrets = files::remove_secret_files(&secrets_dir(host, task));
    let volumes = host.volumes.release(task);
    let files = delete(&network_files_dir(host, task));
    users?;
    unmounted?;
    secrets?;
    volumes?;
    files
}

/// Gives back what a one-off container that has ended does not need; what it wrote stays. Goes on after a failure.
pub(crate) fn release_local(host: &Host, task: &TaskId) -> Result<(), PrepareError> {
    let users = remove_users(host, task);
    let files = delete(&network_files_dir(host, task));
    let unmounted = Rootfs::inside(&host.store.container_dir(task)).unmount();
    let volumes = host.volumes.release(task);
    users?;
    files?;
    unmounted?;
    Ok(volumes?)
}

/// Deletes all of a one-off container but its record; its anonymous volumes, unless others use them, when they are to go
/// too.
pub(crate) fn delete_local(
    host: &Host,
    task: &TaskId,
    volumes: bool,
    in_use: &BTreeSet<String>,
) -> Result<(), PrepareError> {
    let dir = host.store.container_dir(task);
    Rootfs::inside(&dir).delete()?;
    delete(&network_files_dir(host, task))?;
    host.volumes.release(task)?;
    if volumes {
        host.volumes.remove_of_task(task, in_use)?;
    }
    delete(&dir)
}

/// Deletes what is left of a task, its log included; its anonymous volumes unless others use them.
pub(crate) fn forget(host: &Host, task: &TaskId, in_use: &BTreeSet<String>) -> Result<(), PrepareError> {
    let released = host.volumes.release(task);
    host.volumes.remove_of_task(task, in_use)?;
    delete(&host.store.container_dir(task))?;
    Ok(released?)
}

fn remove_users(host: &Host, task: &TaskId) -> Result<(), PrepareError> {
    let path = users_path(host, task);
    users::remove(&path).map_err(|source| PrepareError::Users { path, source })
}

fn delete(dir: &Path) -> Result<(), PrepareError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PrepareError::Delete { path: dir.to_owned(), source: e }),
        _ => Ok(()),
    }
}

/// Whether netd makes its namespace.
pub(super) fn has_namespace(task: &Task) -> bool {
    task.spec.node_network != Some(NodeNetwork::Host)
}

/// In the node's network it has the node's name, unless it is given one.
pub(crate) fn hostname(task: &Task) -> String {
    match task.spec.container.hostname.as_str() {
        "" if !has_namespace(task) => host_name(),
        "" => container_id(task)[..HOSTNAME_LEN].to_owned(),
        given => given.to_owned(),
    }
}

/// The same of a task as managers have it: its placeholders are not filled in.
pub(crate) fn hostname_here(host: &Host, task: &Task) -> String {
    match placeholders::fill(&task.spec.container, &host.values(task)) {
        Ok(Some(filled)) if !filled.hostname.is_empty() => filled.hostname,
        _ => hostname(task),
    }
}

/// What the node's kernel calls it.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

fn secrets_dir(host: &Host, task: &TaskId) -> PathBuf {
    host.paths.run.join("secrets").join(task.as_str())
}

fn check_mounts(mounts: &[Mount]) -> Result<(), PrepareError> {
    for mount in mounts {
        match mount.kind {
            MountKind::Bind if !Path::new(&mount.source).exists() => {
                return Err(PrepareError::NoBindSource(mount.source.clone()));
            }
            MountKind::Volume => {
                if let Some(driver) = &mount.volume_driver
                    && !matches!(driver.name.as_str(), "" | "local")
                {
                    return Err(PrepareError::VolumeDriver(driver.name.clone()));
                }
            }
            MountKind::Bind if propagation::needs_more(&mount.propagation) => {
                let source = Path::new(&mount.source).canonicalize();
                let source = source.map_err(|_| PrepareError::NoBindSource(mount.source.clone()))?;
                let mountinfo = fs::read("/proc/self/mountinfo").map_err(PrepareError::Mountinfo)?;
                propagation::check(&mountinfo, &source, &mount.propagation)?;
            }
            MountKind::Bind | MountKind::Tmpfs => {}
        }
    }
    Ok(())
}

/// A limit that this node could never reach is a mistake, for Docker too.
fn check_cpus(limit_nano_cpus: u64, cpus: u64) -> Result<(), PrepareError> {
    let is_too_much = limit_nano_cpus > cpus.saturating_mul(describe::NANOS_PER_CPU);
    if is_too_much { Err(PrepareError::Cpus { cpus }) } else { Ok(()) }
}

fn make_root(
    host: &Host,
    task: &Task,
    layers: &[PathBuf],
    image: &ImageConfig,
    keep: bool,
    remap: Option<Remap>,
) -> Result<(PathBuf, Vec<BindMount>), PrepareError> {
    let rootfs = Rootfs::inside(&host.store.container_dir(&task.id));
    if keep {
        rootfs.mount_again(layers, remap)?;
    } else {
        rootfs.mount(layers, remap)?;
    }
    let mut binds = volumes(host, task, &rootfs.root, image)?;
    binds.extend(files::write_secret_files(
        &secrets_dir(host, &task.id),
        &task.spec.container,
        &host.items,
        &host.values(task),
    )?);
    if let Some(remap) = remap {
        let dir = secrets_dir(host, &task.id);
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| PrepareError::Users { path, source }
        };
        if dir.exists() {
            remap.own(&dir).map_err(failed(&dir))?;
        }
        for file in binds.iter().map(|bind| &bind.source).filter(|path| path.starts_with(&dir)) {
            remap.shift(file).map_err(failed(file))?;
        }
    }
    Ok((rootfs.root, binds))
}

fn volumes(host: &Host, task: &Task, root: &Path, image: &ImageConfig) -> Result<Vec<BindMount>, PrepareError> {
    let spec = &task.spec.container;
    let now = SystemTime::now();
    let none = BTreeMap::new();
    let mut binds = Vec::new();
    for mount in spec.mounts.iter().filter(|mount| mount.kind == MountKind::Volume) {
        let options = mount.volume_driver.as_ref().map_or(&none, |driver| &driver.options);
        let labels = &mount.volume_labels;
        let wanted = match mount.source.as_str() {
            "" => Wanted::Anonymous { task: &task.id, target: &mount.target, labels, options },
            name => Wanted::Named { name, labels, options },
        };
        let fill_from = (!mount.no_copy).then_some((root, mount.target.as_str()));
        let source = match mount.volume_subpath.as_str() {
            "" => host.volumes.prepare(wanted, &task.id, fill_from, now)?,
            inside => host.volumes.prepare_inside(wanted, inside, &task.id, fill_from, now)?,
        };
        let (target, read_only) = (mount.target.clone(), mount.read_only);
        binds.push(BindMount { source, target, read_only, propagation: String::new() });
    }
    for target in undeclared(spec, image) {
        let wanted = Wanted::Anonymous { task: &task.id, target, labels: &none, options: &none };
        let source = host.volumes.prepare(wanted, &task.id, Some((root, target)), now)?;
        binds.push(BindMount { source, target: target.to_owned(), read_only: false, propagation: String::new() });
    }
    Ok(binds)
}

/// Volumes that the image asks for and the service mounts nothing on.
fn undeclared<'a>(spec: &ContainerSpec, image: &'a ImageConfig) -> impl Iterator<Item = &'a str> {
    let clean = |path: &str| path.trim_end_matches('/').to_owned();
    let mounted: Vec<String> = spec.mounts.iter().map(|mount| clean(&mount.target)).collect();
    image.config.volumes.keys().map(String::as_str).filter(move |target| !mounted.contains(&clean(target)))
}

pub(crate) fn health_config(check: Healthcheck) -> HealthConfig {
    let length = |nanos: u64| (nanos > 0).then(|| Duration::from_nanos(nanos));
    HealthConfig {
        interval: length(check.interval),
        timeout: length(check.timeout),
        retries: check.retries,
        start_period: length(check.start_period),
        start_interval: length(check.start_interval),
        test: check.test,
    }
}

pub(crate) fn defaults(image: ImageConfig) -> ImageDefaults {
    let config = image.config;
    ImageDefaults {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: config.working_dir,
        user: config.user,
        health: config.healthcheck.map(health_config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_address_stands_where_it_is_asked_for() {
        let lines = ["host-gateway node a", "1.2.3.4 host-gateway"].map(str::to_owned);
        let here = hosts_here(&lines, Some([10, 0, 0, 7].into())).unwrap();
        assert_eq!(here, ["10.0.0.7 node a", "1.2.3.4 host-gateway"]);
        assert_eq!(hosts_here(&lines, None), None);
        assert_eq!(hosts_here(&lines[1..], None).unwrap(), lines[1..]);
    }
}
