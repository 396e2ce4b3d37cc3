//! What happens to one task: a pure state machine.
//!
//! [`Machine::step`] takes what happened and returns what to do; it knows no clock, no container and no network.
//! Invariants: reported states only go up; nothing is reported after a terminal state; a container that was started
//! once is never started again; balancing ends ([`Command::NetDown`]) before an exit is reported.

use orch_model::task::TaskState;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The assignment is new on this node.
    Assigned,
    /// What the manager wants now.
    Desired(TaskState),
    /// The assignment went away: the task object is gone.
    Unassigned,
    Prepared(Result<(), String>),
    Started(Result<u32, String>),
    /// It listens where it said, or was given time enough to; with a health check: it is healthy.
    Listening,
    Unhealthy,
    Exited(Ended),
    /// No client is connected any more, or it took too long.
    Quiet,
    /// The stop signal has not ended it in time.
    GraceOver,
    /// All that the container needed is given back.
    Released,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub code: i32,
    pub oom_killed: bool,
    pub error: Option<String>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Report(Report),
    /// Image, volumes, network.
    Prepare,
    /// Give up preparing.
    Abandon,
    Start,
    /// Wait until the started container answers.
    AwaitListening {
        pid: u32,
    },
    /// Let clients go elsewhere, then wait until they are gone.
    AwaitQuiet,
    SignalStop,
    Kill,
    /// Nothing may be sent to the task any more.
    NetDown,
    /// Give back all that the container needed, except its log.
    Release,
    /// Forget the task, its log and its anonymous volumes. Nothing follows.
    Forget,
}

/// A status to report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub state: TaskState,
    pub message: &'static str,
    pub error: Option<String>,
    pub pid: Option<u32>,
    pub exit_code: Option<i32>,
}

