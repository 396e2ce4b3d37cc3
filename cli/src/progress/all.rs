//! Waiting for all services of a stack at once.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use orch_model::{Kind, Object, ObjectId, ServiceId};
use orch_proto::wire;
use tokio::time::{Instant, sleep_until};

use super::{
    PATIENCE, Watched,
    display::Display,
    state::{Progress, Verdict, View, overall},
};
use crate::{
    api::{Api, WatchEvent, explain, watch_events},
    watching::News,
};

/// One of several services that are waited for.
struct Entry {
    name: String,
    progress: Progress,
    settling: Settling,
}

/// How far the wait for a service is.
enum Settling {
    Waiting,
    /// As its spec says; done when it stays so until then.
    Until(Instant),
    /// Looks hopeless; given up when it does so until then.
    GiveUp(Instant, String),
    Failed(String),
}

impl Entry {
    fn look(&mut self, now: Instant) {
        let next = match (self.progress.verdict(), &self.settling) {
            (_, Settling::Failed(_)) => return,
            (Verdict::Converged, Settling::Until(_)) | (Verdict::Stuck(_), Settling::GiveUp(..)) => return,
            (Verdict::Converged, _) => Settling::Until(now + self.progress.monitor()),
            (Verdict::Stuck(reason), _) => Settling::GiveUp(now + PATIENCE, reason),
            (Verdict::Failed(reason), _) => Settling::Failed(reason),
            (Verdict::Waiting, _) => Settling::Waiting,
        };
        self.settling = next;
    }

    /// Whether time has made it final; converged ones are final together only, as they may still change.
    fn expire(&mut self, now: Instant) {
        if let Settling::GiveUp(at, reason) = &self.settling
            && *at <= now
        {
            self.settling = Settling::Failed(reason.clone());
        }
    }

    fn line(&self) -> (String, String) {
        let view = self.progress.view();
        let word = if self.progress.is_job() { "complete" } else { "running" };
        let counts = format!("{}/{} {word}", view.running, view.total);
        let text = match &self.settling {
            Settling::Failed(reason) => format!("failed: {reason}"),
            Settling::GiveUp(_, reason) => format!("{counts} ({reason})"),
            _ => match self.progress.waits_for() {
                Some(reason) => reason,
                None => counts,
            },
        };
        (self.name.clone(), text)
    }
}

/// Returns once all services have converged and stayed so, or an error that names those that will not.
pub(crate) async fn wait_all(api: &mut Api, watched: &[Watched], quiet: bool) -> anyhow::Result<()> {
    let ids: Vec<String> = watched.iter().map(|watched| watched.id.to_string()).collect();
    let of_services = wire::Filters { service_ids: ids.clone(), ..wire::Filters::default() };
    let themselves = wire::Filters { ids, ..wire::Filters::default() };
    if watched.is_empty() {
        return Ok(());
    }
    let mut tasks = api.watch(Kind::Task, of_services);
    let mut services = api.watch(Kind::Service, themselves);
    let mut entries: BTreeMap<ServiceId, Entry> = watched.iter().map(entry).collect();
    let mut display = Display::new(quiet);
    let (mut has_tasks, mut has_services) = (false, false);
    loop {
        let now = Instant::now();
        let mut next = None;
        if has_tasks && has_services {
            next = settle(&mut entries, now);
            display.show(&view(&entries));
            if let Some(outcome) = outcome(&entries, now) {
                display.finish();
                return outcome;
            }
        }
        let wake = next.unwrap_or_else(|| now + Duration::from_secs(3600));
        let (news, is_of_tasks) = tokio::select! {
            news = tasks.next() => (news, true),
            news = services.next() => (news, false),
            () = sleep_until(wake) => continue,
            interrupt = tokio::signal::ctrl_c() => {
                interrupt?;
                display.finish();
                bail!("no longer waiting: the deployment goes on in the background; see `orch stack ps`");
            }
        };
        let has = if is_of_tasks { &mut has_tasks } else { &mut has_services };
        match news {
            Ok(News::Anew) => {
                *has = false;
                if is_of_tasks {
                    entries.values_mut().for_each(|entry| entry.progress.forget_tasks());
                }
            }
            Ok(News::Changes(response)) => {
                *has |= response.synced;
                observe_all(&mut entries, response)?;
            }
            Err(status) => {
                display.finish();
                return Err(explain(status).context("lost the manager while waiting; the deployment goes on"));
            }
        }
    }
}

