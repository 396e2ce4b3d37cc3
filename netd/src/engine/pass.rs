//! One pass: from what should be to what is.
//!
//! The order is that of dependence: namespaces and DNS sockets, the plan, the node's own namespace, sandboxes, tasks,
//! then what nobody wants any more, and last the connections that must be forgotten (when their rules are gone): that
//! goes on beside the passes that follow.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use orch_model::{TaskId, node::Encryption};
use orch_netd_core::{
    dns::View,
    flows::{self, Backends},
    ns::{NsName, NsPlan},
    plan::{Plan, plan},
    settings::{FORWARD_ALL, forwarding_of},
};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Engine,
    apply::{Job, Outcome},
    choose_gateway, look_for_way_out_v6, underlay_mtu,
};
use crate::{
    conntrack,
    counts::{self, Counts},
    dns::{self, Server, TaskView},
    firewall,
    netlink::{self, Namespaces},
    netns::{self, NetNs},
    store::StoredTask,
};

/// Every how many checks the tasks' counters are read.
const TASK_COUNT_PERIOD: u32 = 4;
/// How long backends that come wait for others, at least and at most.
const BACKENDS_PAUSE: Duration = Duration::from_millis(100);
const MAX_BACKENDS_PAUSE: Duration = Duration::from_millis(500);
/// How many times as long as it takes to tell all tasks of new backends is waited before the next time.
const PAUSE_FACTOR: u32 = 10;
/// Namespaces worked on at once.
pub(super) const MAX_PARALLEL: usize = 8;

impl Engine {
    /// Makes it so. With `check` every namespace is looked at, else only those whose plan changed.
    pub(super) async fn pass(&mut self, check: bool) {
        self.update_facts(check).await;
        self.look_for_way_out_v6(check).await;
        self.forget_old_suspects();
        self.prepare_tasks().await;
        if check {
            self.look_at_firewall().await;
        }
        let plan = plan(self.inputs());
        self.keep_settings(&plan);
        self.open_sandboxes(&plan).await;
        // Before anybody is told that a task is attached.
        self.save_tasks();
        let waits = !check && self.may_wait(&plan.backends);
        let began = Instant::now();
        self.apply_all(&plan, check, waits).await;
        let applied = began.elapsed();
        self.count(&plan, check).await;
        self.remove_unwanted(&plan).await;
        self.forget_flows(&plan).await;
        for (id, view) in plan.views {
            self.set_view(&id, view);
        }
        let node = self.desired.own_peer().map(|peer| peer.data_addr);
        self.entries.set(&plan.entries, node, check);
        self.standings = plan.standings;
        // Else senders are looked at again when the rules are what they should be.
        if !self.problems.contains_key(&NsName::Host) {
            self.doors = plan.doors;
        }
        self.late = waits.then(|| self.turned + self.pause);
        if !waits && self.backends != plan.backends {
            self.backends.clone_from(&plan.backends);
            self.turned = Instant::now();
            self.pause = pause_after(applied);
        }
        self.latest = plan.backends;
        self.plan_problems = plan.problems;
        self.save_tasks();
    }

    /// What a task can ask for by name.
    fn set_view(&self, id: &TaskId, view: View) {
        if let (Some(server), Some(task)) = (self.servers.get(id), self.tasks.get(id)) {
            server.set_view(TaskView { view, nameservers: task.nameservers.clone() });
        }
    }

    /// Of a crowd of backends that come one after the other, the first is in every task's rules at once, and the others
    /// together a little later: rules for each one for each task would cost the square of their number.
    fn may_wait(&self, backends: &Backends) -> bool {
        *backends != self.backends
            && self.turned.elapsed() < self.pause
            && flows::only_more(&self.backends, backends)
            // What has come and gone meanwhile is in the rules of who was attached in between.
            && flows::only_more(&self.latest, backends)
    }

