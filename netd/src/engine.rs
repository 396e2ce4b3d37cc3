//! The one owner of the daemon's state.
//!
//! Requests change what should be; a pass then makes it so and answers them. Requests that arrive during a pass are taken
//! together into the next: a burst costs as much as its last state. Between requests a pass every few seconds looks
//! whether someone else changed something, and puts it back.

mod apply;
mod crypt;
mod forget;
mod pass;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use orch_model::{
    NetworkId, NodeId, TaskId,
    assignment::{Assignment, NetworkItem},
    node::Encryption,
};
use orch_netd_core::{
    desired::{Desired, LocalTask},
    flows::{Backends, Doors, Standings},
    gateway::{Gateway, GatewayV6},
    ns::NsName,
    plan::{Entry, Inputs, NodeFacts, WayOutV6},
    resolv,
    settings::Settings,
    trace::{self, Stage, Step},
};
use orch_proto::{
    conv::{DecodeError, FromProto, ToProto as _},
    wire::{
        AttachTaskRequest, AttachTaskResponse, DesiredNetworks, Empty, NetdStatus, RefusedPort, SetDesiredResponse,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, sleep},
};

use crate::{
    counts::Counts,
    dns::{self, Resolvers},
    engine::{apply::Applied, forget::Forgetting},
    entry::Entries,
    keeper::Keeper,
    memory,
    netlink::{self, Namespaces},
    netns::{self, NetNs},
    nft,
    store::{Store, StoredTask, local_task},
    trace::Traced,
};

/// How often the kernel is compared with what should be.
const CHECK_PERIOD: Duration = Duration::from_secs(4);
/// How often the kernel is asked again for what encrypts when it refuses without saying that it never will.
const CRYPT_RETRIES: u32 = 3;
const CRYPT_PAUSE: Duration = Duration::from_millis(300);
/// How long nodes stay suspect without being named again: who names them may be gone.
const SUSPECTS_LAST: Duration = Duration::from_secs(6);
/// Requests taken into one pass at most.
const MAX_BATCH: usize = 256;
/// MTU of the underlay while the link that has the tunnel address is unknown.
const DEFAULT_MTU: u32 = 1_500;

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// A request with where its answer goes.
pub(crate) enum Command {
    SetDesired(DesiredNetworks, Reply<SetDesiredResponse>),
    Attach(AttachTaskRequest, Reply<AttachTaskResponse>),
    Down(TaskId, Reply<Empty>),
    Detach(TaskId, Reply<Empty>),
    Suspects(BTreeSet<NodeId>, Reply<Empty>),
    Status(Reply<NetdStatus>),
    /// From a task, or from any that can ask, to a name.
    Trace(Option<TaskId>, String, Reply<Traced>),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("the request does not make sense")]
    Invalid(#[from] DecodeError),
    #[error(
        "network {network}, or this node's own address for it, is not known here yet: send both with SetDesired before \
         the task is attached"
    )]
    UnknownNetwork { network: NetworkId },
    #[error("network {network} is encrypted, and this node cannot encrypt: {why}")]
    NoEncryption { network: String, why: String },
    #[error("the node's gateway network has no free address: too many tasks on this node")]
    NoAddress,
    #[error(
        "no container on this node can ask for {0}: trace on a node where one is on the same network, or name one with \
         --from"
    )]
    NobodyAsks(String),
    #[error("task {0} is not attached on this node")]
    NotHere(TaskId),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// Answered once the pass is over.
enum Waiting {
    SetDesired(Reply<SetDesiredResponse>),
    Gone(Reply<Empty>),
    Status(Reply<NetdStatus>),
}

