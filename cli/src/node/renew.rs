//! Certificates are renewed at a random point between 50 % and 80 % of their life, so that nodes do not ask all at once;
//! and at once when the cluster changes its root.
//!
//! The worker hears from the leader which roots to trust and of which one this node's certificates are to be. What the
//! node uses in the end it reports, because a root goes only when nobody needs it any more.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_model::node::NodeRole;
use orch_proto::{
    ca, code,
    tls::{FOLLOW_INTERVAL, Identity},
    transport::{tls_channel, unix_channel},
    wire::{self, ca_client::CaClient, worker_local_client::WorkerLocalClient},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, transport::Channel};

use super::{
    credentials::{NewKeys, Saved, worker_identity},
    daemon::Role,
    error::{NodeError, Result},
    managers,
    member::Member,
    role::{self, Manager},
    supervisor::Supervisor,
};

const LOOK: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How often the managers' addresses are written down when they changed.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(60);
/// For one manager's answer, and for all of them.
const ASK_LIMIT: Duration = Duration::from_secs(10);
const RENEW_LIMIT: Duration = Duration::from_secs(20);
/// Between tries that failed; doubled up to the longer one.
const MIN_RETRY: Duration = Duration::from_secs(2);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// The daemons use what lies on the disk by then.
const TAKEN_UP: Duration = FOLLOW_INTERVAL.saturating_mul(2).saturating_add(Duration::from_millis(500));

/// Renews for as long as the supervisor runs.
pub(super) async fn keep_fresh(supervisor: Arc<Supervisor>) {
    let mut keeper = Keeper::new();
    loop {
        sleep(LOOK).await;
        keeper.look(&supervisor).await;
    }
}

/// Gets new certificates from the first manager that gives some, and takes the role that they show.
pub(super) async fn renew_now(supervisor: &Supervisor) -> Result<()> {
    let Some(member) = remember_managers(supervisor).await else { return Ok(()) };
    match timeout(RENEW_LIMIT, renew(supervisor, member)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NodeError::Refused("no manager answered in time".to_owned())),
    }
}

/// What is remembered between two looks.
struct Keeper {
    /// Where in a certificate's life it is renewed.
    point: f64,
    retry: Duration,
    not_before: Instant,
    remember_at: Instant,
    /// What lay on the disk when it was last looked at, and since when.
    seen: Option<(Saved, Instant)>,
    reported: Option<Saved>,
}