fn entry(watched: &Watched) -> (ServiceId, Entry) {
    let progress = Progress::new(watched.after.clone(), watched.stale_update, watched.rollback);
    let name = watched.after.spec.annotations.name.clone();
    (watched.id.clone(), Entry { name, progress, settling: Settling::Waiting })
}

/// Returns when to look again, if nothing happens until then.
fn settle(entries: &mut BTreeMap<ServiceId, Entry>, now: Instant) -> Option<Instant> {
    for entry in entries.values_mut() {
        entry.look(now);
        entry.expire(now);
    }
    let has_failed = entries.values().any(|entry| matches!(entry.settling, Settling::Failed(_)));
    let is_open = |entry: &Entry| matches!(entry.settling, Settling::Waiting);
    // What only waits for a service that will not run will not run either.
    let all_held = entries.values().filter(|e| is_open(e)).all(|entry| entry.progress.waits_for().is_some());
    if has_failed && all_held {
        for entry in entries.values_mut().filter(|entry| is_open(entry)) {
            let reason = entry.progress.waits_for().unwrap_or_default();
            entry.settling = Settling::Failed(reason);
        }
    }
    entries
        .values()
        .filter_map(|entry| match &entry.settling {
            Settling::Until(at) | Settling::GiveUp(at, _) if *at > now => Some(*at),
            _ => None,
        })
        .min()
}

fn outcome(entries: &BTreeMap<ServiceId, Entry>, now: Instant) -> Option<anyhow::Result<()>> {
    let is_final = |entry: &Entry| match &entry.settling {
        Settling::Until(at) => *at <= now,
        Settling::Failed(_) => true,
        Settling::Waiting | Settling::GiveUp(..) => false,
    };
    if !entries.values().all(is_final) {
        return None;
    }
    let failed: Vec<String> = entries
        .values()
        .filter_map(|entry| match &entry.settling {
            Settling::Failed(reason) => Some(format!("{}: {reason}", entry.name)),
            _ => None,
        })
        .collect();
    if failed.is_empty() {
        return Some(Ok(()));
    }
    let count = format!("{} of {} services do not run as asked for", failed.len(), entries.len());
    Some(Err(anyhow::anyhow!("{count}; the stack stays as it is:\n{}", failed.join("\n"))))
}

fn view(entries: &BTreeMap<ServiceId, Entry>) -> View {
    let views: Vec<View> = entries.values().map(|entry| entry.progress.view()).collect();
    let mut lines: Vec<(String, String)> = entries.values().map(Entry::line).collect();
    lines.sort();
    let running = views.iter().map(|view| view.running).sum();
    let total = views.iter().map(|view| view.total).sum();
    View { running, total, head: overall(running, total), notice: None, lines }
}

fn observe_all(entries: &mut BTreeMap<ServiceId, Entry>, response: wire::WatchResponse) -> anyhow::Result<()> {
    for event in watch_events(response)? {
        match event {
            WatchEvent::Put(Object::Task(task)) => {
                if let Some(entry) = entries.get_mut(&task.service) {
                    entry.progress.put_task(task);
                }
            }
            WatchEvent::Put(Object::Service(service)) => {
                if let Some(entry) = entries.get_mut(&service.id) {
                    entry.progress.put_service(service);
                }
            }
            WatchEvent::Removed(ObjectId::Task(id)) => {
                entries.values_mut().for_each(|entry| entry.progress.remove_task(&id));
            }
            WatchEvent::Removed(ObjectId::Service(id)) => {
                if let Some(entry) = entries.get_mut(&id) {
                    entry.settling = Settling::Failed("it was removed".into());
                }
            }
            _ => {}
        }
    }
    Ok(())
}
