//! Brings one task where its state machine says: a thin shell around [`super::task::Machine`].

use std::{
    borrow::Cow,
    collections::BTreeSet,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use orch_model::{
    TaskId, Timestamp,
    linux::real_time_offset,
    service::TaskSpec,
    task::{ContainerStatus, Health, Task, TaskState, TaskStatus},
};
use tokio::{sync::watch, task::AbortHandle, time::sleep};

use super::{
    Host,
    book::{News, container_end},
    listening::{self, await_listening},
    logging,
    prepare::{self, Prepared},
    quiet::await_quiet,
    task::{Command, Ended, Event, Machine, Report},
    waiting::{self, Steps},
};
use crate::{
    events::{Events, Subject, health_action},
    image::{chain, config::ImageConfig},
    local::Locals,
    runtime::{Container, ContainerPlan, HostOptions, LogFiles, RuntimeError},
};

/// Between the stop signal and SIGKILL, when the service does not say.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
const WATCH_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Every node has heard by then that an unhealthy task takes no more clients.
const NEWS_TRAVEL: Duration = Duration::from_millis(500);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

type Job = Pin<Box<dyn Future<Output = Event> + Send>>;

pub(crate) struct Executor {
    host: Arc<Host>,
    locals: Arc<Locals>,
    task: Arc<Task>,
    machine: Machine,
    news: watch::Receiver<News>,
    /// The part of the news that the machine knows.
    known: News,
    /// What is under way; each ends with an event.
    jobs: FuturesUnordered<Job>,
    preparing: Option<AbortHandle>,
    prepared: Arc<Mutex<Option<Prepared>>>,
    /// Held while the container's folders change, so that giving up and giving back do not overlap.
    folders: Arc<tokio::sync::Mutex<()>>,
    container: Arc<Mutex<Option<Container>>>,
    /// It has been told to stop.
    stopping: bool,
}

#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Forgotten,
}

impl Executor {
    pub(crate) fn new(
        host: Arc<Host>,
        locals: Arc<Locals>,
        task: Arc<Task>,
        machine: Machine,
        news: watch::Receiver<News>,
        container: Option<Container>,
    ) -> Self {
        let known = News::new(news.borrow().desired);
        Self {
            host,
            locals,
            task,
            machine,
            news,
            known,
            jobs: FuturesUnordered::new(),
            preparing: None,
            prepared: Arc::default(),
            folders: Arc::default(),
            container: Arc::new(Mutex::new(container)),
            stopping: false,
        }
    }

    /// Runs until the task is forgotten.
    pub(crate) async fn run(mut self, first: Vec<Command>) {
        if self.container().is_some() {
            self.watch();
            self.watch_health(None);
        }
        let mut flow = self.execute(first).await;
        while flow == Flow::Continue {
            let event = tokio::select! {
                Some(event) = next_news(&mut self.news, &mut self.known) => event,
                Some(event) = self.jobs.next(), if !self.jobs.is_empty() => event,
                else => return,
            };
            if matches!(event, Event::Started(Ok(_))) {
                self.watch();
                self.watch_health(Some(Health::Starting));
            }
            if self.stopping && matches!(event, Event::Exited(_)) {
                self.host.events.of_container(Subject::of_task(&self.task), "stop", &[]);
            }
            let commands = self.machine.step(event);
            flow = self.execute(commands).await;
        }
    }

    async fn execute(&mut self, commands: Vec<Command>) -> Flow {
        for command in commands {
            match command {
                Command::Report(report) => self.report(report),
                Command::Prepare => self.prepare(),
                Command::Abandon => {
                    if let Some(preparing) = self.preparing.take() {
                        preparing.abort();
                    }
                }
                Command::Start => self.start(),
                Command::AwaitListening { pid } => {
                    // With a health check, running means healthy.
                    if !self.container().is_some_and(|container| container.is_checked()) {
                        self.jobs.push(await_listening(pid, self.ports()).map(|()| Event::Listening).boxed());
                    }
                }
                Command::AwaitQuiet => {
                    let pid = self.container().map_or(0, |container| container.pid());
                    let news = if self.is_unhealthy() { NEWS_TRAVEL } else { Duration::ZERO };
                    let quiet = async move {
                        sleep(news).await;
                        await_quiet(pid).await;
                        Event::Quiet
                    };
                    self.jobs.push(quiet.boxed());
                }
                Command::SignalStop => self.stop(),
                Command::Kill => self.kill(),
                Command::NetDown if !prepare::has_namespace(&self.task) => {}
                Command::NetDown => self.host.netd.task_down(&self.task.id).await,
                Command::Release => self.release(),
                Command::Forget => {
                    self.forget().await;
                    return Flow::Forgotten;
                }
            }
        }
        Flow::Continue
    }