pub(crate) struct Engine {
    store: Store,
    resolvers: Arc<Resolvers>,
    desired: Desired,
    sequence: u64,
    gateway: Gateway,
    gateway_v6: GatewayV6,
    way_out_v6: Option<WayOutV6>,
    /// Whether a task wants one.
    looks_for_v6: bool,
    /// What the node's settings were.
    settings: Settings,
    last_addr: Option<Ipv4Addr>,
    /// The tunnel address, and the MTU of the link that has it.
    underlay: Option<(IpAddr, u32)>,
    filters_bridges: bool,
    encryption: Encryption,
    tasks: BTreeMap<TaskId, LocalTask>,
    /// What the worker sent, for the task's file.
    requests: BTreeMap<TaskId, AttachTaskRequest>,
    /// Tasks whose file is older than they are.
    unsaved: BTreeSet<TaskId>,
    namespaces: Namespaces,
    /// Tasks that the worker had made a namespace for when this daemon started, and has not attached yet.
    awaited: BTreeSet<TaskId>,
    /// Tasks whose namespace was made and nothing done in it yet.
    new: BTreeSet<TaskId>,
    applied: BTreeMap<NsName, Applied>,
    servers: BTreeMap<TaskId, dns::Server>,
    /// Who waits for a task's network: answered as soon as that one is made, while the pass goes on with others.
    attaching: BTreeMap<TaskId, Vec<Reply<AttachTaskResponse>>>,
    keeper: Keeper,
    standings: Standings,
    forgetting: Forgetting,
    doors: Doors,
    /// What the rules of tasks say of them, and since when.
    backends: Backends,
    turned: Instant,
    /// How long more of them wait after that.
    pause: Duration,
    /// What the last plan said of them.
    latest: Backends,
    /// When rules that wait are due.
    late: Option<Instant>,
    entries: Entries,
    /// Nodes that gossip takes for dead, and when that was said last.
    suspects: BTreeSet<NodeId>,
    suspected: Instant,
    problems: BTreeMap<NsName, String>,
    plan_problems: Vec<String>,
    /// What of the node's firewall is in the way.
    firewall: Option<String>,
    counts: Counts,
    /// How often all was looked at.
    checks: u32,
    /// Tasks were found whose program has ended: what leads to them is to be taken away.
    deaths: bool,
    /// Much was made or removed: what that took and freed again is to be given back.
    churned: bool,
}

impl Engine {
    /// Finds what an earlier daemon left, and makes the first pass.
    pub(crate) async fn start(store: Store, resolvers: Arc<Resolvers>, keeper: Keeper) -> Result<Self, EngineError> {
        let host = NetNs::host().map_err(failed("opening the node's network namespace"))?;
        let stored = store.load_desired().unwrap_or_default();
        let desired = decode(stored).unwrap_or_default();
        let gateway = match store.load_gateway() {
            Some(gateway) => gateway,
            None => choose_gateway(&host, &desired).await?,
        };
        store.save_gateway(gateway).map_err(failed("saving the gateway network"))?;
        let gateway_v6 = store.load_gateway_v6().unwrap_or_else(|| GatewayV6::choose(rand::random()));
        store.save_gateway_v6(gateway_v6).map_err(failed("saving the gateway network"))?;
        let settings = store.load_settings();
        let filters_bridges = nft::filters_bridges().map_err(failed("asking the kernel for its packet filter"))?;
        let mut engine = Self {
            store,
            resolvers,
            desired,
            // Not the stored one: the worker counts anew when it starts, and what changes nothing is not stored. A worker
            // that was behind the stored number would not be heard until it has counted up to it.
            sequence: 0,
            gateway,
            gateway_v6,
            way_out_v6: None,
            looks_for_v6: false,
            settings,
            last_addr: None,
            underlay: None,
            filters_bridges,
            encryption: Encryption::Unavailable(String::new()),
            tasks: BTreeMap::new(),
            requests: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            namespaces: Namespaces::from([(NsName::Host, host)]),
            awaited: BTreeSet::new(),
            new: BTreeSet::new(),
            applied: BTreeMap::new(),
            servers: BTreeMap::new(),
            attaching: BTreeMap::new(),
            keeper,
            standings: Standings::new(),
            forgetting: Forgetting::default(),
            doors: Doors::new(),
            backends: Backends::new(),
            latest: Backends::new(),
            turned: Instant::now(),
            pause: Duration::ZERO,
            late: None,
            entries: Entries::default(),
            suspects: BTreeSet::new(),
            suspected: Instant::now(),
            problems: BTreeMap::new(),
            plan_problems: Vec::new(),
            firewall: None,
            counts: Counts::default(),
            checks: 0,
            deaths: false,
            churned: false,
        };
        engine.find_tasks().map_err(failed("reading what is known of this node's tasks"))?;
        engine.open_crypt().await;
        engine.bring_up_to_date(true).await;
        engine.keeper.let_go_of_the_rest();
        Ok(engine)
    }

