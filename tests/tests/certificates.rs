//! Certificates that expire and are renewed, and the rotation of the root that signs them.
//!
//! Nothing here fakes a clock: the labs let certificates live for seconds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use orch_tests::{Lab, RESTART_LIMIT, eventually, within};

/// Lets certificates be as short-lived as a test can wait for.
const SHORT_LIVES: (&str, &str) = ("ORCH_LAB_MIN_CERT_EXPIRY_SECONDS", "5");
const LIFE: Duration = Duration::from_secs(8);

fn status(lab: &Lab) -> Vec<String> {
    let format = "{{.Hostname}} {{.Status}} {{.ManagerStatus}} {{.TLSStatus}}";
    lab.orch(&["node", "ls", "--format", format]).stdout.lines().map(|line| line.trim().to_owned()).collect()
}

/// The tasks of a service with the state they are in; those that ended as well.
fn tasks(lab: &Lab, service: &str) -> String {
    lab.orch(&["service", "ps", "--no-trunc", "--format", "{{.ID}} {{.DesiredState}}", service]).ok()
}

fn root(lab: &Lab) -> String {
    lab.orch(&["ca"]).ok()
}

fn token(lab: &Lab, role: &str) -> String {
    lab.orch(&["join-token", "-q", role]).ok().trim().to_owned()
}

/// The part of a join token that names the root.
fn digest_of(token: &str) -> &str {
    token.split('-').nth(2).expect("a token has four parts")
}

/// Ends the load also when the test fails: its scope waits for it.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn expires_at(lab: &Lab, node: &str) -> String {
    lab.orch(&["node", "inspect", node, "--format", "{{.Description.TLSInfo.CertExpiresAt}}"]).ok()
}

#[test]
fn the_root_is_rotated_twice_in_a_row_under_load_and_past_the_leaders_death() {
    let lab = Lab::up_with("rotation", 3, 3, &[SHORT_LIVES]);
    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "steady", "--replicas", "3", "busybox", "sleep", "10000"];
    let _ = lab.orch(&create).ok();
    lab.wait_replicas("steady", "3/3");
    let (before, first_root, first_token) = (tasks(&lab, "steady"), root(&lab), token(&lab, "worker"));
    eventually("every node has reported its certificates", || {
        let now = status(&lab);
        if now.iter().all(|node| node.ends_with(" Ready")) { Ok(()) } else { Err(format!("{now:?}")) }
    });

    let (stop, writes, failed) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut complaints = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let number = writes.fetch_add(1, Ordering::Relaxed);
                let name = format!("c{number}");
                let wrote = lab.exec_with_input("n2", &["orch", "config", "create", &name, "-"], name.as_bytes());
                let scale = format!("steady={}", 3 + number % 2);
                for said in [wrote, lab.orch_on("n3", &["service", "scale", "-d", &scale])] {
                    if said.code != 0 {
                        failed.fetch_add(1, Ordering::Relaxed);
                        complaints.push(said.stderr);
                    }
                }
            }
            complaints
        });
        let _stop = StopOnDrop(&stop);
        let _ = lab.orch(&["ca", "--rotate", "--detach"]).ok();
        let said = lab.orch(&["ca", "--rotate"]).ok();
        stop.store(true, Ordering::Relaxed);
        let complaints = load.join().expect("the load");
        assert!(complaints.is_empty(), "{complaints:?}");
        assert!(writes.load(Ordering::Relaxed) > 3, "the load did something");
        assert!(said.starts_with("desired root digest: sha256:"), "{said}");
        assert!(said.contains("rotated TLS certificates:  3/3 nodes"), "{said}");
        assert!(said.contains("rotated CA certificates:   3/3 nodes"), "{said}");
        assert!(said.ends_with(&root(&lab)), "it ends with the new root: {said}");
    });
    let (second_root, second_token) = (root(&lab), token(&lab, "worker"));
    assert_ne!(second_root, first_root);
    assert_ne!(digest_of(&second_token), digest_of(&first_token));
    let info = lab.orch(&["info"]).ok();
    assert!(info.contains("Force Rotate: 2\n") && info.contains("Root Rotation In Progress: false\n"), "{info}");
    let now = tasks(&lab, "steady");
    assert!(before.lines().all(|task| now.contains(task)), "no task was touched: {before}\n{now}");

    // A node with the old token is told so; one with the new token joins.
    let _ = lab.orch_on("n3", &["leave", "--force"]).ok();
    let address = lab.address("n1");
    let refused = lab.orch_on("n3", &["join", "--token", &first_token, &address]).refused();
    assert!(refused.contains("join token does not belong to the cluster"), "{refused}");
    let _ = lab.orch(&["node", "demote", "n3"]);
    let _ = lab.orch_on("n3", &["join", "--token", &second_token, &address]).ok();

    // The rotation waits for the object that n3 left behind, until it is removed. The leader dies meanwhile.
    let _ = lab.orch(&["ca", "--rotate", "-d"]).ok();
    eventually("the rotation waits for nobody else", || {
        let info = lab.orch(&["info"]).result()?;
        if info.contains("Waiting For: n3 (down)\n") { Ok(()) } else { Err(info) }
    });
    let _ = lab.command("kill", &["n1", "manager"]).ok();
    let left = within(RESTART_LIMIT, "a manager answers", || {
        let nodes = lab.orch_on("n2", &["node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}}"]).result()?;
        let down = nodes.lines().find(|line| line.ends_with(" n3 Down")).ok_or(nodes.clone())?;
        Ok(down.split(' ').next().unwrap_or_default().to_owned())
    });
    within(RESTART_LIMIT, "what n3 left behind goes", || lab.orch_on("n2", &["node", "rm", &left]).result());
    within(RESTART_LIMIT, "the next leader finishes the rotation", || {
        let now = lab.orch_on("n2", &["ca"]).result()?;
        if now == second_root { Err("still the old root".to_owned()) } else { Ok(()) }
    });
    eventually("all nodes are there and renewed", || {
        let now = status(&lab);
        let good = now.len() == 3 && now.iter().all(|node| node.contains(" Ready ") && node.ends_with(" Ready"));
        if good { Ok(()) } else { Err(format!("{now:?}")) }
    });

    // An operator's own root.
    let made = "openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out /tmp/own.key && \
                openssl req -x509 -new -key /tmp/own.key -days 3650 -sha256 -subj '/C=DE/O=Example/CN=Our Root' \
                -addext basicConstraints=critical,CA:TRUE -out /tmp/own.crt";
    let _ = lab.exec("n1", &["sh", "-c", made]).ok();
    let _ = lab.orch(&["ca", "--rotate", "-q", "--ca-cert", "/tmp/own.crt", "--ca-key", "/tmp/own.key"]).ok();
    assert_eq!(root(&lab), lab.exec("n1", &["cat", "/tmp/own.crt"]).ok());
    let refused = lab.orch(&["ca", "--rotate", "--ca-cert", "/tmp/own.crt"]).refused();
    assert!(refused.contains("its key is needed as well"), "{refused}");
    let refused = lab.orch(&["ca", "--rotate", "--external-ca", "protocol=cfssl,url=https://x"]).refused();
    assert!(refused.contains("--external-ca is not supported"), "{refused}");
    let refused = lab.orch(&["ca", "--cert-expiry", "2h"]).refused();
    assert!(refused.contains("--rotate"), "{refused}");
    // Joins work with a root whose name says nothing of the cluster.
    let _ = lab.orch_on("n3", &["leave"]).ok();
    let _ = lab.orch_on("n3", &["join", "--token", &token(&lab, "worker"), &address]).ok();
}