    fn report(&self, report: Report) {
        let before = self.host.book.entry(&self.task.id).and_then(|entry| entry.status.container);
        let container = match (report.pid, before) {
            (Some(pid), _) => Some(self.container_status(pid, report.exit_code)),
            (None, Some(before)) => Some(ContainerStatus {
                exit_code: report.exit_code,
                health: self.health().filter(|_| !report.state.is_terminal()),
                ..before
            }),
            // It ended before it answered.
            (None, None) if report.exit_code.is_some() => Some(self.container_status(0, report.exit_code)),
            (None, None) => None,
        };
        if report.state >= TaskState::Failed {
            tracing::warn!(task = %self.task.id, name = self.task.name(), error = report.error, "task {}", report.state);
        }
        let at = Timestamp::from_unix_ms(super::unix_ms(SystemTime::now()));
        let status =
            TaskStatus { state: report.state, at, message: report.message.to_owned(), error: report.error, container };
        tokio::task::block_in_place(|| self.host.book.report(&self.task.id, status));
    }

    fn container_status(&self, pid: u32, exit_code: Option<i32>) -> ContainerStatus {
        let health = self.health().filter(|_| pid > 0);
        ContainerStatus { container_id: container_id(&self.task), pid, exit_code, health }
    }

    fn health(&self) -> Option<Health> {
        self.host.book.entry(&self.task.id).and_then(|entry| entry.health)
    }

    fn is_unhealthy(&self) -> bool {
        self.health() == Some(Health::Unhealthy)
    }

    fn prepare(&mut self) {
        let (host, task) = (self.host.clone(), self.task.clone());
        let (slot, folders) = (self.prepared.clone(), self.folders.clone());
        let locals = self.locals.clone();
        let work = tokio::spawn(async move {
            host.items.told().await;
            // Once it is attached, netd sends to it who asks for its ports, even while it only waits for its turn.
            drop(locals.leave_ports(&task).map_err(|error| chain(&error))?);
            let (steps, heard) = Steps::new();
            let prepared = tokio::select! {
                prepared = prepare::prepare(&host, &task, folders, &steps) => prepared.map_err(|error| chain(&error))?,
                never = waiting::tell(&host, &task, heard) => match never {},
            };
            host.book.change(&task.id, |entry| {
                entry.image = Some(prepared.image_digest.clone());
                entry.command = prepared.command(&task);
            });
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
            Ok(())
        });
        self.preparing = Some(work.abort_handle());
        let done = async move {
            Event::Prepared(work.await.unwrap_or_else(|error| Err(format!("preparing was interrupted: {error}"))))
        };
        self.jobs.push(done.boxed());
    }

    fn start(&mut self) {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (host, task, slot) = (self.host.clone(), self.task.clone(), self.container.clone());
        let locals = self.locals.clone();
        let work = async move {
            let prepared = prepared.ok_or_else(|| "it was not prepared".to_owned())?;
            // Held until it runs.
            let _starting = locals.leave_ports(&task).map_err(|error| start_failed(&chain(&error)))?;
            let host_network = !prepare::has_namespace(&task);
            let spec = if host_network { Cow::Owned(with_hostname(&task)) } else { Cow::Borrowed(task.spec.as_ref()) };
            let plan = ContainerPlan {
                task_id: task.id.clone(),
                container_id: container_id(&task),
                rootfs: prepared.rootfs,
                image: prepared.defaults,
                spec: &spec,
                netns: prepared.netns,
                host_network,
                binds: prepared.binds,
                log: log_files(&host, &task),
                options: HostOptions::default(),
                users: prepared.users,
            };
            let failed = |error: crate::runtime::RuntimeError| start_failed(&chain(&error));
            let container = host.runtime.create(&plan).await.map_err(failed)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(container.clone());
            host.events.of_container(Subject::of_task(&task), "create", &[]);
            container.start().await.map_err(failed)?;
            host.events.of_container(Subject::of_task(&task), "start", &[]);
            host.book.change(&task.id, |entry| entry.container = Some(container.clone()));
            Ok(container.pid())
        };
        self.jobs.push(work.map(Event::Started).boxed());
    }

