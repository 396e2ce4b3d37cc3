//! What a service's tasks say about its convergence. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use orch_model::{
    TaskId, Timestamp,
    service::{Service, ServiceMode, UpdateConfig, UpdateState},
    task::{Task, TaskState},
};

use crate::render::task::waits_for;

/// More slots than this are not shown one by one.
const MAX_LINES: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Waiting,
    /// As the spec says, right now.
    Converged,
    /// It will not converge by itself.
    Failed(String),
    /// As far as one can see, waiting on is of no use; something may still change that.
    Stuck(String),
}

/// So many tasks in a row that did not even start show that the next one will not either.
const FALSE_STARTS: usize = 3;

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// Running, or complete when it is a job.
    pub(super) running: u64,
    pub(super) total: u64,
    /// Above the lines, in Docker's words.
    pub(super) head: String,
    /// Rollback in progress: the reason.
    pub(super) notice: Option<String>,
    /// `1/5` and `running`, in order of slots.
    pub(super) lines: Vec<(String, String)>,
}

pub(crate) fn is_paused(state: UpdateState) -> bool {
    matches!(state, UpdateState::Paused | UpdateState::RollbackPaused)
}

pub(super) struct Progress {
    service: Arc<Service>,
    stale_update: Option<Timestamp>,
    rollback: bool,
    tasks: HashMap<TaskId, Arc<Task>>,
}

impl Progress {
    pub(super) fn new(service: Arc<Service>, stale_update: Option<Timestamp>, rollback: bool) -> Self {
        Self { service, stale_update, rollback, tasks: HashMap::new() }
    }

    pub(super) fn put_task(&mut self, task: Arc<Task>) {
        self.tasks.insert(task.id.clone(), task);
    }

    pub(super) fn forget_tasks(&mut self) {
        self.tasks.clear();
    }

    pub(super) fn remove_task(&mut self, id: &TaskId) {
        self.tasks.remove(id);
    }

    pub(super) fn put_service(&mut self, service: Arc<Service>) {
        // A follower may still send what was there before the change.
        if service.meta.version >= self.service.meta.version {
            self.service = service;
        }
    }

    /// How long it must stay converged. What a job has completed stays so.
    pub(super) fn monitor(&self) -> Duration {
        if self.is_job() {
            return Duration::ZERO;
        }
        self.service.spec.update.as_ref().map_or(UpdateConfig::default().monitor, |update| update.monitor)
    }

    pub(super) fn verdict(&self) -> Verdict {
        if let Some(status) = self.service.update_status.as_ref().filter(|s| Some(s.started_at) != self.stale_update) {
            match status.state {
                UpdateState::Paused => return Verdict::Failed(format!("service update paused: {}", status.message)),
                UpdateState::RollbackPaused => {
                    return Verdict::Failed(format!("service rollback paused: {}", status.message));
                }
                UpdateState::RollbackCompleted if !self.rollback => {
                    return Verdict::Failed(format!("service rolled back: {}", status.message));
                }
                UpdateState::Updating | UpdateState::RollbackStarted => return Verdict::Waiting,
                UpdateState::Completed | UpdateState::RollbackCompleted => {}
            }
        }
        let (running, total) = self.counts();
        let waits_for_first =
            matches!(self.service.spec.mode, ServiceMode::Global | ServiceMode::GlobalJob) && total == 0;
        if running >= total && !waits_for_first {
            return Verdict::Converged;
        }
        let problem = self.slots().values().find_map(|tasks| self.problem(tasks));
        problem.or_else(|| self.shortfall(running, total)).map_or(Verdict::Waiting, Verdict::Stuck)
    }

