//! Start, stop, end, restart and removal of a one-off container.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_model::{
    TaskId,
    task::{Health, Task},
};
use orch_proto::{
    conv::ToProto,
    wire::{HealthResult, LocalContainer, LocalState},
};
use tokio::time::{sleep, timeout};

use super::{
    LocalError, Locals, One, Run,
    attachment::{attach_request, has_namespace},
    create::HOST,
    health_report,
    joined::Joined,
    live::spec_now,
    policy::{self, Restart},
};
use crate::{
    agent::{delete_container, prepare, signal_number, unix_ms, waiting::Steps},
    contents::is_mounted,
    events::health_action,
    image::{chain, rootfs::Rootfs},
    runtime::{Attachment, Container, ContainerPlan, Exit, HealthCheck, HostOptions, LogFiles, Recovered},
};

/// Between the stop signal and SIGKILL, when neither the user nor the container says.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
const WATCH_RETRY_PAUSE: Duration = Duration::from_secs(1);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// Of a container that went away with its machine; Docker's.
const CODE_LOST: i32 = 255;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub code: i32,
    pub error: String,
}

/// Whether a restart is one for `RestartCount`, and for how often the policy allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Yes,
    No,
}

impl Locals {
    /// Fine when it runs already; then nobody is attached.
    pub(crate) async fn start(
        self: &Arc<Self>,
        one: &Arc<One>,
        attach: Option<bool>,
    ) -> Result<Option<Attachment>, LocalError> {
        let _turn = one.turn.lock().await;
        if one.is_removed() {
            return Err(LocalError::NotFound(one.container_id()));
        }
        if one.now().container.is_some() {
            return Ok(None);
        }
        {
            let mut now = one.now();
            now.restarts = 0;
            now.record.restart_count = 0;
        }
        self.start_now(one, attach).await
    }

    async fn start_now(
        self: &Arc<Self>,
        one: &Arc<One>,
        attach: Option<bool>,
    ) -> Result<Option<Attachment>, LocalError> {
        let started = self.try_start(one, attach).await;
        match &started {
            Ok(_) => {}
            Err(error) => {
                self.give_back(one).await;
                let (code, text) = (error.exit_code(), chain(error));
                self.change(one, |now| {
                    // Docker leaves a container that could not be started as created.
                    now.record.state = LocalState::Created.into();
                    now.record.exit_code = code;
                    now.record.error = text;
                });
            }
        }
        started
    }

    async fn try_start(
        self: &Arc<Self>,
        one: &Arc<One>,
        attach: Option<bool>,
    ) -> Result<Option<Attachment>, LocalError> {
        let (host, task) = (&self.host, &one.task);
        // Held until it runs.
        let (ports, _starting) = self.assign_ports(one)?;
        let attachments = self.join_networks(one).await?;
        let record = LocalContainer { ports: ports.to_proto(), ..one.now().record.clone() };
        let joined = self.joined(&record)?;
        let ground = prepare::Ground {
            keep_root: true,
            attach: has_namespace(&record).then(|| attach_request(one, &record, &attachments)),
            remap: self.remap_of(&record),
            files_of: joined.as_ref().map(|joined| joined.files_of.clone()),
        };
        let host_network = record.network == HOST || joined.as_ref().is_some_and(Joined::is_nodes);
        let earlier_checks = earlier_checks(&record);
        // Held until it is made, as what is joined.
        let (options, _held) = self.host_options(&record.options.unwrap_or_default())?;
        let options = HostOptions { joined: joined.as_ref().and_then(Joined::netns), earlier_checks, ..options };
        let prepared = prepare::prepare_on(host, task, Arc::default(), ground, &Steps::new().0).await?;
        let spec = spec_now(one);
        let address = prepared.address.clone();
        let plan = ContainerPlan {
            task_id: one.id.clone(),
            container_id: one.container_id(),
            rootfs: prepared.rootfs,
            image: prepared.defaults,
            spec: &spec,
            netns: prepared.netns,
            host_network,
            binds: prepared.binds,
            log: self.log_files(one),
            options,
            users: prepared.users,
        };
        let container = host.runtime.create(&plan).await?;
        // From here on the shim exists: whoever fails deletes it.
        let attached = match attach {
            Some(stdin) => Some(container.attach(stdin).await),
            None => None,
        };
        let attached = match attached.transpose() {
            Ok(attached) => attached,
            Err(error) => return Err(self.give_up(&container, error).await),
        };
        if let Err(error) = container.start().await {
            return Err(self.give_up(&container, error).await);
        }
        let profile = container.apparmor_profile().unwrap_or_default();
        self.change(one, |now| {
            now.container = Some(container.clone());
            now.record.apparmor_profile = profile;
            now.ending = None;
            now.address = address;
            now.health = container.is_checked().then_some(Health::Starting);
            now.record.ports = ports.to_proto();
            now.record.state = LocalState::Running.into();
            now.record.started_at_ms = unix_ms(SystemTime::now());
            now.record.error = String::new();
            now.record.oom_killed = false;
            now.record.stopped = false;
            now.record.paused = false;
            now.record.health = None;
        });
        self.tell(one, "start");
        self.clone().supervise(one.clone(), container, Some(Health::Starting));
        Ok(attached)
    }