    /// Turns the container's end into an event.
    fn watch(&mut self) {
        let Some(container) = self.container() else { return };
        let (host, task) = (self.host.clone(), self.task.clone());
        let events = host.events.clone();
        let exited = async move {
            loop {
                match container.wait().await {
                    Ok(exit) => {
                        host.book.change(&task.id, |entry| entry.end = Some(container_end(&exit)));
                        events.died(Subject::of_task(&task), exit.code, exit.oom_killed, exit.ran());
                        let ended = Ended { code: exit.code, oom_killed: exit.oom_killed, error: exit.error };
                        return Event::Exited(ended);
                    }
                    // Not knowing is not an end: a container must never be given up because this worker has trouble.
                    Err(error) => tracing::warn!(task = %task.id, error = chain(&error), "cannot watch the container"),
                }
                sleep(WATCH_RETRY_PAUSE).await;
            }
        };
        self.jobs.push(exited.boxed());
    }

    /// Turns changes of health, from what is known of it, into events. The book knows before the machine does: reports
    /// carry it.
    fn watch_health(&mut self, mut known: Option<Health>) {
        let Some(container) = self.container().filter(Container::is_checked) else { return };
        let (host, task) = (self.host.clone(), self.task.clone());
        tokio::spawn(async move {
            loop {
                match follow_health(&host, &task, &container, &mut known).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(task = %task.id, error = chain(&error), "cannot follow the container's health")
                    }
                }
                sleep(WATCH_RETRY_PAUSE).await;
            }
        });
    }

    fn stop(&mut self) {
        let Some(container) = self.container() else { return };
        let signal = self.stop_signal();
        let grace = self.task.spec.container.stop_grace_period.unwrap_or(DEFAULT_GRACE);
        self.stopping = true;
        let (events, task) = (self.host.events.clone(), self.task.clone());
        let work = async move {
            if let Err(error) = send_signal(&events, &task, &container, signal).await {
                tracing::warn!(task = %task.id, error = chain(&error), "the stop signal was not delivered");
            }
            sleep(grace).await;
            Event::GraceOver
        };
        self.jobs.push(work.boxed());
    }

    fn kill(&mut self) {
        let Some(container) = self.container() else { return };
        let (events, task) = (self.host.events.clone(), self.task.clone());
        tokio::spawn(async move {
            if let Err(error) = send_signal(&events, &task, &container, SIGKILL).await {
                tracing::error!(task = %task.id, error = chain(&error), "the container cannot be killed");
            }
        });
    }

    /// Goes on after a failure: what stays behind is found again by the next worker.
    fn release(&mut self) {
        let (host, task) = (self.host.clone(), self.task.clone());
        let (container, folders) = (self.container(), self.folders.clone());
        let work = async move {
            let warn = |what: &str, error: String| tracing::warn!(task = %task.id, error, "{what}");
            if let Some(container) = container
                && let Err(error) = container.delete().await
            {
                warn("the container is not deleted", chain(&error));
            }
            if prepare::has_namespace(&task)
                && let Err(error) = host.netd.detach(&task.id).await
            {
                warn("the network namespace stays", chain(&error));
            }
            let _turn = folders.lock().await;
            if let Err(error) = tokio::task::block_in_place(|| prepare::release(&host, &task.id)) {
                warn("the container's files stay", chain(&error));
            }
            host.book.change(&task.id, |entry| entry.container = None);
            Event::Released
        };
        self.jobs.push(work.boxed());
    }

    async fn forget(&mut self) {
        let (host, task) = (self.host.clone(), self.task.id.clone());
        let in_use = self.locals.mounted_by_others(&task);
        let work = tokio::task::spawn_blocking(move || prepare::forget(&host, &task, &in_use));
        if let Ok(Err(error)) = work.await {
            tracing::warn!(task = %self.task.id, error = chain(&error), "something of the task stays on disk");
        }
        let of_earlier_worker =
            || self.host.book.entry(&self.task.id).is_some_and(|known| known.status.container.is_some());
        if self.container().is_some() || of_earlier_worker() {
            self.host.events.of_container(Subject::of_task(&self.task), "destroy", &[]);
        }
        self.host.book.forget(&self.task.id);
    }

    fn container(&self) -> Option<Container> {
        self.container.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The service's, else the image's, else SIGTERM.
    fn stop_signal(&self) -> i32 {
        let spec = &self.task.spec.container;
        if !spec.stop_signal.is_empty() {
            return signal_number(&spec.stop_signal).unwrap_or(SIGTERM);
        }
        self.image_config().and_then(|image| signal_number(&image.config.stop_signal)).unwrap_or(SIGTERM)
    }

    /// The TCP ports that the task is expected to listen on.
    fn ports(&self) -> BTreeSet<u16> {
        let mut ports: BTreeSet<u16> = listening::published(&self.task.host_ports).collect();
        ports.extend(listening::published(&self.host.items.published(&self.task.service)));
        if let Some(image) = self.image_config() {
            ports.extend(listening::exposed(image.config.exposed_ports.keys()));
        }
        ports
    }

    fn image_config(&self) -> Option<ImageConfig> {
        let digest = self.host.book.entry(&self.task.id).and_then(|entry| entry.image)?;
        let image = self.host.images.store.by_digest(&digest)?;
        self.host.images.store.config(&image.record.config).ok()
    }
}