impl Keeper {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            point: 0.5 + 0.3 * rand::random::<f64>(),
            retry: MIN_RETRY,
            not_before: now,
            remember_at: now + REMEMBER_INTERVAL,
            seen: None,
            reported: None,
        }
    }

    async fn look(&mut self, supervisor: &Supervisor) {
        let Some(member) = supervisor.member() else {
            (self.seen, self.reported) = (None, None);
            return;
        };
        if Instant::now() >= self.remember_at {
            self.remember_at = Instant::now() + REMEMBER_INTERVAL;
            let _ = remember_managers(supervisor).await;
        }
        let told = told(supervisor).await;
        if let Some(told) = &told
            && let Err(error) = take_roots(supervisor, &member, told)
        {
            tracing::warn!(%error, "cannot write the cluster's roots down, will try again");
        }
        let Ok(saved) = Saved::load(&supervisor.paths, member.manager) else { return };
        if Instant::now() >= self.not_before && self.is_due(&saved, told.as_ref()) {
            self.try_to_renew(supervisor, &saved).await;
        }
        self.report(supervisor, &member).await;
    }

    fn is_due(&self, saved: &Saved, told: Option<&wire::WorkerInfo>) -> bool {
        let is_of_another_root = |told: &wire::WorkerInfo| {
            let roots = String::from_utf8_lossy(&told.root_cert_pem);
            let is_right =
                |cert: &str| ca::issuer(cert, &roots).is_ok_and(|i| i.as_deref() == Some(&told.certificate_issuer));
            !told.certificate_issuer.is_empty() && !saved.certificates().all(is_right)
        };
        saved.identities().any(|identity| SystemTime::now() >= due(&identity, self.point))
            || told.is_some_and(is_of_another_root)
    }

    async fn try_to_renew(&mut self, supervisor: &Supervisor, before: &Saved) {
        let outcome = renew_now(supervisor).await;
        match &outcome {
            Ok(()) => tracing::info!("certificates renewed"),
            Err(error) => tracing::warn!(%error, "cannot renew the certificates, will try again"),
        }
        let manager = supervisor.member().is_some_and(|member| member.manager);
        // A locked manager's certificate stays as it is until it is unlocked.
        let is_whole = Saved::load(&supervisor.paths, manager).is_ok_and(|now| now.differs_whole(before));
        self.retry = if outcome.is_ok() && is_whole { MIN_RETRY } else { (self.retry * 2).min(MAX_RETRY) };
        self.not_before = Instant::now() + self.retry;
        self.point = 0.5 + 0.3 * rand::random::<f64>();
    }

    /// Tells the leader once the daemons have taken up what lies on the disk.
    async fn report(&mut self, supervisor: &Supervisor, member: &Member) {
        let Ok(now) = Saved::load(&supervisor.paths, member.manager) else { return };
        let since = match &self.seen {
            Some((seen, since)) if *seen == now => *since,
            Some(_) | None => {
                let since = Instant::now();
                self.seen = Some((now.clone(), since));
                // Whoever brought new ones: what failed before may work with them.
                (self.retry, self.not_before) = (MIN_RETRY, since + MIN_RETRY);
                since
            }
        };
        if self.reported.as_ref() == Some(&now) || since.elapsed() < TAKEN_UP {
            return;
        }
        let report = now.report();
        let call = |mut client: CaClient<Channel>| {
            let report = report.clone();
            async move { client.report(report).await }
        };
        match timeout(RENEW_LIMIT, ask(supervisor, member, call)).await {
            Ok(Ok(_)) => self.reported = Some(now),
            // A manager that does not know the call is of an older version.
            Ok(Err(NodeError::Answer(status))) if status.code() == Code::Unimplemented => self.reported = Some(now),
            Ok(Err(error)) => tracing::debug!(%error, "cannot report the certificates yet"),
            Err(_) => tracing::debug!("no manager takes the report of the certificates"),
        }
    }
}

/// What the leader told this node's worker, while it has a session.
async fn told(supervisor: &Supervisor) -> Option<wire::WorkerInfo> {
    let ask = async {
        let channel = unix_channel(&supervisor.paths.worker_sock()).await.ok()?;
        Some(WorkerLocalClient::new(channel).info(wire::Empty {}).await.ok()?.into_inner())
    };
    timeout(ANSWER_LIMIT, ask).await.ok().flatten().filter(|info| !info.manager.is_empty())
}

/// Trusts what the leader trusts, from now on.
fn take_roots(supervisor: &Supervisor, member: &Member, told: &wire::WorkerInfo) -> Result<()> {
    let roots = String::from_utf8_lossy(&told.root_cert_pem);
    if roots.is_empty() || Saved::load(&supervisor.paths, member.manager)?.trusts_exactly(&roots) {
        return Ok(());
    }
    let Ok(_operation) = supervisor.begin() else { return Ok(()) };
    if supervisor.member().as_ref() != Some(member) {
        return Ok(());
    }
    Saved::write_roots(&supervisor.paths, member.manager, &roots)?;
    if member.manager {
        supervisor.hand_over(Role::Manager)?;
    }
    tracing::info!(roots = ca::digests(&roots)?.len(), "the cluster's roots have changed");
    Ok(())
}

/// Keeps the state file's list current: after a restart it is all this node has.
async fn remember_managers(supervisor: &Supervisor) -> Option<Member> {
    let mut member = supervisor.member()?;
    let managers = managers::known(supervisor, &member).await;
    if managers != member.managers
        && let Ok(_operation) = supervisor.begin()
        && supervisor.member().as_ref() == Some(&member)
    {
        member.managers = managers;
        if let Err(error) = supervisor.become_member(member.clone()) {
            tracing::warn!("cannot write the managers' addresses down: {error:#}");
        }
    }
    Some(member)
}

