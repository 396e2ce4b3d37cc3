//! What only the leader does, for as long as it leads: decide, commit, decide again.
//!
//! A reign starts when this manager has become leader and has applied all that was committed before; it ends with
//! everything that was started for it. Nothing of it is remembered: the next leader starts from the state.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use orch_manager_core::{
    ApplyError,
    plan::{self, Planner},
};
use orch_model::{
    Timestamp,
    change::{Change, Transaction},
};
use tokio::{
    sync::broadcast::error::TryRecvError,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    authority,
    dispatcher::Reign,
    raft::{Commit, Commits, Committed, Consensus, ProposeError, Proposer, Store, View},
    random, roles,
};

/// Pause after a commit failed for want of a quorum, before the next try.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// A plan that was refused although nothing has changed is not repeated faster than this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A plan that was refused so often, one time after the other, is taken apart where it is refused.
const REFUSALS: u32 = 3;
/// A wake-up is checked at least this often, should the clock jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// After deciding that nothing is to be done, the next look waits for so many times as long as that took: at most a
/// fifth of a core goes into looking. Only where it takes long: a small cluster decides within a millisecond.
const RESTS: u32 = 4;
const SHORTEST_REST: Duration = Duration::from_millis(20);
const LONGEST_REST: Duration = Duration::from_millis(500);

/// The current reign, for the services; empty while another manager leads.
pub type Throne = Arc<ArcSwapOption<Reign>>;

/// Starts and ends reigns until raft stops.
pub async fn watch(consensus: Consensus, proposer: Proposer, throne: Throne) {
    let mut leadership = consensus.leadership();
    loop {
        let term = match leadership.wait_for(|l| l.is_own || l.failed.is_some()).await {
            Ok(now) if now.failed.is_none() => now.term,
            _ => return,
        };
        tokio::select! {
            () = reign(&consensus, &proposer, &throne, term) => {}
            _ = leadership.wait_for(|l| !l.is_own || l.term != term || l.failed.is_some()) => {}
        }
        if let Some(ended) = throne.swap(None) {
            ended.end();
            tracing::info!(term, "this manager no longer leads");
        }
    }
}

async fn reign(consensus: &Consensus, proposer: &Proposer, throne: &Throne, term: u64) {
    // Decisions need the whole state, also what former leaders committed.
    while let Err(error) = consensus.read_barrier().await {
        tracing::debug!(%error, "waiting for a quorum before leading");
        sleep(RETRY_PAUSE).await;
    }
    tracing::info!(term, "this manager leads");
    let reign = Reign::start(consensus.clone(), proposer.clone());
    throne.store(Some(Arc::clone(&reign)));
    // Dropping the set ends the tasks.
    let mut tasks = JoinSet::new();
    tasks.spawn(decide(consensus.clone(), proposer.clone()));
    tasks.spawn(Arc::clone(&reign).run());
    tasks.spawn(roles::reconcile(Arc::clone(&reign)));
    tasks.spawn(authority::rotate(Arc::clone(&reign)));
    if let Some(Err(error)) = tasks.join_next().await {
        tracing::error!(%error, "a task of the leader failed; leading anew");
    }
    sleep(RETRY_PAUSE).await;
}

