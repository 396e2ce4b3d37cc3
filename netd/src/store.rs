//! What outlives a restart of the daemon: one small file per task, the gateway's subnets and what the node's settings were
//! under the run folder (all end with the machine), the last desired state under the data folder.
//!
//! Nothing here is the only copy of anything: a file that cannot be read is as good as none, and is said so in the log.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use orch_model::{NetworkId, TaskId, task::TaskAttachment};
use orch_netd_core::{
    desired::{LinkNumbers, LocalTask},
    gateway::{Gateway, GatewayV6},
    ns::NsName,
    settings::Settings,
};
use orch_proto::{
    conv::{DecodeError, FromProto},
    paths::Paths,
    wire::{AttachTaskRequest, DesiredNetworks},
};
use prost::Message as _;

/// Namespaces of networks are files beside those of tasks, with this before the network's id.
const SANDBOX_PREFIX: &str = "net-";
/// Where tunnels of encrypted networks lead out; ids are longer.
const CRYPT_NAME: &str = "crypt";

/// A task as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredTask {
    #[prost(message, optional, tag = "1")]
    pub(crate) request: Option<AttachTaskRequest>,
    #[prost(string, tag = "2")]
    pub(crate) gateway_addr: String,
    #[prost(uint32, tag = "3")]
    pub(crate) dns_port: u32,
    #[prost(bool, tag = "4")]
    pub(crate) down: bool,
    #[prost(message, repeated, tag = "5")]
    pub(crate) links: Vec<StoredLink>,
    #[prost(uint32, optional, tag = "6")]
    pub(crate) gateway_link: Option<u32>,
}

/// Which interface leads to a network.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredLink {
    #[prost(string, tag = "1")]
    pub(crate) network: String,
    #[prost(uint32, tag = "2")]
    pub(crate) number: u32,
}

impl StoredTask {
    pub(crate) fn new(request: AttachTaskRequest, task: &LocalTask) -> Self {
        Self {
            request: Some(request),
            gateway_addr: task.gateway_addr.to_string(),
            dns_port: task.dns_port.into(),
            down: task.down,
            links: task.links.networks.iter().map(|(network, number)| stored_link(network, *number)).collect(),
            gateway_link: u32::try_from(task.links.gateway).ok(),
        }
    }

    /// `None` when it is damaged.
    pub(crate) fn decode_task(self) -> Option<(AttachTaskRequest, LocalTask)> {
        let request = self.request?;
        let mut task = local_task(request.clone(), self.gateway_addr.parse().ok()?).ok()?;
        task.dns_port = u16::try_from(self.dns_port).ok()?;
        task.down = self.down;
        // An earlier version kept none: then the interfaces are those of a new task.
        if let Some(gateway) = self.gateway_link {
            let network = |link: &StoredLink| Some((link.network.parse().ok()?, usize::try_from(link.number).ok()?));
            let networks = self.links.iter().map(network).collect::<Option<_>>()?;
            task.links = LinkNumbers { networks, gateway: usize::try_from(gateway).ok()? };
        }
        Some((request, task))
    }
}

fn stored_link(network: &NetworkId, number: usize) -> StoredLink {
    // A task has far fewer networks than that.
    StoredLink { network: network.to_string(), number: u32::try_from(number).unwrap_or(u32::MAX) }
}

/// Checks what the worker asked for.
pub(crate) fn local_task(request: AttachTaskRequest, gateway_addr: Ipv4Addr) -> Result<LocalTask, DecodeError> {
    let attachments = Vec::<TaskAttachment>::from_proto(request.attachments)?;
    Ok(LocalTask {
        id: TaskId::from_proto(request.task_id)?,
        service: request.service_id.parse().ok(),
        hostname: request.hostname,
        links: LinkNumbers::first(&attachments),
        attachments,
        no_way_out: request.no_way_out,
        host_ports: FromProto::from_proto(request.host_ports)?,
        nameservers: request.dns.map_or(Ok(Vec::new()), |dns| FromProto::from_proto(dns.nameservers))?,
        gateway_addr,
        dns_port: 0,
        down: false,
    })
}

/// The daemon's files.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    paths: Paths,
}

impl Store {
    pub(crate) fn open(paths: &Paths) -> io::Result<Self> {
        let store = Self { paths: paths.clone() };
        for dir in [store.task_dir(), paths.netns_dir(), paths.netd_dir()] {
            let described =
                |error: io::Error| io::Error::new(error.kind(), format!("making {}: {error}", dir.display()));
            fs::create_dir_all(&dir).map_err(described)?;
        }
        Ok(store)
    }