/// Counted from when it was made: what it is backdated by is no part of its life.
fn due(identity: &Identity, point: f64) -> SystemTime {
    let (start, end) = (identity.issued_at(), identity.not_after());
    start + end.duration_since(start).unwrap_or_default().mul_f64(point)
}

/// The first answer of a manager: this node's own, if it is one (that works also with certificates that have expired),
/// or else the others over the network.
async fn ask<T, F>(
    supervisor: &Supervisor,
    member: &Member,
    call: impl Fn(CaClient<Channel>) -> F,
) -> Result<Answered<T>>
where
    F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
{
    let mut own_is_locked = false;
    if member.manager
        && let Ok(channel) = unix_channel(&supervisor.paths.manager_sock()).await
    {
        match timeout(ASK_LIMIT, call(CaClient::new(channel))).await {
            Ok(Ok(answer)) => return Ok(Answered { answer: answer.into_inner(), own_is_locked }),
            Ok(Err(status)) => own_is_locked = code::of(&status) == Some("locked"),
            Err(_) => {}
        }
    }
    let identity = worker_identity(&supervisor.paths)?;
    let mut failure = NodeError::Refused("this node knows no manager".to_owned());
    for addr in &member.managers {
        let answer = async {
            let channel = tls_channel(addr, &identity, NodeRole::Manager).await?;
            call(CaClient::new(channel)).await.map_err(NodeError::answered)
        };
        match timeout(ASK_LIMIT, answer).await {
            Ok(Ok(answer)) => return Ok(Answered { answer: answer.into_inner(), own_is_locked }),
            // So say all of them, also those that do not answer now.
            Ok(Err(error)) if needs_manager_key(&error) => return Err(error),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = NodeError::Refused(format!("{addr} did not answer in time")),
        }
    }
    Err(failure)
}

/// Whether a manager's certificate was refused to the worker's key; the worker's own can be had by it.
pub(super) fn needs_manager_key(error: &NodeError) -> bool {
    matches!(error, NodeError::Answer(status) if code::of(status) == Some(code::NEEDS_MANAGER_KEY))
}

struct Answered<T> {
    answer: T,
    /// This node's manager waits for its unlock key: it could not seal a new private key.
    own_is_locked: bool,
}

async fn renew(supervisor: &Supervisor, member: Member) -> Result<()> {
    let keys = NewKeys::generate()?;
    let request = wire::RenewRequest {
        worker_csr_pem: keys.worker.csr_pem.clone(),
        // Answered only when this node is to be a manager.
        manager_csr_pem: keys.manager.csr_pem.clone(),
    };
    let ask_for = async |request: wire::RenewRequest| {
        let call = |mut client: CaClient<Channel>| {
            let request = request.clone();
            async move { client.renew(request).await }
        };
        ask(supervisor, &member, call).await
    };
    let (answer, manager) = match ask_for(request.clone()).await {
        Ok(Answered { answer, own_is_locked }) => {
            let manager = Manager::with(&answer, own_is_locked);
            (answer, manager)
        }
        Err(error) if member.manager && needs_manager_key(&error) => {
            tracing::warn!(%error, "this node's manager keeps the certificate that it has");
            let alone = wire::RenewRequest { manager_csr_pem: String::new(), ..request };
            (ask_for(alone).await?.answer, Manager::Stays)
        }
        Err(error) => return Err(error),
    };
    let _operation = supervisor.begin()?;
    // It may have left, or be another node by now, or have another address.
    let Some(member) = supervisor.member().filter(|now| now.node_id == member.node_id) else {
        return Err(NodeError::Refused("the node left its cluster meanwhile".to_owned()));
    };
    role::take_with(supervisor, member, keys, &answer, manager).await.map(drop)
}

#[cfg(test)]
pub(super) mod tests;