    /// What is missing after an update that was allowed to fail here and there, and has come to its end.
    fn shortfall(&self, running: u64, total: u64) -> Option<String> {
        let status = self.service.update_status.as_ref().filter(|s| Some(s.started_at) != self.stale_update)?;
        let word = match status.state {
            UpdateState::Completed => "update",
            UpdateState::RollbackCompleted => "rollback",
            UpdateState::Updating
            | UpdateState::Paused
            | UpdateState::RollbackStarted
            | UpdateState::RollbackPaused => return None,
        };
        let has_failed =
            |task: &&Task| matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected);
        // What has not failed yet, as a task on a node that has just come, may still be about to run.
        let (name, why) = self.slots().into_values().find_map(|tasks| {
            let mut ended = tasks.iter().copied().filter(|task| self.is_current(task)).filter(has_failed);
            let newest = tasks.last().filter(|task| !self.is_running(task))?;
            ended.next().map(|_| (newest.name(), self.slot_text(&tasks)))
        })?;
        Some(format!("{word} completed, but {running} of {total} tasks run ({name}: {why})"))
    }

    /// The service that this one's tasks are held for.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.tasks.values().find_map(|task| held(task).map(str::to_owned))
    }

    /// Why a slot is not going to run: it has no place, never starts, or has used up its restarts.
    fn problem(&self, tasks: &[&Task]) -> Option<String> {
        let current: Vec<&Task> = tasks.iter().copied().filter(|task| self.is_current(task)).collect();
        let newest = current.last()?;
        let error_of = |task: &Task| task.status.error.clone().filter(|error| !error.is_empty());
        if held(newest).is_some() {
            return None;
        }
        if newest.status.state == TaskState::Pending && newest.desired_state <= TaskState::Running {
            return error_of(newest).map(|error| format!("{} has no node to run on: {error}", newest.name()));
        }
        let ended: Vec<&&Task> = current.iter().rev().filter(|task| task.status.state.is_terminal()).collect();
        let last = ended.first()?;
        let error = error_of(last).unwrap_or_else(|| last.status.state.word().to_lowercase());
        let is_false_start = |task: &&&&Task| {
            task.status.state == TaskState::Rejected
                || (task.status.state == TaskState::Failed && task.status.container.is_none())
        };
        if ended.iter().take_while(is_false_start).count() >= FALSE_STARTS {
            return Some(format!("{} does not start: {error}", last.name()));
        }
        // Scaling down also leaves slots without a wanted task, but those that are to stay have their number.
        let is_over = !tasks.iter().any(|task| task.is_wanted()) && ended.len() == current.len();
        let failed = matches!(last.status.state, TaskState::Failed | TaskState::Rejected);
        let own_end = failed || (last.status.state == TaskState::Complete && !self.is_job());
        (is_over && own_end && self.lacks_tasks())
            .then(|| format!("{} has ended and its restart policy gives it no other attempt: {error}", last.name()))
    }

    /// Fewer places are in use than there should be.
    fn lacks_tasks(&self) -> bool {
        let wanted = self.slots().values().filter(|tasks| tasks.iter().any(|task| task.is_wanted())).count() as u64;
        match self.service.spec.mode {
            ServiceMode::Replicated { replicas } => wanted < replicas,
            ServiceMode::Global => false,
            // Each of its places counts, and none is filled by another.
            ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => true,
        }
    }

    pub(super) fn is_job(&self) -> bool {
        matches!(self.service.spec.mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob)
    }

    pub(super) fn view(&self) -> View {
        let (running, total) = self.counts();
        let slots = self.slots();
        let count = slots.len().max(usize::try_from(total).unwrap_or(usize::MAX));
        let mut lines = Vec::new();
        if total > 0 && count <= MAX_LINES {
            for (at, key) in self.keys(total, &slots).into_iter().enumerate() {
                let text = slots.get(&key).map_or_else(String::new, |tasks| self.slot_text(tasks));
                lines.push((self.label(at, &key, total), text));
            }
        }
        let rolling = self.service.update_status.as_ref().filter(|s| s.state == UpdateState::RollbackStarted);
        let running = running.min(total);
        View { running, total, head: self.head(running, total), notice: rolling.map(|s| s.message.clone()), lines }
    }

    fn head(&self, done: u64, total: u64) -> String {
        match self.service.spec.mode {
            ServiceMode::Replicated { .. } | ServiceMode::Global => overall(done, total),
            ServiceMode::GlobalJob => format!("job progress: {done} out of {total} complete"),
            ServiceMode::ReplicatedJob { max_concurrent, .. } => {
                let wanted = total.saturating_sub(done).min(max_concurrent);
                let active = self.tasks.values().filter(|t| t.is_wanted() && self.is_current(t)).count();
                format!("job progress: {done} out of {total} complete\nactive tasks: {active} out of {wanted} tasks")
            }
        }
    }

    /// Running (or completed) tasks of this spec, and how many there should be.
    fn counts(&self) -> (u64, u64) {
        let slots = self.slots();
        let done = |tasks: &Vec<&Task>| match self.service.spec.mode {
            ServiceMode::Replicated { .. } | ServiceMode::Global => tasks.iter().any(|t| self.is_running(t)),
            ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => {
                tasks.iter().any(|t| t.status.state == TaskState::Complete && self.is_current(t))
            }
        };
        let finished = slots.values().filter(|tasks| done(tasks)).count() as u64;
        let total = match self.service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::ReplicatedJob { total_completions, .. } => total_completions,
            ServiceMode::Global => slots.values().filter(|tasks| tasks.iter().any(|t| t.is_wanted())).count() as u64,
            // What an earlier run left on a node that takes no part in this one is over.
            ServiceMode::GlobalJob => {
                let takes_part = |t: &&Task| self.is_current(t) || !t.status.state.is_terminal();
                slots.values().filter(|tasks| tasks.iter().any(takes_part)).count() as u64
            }
        };
        (finished, total)
    }

    fn is_running(&self, task: &Task) -> bool {
        task.status.state == TaskState::Running && task.desired_state == TaskState::Running && self.is_current(task)
    }

    fn is_current(&self, task: &Task) -> bool {
        // What an earlier run of a job did, though it did the same, is not done in this one.
        task.spec_version == self.service.spec_version
            || (!self.is_job() && task.spec.does_the_work_of(&self.service.spec.task))
    }

    /// Slot number, or node for global services, to its tasks, newest last.
    fn slots(&self) -> BTreeMap<Key, Vec<&Task>> {
        let mut slots: BTreeMap<Key, Vec<&Task>> = BTreeMap::new();
        for task in self.tasks.values() {
            let node = if task.slot == 0 {
                task.node.as_ref().map(|n| n.to_string()).unwrap_or_default()
            } else {
                String::new()
            };
            if task.desired_state != TaskState::Remove {
                slots.entry((task.slot, node)).or_default().push(task);
            }
        }
        for tasks in slots.values_mut() {
            tasks.sort_by_key(|t| (t.meta.created_at, t.meta.version, t.id.clone()));
        }
        slots
    }

    /// Slots in order; missing numbers stand for tasks that are not there yet.
    fn keys(&self, total: u64, slots: &BTreeMap<Key, Vec<&Task>>) -> Vec<Key> {
        let mut keys: Vec<Key> = slots
            .iter()
            .filter(|(_, tasks)| tasks.iter().any(|t| t.is_wanted()) || !self.is_replicated())
            .map(|(key, _)| key.clone())
            .collect();
        let wanted = if self.is_replicated() { usize::try_from(total).unwrap_or(usize::MAX) } else { keys.len() };
        let mut next = 1;
        while keys.len() < wanted {
            let key = (next, String::new());
            if !keys.contains(&key) {
                keys.push(key);
            }
            next += 1;
        }
        keys.sort();
        keys.truncate(wanted);
        keys
    }

    fn is_replicated(&self) -> bool {
        matches!(self.service.spec.mode, ServiceMode::Replicated { .. } | ServiceMode::ReplicatedJob { .. })
    }

    fn label(&self, at: usize, key: &Key, total: u64) -> String {
        if key.0 == 0 { key.1.get(..12).unwrap_or(&key.1).to_owned() } else { format!("{}/{total}", at + 1) }
    }

    /// The newest task's state; while it is not running, the reason why, its own or its predecessor's. Tasks of an
    /// older spec say nothing about this one.
    fn slot_text(&self, tasks: &[&Task]) -> String {
        let current: Vec<&Task> = tasks.iter().copied().filter(|task| self.is_current(task)).collect();
        let Some(newest) = current.last() else { return String::new() };
        if self.is_running(newest) {
            return "running".into();
        }
        let word = newest.status.state.word().to_lowercase();
        if let Some(what) = waits_for(newest) {
            let trouble = newest.status.error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default();
            return format!("{word}: {what}{trouble}");
        }
        let problem = current.iter().rev().find_map(|t| t.status.error.as_deref().filter(|e| !e.is_empty()));
        match problem.filter(|_| newest.status.state != TaskState::Running) {
            Some(problem) => problem.to_owned(),
            None => word,
        }
    }
}

