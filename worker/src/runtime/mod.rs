//! Containers of this node, as the worker sees them: make, start, signal, watch, enter, find again, delete.
//!
//! The work is done by one shim process per container ([`crate::shim`]), which outlives the worker; this module writes
//! the shim's configuration, starts it, and talks to its socket. It must never call libcontainer itself: that only
//! works in a process with one thread.
//!
//! ```text
//! let runtime = Runtime::new(&paths, "/orch.slice")?;
//! let container = runtime.create(&plan).await?;         // namespaces, cgroup, rootfs; the program is not running yet
//! container.start().await?;                             // Err: exec: "nosuch": executable file not found in $PATH
//! let exit = container.wait().await?;
//! container.delete().await?;                            // idempotent; then the caller unmounts the rootfs
//! ```

pub(crate) mod apparmor;
mod caps;
pub(crate) mod cgroup;
mod client;
mod container;
mod device_filter;
mod error;
mod exec;
mod explain;
mod health;
mod init;
mod logs;
mod loopback;
mod nursery;
mod plan;
mod proc;
mod rootfs;
pub(crate) mod seccomp;
mod spec;
mod usage;
mod user;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream};
use orch_model::{
    TaskId,
    service::{ContainerSpec, MountKind},
};
use orch_proto::paths::Paths;

pub use container::Container;
pub use error::RuntimeError;
pub use exec::{Attachment, Exec, ExecExit, ExecInput, ExecOutput, Terminal};
pub use health::{HealthCheck, HealthState, HealthWatch};
pub use logs::{LogLine, LogOptions, LogSource, LogStream};
pub use plan::{
    BindMount, ContainerPlan, DEFAULT_LOG_FILES, DEFAULT_LOG_SIZE_BYTES, ExecRequest, Exit, HostOptions, ImageDefaults,
    LogFiles, MoreLimits, Sharing, UserNamespace,
};
pub use usage::{NewLimits, ProcessInfo, Usage};

use crate::{
    contents::{self, is_mounted, mount_point},
    shim::protocol::{Files, HealthPlan, ShimConfig, VERSION},
};
use caps::CapSet;
use cgroup::Layout;
use container::{Found, blocking, io_error};
use nursery::Nursery;
use seccomp::Filters;
use spec::{Device, Facts, SpecError};

/// The cgroup of the shims, under the node's; containers are beside it.
const SHIM_CGROUP: &str = "shims";

/// Containers of an earlier worker that are asked at the same time how they are.
const LOOKS_AT_ONCE: usize = 128;

/// Devices that every container has, made by libcontainer, which fails when it finds them there.
const ALWAYS_THERE: [&str; 8] =
    ["/dev/console", "/dev/full", "/dev/null", "/dev/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"];

/// Makes and finds containers. Clones share everything.
#[derive(Debug, Clone)]
pub struct Runtime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shims_dir: PathBuf,
    /// Where containers have mounts of their own; their makers do not see each other's if these folders are mounts too.
    mounts_dirs: [PathBuf; 2],
    /// Secrets and configs for containers.
    given_dir: PathBuf,
    filters: Filters,
    cgroup_parent: String,
    layout: Layout,
    nursery: Nursery,
    /// The first process of containers that want one.
    init: PathBuf,
    /// On version 2 of cgroups: whether the kernel takes programs that do it.
    filters_devices: bool,
}

/// A container that was there before this worker.
#[derive(Debug)]
pub enum Recovered {
    /// Made, but never started.
    Created(Container),
    Running(Container),
    /// Ended while nobody looked; delete it when that is reported.
    Ended(Container, Exit),
}

impl Runtime {
    /// Containers' cgroups go under `cgroup_parent`, which is made when it is missing.
    pub fn new(paths: &Paths, cgroup_parent: &str) -> Result<Self, RuntimeError> {
        // The running program, even when its file has been replaced by an upgrade.
        Self::with_shim_command(paths, cgroup_parent, "/proc/self/exe".into(), vec!["shim".into()])
    }

