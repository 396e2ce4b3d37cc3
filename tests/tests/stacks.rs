//! What a stack's second deployment, refusal, removal and namesake do.

use std::{collections::BTreeSet, fs, path::Path};

use orch_tests::{Lab, eventually, fixture};

const CHANGES: &[&str] = &["CMD [\"sleep\", \"100000\"]"];

/// A folder with a stack file and the content of its secret and config.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("the file's folder");
        fs::write(&path, text).expect("writing a file");
        path.to_str().expect("utf-8 path").to_owned()
    }
}

fn task_ids(lab: &Lab, service: &str) -> BTreeSet<String> {
    let running = lab.orch(&["service", "ps", "-q", "-f", "desired-state=running", service]).ok();
    running.lines().map(str::to_owned).collect()
}

const SHOP: &str = "
services:
  web:
    image: busybox
    stop_grace_period: 0s
    environment: {LEVEL: LEVEL_VALUE}
    deploy: {replicas: 2, update_config: {parallelism: 0, monitor: 1ms}}
    secrets: [pw]
    configs: [pw]
  db:
    image: busybox
    stop_grace_period: 0s
    ports: ['9001:80']
secrets:
  pw: {file: pw.txt}
configs:
  pw: {file: pw.txt}
";

#[test]
fn stacks_change_as_their_files_do() {
    let lab = Lab::up("stacks", 3, 3);
    lab.import("busybox", "busybox", CHANGES);
    let files = Files::new();
    let _ = files.write("shop/pw.txt", "one");
    let shop = files.write("shop/compose.yml", &SHOP.replace("LEVEL_VALUE", "info"));
    // Without a name: the folder's.
    let said = lab.orch(&["stack", "deploy", "-c", &shop]).ok();
    assert!(said.contains("Creating network shop_default") && said.contains("Creating secret shop_pw"), "{said}");
    lab.wait_replicas("shop_web", "2/2");
    lab.wait_replicas("shop_db", "1/1");

    a_change_touches_only_what_changed(&lab, &files, &shop);
    changed_content_reaches_the_tasks(&lab, &files, &shop);
    a_refusal_leaves_everything_as_it_was(&lab, &files);
    files_that_must_fail_say_what_to_write(&lab);
    short_names_until_two_stacks_have_them(&lab, &files);
    deploying_during_a_removal(&lab, &shop);
    a_deployment_queues_behind_a_removal(&lab, &files);
    people_are_asked_before_anything_is_pruned(&lab, &files);
    the_exit_code_can_be_trusted(&lab, &files);
}

fn a_change_touches_only_what_changed(lab: &Lab, files: &Files, shop: &str) {
    let (web, db) = (task_ids(lab, "shop_web"), task_ids(lab, "shop_db"));
    let _ = files.write("shop/compose.yml", &SHOP.replace("LEVEL_VALUE", "debug"));
    let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", shop]).ok();
    assert!(task_ids(lab, "shop_web").is_disjoint(&web), "web's environment changed, its tasks did not");
    assert_eq!(task_ids(lab, "shop_db"), db, "db did not change");
}

