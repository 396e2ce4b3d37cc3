//! Carries out changes of roles while this manager leads, one step at a time.
//!
//! The core says what comes next from the state and the membership alone. What cannot be done now is tried again: a
//! manager that comes back, or the next leader, makes it possible.

use std::{sync::Arc, time::Duration};

use orch_manager_core::roles::{Step, next_step};
use orch_model::node::NodeRole;
use tokio::time::{sleep, timeout};

use crate::dispatcher::Reign;

/// Reachability is not in the state, so it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a step that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Works for as long as the reign.
pub(crate) async fn reconcile(reign: Arc<Reign>) {
    let mut changes = reign.consensus().store().changes();
    // Nothing is to be done as long as these are the same.
    let mut settled = None;
    loop {
        changes.mark_unchanged();
        let step = {
            let view = reign.consensus().store().view();
            let now = (view.state.nodes_mark(), reign.consensus().seats());
            if settled.as_ref() == Some(&now) {
                None
            } else {
                let step = next_step(&view.state, &now.1);
                settled = step.is_none().then_some(now);
                step
            }
        };
        let Some(step) = step else {
            if reign.consensus().is_between_members() {
                tracing::info!("ending a change of the managers that was begun before");
                if let Err(error) = reign.consensus().settle_members().await {
                    tracing::warn!(%error, "cannot change the managers now; trying again");
                    sleep(RETRY).await;
                }
                continue;
            }
            // The store outlives this task.
            let _ = timeout(LOOK, changes.changed()).await;
            continue;
        };
        tracing::info!(?step, "changing the managers");
        if let Err(error) = carry_out(&reign, step).await {
            tracing::warn!(error, "cannot change the managers now; trying again");
            sleep(RETRY).await;
        }
    }
}

async fn carry_out(reign: &Reign, step: Step) -> Result<(), String> {
    let consensus = reign.consensus();
    match step {
        Step::Grant(id) => {
            let granted = reign.edit_node(&id, |node| {
                // The operator may have thought better of it meanwhile.
                if node.spec.role == NodeRole::Manager {
                    node.role = NodeRole::Manager;
                }
            });
            granted.await.map(drop).map_err(|e| e.to_string())
        }
        Step::Revoke(id) => {
            let revoked = reign.edit_node(&id, |node| {
                if node.spec.role == NodeRole::Worker {
                    node.role = NodeRole::Worker;
                    node.manager = None;
                }
            });
            revoked.await.map(drop).map_err(|e| e.to_string())
        }
        Step::Remove { raft_id } => consensus.remove_member(raft_id, false).await.map_err(|e| e.to_string()),
        Step::HandOver { heir } => {
            consensus.hand_over_to(heir).await;
            if consensus.is_leader() { Err("the other manager did not take over".to_owned()) } else { Ok(()) }
        }
    }
}