#[test]
fn nodes_renew_by_themselves_and_one_that_slept_comes_back_under_its_old_name() {
    let lab = Lab::up_with("sleepers", 4, 3, &[SHORT_LIVES]);
    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "steady", "--mode", "global", "busybox", "sleep", "10000"];
    let _ = lab.orch(&create).ok();
    lab.wait_replicas("steady", "4/4");
    let before = tasks(&lab, "steady");
    let refused = lab.orch(&["update", "--cert-expiry", "4s"]).refused();
    assert!(refused.contains("expected at least"), "{refused}");
    // As long as anybody asks for: certificates end with the root that signed them.
    let refused = lab.orch(&["update", "--cert-expiry", "876001h"]).refused();
    assert!(refused.contains("expected at most 876000h"), "{refused}");
    let _ = lab.orch(&["ca", "--rotate", "-q", "--cert-expiry", "876000h"]).ok();
    // It takes effect with the next certificates, which a rotation brings at once.
    let life = format!("{}s", LIFE.as_secs());
    let _ = lab.orch(&["ca", "--rotate", "-q", "--cert-expiry", &life]).ok();
    let first = expires_at(&lab, "n2");
    within(LIFE * 2, "n2 has renewed its certificates by itself", || {
        let now = expires_at(&lab, "n2");
        if now == first { Err(now) } else { Ok(()) }
    });

    // n3 (a manager) and n4 (a worker) sleep, and the root changes meanwhile.
    for node in ["n3", "n4"] {
        let _ = lab.command("kill", &[node, "node"]).ok();
    }
    let _ = lab.orch(&["update", "--cert-expiry", "1h"]).ok();
    let _ = lab.orch(&["ca", "--rotate", "-d"]).ok();
    let waits = |lab: &Lab| lab.orch(&["info"]).stdout.contains("Waiting For: n3 (down), n4 (down)\n");
    within(LIFE * 3, "the rotation waits for those that sleep", || {
        if waits(&lab) { Ok(()) } else { Err(lab.orch(&["info"]).stdout) }
    });
    for node in ["n3", "n4"] {
        let _ = lab.command("start", &[node]);
        within(LIFE * 2, "its certificates have expired", || {
            let info = lab.orch_on(node, &["info"]).result()?;
            if info.contains("this node's certificate expired") { Ok(()) } else { Err(info) }
        });
    }

    let (worker, manager, address) = (token(&lab, "worker"), token(&lab, "manager"), lab.address("n1"));
    let join = |node: &str, token: &str| lab.orch_on(node, &["join", "--token", token, &address]);
    let refused = join("n3", &worker).refused();
    assert!(refused.contains("node n3 is a manager, and this token is one for a worker"), "{refused}");
    let last = if manager.ends_with('0') { '1' } else { '0' };
    let refused = join("n3", &format!("{}{last}", &manager[..manager.len() - 1])).refused();
    assert!(refused.contains("this join token is not valid"), "{refused}");
    let said = join("n3", &manager).ok();
    assert_eq!(said, "This node came back to its cluster as a manager.\n");
    assert!(join("n3", &manager).refused().contains("already part of a cluster"));

    // Another certificate than its own, then another key than that of the certificate.
    let tls = "/var/lib/orch/worker/tls";
    let keep = format!(
        "cp -r {tls} /var/lib/orch/kept && openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 \
                        -nocrypt -out {tls}/node.key && openssl req -x509 -new -key {tls}/node.key -days 3650 \
                        -not_after 20260101000000Z -subj \"/CN=$1/O=$2/OU=orch-worker\" -out {tls}/node.crt"
    );
    let id = |of: &str| lab.orch_on("n4", &["info", "--format", of]).ok().trim().to_owned();
    let (node, cluster) = (id("{{.Swarm.NodeID}}"), {
        let text = lab.orch(&["info", "--format", "{{.Swarm.Cluster.ID}}"]).ok();
        text.trim().to_owned()
    });
    if lab.exec("n4", &["sh", "-c", &keep, "sh", &node, &cluster]).code == 0 {
        let refused = join("n4", &worker).refused();
        assert!(refused.contains("is not one of this cluster"), "{refused}");
    }
    let _ = lab.exec("n4", &["sh", "-c", &format!("cp /var/lib/orch/kept/* {tls}/")]).ok();
    let said = join("n4", &worker).ok();
    assert_eq!(said, "This node came back to its cluster as a worker.\n");
    eventually("all are there, and the rotation is done", || {
        let now = status(&lab);
        let good = now.len() == 4 && now.iter().all(|node| node.contains(" Ready ") && node.ends_with(" Ready"));
        let is_done = lab.orch(&["info"]).stdout.contains("Root Rotation In Progress: false\n");
        if good && is_done { Ok(()) } else { Err(format!("{now:?}")) }
    });
    lab.wait_replicas("steady", "4/4");
    let now = tasks(&lab, "steady");
    let stayed = before.lines().filter(|task| now.contains(*task)).count();
    assert!(stayed >= 2, "those that did not sleep kept their tasks: {before}\n{now}");
    lab_without_quorum(&lab);
}