    /// With another program than this one to fork shims: `program args…`.
    pub fn with_shim_command(
        paths: &Paths,
        cgroup_parent: &str,
        program: PathBuf,
        args: Vec<OsString>,
    ) -> Result<Self, RuntimeError> {
        let layout = Layout::detect().map_err(|err| io_error("cannot read", "/proc/self/mountinfo", err))?;
        let shims_dir = paths.shims_dir();
        let mounts_dirs = [paths.containers_dir(), paths.netns_dir()];
        make_private(&shims_dir)?;
        let cgroup_parent = format!("/{}", cgroup_parent.trim_matches('/'));
        let filters = Filters::in_dir(paths.run.join("seccomp"));
        let nursery = Nursery::new(program, args);
        let filters_devices = layout.is_v2() && device_filter::is_available();
        let worker_dir = paths.worker_dir();
        let init = fs::create_dir_all(&worker_dir).and_then(|()| init::install(&worker_dir));
        let init =
            init.map_err(|err| io_error("cannot write the init process of containers into", &worker_dir, err))?;
        Ok(Self(Arc::new(Inner {
            shims_dir,
            mounts_dirs,
            given_dir: paths.run.join("secrets"),
            filters,
            cgroup_parent,
            layout,
            nursery,
            init,
            filters_devices,
        })))
    }

    /// Makes the container; its program waits for [`Container::start`]. A missing program is an error here already.
    pub async fn create(&self, plan: &ContainerPlan<'_>) -> Result<Container, RuntimeError> {
        let inner = Arc::clone(&self.0);
        let folder = inner.shims_dir.join(plan.task_id.as_str());
        let (asked, privileged) = (plan.options.apparmor.clone(), plan.spec.container.privileged);
        let profile = blocking(move || Ok(apparmor::ready(asked.as_deref(), privileged)?)).await?;
        let prepared = inner.prepare(plan, profile)?;
        let task_id = plan.task_id.clone();
        let container = Container::new(task_id, folder.clone(), prepared.config.clone(), inner.layout.clone());
        blocking(move || inner.launch(&folder, &prepared)).await?;
        match container.look().await? {
            Found::Created | Found::Running => match self.finish(plan, &container).await {
                Ok(()) => Ok(container),
                Err(error) => {
                    container.delete().await?;
                    Err(error)
                }
            },
            Found::Ended(exit) => {
                container.delete().await?;
                let message = exit.error.unwrap_or_else(|| "the container could not be made".to_owned());
                let message = explain_sysctls(message, &plan.spec.container.sysctls, |path| path.exists());
                let message = self.0.explain(message, plan);
                Err(RuntimeError::Start { message, code: Some(exit.code) })
            }
        }
    }

    /// What makes the first container as quick as those after it. That it fails is told by the first container.
    pub async fn warm_up(&self) {
        let inner = Arc::clone(&self.0);
        let _ = blocking(move || {
            let _ = inner.nursery.warm_up();
            apparmor::warm_up();
            Ok(())
        })
        .await;
    }

    /// What libcontainer does not do.
    async fn finish(&self, plan: &ContainerPlan<'_>, container: &Container) -> Result<(), RuntimeError> {
        if plan.netns.is_none() && plan.options.joined.is_none() && !plan.host_network {
            container.raise_loopback().await?;
        }
        let Layout::V2(mount) = &self.0.layout else { return Ok(()) };
        if plan.spec.container.privileged || !self.0.filters_devices {
            return Ok(());
        }
        let folder = mount.join(container.cgroup().trim_start_matches('/'));
        let given = devices(&plan.spec.container)?;
        blocking(move || device_filter::confine(&folder, &given).map_err(|err| io_error("cannot confine", folder, err)))
            .await
    }

    /// Every container that an earlier worker left.
    pub async fn recover(&self) -> Result<Vec<Recovered>, RuntimeError> {
        let inner = Arc::clone(&self.0);
        let left = blocking(move || inner.left_by_others()).await?;
        Ok(stream::iter(left).map(find_again).buffer_unordered(LOOKS_AT_ONCE).collect().await)
    }

    /// Lines of a log whose container may be gone; does not follow.
    #[must_use]
    pub fn logs(files: &LogFiles, options: LogOptions) -> LogStream {
        LogStream::open(files.clone(), LogOptions { follow: false, ..options }, std::future::ready(()))
    }
}

/// One that cannot be asked, or not be taken apart, is taken for running: it must not keep the worker from all others.
async fn find_again(container: Container) -> Recovered {
    match container.look_briefly().await {
        Ok(Found::Created) => Recovered::Created(container),
        Ok(Found::Running) => Recovered::Running(container),
        Ok(Found::Ended(exit)) => Recovered::Ended(container, exit),
        Err(error) => {
            let error = crate::image::chain(&error);
            tracing::warn!(task = %container.task_id(), error, "it is not known how a container is: taken for running");
            container.go_on_unanswered().await;
            Recovered::Running(container)
        }
    }
}