pub(super) fn overall(running: u64, total: u64) -> String {
    format!("overall progress: {running} out of {total} tasks")
}

/// Held back until another service has come far enough: that is no lack of a node.
fn held(task: &Task) -> Option<&str> {
    let error = task.status.error.as_deref().filter(|_| task.status.state == TaskState::Pending)?;
    error.starts_with("waiting for service ").then_some(error)
}

type Key = (u64, String);

#[cfg(test)]
mod tests {
    use orch_model::{
        Annotations, Meta, ServiceId, Version,
        service::{Endpoint, EndpointSpec, ServiceSpec, TaskSpec, UpdateStatus},
        task::TaskStatus,
    };

    use super::*;

    fn service(replicas: u64, update: Option<(UpdateState, u64)>) -> Arc<Service> {
        Arc::new(Service {
            id: ServiceId::from_random(1),
            meta: Meta { version: Version(5), ..Meta::default() },
            spec: ServiceSpec {
                annotations: Annotations { name: "web".into(), ..Annotations::default() },
                task: TaskSpec::default(),
                mode: ServiceMode::Replicated { replicas },
                update: None,
                rollback: None,
                endpoint: EndpointSpec::default(),
                depends_on: Vec::new(),
            },
            spec_version: Version(5),
            previous_spec: None,
            endpoint: Endpoint::default(),
            update_status: update.map(|(state, at)| UpdateStatus {
                state,
                started_at: Timestamp::from_unix_ms(at),
                first_started_at: None,
                completed_at: None,
                message: "why".into(),
            }),
            removing: false,
        })
    }

