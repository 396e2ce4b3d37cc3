//! Every daemon's numbers, read as Prometheus reads them.

use orch_tests::{Lab, eventually};

#[test]
fn every_daemon_has_a_page_of_numbers() {
    let lab = Lab::up("metrics", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let _ = lab.orch(&["service", "create", "--name", "one", "busybox", "sleep", "10000"]).ok();
    for (socket, lines) in [
        (
            "manager",
            &[
                "orch_raft_is_leader 1",
                "orch_raft_voters 1",
                "orch_agent_sessions 1",
                "orch_tasks{state=\"running\"} 1",
                "orch_nodes{state=\"ready\"} 1",
                "# TYPE orch_raft_log_fsync_seconds histogram",
            ][..],
        ),
        ("worker", &["orch_containers{state=\"running\"} 1", "orch_containers_started_total 1", "orch_images 1"]),
        ("netd", &["orch_netd_requests_waiting 0", "orch_netd_operations_failed_total 0"]),
        ("node", &["orch_daemon_up{daemon=\"manager\"} 1", "orch_daemon_restarts{daemon=\"worker\"} 0"]),
    ] {
        let path = format!("/run/orch/{socket}.sock");
        eventually(&format!("the {socket}'s numbers"), || {
            let page = lab.exec("n1", &["curl", "-sf", "--unix-socket", &path, "http://orch/metrics"]).result()?;
            match lines.iter().find(|line| !page.lines().any(|found| found == **line)) {
                None if page.ends_with("# EOF\n") => Ok(()),
                missing => Err(format!("{missing:?} is not in\n{page}")),
            }
        });
    }
}
