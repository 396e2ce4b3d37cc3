//! The program as a user without a cluster meets it: help, refusals, exit codes. Needs neither root nor daemons.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

/// Runs `orch` with every folder inside an empty one, so that no daemon of this machine is found.
fn orch(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_orch"))
        .args(arguments)
        .env("ORCH_ROOT_DIR", dir.path().join("root"))
        .env("ORCH_RUN_DIR", dir.path().join("run"))
        .env("ORCH_ETC_DIR", dir.path().join("etc"))
        .output()
        .unwrap()
}

fn refused(arguments: &[&str], fragments: &[&str]) {
    refused_with(1, arguments, fragments);
}

fn refused_with(code: i32, arguments: &[&str], fragments: &[&str]) {
    let output = orch(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    for fragment in fragments {
        assert!(error.contains(fragment), "{arguments:?}: {fragment:?} is not in {error}");
    }
}

#[test]
fn help_lists_the_commands_and_hides_the_daemons() {
    let output = orch(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["init", "join", "service", "stack", "node", "network", "image", "exec", "logs", "lab"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {help}");
    }
    for daemon in ["netd", "shim"] {
        assert!(!help.contains(daemon), "{daemon}: {help}");
    }
    for command in [["service", "create"], ["stack", "deploy"], ["swarm", "init"], ["node", "ls"]] {
        assert!(orch(&[command[0], command[1], "--help"]).status.success(), "{command:?}");
    }
}

#[test]
fn without_a_cluster_every_command_says_what_to_do() {
    for arguments in [
        &["service", "ls"][..],
        &["service", "create", "web"],
        &["node", "ls"],
        &["ps"],
        &["images"],
        &["stack", "ls"],
        &["leave"],
        &["join-token", "worker"],
    ] {
        refused(arguments, &["This node is not part of a cluster", "orch init", "orch join"]);
    }
}

#[test]
fn bad_input_is_refused_before_anything_else() {
    refused_with(125, &["service", "create", "--limit-memory", "lots", "web"], &["--limit-memory", "lots", "50M"]);
    refused_with(125, &["service", "ls", "--bogus"], &["--bogus"]);
    refused(&["service", "scale", "web"], &["SERVICE=REPLICAS"]);
    refused(&["service", "ls", "--filter", "colour=red"], &["colour", "name"]);
    refused(&["stack", "deploy", "-c", "/nonexistent.yml", "s"], &["/nonexistent.yml"]);
    refused(&["bogus"], &["bogus"]);
    for command in [&["run"][..], &["container", "run"], &["create"], &["exec"], &["container", "exec"]] {
        refused_with(125, &[command, &["--bogus", "x"]].concat(), &["--bogus"]);
    }
    refused_with(125, &["run", "--memory", "lots", "busybox"], &["--memory", "lots"]);
}

#[test]
fn there_is_nothing_to_unlock_without_a_manager() {
    refused(&["unlock"], &["no manager runs on this node"]);
    refused(&["unlock-key"], &["This node is not part of a cluster"]);
}