    /// Serves `commands` until the last sender is gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut check = tokio::time::interval(CHECK_PERIOD);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once; the start has just looked.
        check.tick().await;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                received = commands.recv_many(&mut batch, MAX_BATCH) => {
                    if received == 0 {
                        break;
                    }
                    let is_news = batch.iter().any(|command| self.is_news(command));
                    let waiting: Vec<_> = batch.into_iter().filter_map(|command| self.accept(command)).collect();
                    // Status is asked every second. What failed is tried again with it.
                    if is_news || !self.problems.is_empty() || !self.suspects.is_empty() {
                        self.bring_up_to_date(false).await;
                    }
                    while let Some(id) = self.attaching.keys().next().cloned() {
                        self.answer_attaching(&id);
                    }
                    waiting.into_iter().for_each(|waiting| self.answer(waiting));
                }
                () = tokio::time::sleep_until(self.late.unwrap_or_else(Instant::now).into()), if self.late.is_some() => {
                    self.bring_up_to_date(false).await;
                }
                () = self.forgetting.done() => self.forget_gathered(),
                _ = check.tick() => {
                    self.bring_up_to_date(true).await;
                    if std::mem::take(&mut self.churned) {
                        drop(tokio::task::spawn_blocking(memory::give_back));
                    }
                }
            }
        }
        self.finish_forgetting().await;
    }

    /// A pass, and another one when it found tasks whose program has ended.
    async fn bring_up_to_date(&mut self, check: bool) {
        self.pass(check).await;
        if std::mem::take(&mut self.deaths) {
            self.pass(false).await;
        }
    }

    /// Opens the namespaces that are there. What has no file, and what has no namespace, is not a task any more; or not yet, where
    /// the worker has made the namespace.
    fn find_tasks(&mut self) -> io::Result<()> {
        for stored in self.store.load_tasks()? {
            let Some((request, task)) = stored.decode_task() else { continue };
            let path = self.store.task_netns(&task.id);
            match NetNs::open(&path) {
                Ok(Some(ns)) => drop(self.namespaces.insert(NsName::Task(task.id.clone()), ns)),
                Ok(None) | Err(_) => {
                    tracing::info!(task = %task.id, "forgetting a task whose namespace is gone");
                    self.store.forget_task(&task.id)?;
                    continue;
                }
            }
            self.last_addr = self.last_addr.max(Some(task.gateway_addr));
            self.requests.insert(task.id.clone(), request);
            self.tasks.insert(task.id.clone(), task);
        }
        let known: BTreeSet<_> = self.tasks.keys().map(|id| self.store.task_netns(id)).collect();
        for (path, name) in self.store.namespaces()? {
            match name {
                // Found, or made, by itself.
                Some(NsName::Crypt) => {}
                Some(name) => {
                    if let Some(ns) = NetNs::open(&path)? {
                        self.namespaces.insert(name, ns);
                    }
                }
                None if known.contains(&path) => {}
                None => match made_for(&path) {
                    Some(id) => drop(self.awaited.insert(id)),
                    None => netns::remove(&path)?,
                },
            }
        }
        Ok(())
    }

    /// Whether what should be may be something else after this.
    fn is_news(&self, command: &Command) -> bool {
        match command {
            Command::SetDesired(..) | Command::Attach(..) | Command::Down(..) | Command::Detach(..) => true,
            Command::Suspects(suspects, _) => *suspects != self.suspects,
            Command::Status(_) | Command::Trace(..) => false,
        }
    }

    /// Takes a request into what should be; `None` when it is answered already.
    fn accept(&mut self, command: Command) -> Option<Waiting> {
        match command {
            Command::SetDesired(desired, reply) => match self.set_desired(desired) {
                Ok(()) => Some(Waiting::SetDesired(reply)),
                Err(error) => refuse(reply, error),
            },
            Command::Attach(request, reply) => match self.attach(request) {
                Ok(id) => {
                    self.attaching.entry(id).or_default().push(reply);
                    None
                }
                Err(error) => refuse(reply, error),
            },
            Command::Down(id, reply) => {
                self.take_down(&id);
                Some(Waiting::Gone(reply))
            }
            Command::Detach(id, reply) => {
                self.tasks.remove(&id);
                self.requests.remove(&id);
                self.remove_unattached(&id);
                if let Err(error) = self.store.forget_task(&id) {
                    tracing::warn!(task = %id, %error, "cannot remove a task's file");
                }
                Some(Waiting::Gone(reply))
            }
            Command::Suspects(suspects, reply) => {
                self.suspected = Instant::now();
                if suspects == self.suspects {
                    // Said again every second: no reason to look at everything.
                    drop(reply.send(Ok(Empty {})));
                    return None;
                }
                self.suspect(suspects);
                Some(Waiting::Gone(reply))
            }
            Command::Status(reply) => Some(Waiting::Status(reply)),
            Command::Trace(task, name, reply) => {
                drop(reply.send(self.trace(task, &name)));
                None
            }
        }
    }

    /// Finds out whether the kernel can encrypt, by making what is needed for it.
    async fn open_crypt(&mut self) {
        let mut opened = crypt::open(self.store.crypt_netns()).await;
        for _ in 0..CRYPT_RETRIES {
            if opened.as_ref().err().is_none_or(crypt::is_for_good) {
                break;
            }
            // Managers take tasks of encrypted networks away from a node that says it cannot.
            sleep(CRYPT_PAUSE).await;
            opened = crypt::open(self.store.crypt_netns()).await;
        }
        match opened {
            Ok((ns, key)) => {
                self.namespaces.insert(NsName::Crypt, ns);
                self.encryption = Encryption::Key(key);
            }
            Err(error) => {
                let why = crypt::explain(&error);
                tracing::info!(why, "no encrypted networks on this node");
                self.encryption = Encryption::Unavailable(why);
            }
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            desired: &self.desired,
            tasks: &self.tasks,
            suspects: &self.suspects,
            facts: self.facts(),
            way_out_v6: self.way_out_v6.as_ref(),
        }
    }

    fn facts(&self) -> NodeFacts {
        let underlay_mtu = self.underlay.map_or(DEFAULT_MTU, |(_, mtu)| mtu);
        let encrypts = matches!(self.encryption, Encryption::Key(_));
        NodeFacts { gateway: self.gateway, underlay_mtu, filters_bridges: self.filters_bridges, encrypts }
    }

    fn trace(&self, task: Option<TaskId>, name: &str) -> Result<Traced, EngineError> {
        let inputs = self.inputs();
        let id = match task {
            Some(id) => id,
            None => trace::asker(&inputs, name).ok_or_else(|| EngineError::NobodyAsks(name.to_owned()))?.clone(),
        };
        let ns_name = NsName::Task(id.clone());
        let task = self.tasks.get(&id).ok_or_else(|| EngineError::NotHere(id.clone()))?;
        let ns = self.namespaces.get(&ns_name).ok_or(EngineError::NotHere(id))?.clone();
        let mut trace = trace::trace(&inputs, task, name);
        let sandboxes = task.attachments.iter().map(|a| NsName::Sandbox(a.network.clone()));
        let on_encrypted = sandboxes.clone().any(|place| self.is_encrypted(&place));
        let crypt = on_encrypted.then_some(NsName::Crypt);
        for place in sandboxes.chain([NsName::Host, ns_name]).chain(crypt) {
            if let Some(problem) = self.problems.get(&place) {
                trace.steps.push(Step::broken(Stage::Rules, format!("{place} is not as it should be: {problem}")));
            }
        }
        if !trace.steps.iter().any(|step| step.stage == Stage::Rules) {
            let text = "links, routes and rules here are as they should be".to_owned();
            trace.steps.push(Step::fine(Stage::Rules, text));
        }
        trace.steps.sort_by_key(|step| step.stage.min(Stage::Backend));
        Ok(Traced { trace, ns })
    }

    /// Its program has ended: nobody is sent there any more.
    fn take_down(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id).filter(|task| !task.down) {
            task.down = true;
            self.unsaved.insert(id.clone());
        }
    }

    /// The namespace that the worker has made for a task, and that came to nothing.
    fn remove_unattached(&mut self, id: &TaskId) {
        self.awaited.remove(id);
        if self.namespaces.contains_key(&NsName::Task(id.clone())) {
            return;
        }
        if let Err(error) = netns::remove(&self.store.task_netns(id)) {
            tracing::warn!(task = %id, %error, "cannot remove a namespace");
        }
    }

    fn is_encrypted(&self, place: &NsName) -> bool {
        match place {
            NsName::Sandbox(network) => self.desired.networks.get(network).is_some_and(NetworkItem::is_encrypted),
            NsName::Host | NsName::Crypt | NsName::Task(_) => false,
        }
    }

    fn suspect(&mut self, suspects: BTreeSet<NodeId>) {
        for node in suspects.difference(&self.suspects) {
            tracing::warn!(%node, "gossip takes this node for dead, or for out of reach from here: others serve for its tasks where there are any");
        }
        for node in self.suspects.difference(&suspects) {
            tracing::info!(%node, "gossip takes this node for reachable again");
        }
        self.suspects = suspects;
    }

    /// Suspicion that nobody repeats is over.
    fn forget_old_suspects(&mut self) {
        if !self.suspects.is_empty() && self.suspected.elapsed() > SUSPECTS_LAST {
            self.suspect(BTreeSet::new());
        }
    }

    fn set_desired(&mut self, desired: DesiredNetworks) -> Result<(), EngineError> {
        if desired.sequence != 0 && desired.sequence < self.sequence {
            return Ok(());
        }
        let decoded = decode(desired.clone())?;
        self.sequence = desired.sequence;
        if decoded != self.desired {
            self.desired = decoded;
            self.store.save_desired(&desired).map_err(failed("saving the desired networks"))?;
        }
        Ok(())
    }

    fn attach(&mut self, request: AttachTaskRequest) -> Result<TaskId, EngineError> {
        let mut task = local_task(request.clone(), Ipv4Addr::UNSPECIFIED)?;
        for attachment in &task.attachments {
            let network = self.desired.networks.get(&attachment.network);
            if let (Some(network), Encryption::Unavailable(why)) =
                (network.filter(|network| network.is_encrypted()), &self.encryption)
            {
                return Err(EngineError::NoEncryption { network: network.name.clone(), why: why.clone() });
            }
            if !self.desired.can_attach(&attachment.network) {
                return Err(EngineError::UnknownNetwork { network: attachment.network.clone() });
            }
        }
        let id = task.id.clone();
        match self.tasks.get(&id) {
            Some(known) => {
                (task.gateway_addr, task.dns_port, task.down) = (known.gateway_addr, known.dns_port, known.down);
                task.links = known.links.followed_by(&task.attachments);
            }
            None => {
                let used = self.tasks.values().map(|task| task.gateway_addr).collect();
                let addr = self.gateway.allocate(self.last_addr, &used).ok_or(EngineError::NoAddress)?;
                task.gateway_addr = addr;
                self.last_addr = Some(addr);
            }
        }
        // Known before there is a namespace: after a crash in between, none is without a file.
        let stored = StoredTask::new(request.clone(), &task);
        self.store.save_task(&stored, &id).map_err(failed("saving the task"))?;
        self.requests.insert(id.clone(), request);
        self.awaited.remove(&id);
        self.tasks.insert(id.clone(), task);
        Ok(id)
    }

    /// Whatever came of it.
    fn answer_attaching(&mut self, id: &TaskId) {
        for reply in self.attaching.remove(id).unwrap_or_default() {
            drop(reply.send(self.attached(id)));
        }
    }

    fn answer(&self, waiting: Waiting) {
        // Who no longer waits for an answer needs none.
        match waiting {
            Waiting::SetDesired(reply) => {
                drop(reply.send(Ok(SetDesiredResponse { problems: self.problems().collect() })));
            }
            Waiting::Gone(reply) => drop(reply.send(Ok(Empty {}))),
            Waiting::Status(reply) => drop(reply.send(Ok(NetdStatus {
                sequence: self.sequence,
                // The worker detaches those that it does not know.
                tasks: self.tasks.keys().chain(&self.awaited).map(ToString::to_string).collect(),
                networks: self.sandboxes().map(ToString::to_string).collect(),
                // The firewall stands in the log already, and is no fault of what is desired.
                problems: self.problems().chain(self.firewall.clone()).collect(),
                gateway_subnet: self.gateway.subnet().to_string(),
                encryption: Some(self.encryption.to_proto()),
                refused_v6: self.entries.refused_now().map(refused_port).collect(),
            }))),
        }
    }

    fn attached(&self, id: &TaskId) -> Result<AttachTaskResponse, EngineError> {
        let what = || format!("attaching task {id}");
        if let Some(problem) = self.problems.get(&NsName::Task(id.clone())) {
            return Err(EngineError::Io { what: what(), source: io::Error::other(problem.clone()) });
        }
        let gone = || EngineError::Io { what: what(), source: io::Error::other("it was detached meanwhile") };
        let task = self.tasks.get(id).ok_or_else(gone)?;
        let dns = self.requests.get(id).and_then(|request| request.dns.clone()).unwrap_or_default();
        Ok(AttachTaskResponse {
            netns_path: self.store.task_netns(id).display().to_string(),
            resolv_conf: resolv::render(&dns.search, &dns.options, &self.resolvers.node()),
            primary_address: task.primary_addr(&self.desired).to_string(),
        })
    }

    fn sandboxes(&self) -> impl Iterator<Item = &NetworkId> {
        self.namespaces.keys().filter_map(|ns| match ns {
            NsName::Sandbox(network) => Some(network),
            NsName::Host | NsName::Crypt | NsName::Task(_) => None,
        })
    }

    fn problems(&self) -> impl Iterator<Item = String> {
        let of_namespaces = self.problems.iter().map(|(ns, problem)| format!("{ns}: {problem}"));
        let malformed = self.servers.iter().filter(|(_, server)| server.malformed() > 0);
        let of_dns = malformed.map(|(id, s)| format!("task {id}: {} DNS messages were no queries", s.malformed()));
        self.plan_problems.iter().cloned().chain(of_namespaces).chain(of_dns)
    }
}