fn changed_content_reaches_the_tasks(lab: &Lab, files: &Files, shop: &str) {
    for content in ["two", "one"] {
        let _ = files.write("shop/pw.txt", content);
        let _ = lab.orch(&["stack", "deploy", "-c", shop, "-d=false", "-q"]).ok();
        eventually("the new content is in the tasks", || {
            let said = lab.orch(&["exec", "web.1", "cat", "/run/secrets/pw", "/pw"]).result()?;
            if said == content.repeat(2) { Ok(()) } else { Err(said) }
        });
    }
    let secrets = lab.orch(&["secret", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(secrets.lines().count(), 2, "going back uses the first version again: {secrets}");
}

fn a_refusal_leaves_everything_as_it_was(lab: &Lab, files: &Files) {
    let twice = "  more:\n    image: busybox\n    ports: ['9002:80']\n  same:\n    image: busybox\n    ports: ['9002:80']\nsecrets:";
    let text = SHOP.replace("LEVEL_VALUE", "refused").replace("9001", "9003").replacen(
        "secrets:\n  pw: {",
        &format!("{twice}\n  pw: {{"),
        1,
    );
    let file = files.write("shop/refused.yml", &text);
    let outcome = lab.orch(&["stack", "deploy", "-c", &file, "shop"]);
    assert!(outcome.code != 0 && outcome.stderr.contains("port '9002' is already in use"), "{outcome:?}");
    let spec = lab.orch(&["service", "inspect", "--format", "{{json .Spec}}", "shop_web", "shop_db"]).ok();
    assert!(spec.contains("LEVEL=debug") && spec.contains("9001") && !spec.contains("9003"), "{spec}");
    let services = lab.orch(&["stack", "services", "shop", "--format", "{{.Name}}"]).ok();
    assert_eq!(services.lines().collect::<BTreeSet<_>>(), ["shop_db", "shop_web"].into());

    let networks = "networks:\n  a: {}\n  b: {driver: bridge}\n";
    let file =
        files.write("shop/driver.yml", &format!("services: {{web: {{image: busybox, networks: [a, b]}}}}\n{networks}"));
    let outcome = lab.orch(&["stack", "deploy", "-c", &file, "driver"]);
    assert!(outcome.code != 0 && outcome.stderr.contains("network driver \"bridge\" is not valid"), "{outcome:?}");
    let once =
        "Creating network driver_a\nCreating network driver_b\nRemoving network driver_a (the deployment failed)\n";
    assert_eq!(outcome.stdout, once, "nothing is tried again");
}

fn files_that_must_fail_say_what_to_write(lab: &Lab) {
    let early = ["8:5: services.web Additional property secrets is not allowed", "13:1:", "write version: \"3.1\""];
    let ancient = ["1:1:", "this is the version 1 format", "put every service under `services:`"];
    for (file, words) in [("secrets-too-early.yml", early), ("before-versions.yml", ancient)] {
        let file = fixture(file);
        let refused = lab.orch(&["stack", "deploy", "-c", file.to_str().expect("utf-8"), "bad"]).refused();
        words.iter().for_each(|word| assert!(refused.contains(word), "{word:?} is not in {refused}"));
    }
    let file = lab.exec_with_input(
        "n1",
        &["orch", "stack", "config", "--skip-interpolation", "-c", "-"],
        b"services:\n  web:\n    image: web:${TAG:?which}\n    environment: {LEVEL: '${LEVEL}'}\n",
    );
    let file = file.ok();
    assert!(file.contains("web:${TAG:?which}") && file.contains("${LEVEL}"), "as it is written: {file}");
    let networks = lab.orch(&["network", "ls", "--format", "{{.Name}}"]).ok();
    assert!(!networks.contains("bad_"), "nothing was made: {networks}");
    let bare = fs::read_to_string(fixture("secrets-too-early.yml")).expect("the fixture").replace("'3.0'", "'3'");
    let said = lab.exec_with_input("n1", &["orch", "stack", "config", "-c", "-"], bare.as_bytes()).ok();
    assert!(said.contains("password"), "a bare 3 is the newest: {said}");
}

fn short_names_until_two_stacks_have_them(lab: &Lab, files: &Files) {
    let _ = lab.orch(&["service", "scale", "-d", "web=1"]).ok();
    lab.wait_replicas("shop_web", "1/1");
    let text = "name: press\nservices:\n  web:\n    image: busybox\n    stop_grace_period: 0s\n";
    let file = files.write("blog/compose.yml", text);
    let _ = lab.orch(&["stack", "deploy", &format!("-c={file}")]).ok();
    let stacks = lab.orch(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"]).ok();
    assert_eq!(stacks.lines().collect::<BTreeSet<_>>(), ["press 1", "shop 2"].into());
    let refused = lab.orch(&["service", "scale", "web=5"]).refused();
    assert!(
        refused.contains("ambiguous") && refused.contains("shop_web") && refused.contains("press_web"),
        "{refused}"
    );
    let _ = lab.orch(&["stack", "rm", "press"]).ok();
    for command in [&["stack", "rm", "nope"][..], &["stack", "rm", "--wait", "nope"], &["stack", "services", "nope"]] {
        let said = lab.orch(command);
        assert!(said.code == 0 && said.stderr.contains("Nothing found in stack: nope"), "{command:?}: {}", said.stderr);
    }
    let _ = lab.orch(&["service", "scale", "-d", "web=2"]).ok();
    lab.wait_replicas("shop_web", "2/2");
}

const AFTER: &str = "
name: after
services:
  web:
    image: busybox
    stop_grace_period: 0s
    environment: {LEVEL: one}
    depends_on: {db: {condition: service_healthy}}
    deploy: {replicas: 2, update_config: {parallelism: 0, monitor: 1ms}}
  db:
    image: busybox
    stop_grace_period: 0s
    deploy: {placement: {constraints: [node.labels.disk == ssd]}}
";

#[test]
fn whole_stacks_are_planned_held_returned_and_written_down() {
    let lab = Lab::up("stacks-plan", 2, 1);
    lab.import("busybox", "busybox", CHANGES);
    let files = Files::new();
    let first = files.write("after.yml", AFTER);
    let plan = lab.orch(&["stack", "plan", "--exit-code", "-c", &first]);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.stdout.contains("+ network after_default\n+ service after_db\n+ service after_web\n"), "{plan:?}");
    assert!(!lab.orch(&["stack", "ls"]).ok().contains("after"), "a plan makes nothing");

    // The dependant is held in the cluster: nobody waits here.
    let _ = lab.orch(&["stack", "deploy", "-c", &first]).ok();
    eventually("web waits for db", || {
        let tasks = lab.orch(&["service", "ps", "--no-trunc", "after_web"]).result()?;
        if tasks.contains("waiting for service after_db: 0 of 1 tasks running and healthy") {
            Ok(())
        } else {
            Err(tasks)
        }
    });
    let _ = lab.orch(&["node", "update", "--label-add", "disk=ssd", "n2"]).ok();
    lab.wait_replicas("after_web", "2/2");
    let same = lab.orch(&["stack", "plan", "--exit-code", "-c", &first]);
    assert_eq!(same.code, 0, "{same:?}");

    a_stack_returns_to_its_last_deployment(&lab, &files);

    // What was written down deploys to what runs.
    let web = task_ids(&lab, "after_web");
    let exported = files.write("exported.yml", &lab.orch(&["stack", "export", "after"]).ok());
    let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", &exported]).ok();
    assert_eq!(task_ids(&lab, "after_web"), web, "nothing changed");
    assert_eq!(lab.orch(&["stack", "diff", "-c", &exported]).ok(), "");

    let _ = lab.orch(&["stack", "rm", "--wait", "after"]).ok();
    let left = lab.orch(&["service", "ls", "-q"]).ok() + &lab.orch(&["config", "ls", "-q"]).ok();
    assert_eq!(left, "", "services and the records of deployments are gone");
    let up = lab.orch(&["stack", "up", "-q", "--scale", "db=2", "-c", &first, "db"]).ok();
    assert!(up.contains("Creating service after_db") && !up.contains("after_web"), "{up}");
    lab.wait_replicas("after_db", "2/2");
}

fn a_stack_returns_to_its_last_deployment(lab: &Lab, files: &Files) {
    let more = "  more:\n    image: busybox\n    stop_grace_period: 0s\n";
    let second = files.write("second.yml", &(AFTER.replace("LEVEL: one", "LEVEL: two") + more));
    let said = lab.orch(&["stack", "plan", "-c", &second]).ok();
    for line in ["+ service after_more", "~ service after_web (its tasks are replaced)", "\"one\" -> \"two\""] {
        assert!(said.contains(line), "{line:?} is not in {said}");
    }
    let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", &second]).ok();
    let refused = files.write("refused.yml", &AFTER.replace("disk == ssd", "disk"));
    let outcome = lab.orch(&["stack", "deploy", "-c", &refused]);
    assert_ne!(outcome.code, 0, "{outcome:?}");
    let _ = lab.orch(&["stack", "rollback", "-d=false", "-q", "after"]).ok();
    let spec = lab.orch(&["service", "inspect", "--format", "{{json .Spec}}", "after_web"]).ok();
    assert!(spec.contains("LEVEL=one"), "the refused deployment is not what it returns to: {spec}");
    eventually("what the second deployment added is gone", || {
        let services = lab.orch(&["stack", "services", "after", "--format", "{{.Name}}"]).result()?;
        if services.contains("after_more") { Err(services) } else { Ok(()) }
    });
}

/// The removal must not take from the new deployment what it needs, nor wait for it.
fn deploying_during_a_removal(lab: &Lab, shop: &str) {
    let removal = lab.spawn("n1", &["orch", "stack", "rm", "shop"]);
    eventually("the removal began", || match lab.orch(&["stack", "ls"]).stdout.contains("shop") {
        false => Ok(()),
        true => Err("shop is still there".into()),
    });
    let _ = lab.orch(&["stack", "deploy", "-c", shop]).ok();
    let removed = removal.wait_with_output().expect("the removal's end");
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    lab.wait_replicas("shop_web", "2/2");
    lab.wait_replicas("shop_db", "1/1");
    let _ = lab.orch(&["stack", "rm", "shop"]).ok();
    let _ = lab.orch(&["stack", "deploy", "-c", shop]).ok();
    lab.wait_replicas("shop_web", "2/2");
}

/// Its one task is not the leader's, takes its time to stop, and has what only one can have: a subnet, a volume, names.
const SLOW: &str = "
services:
  db:
    image: busybox
    stop_grace_period: 8s
    volumes: ['data:/data']
    secrets: [pw]
    deploy: {placement: {constraints: [node.hostname == n2]}}
networks: {default: {ipam: {config: [{subnet: 10.77.0.0/24}]}}}
secrets: {pw: {file: pw.txt}}
volumes: {data: }
";

/// The command does not wait for tasks to stop; managers finish the removal, whoever of them leads, and what is deployed
/// meanwhile waits for it.
fn a_deployment_queues_behind_a_removal(lab: &Lab, files: &Files) {
    let _ = lab.orch(&["stack", "rm", "--wait", "shop"]).ok();
    let _ = files.write("slow/pw.txt", "secret");
    let slow = files.write("slow/compose.yml", SLOW);
    let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", &slow]).ok();
    let services = lab.orch(&["stack", "services", "slow", "--format", "{{.Name}} {{.Mode}} {{.Image}}"]).ok();
    assert_eq!(services, "slow_db replicated busybox:latest\n");
    let before = task_ids(lab, "slow_db");

    let _ = lab.orch(&["stack", "rm", "slow"]).ok();
    let names = || {
        let networks = lab.orch(&["network", "ls", "--format", "{{.Name}}"]).ok();
        networks + &lab.orch(&["secret", "ls", "--format", "{{.Name}}"]).ok()
    };
    assert!(!names().contains("slow_"), "the names are free: {}", names());
    let again = lab.orch(&["stack", "deploy", "-c", &slow]).ok();
    for made in ["Creating network slow_default", "Creating secret slow_pw\n", "Creating service slow_db"] {
        assert!(again.contains(made), "{again}");
    }
    eventually("the new task waits", || {
        let tasks = lab.orch(&["service", "ps", "--no-trunc", "slow_db"]).result()?;
        if tasks.contains("of network slow_default, which is being removed") { Ok(()) } else { Err(tasks) }
    });
    let _ = lab.command("kill", &["n1", "node"]).ok();
    eventually("another manager has finished the removal, and the deployment goes on", || {
        let services = lab.orch_on("n2", &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]).result()?;
        if services.lines().any(|line| line == "slow_db 1/1") { Ok(()) } else { Err(services) }
    });
    let _ = lab.command("start", &["n1"]).ok();
    eventually("n1 is a manager again", || lab.orch(&["stack", "ls"]).result());
    assert!(task_ids(lab, "slow_db").is_disjoint(&before), "it is another task");

    let _ = lab.orch(&["stack", "rm", "--detach=false", "slow"]).ok();
    let network = ["network", "create", "-d", "overlay", "--subnet", "10.77.0.0/24", "after"];
    let _ = lab.orch(&network).ok();
    let described = lab.orch(&["network", "inspect", "after"]).ok();
    assert!(described.contains("10.77.0.0/24") && !described.contains("being removed"), "{described}");
    let _ = lab.orch(&["network", "rm", "after"]).ok();
}

const MANY: &str = "services:
  web: {image: busybox, stop_grace_period: 0s, command: [sh, -c, 'echo hello from web; sleep 100000']}
";
const OLD: &str =
    "  old: {image: busybox, stop_grace_period: 0s, command: [sh, -c, 'echo hello from old; sleep 100000']}\n";

fn people_are_asked_before_anything_is_pruned(lab: &Lab, files: &Files) {
    let both = files.write("ask/both.yml", &format!("{MANY}{OLD}"));
    let one = files.write("ask/one.yml", MANY);
    let deploy_both = || {
        let _ = lab.orch(&["stack", "deploy", "-d=false", "-q", "-c", &both, "ask"]).ok();
    };
    deploy_both();
    eventually("the logs of both services", || {
        let logs = lab.orch(&["stack", "logs", "ask"]).result()?;
        let has = |service: &str| {
            logs.lines()
                .any(|l| l.starts_with(&format!("ask_{service}.1.")) && l.ends_with(&format!("hello from {service}")))
        };
        if has("web") && has("old") { Ok(()) } else { Err(logs) }
    });
    let on_a_terminal = |flags: &str, answer: &[u8]| {
        let command = format!("orch stack deploy --prune {flags} -c {one} ask");
        lab.exec_with_input("n1", &["script", "-qec", &command, "/dev/null"], answer)
    };
    let has_old = || lab.orch(&["stack", "services", "-q", "ask"]).ok().lines().count() == 2;
    let no = on_a_terminal("", b"n\n");
    assert!(no.code != 0 && no.stdout.contains("ask_old") && no.stdout.contains("Go on? [y/N]"), "{no:?}");
    assert!(no.stdout.contains("nothing was changed") && has_old(), "{no:?}");
    let yes = on_a_terminal("", b"y\n");
    assert!(yes.code == 0 && yes.stdout.contains("Go on? [y/N]") && !has_old(), "{yes:?}");
    deploy_both();
    let unasked = on_a_terminal("--yes", b"");
    assert!(unasked.code == 0 && !unasked.stdout.contains("Go on?") && !has_old(), "{unasked:?}");
    deploy_both();
    let piped = lab.orch(&["stack", "deploy", "--prune", "-c", &one, "ask"]).ok();
    assert!(!piped.contains("Go on?") && piped.contains("Removing service ask_old") && !has_old(), "{piped}");
    let tasks = lab.orch(&["stack", "ps", "ask", "-f", "desired-state=running"]).ok();
    let heading: Vec<&str> = tasks.lines().next().unwrap_or_default().split("  ").map(str::trim).collect();
    let heading: Vec<&str> = heading.into_iter().filter(|word| !word.is_empty()).collect();
    assert_eq!(heading, ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"], "{tasks}");
    assert_eq!(tasks.lines().count(), 2, "{tasks}");
}

fn the_exit_code_can_be_trusted(lab: &Lab, files: &Files) {
    let hopeless = format!("{MANY}  never: {{image: 'nowhere.invalid/x:1', depends_on: [web]}}\n");
    let file = files.write("ask/hopeless.yml", &hopeless);
    let outcome = lab.orch(&["stack", "deploy", "-d=false", "-c", &file, "ask"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(
        outcome.stderr.contains("1 of 2 services do not run as asked for") && outcome.stderr.contains("ask_never"),
        "{outcome:?}"
    );
    // Ctrl-C, before anything can be known about the service that no node can run.
    let waits = format!(
        "{MANY}  held: {{image: busybox, depends_on: {{job: {{condition: service_completed_successfully}}}}}}
  job: {{image: busybox, stop_grace_period: 0s, deploy: {{mode: replicated-job}}}}\n"
    );
    let file = files.write("ask/waits.yml", &waits);
    let command =
        ["timeout", "-s", "INT", "--preserve-status", "4", "orch", "stack", "deploy", "-d=false", "-c", &file, "ask"];
    let stopped = lab.exec("n1", &command);
    assert_eq!(stopped.code, 1, "{stopped:?}");
    assert!(stopped.stderr.contains("the deployment goes on in the background"), "{stopped:?}");
    lab.wait_replicas("ask_web", "1/1");
    let services = lab.orch(&["stack", "services", "ask", "--format", "{{.Name}}"]).ok();
    assert!(services.contains("ask_held") && services.contains("ask_job"), "{services}");
    let _ = lab.orch(&["stack", "rm", "--wait", "ask"]).ok();
}