    fn task(id: u128, slot: u64, state: TaskState, error: Option<&str>) -> Arc<Task> {
        let at = Timestamp::from_unix_ms(u64::try_from(id).unwrap());
        Arc::new(Task {
            id: TaskId::from_random(id),
            meta: Meta { created_at: at, ..Meta::default() },
            service: ServiceId::from_random(1),
            service_annotations: Arc::default(),
            slot,
            node: None,
            spec: Arc::new(TaskSpec::default()),
            spec_version: Version(5),
            status: TaskStatus { state, at, message: String::new(), error: error.map(Into::into), container: None },
            desired_state: if state.is_terminal() { TaskState::Shutdown } else { TaskState::Running },
            start_at: None,
            networks: Vec::new(),
            host_ports: Vec::new(),
            running_since: None,
            generic: orch_model::node::GenericResources::default(),
            displaced: false,
        })
    }

    fn progress(service: Arc<Service>, tasks: Vec<Arc<Task>>) -> Progress {
        let mut progress = Progress::new(service, None, false);
        tasks.into_iter().for_each(|task| progress.put_task(task));
        progress
    }

    #[test]
    fn a_slot_shows_why_it_does_not_run() {
        let tasks = vec![
            task(1, 1, TaskState::Running, None),
            task(2, 2, TaskState::Rejected, Some("No such image: x")),
            task(3, 2, TaskState::Preparing, None),
        ];
        let progress = progress(service(3, None), tasks);
        let view = progress.view();
        assert_eq!((view.running, view.total), (1, 3));
        let lines: Vec<_> = view.lines.iter().map(|(label, text)| format!("{label}: {text}")).collect();
        assert_eq!(lines, ["1/3: running", "2/3: No such image: x", "3/3: "]);
        assert_eq!(progress.verdict(), Verdict::Waiting);

        let mut pulls = (*task(1, 1, TaskState::Preparing, None)).clone();
        pulls.status.message = "downloading its image: 1MB of 2MB".into();
        let before = task(0, 1, TaskState::Rejected, Some("No such image: x"));
        let line = |pulls: &Task| {
            let tasks = vec![before.clone(), Arc::new(pulls.clone())];
            self::progress(service(1, None), tasks).view().lines[0].1.clone()
        };
        assert_eq!(line(&pulls), "preparing: downloading its image: 1MB of 2MB");
        pulls.status.error = Some("registry r is busy".into());
        assert_eq!(line(&pulls), "preparing: downloading its image: 1MB of 2MB (registry r is busy)");
    }

