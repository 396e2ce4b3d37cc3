//! What can happen to a cluster of three managers, drawn from dice, done and undone through the lab.

use std::{fmt, time::Duration};

use orch_tests::{Dice, Lab};

pub(crate) const NODES: [&str; 3] = ["n1", "n2", "n3"];
pub(crate) type Node = &'static str;

/// One thing that happens to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9` of one daemon; the supervisor starts it again
    KillDaemon(Node, &'static str),
    /// `kill -9` of every manager
    KillManagers,
    /// `kill -9` of the supervisor, with which its daemons die; containers go on
    KillNode(Node),
    PowerCut(Node),
    /// SIGSTOP of the manager
    PauseManager(Node),
    /// SIGSTOP of the supervisor and its daemons
    PauseNode(Node),
    /// Two nodes do not hear each other; the third hears both
    Cut(Node, Node),
    /// The second does not hear the first
    CutOneWay(Node, Node),
    /// A node and the other two do not hear each other
    Isolate(Node),
    /// The other two do not hear it
    Mute(Node),
    /// It does not hear the other two
    Deafen(Node),
}

use Fault::{
    Cut, CutOneWay, Deafen, Isolate, KillDaemon, KillManagers, KillNode, Mute, PauseManager, PauseNode, PowerCut,
};

impl Fault {
    fn draw(dice: &mut Dice) -> Self {
        let a = *dice.pick(&NODES);
        let others: Vec<Node> = others(a).collect();
        let b = *dice.pick(&others);
        match dice.between(0, 15) {
            0..=3 => KillDaemon(a, "manager"),
            4 => KillManagers,
            5 => KillDaemon(a, if dice.one_in(2) { "worker" } else { "netd" }),
            6 | 7 => KillNode(a),
            8 | 9 => PowerCut(a),
            10 => PauseManager(a),
            11 => PauseNode(a),
            12 => Cut(a, b),
            13 => CutOneWay(a, b),
            14 => Isolate(a),
            _ if dice.one_in(2) => Mute(a),
            _ => Deafen(a),
        }
    }

    /// Pairs of hosts of which the second does not hear the first.
    fn silenced(self) -> Vec<(Node, Node)> {
        let towards = |node| others(node).map(move |other| (other, node));
        let from = |node| others(node).map(move |other| (node, other));
        match self {
            Cut(a, b) => vec![(a, b), (b, a)],
            CutOneWay(a, b) => vec![(a, b)],
            Isolate(node) => from(node).chain(towards(node)).collect(),
            Mute(node) => from(node).collect(),
            Deafen(node) => towards(node).collect(),
            KillDaemon(..) | KillManagers | KillNode(_) | PowerCut(_) | PauseManager(_) | PauseNode(_) => Vec::new(),
        }
    }

    /// Nodes between which packets are lost while it lasts; empty: none are.
    pub(crate) fn without_network(self) -> Vec<Node> {
        match self {
            Cut(a, b) | CutOneWay(a, b) => vec![a, b],
            PowerCut(node) | Isolate(node) | Mute(node) | Deafen(node) => vec![node],
            KillDaemon(..) | KillManagers | KillNode(_) | PauseManager(_) | PauseNode(_) => Vec::new(),
        }
    }

    /// Whether the cluster may take a node for dead, and run its tasks elsewhere.
    pub(crate) fn may_move_tasks(self) -> bool {
        match self {
            KillNode(_) | PowerCut(_) | PauseNode(_) | Isolate(_) | Mute(_) | Deafen(_) => true,
            KillDaemon(..) | KillManagers | PauseManager(_) | Cut(..) | CutOneWay(..) => false,
        }
    }

    /// The supervisor undoes it.
    fn is_over_at_once(self) -> bool {
        matches!(self, KillDaemon(..) | KillManagers)
    }

    fn begin(self, lab: &Lab) {
        let run = |verb: &str, args: &[&str]| lab.command(verb, args);
        // Whatever is dead or off already is as wanted.
        match self {
            KillDaemon(node, daemon) => drop(run("kill", &[node, daemon])),
            KillManagers => NODES.iter().for_each(|node| drop(run("kill", &[node, "manager"]))),
            KillNode(node) => drop(run("kill", &[node, "node"])),
            PowerCut(node) => drop(run("kill", &[node, "all"]).ok()),
            PauseManager(node) => drop(run("pause", &[node, "manager"])),
            PauseNode(node) => drop(run("pause", &[node, "all"])),
            Cut(..) | CutOneWay(..) | Isolate(_) | Mute(_) | Deafen(_) => {
                for (from, to) in self.silenced() {
                    let _ = run("partition", &["--one-way", from, to]).ok();
                }
            }
        }
    }