    async fn update_facts(&mut self, check: bool) {
        let Some(host) = self.namespaces.get(&NsName::Host) else { return };
        let subnets: Vec<_> = self.desired.networks.values().flat_map(|n| n.subnets.iter().copied()).collect();
        if self.tasks.is_empty() && self.gateway.overlaps(&subnets) {
            match choose_gateway(host, &self.desired).await {
                Ok(gateway) => {
                    self.gateway = gateway;
                    self.last_addr = None;
                    if let Err(error) = self.store.save_gateway(gateway) {
                        tracing::warn!(%error, "cannot save the gateway network");
                    }
                }
                Err(error) => tracing::warn!(%error, "the gateway network overlaps another one"),
            }
        }
        if let Some(addr) = self.desired.own_peer().map(|peer| peer.data_addr)
            && (check || self.underlay.is_none_or(|(known, _)| known != addr))
        {
            self.underlay = underlay_mtu(host, addr).await.map(|mtu| (addr, mtu));
        }
    }

    /// Only where a task wants it: the node's settings are changed for it. With `check`, and for the first such task.
    async fn look_for_way_out_v6(&mut self, check: bool) {
        let wanted = self.tasks.values().any(|task| task.wants_way_out_v6(&self.desired));
        let is_first = wanted && !std::mem::replace(&mut self.looks_for_v6, wanted);
        let Some(host) = self.namespaces.get(&NsName::Host).filter(|_| wanted) else {
            self.way_out_v6 = None;
            return;
        };
        if !(check || is_first) {
            return;
        }
        match look_for_way_out_v6(host, self.gateway_v6, self.settings.clone()).await {
            Ok(found) => self.way_out_v6 = found,
            Err(error) => tracing::warn!(%error, "cannot read how the node goes out by IPv6"),
        }
    }

    /// Before they are changed.
    fn keep_settings(&mut self, plan: &Plan) {
        let Some(host) = plan.namespaces.get(&NsName::Host) else { return };
        let mut unknown: Vec<_> = self.settings.unknown(host).map(str::to_owned).collect();
        if unknown.iter().any(|path| path == FORWARD_ALL) {
            // The kernel sets each with all.
            let links = netlink::links_with_v6().unwrap_or_default().into_iter().map(|link| link.name);
            unknown.extend(links.chain(["default".to_owned()]).map(|link| forwarding_of(&link)));
        }
        let read = |path: String| netlink::read_setting(&path).ok().map(|value| (path, value));
        let now: Vec<_> = unknown.into_iter().filter_map(read).collect();
        if now.is_empty() {
            return;
        }
        now.into_iter().for_each(|(path, value)| self.settings.keep(path, value));
        if let Err(error) = self.store.save_settings(&self.settings) {
            tracing::warn!(%error, "cannot save what the node's settings were: they will not be put back when it leaves");
        }
    }

    async fn look_at_firewall(&mut self) {
        let Some(host) = self.namespaces.get(&NsName::Host).cloned() else { return };
        let inside = host.clone();
        let forwards_v6 = self.way_out_v6.is_some();
        let seen = host.run(move || firewall::obstacle(&*inside.netfilter()?, forwards_v6)).await;
        // Unreadable rules are no reason to say anything about them.
        let seen = seen.inspect_err(|error| tracing::debug!(%error, "cannot read the node's firewall")).ok().flatten();
        if seen != self.firewall {
            match &seen {
                Some(problem) => tracing::warn!("{problem}"),
                None => tracing::info!("the node's firewall no longer drops what it forwards"),
            }
            self.firewall = seen;
        }
    }

