//! The session with the leader: found among the managers, kept alive, and opened again when it ends.
//!
//! Everything that a session carries is sent again in the next one as far as it is needed: assignments start with a
//! complete set, statuses stay pending until acknowledged.

use std::{
    convert::Infallible,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use orch_model::{
    Object,
    node::{Encryption, NodeRole},
};
use orch_proto::{
    code,
    conv::{FromProto, ToProto},
    pings::until_ping,
    tls::Identity,
    transport::{TransportError, shared_channel},
    wire::{
        AckRequest, AssignmentsMessage, AssignmentsRequest, HeartbeatRequest, Ping, RegisterImageRequest,
        SessionMessage, SessionRequest, TaskStatusUpdate, UpdateTaskStatusRequest, dispatcher_client::DispatcherClient,
    },
};
use rand::{Rng, seq::SliceRandom};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{Agent, Trust, assignments::AssignmentError, assignments::AssignmentSet, gossip::Gossip, streams};
use crate::{
    config::ConfigError,
    image::store::{StoredImage, pinned},
};

/// Metadata in which a manager that is not the leader names the one that is.
const LEADER_METADATA: &str = "orch-leader";
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Status updates and acknowledgements may wait for the leader's disk.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(15);
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// While managers answer, if only that another leads or none does: it is a matter of an election.
const MAX_PAUSE_ANSWERED: Duration = Duration::from_secs(2);
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
/// A sign of life for a leader that does not say how often it wants one.
const PING_PERIOD: Duration = Duration::from_secs(1);
/// Without an answer to one for so long the leader is gone.
const PONG_LIMIT: Duration = Duration::from_secs(4);
/// The same once gossip has lost sight of it.
const PONG_LIMIT_UNSEEN: Duration = Duration::from_secs(1);
/// A manager of which nothing was heard is not asked again for so long, as long as there are others to ask.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// Statuses in one message.
const MAX_UPDATES: usize = 500;
/// Between two of them, by the number of statuses in the earlier one: what changes meanwhile travels together, and takes the
/// managers one write to their disks.
const UPDATE_PAUSE: Duration = Duration::from_millis(1);
const MIN_UPDATE_PAUSE: Duration = Duration::from_millis(10);
const MAX_UPDATE_PAUSE: Duration = Duration::from_millis(50);
/// Announced streams that are served at once.
const MAX_STREAMS: usize = 256;
const MAX_MESSAGE_BYTES: usize = 64 << 20;

type Dispatcher = DispatcherClient<Channel>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Connect(#[from] TransportError),
    #[error("{}", words(.0))]
    Refused(Box<Status>),
    #[error("the manager does not answer")]
    TimedOut,
    #[error("this node's peers and itself have lost sight of the manager")]
    OutOfSight,
    #[error("the manager ended the session")]
    Ended,
    #[error("this node's certificate was renewed")]
    Renewed,
    #[error("this node has more to say of itself")]
    Described,
    #[error(transparent)]
    Assignments(#[from] AssignmentError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// With what broke the call, if it did: a certificate that the manager refused, say.
fn words(status: &Status) -> String {
    let why = std::error::Error::source(status).map(crate::image::chain).unwrap_or_default();
    match status.message() {
        message if why.is_empty() => message.to_owned(),
        message if why.starts_with(message) => why,
        message => format!("{message}: {why}"),
    }
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<tokio::time::error::Elapsed> for SessionError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::TimedOut
    }
}

impl SessionError {
    /// A manager knows for certain that this node is not in the cluster any more.
    fn is_removed(&self) -> bool {
        match self {
            Self::Refused(status) => {
                status.code() == Code::PermissionDenied && code::of(status) == Some(code::NODE_REMOVED)
            }
            _ => false,
        }
    }

    /// Nothing was heard of the manager: it, its node or the way there is down.
    fn is_silence(&self) -> bool {
        match self {
            Self::Connect(TransportError::NoAnswer { .. } | TransportError::TimedOut { .. })
            | Self::TimedOut
            | Self::OutOfSight => true,
            Self::Connect(_)
            | Self::Refused(_)
            | Self::Ended
            | Self::Renewed
            | Self::Described
            | Self::Assignments(_)
            | Self::Config(_) => false,
        }
    }

    fn leader_hint(&self) -> Option<String> {
        match self {
            Self::Refused(status) => status.metadata().get(LEADER_METADATA)?.to_str().ok().map(str::to_owned),
            _ => None,
        }
    }
}

/// The session that is open now, for whoever needs to ask the leader something.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub manager: String,
    pub session: String,
    pub dispatcher: Dispatcher,
}

/// How long a session that ended may take to be opened again.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
const SESSION_POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct CurrentSession(Mutex<Option<Live>>);

impl CurrentSession {
    pub(crate) fn get(&self) -> Option<Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One that has just ended is opened again in a moment: a leader that changed is no reason to refuse.
    pub(crate) async fn wait(&self) -> Option<Live> {
        let deadline = Instant::now() + SESSION_TIMEOUT;
        loop {
            match self.get() {
                None if Instant::now() < deadline => sleep(SESSION_POLL).await,
                found => return found,
            }
        }
    }

    fn set(&self, live: Option<Live>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

/// Keeps a session open; ends with the process.
pub(crate) async fn keep(agent: Arc<Agent>) {
    let mut pause = MIN_PAUSE;
    let mut hint: Option<String> = None;
    let mut silent: Option<(String, Instant)> = None;
    let mut order: Vec<String> = Vec::new();
    let mut last_session = String::new();
    loop {
        let is_silent = |addr: &str| silent.as_ref().is_some_and(|(who, at)| who == addr && at.elapsed() < SILENT_FOR);
        // Trying it costs seconds, in which the others may have elected the next.
        order.retain(|addr| !is_silent(addr));
        if order.is_empty() {
            order = agent.managers();
            if order.iter().any(|addr| !is_silent(addr)) {
                order.retain(|addr| !is_silent(addr));
            }
            order.shuffle(&mut rand::rng());
            // Taken from the end: those that do not answer anyway come last.
            order.sort_by_key(|addr| !agent.gossip.is_out_of_sight(addr));
        }
        let Some(addr) = hint.take().or_else(|| order.pop()) else {
            tracing::error!("no manager is known: this node was never told one");
            sleep(MAX_PAUSE).await;
            continue;
        };
        let (opened, error) = run(&agent, &addr, &mut last_session).await;
        agent.session.set(None);
        if error.is_removed() {
            tracing::error!(manager = addr, "this node was removed from the cluster: its tasks are stopped");
            tokio::task::block_in_place(|| agent.stop_all());
        }
        if error.is_silence() {
            silent = Some((addr.clone(), Instant::now()));
        }
        // Other managers name a leader that died for as long as they have not elected the next.
        let is_silent =
            |leader: &str| silent.as_ref().is_some_and(|(who, at)| who == leader && at.elapsed() < SILENT_FOR);
        hint = match &error {
            // The same manager, at once.
            SessionError::Renewed | SessionError::Described => Some(addr.clone()),
            _ => error.leader_hint().filter(|leader| *leader != addr && !is_silent(leader)),
        };
        let is_answered = matches!(error, SessionError::Refused(_));
        if opened {
            pause = MIN_PAUSE;
            order.clear();
            tracing::warn!(manager = addr, error = crate::image::chain(&error), "the session ended");
        } else {
            tracing::info!(manager = addr, error = crate::image::chain(&error), "no session");
        }
        // Jitter: a restarted leader must not meet all nodes at once.
        let wait = if hint.is_some() { MIN_PAUSE } else { pause };
        sleep(jittered(wait, 0.5..1.5)).await;
        pause = (pause * 2).min(if is_answered { MAX_PAUSE_ANSWERED } else { MAX_PAUSE });
    }
}

/// Opens a session and stays in it; tells whether it was open.
async fn run(agent: &Arc<Agent>, addr: &str, last_session: &mut String) -> (bool, SessionError) {
    let opened = match open(agent, addr, last_session).await {
        Ok(opened) => opened,
        Err(error) => return (false, error),
    };
    let id = opened.id.clone();
    tracing::info!(manager = addr, session = id, "session open");
    if *last_session != id {
        agent.host.book.unacknowledge_all();
    }
    last_session.clone_from(&id);
    let live = Live { manager: addr.to_owned(), session: id.clone(), dispatcher: opened.dispatcher.clone() };
    agent.session.set(Some(live.clone()));
    // Whoever acknowledges a sequence has those before it: only the latest counts.
    let (acks, to_acknowledge) = watch::channel(None);
    let dispatcher = &opened.dispatcher;
    let pings_suffice = AtomicBool::new(false);
    let answered = Notify::new();
    let ended = tokio::select! {
        Err(e) = listen(agent, addr, opened.messages) => e,
        Err(e) = follow_assignments(agent, dispatcher.clone(), &id, acks) => e,
        Err(e) = acknowledge(agent, dispatcher.clone(), &id, to_acknowledge) => e,
        Err(e) = heartbeat(dispatcher.clone(), &id, opened.period, &pings_suffice) => e,
        Err(e) = ping(agent, dispatcher.clone(), &id, &pings_suffice, &answered) => e,
        Err(e) = lose_sight(&agent.gossip, addr, &answered) => e,
        Err(e) = report(agent, dispatcher.clone(), &id) => e,
        Err(e) = announce_images(agent, dispatcher.clone()) => e,
        e = renewed(opened.renewals) => e,
        () = agent.host.netd.encryption_changed(opened.told) => SessionError::Described,
        Err(e) = keep_containers(agent, &live) => e,
    };
    (true, ended)
}

fn jittered(length: Duration, factor: Range<f64>) -> Duration {
    length.mul_f64(rand::rng().random_range(factor))
}

struct Opened {
    id: String,
    period: Duration,
    dispatcher: Dispatcher,
    messages: Streaming<SessionMessage>,
    renewals: watch::Receiver<Arc<Identity>>,
    /// What managers know of this node and encrypted networks.
    told: Option<Encryption>,
}

/// A session is worth as much as the certificate that it was opened with, and managers end it with that: better one's own
/// time than all nodes at the same.
async fn renewed(mut renewals: watch::Receiver<Arc<Identity>>) -> SessionError {
    match renewals.changed().await {
        Ok(()) => SessionError::Renewed,
        // The identity lives as long as the agent.
        Err(_) => std::future::pending().await,
    }
}

async fn open(agent: &Arc<Agent>, addr: &str, last_session: &str) -> Result<Opened, SessionError> {
    agent.host.netd.first_encryption().await;
    let mut renewals = agent.host.identity.renewals();
    renewals.mark_unchanged();
    let channel = shared_channel(addr, &agent.host.identity, NodeRole::Manager).await?;
    let mut dispatcher = DispatcherClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let description = agent.describe()?;
    let said = description.encryption.clone();
    let description = description.to_proto();
    let request = SessionRequest { description: Some(description), session_id: last_session.to_owned() };
    let mut messages = timeout(CALL_TIMEOUT, dispatcher.session(request)).await??.into_inner();
    let first = timeout(CALL_TIMEOUT, messages.message()).await??.ok_or(SessionError::Ended)?;
    let (id, period) = (first.session_id.clone(), period(first.heartbeat_period_ms));
    let told = said.or_else(|| believed(&first));
    take_message(agent, addr, first);
    Ok(Opened { id, period, dispatcher, messages, renewals, told })
}

/// What the manager knew before of this node and encrypted networks.
fn believed(message: &SessionMessage) -> Option<Encryption> {
    match Object::from_proto(message.node.clone()?) {
        Ok(Object::Node(node)) => node.description.encryption.clone(),
        _ => None,
    }
}

fn period(ms: u64) -> Duration {
    if ms == 0 { DEFAULT_HEARTBEAT } else { Duration::from_millis(ms) }
}

async fn listen(
    agent: &Arc<Agent>,
    addr: &str,
    mut messages: Streaming<SessionMessage>,
) -> Result<Infallible, SessionError> {
    loop {
        let message = messages.message().await?.ok_or(SessionError::Ended)?;
        take_message(agent, addr, message);
    }
}

fn take_message(agent: &Arc<Agent>, addr: &str, message: SessionMessage) {
    if !message.managers.is_empty() {
        agent.set_managers(message.managers);
    }
    if let Some(gossip) = message.gossip {
        agent.gossip.set_config(gossip);
    }
    if let Some(Ok(Object::Node(node))) = message.node.map(Object::from_proto) {
        agent.set_node_role(node.role);
    }
    if message.ping {
        agent.gossip.ask_for_ping();
    }
    if !message.root_cert_pem.is_empty() {
        agent.set_trust(Trust { roots_pem: message.root_cert_pem, issuer: message.certificate_issuer });
    }
    for announced in message.streams {
        let Ok(slot) = agent.stream_slots.clone().try_acquire_owned() else {
            tracing::warn!(stream = announced.stream_id, "more than {MAX_STREAMS} streams at once; one is refused");
            continue;
        };
        let (host, addr) = (agent.host.clone(), addr.to_owned());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = streams::serve(host, addr, announced).await {
                tracing::warn!(error = crate::image::chain(&error), "an announced stream failed");
            }
        });
    }
}

pub(crate) fn stream_slots() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(MAX_STREAMS))
}

