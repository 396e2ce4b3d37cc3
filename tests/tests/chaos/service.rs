//! The service that runs all along: its containers on every node, and what becomes of the requests to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orch_tests::{Lab, Load, failures};
use serde_json::Value;

use crate::faults::{Edge, Fault, NODES, Node};

pub(crate) const NAME: &str = "web";
pub(crate) const REPLICAS: &str = "6";
/// So that no single node ever has them all: without it there is a service left to answer.
const MAX_PER_NODE: &str = "3";
const PORT: &str = "8000";
const INTERVAL: Duration = Duration::from_millis(150);
const LONGEST_RUN: Duration = Duration::from_secs(4 * 3600);
/// How long the other nodes may still send requests to a node that went away: it is noticed, probed, taken out.
const NOTICE_SECS: f64 = 8.0;
/// After the end of a fault: whoever was away hears of the changes, lost packets are sent again.
const AFTERMATH_SECS: f64 = 6.0;
/// A request that was under way when it began.
const IN_FLIGHT_SECS: f64 = 1.0;

/// One task's container, as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Container {
    pub(crate) slot: String,
    pub(crate) task: String,
    pub(crate) node: Node,
    pub(crate) pid: String,
}

pub(crate) fn start(lab: &Lab) {
    lab.import("busybox", "busybox", &[]);
    let port = format!("{PORT}:80");
    let size = ["--replicas", REPLICAS, "--replicas-max-per-node", MAX_PER_NODE];
    let args = [&["service", "create", "-d", "--name", NAME, "-p", &port, "--restart-delay", "1s"], &size[..]].concat();
    let _ = lab.orch(&[&args[..], &["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"]].concat()).ok();
    lab.wait_replicas(NAME, &format!("{REPLICAS}/{REPLICAS}"));
}

/// What really runs, on all nodes.
pub(crate) fn containers(lab: &Lab) -> Result<Vec<Container>, String> {
    let mut all = Vec::new();
    for node in NODES {
        let text = lab.orch_on(node, &["ps", "--no-trunc", "--format", "{{.Names}} {{.PID}}"]).result()?;
        for line in text.lines() {
            let (name, pid) = line.split_once(' ').ok_or(format!("{node} lists {line:?}"))?;
            let [_, slot, task] = name.split('.').collect::<Vec<_>>()[..] else { return Err(format!("{name:?}")) };
            all.push(Container { slot: slot.into(), task: task.into(), node, pid: pid.into() });
        }
    }
    all.sort();
    Ok(all)
}

/// One container for each slot, each what the managers say it is.
pub(crate) fn one_for_each_slot(lab: &Lab) -> Result<Vec<Container>, String> {
    let found = containers(lab)?;
    let slots: Vec<&str> = found.iter().map(|container| container.slot.as_str()).collect();
    let wanted: Vec<String> = (1..=REPLICAS.parse::<usize>().expect("a number")).map(|slot| slot.to_string()).collect();
    let format = "{{.ID}} {{.CurrentState}}";
    let args = ["service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", format, NAME];
    let tasks = lab.orch(&args).result()?;
    let known =
        |container: &Container| tasks.lines().any(|line| line.starts_with(&format!("{} Running", container.task)));
    if slots == wanted && found.iter().all(known) {
        Ok(found)
    } else {
        Err(format!("{found:?}; the managers: {tasks}"))
    }
}

/// Which process each task was started as; a task is never started again.
#[derive(Debug, Default)]
pub(crate) struct Starts(BTreeMap<String, (Node, String)>);

impl Starts {
    pub(crate) fn note(&mut self, containers: &[Container]) -> Result<(), String> {
        for Container { slot, task, node, pid } in containers {
            let first = self.0.entry(task.clone()).or_insert_with(|| (*node, pid.clone()));
            if *first != (*node, pid.clone()) {
                return Err(format!("task {task} of slot {slot} was {first:?} and is now on {node} as process {pid}"));
            }
        }
        Ok(())
    }
}

