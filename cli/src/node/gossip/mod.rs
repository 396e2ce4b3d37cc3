//! Gossip: whether the other nodes are alive, found out among the nodes themselves, over UDP 7946.
//!
//! Run by the supervisor, because a dead netd or worker is not a dead node. Managers say (through the worker's session)
//! whom to watch and hand out the keys; what this node sees goes back to them the same way, and straight to netd, which
//! stops balancing to nodes that look dead, also while no manager is up: what was handed out last is kept, so that a supervisor
//! that is started meanwhile takes part as well. It carries liveness only, and can only take away.

mod door;
mod kept;
mod numbers;
mod prober;
mod seal;
mod wire;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::Stream;
use orch_model::NodeId;
use orch_proto::{
    gossip::GOSSIP_PORT,
    transport::unix_channel,
    wire::{GossipConfig, GossipView, SuspectNodes, netd_client::NetdClient},
};
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{Status, Streaming};

use self::{
    door::{Counts, Door},
    numbers::Numbers,
    prober::{At, Effect, PATIENCE, Prober, TICK, To, View},
    seal::Handed,
};
use super::supervisor::Supervisor;

/// No packet of ours is larger; of a larger one the rest is cut off, and it does not open.
const PACKET_BYTES: usize = 2048;
/// Where the kernel answers for a node whose processes stand still: the worker's port for images.
const KERNEL_PORT: u16 = 7946;
const HANDSHAKES: usize = 64;
/// Between tries to get the port.
const RETRY: Duration = Duration::from_secs(5);
/// A view is said again this often, so that whoever listens knows that this process lives.
const SAY_AGAIN: Duration = Duration::from_secs(1);
const NETD_LIMIT: Duration = Duration::from_secs(2);
const MEMBER_CHECK: Duration = Duration::from_secs(1);
/// How often dropped packets are mentioned at most.
const REPORT: Duration = Duration::from_secs(60);

/// What the rest of the supervisor has of gossip.
#[derive(Debug, Clone)]
pub(super) struct Gossip {
    config: watch::Sender<GossipConfig>,
    view: watch::Sender<View>,
}

impl Gossip {
    pub(super) fn new() -> Self {
        Self { config: watch::Sender::default(), view: watch::Sender::default() }
    }

    /// Takes what the worker passes on from managers; gives what this node sees, for as long as the worker listens.
    pub(super) fn exchange(
        &self,
        mut configs: Streaming<GossipConfig>,
    ) -> Pin<Box<dyn Stream<Item = Result<GossipView, Status>> + Send>> {
        let config = self.config.clone();
        let mut view = self.view.subscribe();
        tokio::spawn(async move {
            while let Ok(Some(now)) = configs.message().await {
                config.send_if_modified(|known| {
                    let is_new = *known != now;
                    *known = now;
                    is_new
                });
            }
        });
        let first = wire::view(&view.borrow_and_update());
        Box::pin(futures::stream::unfold((view, Some(first)), |(mut view, first)| async move {
            if let Some(first) = first {
                return Some((Ok(first), (view, None)));
            }
            if let Ok(Err(_)) = timeout(SAY_AGAIN, view.changed()).await {
                return None;
            }
            let now = wire::view(&view.borrow_and_update());
            Some((Ok(now), (view, None)))
        }))
    }

    fn see(&self, now: View) {
        self.view.send_if_modified(|known| {
            let is_new = *known != now;
            for id in now.unreachable.difference(&known.unreachable) {
                tracing::warn!(node = %id, "cannot reach this node, nor can others for this one");
            }
            // One that managers know to be down is not watched any more.
            for id in known.unreachable.difference(&now.unreachable).filter(|id| now.watched.contains(id)) {
                tracing::info!(node = %id, "this node answers again");
            }
            for id in now.beyond.difference(&known.beyond) {
                tracing::warn!(
                    node = %id,
                    "this node reaches that one by way of others only: the network between the two is cut. Tasks there get \
                     no new connections from here where there are others"
                );
            }
            for id in known.beyond.difference(&now.beyond).filter(|id| now.watched.contains(id)) {
                tracing::info!(node = %id, "no longer cut off from this node");
            }
            if now.deaf && !known.deaf {
                tracing::warn!(
                    "nothing of gossip reaches this node: open {GOSSIP_PORT}/udp between nodes; until then the failure of \
                     a node is noticed later"
                );
            }
            *known = now;
            is_new
        });
    }
}