async fn follow_assignments(
    agent: &Arc<Agent>,
    mut dispatcher: Dispatcher,
    session: &str,
    acks: watch::Sender<Option<(u64, u64)>>,
) -> Result<Infallible, SessionError> {
    loop {
        let request = AssignmentsRequest { session_id: session.to_owned() };
        let messages = timeout(CALL_TIMEOUT, dispatcher.assignments(request)).await??.into_inner();
        match apply_assignments(agent, messages, &acks).await {
            // Asking again gives everything again.
            Err(SessionError::Assignments(error @ AssignmentError::Gap { .. })) => tracing::warn!(%error, "resync"),
            Err(error) => return Err(error),
            Ok(never) => match never {},
        }
    }
}

async fn apply_assignments(
    agent: &Arc<Agent>,
    mut messages: Streaming<AssignmentsMessage>,
    acks: &watch::Sender<Option<(u64, u64)>>,
) -> Result<Infallible, SessionError> {
    let mut set = AssignmentSet::default();
    loop {
        let message = messages.message().await?.ok_or(SessionError::Ended)?;
        if let Some(delta) = set.apply(message)? {
            let revision = tokio::task::block_in_place(|| agent.apply(&set, &delta));
            acks.send_replace(Some((delta.sequence, revision)));
        }
    }
}