    /// Gives each task its namespace and DNS server.
    async fn prepare_tasks(&mut self) {
        let mut work = JoinSet::new();
        let limit = Arc::new(Semaphore::new(MAX_PARALLEL));
        for (id, task) in self.tasks.iter().filter(|(id, _)| !self.servers.contains_key(id)) {
            let (id, port, path) = (id.clone(), task.dns_port, self.store.task_netns(id));
            let kept = self.keeper.take(&id);
            let known = self.namespaces.get(&NsName::Task(id.clone())).cloned();
            let limit = limit.clone();
            work.spawn(async move {
                let _permit = limit.acquire_owned().await;
                (id, prepare(known, path, port, kept).await)
            });
        }
        while let Some(done) = work.join_next().await {
            let Ok((id, prepared)) = done else { continue };
            let result = prepared.and_then(|Prepared { ns, sockets, is_new }| {
                if is_new {
                    self.new.insert(id.clone());
                }
                self.namespaces.insert(NsName::Task(id.clone()), ns);
                let port = sockets.port;
                self.keeper.hold(&id, &sockets);
                self.servers.insert(id.clone(), Server::start(sockets, self.resolvers.clone())?);
                Ok(port)
            });
            match (result, self.tasks.get_mut(&id)) {
                (Ok(port), Some(task)) if task.dns_port != port => {
                    task.dns_port = port;
                    self.unsaved.insert(id);
                }
                (Err(error), _) => drop(self.problems.insert(NsName::Task(id), error.to_string())),
                (Ok(_), _) => {}
            }
        }
    }

    async fn open_sandboxes(&mut self, plan: &Plan) {
        for name in plan.namespaces.keys() {
            let NsName::Sandbox(network) = name else { continue };
            if self.namespaces.contains_key(name) {
                continue;
            }
            let path = self.store.sandbox_netns(network);
            match NetNs::create(&path).await {
                Ok(ns) => drop(self.namespaces.insert(name.clone(), ns)),
                Err(error) => drop(self.problems.insert(name.clone(), error.to_string())),
            }
        }
    }

    /// In rounds, since links between namespaces are made from the earlier one. With `rules_wait` tasks of which nothing but
    /// rules has changed stay as they are.
    async fn apply_all(&mut self, plan: &Plan, check: bool, rules_wait: bool) {
        let mut touched = BTreeSet::new();
        // One for all: as many copies as namespaces would be much memory.
        let peers = Arc::new(self.namespaces.clone());
        for round in [is_host, is_crypt, is_sandbox, is_task] {
            let mut work = JoinSet::new();
            let limit = Arc::new(Semaphore::new(MAX_PARALLEL));
            for (name, wanted) in plan.namespaces.iter().filter(|(name, _)| round(name)) {
                let last = self.applied.get(name).map(|applied| &*applied.plan);
                let changed = last.is_none_or(|last| last != wanted);
                if !(check || changed || touched.contains(name)) {
                    continue;
                }
                let only_rules = last.is_some_and(|last| last.is_but_for_rules(wanted));
                if rules_wait && only_rules && is_task(name) && !touched.contains(name) {
                    continue;
                }
                self.churned |= changed;
                let thorough = check || touched.contains(name);
                let Some(mut job) = self.job(name, wanted, thorough, &peers) else { continue };
                job.made_anew = touched.contains(name);
                let limit = limit.clone();
                work.spawn(async move {
                    let _permit = limit.acquire_owned().await;
                    job.run().await
                });
            }
            while let Some(done) = work.join_next().await {
                let Ok((name, outcome)) = done else { continue };
                touched.extend(outcome.touched.iter().cloned());
                self.record(name.clone(), outcome);
                if let NsName::Task(id) = &name
                    && self.attaching.contains_key(id)
                    && self.applied.contains_key(&name)
                    && let Some(view) = plan.views.get(id)
                {
                    self.set_view(id, view.clone());
                    self.answer_attaching(id);
                }
            }
        }
    }

    fn job(&self, name: &NsName, wanted: &NsPlan, thorough: bool, peers: &Arc<Namespaces>) -> Option<Job> {
        let last = self.applied.get(name).cloned();
        let known = last.as_ref().map(|last| last.plan.clone()).filter(|plan| **plan == *wanted);
        Some(Job {
            name: name.clone(),
            ns: self.namespaces.get(name)?.clone(),
            plan: known.unwrap_or_else(|| Arc::new(wanted.clone())),
            thorough,
            made_anew: false,
            is_new: matches!(name, NsName::Task(id) if self.new.contains(id)),
            last,
            peers: peers.clone(),
        })
    }

