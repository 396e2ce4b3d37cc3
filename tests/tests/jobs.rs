//! Jobs run to completion, placeholders are filled in on the task's node, services are packed and rebalanced.

use std::collections::{BTreeMap, BTreeSet};

use orch_tests::{Lab, eventually};

#[test]
fn jobs_complete_and_placeholders_are_filled_in() {
    let lab = Lab::up("jobs", 3, 1);
    lab.import("box", "busybox", &["CMD [\"sleep\", \"100000\"]", "STOPSIGNAL SIGKILL"]);
    a_replicated_job_completes(&lab);
    a_global_job_runs_once_on_each_node(&lab);
    a_job_that_fails_is_tried_again(&lab);
    what_jobs_do_not_have_is_refused(&lab);
    placeholders_have_their_values(&lab);
    services_are_packed_and_rebalanced(&lab);
}

fn completed(lab: &Lab, service: &str) -> Vec<String> {
    let states = lab.orch(&["service", "ps", "--format", "{{.DesiredState}}/{{.CurrentState}}", service]).ok();
    states.lines().filter(|line| line.starts_with("Complete/Complete")).map(str::to_owned).collect()
}

fn a_replicated_job_completes(lab: &Lab) {
    let create = "service create --name batch --mode replicated-job --replicas 5 --max-concurrent 2 box sleep 1";
    // Without --detach the command ends when the job has.
    let _ = lab.orch(&create.split(' ').collect::<Vec<_>>()).ok();
    lab.wait_replicas("batch", "0/2 (5/5 completed)");
    assert_eq!(completed(lab, "batch").len(), 5);
    let mode = lab.orch(&["service", "ls", "--filter", "name=batch", "--format", "{{.Mode}}"]).ok();
    assert_eq!(mode.trim(), "replicated job");

    let _ = lab.orch(&["service", "update", "--label-add", "team=a", "batch"]).ok();
    assert_eq!(completed(lab, "batch").len(), 5, "a label is no reason to run again");
    let _ = lab.orch(&["service", "update", "--force", "batch"]).ok();
    assert_eq!(completed(lab, "batch").len(), 10, "--force runs it anew");
    let _ = lab.orch(&["service", "rm", "batch"]).ok();
}

fn a_global_job_runs_once_on_each_node(lab: &Lab) {
    let _ = lab.orch(&["node", "update", "--availability", "drain", "n3"]).ok();
    let _ = lab.orch(&["service", "create", "--name", "each", "--mode", "global-job", "box", "true"]).ok();
    eventually("it completes on the two nodes that take tasks", || {
        let done = completed(lab, "each");
        if done.len() == 2 { Ok(()) } else { Err(format!("{done:?}")) }
    });
    let _ = lab.orch(&["node", "update", "--availability", "active", "n3"]).ok();
    eventually("and on the third when that takes tasks again", || {
        let nodes = lab.orch(&["service", "ps", "--format", "{{.Node}} {{.CurrentState}}", "each"]).result()?;
        let done = nodes.lines().filter(|line| line.contains("Complete"));
        let done: BTreeSet<_> = done.filter_map(|line| line.split(' ').next()).collect();
        if done == BTreeSet::from(["n1", "n2", "n3"]) { Ok(()) } else { Err(nodes) }
    });
    assert_eq!(completed(lab, "each").len(), 3, "once on each node");
    let _ = lab.orch(&["service", "rm", "each"]).ok();
}

fn a_job_that_fails_is_tried_again(lab: &Lab) {
    let create = "service create --detach --name unlucky --mode replicated-job --restart-delay 0s --restart-max-attempts 2 box false";
    let _ = lab.orch(&create.split(' ').collect::<Vec<_>>()).ok();
    eventually("it was tried three times", || {
        let states = lab.orch(&["service", "ps", "--format", "{{.CurrentState}}", "unlucky"]).result()?;
        let failed = states.lines().filter(|line| line.starts_with("Failed")).count();
        if failed == 3 && states.lines().count() == 3 { Ok(()) } else { Err(states) }
    });
    lab.wait_replicas("unlucky", "0/1 (0/1 completed)");
    let _ = lab.orch(&["service", "rm", "unlucky"]).ok();
}