    async fn give_up(&self, container: &Container, error: crate::runtime::RuntimeError) -> LocalError {
        if let Err(error) = container.delete().await {
            tracing::warn!(task = %container.task_id(), error = chain(&error), "a container that did not start stays");
        }
        error.into()
    }

    /// Follows it to its end, and its health from what is known of it.
    fn supervise(self: Arc<Self>, one: Arc<One>, container: Container, health: Option<Health>) {
        if container.is_checked() {
            tokio::spawn(follow_health(self.clone(), one.clone(), container.clone(), health));
        }
        tokio::spawn(async move {
            let exit = loop {
                match container.wait().await {
                    Ok(exit) => break exit,
                    Err(error) => tracing::warn!(task = %one.id, error = chain(&error), "cannot watch the container"),
                }
                sleep(WATCH_RETRY_PAUSE).await;
            };
            self.ended(one, container, exit).await;
        });
    }

    /// Boxed: an end may be followed by a start, which is followed by an end.
    fn ended(
        self: Arc<Self>,
        one: Arc<One>,
        container: Container,
        exit: Exit,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            // Once it is deleted, nobody else knows how it ended; what it had may take a while to go.
            self.change(&one, |now| now.ending = Some(exit.clone()));
            if let Err(error) = container.delete().await {
                tracing::warn!(task = %one.id, error = chain(&error), "the container is not deleted");
            }
            self.give_back(&one).await;
            let mut next = None;
            // Decided and written in one: who stops it now either is heeded or finds it restarting.
            self.change(&one, |now| {
                if policy::is_stable(exit.ran()) {
                    now.restarts = 0;
                }
                now.record = with_exit(&now.record, &exit);
                next = (now.record.state() == LocalState::Restarting).then(|| policy::pause(now.restarts));
                now.ending = None;
                now.container = None;
                now.health = None;
                now.address = String::new();
            });
            // Whoever acts on it finds the container ended.
            self.host.events.died(one.subject(), exit.code, exit.oom_killed, exit.ran());
            let goes = next.is_none() && {
                let now = one.now();
                now.record.auto_remove && now.held == 0
            };
            if goes && let Err(error) = self.delete_unless_running(&one).await {
                tracing::warn!(task = %one.id, error = chain(&error), "the container is not removed");
            }
            one.count_end();
            if let Some(pause) = next {
                self.restart_after(one, pause, Counted::Yes).await;
            }
        })
    }

    async fn restart_after(self: Arc<Self>, one: Arc<One>, pause: Duration, counted: Counted) {
        sleep(pause).await;
        let _turn = one.turn.lock().await;
        if one.state() != LocalState::Restarting {
            return;
        }
        if counted == Counted::Yes {
            let mut now = one.now();
            now.restarts += 1;
            now.record.restart_count += 1;
        }
        if let Err(error) = self.start_now(&one, None).await {
            tracing::warn!(name = one.name(), error = chain(&error), "a container is not restarted");
            let again = {
                let now = one.now();
                let restart = Restart::parse(now.record.restart.as_ref()).unwrap_or(Restart::No);
                restart.after_exit(error.exit_code(), now.record.restart_count).then(|| policy::pause(now.restarts))
            };
            let state = if again.is_some() { LocalState::Restarting } else { LocalState::Exited };
            self.change(&one, |now| now.record.state = state.into());
            match again {
                Some(pause) => drop(tokio::spawn(self.clone().restart_boxed(one.clone(), pause, Counted::Yes))),
                None => one.count_end(),
            }
        }
    }

    fn restart_boxed(
        self: Arc<Self>,
        one: Arc<One>,
        pause: Duration,
        counted: Counted,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.restart_after(one, pause, counted))
    }

    /// The stop signal, then SIGKILL after the grace period; returns when it has ended. Fine when it does not run. Whoever
    /// wants to do something else to it need not wait for the end.
    pub(crate) async fn stop(&self, one: &Arc<One>, signal: &str, grace: Option<Duration>) -> Result<(), LocalError> {
        let signal = self.stop_signal(one, signal)?;
        let Some(mut run) = self.begin_stop(one).await else { return Ok(()) };
        // A signal that does not arrive is no reason to let it run on.
        if let Err(error) = self.signal(one, &run.container, signal).await {
            tracing::warn!(task = %one.id, signal, error = chain(&error), "the stop signal was not delivered");
        }
        let grace = grace.or(one.task.spec.container.stop_grace_period).unwrap_or(DEFAULT_GRACE);
        let heard = async {
            if let Err(error) = self.thaw_until_end(one, &mut run).await {
                tracing::warn!(task = %one.id, error = chain(&error), "a container that is to stop is not thawed");
            }
            run.end().await;
        };
        if timeout(grace, heard).await.is_err() {
            self.kill_to_end(one, &mut run).await?;
        }
        self.tell(one, "stop");
        Ok(())
    }

    /// It is the same container afterwards, with `--rm` too; unless it cannot be started again, as with Docker.
    pub(crate) async fn restart(
        self: &Arc<Self>,
        one: &Arc<One>,
        signal: &str,
        grace: Option<Duration>,
    ) -> Result<(), LocalError> {
        // Refused before anything is done: then nothing has ended that `--rm` would be about.
        self.stop_signal(one, signal)?;
        one.now().held += 1;
        let done = async {
            self.stop(one, signal, grace).await?;
            self.start(one, None).await.map(drop)
        }
        .await;
        let goes = {
            let mut now = one.now();
            now.held -= 1;
            now.record.auto_remove && now.held == 0
        };
        if goes && let Err(error) = self.delete_unless_running(one).await {
            tracing::warn!(task = %one.id, error = chain(&error), "the container is not removed");
        }
        done
    }

    /// From here on its restart policy does not count. What runs of it: whoever has the turn of one that runs may have it
    /// for long, while netd is away say, and is no reason to let it run on.
    async fn begin_stop(&self, one: &One) -> Option<Run> {
        if let Some(run) = self.stop_run(one) {
            return Some(run);
        }
        let _turn = one.turn.lock().await;
        if let Some(run) = self.stop_run(one) {
            return Some(run);
        }
        let mut was_to_restart = false;
        self.change(one, |now| {
            now.record.stopped = true;
            was_to_restart = now.record.state() == LocalState::Restarting;
            if was_to_restart {
                now.record.state = LocalState::Exited.into();
            }
        });
        if was_to_restart {
            one.count_end();
        }
        None
    }

    /// Notes that it was stopped, if it runs.
    fn stop_run(&self, one: &One) -> Option<Run> {
        one.container()?;
        let mut run = None;
        self.change(one, |now| {
            run = one.run_of(now);
            now.record.stopped |= run.is_some();
        });
        run
    }

    pub(crate) async fn kill(&self, one: &Arc<One>, signal: &str) -> Result<(), LocalError> {
        let name = if signal.is_empty() { "KILL" } else { signal };
        let number = signal_number(name).ok_or_else(|| LocalError::Signal(signal.to_owned()))?;
        let mut run = one.run().ok_or_else(|| LocalError::NotRunning(one.container_id()))?;
        let own = self.own_stop_signal(one);
        self.change(one, |now| {
            let restart = Restart::parse(now.record.restart.as_ref()).unwrap_or(Restart::No);
            now.record.stopped |= number == SIGKILL || restart.is_ended_by(number, own);
        });
        match number {
            SIGKILL => self.kill_to_end(one, &mut run).await,
            _ => self.signal(one, &run.container, number).await,
        }
    }

    async fn signal(&self, one: &One, container: &Container, number: i32) -> Result<(), LocalError> {
        container.kill(number).await?;
        self.tell_with(one, "kill", &[("signal", number.to_string())]);
        Ok(())
    }

    /// Returns when it has ended.
    async fn kill_to_end(&self, one: &One, run: &mut Run) -> Result<(), LocalError> {
        let signalled = self.signal(one, &run.container, SIGKILL).await;
        self.thaw_until_end(one, run).await?;
        signalled?;
        run.end().await;
        Ok(())
    }

    /// A paused one would not hear a signal. Nothing is to be thawed any more once it has ended, whoever has its turn.
    async fn thaw_until_end(&self, one: &One, run: &mut Run) -> Result<(), LocalError> {
        // Who is pausing it finishes that first.
        let _turn = tokio::select! {
            turn = one.turn.lock() => turn,
            () = run.end() => return Ok(()),
        };
        self.thaw(one, &run.container).await
    }

    pub(crate) async fn remove(&self, one: &Arc<One>, force: bool, volumes: bool) -> Result<(), LocalError> {
        loop {
            if one.container().is_some() {
                if !force {
                    return Err(LocalError::Running(one.container_id()));
                }
                self.stop(one, "KILL", Some(Duration::ZERO)).await?;
            }
            let _turn = one.turn.lock().await;
            if one.is_removed() {
                return Ok(());
            }
            // Else somebody has started it meanwhile.
            if one.container().is_none() {
                return self.delete(one, volumes).await;
            }
        }
    }

    /// What `--rm` asks for, and what is left of a removal.
    async fn delete_unless_running(&self, one: &One) -> Result<(), LocalError> {
        let _turn = one.turn.lock().await;
        if one.is_removed() || one.container().is_some() {
            return Ok(());
        }
        // A removal that an earlier worker began is finished as it was asked for. An earlier version did not note that.
        let volumes = {
            let now = one.now();
            now.record.state() != LocalState::Removing || now.record.volumes_go || now.record.auto_remove
        };
        self.delete(one, volumes).await
    }

    /// Everything of a container that does not run.
    async fn delete(&self, one: &One, volumes: bool) -> Result<(), LocalError> {
        self.change(one, |now| {
            now.record.state = LocalState::Removing.into();
            now.record.volumes_go = volumes;
        });
        let (host, task) = (self.host.clone(), one.id.clone());
        let in_use = self.mounted_by_others(&one.id);
        let deleted = tokio::task::spawn_blocking(move || prepare::delete_local(&host, &task, volumes, &in_use)).await;
        deleted.map_err(prepare::PrepareError::from)??;
        self.host.store.forget_local(&one.id)?;
        self.lock().remove(&one.id);
        one.ends.send_modify(|ends| ends.removed = true);
        self.tell(one, "destroy");
        Ok(())
    }

    /// What `--volumes-from` has made others mount of it, too.
    pub(crate) fn mounted_by_others(&self, id: &TaskId) -> BTreeSet<String> {
        let ones = self.all().into_iter().map(|one| one.task.clone());
        let tasks = self.host.entries().into_iter().map(|entry| entry.task);
        let sources = |other: Arc<Task>| -> Vec<String> {
            other.spec.container.mounts.iter().map(|mount| mount.source.clone()).collect()
        };
        ones.chain(tasks).filter(|other| other.id != *id).flat_map(sources).collect()
    }

    /// Until it does not run (any more): at once when it does not.
    pub(crate) async fn wait(&self, one: &One) -> Ended {
        let mut ends = one.ends.subscribe();
        let seen = ends.borrow_and_update().count;
        if matches!(one.state(), LocalState::Running | LocalState::Restarting) {
            let _ = ends.wait_for(|ends| ends.is_past(seen)).await;
        }
        let now = one.now();
        Ended { code: now.record.exit_code, error: now.record.error.clone() }
    }

    pub(crate) fn log_files(&self, one: &One) -> LogFiles {
        crate::agent::log_files(&self.host, &one.task)
    }

    /// What an earlier worker left of it.
    pub(super) async fn take_up(self: &Arc<Self>, one: &Arc<One>, left: Option<Recovered>) {
        match left {
            Some(Recovered::Running(container)) => self.run_on(one, container),
            Some(Recovered::Ended(container, exit)) => {
                {
                    // Until what it had is given back nobody may start it again.
                    let mut now = one.now();
                    now.container = Some(container.clone());
                    now.ending = Some(exit.clone());
                }
                tokio::spawn(self.clone().ended(one.clone(), container, exit));
            }
            Some(created @ Recovered::Created(_)) => {
                // Until it is gone nobody may start it.
                let turn = one.hold().await;
                let (locals, one) = (self.clone(), one.clone());
                tokio::spawn(async move {
                    delete_container(created).await;
                    locals.give_back(&one).await;
                    // It may have been on its way to run again.
                    locals.not_running(&one);
                    drop(turn);
                });
            }
            None => self.not_running(one),
        }
    }

    fn run_on(self: &Arc<Self>, one: &Arc<One>, container: Container) {
        tracing::info!(name = one.name(), pid = container.pid(), "found a running one-off container again");
        let attachments = self.recover_networks(one);
        let record = one.now().record.clone();
        if has_namespace(&record) {
            let request = attach_request(one, &record, &attachments);
            self.host.netd.remember(&one.id, request.clone());
            let (locals, again) = (self.clone(), one.clone());
            tokio::spawn(async move {
                // It is attached already: the answer says where.
                if let Ok(attached) = locals.host.netd.attach(&again.id, request).await {
                    again.now().address = attached.primary_address;
                }
                if again.running().0.is_some() {
                    return;
                }
                let _turn = again.turn.lock().await;
                if again.running().0.is_none() {
                    // It ended while netd was away: what it just got would stay with nobody.
                    locals.give_back(&again).await;
                }
            });
        }
        {
            let mut now = one.now();
            now.health = container.is_checked().then_some(Health::Starting);
            now.container = Some(container.clone());
        }
        self.clone().supervise(one.clone(), container, None);
    }

    fn not_running(self: &Arc<Self>, one: &Arc<One>) {
        let record = one.now().record.clone();
        let state = record.state();
        let was_running = matches!(state, LocalState::Running | LocalState::Restarting);
        let restart = Restart::parse(record.restart.as_ref()).unwrap_or(Restart::No);
        // It ran when the machine went down: that is no restart.
        let counted = if state == LocalState::Restarting { Counted::Yes } else { Counted::No };
        // Counted already when it was to be restarted: that is still to be done.
        let restarts = if state == LocalState::Restarting { 0 } else { record.restart_count };
        let again = !matches!(state, LocalState::Created | LocalState::Removing)
            && restart.at_start(was_running, record.stopped, restarts);
        let goes = state == LocalState::Removing || (record.auto_remove && state != LocalState::Created && !again);
        if state == LocalState::Running {
            self.change(one, |now| {
                now.record.exit_code = CODE_LOST;
                now.record.finished_at_ms = unix_ms(SystemTime::now());
            });
        }
        if again {
            self.change(one, |now| now.record.state = LocalState::Restarting.into());
        } else if was_running {
            self.change(one, |now| now.record.state = LocalState::Exited.into());
        }
        // A worker that ended amid its end has left its namespace or its root.
        let root = Rootfs::inside(&self.host.store.container_dir(&one.id)).root;
        let has_something = was_running || is_mounted(&root) || self.host.paths.netns(&one.id).exists();
        let (locals, one) = (self.clone(), one.clone());
        tokio::spawn(async move {
            if has_something {
                let _turn = one.turn.lock().await;
                if !one.is_removed() && one.container().is_none() {
                    locals.give_back(&one).await;
                }
            }
            if again {
                locals.restart_boxed(one, Duration::ZERO, counted).await;
            } else if goes && let Err(error) = locals.delete_unless_running(&one).await {
                tracing::warn!(task = %one.id, error = chain(&error), "the container is not removed");
            }
        });
    }

    /// Network, mounts and files; what it wrote stays.
    pub(super) async fn give_back(&self, one: &One) {
        let has_namespace = has_namespace(&one.now().record);
        if has_namespace && let Err(error) = self.host.netd.detach(&one.id).await {
            tracing::warn!(task = %one.id, error = chain(&error), "the network namespace stays");
        }
        self.leave_networks(one);
        let (host, task) = (self.host.clone(), one.id.clone());
        let released = tokio::task::spawn_blocking(move || prepare::release_local(&host, &task)).await;
        if let Ok(Err(error)) = released {
            tracing::warn!(task = %one.id, error = chain(&error), "the container's files stay");
        }
    }

    /// Changes what is known of it and writes that down.
    pub(super) fn change(&self, one: &One, change: impl FnOnce(&mut super::Now)) {
        let record = {
            let mut now = one.now();
            change(&mut now);
            now.ending.as_ref().map_or_else(|| now.record.clone(), |exit| with_exit(&now.record, exit))
        };
        if one.is_removed() {
            return;
        }
        if let Err(error) = tokio::task::block_in_place(|| self.host.store.save_local(&record)) {
            tracing::error!(name = record.name, error = chain(&error), "the container's record is not saved");
        }
    }

    /// The one that is asked for, or its own.
    fn stop_signal(&self, one: &One, asked: &str) -> Result<i32, LocalError> {
        match asked {
            "" => Ok(self.own_stop_signal(one).unwrap_or(SIGTERM)),
            asked => signal_number(asked).ok_or_else(|| LocalError::Signal(asked.to_owned())),
        }
    }

    /// Its own or its image's.
    fn own_stop_signal(&self, one: &One) -> Option<i32> {
        let own = &one.task.spec.container.stop_signal;
        let of_image = || {
            let image = self.host.images.store.by_digest(&one.now().record.image_digest)?;
            self.host.images.store.config(&image.record.config).ok().map(|config| config.config.stop_signal)
        };
        let text = if own.is_empty() { of_image().unwrap_or_default() } else { own.clone() };
        signal_number(&text)
    }
}

