//! Health checks.

use super::*;

fn checked(script: &str) -> impl FnOnce(&mut ContainerSpec, &mut TaskSpec) {
    let test = ["CMD-SHELL", script].map(str::to_owned).to_vec();
    move |container, _| {
        container.health = Some(HealthConfig {
            test,
            interval: Some(Duration::from_millis(200)),
            timeout: Some(Duration::from_millis(1500)),
            retries: 1,
            start_period: None,
            start_interval: None,
        });
    }
}

/// What the checks say once there are so many.
async fn checks(container: &Container, at_least: usize) -> HealthState {
    let said = async {
        loop {
            let health = container.health().await.unwrap().unwrap();
            if health.results.len() >= at_least {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, said).await.expect("it is not checked")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_over_when_nobody_can_print_for_it_any_more() {
    let node = Node::new();
    for (script, want) in [
        ("echo ok", (0, "ok\n")),
        ("sleep 1000 & echo ok; exit 0", (-1, "Health check exceeded timeout (1.5s): ok\n")),
        ("sleep 1000 >/dev/null 2>&1 & echo ok", (0, "ok\n")),
        ("sh -c 'sleep 0.2; echo late' & echo soon; exit 3", (3, "soon\nlate\n")),
        ("exec >/dev/null 2>&1; sleep 0.2; exit 4", (4, "")),
        ("yes", (-1, "")),
    ] {
        let container = node.create(&["sleep", "1000"], checked(script)).await.unwrap();
        container.start().await.unwrap();
        for result in &checks(&container, 2).await.results[..2] {
            assert_eq!(result.exit_code, want.0, "{script}: {result:?}");
            assert!(script == "yes" || result.output == want.1, "{script}: {result:?}");
        }
        container.delete().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_a_check_that_was_cut_says_so() {
    let node = Node::new();
    for (bytes, want) in [(4096, "x"), (4097, "x...")] {
        let script = format!("yes '' | head -n {bytes} | while read l; do echo -n x; done");
        let container = node.create(&["sleep", "1000"], checked(&script)).await.unwrap();
        container.start().await.unwrap();
        let output = checks(&container, 1).await.results[0].output.clone();
        assert_eq!((output.trim_end_matches('.').len(), &output[4095..]), (4096, want), "{bytes}");
        container.delete().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_stands_still_is_not_checked() {
    let node = Node::new();
    // The second is under way when it is frozen.
    let script = "test ! -e /tmp/slow || sleep 0.3; touch /tmp/slow";
    let container = node.create(&["sleep", "1000"], checked(script)).await.unwrap();
    container.start().await.unwrap();
    checks(&container, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    container.set_frozen(true).await.unwrap();
    let before = checks(&container, 1).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(checks(&container, 1).await, before);
    container.set_frozen(false).await.unwrap();
    let after = checks(&container, before.results.len() + 1).await;
    assert!(after.results.iter().all(|result| result.exit_code == 0), "{after:?}");
    container.set_frozen(true).await.unwrap();
    timeout(LIMIT, container.delete()).await.expect("it stands still for ever").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_checks_goes_on_in_the_next_run() {
    let node = Node::new();
    let earlier = HealthCheck { start_ns: 1, end_ns: 2, exit_code: 7, output: "before".to_owned() };
    let given = earlier.clone();
    let container =
        node.create_with(&["sleep", "1000"], checked("echo now"), |plan| plan.options.earlier_checks = vec![given]);
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let health = checks(&container, 2).await;
    assert_eq!((&health.results[0], health.results[1].output.as_str(), health.failing_streak), (&earlier, "now\n", 0));
    container.delete().await.unwrap();
}