fn what_jobs_do_not_have_is_refused(lab: &Lab) {
    for (flags, words) in [
        ("--mode replicated-job --update-delay 1s", "update and rollback configuration is not supported for jobs"),
        ("--mode global-job --replicas 3", "replicas can only be used with replicated or replicated-job mode"),
        ("--mode global --max-concurrent 3", "max-concurrent can only be used with"),
        ("--env A={{.Task.Slots}}", ".Task has no Slots"),
        ("--hostname {{.Image}}", ".Image is not known"),
    ] {
        let arguments = format!("service create --name refused {flags} box");
        let said = lab.orch(&arguments.split(' ').collect::<Vec<_>>()).refused();
        assert!(said.contains(words), "{flags}: {said}");
    }
    assert_eq!(lab.orch(&["service", "ls", "-q"]).ok(), "", "nothing was made");
}

fn placeholders_have_their_values(lab: &Lab) {
    let create = [
        "service create --name tpl --replicas 3 --hostname {{.Service.Name}}-{{.Task.Slot}}",
        "--env WHERE={{.Node.Hostname}} --env NAME={{.Task.Name}}",
        "--mount type=volume,source=data-{{.Task.Slot}},target=/data box",
    ]
    .join(" ");
    let _ = lab.orch(&create.split(' ').collect::<Vec<_>>()).ok();
    for slot in 1..=3 {
        let task = format!("tpl.{slot}");
        let shown =
            lab.orch(&["service", "ps", "--filter", &format!("name={task}"), "--format", "{{.Node}}", "tpl"]).ok();
        let said = lab.orch(&["exec", &task, "sh", "-c", "echo $(hostname) $WHERE $NAME; touch /data/mark"]).ok();
        let words: Vec<_> = said.split_whitespace().collect();
        assert_eq!(words[..2], [format!("tpl-{slot}"), shown.trim().to_owned()], "{said}");
        assert!(words[2].starts_with(&format!("{task}.")), "{said}");
        let volumes = lab.orch_on(shown.trim(), &["volume", "ls", "-q"]).ok();
        assert!(volumes.lines().any(|name| name == format!("data-{slot}")), "{volumes}");
    }
    let _ = lab.orch(&["service", "rm", "tpl"]).ok();
}

/// Replicas by node.
fn spread(lab: &Lab, service: &str) -> BTreeMap<String, usize> {
    let filter = ["--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}"];
    let nodes = lab.orch(&[&["service", "ps"], &filter[..], &[service]].concat()).ok();
    let mut on = BTreeMap::new();
    for line in nodes.lines().filter(|line| line.contains(" Running")) {
        *on.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    on
}

fn services_are_packed_and_rebalanced(lab: &Lab) {
    let packed = "service create --name packed --replicas 4 --placement-strategy pack --reserve-memory 8M box";
    let _ = lab.orch(&packed.split(' ').collect::<Vec<_>>()).ok();
    assert_eq!(spread(lab, "packed").len(), 1, "all on one node: {:?}", spread(lab, "packed"));
    let said = lab.orch(&["service", "rebalance", "packed"]).refused();
    assert!(said.contains("only replicated services that are spread can"), "{said}");
    let _ = lab.orch(&["service", "rm", "packed"]).ok();

    let _ = lab.orch(&["node", "update", "--availability", "drain", "n3"]).ok();
    let even = "service create --name even --replicas 6 --update-parallelism 2 --update-monitor 1s box";
    let _ = lab.orch(&even.split(' ').collect::<Vec<_>>()).ok();
    let _ = lab.orch(&["node", "update", "--availability", "active", "n3"]).ok();
    assert_eq!(spread(lab, "even").values().copied().collect::<Vec<_>>(), [3, 3], "nothing moves unasked");
    assert_eq!(lab.orch(&["service", "rebalance", "even"]).ok().trim(), "even: 2 tasks move");
    eventually("two tasks on each node", || {
        let on = spread(lab, "even");
        if on.values().copied().collect::<Vec<_>>() == [2, 2, 2] { Ok(()) } else { Err(format!("{on:?}")) }
    });
    assert_eq!(lab.orch(&["service", "rebalance", "even"]).ok().trim(), "even: it is balanced: nothing moves");
    let _ = lab.orch(&["service", "rm", "even"]).ok();
}