/// Which task the worker has made the namespace at `path` for; `None`: it has not.
fn made_for(path: &Path) -> Option<TaskId> {
    let id = path.file_name()?.to_str()?.parse().ok()?;
    NetNs::open(path).ok()??.is_of_other_users().ok()?.then_some(id)
}

fn refuse<T>(reply: Reply<T>, error: EngineError) -> Option<Waiting> {
    drop(reply.send(Err(error)));
    None
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> EngineError {
    let what = what.to_owned();
    move |source| EngineError::Io { what, source }
}

pub(crate) fn decode(desired: DesiredNetworks) -> Result<Desired, DecodeError> {
    let node = if desired.node_id.is_empty() { None } else { Some(FromProto::from_proto(desired.node_id)?) };
    let items = Vec::<Assignment>::from_proto(desired.items)?;
    Ok(Desired::new(node, items))
}

async fn choose_gateway(host: &NetNs, desired: &Desired) -> Result<Gateway, EngineError> {
    let networks = host.run(netlink::host_networks).await;
    let mut taken = networks.map_err(failed("reading the node's networks"))?;
    taken.extend(desired.networks.values().flat_map(|network| network.subnets.iter().copied()));
    Gateway::choose(&taken).ok_or_else(|| EngineError::Io {
        what: "choosing a subnet for the node's gateway network".to_owned(),
        source: io::Error::other(
            "172.18.0.0/16 to 172.31.0.0/16 and 192.168.0.0/16 all overlap networks of this node: free one of them",
        ),
    })
}

/// Whether the node goes out by IPv6; `None`: it does not.
async fn look_for_way_out_v6(host: &NetNs, gateway: GatewayV6, settings: Settings) -> io::Result<Option<WayOutV6>> {
    let look = move || {
        if netlink::links_out_v6()?.is_empty() {
            return Ok(None);
        }
        let links = netlink::links_with_v6()?.into_iter();
        let learning = links.filter(|link| settings.learns(&link.name, &link.accept_ra, &link.forwarding));
        Ok(Some(WayOutV6 { gateway, learning: learning.map(|link| link.name).collect() }))
    };
    host.run(look).await
}

fn refused_port(entry: Entry) -> RefusedPort {
    RefusedPort { protocol: entry.protocol.to_proto(), port: entry.port.into(), address: entry.addr.to_string() }
}

/// MTU of the link that has `addr`.
async fn underlay_mtu(host: &NetNs, addr: IpAddr) -> Option<u32> {
    let found = host.run(move || netlink::mtu_of(addr)).await;
    found.inspect_err(|error| tracing::warn!(%error, "cannot read the underlay's MTU")).ok().flatten()
}