    fn record(&mut self, name: NsName, outcome: Outcome) {
        if let NsName::Task(id) = &name {
            self.new.remove(id);
        }
        if let (NsName::Task(id), true) = (&name, outcome.ended) {
            self.take_down(id);
            self.deaths = true;
        }
        match outcome.error {
            Some(error) => {
                tracing::warn!(ns = %name, %error, "a namespace is not as it should be");
                self.problems.insert(name.clone(), error.to_string());
            }
            None => drop(self.problems.remove(&name)),
        }
        if let Some(key) = outcome.key {
            // Another one when somebody removed the device: the worker tells managers.
            self.encryption = Encryption::Key(key);
        }
        match outcome.applied {
            Some(applied) => drop(self.applied.insert(name, applied)),
            None => drop(self.applied.remove(&name)),
        }
    }

    /// Reads counters: with `check` those that are few every time, those of tasks (one for each service that each may ask)
    /// now and then; else those that are about to go.
    async fn count(&mut self, plan: &Plan, check: bool) {
        self.checks += u32::from(check);
        let tasks_too = self.checks.is_multiple_of(TASK_COUNT_PERIOD);
        let goes = |name: &NsName| !plan.namespaces.contains_key(name);
        let is_due = |name: &NsName| goes(name) || (check && (tasks_too || !is_task(name)));
        let mut work = JoinSet::new();
        let limit = Arc::new(Semaphore::new(MAX_PARALLEL));
        for (id, server) in self.servers.iter().filter(|_| check) {
            let service = self.requests.get(id).and_then(|request| request.service_id.parse().ok());
            if let (Some(service), questions @ 1..) = (service, server.take_queries()) {
                Counts::add_questions(&service, questions, &self.desired);
            }
        }
        for (name, applied) in self.applied.iter().filter(|(name, _)| is_due(name)) {
            let Some(socket) = self.namespaces.get(name).and_then(NetNs::opened_netfilter) else { continue };
            let (name, applied, limit) = (name.clone(), applied.plan.clone(), limit.clone());
            work.spawn(async move {
                let _permit = limit.acquire_owned().await;
                (name, blocking(move || counts::read(&socket, &applied.ruleset)).await)
            });
        }
        while let Some(done) = work.join_next().await {
            match done {
                Ok((name, Ok(readings))) => self.counts.add(&name, readings, &self.desired, self.tasks.keys()),
                Ok((name, Err(error))) => tracing::debug!(ns = %name, %error, "cannot read counters"),
                Err(_) => {}
            }
        }
    }

    /// Takes away namespaces that nobody wants; several at once, since each waits for a grace period of the kernel.
    async fn remove_unwanted(&mut self, plan: &Plan) {
        let unwanted: Vec<_> = self.namespaces.keys().filter(|n| !plan.namespaces.contains_key(n)).cloned().collect();
        self.churned |= !unwanted.is_empty();
        let mut work = JoinSet::new();
        let limit = Arc::new(Semaphore::new(MAX_PARALLEL));
        for name in unwanted {
            let Some(ns) = self.namespaces.remove(&name) else { continue };
            self.applied.remove(&name);
            self.counts.forget(&name);
            self.problems.remove(&name);
            let path = match &name {
                NsName::Host | NsName::Crypt => continue,
                NsName::Sandbox(network) => self.store.sandbox_netns(network),
                NsName::Task(id) => {
                    self.servers.remove(id);
                    self.keeper.let_go(id);
                    self.unsaved.remove(id);
                    self.new.remove(id);
                    self.store.task_netns(id)
                }
            };
            let limit = limit.clone();
            work.spawn(async move {
                let _permit = limit.acquire_owned().await;
                let removed = match &name {
                    NsName::Sandbox(_) => remove_sandbox(ns, path).await,
                    NsName::Host | NsName::Crypt | NsName::Task(_) => blocking(move || netns::remove(&path)).await,
                };
                if let Err(error) = removed {
                    tracing::warn!(ns = %name, %error, "cannot remove a namespace");
                }
            });
        }
        while work.join_next().await.is_some() {}
    }