    #[test]
    fn what_cannot_run_is_not_waited_for() {
        let stuck = |tasks: Vec<Arc<Task>>| match progress(service(1, None), tasks).verdict() {
            Verdict::Stuck(reason) => reason,
            other => format!("{other:?}"),
        };
        let rejected = |id| task(id, 1, TaskState::Rejected, Some("No such image: x"));
        let next = task(9, 1, TaskState::Preparing, None);
        assert_eq!(stuck(vec![rejected(1), rejected(2), next.clone()]), "Waiting");
        assert!(stuck(vec![rejected(1), rejected(2), rejected(3), next]).ends_with("does not start: No such image: x"));
        let held = task(1, 1, TaskState::Pending, Some("waiting for service db: 0 of 1 tasks started"));
        assert_eq!(stuck(vec![held]), "Waiting");
        let homeless = task(1, 1, TaskState::Pending, Some("no suitable node"));
        assert!(stuck(vec![homeless]).ends_with("has no node to run on: no suitable node"));
        assert_eq!(stuck(vec![task(1, 1, TaskState::Pending, None)]), "Waiting");
        let over = task(1, 1, TaskState::Complete, None);
        assert!(stuck(vec![over.clone()]).ends_with("gives it no other attempt: complete"));
        assert_eq!(stuck(vec![over, task(2, 1, TaskState::Ready, None)]), "Waiting");
    }

    #[test]
    fn an_update_that_may_fail_is_not_waited_for_longer_than_it_takes() {
        let tasks = || vec![task(1, 1, TaskState::Failed, Some("exit 1")), task(2, 1, TaskState::Ready, None)];
        let verdict = |state| progress(service(1, Some((state, 7))), tasks()).verdict();
        let said = "update completed, but 0 of 1 tasks run (.1: exit 1)";
        assert_eq!(verdict(UpdateState::Updating), Verdict::Waiting);
        assert_eq!(verdict(UpdateState::Completed), Verdict::Stuck(said.into()));
        let mut scaled = progress(service(1, Some((UpdateState::Completed, 7))), tasks());
        scaled.stale_update = Some(Timestamp::from_unix_ms(7));
        assert_eq!(scaled.verdict(), Verdict::Waiting, "it was another change that completed");
        let comes = vec![task(1, 1, TaskState::Preparing, None)];
        let comes = progress(service(1, Some((UpdateState::Completed, 7))), comes);
        assert_eq!(comes.verdict(), Verdict::Waiting, "it may still run");
    }

    #[test]
    fn a_jobs_earlier_run_is_not_this_one() {
        let mut job = (*service(0, None)).clone();
        job.spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
        let mut earlier = (*task(1, 1, TaskState::Complete, None)).clone();
        earlier.spec_version = Version(4);
        let mut progress = progress(Arc::new(job), vec![Arc::new(earlier)]);
        assert_eq!((progress.verdict(), progress.view().running), (Verdict::Waiting, 0));
        progress.put_task(task(2, 1, TaskState::Complete, None));
        assert_eq!((progress.verdict(), progress.view().running), (Verdict::Converged, 1));
    }

