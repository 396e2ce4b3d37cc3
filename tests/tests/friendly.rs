//! The tutorial's five friendly replicas behind one published port, and its stack with a balancer of its own.

use std::{collections::BTreeSet, fs, time::Duration};

use orch_tests::{Lab, Load, eventually, failures, fixture};

const CHANGES: &[&str] = &["CMD [\"python3\", \"/app/app.py\"]", "EXPOSE 80", "ENV NAME=World"];

fn hostname(page: &str) -> String {
    let rest = page.split("<b>Hostname:</b> ").nth(1).unwrap_or_else(|| panic!("no hostname in {page}"));
    rest.split('<').next().unwrap_or_default().to_owned()
}

#[test]
fn five_replicas_answer_on_every_node_and_scaling_down_loses_no_request() {
    let lab = Lab::up("friendly", 3, 1);
    lab.import("friendlyhello", "friendlyhello", CHANGES);
    let file = fixture("friendly.yml");
    let said = lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), "hello"]).ok();
    assert!(said.contains("Creating network hello_front") && said.contains("Creating service hello_web"), "{said}");
    lab.wait_replicas("hello_web", "5/5");

    spread_over_three_nodes(&lab);
    for node in ["n1", "n2", "n3"] {
        let url = format!("http://{}:80/", lab.address(node));
        eventually(&format!("{node} balances over five tasks"), || {
            let names = lab.answers("client", &url, 30, hostname)?;
            if names.len() == 5 { Ok(()) } else { Err(format!("{names:?}")) }
        });
    }
    limits_are_in_the_cgroups(&lab);
    deploying_again_restarts_nothing(&lab);
    scaling_down_loses_no_request(&lab);
    let _ = lab.orch(&["stack", "rm", "hello"]).ok();
    a_balancer_in_a_container_finds_every_task(&lab);
}

fn spread_over_three_nodes(lab: &Lab) {
    let tasks = lab.list(&["service", "ps", "web"]).expect("service ps");
    let nodes: BTreeSet<_> = tasks.iter().map(|t| t["Node"].as_str().expect("node is text").to_owned()).collect();
    assert_eq!(nodes.len(), 3, "{tasks:?}");
}

/// Finds a container of `node` and reads what its cgroup allows, on cgroup v1 or v2.
fn limits_are_in_the_cgroups(lab: &Lab) {
    let container = lab.orch_on("n1", &["ps", "-q", "--no-trunc"]).ok();
    let id = container.lines().next().expect("a container on n1").to_owned();
    let limit = |v1: &str, v2: &str| {
        let script = format!(
            "for d in $(find /sys/fs/cgroup -type d -path '*{id}*'); do for f in {v1} {v2}; do [ -e $d/$f ] && cat $d/$f; done; done; true"
        );
        lab.exec("n1", &["sh", "-c", &script]).ok()
    };
    let memory = limit("memory.limit_in_bytes", "memory.max");
    assert!(memory.lines().any(|line| line == (50 * 1024 * 1024).to_string()), "memory limit: {memory:?}");
    let cpu = limit("cpu.cfs_quota_us", "cpu.max");
    assert!(cpu.lines().any(|line| line == "10000" || line == "10000 100000"), "cpu quota: {cpu:?}");
}

fn deploying_again_restarts_nothing(lab: &Lab) {
    let ids = || lab.orch(&["service", "ps", "-q", "hello_web"]).ok();
    let before = ids();
    let file = fixture("friendly.yml");
    let _ = lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), "hello"]).ok();
    lab.wait_replicas("hello_web", "5/5");
    assert_eq!(ids(), before, "an unchanged stack restarted tasks");
}

fn scaling_down_loses_no_request(lab: &Lab) {
    let url = format!("http://{}:80/", lab.address("n2"));
    // 300 requests: over the scaling and ten seconds more. The tasks have a tenth of a CPU each.
    let load = Load::start(lab, "client", &url, Duration::from_millis(50), Duration::from_secs(60));
    eventually("the load runs", || if load.so_far() > 5 { Ok(()) } else { Err("no answers yet".into()) });
    let _ = lab.orch(&["service", "scale", "web=2"]).ok();
    let at_scale = load.so_far();
    eventually("ten seconds of requests after scaling", || {
        let more = load.so_far() - at_scale;
        if more >= 200 { Ok(()) } else { Err(format!("{more} requests")) }
    });
    let answers = load.stop();
    let failed = failures(&answers);
    assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), answers.len());
    lab.wait_replicas("hello_web", "2/2");
    let names: BTreeSet<_> = (0..20).map(|_| hostname(&lab.get("client", &url).expect("an answer"))).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// What was built in place and linked is taken with warnings; the balancer finds the tasks by `tasks.web`.
fn a_balancer_in_a_container_finds_every_task(lab: &Lab) {
    let redis = "CMD [\"redis-server\", \"--bind\", \"0.0.0.0\", \"--protected-mode\", \"no\", \"--save\", \"\"]";
    lab.import("redis", "redis", &[redis]);
    lab.import("hits", "hits", &["CMD [\"python3\", \"/app/hits.py\"]"]);
    let haproxy = "CMD [\"haproxy\", \"-db\", \"-f\", \"/etc/haproxy/haproxy.cfg\"]";
    lab.import("dockercloud/haproxy", "haproxy", &[haproxy]);
    let file = fixture("balanced.yml");
    let deployed = lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), "balanced"]);
    assert_eq!(deployed.code, 0, "{deployed:?}");
    assert!(deployed.stderr.contains("Ignoring unsupported options: build, links"), "{deployed:?}");
    for service in ["redis", "web", "lb"] {
        lab.wait_replicas(&format!("balanced_{service}"), "1/1");
    }
    let url = format!("http://{}:8088/", lab.address("n3"));
    eventually("the balancer answers", || lab.get("client", &url));
    let _ = lab.orch(&["service", "scale", "-d", "web=4"]).ok();
    lab.wait_replicas("balanced_web", "4/4");
    eventually("40 requests reach 4 tasks and count without a gap", || {
        let mut names = BTreeSet::new();
        let mut counts = Vec::new();
        for _ in 0..40 {
            let page = lab.get("client", &url)?;
            let said = page.trim().strip_prefix("Hello from ").and_then(|rest| rest.strip_suffix(" times"));
            let (name, count) = said.and_then(|said| said.split_once(": seen ")).ok_or(&page)?;
            names.insert(name.to_owned());
            counts.push(count.parse::<u64>().map_err(|_| &page)?);
        }
        let has_gap = counts.windows(2).any(|pair| pair[1] != pair[0] + 1);
        if names.len() == 4 && !has_gap { Ok(()) } else { Err(format!("{names:?} {counts:?}")) }
    });
    let _ = lab.orch(&["stack", "rm", "balanced"]).ok();
}

#[test]
fn the_fixture_is_what_the_tutorial_has() {
    let text = fs::read_to_string(fixture("friendly.yml")).expect("the fixture");
    for key in ["replicas: 5", "cpus: \"0.1\"", "memory: 50M", "\"80:80\"", "condition: on-failure"] {
        assert!(text.contains(key), "{key}");
    }
}
