//! Changes of managers, step by step: wanted roles against raft's membership.

use std::fmt::Write;

use orch_manager_core::{
    control::{self, ControlError},
    roles::{Seat, Seats, Standing, Step, next_step, only_manager, standing},
};
use orch_model::{
    Duration,
    node::{ManagerStatus, NodeRole},
};

use crate::sim::{Sim, check, node_id};

/// A cluster, and a raft that does what the steps say. Raft numbers are node numbers.
struct Managers {
    sim: Sim,
    seats: Seats,
}

impl Managers {
    /// The first `voters` of `nodes` nodes are managers; node 1 leads.
    fn new(nodes: u8, voters: u8) -> Self {
        let mut managers = Self { sim: Sim::new(nodes), seats: Seats { leader: 1, all: Vec::new() } };
        for number in 1..=voters {
            managers.sim.edit_node(number, |n| (n.spec.role, n.role) = (NodeRole::Manager, NodeRole::Manager));
            managers.join(number);
        }
        managers
    }

    /// What the node does once it has a manager's certificate.
    fn join(&mut self, number: u8) {
        let raft_id = u64::from(number);
        self.sim.edit_node(number, |n| n.manager = Some(ManagerStatus { raft_id, addr: format!("n{number}:2377") }));
        let node = node_id(number).to_string();
        self.seats.all.push(Seat { raft_id, node, is_voter: true, is_reachable: true });
    }

    fn reachable(&mut self, number: u8, is_reachable: bool) {
        let seat = self.seats.all.iter_mut().find(|s| s.raft_id == u64::from(number)).expect("a seat of the test");
        seat.is_reachable = is_reachable;
    }

    fn want(&mut self, number: u8, role: NodeRole) -> Result<(), ControlError> {
        let node = self.sim.state.node(&node_id(number)).expect("a node of the test").clone();
        let mut spec = node.spec.clone();
        spec.role = role;
        control::update_node(&self.sim.state, self.sim.now, &node.id, node.meta.version, spec, &self.seats)?;
        self.sim.edit_node(number, |n| n.spec.role = role);
        Ok(())
    }

    fn demote(&mut self, number: u8) -> String {
        self.want(number, NodeRole::Worker).err().map(|e| e.text).unwrap_or_default()
    }

    /// Carries out one step; says which.
    fn step(&mut self) -> Option<String> {
        let step = next_step(&self.sim.state, &self.seats)?;
        let name = |sim: &Sim, id| sim.state.node(id).map(|n| n.description.hostname.clone()).unwrap_or_default();
        Some(match step {
            Step::Grant(id) => {
                let host = name(&self.sim, &id);
                self.edit(&host, |n| n.role = NodeRole::Manager);
                format!("grant {host}")
            }
            Step::Revoke(id) => {
                let host = name(&self.sim, &id);
                assert!(self.seats.all.iter().all(|s| s.node != id.as_str()), "{host} still votes");
                self.edit(&host, |n| (n.role, n.manager) = (NodeRole::Worker, None));
                format!("revoke {host}")
            }
            Step::HandOver { heir } => {
                self.seats.leader = heir;
                format!("hand over to {heir}")
            }
            Step::Remove { raft_id } => {
                assert_ne!(raft_id, self.seats.leader, "the leader removes itself");
                self.seats.all.retain(|s| s.raft_id != raft_id);
                self.check_quorum();
                format!("remove {raft_id}")
            }
        })
    }

    fn edit(&mut self, host: &str, edit: impl FnOnce(&mut orch_model::node::Node)) {
        let number = host.trim_start_matches('n').parse().expect("hosts are n1, n2, …");
        self.sim.edit_node(number, edit);
    }

    #[track_caller]
    fn check_quorum(&self) {
        let voters = self.seats.all.iter().filter(|s| s.is_voter);
        let reachable = voters.clone().filter(|s| s.is_reachable).count();
        assert!(reachable > voters.count() / 2, "no quorum: {:?}", self.seats);
    }

    /// Everything that follows, in order.
    fn run(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..20 {
            match self.step() {
                Some(step) => writeln!(text, "{step}").expect("text"),
                None => return text,
            }
        }
        panic!("it does not end:\n{text}");
    }
}

#[test]
fn a_promoted_node_gets_the_role_first_and_joins_by_itself() {
    let mut managers = Managers::new(3, 1);
    managers.want(2, NodeRole::Manager).expect("accepted");
    check(&managers.run(), "grant n2");
    managers.join(2);
    check(&managers.run(), "");
}

#[test]
fn a_demoted_manager_leaves_raft_before_it_loses_the_role() {
    let mut managers = Managers::new(3, 3);
    assert_eq!(managers.demote(3), "");
    check(&managers.run(), "remove 3\nrevoke n3");
}

#[test]
fn the_leader_hands_over_before_it_goes() {
    let mut managers = Managers::new(3, 3);
    assert_eq!(managers.demote(1), "");
    check(&managers.run(), "hand over to 2\nremove 1\nrevoke n1");
}

#[test]
fn leadership_goes_to_a_manager_that_stays_and_answers() {
    let mut managers = Managers::new(5, 5);
    managers.reachable(3, false);
    assert_eq!(managers.demote(1), "");
    assert_eq!(managers.demote(2), "");
    check(&managers.run(), "remove 2\nhand over to 4\nremove 1\nrevoke n1\nrevoke n2");
}