    fn end(self, lab: &Lab, still_there: &[Self]) {
        match self {
            KillDaemon(..) | KillManagers => {}
            KillNode(node) | PowerCut(node) => {
                let _ = lab.command("start", &[node]).result();
            }
            PauseManager(node) | PauseNode(node) => drop(lab.command("resume", &[node]).ok()),
            Cut(..) | CutOneWay(..) | Isolate(_) | Mute(_) | Deafen(_) => {
                let _ = lab.command("heal", &[] as &[&str]).ok();
                still_there.iter().filter(|other| !other.silenced().is_empty()).for_each(|other| other.begin(lab));
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KillDaemon(node, daemon) => write!(f, "kill -9 {daemon} of {node}"),
            KillManagers => write!(f, "kill -9 all managers"),
            KillNode(node) => write!(f, "kill -9 supervisor of {node}"),
            PowerCut(node) => write!(f, "power cut of {node}"),
            PauseManager(node) => write!(f, "pause manager of {node}"),
            PauseNode(node) => write!(f, "pause daemons of {node}"),
            Cut(a, b) => write!(f, "cut {a}-{b}"),
            CutOneWay(a, b) => write!(f, "cut {a}->{b}"),
            Isolate(node) => write!(f, "isolate {node}"),
            Mute(node) => write!(f, "mute {node}"),
            Deafen(node) => write!(f, "deafen {node}"),
        }
    }
}

/// A fault that begins and ends within a round; milliseconds from the round's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) fault: Fault,
    pub(crate) begin_ms: u64,
    pub(crate) end_ms: u64,
}

/// What happens between two moments at which everything is well.
#[derive(Debug, Clone)]
pub(crate) struct Round(pub(crate) Vec<Planned>);

impl Round {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let count = if dice.one_in(4) { 2 } else { 1 };
        let planned = (0..count).map(|_| {
            let fault = Fault::draw(dice);
            let begin_ms = dice.between(0, 600);
            // Long enough to be noticed, by elections, failure detection and clients, only now and then.
            let lasts_ms = if dice.one_in(10) { dice.between(6_000, 9_000) } else { dice.between(100, 2_500) };
            let lasts_ms = if fault.is_over_at_once() { 0 } else { lasts_ms };
            Planned { fault, begin_ms, end_ms: begin_ms + lasts_ms }
        });
        Self(planned.collect())
    }

    pub(crate) fn may_move_tasks(&self) -> bool {
        self.0.len() > 1 || self.0.iter().any(|planned| planned.fault.may_move_tasks())
    }

    /// Does it all, telling `on` of each beginning and end.
    pub(crate) fn play(&self, lab: &Lab, mut on: impl FnMut(Fault, Edge)) {
        let mut edges: Vec<(u64, Edge, Fault)> = Vec::new();
        for planned in &self.0 {
            edges.push((planned.begin_ms, Edge::Begin, planned.fault));
            edges.push((planned.end_ms, Edge::End, planned.fault));
        }
        edges.sort_by_key(|(at_ms, ..)| *at_ms);
        let start = std::time::Instant::now();
        let mut active: Vec<Fault> = Vec::new();
        for (at_ms, edge, fault) in edges {
            std::thread::sleep(Duration::from_millis(at_ms).saturating_sub(start.elapsed()));
            match edge {
                Edge::Begin => {
                    on(fault, Edge::Begin);
                    active.push(fault);
                    fault.begin(lab);
                    on(fault, Edge::There);
                }
                Edge::End => {
                    on(fault, Edge::Ending);
                    active.retain(|other| *other != fault);
                    fault.end(lab, &active);
                    on(fault, Edge::End);
                }
                Edge::There | Edge::Ending => {}
            }
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, planned) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{} from {} to {} ms", planned.fault, planned.begin_ms, planned.end_ms)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Right before; on a busy machine the command itself takes seconds.
    Begin,
    There,
    Ending,
    /// All is back.
    End,
}

pub(crate) fn others(node: Node) -> impl Iterator<Item = Node> {
    NODES.into_iter().filter(move |other| *other != node)
}