    fn task_dir(&self) -> PathBuf {
        self.paths.run.join("netd")
    }

    fn task_file(&self, task: &TaskId) -> PathBuf {
        self.task_dir().join(format!("{task}.pb"))
    }

    fn gateway_file(&self) -> PathBuf {
        self.task_dir().join("gateway")
    }

    fn gateway_v6_file(&self) -> PathBuf {
        self.task_dir().join("gateway6")
    }

    fn settings_file(&self) -> PathBuf {
        self.task_dir().join("settings")
    }

    fn desired_file(&self) -> PathBuf {
        self.paths.netd_dir().join("desired.pb")
    }

    pub(crate) fn task_netns(&self, task: &TaskId) -> PathBuf {
        self.paths.netns(task)
    }

    pub(crate) fn sandbox_netns(&self, network: &NetworkId) -> PathBuf {
        self.paths.netns_dir().join(format!("{SANDBOX_PREFIX}{network}"))
    }

    pub(crate) fn crypt_netns(&self) -> PathBuf {
        self.paths.netns_dir().join(CRYPT_NAME)
    }

    /// Every file that may be a mounted namespace: its path and, where it is not a task's, whose it is.
    pub(crate) fn namespaces(&self) -> io::Result<Vec<(PathBuf, Option<NsName>)>> {
        fs::read_dir(self.paths.netns_dir())?
            .map(|entry| {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let network = || name.strip_prefix(SANDBOX_PREFIX)?.parse().ok().map(NsName::Sandbox);
                let known = if name == CRYPT_NAME { Some(NsName::Crypt) } else { network() };
                Ok((path, known))
            })
            .collect()
    }

    pub(crate) fn save_task(&self, task: &StoredTask, id: &TaskId) -> io::Result<()> {
        write(&self.task_file(id), &task.encode_to_vec())
    }

    pub(crate) fn forget_task(&self, id: &TaskId) -> io::Result<()> {
        match fs::remove_file(self.task_file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn load_tasks(&self) -> io::Result<Vec<StoredTask>> {
        let mut tasks = Vec::new();
        for entry in fs::read_dir(self.task_dir())? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "pb") {
                continue;
            }
            match StoredTask::decode(&fs::read(&path)?[..]) {
                Ok(task) => tasks.push(task),
                Err(error) => tracing::warn!(path = %path.display(), %error, "ignoring a damaged file"),
            }
        }
        Ok(tasks)
    }

    pub(crate) fn save_gateway(&self, gateway: Gateway) -> io::Result<()> {
        write(&self.gateway_file(), gateway.subnet().to_string().as_bytes())
    }

    pub(crate) fn load_gateway(&self) -> Option<Gateway> {
        Gateway::from_subnet(fs::read_to_string(self.gateway_file()).ok()?.parse().ok()?)
    }

    pub(crate) fn save_gateway_v6(&self, gateway: GatewayV6) -> io::Result<()> {
        write(&self.gateway_v6_file(), gateway.subnet().to_string().as_bytes())
    }

    pub(crate) fn load_gateway_v6(&self) -> Option<GatewayV6> {
        GatewayV6::from_subnet(fs::read_to_string(self.gateway_v6_file()).ok()?.parse().ok()?)
    }

    pub(crate) fn save_settings(&self, settings: &Settings) -> io::Result<()> {
        write(&self.settings_file(), settings.to_string().as_bytes())
    }

    pub(crate) fn load_settings(&self) -> Settings {
        fs::read_to_string(self.settings_file()).map(|text| Settings::parse(&text)).unwrap_or_default()
    }

    pub(crate) fn save_desired(&self, desired: &DesiredNetworks) -> io::Result<()> {
        write(&self.desired_file(), &desired.encode_to_vec())
    }

    pub(crate) fn load_desired(&self) -> Option<DesiredNetworks> {
        let bytes = fs::read(self.desired_file()).ok()?;
        DesiredNetworks::decode(&bytes[..])
            .inspect_err(|error| tracing::warn!(%error, "ignoring a damaged desired state"))
            .ok()
    }

    /// Removes all files.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(self.task_dir())?;
        fs::remove_dir_all(self.paths.netd_dir())
    }
}

/// Whole or not at all. Not flushed to the disk: after a power cut the managers say it again.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, bytes)?;
    fs::rename(&unfinished, path)
}
