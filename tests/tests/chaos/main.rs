//! Three managers, real processes: killed, paused, cut off and brought back at random, while clients write and read through
//! all of them and a service answers requests.
//!
//! A few rounds run everywhere; `ORCH_CHAOS_ROUNDS` says how many, `--features full` runs 500. `ORCH_CHAOS_SEED` repeats a
//! run's choice of faults and of clients' calls; what the machine makes of them is its own.

mod clients;
mod faults;
mod service;

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use orch_tests::{Dice, Lab, within};

use clients::{CLIENTS, History};
use faults::{NODES, Round};
use service::{Container, Starts, Traffic};

/// Everything is as wanted again this long after the last fault: a daemon that died often waits before it is started.
const WELL_AGAIN: Duration = Duration::from_secs(60);
const ROUNDS: u64 = if cfg!(feature = "full") { 500 } else { 9 };
/// Reading all configs takes longer the more there are.
const ROUNDS_PER_LIST: u64 = 5;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn managers_die_are_cut_off_and_come_back_and_nothing_is_lost() {
    let seed = setting("ORCH_CHAOS_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() % 1_000_000);
    let rounds = setting("ORCH_CHAOS_ROUNDS").unwrap_or(ROUNDS);
    println!("{rounds} rounds; repeat with ORCH_CHAOS_SEED={seed} ORCH_CHAOS_ROUNDS={rounds}");
    let mut dice = Dice::new(seed);
    let lab = Lab::up("chaos", 3, 3);
    service::start(&lab);
    clients::prepare(&lab);
    let history = History::default();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (lab, history, dice) = (&lab, &history, dice.fork());
            scope.spawn(move || clients::run(lab, history, client, dice));
        }
        // Clients end also when a check fails, or the scope would wait for them for ever.
        let _stop = StopAtEnd(&history);
        let mut chaos = Chaos::begin(&lab, &history);
        for number in 1..=rounds {
            let round = Round::draw(&mut dice);
            chaos.round(number, &round);
        }
        chaos.end();
    });
    everything_is_known_to_everyone_after_all_were_killed(&lab, &history);
}

struct StopAtEnd<'a>(&'a History);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct Chaos<'a> {
    lab: &'a Lab,
    history: &'a History,
    traffic: Traffic,
    starts: Starts,
    running: Vec<Container>,
    identity: String,
}

impl<'a> Chaos<'a> {
    fn begin(lab: &'a Lab, history: &'a History) -> Self {
        let running = within(WELL_AGAIN, "the service runs", || service::one_for_each_slot(lab));
        let identity = identity(lab, "n1").expect("the cluster's ids");
        Self { lab, history, traffic: Traffic::start(lab), starts: Starts::default(), running, identity }
    }

    fn round(&mut self, number: u64, round: &Round) {
        println!("round {number}: {round}");
        let acknowledged = self.history.acknowledged();
        let start = Instant::now();
        round.play(self.lab, |fault, edge| self.traffic.note(fault, edge));
        let undone = Instant::now();
        let now = within(WELL_AGAIN, &format!("all is well again after round {number} ({round})"), || self.is_well());
        let written = self.history.acknowledged();
        within(WELL_AGAIN, "every client gets its writes through", || {
            let later = self.history.acknowledged();
            if later.iter().zip(written).all(|(now, then)| *now > then) { Ok(()) } else { Err(format!("{later:?}")) }
        });
        let newly = written.iter().sum::<u64>() - acknowledged.iter().sum::<u64>();
        println!(
            "         {} ms of faults, well after {} ms, {newly} writes meanwhile",
            (undone - start).as_millis(),
            undone.elapsed().as_millis()
        );
        self.starts.note(&now).unwrap_or_else(|error| panic!("round {number} ({round}): {error}"));
        if !round.may_move_tasks() {
            assert_eq!(now, self.running, "round {number} ({round}) moved tasks");
        }
        self.running = now;
        if number.is_multiple_of(ROUNDS_PER_LIST) {
            for node in NODES {
                self.history.check_configs(self.lab, node).expect("the configs");
            }
        }
        self.complain(&format!("round {number} ({round})"));
    }

    fn complain(&mut self, when: &str) {
        let mut found = self.history.violations();
        found.extend(self.traffic.unexcused());
        assert!(found.is_empty(), "{when}:\n{}", found.join("\n"));
    }

    /// Every daemon is back by itself, every manager answers, nobody has another id, each slot has its one task.
    fn is_well(&self) -> Result<Vec<Container>, String> {
        for node in NODES {
            let info = self.lab.orch_on(node, &["info"]).result()?;
            for daemon in ["manager", "worker", "netd"] {
                if !info.contains(&format!("Daemon {daemon}: pid "))
                    || info.contains(&format!("Daemon {daemon}: pid 0,"))
                {
                    return Err(format!("no {daemon} on {node}: {info}"));
                }
            }
            self.history.read(self.lab, node)?;
            let identity = identity(self.lab, node)?;
            assert_eq!(identity, self.identity, "as {node} tells it");
            let format = "{{.Status}} {{.Availability}} {{.ManagerStatus}}";
            let mut nodes = self.lab.orch_on(node, &["node", "ls", "--format", format]).result()?;
            nodes = nodes.replacen("Leader", "Reachable", 1);
            if nodes != "Ready Active Reachable\n".repeat(NODES.len()) {
                return Err(format!("{node}: {nodes}"));
            }
        }
        service::one_for_each_slot(self.lab)
    }

    fn end(mut self) {
        println!("{}", self.history.summary());
        self.complain("at the end");
        println!("{}", self.traffic.summary());
        self.traffic.stop();
    }
}

/// What stays for good.
fn identity(lab: &Lab, node: &str) -> Result<String, String> {
    let nodes = lab.orch_on(node, &["node", "ls", "--format", "{{.ID}} {{.Hostname}}"]).result()?;
    let format = "{{.ID}} {{json .Spec}} {{json .Endpoint}}";
    let service = lab.orch_on(node, &["service", "inspect", service::NAME, "--format", format]).result()?;
    let cluster = lab.orch_on(node, &["info", "--format", "{{.Swarm.Cluster.ID}} {{.Swarm.NodeID}}"]).result()?;
    let cluster = cluster.split(' ').next().unwrap_or_default().to_owned();
    Ok(format!("{cluster}\n{nodes}{service}"))
}

fn everything_is_known_to_everyone_after_all_were_killed(lab: &Lab, history: &History) {
    let _ = NODES.map(|node| lab.command("kill", &[node, "all"]).ok());
    let _ = NODES.map(|node| lab.command("start", &[node]).ok());
    let lists: Vec<String> =
        NODES.map(|node| within(WELL_AGAIN, "the configs are read", || history.check_configs(lab, node))).into();
    let mut last = Vec::new();
    for node in NODES {
        last.push(history.read(lab, node).expect("a read"));
    }
    assert_eq!(history.violations(), [] as [&str; 0]);
    assert!(lists.iter().all(|list| *list == lists[0]), "the managers list different configs");
    assert!(last.iter().all(|seen| seen.counts == last[0].counts), "the managers read differently: {last:?}");
}