/// What is written for a shim.
struct Prepared {
    config: ShimConfig,
    spec: serde_json::Value,
}

impl Inner {
    fn explain(&self, message: String, plan: &ContainerPlan<'_>) -> String {
        let root = contents::open_root(&plan.rootfs).ok();
        explain::failure(
            message,
            &explain::Asked {
                pids: plan.spec.limits.pids,
                is_folder_here: &|path| fs::metadata(path).ok().map(|metadata| metadata.is_dir()),
                is_folder_inside: &|path| contents::is_folder(root.as_ref()?.as_fd(), path).ok(),
                is_given_file: &|path| Path::new(path).starts_with(&self.given_dir),
            },
        )
    }

    fn prepare(&self, plan: &ContainerPlan<'_>, apparmor: Option<String>) -> Result<Prepared, RuntimeError> {
        let container = &plan.spec.container;
        let user = user::lookup(&plan.rootfs, user_name(container, &plan.image), &container.groups)?;
        let caps = self.capabilities(container)?;
        let devices = devices(container)?;
        check_sources(container)?;
        check_shared(plan, &self.shims_dir)?;
        let dir = spec::working_dir(container, &plan.image)?;
        let owner = plan.users.as_ref().map(|users| (users.uid, users.gid));
        rootfs::make_folders(&plan.rootfs, &dir, owner)
            .map_err(|err| io_error("cannot make the working directory", &dir, err))?;
        let cgroup = format!("{}/{}", self.cgroup_parent.trim_end_matches('/'), plan.container_id);
        let facts = Facts {
            user: &user,
            caps,
            layout: &self.layout,
            cgroup: &cgroup,
            devices: &devices,
            counts_swap: self.layout.counts_swap(),
            apparmor,
            init: &self.init,
            shm: &Files(&self.shims_dir.join(plan.task_id.as_str())).shm(),
        };
        let spec = spec::build(plan, &facts)?;
        let filtered = !container.privileged && !plan.options.seccomp_off;
        let filter = filtered.then(|| self.filters.file(caps)).transpose()?;
        let config = ShimConfig {
            version: VERSION,
            task_id: plan.task_id.to_string(),
            container_id: plan.container_id.clone(),
            rootfs: plan.rootfs.clone(),
            shim_cgroup: format!("{}/{SHIM_CGROUP}", self.cgroup_parent.trim_end_matches('/')),
            cgroup,
            log: (&plan.log).into(),
            tty: container.tty,
            open_stdin: container.open_stdin,
            stdin_once: plan.options.stdin_once,
            uid: user.uid + plan.users.as_ref().map_or(0, |users| users.uid),
            caps: caps.0,
            seccomp: filter,
            netns: plan.netns.clone(),
            hidden: self.hidden_from(plan),
            shm_of: match &plan.options.ipc {
                Sharing::Other(ipc) => Some(ipc.with_file_name("mnt")),
                Sharing::Own | Sharing::Host => None,
            },
            home_is_given: plan.gives_home(),
            health: health::plan(container.health.as_ref(), plan.image.health.as_ref()).map(|health| HealthPlan {
                earlier: plan.options.earlier_checks.iter().map(Into::into).collect(),
                ..health
            }),
        };
        Ok(Prepared { config, spec })
    }

    /// Nothing for a container that is given such a folder, or whose mounts are to appear on the node too.
    fn hidden_from(&self, plan: &ContainerPlan<'_>) -> Vec<PathBuf> {
        if plan.shares_mounts() {
            return Vec::new();
        }
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let given: Vec<PathBuf> = plan.given().map(|(source, _)| real(source)).collect();
        let is_given = |folder: &Path| {
            let folder = real(folder);
            given.iter().any(|source| folder.starts_with(source) || source.starts_with(&folder))
        };
        self.mounts_dirs.iter().filter(|folder| !is_given(folder) && is_mounted(folder)).cloned().collect()
    }

    /// Where devices cannot be filtered, a container must not make device nodes unless it was asked to.
    fn capabilities(&self, container: &ContainerSpec) -> Result<CapSet, RuntimeError> {
        let all = if container.privileged {
            CapSet::ALL
        } else {
            CapSet::effective(&container.cap_add, &container.cap_drop)?
        };
        let asked = container.privileged || CapSet::effective(&container.cap_add, &["ALL".to_owned()])?.has("MKNOD");
        let safe = if self.layout.is_v2() && !self.filters_devices && !asked { all.without("MKNOD") } else { all };
        Ok(safe.grantable())
    }