/// Acknowledges the latest sequence once netd has applied it.
async fn acknowledge(
    agent: &Arc<Agent>,
    mut dispatcher: Dispatcher,
    session: &str,
    mut applied: watch::Receiver<Option<(u64, u64)>>,
) -> Result<Infallible, SessionError> {
    loop {
        applied.changed().await.map_err(|_| SessionError::Ended)?;
        let Some((sequence, revision)) = *applied.borrow_and_update() else { continue };
        agent.host.netd.applied(revision).await;
        let request = AckRequest { session_id: session.to_owned(), sequence };
        timeout(UPDATE_TIMEOUT, dispatcher.ack(request)).await??;
    }
}

/// For leaders of earlier versions; others take pings for it.
async fn heartbeat(
    mut dispatcher: Dispatcher,
    session: &str,
    mut every: Duration,
    pings_suffice: &AtomicBool,
) -> Result<Infallible, SessionError> {
    loop {
        sleep(jittered(every, 0.9..1.0)).await;
        if pings_suffice.load(Ordering::Relaxed) {
            continue;
        }
        let request = HeartbeatRequest { session_id: session.to_owned() };
        every = period(timeout(every, dispatcher.heartbeat(request)).await??.into_inner().period_ms);
    }
}

/// Says as often as the leader wants, and when it asks, that this node lives; and at once what it sees of its peers.
async fn ping(
    agent: &Arc<Agent>,
    mut dispatcher: Dispatcher,
    session: &str,
    pings_suffice: &AtomicBool,
    answered: &Notify,
) -> Result<Infallible, SessionError> {
    let mut view = agent.gossip.view();
    let (pings, waiting) = mpsc::channel(1);
    let mut session_id = session.to_owned();
    let mut pongs = timeout(CALL_TIMEOUT, dispatcher.pings(ReceiverStream::new(waiting))).await??.into_inner();
    loop {
        let ping = Ping { session_id: std::mem::take(&mut session_id), view: Some(view.borrow_and_update().clone()) };
        // The receiver ends with the call, which then says why.
        let _ = pings.send(ping).await;
        let pong = timeout(PONG_LIMIT, pongs.message()).await??.ok_or(SessionError::Ended)?;
        answered.notify_waiters();
        pings_suffice.store(pong.period_ms > 0, Ordering::Relaxed);
        let every = if pong.period_ms == 0 { PING_PERIOD } else { Duration::from_millis(pong.period_ms) };
        let wait = until_ping(SystemTime::now(), jittered(every, 0.9..1.0));
        tokio::select! {
            // The sender lives as long as the agent.
            _ = view.changed() => {}
            () = agent.gossip.asked_for_ping() => {}
            () = sleep(wait) => {}
        }
    }
}

