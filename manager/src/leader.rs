//! What only the leader does, for as long as it leads: decide, commit, decide again.
//!
//! A reign starts when this manager has become leader and has applied all that was committed before; it ends with
//! everything that was started for it. Nothing of it is remembered: the next leader starts from the state.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use orch_manager_core::plan;
use orch_model::Timestamp;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::{
    authority,
    dispatcher::Reign,
    raft::{Consensus, ProposeError, Proposer},
    random, roles,
};

/// Pause after a commit failed for want of a quorum, before the next try.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// A plan that was refused although nothing has changed is not repeated faster than this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A wake-up is checked at least this often, should the clock jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

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
    let mut changes = consensus.store().changes();
    loop {
        changes.mark_unchanged();
        let view = consensus.store().view();
        let now = proposer.now();
        let decided = tokio::task::spawn_blocking(move || plan::decide(&view.state, now, &mut random::bits)).await;
        let plan = match decided {
            Ok(plan) => plan,
            Err(error) => {
                tracing::error!(%error, "deciding failed");
                wait(&mut changes, None, now).await;
                continue;
            }
        };
        for refused in &plan.refused {
            tracing::error!(refused, "a decision broke a rule of the state (this is a bug)");
        }
        if plan.transactions.is_empty() {
            wait(&mut changes, plan.wake, now).await;
            continue;
        }
        for transaction in plan.transactions {
            match proposer.propose(transaction.changes).await {
                Ok(_) => {}
                Err(ProposeError::Refused(error)) => {
                    tracing::debug!(%error, "the state moved on; deciding again");
                    wait(&mut changes, Some(now + REFUSED_PAUSE), now).await;
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot commit a decision");
                    sleep(RETRY_PAUSE).await;
                    break;
                }
            }
        }
    }
}

async fn wait(changes: &mut watch::Receiver<u64>, wake: Option<Timestamp>, now: Timestamp) {
    let pause = wake.map_or(LONGEST_SLEEP, |at| at.since(now)).min(LONGEST_SLEEP);
    tokio::select! {
        // The store outlives this task.
        _ = changes.changed() => {}
        () = sleep(pause) => {}
    }
}
