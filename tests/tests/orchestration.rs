//! What managers and workers only do together: files filled in for a task, the operator's own resources, volumes that
//! hold a slot to its node, an update that says what it waits for, logs of many tasks in the order of their times.

use orch_tests::{Lab, eventually};

#[test]
fn services_use_what_nodes_have_and_say_what_they_wait_for() {
    let lab = Lab::up("orchestration", 3, 1);
    lab.import("box", "busybox", &["CMD [\"sleep\", \"100000\"]", "STOPSIGNAL SIGKILL"]);
    files_are_filled_in_for_each_task(&lab);
    generic_resources_are_reserved_and_named(&lab);
    a_limit_beyond_the_nodes_cpus_is_refused_there(&lab);
    a_volume_holds_its_slot(&lab);
    an_update_says_what_it_waits_for(&lab);
    logs_of_many_tasks_are_in_order(&lab);
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn create(lab: &Lab, line: &str) {
    let _ = lab.orch(&[&["service", "create", "--quiet"], &words(line)[..]].concat()).ok();
}

fn files_are_filled_in_for_each_task(lab: &Lab) {
    let store = |args: &[&str], content: &str| lab.exec_with_input("n1", args, content.as_bytes());
    let _ = store(&["orch", "secret", "create", "password", "-"], "hush").ok();
    let _ = store(&["orch", "config", "create", "plain", "-"], "front").ok();
    let template = "{{.Service.Name}}.{{.Task.Slot}} {{secret \"password\"}} {{config \"/plain\"}} {{env \"MODE\"}}";
    for kind in ["secret", "config"] {
        let _ = store(&["orch", kind, "create", "--template-driver", "golang", "made", "-"], template).ok();
        let wrong = ["orch", kind, "create", "--template-driver", "golang", "wrong", "-"];
        let refused = store(&wrong, "{{.Task.Slots}}").refused();
        assert!(refused.contains(".Task has no Slots; it has ID, Name, Slot"), "{refused}");
    }
    let shown = lab.orch(&["secret", "inspect", "--format", "{{json .Spec.Templating}}", "made"]).ok();
    assert_eq!(shown.trim(), "{\"Name\":\"golang\"}");
    create(
        lab,
        "--name filled --replicas 2 --env MODE=prod --secret password --secret made --config plain --config made box",
    );
    for slot in 1..=2 {
        let read = ["exec", &format!("filled.{slot}"), "sh", "-c", "cat /run/secrets/made; echo; cat /made"];
        let expected = format!("filled.{slot} hush front prod");
        assert_eq!(lab.orch(&read).ok(), format!("{expected}\n{expected}"));
    }
    let _ = lab.orch(&["service", "rm", "filled"]).ok();
}

fn generic_resources_are_reserved_and_named(lab: &Lab) {
    let line = "echo 'node-generic-resources = [\"gpu=UUID1\", \"ssd=3\"]' >> /etc/orch/orch.toml";
    let _ = lab.exec("n2", &["sh", "-c", line]).ok();
    let _ = lab.command("kill", &["n2", "worker"]).ok();
    eventually("the node says what it has", || {
        let format = "{{json .Description.Resources.GenericResources}}";
        let has = lab.orch(&["node", "inspect", "--format", format, "n2"]).result()?;
        if has.contains("UUID1") && has.contains("\"Value\":3") { Ok(()) } else { Err(has) }
    });
    create(lab, "--detach --name gpus --replicas 2 --generic-resource gpu=1 --generic-resource ssd=2 box");
    lab.wait_replicas("gpus", "1/2");
    let task = lab.orch(&["service", "ps", "--filter", "node=n2", "--format", "{{.Name}}", "gpus"]).ok();
    let told = lab.orch(&["exec", task.trim(), "sh", "-c", "echo $DOCKER_RESOURCE_GPU $DOCKER_RESOURCE_SSD"]).ok();
    assert_eq!(told.trim(), "UUID1 2");
    let listed = lab.orch(&["service", "ps", "--no-trunc", "gpus"]).ok();
    assert!(listed.contains("no suitable node (insufficient resources on 3 nodes)"), "{listed}");
    let _ = lab.orch(&["service", "rm", "gpus"]).ok();
}

fn a_limit_beyond_the_nodes_cpus_is_refused_there(lab: &Lab) {
    create(lab, "--detach --name greedy --restart-condition none --limit-cpu 4096 box");
    eventually("the node says how many CPUs there are", || {
        let listed = lab.orch(&["service", "ps", "--no-trunc", "greedy"]).result()?;
        if listed.contains("range of CPUs is from 0.01 to") { Ok(()) } else { Err(listed) }
    });
    let _ = lab.orch(&["service", "rm", "greedy"]).ok();
}

fn node_of(lab: &Lab, service: &str) -> Result<String, String> {
    let running = ["--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}"];
    let listed = lab.orch(&[&["service", "ps"], &running[..], &[service]].concat()).result()?;
    let runs = listed.lines().find(|line| line.contains(" Running")).and_then(|line| line.split(' ').next());
    runs.map(str::to_owned).ok_or(listed)
}

fn a_volume_holds_its_slot(lab: &Lab) {
    create(lab, "--name keeper --constraint node.hostname!=n1 --mount source=kept,target=/data box");
    let home = node_of(lab, "keeper").expect("it runs");
    let _ = lab.orch(&["exec", "keeper.1", "sh", "-c", "echo here > /data/file"]).ok();
    let drained = lab.orch(&["node", "update", "--availability", "drain", &home]);
    assert!(drained.stderr.contains("keeper.1 will stay pending while this node is drained"), "{drained:?}");
    eventually("it waits for its node, and says so", || {
        let listed = lab.orch(&["service", "ps", "--no-trunc", "keeper"]).result()?;
        let advice = format!(
            "its volume is on node {home}: bring that back, or give the data up with `orch service unpin keeper.1`"
        );
        if listed.contains(&advice) { Ok(()) } else { Err(listed) }
    });
    let _ = lab.orch(&["node", "update", "--availability", "active", &home]).ok();
    lab.wait_replicas("keeper", "1/1");
    assert_eq!(node_of(lab, "keeper").as_ref(), Ok(&home));
    assert_eq!(lab.orch(&["exec", "keeper.1", "cat", "/data/file"]).ok(), "here\n");
    let _ = lab.orch(&["node", "update", "--availability", "drain", &home]).ok();
    lab.wait_replicas("keeper", "0/1");
    let said = lab.orch(&["service", "unpin", "keeper.1"]).ok();
    assert_eq!(said.trim(), format!("keeper.1 gives its volume on node {home} up"));
    lab.wait_replicas("keeper", "1/1");
    assert_ne!(node_of(lab, "keeper").expect("it runs"), home);
    let _ = lab.orch(&["node", "update", "--availability", "active", &home]).ok();
    let _ = lab.orch(&["service", "rm", "keeper"]).ok();
}

fn an_update_says_what_it_waits_for(lab: &Lab) {
    create(lab, "--name held --replicas 2 --update-monitor 1s box");
    let _ = lab.orch(&["service", "update", "--detach", "--reserve-memory", "8000G", "held"]).ok();
    eventually("inspect says which task waits for what", || {
        let shown = lab.orch(&["service", "inspect", "--pretty", "held"]).result()?;
        let waits = "task held.1 waits: no suitable node (insufficient resources on 3 nodes)";
        if shown.contains(waits) { Ok(()) } else { Err(shown) }
    });
    let _ = lab.orch(&["service", "update", "--quiet", "--reserve-memory", "0", "held"]).ok();
    let shown = lab.orch(&["service", "inspect", "--pretty", "held"]).ok();
    assert!(shown.contains("update completed"), "{shown}");
    let _ = lab.orch(&["service", "rm", "held"]).ok();
}

fn logs_of_many_tasks_are_in_order(lab: &Lab) {
    let counting = ["sh", "-c", "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; sleep 0.05; done; sleep 10000"];
    let service = ["service", "create", "--quiet", "--name", "talk", "--replicas", "4", "box"];
    let _ = lab.orch(&[&service[..], &counting[..]].concat()).ok();
    let read = || lab.orch(&["service", "logs", "--timestamps", "--no-task-ids", "talk"]).result();
    let text = eventually("all lines are there", || {
        let text = read()?;
        if text.lines().count() == 80 { Ok(text) } else { Err(text) }
    });
    let stamps: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(stamps.is_sorted(), "{text}");
    let names: std::collections::BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let middle = stamps[40];
    let until = lab.orch(&["service", "logs", "--raw", "--timestamps", "--until", middle, "talk"]).ok();
    let since = lab.orch(&["service", "logs", "--raw", "--timestamps", "--since", middle, "talk"]).ok();
    let stamps_of = |text: &str| text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
    let upto: Vec<String> = stamps_of(&until);
    let from: Vec<String> = stamps_of(&since);
    assert!(stamps.iter().filter(|at| **at <= middle).eq(upto.iter()), "to the nanosecond: {until}");
    assert!(stamps.iter().filter(|at| **at >= middle).eq(from.iter()), "from the nanosecond on: {since}");
    assert_eq!(lab.orch(&["service", "logs", "--tail", "3", "talk"]).ok().lines().count(), 12, "of each task");
    let _ = lab.orch(&["service", "rm", "talk"]).ok();
}