/// Gossip knows earlier than any time limit that the manager's node is gone. It may also be gossip that is cut off: as long as
/// the manager answers, it is there.
async fn lose_sight(gossip: &Gossip, addr: &str, answered: &Notify) -> Result<Infallible, SessionError> {
    loop {
        gossip.goes_out_of_sight(addr).await;
        let answer = answered.notified();
        gossip.ask_for_ping();
        timeout(PONG_LIMIT_UNSEEN, answer).await.map_err(|_| SessionError::OutOfSight)?;
        sleep(PING_PERIOD).await;
    }
}

async fn report(agent: &Arc<Agent>, mut dispatcher: Dispatcher, session: &str) -> Result<Infallible, SessionError> {
    let book = &agent.host.book;
    loop {
        let pending = book.pending(MAX_UPDATES);
        if pending.is_empty() {
            book.changed().await;
            continue;
        }
        let updates = pending
            .iter()
            .map(|(task, status)| TaskStatusUpdate { task_id: task.to_string(), status: Some(status.to_proto()) })
            .collect();
        let request = UpdateTaskStatusRequest { session_id: session.to_owned(), updates };
        timeout(UPDATE_TIMEOUT, dispatcher.update_task_status(request)).await??;
        book.acknowledge(&pending);
        let count = u32::try_from(pending.len()).unwrap_or(u32::MAX);
        sleep(UPDATE_PAUSE.saturating_mul(count).clamp(MIN_UPDATE_PAUSE, MAX_UPDATE_PAUSE)).await;
    }
}