/// Gossips while this node is in a cluster, for as long as the supervisor runs.
pub(super) async fn run(supervisor: Arc<Supervisor>, gossip: Gossip) {
    let known = match supervisor.member() {
        Some(_) => kept::load(&supervisor.paths.run),
        None => kept::forget(&supervisor.paths.run).map(|()| GossipConfig::default()),
    };
    match known {
        // What a manager said meanwhile is newer.
        Ok(known) => drop(gossip.config.send_if_modified(|config| {
            let is_first = config.keys.is_empty();
            if is_first {
                *config = known;
            }
            is_first
        })),
        Err(error) => tracing::warn!(error = format!("{error:#}"), "gossip begins when a manager has said with whom"),
    }
    let configs = gossip.config.subscribe();
    tokio::join!(
        take_part(&supervisor, &gossip),
        tell_netd(&supervisor, gossip.view.subscribe()),
        keep(&supervisor, configs)
    );
}

/// Writes down what managers hand out.
async fn keep(supervisor: &Supervisor, mut configs: watch::Receiver<GossipConfig>) {
    while configs.changed().await.is_ok() {
        let now = configs.borrow_and_update().clone();
        let is_member = supervisor.member().is_some();
        let kept = if is_member { kept::save(&supervisor.paths.run, &now) } else { Ok(()) };
        if let Err(error) = kept {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot keep what gossip needs: after a restart it waits for a manager"
            );
        }
    }
}

async fn take_part(supervisor: &Supervisor, gossip: &Gossip) {
    let mut configs = gossip.config.subscribe();
    let mut complained = false;
    loop {
        let known = configs.borrow_and_update().clone();
        // While it joins, a node may hear of the keys before it is a member.
        let member = supervisor.member().filter(|_| !known.keys.is_empty());
        let Some((cluster, Ok(own))) = member.map(|m| (m.cluster_id, m.node_id.parse())) else {
            // Whether there is news or not: look again.
            let _ = timeout(MEMBER_CHECK, configs.changed()).await;
            continue;
        };
        match bind().await {
            Ok(socket) => {
                complained = false;
                let numbers = Numbers::load(&supervisor.paths.node_dir());
                let mut session = Session::new(socket, &cluster, own, &known, numbers);
                session.run(supervisor, gossip, &mut configs).await;
                gossip.see(View::default());
                forget(supervisor, gossip, &session.keys);
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        "cannot listen on {GOSSIP_PORT}/udp ({error}): free that port; until then the failure of a node \
                         is noticed later"
                    );
                }
                gossip.see(View { deaf: true, ..View::default() });
                sleep(RETRY).await;
            }
        }
    }
}

/// This node is not that member any more. What it may have heard of another cluster meanwhile stays.
fn forget(supervisor: &Supervisor, gossip: &Gossip, keys: &Handed) {
    let is_forgotten = gossip.config.send_if_modified(|config| {
        let is_former = keys.are(&config.keys);
        if is_former {
            *config = GossipConfig::default();
        }
        is_former
    });
    if !is_forgotten {
        return;
    }
    if let Err(error) = kept::forget(&supervisor.paths.run) {
        tracing::warn!(error = format!("{error:#}"), "keys of gossip stay on this machine until it stops");
    }
}

/// Both families where the kernel has both.
async fn bind() -> io::Result<UdpSocket> {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, GOSSIP_PORT)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, GOSSIP_PORT)).await
        }
        bound => bound,
    }
}

/// This node's part in one cluster's gossip.
struct Session {
    socket: UdpSocket,
    is_v6: bool,
    cluster: String,
    own: NodeId,
    door: Door,
    keys: Handed,
    prober: Prober<SocketAddr>,
    started: Instant,
    numbers: Numbers,
    handshakes: (mpsc::Sender<NodeId>, mpsc::Receiver<NodeId>),
}

impl Session {
    fn new(socket: UdpSocket, cluster: &str, own: NodeId, config: &GossipConfig, numbers: Numbers) -> Self {
        let mut prober = Prober::new(own.clone(), numbers.last(), Duration::ZERO);
        prober.set_circle(wire::circle(config), Duration::ZERO);
        let keys = Handed::new(&config.keys);
        Self {
            is_v6: socket.local_addr().is_ok_and(|addr| addr.is_ipv6()),
            socket,
            cluster: cluster.to_owned(),
            door: Door::new(own.clone(), keys.keyring(cluster)),
            keys,
            own,
            prober,
            started: Instant::now(),
            numbers,
            handshakes: mpsc::channel(HANDSHAKES),
        }
    }

