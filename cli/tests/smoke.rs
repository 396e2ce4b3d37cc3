//! The program as a user without a cluster meets it: help, refusals, exit codes. Needs neither root nor daemons.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    process::{Command, Output},
};

/// Runs `orch` with every folder inside an empty one, so that no daemon of this machine is found.
fn orch(arguments: &[&str]) -> Output {
    orch_in(tempfile::tempdir().unwrap().path(), arguments).output().unwrap()
}

fn orch_in(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
    command.args(arguments);
    within(dir, command)
}

/// As somebody for whom the modes of files hold, also when root runs the tests.
fn orch_of_nobody_special(dir: &Path, arguments: &[&str]) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return orch_in(dir, arguments);
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_orch")]).args(arguments);
    within(dir, command)
}

fn within(dir: &Path, mut command: Command) -> Command {
    for (variable, folder) in [("ORCH_ROOT_DIR", "root"), ("ORCH_RUN_DIR", "run"), ("ORCH_ETC_DIR", "etc")] {
        command.env(variable, dir.join(folder));
    }
    command
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
    for flag in ["-v", "-V", "--version"] {
        assert!(orch(&[flag]).stdout.starts_with(b"orch "), "{flag}");
    }
    for daemon in ["netd", "shim"] {
        assert!(!help.contains(daemon), "{daemon}: {help}");
    }
    for command in [["service", "create"], ["stack", "deploy"], ["swarm", "init"], ["node", "ls"]] {
        assert!(orch(&[command[0], command[1], "--help"]).status.success(), "{command:?}");
    }
}

/// What bash would offer after these words.
fn offered(words: &[&str]) -> String {
    let script = format!(
        "source <({orch} completion bash) && COMP_WORDS=({words}) COMP_CWORD={last} && _orch orch {current:?} {before:?}; \
         echo \"${{COMPREPLY[*]}}\"",
        orch = env!("CARGO_BIN_EXE_orch"),
        words = words.iter().map(|word| format!("{word:?} ")).collect::<String>(),
        last = words.len() - 1,
        current = words[words.len() - 1],
        before = words[words.len() - 2],
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_shell_completes_commands_and_flags() {
    for (words, wanted) in [
        (&["orch", "serv"][..], "service\n"),
        (&["orch", "service", "sc"], "scale\n"),
        (&["orch", "stack", "deploy", "--pru"], "--prune\n"),
        (&["orch", "node", "update", "--availability", ""], "active pause drain\n"),
        (&["orch", "netd"], "\n"),
    ] {
        assert_eq!(offered(words), wanted, "{words:?}");
    }
    for shell in ["fish", "zsh"] {
        assert!(String::from_utf8(orch(&["completion", shell]).stdout).unwrap().contains("orch"), "{shell}");
    }
    refused(&["completion", "csh"], &["csh", "bash"]);
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

/// Whoever is told that the node is in no cluster makes another one, or gives up a good one.
#[test]
fn a_node_whose_orch_is_stopped_or_out_of_reach_is_not_called_free() {
    let asked =
        [&["ps"][..], &["service", "ls"], &["run", "busybox"], &["leave"], &["info"], &["node", "reset-manager"]];
    let stopped = tempfile::tempdir().unwrap();
    fs::create_dir_all(stopped.path().join("root/node")).unwrap();
    fs::write(stopped.path().join("root/node/state.json"), "{}").unwrap();
    let closed = tempfile::tempdir().unwrap();
    fs::create_dir(closed.path().join("run")).unwrap();
    let mut listeners = Vec::new();
    for name in ["node", "manager", "worker"] {
        let socket = closed.path().join("run").join(name).with_extension("sock");
        listeners.push(UnixListener::bind(&socket).unwrap());
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let denied = [&["unlock"][..], &["init"], &["join", "--token", "x", "192.0.2.1"]];
    let stopped_says =
        asked.iter().map(|words| (&stopped, *words, "orch does not run on this node, which is part of a cluster"));
    let closed_says = asked.iter().chain(&denied).map(|words| (&closed, *words, "permission denied on "));
    for (dir, words, sentence) in stopped_says.chain(closed_says) {
        let output = orch_of_nobody_special(dir.path(), words).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(sentence), "{words:?}: {error}");
        assert!(!error.contains("orch init"), "{words:?}: {error}");
    }
}

#[test]
fn a_full_disk_behind_the_output_is_an_error_and_no_panic() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = orch_in(dir.path(), &["version"]).stdout(full).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error, "cannot write to standard output: No space left on device (os error 28)\n");
    // As from cron, with both in one file.
    let both = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = orch_in(dir.path(), &["version"]).stdout(both.try_clone().unwrap()).stderr(both).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