/// Tells the leader which images this node can give to others.
async fn announce_images(agent: &Arc<Agent>, mut dispatcher: Dispatcher) -> Result<Infallible, SessionError> {
    let announced_as = agent.announced_as();
    loop {
        let images = agent.host.images.store.list();
        for image in images.into_iter().filter(|image| image.record.announced_as != announced_as) {
            let _turn = agent.host.images.telling.lock().await;
            // While others were announced it may have gone.
            let Some(image) = agent.host.images.store.by_digest(&image.digest) else { continue };
            for request in announcements(agent, &image) {
                match timeout(UPDATE_TIMEOUT, dispatcher.register_image(request)).await? {
                    Err(status) if is_lost(&status) => return Err(status.into()),
                    // Nobody will ask this node for it then, but its registry.
                    Err(_) | Ok(_) => {}
                }
            }
            if let Err(error) = agent.host.images.store.set_announced(&image.digest, &announced_as) {
                tracing::warn!(error = crate::image::chain(&error), "an announced image will be announced again");
            }
        }
        agent.host.images.changed().await;
    }
}

/// Keeps managers at which one-off containers here are on networks of the cluster.
async fn keep_containers(agent: &Arc<Agent>, live: &Live) -> Result<Infallible, SessionError> {
    match agent.locals.presence.keep(live).await {
        // A manager of an earlier version knows nothing of them.
        Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
        Err(status) => Err(status.into()),
        Ok(never) => match never {},
    }
}

