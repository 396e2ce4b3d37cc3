//! Rotations of the root: whom they wait for, and what ends them.

use std::sync::Arc;

use orch_manager_core::{
    State,
    control::{NewRoot, finish_rotation, rotate_root},
    rotation::{Progress, Step, next_step, progress},
};
use orch_model::{
    Object,
    change::{Change, Transaction},
    cluster::{JoinTokens, MIN_CERT_EXPIRY, RootCa, RootRotation},
    node::{NodeCertificates, NodeState},
};

use crate::sim::Sim;

fn root(name: &str) -> RootCa {
    RootCa { cert_pem: name.into(), key_pem: format!("{name} key") }
}

fn to(name: &str) -> NewRoot {
    NewRoot::Another(RootRotation {
        target: root(name),
        digest: name.into(),
        cross_signed_pem: format!("{name} crossed"),
    })
}

fn tokens(name: &str) -> JoinTokens {
    JoinTokens { worker: format!("w {name}"), manager: format!("m {name}") }
}

fn apply(state: &mut State, changes: Vec<Change>) {
    let transaction = Transaction { at: state.last_stamp(), changes };
    state.apply(state.last_index() + 1, &transaction).expect("it fits");
}

fn rotate(state: &mut State, new: NewRoot) {
    let made_for = state.cluster().expect("a cluster").root_ca.clone();
    let proposal = rotate_root(state, state.last_stamp(), &made_for, new, None, MIN_CERT_EXPIRY).expect("it may");
    apply(state, proposal.transaction.changes);
}

/// Node `number` reports certificates of `issuer`, and that it trusts these roots.
fn report(state: &mut State, number: usize, issuer: &str, trusted: &[&str]) {
    let mut node = (**state.nodes().nth(number).expect("a node")).clone();
    let trusted = trusted.iter().map(|root| (*root).to_owned()).collect();
    node.certificates = Some(NodeCertificates { issuer: issuer.into(), trusted, expires_at: state.last_stamp() });
    apply(state, vec![Change::Update(Object::Node(Arc::new(node)))]);
}

fn finish(state: &mut State, target: &str) {
    let proposal = finish_rotation(state, state.last_stamp(), target, tokens(target)).expect("it may");
    apply(state, proposal.transaction.changes);
}

#[test]
fn a_rotation_ends_when_every_node_uses_the_new_root() {
    let mut state = Sim::new(3).state.clone();
    let names: Vec<String> = state.nodes().map(|node| node.description.hostname.clone()).collect();
    assert_eq!(next_step(&state), None, "none is under way");
    for node in 0..3 {
        report(&mut state, node, "cert", &["cert"]);
    }
    rotate(&mut state, to("R2"));
    assert_eq!(next_step(&state), None);
    report(&mut state, 0, "R2", &["cert", "R2"]);
    report(&mut state, 1, "R2", &["cert", "R2"]);
    let expected = Progress { nodes: 3, rotated_certificates: 2, rotated_roots: 0, awaited: vec![names[2].clone()] };
    assert_eq!((next_step(&state), progress(&state, "R2")), (None, expected));
    // Certificates of the new root, and it does not trust it: it would refuse the others.
    report(&mut state, 2, "R2", &["cert"]);
    assert_eq!(next_step(&state), None);
    report(&mut state, 2, "R2", &["cert", "R2"]);
    assert_eq!(next_step(&state), Some(Step::Finish));
    finish(&mut state, "R2");
    let cluster = state.cluster().expect("a cluster");
    assert_eq!((&cluster.root_ca, &cluster.join_tokens), (&root("R2"), &tokens("R2")));
    assert_eq!((cluster.root_rotation.is_none(), cluster.root_rotations, next_step(&state)), (true, 1, None));
    report(&mut state, 1, "R2", &["R2"]);
    assert_eq!(progress(&state, "R2").rotated_roots, 1);
}

#[test]
fn a_second_rotation_takes_the_place_of_the_first() {
    let mut state = Sim::new(2).state.clone();
    rotate(&mut state, to("R2"));
    for node in 0..2 {
        report(&mut state, node, "R2", &["cert", "R2"]);
    }
    rotate(&mut state, to("R3"));
    assert_eq!(next_step(&state), None, "the first one's certificates do not count");
    // A leader that was about to finish the first one comes too late.
    finish(&mut state, "R2");
    assert_eq!(state.cluster().expect("a cluster").root_ca.cert_pem, "cert");
    for node in 0..2 {
        report(&mut state, node, "R3", &["cert", "R3"]);
    }
    assert_eq!(next_step(&state), Some(Step::Finish));
    // Certified by a root that has gone meanwhile.
    let late = state.cluster().expect("a cluster").root_ca.clone();
    finish(&mut state, "R3");
    let refused =
        rotate_root(&state, state.last_stamp(), &late, to("R4"), None, MIN_CERT_EXPIRY).expect_err("too late");
    assert!(refused.to_string().contains("try again"), "{refused}");
    // Back to what is there: nothing to finish.
    rotate(&mut state, to("R4"));
    rotate(&mut state, NewRoot::Present);
    assert!(state.cluster().expect("a cluster").root_rotation.is_none());
}

#[test]
fn a_node_that_is_down_is_waited_for_until_it_is_removed() {
    let mut state = Sim::new(3).state.clone();
    rotate(&mut state, to("R2"));
    for node in 0..2 {
        report(&mut state, node, "R2", &["cert", "R2"]);
    }
    let mut down = (**state.nodes().nth(2).expect("a node")).clone();
    down.status.state = NodeState::Down;
    apply(&mut state, vec![Change::Update(Object::Node(Arc::new(down)))]);
    let node = state.nodes().nth(2).expect("a node").clone();
    assert_eq!(progress(&state, "R2").awaited, [format!("{} (down)", node.description.hostname)]);
    assert_eq!(next_step(&state), None);
    let gone = orch_manager_core::control::remove_node(&state, state.last_stamp(), &node.id, false).expect("it may go");
    apply(&mut state, gone.transaction.changes);
    assert_eq!(next_step(&state), Some(Step::Finish));
}