#[test]
fn every_step_may_be_the_last_of_a_leader() {
    // Whoever takes over after any number of steps ends up at the same.
    for interrupted in 0..4 {
        let mut managers = Managers::new(3, 3);
        assert_eq!(managers.demote(1), "");
        assert_eq!(managers.demote(3), "");
        for _ in 0..interrupted {
            managers.step();
        }
        if managers.seats.leader == 1 && managers.seats.all.len() > 1 {
            managers.seats.leader = 2;
        }
        managers.run();
        assert_eq!(managers.seats.all.iter().map(|s| s.raft_id).collect::<Vec<_>>(), [2], "after {interrupted} steps");
        let roles: Vec<_> = managers.sim.state.nodes().map(|n| n.role).collect();
        assert_eq!(roles, [NodeRole::Worker, NodeRole::Manager, NodeRole::Worker]);
    }
}

#[test]
fn a_manager_that_is_down_can_be_demoted_and_one_that_is_needed_cannot() {
    let mut managers = Managers::new(3, 3);
    managers.reachable(3, false);
    assert_eq!(
        managers.demote(2),
        "can't remove member from the raft: this would result in a loss of quorum: without n2, 2 of the 3 managers remain, 2 of them are needed for a quorum, and 1 is \
         reachable now: the cluster could not change anything any more. Start n3 first, or demote what is lost"
    );
    assert_eq!(managers.demote(3), "");
    // Now it would be possible: what is to go does not count.
    assert_eq!(managers.demote(2), "");
    check(&managers.run(), "remove 3\nremove 2\nrevoke n2\nrevoke n3");
    assert!(managers.demote(1).starts_with("attempting to demote the last manager of the cluster"));
}

#[test]
fn a_promoted_node_that_has_not_joined_does_not_replace_the_last_manager() {
    let mut managers = Managers::new(2, 1);
    managers.want(2, NodeRole::Manager).expect("accepted");
    managers.run();
    assert!(managers.demote(1).starts_with("attempting to demote the last manager of the cluster"));
    assert_eq!(managers.demote(2), "", "it never voted");
    check(&managers.run(), "revoke n2");
}

#[test]
fn a_step_that_would_cost_the_quorum_waits() {
    let mut managers = Managers::new(3, 3);
    assert_eq!(managers.demote(2), "");
    managers.reachable(3, false);
    check(&managers.run(), "");
    managers.reachable(3, true);
    check(&managers.run(), "remove 2\nrevoke n2");
}

#[test]
fn after_the_loss_of_the_others_one_manager_remains() {
    let mut managers = Managers::new(4, 3);
    assert_eq!(managers.demote(2), "", "even one that was about to go");
    let seat = ManagerStatus { raft_id: 2, addr: "n2:9".into() };
    let changes = only_manager(&managers.sim.state, &node_id(2), &seat);
    managers.sim.commit_changes(changes);
    managers.seats.all.retain(|s| s.raft_id == 2);
    managers.seats.leader = 2;
    check(&managers.run(), "");
    let shown: Vec<_> = managers.sim.state.nodes().map(|n| (n.spec.role, n.role, n.manager.clone())).collect();
    let worker = (NodeRole::Worker, NodeRole::Worker, None);
    let manager = (NodeRole::Manager, NodeRole::Manager, Some(seat.clone()));
    assert_eq!(shown, [worker.clone(), manager, worker.clone(), worker]);
    assert_eq!(only_manager(&managers.sim.state, &node_id(2), &seat), []);
}

#[test]
fn members_without_a_node_or_a_role_are_taken_out() {
    // A manager left, or was added while it was demoted, and the leader died before it finished.
    let mut managers = Managers::new(3, 3);
    managers.sim.edit_node(3, |n| {
        (n.spec.role, n.role, n.manager) = (NodeRole::Worker, NodeRole::Worker, None);
    });
    managers.seats.all.push(Seat { raft_id: 9, node: "gone".into(), is_voter: false, is_reachable: false });
    check(&managers.run(), "remove 9\nremove 3");
}

#[test]
fn certificates_of_those_who_are_no_longer_what_they_say_are_refused() {
    let mut sim = Sim::new(3);
    sim.edit_node(2, |n| (n.spec.role, n.role) = (NodeRole::Manager, NodeRole::Manager));
    let issued_at = sim.now;
    let asked = |sim: &Sim, number, role, issued_at| standing(&sim.state, &node_id(number), role, issued_at);
    sim.now = sim.now + Duration::from_secs(10);
    sim.edit_node(2, |n| n.spec.role = NodeRole::Worker);
    assert_eq!(asked(&sim, 2, NodeRole::Manager, issued_at), Standing::Good, "it has not left raft yet");
    sim.edit_node(2, |n| n.role = NodeRole::Worker);
    assert_eq!(asked(&sim, 2, NodeRole::Manager, issued_at), Standing::Demoted);
    assert_eq!(asked(&sim, 2, NodeRole::Worker, issued_at), Standing::Good);
    assert_eq!(asked(&sim, 9, NodeRole::Worker, issued_at), Standing::Removed);
    // A promotion that this manager has yet to hear of.
    assert_eq!(asked(&sim, 3, NodeRole::Manager, sim.now + Duration::from_secs(5)), Standing::Good);
    assert_eq!(asked(&sim, 9, NodeRole::Worker, sim.now + Duration::from_secs(5)), Standing::Good);
    // A manager that has just joined knows nothing at all.
    let nothing = orch_manager_core::State::empty();
    assert_eq!(standing(&nothing, &node_id(2), NodeRole::Manager, issued_at), Standing::Good);
}