    /// Until this node is not this member any more.
    async fn run(&mut self, supervisor: &Supervisor, gossip: &Gossip, configs: &mut watch::Receiver<GossipConfig>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checked = Instant::now();
        let mut reported = (None, Counts::default());
        let mut buffer = [0; PACKET_BYTES];
        loop {
            let effects = tokio::select! {
                _ = ticks.tick() => {
                    if checked.elapsed() >= MEMBER_CHECK {
                        checked = Instant::now();
                        if supervisor.member().is_none_or(|member| member.node_id != self.own.as_str()) {
                            return;
                        }
                        self.report_dropped(&mut reported);
                        self.numbers.keep_reserved();
                        if self.keys.forget_former(self.started.elapsed()) {
                            self.door.set_keyring(self.keys.keyring(&self.cluster));
                        }
                    }
                    let now = self.started.elapsed();
                    let effects = self.prober.tick(now, |below| rand::random_range(0..below.max(1)));
                    gossip.see(self.prober.view(now));
                    effects
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, source)) => self.received(&buffer[..length], source),
                    // Of an earlier packet to a port that is closed: its probe goes unanswered anyway.
                    Err(_) => Vec::new(),
                },
                Some(node) = self.handshakes.1.recv() => {
                    self.prober.handshake(&node, self.started.elapsed());
                    Vec::new()
                }
                changed = configs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let config = configs.borrow_and_update().clone();
                    let now = self.started.elapsed();
                    self.keys.replace(&config.keys, now);
                    self.door.set_keyring(self.keys.keyring(&self.cluster));
                    self.prober.set_circle(wire::circle(&config), now);
                    Vec::new()
                }
            };
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn received(&mut self, bytes: &[u8], source: SocketAddr) -> Vec<Effect<SocketAddr>> {
        let now = self.started.elapsed();
        let admitted = self.door.admit(bytes);
        admitted.map(|(from, message)| self.prober.receive(&from, source, message, now)).unwrap_or_default()
    }

    fn carry_out(&mut self, effect: Effect<SocketAddr>) {
        match effect {
            Effect::Send(To { node, at }, message) => {
                let packet = wire::packet(&self.own, &node, self.numbers.next(), message);
                let at = match at {
                    At::Port(addr) => self.reachable(addr),
                    At::Source(source) => source,
                };
                if let Some(sealed) = self.door.seal(&packet, rand::random()) {
                    // What does not get out is as good as lost on its way.
                    let _ = self.socket.try_send_to(&sealed, at);
                }
            }
            Effect::Handshake(node, addr) => {
                let answered = self.handshakes.0.clone();
                tokio::spawn(async move {
                    if does_kernel_answer(addr).await {
                        let _ = answered.try_send(node);
                    }
                });
            }
        }
    }

    /// A socket of both families knows IPv4 addresses in IPv6 form only.
    fn reachable(&self, addr: IpAddr) -> SocketAddr {
        let addr = match addr {
            IpAddr::V4(v4) if self.is_v6 => IpAddr::V6(v4.to_ipv6_mapped()),
            other => other,
        };
        SocketAddr::new(addr, GOSSIP_PORT)
    }

    fn report_dropped(&self, (at, before): &mut (Option<Instant>, Counts)) {
        let counts = self.door.counts;
        if counts.dropped() == before.dropped() || at.is_some_and(|at| at.elapsed() < REPORT) {
            return;
        }
        (*at, *before) = (Some(Instant::now()), counts);
        tracing::warn!(
            foreign = counts.foreign,
            astray = counts.astray,
            replayed = counts.replayed,
            taken = counts.taken,
            "dropped gossip packets, since this node takes part"
        );
    }
}

/// A refusal is an answer, too.
async fn does_kernel_answer(addr: IpAddr) -> bool {
    match timeout(PATIENCE, TcpStream::connect((addr, KERNEL_PORT))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset),
        Err(_) => false,
    }
}

/// Keeps netd at who is suspect; what is not said again, netd forgets.
async fn tell_netd(supervisor: &Supervisor, mut view: watch::Receiver<View>) {
    let mut client = None;
    let mut told_none = true;
    loop {
        let node_ids: Vec<_> = view.borrow_and_update().suspects.iter().map(ToString::to_string).collect();
        let is_none = node_ids.is_empty();
        if !is_none || !told_none {
            let say = async {
                let channel = match client.take() {
                    Some(channel) => channel,
                    None => unix_channel(&supervisor.paths.netd_sock()).await.ok()?,
                };
                NetdClient::new(channel.clone()).set_suspects(SuspectNodes { node_ids }).await.ok()?;
                Some(channel)
            };
            client = timeout(NETD_LIMIT, say).await.ok().flatten();
            told_none = is_none && client.is_some();
        }
        if let Ok(Err(_)) = timeout(SAY_AGAIN, view.changed()).await {
            return;
        }
    }
}