/// What the machine does not know yet, one thing after the other; `None` when the book has forgotten the task.
async fn next_news(news: &mut watch::Receiver<News>, known: &mut News) -> Option<Event> {
    loop {
        if let Some(event) = known.catch_up(*news.borrow_and_update()) {
            return Some(event);
        }
        news.changed().await.ok()?;
    }
}

/// Until the container has ended or the task is forgotten.
async fn follow_health(
    host: &Host,
    task: &Task,
    container: &Container,
    known: &mut Option<Health>,
) -> Result<(), RuntimeError> {
    let Some(mut watch) = container.watch_health().await? else { return Ok(()) };
    while let Some(health) = watch.next().await? {
        host.book.change(&task.id, |entry| entry.health = Some(health));
        if let Some(action) = health_action(known.replace(health), health) {
            host.events.of_container(Subject::of_task(task), &action, &[]);
        }
        let is_healthy = match health {
            Health::Starting => continue,
            Health::Healthy => true,
            Health::Unhealthy => false,
        };
        let Some(entry) = host.book.entry(&task.id) else { return Ok(()) };
        entry.news.send_modify(|news| news.healthy = Some(is_healthy));
    }
    Ok(())
}

async fn send_signal(events: &Events, task: &Task, container: &Container, number: i32) -> Result<(), RuntimeError> {
    container.kill(number).await?;
    events.of_container(Subject::of_task(task), "kill", &[("signal", number.to_string())]);
    Ok(())
}

/// The node's name is written out: the runtime's own default is another.
fn with_hostname(task: &Task) -> TaskSpec {
    let mut spec = task.spec.as_ref().clone();
    spec.container.hostname = prepare::hostname(task);
    spec
}

fn start_failed(reason: &str) -> String {
    let advice = if reason.ends_with("executable file not found in $PATH") {
        "; give a command that the image has, or another image"
    } else {
        ""
    };
    format!("starting container failed: {reason}{advice}")
}

pub(crate) fn log_files(host: &Host, task: &Task) -> LogFiles {
    logging::files(log_path(host, task), task)
}

fn log_path(host: &Host, task: &Task) -> PathBuf {
    host.store.container_dir(&task.id).join("container.log")
}

/// 64 hex digits; the first 12 are the default hostname.
pub(crate) fn container_id(task: &Task) -> String {
    container_id_of(&task.id)
}

pub(crate) fn container_id_of(task: &TaskId) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(task.as_str()))
}

/// `SIGTERM`, `TERM`, `15`, `RTMIN+3`, `RTMAX-1`.
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    let name = text.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    if let Some(offset) = real_time_offset(name) {
        return i32::try_from(offset).ok().map(|offset| libc::SIGRTMIN() + offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGQUIT", 3), ("SIGRTMIN+3", 37), ("rtmax-1", 63)]
        {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNOPE"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