    /// Writes the folder and starts the shim, with its socket open already.
    fn launch(&self, folder: &Path, prepared: &Prepared) -> Result<(), RuntimeError> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::Exists(prepared.config.task_id.clone()));
            }
            made => made.map_err(|err| io_error("cannot make", folder, err))?,
        }
        let launched = self.fill_and_spawn(folder, prepared);
        if launched.is_err() {
            let _ = fs::remove_dir_all(folder);
        }
        launched
    }

    fn fill_and_spawn(&self, folder: &Path, prepared: &Prepared) -> Result<(), RuntimeError> {
        let files = Files(folder);
        let write =
            |path: PathBuf, value: Vec<u8>| fs::write(&path, value).map_err(|err| io_error("cannot write", path, err));
        make_private(&files.bundle())?;
        write(files.bundle().join("config.json"), prepared.spec.to_string().into_bytes())?;
        write(files.config(), serde_json::to_vec(&prepared.config).unwrap_or_default())?;
        let listener =
            UnixListener::bind(files.socket()).map_err(|err| io_error("cannot listen on", files.socket(), err))?;
        let messages: File = File::options()
            .create(true)
            .append(true)
            .open(files.messages())
            .map_err(|err| io_error("cannot write", files.messages(), err))?;
        let born = self.nursery.bear(folder, &prepared.config.shim_cgroup, &listener.into(), &messages.into());
        born.map_err(|source| RuntimeError::Spawn { program: self.nursery.program().to_owned(), source })
    }

    fn left_by_others(&self) -> Result<Vec<Container>, RuntimeError> {
        let failed = |err| io_error("cannot read", &self.shims_dir, err);
        let mut left = Vec::new();
        for entry in fs::read_dir(&self.shims_dir).map_err(failed)? {
            let folder = entry.map_err(failed)?.path();
            let config = fs::read(Files(&folder).config())
                .ok()
                .and_then(|text| serde_json::from_slice::<ShimConfig>(&text).ok());
            match config.and_then(|config| config.task_id.parse::<TaskId>().ok().map(|id| (id, config))) {
                Some((id, config)) => left.push(Container::new(id, folder, config, self.layout.clone())),
                // Its worker died while writing; no shim was started.
                None => drop(fs::remove_dir_all(&folder)),
            }
        }
        Ok(left)
    }
}

fn user_name<'a>(container: &'a ContainerSpec, image: &'a ImageDefaults) -> &'a str {
    if container.user.is_empty() { &image.user } else { &container.user }
}

/// libcontainer does not say which one it could not write.
fn explain_sysctls(message: String, sysctls: &BTreeMap<String, String>, exists: impl Fn(&Path) -> bool) -> String {
    // Those of a link are where the link is: in the container.
    let is_of_link =
        |name: &str| name.starts_with("net.") && [".conf.", ".neigh."].iter().any(|part| name.contains(part));
    let is_missing =
        |name: &&String| !is_of_link(name) && !exists(&Path::new("/proc/sys").join(name.replace('.', "/")));
    match sysctls.keys().find(is_missing) {
        Some(name) if message.contains("procfs") => {
            format!(
                "sysctl {name} is none that this node's kernel has: leave it out, or load the module that brings it"
            )
        }
        _ => message,
    }
}

fn check_sources(container: &ContainerSpec) -> Result<(), RuntimeError> {
    let mut binds = container.mounts.iter().filter(|mount| mount.kind == MountKind::Bind);
    match binds.find(|mount| !Path::new(&mount.source).exists()) {
        Some(mount) => Err(RuntimeError::NoBindSource(mount.source.clone().into())),
        None => Ok(()),
    }
}

/// The maker of a container with another's IPC namespace passes nothing on of the mount where it has the other's /dev/shm.
fn check_shared(plan: &ContainerPlan<'_>, shims_dir: &Path) -> Result<(), RuntimeError> {
    let Sharing::Other(_) = plan.options.ipc else { return Ok(()) };
    let on = |path: &Path| path.canonicalize().map(|path| mount_point(&path).to_owned()).ok();
    match plan.shared().find(|source| on(source) == on(shims_dir)) {
        Some(source) => Err(RuntimeError::NotShared { path: source.to_owned(), shims: shims_dir.to_owned() }),
        None => Ok(()),
    }
}