/// What a restarted worker finds of a task that it has a record of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Running { pid: u32 },
    Exited(Ended),
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Preparing,
    Ready,
    Starting,
    /// Started; its program does not answer yet.
    Opening {
        pid: u32,
    },
    Running,
    /// Should stop; clients may finish.
    Draining,
    /// Has been told to stop.
    Stopping,
    Ended {
        released: bool,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Machine {
    phase: Phase,
    desired: TaskState,
    assigned: bool,
    /// It is stopped because its health check failed.
    unhealthy: bool,
    /// The state reported last.
    reported: TaskState,
}

impl Machine {
    /// A task that this node has not seen before.
    pub(crate) fn new(desired: TaskState) -> Self {
        Self { phase: Phase::New, desired, assigned: true, unhealthy: false, reported: TaskState::Assigned }
    }

    /// A task that an earlier worker had brought to `reported`.
    pub(crate) fn recover(reported: TaskState, desired: TaskState, found: Found) -> (Self, Vec<Command>) {
        let mut machine = Self { phase: Phase::New, desired, assigned: true, unhealthy: false, reported };
        let commands = match found {
            _ if reported.is_terminal() => machine.released_again(),
            Found::Running { pid } => machine.started(pid),
            Found::Exited(ended) => {
                machine.phase = Phase::Running;
                machine.ended(ended)
            }
            Found::Nothing if reported < TaskState::Starting => machine.step(Event::Assigned),
            Found::Nothing => machine.end(TaskState::Failed, "started", Some(RESTARTED.to_owned()), None),
        };
        (machine, commands)
    }

    /// A task that managers saw start here, of which this node has no record: its disk was replaced.
    pub(crate) fn lost(desired: TaskState) -> (Self, Vec<Command>) {
        Self::recover(TaskState::Starting, desired, Found::Nothing)
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Command> {
        match (event, self.phase) {
            (Event::Assigned, Phase::New) => self.begin(),
            (Event::Desired(state), _) => {
                // The manager's wishes only go up as well; an old message must not restart anything.
                self.desired = self.desired.max(state);
                self.follow_desired()
            }
            (Event::Unassigned, _) => {
                self.assigned = false;
                self.desired = TaskState::Remove;
                self.follow_desired()
            }
            (Event::Prepared(Ok(())), Phase::Preparing) => {
                self.phase = Phase::Ready;
                let mut commands = self.report(TaskState::Ready, "prepared");
                commands.extend(self.follow_desired());
                commands
            }
            (Event::Prepared(Err(error)), Phase::Preparing) => {
                self.end(TaskState::Rejected, "preparing", Some(error), None)
            }
            (Event::Started(Ok(pid)), Phase::Starting) => self.started(pid),
            (Event::Listening, Phase::Opening { pid }) => {
                self.phase = Phase::Running;
                self.running(pid)
            }
            (Event::Unhealthy, Phase::Opening { pid }) => self.unhealthy(pid, TaskState::Starting),
            (Event::Unhealthy, Phase::Running) => self.unhealthy(0, TaskState::Running),
            (Event::Started(Err(error)), Phase::Starting) => {
                let mut commands = vec![Command::NetDown];
                commands.extend(self.end(TaskState::Failed, "starting", Some(error), None));
                commands
            }
            (Event::Exited(ended), Phase::Opening { .. } | Phase::Running | Phase::Draining | Phase::Stopping) => {
                self.ended(ended)
            }
            (Event::Quiet, Phase::Draining) => {
                self.phase = Phase::Stopping;
                vec![Command::SignalStop]
            }
            (Event::GraceOver, Phase::Stopping) => vec![Command::Kill],
            (Event::Released, Phase::Ended { .. }) => {
                self.phase = Phase::Ended { released: true };
                self.follow_desired()
            }
            // What an earlier phase was still waiting for.
            (
                Event::Assigned
                | Event::Prepared(_)
                | Event::Started(_)
                | Event::Listening
                | Event::Unhealthy
                | Event::Exited(_)
                | Event::Quiet
                | Event::GraceOver
                | Event::Released,
                _,
            ) => Vec::new(),
        }
    }

    fn begin(&mut self) -> Vec<Command> {
        let mut commands = self.report(TaskState::Accepted, "accepted");
        if self.desired > TaskState::Running {
            commands.extend(self.follow_desired());
            return commands;
        }
        self.phase = Phase::Preparing;
        commands.extend(self.report(TaskState::Preparing, "preparing"));
        commands.push(Command::Prepare);
        commands
    }

    fn follow_desired(&mut self) -> Vec<Command> {
        let stop = self.desired > TaskState::Running;
        match self.phase {
            Phase::New | Phase::Ready if stop => self.end(TaskState::Shutdown, "shutdown", None, None),
            Phase::Preparing if stop => {
                let mut commands = vec![Command::Abandon];
                commands.extend(self.end(TaskState::Shutdown, "shutdown", None, None));
                commands
            }
            Phase::Ready if self.desired == TaskState::Running => {
                self.phase = Phase::Starting;
                let mut commands = self.report(TaskState::Starting, "starting");
                commands.push(Command::Start);
                commands
            }
            Phase::Opening { .. } | Phase::Running if stop => {
                self.phase = Phase::Draining;
                vec![Command::AwaitQuiet]
            }
            Phase::Ended { released: true } if !self.assigned => vec![Command::Forget],
            Phase::New
            | Phase::Preparing
            | Phase::Ready
            | Phase::Starting
            | Phase::Opening { .. }
            | Phase::Running
            | Phase::Draining
            | Phase::Stopping
            | Phase::Ended { .. } => Vec::new(),
        }
    }

    fn ended(&mut self, ended: Ended) -> Vec<Command> {
        let asked_to = matches!(self.phase, Phase::Draining | Phase::Stopping) || self.desired > TaskState::Running;
        let ended = if self.unhealthy { ended.unhealthy() } else { ended };
        let (state, message) = match ended.code {
            _ if self.unhealthy => (TaskState::Failed, "started"),
            _ if asked_to => (TaskState::Shutdown, "shutdown"),
            0 if ended.error.is_none() => (TaskState::Complete, "finished"),
            _ => (TaskState::Failed, "started"),
        };
        let error = (state == TaskState::Failed).then(|| ended.words());
        let mut commands = vec![Command::NetDown];
        commands.extend(self.end(state, message, error, Some(ended.code)));
        commands
    }

    /// Enters the last phase. Says so at once; giving things back comes after.
    fn end(
        &mut self,
        state: TaskState,
        message: &'static str,
        error: Option<String>,
        exit_code: Option<i32>,
    ) -> Vec<Command> {
        self.phase = Phase::Ended { released: false };
        self.reported = state;
        vec![Command::Report(Report { state, message, error, pid: None, exit_code }), Command::Release]
    }

    /// The earlier worker reported the end; whether it gave everything back is not known, so it is done again.
    fn released_again(&mut self) -> Vec<Command> {
        self.phase = Phase::Ended { released: false };
        vec![Command::Release]
    }

    fn started(&mut self, pid: u32) -> Vec<Command> {
        if self.reported >= TaskState::Running {
            self.phase = Phase::Running;
            return self.follow_desired();
        }
        self.phase = Phase::Opening { pid };
        let mut commands = self.follow_desired();
        if commands.is_empty() {
            commands.push(Command::AwaitListening { pid });
        }
        commands
    }

    /// Managers take it out of all balancing when they read this; then it is stopped like any other.
    fn unhealthy(&mut self, pid: u32, state: TaskState) -> Vec<Command> {
        self.phase = Phase::Draining;
        self.unhealthy = true;
        let pid = (pid > 0).then_some(pid);
        let report = Report { state, message: UNHEALTHY, error: None, pid, exit_code: None };
        vec![Command::Report(report), Command::AwaitQuiet]
    }

    fn running(&mut self, pid: u32) -> Vec<Command> {
        if self.reported >= TaskState::Running {
            return Vec::new();
        }
        self.reported = TaskState::Running;
        let report =
            Report { state: TaskState::Running, message: "started", error: None, pid: Some(pid), exit_code: None };
        vec![Command::Report(report)]
    }

    fn report(&mut self, state: TaskState, message: &'static str) -> Vec<Command> {
        if state <= self.reported {
            return Vec::new();
        }
        self.reported = state;
        vec![Command::Report(Report { state, message, error: None, pid: None, exit_code: None })]
    }
}

const RESTARTED: &str = "node restarted";
/// What a report says while an unhealthy container is stopped.
pub(crate) const UNHEALTHY: &str = "unhealthy, stopping";

impl Ended {
    fn unhealthy(self) -> Self {
        let error = format!("task: non-zero exit ({}): dockerexec: unhealthy container", self.code);
        Self { error: Some(error), ..self }
    }

    /// In Docker's words.
    fn words(&self) -> String {
        match (&self.error, self.oom_killed) {
            (Some(error), _) => error.clone(),
            (None, true) => format!("task: non-zero exit ({}): out of memory", self.code),
            (None, false) => format!("task: non-zero exit ({})", self.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> Event {
        Event::Exited(Ended { code, oom_killed: false, error: None })
    }

    /// One word per command.
    fn words(commands: &[Command]) -> String {
        let word = |command: &Command| match command {
            Command::Report(report) => {
                let error = report.error.as_ref().map(|error| format!("[{error}]")).unwrap_or_default();
                format!("{}{error}", report.state.word().to_lowercase())
            }
            other => format!("{other:?}"),
        };
        commands.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn check(desired: TaskState, events: &[(Event, &str)]) {
        let mut machine = Machine::new(desired);
        for (n, (event, expected)) in events.iter().enumerate() {
            assert_eq!(words(&machine.step(event.clone())), *expected, "step {n}: {event:?}");
        }
    }

    use Event::{Assigned, Desired, GraceOver, Listening, Prepared, Quiet, Released, Started, Unassigned, Unhealthy};
    use TaskState::{Ready, Remove, Running, Shutdown};

    const BEGIN: (Event, &str) = (Assigned, "accepted preparing Prepare");

    #[test]
    fn a_task_runs_and_ends() {
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Listening, "running"),
                (ended(0), "NetDown complete Release"),
                (Released, ""),
                (Unassigned, "Forget"),
            ],
        );
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Listening, "running"),
                (ended(1), "NetDown failed[task: non-zero exit (1)] Release"),
                (Desired(Shutdown), ""),
                (Unassigned, ""),
                (Released, "Forget"),
            ],
        );
    }

    #[test]
    fn a_replacement_waits_when_ready() {
        check(
            Ready,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready"),
                (Desired(Running), "starting Start"),
                (Desired(Ready), ""),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Listening, "running"),
            ],
        );
        check(Ready, &[BEGIN, (Desired(Running), ""), (Prepared(Ok(())), "ready starting Start")]);
    }

    #[test]
    fn an_unhealthy_task_is_stopped_and_has_failed() {
        let failed = "NetDown failed[task: non-zero exit (0): dockerexec: unhealthy container] Release";
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Listening, "running"),
                (Unhealthy, "running AwaitQuiet"),
                (Unhealthy, ""),
                (Quiet, "SignalStop"),
                (Desired(Shutdown), ""),
                (ended(0), failed),
            ],
        );
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Unhealthy, "starting AwaitQuiet"),
                (Listening, ""),
                (Quiet, "SignalStop"),
                (GraceOver, "Kill"),
                (ended(0), failed),
            ],
        );
    }

    #[test]
    fn stopping_drains_signals_and_kills() {
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Listening, "running"),
                (Desired(Shutdown), "AwaitQuiet"),
                (GraceOver, ""),
                (Quiet, "SignalStop"),
                (Desired(Remove), ""),
                (GraceOver, "Kill"),
                (ended(137), "NetDown shutdown Release"),
                (Quiet, ""),
                (Released, ""),
                (Unassigned, "Forget"),
            ],
        );
        // It may end by itself while its clients finish.
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Desired(Shutdown), ""),
                (Started(Ok(7)), "AwaitQuiet"),
                (ended(0), "NetDown shutdown Release"),
            ],
        );
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Ok(7)), "AwaitListening { pid: 7 }"),
                (Listening, "running"),
                (Unassigned, "AwaitQuiet"),
                (Quiet, "SignalStop"),
                (ended(143), "NetDown shutdown Release"),
                (Released, "Forget"),
            ],
        );
    }

    #[test]
    fn what_never_started_is_rejected_or_shut_down() {
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Err("No such image: x".to_owned())), "rejected[No such image: x] Release"),
                (Prepared(Ok(())), ""),
            ],
        );
        check(Running, &[BEGIN, (Desired(Shutdown), "Abandon shutdown Release"), (Prepared(Ok(())), "")]);
        check(Ready, &[BEGIN, (Prepared(Ok(())), "ready"), (Desired(Shutdown), "shutdown Release")]);
        check(Shutdown, &[(Assigned, "accepted shutdown Release"), (Released, "")]);
        check(
            Running,
            &[
                BEGIN,
                (Prepared(Ok(())), "ready starting Start"),
                (Started(Err("exec: no".to_owned())), "NetDown failed[exec: no] Release"),
            ],
        );
    }

    #[test]
    fn a_restarted_worker_carries_on() {
        let check = |reported, desired, found, expected: &str| {
            let (_, commands) = Machine::recover(reported, desired, found);
            assert_eq!(words(&commands), expected, "{reported:?}");
        };
        let failed = Found::Exited(Ended { code: 3, oom_killed: false, error: None });
        check(Running, Running, Found::Running { pid: 7 }, "");
        check(Running, Shutdown, Found::Running { pid: 7 }, "AwaitQuiet");
        check(TaskState::Starting, Running, Found::Running { pid: 7 }, "AwaitListening { pid: 7 }");
        check(Running, Running, failed, "NetDown failed[task: non-zero exit (3)] Release");
        check(Running, Running, Found::Nothing, "failed[node restarted] Release");
        check(TaskState::Preparing, Running, Found::Nothing, "Prepare");
        check(TaskState::Failed, Running, Found::Nothing, "Release");
        assert_eq!(words(&Machine::lost(Running).1), "failed[node restarted] Release");
    }
}
