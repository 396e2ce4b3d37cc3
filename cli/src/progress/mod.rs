//! Waiting until a service is as its spec says, with a display.
//!
//! [`state`] decides, from tasks and service objects, what to show and whether it is over; this module feeds it from a
//! watch and prints. Leaving early (Ctrl-C) changes nothing in the cluster.

mod all;
mod display;
mod state;

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use orch_model::{
    Kind, Object, ObjectId, ServiceId, Timestamp,
    service::{Service, UpdateStatus},
};
use orch_proto::wire;
use tokio::time::{Instant, sleep_until};

pub(crate) use all::wait_all;
pub(crate) use state::is_paused;

use self::{
    display::Display,
    state::{Progress, Verdict},
};
use crate::{
    api::{Api, WatchEvent, explain, watch_events},
    watching::News,
};

/// The service to wait for, and what of its state is from before the change.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    id: ServiceId,
    /// A status that was there before is not the outcome of this change.
    stale_update: Option<Timestamp>,
    rollback: bool,
    after: Arc<Service>,
}

impl Watched {
    pub(crate) fn after_create(service: &Arc<Service>) -> Self {
        Self { id: service.id.clone(), stale_update: None, rollback: false, after: service.clone() }
    }

    pub(crate) fn after_update(before: &Service, after: &Arc<Service>) -> Self {
        let finished = |status: &UpdateStatus| status.completed_at.is_some() || state::is_paused(status.state);
        let stale_update = before.update_status.as_ref().filter(|s| finished(s)).map(|s| s.started_at);
        Self { id: after.id.clone(), stale_update, rollback: false, after: after.clone() }
    }

    pub(crate) fn after_rollback(before: &Service, after: &Arc<Service>) -> Self {
        Self { rollback: true, ..Self::after_update(before, after) }
    }
}

/// How long a service may look hopeless before the wait for it ends.
const PATIENCE: Duration = Duration::from_secs(10);

const REMOVED: &str = "the service was removed while waiting for it";

fn stuck(reason: &str, service: &str) -> String {
    format!(
        "{reason}\nThe service stays as it was asked for. See `orch service ps --no-trunc {service}`; correct it with \
         `orch service update {service}`, or remove it with `orch service rm {service}`"
    )
}

/// Returns once the service has converged and stayed so for its monitoring period.
pub(crate) async fn wait(api: &mut Api, watched: &Watched, quiet: bool) -> anyhow::Result<()> {
    let id = watched.id.to_string();
    let of_service = wire::Filters { service_ids: vec![id.clone()], ..wire::Filters::default() };
    let itself = wire::Filters { ids: vec![id.clone()], ..wire::Filters::default() };
    let mut tasks = api.watch(Kind::Task, of_service);
    let mut services = api.watch(Kind::Service, itself);

    let mut progress = Progress::new(watched.after.clone(), watched.stale_update, watched.rollback);
    let mut display = Display::new(quiet);
    let mut stable_at: Option<Instant> = None;
    let mut give_up_at: Option<Instant> = None;
    let (mut has_tasks, mut has_services, mut is_there) = (false, false, false);
    loop {
        // Before both watches have sent what is there, nothing can be said.
        if has_tasks && has_services {
            display.show(&progress.view());
            let verdict = progress.verdict();
            if !matches!(verdict, Verdict::Stuck(_)) {
                give_up_at = None;
            }
            match verdict {
                Verdict::Waiting => {
                    if stable_at.take().is_some() {
                        display.say("verify: Detected task failure");
                    }
                }
                Verdict::Stuck(reason) => {
                    stable_at = None;
                    if *give_up_at.get_or_insert_with(|| Instant::now() + PATIENCE) <= Instant::now() {
                        display.finish();
                        bail!("{}", stuck(&reason, &watched.after.spec.annotations.name));
                    }
                }
                Verdict::Converged => {
                    if progress.is_job() {
                        display.say("job complete");
                        display.finish();
                        return Ok(());
                    }
                    let monitor = progress.monitor();
                    if stable_at.is_none() {
                        display.waiting_to_verify(monitor);
                        stable_at = Some(Instant::now() + monitor);
                    }
                }
                Verdict::Failed(reason) => {
                    display.finish();
                    bail!("{reason}");
                }
            }
        }
        let deadline = stable_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            news = tasks.next() => match news {
                Ok(News::Anew) => {
                    has_tasks = false;
                    progress.forget_tasks();
                }
                Ok(News::Changes(response)) => {
                    has_tasks |= response.synced;
                    observe(&mut progress, response, &watched.id)?;
                }
                Err(status) => return Err(lost(&mut display, status, &id)),
            },
            news = services.next() => match news {
                Ok(News::Anew) => (has_services, is_there) = (false, false),
                Ok(News::Changes(response)) => {
                    is_there |= !response.events.is_empty();
                    has_services |= response.synced;
                    if has_services && !is_there {
                        display.finish();
                        bail!("{REMOVED}");
                    }
                    observe(&mut progress, response, &watched.id)?;
                }
                Err(status) => return Err(lost(&mut display, status, &id)),
            },
            // Looked at again, and given up if nothing has changed.
            () = sleep_until(give_up_at.unwrap_or(deadline)), if give_up_at.is_some() => {}
            () = sleep_until(deadline), if stable_at.is_some() => {
                display.say(&format!("verify: Service {id} converged"));
                display.finish();
                return Ok(());
            }
            interrupt = tokio::signal::ctrl_c() => {
                interrupt?;
                display.finish();
                println!("Operation continuing in background.\nUse `orch service ps {id}` to check progress.");
                return Ok(());
            }
        }
    }
}

fn lost(display: &mut Display, status: tonic::Status, service: &str) -> anyhow::Error {
    display.finish();
    explain(status).context(format!(
        "lost the manager while waiting; the operation goes on. Use `orch service ps {service}` to check progress"
    ))
}

fn observe(progress: &mut Progress, response: wire::WatchResponse, service: &ServiceId) -> anyhow::Result<()> {
    for event in watch_events(response)? {
        match event {
            WatchEvent::Put(Object::Task(task)) if task.service == *service => progress.put_task(task),
            WatchEvent::Put(Object::Service(object)) if object.id == *service => progress.put_service(object),
            WatchEvent::Removed(ObjectId::Task(id)) => progress.remove_task(&id),
            WatchEvent::Removed(ObjectId::Service(id)) if id == *service => {
                bail!("{REMOVED}");
            }
            _ => {}
        }
    }
    Ok(())
}
