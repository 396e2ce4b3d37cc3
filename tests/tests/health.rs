//! Health checks: what running means with one, and what becomes of a task that fails it.

use std::time::Duration;

use orch_tests::{Lab, PATIENCE, eventually, within};

/// Healthy as long as /ok is there, which takes a moment.
const SLOW: &str = "sleep 2; echo hello > /index.html; touch /ok; exec httpd -f -p 8080 -h /";
const CHECK: [&str; 6] =
    ["--health-cmd", "test -e /ok || { echo no /ok; exit 3; }", "--health-interval", "1s", "--health-retries", "2"];

/// `status names`, one line per container of n1.
fn containers(lab: &Lab) -> Result<Vec<(String, String)>, String> {
    let text = lab.orch(&["ps", "-a", "--format", "{{.Names}}\t{{.Status}}"]).result()?;
    Ok(text.lines().filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

fn wait_status(lab: &Lab, name: &str, status: &str) -> String {
    eventually(&format!("{name} is {status}"), || {
        let seen = containers(lab)?;
        let found = seen.iter().find(|(names, words)| names.starts_with(name) && words.contains(status));
        found.map(|(names, _)| names.clone()).ok_or(format!("{seen:?}"))
    })
}

/// State and error of the service's tasks, newest first.
fn tasks(lab: &Lab, service: &str) -> Result<Vec<(String, String)>, String> {
    let rows = lab.list(&["service", "ps", "--no-trunc", service])?;
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(|row| (text(row, "CurrentState"), text(row, "Error").trim_matches('"').to_owned())).collect())
}

#[test]
fn running_means_healthy_and_unhealthy_tasks_are_replaced() {
    let lab = Lab::up("health", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "web", "--restart-delay", "0s", "-p", "8080:8080"];
    let _ = lab.orch(&[&create[..], &CHECK, &["busybox", "sh", "-c", SLOW]].concat()).ok();
    wait_status(&lab, "web.1", "(health: starting)");
    let early = tasks(&lab, "web").expect("tasks");
    assert!(early[0].0.starts_with("Starting"), "{early:?}");
    lab.wait_replicas("web", "1/1");
    let name = wait_status(&lab, "web.1", "(healthy)");
    let state = lab.orch(&["container", "inspect", "-f", "{{.State.Health.Status}} {{.State.Running}}", &name]).ok();
    assert_eq!(state, "healthy true\n");

    let _ = lab.orch(&["exec", &name, "rm", "/ok"]).ok();
    let error = "task: non-zero exit (143): dockerexec: unhealthy container";
    within(PATIENCE, "the task has failed and another one runs", || {
        let seen = tasks(&lab, "web")?;
        let replaced = seen.len() == 2 && seen[0].0.starts_with("Running") && seen[1].0.starts_with("Failed");
        let exit = |code: &str| seen[1].1 == error.replace("143", code);
        if replaced && (exit("143") || exit("137") || exit("0")) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(lab.get("client", &format!("http://{}:8080/", lab.address("n1"))), Ok("hello\n".to_owned()));
    // What the check said last is there when its container is gone, also for the next worker.
    let last = |about: &str| {
        let end =
            "{{.State.Status}} {{.State.Health.Status}} {{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{end}}";
        let seen = lab.orch(&["inspect", "-f", end, &name]).ok();
        assert!(seen.starts_with("exited unhealthy ") && seen.ends_with("3 no /ok\n\n"), "{about}: {seen}");
        let started = lab.orch(&["inspect", "-f", "{{.State.StartedAt}}", &name]).ok();
        assert!(started.starts_with("20"), "{about}: {started}");
    };
    last("this worker");

    let container = format!("container={name}");
    let all = ["events", "--since", "10m", "--until", "0s", "--format", "{{.Action}}", "-f", &container];
    let told = lab.orch(&[&all[..], &["-f", "label=com.docker.swarm.service.name=web"]].concat()).ok();
    let mut told: Vec<&str> = told.lines().filter(|action| !action.starts_with("exec_")).collect();
    // Whether it hears the first signal or not.
    told.dedup();
    let lived = ["create", "start", "health_status: healthy", "health_status: unhealthy", "kill", "die", "stop"];
    assert_eq!(told[..lived.len()], lived, "{told:?}");
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    eventually("the worker is back", || lab.orch(&["ps", "-q"]).result());
    last("the next worker");
}

#[test]
fn an_update_waits_for_health() {
    let lab = Lab::up("health-update", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "2"];
    let order = ["--update-order", "start-first", "--update-monitor", "2s"];
    let _ = lab.orch(&[&create[..], &order, &CHECK, &["busybox", "sh", "-c", SLOW]].concat()).ok();
    lab.wait_replicas("web", "2/2");
    // This version never gets healthy: the update stops, and nothing that worked is gone.
    let broken = ["service", "update", "-d", "--args", "sleep 10000", "web"];
    let _ = lab.orch(&broken).ok();
    within(PATIENCE, "the update is paused", || {
        let state = lab.orch(&["service", "inspect", "-f", "{{.UpdateStatus.State}}", "web"]).result()?;
        if state.trim() == "paused" { Ok(()) } else { Err(state) }
    });
    let healthy = containers(&lab).expect("containers");
    assert_eq!(healthy.iter().filter(|(_, words)| words.contains("(healthy)")).count(), 2, "{healthy:?}");
}

#[test]
fn checks_of_one_container() {
    let lab = Lab::up("health-run", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let run = |name: &str, flags: &[&str]| {
        let all = [&["run", "-d", "--name", name][..], flags, &["busybox", "sleep", "10000"]].concat();
        let _ = lab.orch(&all).ok();
    };
    run("good", &["--health-cmd", "id -u; echo $HOSTNAME", "--health-interval", "1s", "-h", "box", "-u", "1234"]);
    run("bad", &[&CHECK[..]].concat());
    run(
        "slow",
        &[
            "--health-cmd",
            "echo asking; sleep 100",
            "--health-interval",
            "1s",
            "--health-timeout",
            "1s",
            "--health-retries",
            "1",
        ],
    );
    run("none", &["--no-healthcheck"]);
    for (name, status) in [("good", "(healthy)"), ("bad", "(unhealthy)"), ("slow", "(unhealthy)")] {
        wait_status(&lab, name, status);
    }
    let last = |name: &str| {
        let format = "{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}|{{end}}";
        let log = lab.orch(&["inspect", "-f", format, name]).ok();
        log.trim().trim_end_matches('|').rsplit('|').next().unwrap_or_default().to_owned()
    };
    // It runs as the container does.
    assert_eq!(last("good"), "0 1234\nbox\n");
    assert_eq!(last("bad"), "3 no /ok\n");
    assert_eq!(last("slow"), "-1 Health check exceeded timeout (1s): asking\n");
    let unchecked = containers(&lab).expect("containers");
    assert!(unchecked.iter().any(|(name, words)| name == "none" && !words.contains('(')), "{unchecked:?}");
    // A one-off container that is unhealthy goes on, as with Docker; and checks outlive the worker.
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    let _ = eventually("the worker is back", || lab.orch(&["exec", "bad", "touch", "/ok"]).result());
    wait_status(&lab, "bad", "(healthy)");
    // Its check dies with it, which says nothing of its health.
    eventually("a check is under way", || {
        let programs = lab.orch(&["top", "slow"]).result()?;
        if programs.contains("sleep 100\n") { Ok(()) } else { Err(programs) }
    });
    let _ = lab.orch(&["stop", "-t", "0", "slow"]).ok();
    assert_eq!(last("slow"), "-1 Health check exceeded timeout (1s): asking\n");
    within(Duration::from_secs(20), "filters by health", || {
        let seen = lab.orch(&["ps", "--filter", "health=healthy", "--format", "{{.Names}}"]).result()?;
        let mut names: Vec<&str> = seen.lines().collect();
        names.sort_unstable();
        if names == ["bad", "good"] { Ok(()) } else { Err(seen) }
    });
}