/// As with Docker, the log of checks goes on where it ended.
fn earlier_checks(record: &LocalContainer) -> Vec<HealthCheck> {
    let results = record.health.iter().flat_map(|health| health.results.clone());
    let check =
        |HealthResult { start_ns, end_ns, exit_code, output }| HealthCheck { start_ns, end_ns, exit_code, output };
    results.map(check).collect()
}

/// Its record once it has ended so: it runs again, or has ended for good.
fn with_exit(record: &LocalContainer, exit: &Exit) -> LocalContainer {
    let restart = Restart::parse(record.restart.as_ref()).unwrap_or(Restart::No);
    let again = !record.stopped && restart.after_exit(exit.code, record.restart_count);
    LocalContainer {
        paused: false,
        exit_code: exit.code,
        oom_killed: exit.oom_killed,
        error: exit.error.clone().unwrap_or_default(),
        finished_at_ms: unix_ms(exit.finished_at),
        health: exit.health.as_ref().map(health_report),
        state: if again { LocalState::Restarting } else { LocalState::Exited }.into(),
        ..record.clone()
    }
}

async fn follow_health(locals: Arc<Locals>, one: Arc<One>, container: Container, mut known: Option<Health>) {
    while let Ok(Some(mut watch)) = container.watch_health().await {
        loop {
            match watch.next().await {
                Ok(Some(health)) => {
                    one.now().health = Some(health);
                    if let Some(action) = health_action(known.replace(health), health) {
                        locals.tell(&one, &action);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(task = %one.id, error = chain(&error), "cannot follow the container's health");
                    break;
                }
            }
        }
        sleep(WATCH_RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use orch_proto::wire::LocalRestart;

    use super::*;

    #[test]
    fn a_record_says_how_it_ended_and_whether_it_runs_again() {
        for (condition, stopped, restarts, want) in [
            ("no", false, 0, LocalState::Exited),
            ("always", false, 9, LocalState::Restarting),
            ("always", true, 0, LocalState::Exited),
            ("on-failure", false, 1, LocalState::Restarting),
            ("on-failure", false, 2, LocalState::Exited),
        ] {
            let max_retries = if condition == "on-failure" { 2 } else { 0 };
            let record = LocalContainer {
                name: "one".to_owned(),
                restart: Some(LocalRestart { condition: condition.to_owned(), max_retries }),
                state: LocalState::Running.into(),
                paused: true,
                restart_count: restarts,
                stopped,
                ..Default::default()
            };
            let finished_at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
            let exit = Exit {
                code: 5,
                signal: None,
                oom_killed: true,
                error: None,
                started_at: Some(SystemTime::UNIX_EPOCH),
                finished_at,
                health: None,
            };
            let ended = with_exit(&record, &exit);
            assert_eq!(ended.state(), want, "{condition} {stopped} {restarts}");
            assert_eq!((ended.exit_code, ended.finished_at_ms, ended.name.as_str()), (5, 7000, "one"));
            assert!(ended.oom_killed && !ended.paused && ended.restart_count == restarts);
        }
    }
}