/// Those that are asked for; a privileged container gets what is directly in the host's /dev.
fn devices(container: &ContainerSpec) -> Result<Vec<Device>, RuntimeError> {
    let mut devices = Vec::new();
    for text in &container.devices {
        devices.extend(named_devices(text)?);
    }
    if container.privileged {
        let host = fs::read_dir("/dev").into_iter().flatten().flatten();
        let own = host.filter(|entry| entry.file_type().is_ok_and(|t| t.is_char_device() || t.is_block_device()));
        let names = own.filter_map(|entry| entry.path().to_str().map(str::to_owned));
        devices.extend(names.filter_map(|path| look_at(&path, &path, "rwm").ok()));
    }
    devices.retain(|device| !ALWAYS_THERE.contains(&device.path.as_str()));
    Ok(devices)
}

/// A device, or all that are in a folder, such as /dev/dri or /dev/bus/usb.
fn named_devices(text: &str) -> Result<Vec<Device>, RuntimeError> {
    let malformed = || SpecError::Device(text.to_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |part: &str| !part.is_empty() && part.chars().all(|c| "rwm".contains(c));
    let (host, path, access) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, access] if is_access(access) => (*host, *host, *access),
        [host, path] => (*host, *path, "rwm"),
        [host, path, access] if is_access(access) => (*host, *path, *access),
        _ => return Err(malformed().into()),
    };
    if !host.starts_with('/') || !path.starts_with('/') {
        return Err(malformed().into());
    }
    let failed = |source| RuntimeError::Device { path: host.to_owned(), source };
    if !Path::new(host).is_dir() {
        return Ok(vec![look_at(host, path, access).map_err(failed)?]);
    }
    let mut found = Vec::new();
    gather(Path::new(host), Path::new(path), access, &mut found).map_err(failed)?;
    if found.is_empty() {
        return Err(failed(io::Error::other("neither a device nor a folder with devices")));
    }
    Ok(found)
}

/// What is in /dev and no device of the machine: terminals and memory that come and go.
const NO_DEVICES: [&str; 5] = ["pts", "shm", "fd", "mqueue", "console"];

/// As with Docker, links and what else is not a device are left out; so is what goes away meanwhile.
fn gather(host: &Path, path: &Path, access: &str, found: &mut Vec<Device>) -> io::Result<()> {
    let Some(entries) = unless_gone(fs::read_dir(host))? else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let Some(kind) = unless_gone(entry.file_type())? else { continue };
        let (from, to) = (entry.path(), path.join(entry.file_name()));
        if entry.file_name().to_str().is_some_and(|name| NO_DEVICES.contains(&name)) {
            continue;
        }
        if kind.is_dir() {
            gather(&from, &to, access, found)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let (Some(from), Some(to)) = (from.to_str(), to.to_str()) else { continue };
            found.extend(unless_gone(look_at(from, to, access))?);
        }
    }
    Ok(())
}

fn unless_gone<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        looked => looked.map(Some),
    }
}

fn look_at(host: &str, path: &str, access: &str) -> io::Result<Device> {
    let metadata = fs::metadata(host)?;
    let kind = match metadata.file_type() {
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => return Err(io::Error::other("not a device")),
    };
    let number = metadata.rdev();
    Ok(Device {
        host: host.to_owned(),
        path: path.to_owned(),
        kind,
        major: nix::sys::stat::major(number),
        minor: nix::sys::stat::minor(number),
        mode: metadata.mode() & 0o777,
        access: access.to_owned(),
    })
}

