//! Another kernel, in qemu: Debian's, with nothing but cgroup v2 (in `--full`).

use std::{path::Path, process::Command};

use orch_tests::{image, orch_binary};

/// Runs a script of `tests/qemu` as root in the virtual machine.
fn run(script: &str) {
    run_with(script, "");
}

/// `words` for the kernel besides.
fn run_with(script: &str, words: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu");
    let output = Command::new(folder.join("run"))
        .arg(orch_binary())
        .arg(folder.join(script))
        .arg(image("busybox"))
        .env("ORCH_QEMU_APPEND", words)
        .output()
        .expect("tests/qemu/run starts");
    let (said, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {}\n{said}\n{complaints}", output.status);
}

#[test]
fn limits_are_in_force_on_pure_cgroup_v2() {
    run("one-node.sh");
}

#[test]
fn a_cluster_works_on_another_kernel() {
    run("cluster.sh");
}

#[test]
fn encrypted_networks_cannot_be_read_on_the_wire() {
    run("encrypted.sh");
}

#[test]
fn containers_are_confined_by_apparmor() {
    run("apparmor.sh");
}

#[test]
fn volumes_are_mounted_from_an_nfs_server() {
    run("nfs.sh");
}

#[test]
fn a_node_without_ipv6_works() {
    run_with("no-ipv6.sh", "ipv6.disable=1");
}
