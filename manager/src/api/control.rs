//! The `Control` service. The gate has checked the caller and that this manager leads; the core decides; here a
//! decision is committed, again when the state moved on meanwhile.

use std::{sync::Arc, time::Duration};

use orch_manager_core::{
    State,
    control::{self, ControlError, Proposal},
    resolve,
    roles::Seats,
};
use orch_model::{Kind, ObjectId, Timestamp, Version, cluster::JoinTokens};
use orch_proto::{
    ca,
    conv::{FromProto, ToProto},
    report,
    tls::{JoinToken, SharedIdentity, UnlockKey},
    wire::{self, control_server},
};
use prost::Message as _;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    budget::Tab,
    filter::{Filter, shown},
    forward::VIA_KEY,
    info, outgoing,
    spec::{self, Spec},
    status,
    watch::{self, WatchStream},
};
use crate::{
    authority,
    dispatcher::Reign,
    leader::Throne,
    raft::{Consensus, ProposeError},
    random,
    streams::{self, ExecStream, LogStream},
};

const ATTEMPTS: usize = 5;

/// Answers the control API on the leader.
#[derive(Clone)]
pub struct ControlService {
    /// Held while a list is put together.
    listing: Arc<tokio::sync::Mutex<()>>,
    consensus: Consensus,
    throne: Throne,
    identity: SharedIdentity,
}

impl ControlService {
    #[must_use]
    pub fn new(consensus: Consensus, throne: Throne, identity: SharedIdentity) -> Self {
        Self { listing: Arc::default(), consensus, throne, identity }
    }

    fn reign(&self) -> Result<Arc<Reign>, Status> {
        self.throne.load_full().ok_or_else(|| status::not_leader(&self.consensus.leadership().borrow()))
    }

    /// Returns once this manager, leader or not, knows everything that was committed before the call.
    async fn caught_up(&self) -> Result<(), Status> {
        self.consensus.catch_up().await.map_err(|e| status::from_catch_up(&e))
    }

    /// The reign, once this manager is sure that nobody has taken over meanwhile.
    async fn reader(&self) -> Result<Arc<Reign>, Status> {
        let reign = self.reign()?;
        self.consensus.read_barrier().await.map_err(|e| status::from_catch_up(&e))?;
        Ok(reign)
    }
}

#[tonic::async_trait]
impl control_server::Control for ControlService {
    type WatchStream = WatchStream;
    type LogsStream = LogStream;
    type ExecStream = ExecStream;