/// Commits what follows from the state, and waits until something else may follow.
async fn decide(consensus: Consensus, proposer: Proposer) {
    let store = Arc::clone(consensus.store());
    let mut commits = store.commits();
    let mut planner = Planner::default();
    let mut refusals = 0;
    loop {
        while let Ok(commit) = commits.try_recv().map(Some).or_else(lagged) {
            note(&mut planner, &store.view(), commit.as_deref());
        }
        let now = proposer.now();
        if planner.is_idle(now) {
            wait(&mut commits, &mut planner, &store, now).await;
            continue;
        }
        let view = store.view();
        let started = Instant::now();
        let decided = tokio::task::spawn_blocking(move || {
            let plan = planner.decide(&view.state, now, &mut random::bits);
            (planner, plan)
        });
        let (returned, plan) = match decided.await {
            Ok(decided) => decided,
            Err(error) => {
                tracing::error!(%error, "deciding failed");
                sleep(REFUSED_PAUSE).await;
                planner = Planner::default();
                continue;
            }
        };
        planner = returned;
        for refused in &plan.refused {
            tracing::error!(refused, "a decision broke a rule of the state (this is a bug)");
        }
        // While thousands of tasks report, there is nothing to decide after each of them: what takes long is not done
        // all the time. What has been decided is committed at once.
        let rest =
            if plan.transactions.is_empty() { (started.elapsed() * RESTS).min(LONGEST_REST) } else { Duration::ZERO };
        let committed = match refusals < REFUSALS {
            true => commit(&proposer, plan.transactions).await,
            false => commit_apart(&proposer, plan.transactions).await,
        };
        refusals = if committed.is_ok() { 0 } else { refusals };
        match committed {
            Ok(()) if rest > SHORTEST_REST => {
                planner.committed();
                sleep(rest).await;
            }
            Ok(()) => planner.committed(),
            Err(error @ (ProposeError::Refused(_) | ProposeError::TooLarge { .. })) => {
                refusals += 1;
                tracing::debug!(%error, refusals, "the state moved on; deciding again");
                // What moved it is on its way to here.
                let _ = timeout(REFUSED_PAUSE, commits.recv()).await.map(|commit| {
                    note(&mut planner, &store.view(), commit.ok().as_deref());
                });
                planner.failed();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot commit a decision");
                sleep(RETRY_PAUSE).await;
                planner.failed();
            }
        }
    }
}

async fn commit(proposer: &Proposer, transactions: Vec<Transaction>) -> Result<(), ProposeError> {
    for transaction in transactions {
        proposer.propose(transaction.changes).await?;
    }
    Ok(())
}

/// Commits what can be committed of a plan that is refused again and again: one change that does not fit must not keep
/// all others, of all services, from their turn. Only what is refused is taken apart: the rest goes as fast as ever.
async fn commit_apart(proposer: &Proposer, transactions: Vec<Transaction>) -> Result<(), ProposeError> {
    let mut outcome = Ok(());
    let mut waiting: VecDeque<_> = transactions.into_iter().map(|transaction| transaction.changes).collect();
    while let Some(changes) = waiting.pop_front() {
        let error = match proposer.propose(changes.clone()).await {
            Err(error @ (ProposeError::Refused(_) | ProposeError::TooLarge { .. })) => error,
            other => {
                other?;
                continue;
            }
        };
        let parts = smaller(&changes, &error);
        if parts.is_empty() {
            match error {
                ProposeError::Refused(ApplyError::Stale { .. } | ApplyError::Missing(_)) => {
                    tracing::debug!(%error, "the state moved on; deciding again");
                }
                _ => tracing::warn!(%error, "a decision is refused again and again (this is a bug); the others go on"),
            }
            outcome = Err(error);
        }
        parts.into_iter().rev().for_each(|part| waiting.push_front(part));
    }
    outcome
}

/// The parts that may be committed of changes that may not, together; none when they cannot be taken apart.
fn smaller(changes: &[Change], error: &ProposeError) -> Vec<Vec<Change>> {
    let parts = match plan::parts(changes) {
        slot if slot.len() == 1 && matches!(error, ProposeError::TooLarge { .. }) => {
            changes.chunks(1).map(<[Change]>::to_vec).collect()
        }
        parts => parts,
    };
    if parts.len() > 1 { parts } else { Vec::new() }
}

/// Having missed commits is news, too.
fn lagged(error: TryRecvError) -> Result<Option<Arc<Commit>>, TryRecvError> {
    match error {
        TryRecvError::Lagged(_) => Ok(None),
        other => Err(other),
    }
}

/// Tells the planner what a commit has changed; `None`: nobody knows.
fn note(planner: &mut Planner, view: &View, commit: Option<&Commit>) {
    match commit.map(|commit| &commit.change) {
        Some(Committed::Transactions(transactions)) => {
            let events = transactions.iter().flat_map(|events| events.iter());
            events.for_each(|event| planner.note(&view.state, event));
        }
        Some(Committed::Replaced) | None => planner.start_over(),
    }
}

async fn wait(commits: &mut Commits, planner: &mut Planner, store: &Store, now: Timestamp) {
    let pause = planner.next_wake().map_or(LONGEST_SLEEP, |at| at.since(now)).min(LONGEST_SLEEP);
    tokio::select! {
        commit = commits.recv() => note(planner, &store.view(), commit.ok().as_deref()),
        () = sleep(pause) => {}
    }
}