/// When a fault was there, in seconds since the epoch, as the requests are stamped.
#[derive(Debug)]
struct Spell {
    fault: Fault,
    begin: f64,
    there: Option<f64>,
    ending: Option<f64>,
    end: Option<f64>,
}

/// Requests through every node, and the faults that excuse failures.
pub(crate) struct Traffic {
    loads: Vec<(Node, Load)>,
    spells: Vec<Spell>,
    excused: usize,
    total: usize,
    judged: BTreeMap<Node, usize>,
}

impl Traffic {
    pub(crate) fn start(lab: &Lab) -> Self {
        let loads = NODES.map(|node| {
            let url = format!("http://{}:{PORT}/hostname", lab.address(node));
            (node, Load::start(lab, "client", &url, INTERVAL, LONGEST_RUN))
        });
        Self { loads: loads.into(), spells: Vec::new(), excused: 0, total: 0, judged: BTreeMap::new() }
    }

    pub(crate) fn note(&mut self, fault: Fault, edge: Edge) {
        match edge {
            Edge::Begin => self.spells.push(Spell { fault, begin: now(), there: None, ending: None, end: None }),
            Edge::There => self.open(fault).there = Some(now()),
            Edge::Ending => self.open(fault).ending = Some(now()),
            Edge::End => self.open(fault).end = Some(now()),
        }
    }

    fn open(&mut self, fault: Fault) -> &mut Spell {
        let open = self.spells.iter_mut().rev().find(|spell| spell.fault == fault && spell.end.is_none());
        open.expect("a fault that has begun")
    }

    /// Failed requests since the last time that nothing excuses.
    pub(crate) fn unexcused(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (node, load) in &self.loads {
            let answers = load.answers_so_far();
            let judged = self.judged.insert(*node, answers.len()).unwrap_or(0);
            let new = &answers[judged.min(answers.len())..];
            self.total += new.len();
            for failed in failures(new) {
                if is_excused(&self.spells, node, failed) {
                    self.excused += 1;
                } else {
                    found.push(format!("a request to {node} failed: {failed}"));
                }
            }
        }
        found
    }

    pub(crate) fn summary(&self) -> String {
        format!("{} requests, {} failed where packets were lost", self.total, self.excused)
    }

    pub(crate) fn stop(self) {
        for (_, load) in self.loads {
            drop(load.stop());
        }
    }
}

impl Spell {
    fn is_near(&self, at: f64) -> bool {
        at >= self.begin - IN_FLIGHT_SECS && self.end.is_none_or(|end| at <= end + AFTERMATH_SECS)
    }

    /// Who is gone for so long must have been noticed, until it begins to come back: a machine that starts answers before
    /// anybody knows that nothing runs on it any more.
    fn is_noticed(&self, at: f64) -> bool {
        self.there.is_some_and(|there| at > there + NOTICE_SECS)
            && self.ending.is_none_or(|ending| at < ending - IN_FLIGHT_SECS)
    }
}

/// Only packets that are lost excuse a failure: all while it lasts on the nodes that are cut off, and for as long as it
/// takes to notice on the others. Nothing excuses one when only daemons die or stand still.
fn is_excused(spells: &[Spell], entry: &str, request: &Value) -> bool {
    let at = request["at"].as_f64().expect("a time");
    let near: Vec<&Spell> = spells.iter().filter(|s| s.is_near(at) && !s.fault.without_network().is_empty()).collect();
    let cut: BTreeSet<Node> = near.iter().flat_map(|spell| spell.fault.without_network()).collect();
    // Who hears neither of the others believes that it is cut off itself, and takes nobody out. Who is cut off from one
    // other node only is dead for nobody, so the two keep sending each other requests.
    let is_half_blind = near.len() > 1 && cut.len() > 1;
    is_half_blind || cut.contains(entry) || near.iter().any(|spell| is_single(spell) && !spell.is_noticed(at))
}

fn is_single(spell: &Spell) -> bool {
    spell.fault.without_network().len() == 1
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}