fn make_private(folder: &Path) -> Result<(), RuntimeError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|err| io_error("cannot make", folder, err))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shim that stands still, one that cannot be asked, and one that has ended.
    #[tokio::test(start_paused = true)]
    async fn no_container_keeps_the_others_from_being_found() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let cgroup = format!("/orch-test-recover-{}", std::process::id());
        let runtime = Runtime::with_shim_command(&paths, &cgroup, "/nowhere".into(), Vec::new()).unwrap();
        let left = |n: u64| {
            let id = TaskId::from_random(n.into());
            let folder = paths.shim_dir(&id);
            fs::create_dir(&folder).unwrap();
            let config = serde_json::json!({
                "version": VERSION, "task_id": id.as_str(), "container_id": "c", "rootfs": "/r", "shim_cgroup": cgroup,
                "cgroup": format!("{cgroup}/{id}"), "log": {"path": "/l", "max_size_bytes": 0, "max_files": 1},
                "tty": false, "open_stdin": false, "uid": 0, "caps": 0, "seccomp": null,
            });
            fs::write(Files(&folder).config(), config.to_string()).unwrap();
            (id, folder)
        };
        let [(silent, silent_folder), (odd, odd_folder), (ended, ended_folder)] = [1, 2, 3].map(left);
        let _listener = UnixListener::bind(Files(&silent_folder).socket()).unwrap();
        std::os::unix::fs::symlink("shim.sock", Files(&odd_folder).socket()).unwrap();
        fs::write(Files(&ended_folder).exit(), r#"{"version":1,"code":3,"finished_at_ns":5}"#).unwrap();
        let mut found = BTreeMap::new();
        for recovered in runtime.recover().await.unwrap() {
            match recovered {
                Recovered::Running(container) => found.insert(container.task_id().clone(), None),
                Recovered::Ended(container, exit) => found.insert(container.task_id().clone(), Some(exit.code)),
                Recovered::Created(container) => panic!("{container:?}"),
            };
        }
        assert_eq!(found, BTreeMap::from([(silent, None), (odd, None), (ended, Some(3))]));
    }

    #[test]
    fn a_sysctl_that_the_kernel_lacks_is_named() {
        let sysctls = ["net.core.somaxconn", "net.ipv4.conf.eth0.forwarding", "net.nope"]
            .map(|name| (name.to_owned(), "1".to_owned()))
            .into();
        let exists = |path: &Path| path == Path::new("/proc/sys/net/core/somaxconn");
        let said = |message: &str| explain_sysctls(message.to_owned(), &sysctls, exists);
        assert!(said("open subpath in procfs failed").starts_with("sysctl net.nope is none that"));
        assert_eq!(said("permission denied"), "permission denied");
    }

    #[test]
    fn devices_are_written_as_docker_has_them() {
        let check = |text: &str, path: &str, access: &str| {
            let devices = named_devices(text).unwrap();
            let [device] = devices.as_slice() else { panic!("{devices:?}") };
            assert_eq!((device.path.as_str(), device.access.as_str(), device.kind), (path, access, 'c'));
            assert_eq!((device.major, device.minor), (1, 3));
        };
        check("/dev/null", "/dev/null", "rwm");
        check("/dev/null:/dev/x", "/dev/x", "rwm");
        check("/dev/null:r", "/dev/null", "r");
        check("/dev/null:/dev/x:rw", "/dev/x", "rw");
        let refused = |text: &str| named_devices(text).unwrap_err().to_string();
        assert_eq!(refused("null"), "the device \"null\" is not written as /dev/x[:/dev/y[:rwm]]");
        assert_eq!(
            refused("/dev/null:/dev/x:z"),
            "the device \"/dev/null:/dev/x:z\" is not written as /dev/x[:/dev/y[:rwm]]"
        );
        assert_eq!(refused("/etc/passwd"), "the device /etc/passwd cannot be used");

        // A folder means the devices in it, also in folders of it.
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("by/path");
        fs::create_dir_all(&below).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.path().join("link")).unwrap();
        let host = folder.path().to_str().unwrap();
        let empty = refused(&format!("{host}:/dev/x"));
        assert_eq!(empty, format!("the device {host} cannot be used"));
        let make = |name: &str| {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(&folder.path().join(name), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3))
                .expect("this test needs root");
        };
        fs::create_dir(folder.path().join("fd")).unwrap();
        ["zero", "by/path/one", "fd/two"].into_iter().for_each(make);
        let devices = named_devices(&format!("{host}:/there:r")).unwrap();
        let mut all: Vec<String> = devices.into_iter().map(|device| device.path).collect();
        all.sort_unstable();
        assert_eq!(all, ["/there/by/path/one", "/there/zero"]);

        // A folder or device that is gone by the time one looks is no reason to refuse the others.
        let mut found = Vec::new();
        gather(&folder.path().join("gone"), Path::new("/there"), "r", &mut found).unwrap();
        assert!(found.is_empty());
        let gone = folder.path().join("gone");
        assert!(unless_gone(look_at(gone.to_str().unwrap(), "/there", "r")).unwrap().is_none());
    }
}