    async fn forget_flows(&mut self, plan: &Plan) {
        self.forget_redirected(plan).await;
        let cuts = flows::cuts(&self.standings, &plan.standings);
        flows::gather(&mut self.forgetting.gathered, cuts, &plan.standings);
        self.forget_gathered();
    }

    /// Senders of datagrams to ports of the node that lead elsewhere by now; the first pass looks at all.
    async fn forget_redirected(&self, plan: &Plan) {
        let ports = flows::redirected(&self.doors, &plan.doors);
        let Some(host) = self.namespaces.get(&NsName::Host).filter(|_| !ports.is_empty()).cloned() else { return };
        let (inside, doors) = (host.clone(), plan.doors.clone());
        match host.run(move || conntrack::forget_senders(&*inside.netfilter()?, &ports, &doors)).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "forgot where senders of datagrams were led"),
            Err(error) => tracing::warn!(%error, "cannot forget where senders of datagrams were led"),
        }
    }

    fn save_tasks(&mut self) {
        for id in std::mem::take(&mut self.unsaved) {
            let (Some(request), Some(task)) = (self.requests.get(&id), self.tasks.get(&id)) else { continue };
            if let Err(error) = self.store.save_task(&StoredTask::new(request.clone(), task), &id) {
                tracing::warn!(task = %id, %error, "cannot save a task");
                self.unsaved.insert(id);
                return;
            }
        }
    }
}

fn is_host(name: &NsName) -> bool {
    matches!(name, NsName::Host)
}

fn is_crypt(name: &NsName) -> bool {
    matches!(name, NsName::Crypt)
}

fn is_sandbox(name: &NsName) -> bool {
    matches!(name, NsName::Sandbox(_))
}

fn is_task(name: &NsName) -> bool {
    matches!(name, NsName::Task(_))
}

/// At most a tenth of the daemon's time goes into rules for more of the same, as long as nobody waits too long for them.
fn pause_after(took: Duration) -> Duration {
    (took * PAUSE_FACTOR).clamp(BACKENDS_PAUSE, MAX_BACKENDS_PAUSE)
}

/// A task's namespace with what its DNS server listens on.
struct Prepared {
    ns: NetNs,
    sockets: dns::Sockets,
    is_new: bool,
}

async fn prepare(known: Option<NetNs>, path: PathBuf, port: u16, kept: Option<dns::Sockets>) -> io::Result<Prepared> {
    // Where users are remapped, the worker has made it: it belongs to the container's users.
    let Some(ns) = known.or_else(|| NetNs::open(&path).ok().flatten()) else {
        let (ns, sockets) = NetNs::create_and(&path, move || dns::open(port)).await?;
        return Ok(Prepared { ns, sockets, is_new: true });
    };
    let sockets = match kept.filter(|kept| ns.has(&kept.udp).unwrap_or(false)) {
        Some(kept) => kept,
        None => ns.run(move || dns::open(port)).await?,
    };
    Ok(Prepared { ns, sockets, is_new: false })
}

async fn remove_sandbox(ns: NetNs, path: PathBuf) -> io::Result<()> {
    // A tunnel with the same number could not be made while the kernel still takes its time with this one.
    ns.run(netlink::delete_all_links).await?;
    blocking(move || netns::remove(&path)).await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_all_rules_take_the_rarer_they_are_loaded() {
        for (took, pause) in [(0, 100), (9, 100), (20, 200), (49, 490), (51, 500), (10_000, 500)] {
            assert_eq!(pause_after(Duration::from_millis(took)), Duration::from_millis(pause), "{took} ms");
        }
    }
}
