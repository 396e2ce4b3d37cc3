//! Services by their commands: creating, listing, changing, naming, and what is refused.

use std::{collections::BTreeSet, fs, thread};

use orch_tests::{Lab, eventually};

/// As process 1, `sleep` ignores SIGTERM: nobody waits for its grace period to pass.
const SLEEPER: &[&str] = &["CMD [\"sleep\", \"100000\"]", "STOPSIGNAL SIGKILL"];

#[test]
fn services_do_what_their_flags_say_and_refuse_what_makes_no_sense() {
    let lab = Lab::up("services", 3, 1);
    lab.import("box", "busybox", SLEEPER);
    containers_get_what_the_flags_say(&lab);
    an_image_may_come_after_its_service(&lab);
    a_restarted_worker_knows_its_containers(&lab);
    updates_replace_tasks_one_at_a_time(&lab);
    global_services_run_everywhere(&lab);
    names_are_found_in_every_form(&lab);
    what_cannot_run_says_why(&lab);
    bad_flags_change_nothing(&lab);
    volumes_and_binds_hold_data(&lab);
    a_shared_bind_shows_the_node_what_a_container_mounts(&lab);
    restarts_stop_after_max_attempts(&lab);
    a_port_is_one_containers_or_the_services(&lab);
}

/// Whichever came second would be silent, or take the other's clients on this node.
fn a_port_is_one_containers_or_the_services(lab: &Lab) {
    let run = |port: &str| lab.orch(&["run", "-d", "--name", "single", "-p", port, "box"]);
    let service = |name: &str, publish: &str| {
        let here = ["--constraint", "node.hostname==n1", "--restart-delay", "1s", "box"];
        let _ = lab.orch(&[&["service", "create", "-d", "--name", name, "-p", publish], &here[..]].concat()).ok();
    };
    let _ = run("9100:80").ok();
    service("second", "published=9100,target=80,mode=host");
    error_of(lab, "second", "Bind for 0.0.0.0:9100 failed: port is already allocated by a container of `orch run`");
    let _ = lab.orch(&["rm", "-f", "single"]).ok();
    lab.wait_replicas("second", "1/1");
    // The task before has it, and gives it on.
    let _ = lab.orch(&["service", "update", "--force", "second"]).ok();
    let refused = run("9100:80");
    assert!(refused.code == 125 && refused.stderr.contains("port is already allocated"), "{refused:?}");
    let _ = lab.orch(&["rm", "-f", "single"]);
    service("first", "9101:80");
    lab.wait_replicas("first", "1/1");
    let refused = run("9101:80");
    let said = "Bind for 0.0.0.0:9101 failed: port is already allocated by a service, for all nodes";
    assert!(refused.code == 125 && refused.stderr.contains(said), "{refused:?}");
    let _ = lab.orch(&["rm", "-f", "single"]);
    let mut program = lab.spawn("n1", &["busybox", "httpd", "-f", "-p", "9102", "-h", "/etc"]);
    eventually("the program listens", || lab.get("n1", "http://127.0.0.1:9102/hostname"));
    service("third", "published=9102,target=80,mode=host");
    error_of(lab, "third", "Bind for 0.0.0.0:9102 failed: port is already allocated by busybox (pid ");
    // Who has it keeps its clients, however often the service tries.
    let mut tasks = BTreeSet::new();
    eventually("several tasks have failed", || {
        let _ = lab.get("n1", "http://127.0.0.1:9102/hostname").expect("the program answers throughout");
        tasks.extend(lab.orch(&["service", "ps", "-q", "third"]).result()?.lines().map(str::to_owned));
        if tasks.len() >= 4 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    let _ = program.kill().and_then(|()| program.wait());
    let _ = lab.orch(&["service", "rm", "first", "second", "third"]).ok();
}

fn containers_get_what_the_flags_say(lab: &Lab) {
    let _ = lab
        .orch(&[
            "service",
            "create",
            "--name",
            "flags",
            "--env",
            "COLOUR=green",
            "--host",
            "outside:host-gateway",
            "--hostname",
            "bluebell",
            "--user",
            "nobody",
            "--workdir",
            "/tmp",
            "--label",
            "team=red",
            "--container-label",
            "tier=inner",
            "--limit-memory",
            "64M",
            "box",
            "sh",
            "-c",
            "echo $COLOUR $(hostname) $(id -un) $(pwd); sleep 100000",
        ])
        .ok();
    eventually("the task's output is in the logs", || {
        let logs = lab.orch(&["service", "logs", "flags"]).result()?;
        if logs.contains("green bluebell nobody /tmp") { Ok(()) } else { Err(logs) }
    });
    let inspected = lab.orch(&["service", "inspect", "flags", "--format", "{{.Spec.Labels.team}}"]).ok();
    assert_eq!(inspected.trim(), "red");
    let poll = "{{with .UpdateStatus}}{{.State}}{{end}}<{{.Spec.TaskTemplate.ContainerSpec.StopSignal}}>";
    assert_eq!(lab.orch(&["service", "inspect", "flags", "--format", poll]).ok(), "<>\n");
    let here = lab.orch(&["service", "ps", "-q", "-f", "node=self", "flags"]).ok();
    let on_self = lab.orch(&["node", "ps", "-q", "self"]).ok();
    assert!(here.lines().all(|task| on_self.contains(task)), "{here} not in {on_self}");
    let task = lab.orch(&["service", "ps", "-q", "flags"]).ok().trim().to_owned();
    let said = lab.orch(&["exec", &task, "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.code, said.stdout.trim(), said.stderr.trim()), (7, "out", "err"));
    let through = lab.exec_with_input("n1", &["orch", "exec", "-i", "flags.1", "cat"], b"typed\n");
    assert_eq!(through.ok(), "typed\n");
    let seccomp = lab.orch(&["exec", &task, "grep", "^Seccomp:", "/proc/self/status"]).ok();
    assert!(seccomp.trim().ends_with('2'), "exec runs without the seccomp filter: {seccomp}");
    let node = lab.orch(&["service", "ps", "--format", "{{.Node}}", "flags"]).ok();
    let hosts = lab.orch(&["exec", &task, "cat", "/etc/hosts"]).ok();
    let line = format!("{} outside", lab.address(node.trim()));
    assert!(hosts.lines().any(|found| found == line), "{line} in {hosts}");
    let _ = lab.orch(&["service", "rm", "flags"]).ok();
}

fn updates_replace_tasks_one_at_a_time(lab: &Lab) {
    let _ = lab.orch(&["service", "create", "--name", "rolling", "--replicas", "3", "box"]).ok();
    let before = lab.orch(&["service", "ps", "-q", "rolling"]).ok();
    let _ = lab.orch(&["service", "update", "--env-add", "NEW=1", "rolling"]).ok();
    lab.wait_replicas("rolling", "3/3");
    let running = lab.orch(&["service", "ps", "-q", "--filter", "desired-state=running", "rolling"]).ok();
    assert_eq!(running.lines().count(), 3, "{running}");
    assert!(running.lines().all(|id| !before.contains(id)), "tasks kept: {running} of {before}");
    for slot in ["rolling.1", "rolling.2", "rolling.3"] {
        assert_eq!(lab.orch(&["exec", slot, "sh", "-c", "echo $NEW"]).ok().trim(), "1");
    }
    let _ = lab.orch(&["service", "rm", "rolling"]).ok();
}

fn global_services_run_everywhere(lab: &Lab) {
    let _ = lab.orch(&["service", "create", "--name", "everywhere", "--mode", "global", "box"]).ok();
    lab.wait_replicas("everywhere", "3/3");
    let _ = lab
        .orch(&[
            "service",
            "create",
            "--name",
            "atop",
            "--mode",
            "global",
            "--constraint",
            "node.role == manager",
            "box",
        ])
        .ok();
    lab.wait_replicas("atop", "1/1");
    let tasks = lab.list(&["service", "ps", "atop"]).expect("service ps");
    assert_eq!(tasks[0]["Node"], "n1", "{tasks:?}");
    let _ = lab.orch(&["service", "rm", "everywhere", "atop"]).ok();
}

fn names_are_found_in_every_form(lab: &Lab) {
    let folder = tempfile::tempdir().expect("a folder");
    let compose = folder.path().join("compose.yml");
    fs::write(&compose, "services:\n  web:\n    image: box\n").expect("a stack file");
    let file = compose.to_str().expect("utf-8");
    let _ = lab.orch(&["stack", "deploy", "-c", file, "shop"]).ok();
    lab.wait_replicas("shop_web", "1/1");
    let id = lab.orch(&["service", "inspect", "shop_web", "--format", "{{.ID}}"]).ok().trim().to_owned();
    let _ = lab.orch(&["service", "scale", "web=2"]).ok();
    lab.wait_replicas("shop_web", "2/2");
    for name in [id.as_str(), &id[..10], "shop_web", "web"] {
        assert_eq!(lab.orch(&["service", "inspect", name, "--format", "{{.ID}}"]).ok().trim(), id, "{name}");
    }
    let _ = lab.orch(&["stack", "deploy", &format!("-c={file}"), "mall"]).ok();
    let ambiguous = lab.orch(&["service", "scale", "web=1"]).refused();
    assert!(ambiguous.contains("shop_web") && ambiguous.contains("mall_web"), "{ambiguous}");
    let stacks = lab.list(&["stack", "ls"]).expect("stack ls");
    assert_eq!(stacks.len(), 2, "{stacks:?}");
    let container = lab.list(&["service", "ps", "shop_web"]).expect("service ps");
    let name = container[0]["Name"].as_str().expect("name").to_owned();
    let full = format!(
        "{name}.{}",
        lab.orch(&["service", "ps", "-q", "--no-trunc", "shop_web"]).ok().lines().next().expect("an id")
    );
    let hostname = lab.orch(&["exec", &full, "hostname"]).ok().trim().to_owned();
    assert_eq!(hostname.len(), 12, "{hostname}");
    assert_eq!(lab.orch(&["exec", &hostname, "hostname"]).ok().trim(), hostname, "found by container id");
    let _ = lab.orch(&["stack", "rm", "shop", "mall"]).ok();
    eventually("the stacks are gone", || {
        let left = lab.orch(&["service", "ls", "-q"]).result()?;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

fn an_image_may_come_after_its_service(lab: &Lab) {
    let _ = lab
        .orch(&["service", "create", "-d", "--name", "early", "--mode", "global", "--restart-delay", "1s", "later:1"])
        .ok();
    error_of(lab, "early", "No such image: later:1");
    lab.import("later:1", "busybox", SLEEPER);
    lab.wait_replicas("early", "3/3");
    let _ = lab.orch(&["service", "rm", "early"]).ok();
}

fn a_restarted_worker_knows_its_containers(lab: &Lab) {
    let counting = "i=0; while sleep 0.1; do i=$((i+1)); echo line $i; done";
    let on_n2 = "node.hostname==n2";
    let _ =
        lab.orch(&["service", "create", "-q", "--name", "steady", "--constraint", on_n2, "box", "sh", "-c", counting]);
    let listed = || lab.exec("n2", &["orch", "ps", "--no-trunc", "--format", "{{.ID}} {{.Command}}"]);
    let before = listed().ok();
    assert!(before.contains("while sleep 0.1"), "{before}");
    // Eight seconds of lines, however long it takes until the worker is back.
    let follow = "timeout 60 orch service logs -f --raw --tail 1 steady | head -n 80";
    let follower = thread::scope(|scope| {
        let followed = scope.spawn(|| lab.exec("n1", &["sh", "-c", follow]));
        let _ = lab.command("kill", &["n2", "worker"]).ok();
        eventually("the worker lists its containers as before", || match listed().result()? {
            after if after == before => Ok(()),
            after => Err(after),
        });
        followed.join().expect("the follower")
    });
    let numbers: Vec<u64> = follower.stdout.lines().filter_map(|l| l.strip_prefix("line ")?.parse().ok()).collect();
    assert_eq!(numbers.len(), 80, "{follower:?}");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines lost or repeated: {numbers:?}");
    let _ = lab.orch(&["service", "rm", "steady"]).ok();
}

/// The error of the service's tasks, once there is one that contains `wanted`.
fn error_of(lab: &Lab, service: &str, wanted: &str) {
    eventually(&format!("`service ps {service}` says {wanted:?}"), || {
        let text = lab.orch(&["service", "ps", "--no-trunc", service]).result()?;
        if text.contains(wanted) { Ok(()) } else { Err(text) }
    });
}

fn what_cannot_run_says_why(lab: &Lab) {
    let _ = lab.orch(&["service", "create", "-d", "--name", "absent", "127.0.0.1:5999/no-such-image"]).ok();
    error_of(lab, "absent", "no-such-image");
    let _ = lab.orch(&["service", "create", "-d", "--name", "lost", "box", "no-such-command"]).ok();
    error_of(lab, "lost", "\"no-such-command\": executable file not found in $PATH");
    let _ = lab
        .orch(&["service", "create", "-d", "--name", "nowhere", "--constraint", "node.labels.zone == moon", "box"])
        .ok();
    error_of(lab, "nowhere", "no suitable node (scheduling constraints not satisfied on 3 nodes)");
    let gave_up = lab.orch(&["service", "create", "--name", "once", "--restart-condition", "none", "box", "false"]);
    assert_eq!(gave_up.code, 1, "{gave_up:?}");
    assert!(gave_up.stderr.contains("once.1") && gave_up.stderr.contains("non-zero exit (1)"), "{gave_up:?}");
    let _ = lab.orch(&["service", "rm", "absent", "lost", "nowhere", "once"]).ok();
}

fn bad_flags_change_nothing(lab: &Lab) {
    let refused = |args: &[&str], wanted: &str| {
        let said = lab.orch(args).refused();
        assert!(said.contains(wanted), "{args:?}: {said}");
    };
    let _ = lab.orch(&["service", "create", "--name", "taken", "-p", "9000:80", "box"]).ok();
    refused(&["service", "create", "--name", "taken", "box"], "already exists");
    refused(&["service", "create", "--name", "second", "-p", "9000:80", "box"], "9000");
    refused(&["service", "create", "--name", "bad name", "box"], "name");
    refused(&["service", "create", "--constraint", "node.colour == red", "box"], "node.colour");
    refused(&["service", "create", "--replicas", "many", "box"], "--replicas");
    refused(&["service", "create", "--limit-memory", "lots", "box"], "--limit-memory");
    refused(&["service", "create", "--mount", "type=nonsense,target=/x", "box"], "nonsense");
    refused(&["service", "scale", "nobody=3"], "nobody");
    refused(&["service", "create", "--network", "nowhere", "box"], "nowhere");
    refused(&["service", "create", "--log-driver", "syslog", "box"], "logging driver \"syslog\" is not known");
    refused(&["service", "create", "--log-opt", "max-size=lots", "box"], "max-size");
    refused(&["service", "create", "-p", "2377:80", "box"], "port 2377/tcp cannot be published");
    refused(&["service", "create", "--host", "a\nb:1.2.3.4", "box"], "--host");
    refused(&["service", "create", "a b"], "invalid reference format");
    refused(&["service", "update", "--generic-resource-rm", "GPU", "taken"], "could not find generic-resource `GPU`");
    refused(&["node", "update", "--label-rm", "nothing", "n1"], "key nothing doesn't exist in node's labels");
    refused(&["service", "ps", "--filter", "node=nowhere", "taken"], "node nowhere not found");
    of_racing_updates_none_is_lost(lab, "taken");
    let services = lab.orch(&["service", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(services.trim(), "taken", "a refused command left something behind");
    let _ = lab.orch(&["service", "rm", "taken"]).ok();

    let folder = tempfile::tempdir().expect("a folder");
    let deploy = |text: &str| {
        let file = folder.path().join("compose.yml");
        fs::write(&file, text).expect("a stack file");
        lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), "broken"]).refused()
    };
    let unknown = deploy("services:\n  web:\n    image: box\n    colour: red\n");
    assert!(unknown.contains("colour") && unknown.contains('4'), "{unknown}");
    let not_yaml = deploy("services: [web\n  image: }box\n");
    assert!(not_yaml.contains("compose.yml"), "{not_yaml}");
    assert!(lab.orch(&["stack", "ls", "--format", "{{.Name}}"]).ok().trim().is_empty());
}

/// Whoever changes what another one has changed meanwhile is told so, and changes nothing.
fn of_racing_updates_none_is_lost(lab: &Lab, service: &str) {
    let change = &|n: usize| lab.orch(&["service", "update", "-d", "--env-add", &format!("RACE{n}=1"), service]);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..6).map(|n| scope.spawn(move || change(n))).collect();
        running.into_iter().map(|one| one.join().expect("an outcome")).collect()
    });
    let kept = lab.orch(&["service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", service]).ok();
    for (n, outcome) in outcomes.iter().enumerate() {
        let said = &outcome.stderr;
        assert!(outcome.code == 0 || said.contains("it was changed since, try again"), "{said}");
        assert_eq!(kept.contains(&format!("RACE{n}=1")), outcome.code == 0, "{kept}: {said}");
    }
    assert!(outcomes.iter().any(|outcome| outcome.code == 0));
}

fn volumes_and_binds_hold_data(lab: &Lab) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("hello"), "from the host").expect("a file");
    let bind = format!("type=bind,source={},target=/host,readonly", folder.path().display());
    let _ = lab
        .orch(&[
            "service",
            "create",
            "--name",
            "keeper",
            "--constraint",
            "node.hostname == n1",
            "--mount",
            &bind,
            "--mount",
            "type=volume,source=data,target=/data",
            "box",
        ])
        .ok();
    assert_eq!(lab.orch(&["exec", "keeper.1", "cat", "/host/hello"]).ok(), "from the host");
    assert!(lab.orch(&["exec", "keeper.1", "touch", "/host/x"]).refused().contains("Read-only"));
    let _ = lab.orch(&["exec", "keeper.1", "sh", "-c", "echo kept > /data/file"]).ok();
    let _ = lab.orch(&["service", "update", "--force", "keeper"]).ok();
    eventually("the new task finds the volume's data", || {
        let text = lab.orch(&["exec", "keeper.1", "cat", "/data/file"]).result()?;
        if text.trim() == "kept" { Ok(()) } else { Err(text) }
    });
    let _ = lab.orch(&[
        "exec",
        "keeper.1",
        "sh",
        "-c",
        "mkdir -p /data/a/b; echo inner > /data/a/b/file; ln -s /etc /data/out",
    ]);
    parts_of_a_volume_are_mounted(lab);
    let _ = lab.orch(&["service", "rm", "keeper"]).ok();
}

fn parts_of_a_volume_are_mounted(lab: &Lab) {
    let part = |path: &str| format!("source=data,target=/part,volume-subpath={path}");
    let here = ["--constraint", "node.hostname == n1", "box"];
    let _ = lab.orch(&[&["service", "create", "--name", "part", "--mount", &part("a/b")][..], &here].concat()).ok();
    assert_eq!(lab.orch(&["exec", "part.1", "cat", "/part/file"]).ok(), "inner\n");
    let _ = lab.orch(&["exec", "part.1", "sh", "-c", "echo more > /part/more"]).ok();
    assert_eq!(lab.orch(&["exec", "keeper.1", "cat", "/data/a/b/more"]).ok(), "more\n");
    let format = "{{(index .Spec.TaskTemplate.ContainerSpec.Mounts 0).VolumeOptions.Subpath}}";
    assert_eq!(lab.orch(&["service", "inspect", "-f", format, "part"]).ok(), "a/b\n");
    for (path, said) in [("nowhere", "has to be there before it is mounted"), ("out", "leads out of the volume")] {
        let mount = part(path);
        let refused = lab.orch(&["run", "--rm", "--mount", &mount, "box", "true"]).refused();
        assert!(refused.contains(said), "{path}: {refused}");
        let _ = lab.orch(&[&["service", "create", "-d", "--name", "bad", "--mount", &mount][..], &here].concat()).ok();
        eventually("the task is rejected", || {
            let tasks = lab.orch(&["service", "ps", "--no-trunc", "bad"]).result()?;
            if tasks.contains("Rejected") && tasks.contains(said) { Ok(()) } else { Err(tasks) }
        });
        let _ = lab.orch(&["service", "rm", "bad"]).ok();
    }
    // Of a stopped one-off container, too.
    let file = lab.orch(&["run", "--rm", "--mount", &part("a/b/file"), "box", "cat", "/part"]).ok();
    assert_eq!(file, "inner\n");
    let _ = lab.orch(&["run", "--name", "seen", "--mount", &part("a/b"), "box", "true"]).ok();
    let copied = lab.orch(&["cp", "seen:/part/file", "-"]).ok();
    assert!(copied.contains("inner"), "{copied}");
    let _ = lab.orch(&["rm", "-f", "seen"]).ok();
    let _ = lab.orch(&["service", "rm", "part"]).ok();
    eventually("no mount is left", || {
        let mounts = lab.exec("n1", &["cat", "/proc/self/mountinfo"]).result()?;
        if mounts.contains("/subpaths/") { Err(mounts) } else { Ok(()) }
    });
}

fn a_shared_bind_shows_the_node_what_a_container_mounts(lab: &Lab) {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = folder.path().to_str().expect("utf-8 path");
    let _ = lab.exec("n1", &["mount", "-t", "tmpfs", "none", shared]).ok();
    let _ = lab.exec("n1", &["mount", "--make-private", shared]).ok();
    let bind_as = |propagation: &str| format!("type=bind,source={shared},target=/s,bind-propagation={propagation}");
    for (propagation, needed) in [("rslave", "shared or slave"), ("rshared", "shared")] {
        let refused = lab.orch(&["run", "--rm", "--mount", &bind_as(propagation), "box", "true"]).refused();
        let said = format!("path {shared} is mounted on {shared} but it is not a {needed} mount");
        assert!(refused.contains(&said), "{refused}");
    }
    let create = ["service", "create", "-d", "--name", "passes-on", "--restart-condition", "none", "--mount"];
    let _ = lab.orch(&[&create[..], &[&bind_as("rshared"), "box", "true"]].concat()).ok();
    eventually("the task is rejected with the reason", || {
        let seen = lab.orch(&["service", "ps", "--no-trunc", "passes-on"]).result()?;
        if seen.contains("Rejected") && seen.contains("it is not a shared mount") { Ok(()) } else { Err(seen) }
    });
    let _ = lab.orch(&["service", "rm", "passes-on"]).ok();

    let _ = lab.exec("n1", &["mount", "--make-shared", shared]).ok();
    for propagation in ["rslave", "rshared"] {
        let bind = bind_as(propagation);
        let script =
            format!("mkdir /s/{propagation} && mount -t tmpfs none /s/{propagation} && grep -q /s/ /proc/mounts");
        let _ = lab.orch(&["run", "--rm", "--privileged", "--mount", &bind, "box", "sh", "-c", &script]).ok();
    }
    let mounts = lab.exec("n1", &["cat", "/proc/mounts"]).ok();
    assert!(mounts.contains(&format!("{shared}/rshared")), "{mounts}");
    assert!(!mounts.contains(&format!("{shared}/rslave")), "{mounts}");
    let _ = lab.exec("n1", &["umount", "-R", shared]).ok();
}

fn restarts_stop_after_max_attempts(lab: &Lab) {
    let _ = lab
        .orch(&[
            "service",
            "create",
            "-d",
            "--name",
            "crashing",
            "--restart-delay",
            "100ms",
            "--restart-max-attempts",
            "2",
            "box",
            "sh",
            "-c",
            "exit 3",
        ])
        .ok();
    let all_failed = |wanted: usize| {
        let tasks = lab.list(&["service", "ps", "crashing"])?;
        let failed =
            tasks.iter().filter(|t| t["CurrentState"].as_str().is_some_and(|s| s.starts_with("Failed"))).count();
        if failed == wanted && tasks.len() == wanted { Ok(()) } else { Err(format!("{tasks:?}")) }
    };
    eventually("one start and two restarts failed", || all_failed(3));
    error_of(lab, "crashing", "non-zero exit (3)");
    let _ = lab.orch(&["service", "rm", "crashing"]).ok();
}