/// That this node has the content, whatever it is called; and the names by digest, which mean the same to everybody: by
/// them other nodes find what came from a registry.
fn announcements(agent: &Agent, image: &StoredImage) -> Vec<RegisterImageRequest> {
    let request = |name: &str, digest: &str, holder_only| RegisterImageRequest {
        name: name.to_owned(),
        digest: digest.to_owned(),
        size_bytes: image.record.size_bytes,
        replace: false,
        holder_only,
        // An index is for several.
        platform: (digest == image.digest).then(|| agent.host.images.store.platform(image).to_proto()).flatten(),
    };
    let any_name = image.names.first().map_or("", String::as_str);
    let by_digest = image.names.iter().filter_map(|name| Some(request(name, pinned(name)?, false)));
    std::iter::once(request(any_name, &image.digest, true)).chain(by_digest).collect()
}

fn is_lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unauthenticated)
}

#[cfg(test)]
mod tests {
    use orch_model::{
        Annotations, Meta, NodeId, Timestamp,
        node::{Availability, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, TunnelKey},
    };
    use orch_proto::wire::{GossipConfig, GossipPeer, GossipView};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_manager_out_of_sight_is_lost_once_it_does_not_answer_either() {
        let (gossip, answered) = (Gossip::default(), Notify::new());
        let peers = vec![GossipPeer { node_id: "a".into(), addr: "192.0.2.1".into() }];
        gossip.set_config(GossipConfig { peers, ..GossipConfig::default() });
        let see = |unreachable: &[&str]| {
            let unreachable = unreachable.iter().map(|id| (*id).to_owned()).collect();
            gossip.see(GossipView { unreachable, deaf: false });
        };
        let answer = async |times: usize| {
            for _ in 0..times {
                gossip.asked_for_ping().await;
                answered.notify_waiters();
            }
            Instant::now()
        };
        let lost = async || {
            let error = lose_sight(&gossip, "192.0.2.1:2377", &answered).await;
            assert!(matches!(error, Err(SessionError::OutOfSight)));
            Instant::now()
        };
        let start = Instant::now();
        assert!(timeout(Duration::from_secs(60), lost()).await.is_err(), "nothing was said of it");
        see(&["a"]);
        let (last, lost_at) = tokio::join!(answer(5), lost());
        assert!(last - start >= Duration::from_secs(64), "asked once a second");
        assert!((PONG_LIMIT_UNSEEN..PONG_LIMIT).contains(&(lost_at - last)), "{:?}", lost_at - last);
        see(&[]);
        assert!(timeout(Duration::from_secs(60), lost()).await.is_err(), "it is in sight again");
    }

    /// Or the session would be opened anew when the network daemon says the same.
    #[test]
    fn what_a_manager_knew_before_is_in_its_first_message() {
        let key = Some(Encryption::Key(TunnelKey([7; 32])));
        let node = Node {
            id: NodeId::from_random(1),
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations::default(),
                role: NodeRole::Worker,
                availability: Availability::Active,
            },
            role: NodeRole::Worker,
            description: NodeDescription { encryption: key.clone(), ..NodeDescription::default() },
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: None,
                since: Timestamp::default(),
            },
            manager: None,
            index: 1,
            attachments: std::collections::BTreeMap::new(),
            certificates: None,
        };
        let node = Some(Object::Node(Arc::new(node)).to_proto());
        assert_eq!(believed(&SessionMessage { node, ..SessionMessage::default() }), key);
        assert_eq!(believed(&SessionMessage::default()), None);
    }
}