    async fn create(&self, request: Request<wire::CreateRequest>) -> Result<Response<wire::CreateResponse>, Status> {
        let reign = self.reign()?;
        let wanted = request.into_inner().spec;
        let (object, warnings) =
            commit(&reign, |state, now| create(state, now, wanted.clone()).map_err(|status| *status)).await?;
        Ok(Response::new(wire::CreateResponse { object, warnings }))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Result<Response<wire::UpdateResponse>, Status> {
        let reign = self.reign()?;
        let request = request.into_inner();
        let (object, warnings) = commit(&reign, |state, now| {
            update(state, now, &request, &self.consensus.seats()).map_err(|status| *status)
        })
        .await?;
        Ok(Response::new(wire::UpdateResponse { object, warnings }))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Result<Response<wire::RemoveResponse>, Status> {
        let reign = self.reign()?;
        let wire::RemoveRequest { kind, reference, force, when_free } = request.into_inner();
        let remove = if when_free { control::remove_when_free } else { control::remove };
        let kind = kind_from(kind)?;
        let proposal = propose(&reign, |state, now| {
            let id = resolve::id(state, kind, &reference).map_err(|e| status::from_resolve(&e))?;
            remove(state, now, &id, force).map_err(|e| status::from_control(&e))
        })
        .await?;
        if let ObjectId::Node(node) = &proposal.id {
            reign.expel(node);
        }
        Ok(Response::new(wire::RemoveResponse { id: Some(proposal.id.to_proto()) }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::Object>, Status> {
        self.caught_up().await?;
        let wire::GetRequest { kind, reference } = request.into_inner();
        let view = self.consensus.store().view();
        let found = resolve::object(&view.state, kind_from(kind)?, &reference);
        found.map(|o| Response::new(outgoing::object(&o))).map_err(|e| status::from_resolve(&e))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let tab = request.extensions().get::<Tab>().cloned();
        tab.as_ref().map_or(Ok(()), Tab::begin_list)?;
        self.caught_up().await?;
        // One at a time: a list holds up a thread, and calls that take no time have to get past it.
        let _turn = self.listing.lock().await;
        let wire::ListRequest { kind, filters } = request.into_inner();
        let filter = Filter::new(filters).map_err(|status| *status)?;
        let view = self.consensus.store().view();
        let objects = shown(&view.state, kind_from(kind)?, &filter).iter().map(outgoing::object).collect();
        let answer = wire::ListResponse { objects };
        tab.map_or(Ok(()), |tab| tab.owe(answer.encoded_len()))?;
        Ok(Response::new(answer))
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        self.caught_up().await?;
        // What there is already is a list, until the watcher has it.
        let turn = request.extensions().get::<Tab>().map(Tab::for_a_list).transpose()?;
        let wire::WatchRequest { kinds, filters, after } = request.into_inner();
        let kinds = kinds.into_iter().map(kind_from).collect::<Result<Vec<_>, _>>()?;
        let filter = Filter::new(filters).map_err(|status| *status)?;
        let stream = watch::watch(self.consensus.clone(), kinds, filter, after)?;
        Ok(Response::new(held_until_synced(stream, turn)))
    }

    async fn rotate_join_token(
        &self,
        request: Request<wire::RotateJoinTokenRequest>,
    ) -> Result<Response<wire::RotateJoinTokenResponse>, Status> {
        let reign = self.reign()?;
        let wire::RotateJoinTokenRequest { worker, manager } = request.into_inner();
        propose(&reign, |state, now| {
            let cluster = state.cluster().ok_or_else(status::no_leader)?;
            let fresh = || {
                let token = JoinToken::generate(&cluster.root_ca.cert_pem, random::bits());
                token.map_err(|e| Status::internal(e.to_string()))
            };
            let mut tokens: JoinTokens = cluster.join_tokens.clone();
            if worker {
                tokens.worker = fresh()?;
            }
            if manager {
                tokens.manager = fresh()?;
            }
            control::set_join_tokens(state, now, tokens).map_err(|e| status::from_control(&e))
        })
        .await?;
        let view = reign.consensus().store().view();
        let tokens = view.state.cluster().map(|c| c.join_tokens.clone()).ok_or_else(status::no_leader)?;
        let answer = wire::RotateJoinTokenResponse { worker_token: tokens.worker, manager_token: tokens.manager };
        Ok(Response::new(answer))
    }

    async fn info(&self, request: Request<wire::Empty>) -> Result<Response<wire::ClusterInfo>, Status> {
        let own = self.identity.current().node_id.to_string();
        let via = request.metadata().get(VIA_KEY).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Ok(Response::new(info::cluster_info(&self.consensus, &via.unwrap_or(own))))
    }

    async fn get_unlock_key(&self, _: Request<wire::Empty>) -> Result<Response<wire::UnlockKey>, Status> {
        let reign = self.reader().await?;
        Ok(Response::new(unlock_key(&reign.consensus().store().view().state)))
    }

    async fn rotate_unlock_key(&self, _: Request<wire::Empty>) -> Result<Response<wire::UnlockKey>, Status> {
        let reign = self.reign()?;
        let key = UnlockKey::generate(random::bits()).text();
        propose(&reign, |state, now| {
            control::set_unlock_key(state, now, key.clone()).map_err(|e| status::from_control(&e))
        })
        .await?;
        Ok(Response::new(unlock_key(&reign.consensus().store().view().state)))
    }

    async fn rotate_root(&self, request: Request<wire::RotateRootRequest>) -> Result<Response<wire::Empty>, Status> {
        let reign = self.reign()?;
        let request = request.into_inner();
        let expiry = Some(request.cert_expiry_ms).filter(|ms| *ms != 0).map(Duration::from_millis);
        let clock = reign.consensus().wall_clock();
        propose(&reign, |state, now| {
            let cluster = state.cluster().ok_or_else(status::no_leader)?;
            let new = authority::new_root(cluster, &request, clock)
                .map_err(|e| status::with_code(Code::InvalidArgument, "bad-root", report::chain(&e)))?;
            let rotated = control::rotate_root(state, now, &cluster.root_ca, new, expiry, ca::min_cert_expiry());
            rotated.map_err(|e| status::from_control(&e))
        })
        .await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Result<Response<LogStream>, Status> {
        let reign = self.reader().await?;
        streams::logs(reign, request.into_inner()).map(Response::new)
    }

    async fn exec(&self, request: Request<Streaming<wire::ExecInput>>) -> Result<Response<ExecStream>, Status> {
        let reign = self.reader().await?;
        streams::exec(reign, request.into_inner()).await.map(Response::new)
    }
}

fn held_until_synced(stream: WatchStream, mut turn: Option<Tab>) -> WatchStream {
    Box::pin(tokio_stream::StreamExt::map(stream, move |message| {
        if !message.as_ref().is_ok_and(|message| !message.synced) {
            drop(turn.take());
        }
        message
    }))
}

fn unlock_key(state: &State) -> wire::UnlockKey {
    let key = state.cluster().and_then(|cluster| cluster.unlock_key.clone());
    wire::UnlockKey { key: key.map(|key| key.0).unwrap_or_default() }
}

/// Commits the proposal and returns the object as it is then.
async fn commit(
    reign: &Reign,
    decide: impl Fn(&State, Timestamp) -> Result<Proposal, Status>,
) -> Result<(Option<wire::Object>, Vec<String>), Status> {
    let proposal = propose(reign, decide).await?;
    let view = reign.consensus().store().view();
    let object = view.state.get(&proposal.id).map(|o| outgoing::object(&o));
    Ok((object, proposal.warnings))
}

/// Commits what `decide` makes of the state. When others were quicker it decides again: either that works, or it gives
/// the reason in its own words.
async fn propose(
    reign: &Reign,
    decide: impl Fn(&State, Timestamp) -> Result<Proposal, Status>,
) -> Result<Proposal, Status> {
    let mut outcome = Err(Status::aborted("others keep changing the same objects: try again"));
    for _ in 0..ATTEMPTS {
        let view = reign.consensus().store().view();
        let proposal = decide(&view.state, reign.proposer().now())?;
        if proposal.transaction.changes.is_empty() {
            return Ok(proposal);
        }
        match reign.proposer().propose(proposal.transaction.changes.clone()).await {
            Ok(_) => return Ok(proposal),
            Err(ProposeError::Refused(error)) => outcome = Err(status::from_control(&ControlError::from(error))),
            Err(other) => return Err(status::from_propose(&other)),
        }
    }
    outcome
}

fn create(state: &State, now: Timestamp, wanted: Option<wire::Spec>) -> Result<Proposal, Box<Status>> {
    let ids = &mut random::bits;
    let proposal = match spec::decode(state, wanted)? {
        Spec::Service(service) => control::create_service(state, now, ids, *service),
        Spec::Network(network) => control::create_network(state, now, ids, network),
        Spec::Secret(annotations, data, template) => {
            control::create_secret(state, now, ids, annotations, data, template)
        }
        Spec::Config(annotations, data, template) => {
            control::create_config(state, now, ids, annotations, data, template)
        }
        Spec::Node(_) => Err(ControlError::invalid("nodes are not created but join: \"orch join-token worker\"")),
        Spec::Cluster(_) => Err(ControlError::invalid("a cluster is made by \"orch init\"")),
    };
    proposal.map_err(|e| Box::new(status::from_control(&e)))
}

fn update(
    state: &State,
    now: Timestamp,
    request: &wire::UpdateRequest,
    seats: &Seats,
) -> Result<Proposal, Box<Status>> {
    let kind = kind_from(request.kind)?;
    let id = resolve::id(state, kind, &request.id).map_err(|e| status::from_resolve(&e))?;
    let version = Version(request.version);
    if request.rollback {
        let ObjectId::Service(id) = &id else {
            return Err(Box::new(Status::invalid_argument(format!("a {kind} cannot be rolled back"))));
        };
        let proposal = control::rollback_service(state, now, id, version);
        return proposal.map_err(|e| Box::new(status::from_control(&e)));
    }
    if request.rebalance {
        let ObjectId::Service(id) = &id else {
            return Err(Box::new(Status::invalid_argument(format!("a {kind} cannot be rebalanced"))));
        };
        return control::rebalance_service(state, now, id).map_err(|e| Box::new(status::from_control(&e)));
    }
    if request.unpin {
        let ObjectId::Service(id) = &id else {
            return Err(Box::new(Status::invalid_argument(format!("volumes do not hold a {kind}"))));
        };
        let slots = request.slots.iter().copied().collect();
        return control::unpin_service(state, now, id, &slots).map_err(|e| Box::new(status::from_control(&e)));
    }
    let proposal = match (&id, spec::decode(state, request.spec.clone())?) {
        (ObjectId::Service(id), Spec::Service(service)) => control::update_service(state, now, id, version, *service),
        (ObjectId::Secret(id), Spec::Secret(annotations, data, _)) if request.new_version => {
            control::replace_secret(state, now, &mut random::bits, id, version, annotations, data)
        }
        (ObjectId::Config(id), Spec::Config(annotations, data, _)) if request.new_version => {
            control::replace_config(state, now, &mut random::bits, id, version, annotations, data)
        }
        (ObjectId::Secret(id), Spec::Secret(annotations, data, _)) => {
            control::update_secret(state, now, id, version, annotations, &data)
        }
        (ObjectId::Config(id), Spec::Config(annotations, data, _)) => {
            control::update_config(state, now, id, version, annotations, &data)
        }
        (ObjectId::Node(id), Spec::Node(node)) => control::update_node(state, now, id, version, node, seats),
        (ObjectId::Cluster(_), Spec::Cluster(cluster)) => {
            let fresh = UnlockKey::generate(random::bits()).text();
            control::update_cluster(state, now, version, cluster, ca::min_cert_expiry(), fresh)
        }
        (ObjectId::Network(_), Spec::Network(_)) => {
            Err(ControlError::invalid("a network cannot be changed: remove it and create it anew"))
        }
        _ => Err(ControlError::invalid(format!("this spec is not one of a {kind}"))),
    };
    proposal.map_err(|e| Box::new(status::from_control(&e)))
}

fn kind_from(kind: i32) -> Result<Kind, Status> {
    Kind::from_proto(kind).map_err(|e| status::malformed(&e))
}