    #[test]
    fn a_jobs_progress_counts_what_is_complete_and_what_runs_at_once() {
        let mut job = (*service(0, None)).clone();
        job.spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 2, total_completions: 5 };
        let tasks = vec![
            task(1, 1, TaskState::Complete, None),
            task(2, 2, TaskState::Failed, Some("exit 1")),
            task(3, 2, TaskState::Running, None),
            task(4, 3, TaskState::Starting, None),
        ];
        let jobs = progress(Arc::new(job.clone()), tasks);
        assert_eq!(jobs.view().head, "job progress: 1 out of 5 complete\nactive tasks: 2 out of 2 tasks");
        assert_eq!(jobs.monitor(), Duration::ZERO, "what is complete stays so");
        job.spec.mode = ServiceMode::GlobalJob;
        // Another node had its part in an earlier run, and has none in this one.
        let mut earlier = (*task(2, 0, TaskState::Complete, None)).clone();
        (earlier.spec_version, earlier.node) = (Version(4), Some(orch_model::NodeId::from_random(2)));
        let done = progress(Arc::new(job), vec![task(1, 0, TaskState::Complete, None), Arc::new(earlier)]);
        assert_eq!(
            (done.view().head.as_str(), done.verdict()),
            ("job progress: 1 out of 1 complete", Verdict::Converged)
        );
    }

    #[test]
    fn scaling_down_converges_when_few_enough_are_wanted() {
        let tasks = vec![task(1, 1, TaskState::Running, None), task(2, 2, TaskState::Shutdown, None)];
        assert_eq!(progress(service(1, None), tasks).verdict(), Verdict::Converged);
        assert_eq!(progress(service(0, None), Vec::new()).verdict(), Verdict::Converged);
    }

    #[test]
    fn an_update_decides_unless_it_is_an_older_one() {
        let running = || vec![task(1, 1, TaskState::Running, None)];
        let verdict = |state| progress(service(1, Some((state, 7))), running()).verdict();
        assert_eq!(verdict(UpdateState::Updating), Verdict::Waiting);
        assert_eq!(verdict(UpdateState::Completed), Verdict::Converged);
        assert_eq!(verdict(UpdateState::Paused), Verdict::Failed("service update paused: why".into()));
        assert_eq!(verdict(UpdateState::RollbackCompleted), Verdict::Failed("service rolled back: why".into()));
        let mut stale = progress(service(1, Some((UpdateState::Paused, 7))), running());
        stale.stale_update = Some(Timestamp::from_unix_ms(7));
        assert_eq!(stale.verdict(), Verdict::Converged);
    }

    #[test]
    fn a_task_of_an_older_spec_does_not_count() {
        let mut old = (*task(1, 1, TaskState::Running, None)).clone();
        old.spec_version = Version(4);
        let mut spec = TaskSpec::default();
        spec.container.image = "old".into();
        old.spec = Arc::new(spec);
        assert_eq!(progress(service(1, None), vec![Arc::new(old.clone())]).verdict(), Verdict::Waiting);
        let mut moved = TaskSpec::default();
        moved.placement.constraints = vec!["node.role==manager".into()];
        old.spec = Arc::new(moved);
        assert_eq!(progress(service(1, None), vec![Arc::new(old.clone())]).verdict(), Verdict::Converged);
        // It was started by name; since then the cluster has learned what the name means.
        let (mut by_name, mut known) = (TaskSpec::default(), (*service(1, None)).clone());
        by_name.container.image = "web".into();
        known.spec.task = by_name.clone();
        known.spec.task.container.image_digest = Some("sha256:1".into());
        old.spec = Arc::new(by_name);
        assert_eq!(progress(Arc::new(known), vec![Arc::new(old)]).verdict(), Verdict::Converged);
    }
}
