//! Ports that are taken, addresses that nobody reaches, managers that are gone, and power cuts again and again.

use std::{collections::BTreeSet, process::Child};

use orch_tests::{Lab, RESTART_LIMIT, eventually, within};

/// A program on n3 that takes a port until it is dropped.
struct Squatter(Child);

impl Squatter {
    fn on_n3(lab: &Lab, port: &str) -> Self {
        let child = lab.spawn("n3", &["python3", "-m", "http.server", port]);
        eventually("the port is taken", || lab.get("n3", &format!("http://127.0.0.1:{port}/")));
        Self(child)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node_names(lab: &Lab, from: &str) -> Vec<String> {
    let names = lab.orch_on(from, &["node", "ls", "--format", "{{.Hostname}}"]).ok();
    names.lines().map(str::to_owned).collect()
}

fn token(lab: &Lab, role: &str) -> String {
    lab.orch(&["join-token", "-q", role]).ok().trim().to_owned()
}

#[test]
fn a_node_that_cannot_take_part_says_why_and_leaves_no_trace() {
    let lab = Lab::up("obstacles", 3, 1);
    let manager = format!("{}:2377", lab.address("n1"));
    let _ = lab.orch_on("n3", &["leave"]).ok();
    let mounts = lab.exec("n3", &["cat", "/proc/mounts"]).ok();
    assert!(!mounts.contains("/var/lib/orch/") && !mounts.contains("/run/orch/"), "left mounted: {mounts}");
    let old = lab.orch(&["node", "ls", "-q", "--filter", "name=n3"]).ok();
    let _ = lab.orch(&["node", "rm", old.trim()]).ok();
    let join = |token: &str| lab.orch_on("n3", &["join", "--token", token, &manager]);

    let elsewhere = lab.orch_on("n3", &["init", "--advertise-addr", "203.0.113.7"]).refused();
    assert!(elsewhere.contains("203.0.113.7:2377") && elsewhere.contains("--advertise-addr"), "{elsewhere}");
    {
        let _squatter = Squatter::on_n3(&lab, "2377");
        for said in [lab.orch_on("n3", &["init"]).refused(), join(&token(&lab, "manager")).refused()] {
            assert!(said.contains("port 2377 is taken"), "{said}");
        }
        assert_eq!(node_names(&lab, "n1"), ["n1", "n2"], "a node that did not join is in the list");
        // A worker does not need the port.
        let _ = join(&token(&lab, "worker")).ok();
        let _ = lab.orch_on("n3", &["leave"]).ok();
        let id = lab.orch(&["node", "ls", "-q", "--filter", "name=n3"]).ok();
        let _ = lab.orch(&["node", "rm", id.trim()]).ok();
    }
    {
        let _squatter = Squatter::on_n3(&lab, "7946");
        for said in [lab.orch_on("n3", &["init"]).refused(), join(&token(&lab, "worker")).refused()] {
            assert!(said.contains("port 7946 is taken"), "{said}");
        }
    }
    assert_eq!(node_names(&lab, "n1"), ["n1", "n2"]);
    let info = lab.orch_on("n3", &["info"]).ok();
    assert!(info.contains("Cluster: inactive") && !info.contains("NodeID"), "{info}");

    let other = lab.orch_on("n3", &["init", "--advertise-addr", "eth0", "--listen-addr", "eth0:2400"]).ok();
    assert!(other.contains(&format!("{}:2400", lab.address("n3"))), "{other}");
    let _ = lab.orch_on("n3", &["leave", "--force"]).ok();
    let _ = join(&token(&lab, "manager")).ok();
    assert_eq!(node_names(&lab, "n3"), ["n1", "n2", "n3"]);
}

#[test]
fn every_manager_gives_a_line_to_paste_that_works_also_without_the_first() {
    let lab = Lab::up("paste", 4, 3);
    let _ = lab.orch_on("n4", &["leave"]).ok();
    let _ = lab.command("kill", &["n1", "all"]).ok();
    let text = eventually("a manager answers without the first one", || {
        lab.orch_on("n2", &["join-token", "manager"]).result()
    });
    let line = text.lines().map(str::trim).find(|line| line.starts_with("orch join")).expect("a line to paste");
    assert!(line.ends_with(&format!("{}:2377", lab.address("n2"))), "{line}");
    let said = lab.exec("n4", &["sh", "-c", line]).ok();
    assert!(said.contains("joined a cluster as a manager"), "{said}");
    let _ = lab.orch_on("n4", &["network", "create", "-d", "overlay", "written"]).ok();
}

#[test]
fn power_cuts_again_and_again_change_nothing() {
    let lab = Lab::up("cuts", 3, 1);
    let changes = &["CMD [\"sh\", \"-c\", \"mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w\"]"];
    lab.import("box", "busybox", changes);
    let _ = lab.orch(&["service", "create", "-d", "--name", "web", "--replicas", "3", "-p", "8000:80", "box"]).ok();
    lab.wait_replicas("web", "3/3");
    let facts = || -> Result<Vec<String>, String> {
        Ok(vec![
            lab.orch(&["node", "ls", "--format", "{{.ID}} {{.Hostname}}"]).result()?,
            lab.orch(&["service", "inspect", "web", "--format", "{{.ID}} {{.Version.Index}} {{json .Endpoint}}"])
                .result()?,
            lab.orch(&["join-token", "-q", "worker"]).result()?,
            lab.orch(&["join-token", "-q", "manager"]).result()?,
        ])
    };
    let before = facts().expect("facts before");
    let url = format!("http://{}:8000/", lab.address("n2"));
    for cut in 1..=3 {
        let _ = lab.command("kill", &["n1", "all"]).ok();
        let _ = lab.command("start", &["n1"]).ok();
        let asked = within(RESTART_LIMIT, "the list and the requests agree on three replicas", || {
            let replicas = lab.orch(&["service", "ls", "--format", "{{.Replicas}}"]).result()?;
            let answers: BTreeSet<String> = lab.answers("client", &url, 9, |body| body.trim().to_owned())?;
            let seen = format!("{}; {answers:?}", replicas.trim());
            if replicas.trim() == "3/3" && answers.len() == 3 { Ok(seen) } else { Err(seen) }
        });
        assert_eq!(facts().expect("facts after"), before, "after cut {cut}: {asked}");
    }
}