/// All managers sleep past their certificates: the quorum cannot come back by itself.
fn lab_without_quorum(lab: &Lab) {
    let life = format!("{}s", LIFE.as_secs());
    let _ = lab.orch(&["ca", "--rotate", "-q", "--cert-expiry", &life]).ok();
    for node in ["n1", "n2", "n3", "n4"] {
        let _ = lab.command("kill", &[node, "node"]).ok();
    }
    // What is asleep does nothing: its time has to pass.
    thread::sleep(LIFE + Duration::from_secs(1));
    let _ = lab.command("start", &["n1"]);
    within(RESTART_LIMIT, "the manager answers that there is no leader", || {
        let said = lab.orch(&["node", "ls"]);
        if said.stderr.contains("no leader") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let _ = lab.orch(&["init", "--force-new-cluster"]).ok();
    within(RESTART_LIMIT, "it has renewed its own certificates", || {
        let info = lab.orch(&["info"]).result()?;
        if info.contains("expired") { Err(info) } else { Ok(()) }
    });
    let _ = lab.orch(&["update", "--cert-expiry", "1h"]).ok();
    let _ = lab.command("start", &["n2"]);
    let address = lab.address("n1");
    within(RESTART_LIMIT, "its manager uses the new ones, and refuses a token of another role", || {
        let said = lab.orch_on("n2", &["join", "--token", &token(lab, "manager"), &address]);
        if said.stderr.contains("node n2 is a worker") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let said = lab.orch_on("n2", &["join", "--token", &token(lab, "worker"), &address]).ok();
    assert_eq!(said, "This node came back to its cluster as a worker.\n");
    // A node that was removed while it slept is nobody any more.
    let _ = lab.orch(&["node", "rm", "--force", "n4"]).ok();
    let _ = lab.command("start", &["n4"]);
    let refused = within(RESTART_LIMIT, "n4 is refused", || {
        let said = lab.orch_on("n4", &["join", "--token", &token(lab, "worker"), &address]);
        if said.stderr.contains("removed") { Ok(said.stderr) } else { Err(format!("{said:?}")) }
    });
    assert!(refused.contains("orch leave --force"), "{refused}");
}
