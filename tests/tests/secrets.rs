//! Secrets and configs, from the command line to the file in the container, and nowhere else.

use std::{fs, path::Path};

use orch_tests::{Lab, eventually, fixture};

const SECRET: &str = "the-very-secret-content-of-this-test";
const CONFIG: &str = "the configuration of this test";

/// `orch exec` in the only task of a service that runs on this node.
fn in_task(lab: &Lab, node: &str, command: &str) -> Result<String, String> {
    let id = lab.orch_on(node, &["ps", "-q"]).result()?;
    let id = id.lines().next().ok_or("nothing runs")?.to_owned();
    lab.orch_on(node, &["exec", &id, "sh", "-c", command]).result()
}

/// Files below `dir`, as they are on the disk, that hold the bytes.
fn holders(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(holders(&path, bytes));
        } else if kind.is_file() && fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|w| w == bytes)) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_secret_is_a_file_in_memory_and_nowhere_else() {
    let lab = Lab::up("secrets", 2, 1);
    lab.import("busybox", "busybox", &[]);
    let create = |args: &[&str], content: &str| lab.exec_with_input("n1", args, content.as_bytes());
    let _ = create(&["orch", "secret", "create", "--label", "use=test", "db", "-"], SECRET).ok();
    let _ = create(&["orch", "config", "create", "app", "-"], CONFIG).ok();
    let taken = create(&["orch", "secret", "create", "db", "-"], "other").refused();
    assert!(taken.contains("secret db already exists"), "{taken}");
    for listed in ["secret inspect db", "secret inspect --pretty db", "secret ls"] {
        let shown = lab.orch(&listed.split(' ').collect::<Vec<_>>()).ok();
        assert!(shown.contains("db") && !shown.contains(SECRET), "{shown}");
    }
    assert!(lab.orch(&["config", "inspect", "--pretty", "app"]).ok().contains(CONFIG));

    let service =
        ["service", "create", "-d", "--stop-grace-period", "1s", "--name", "user", "--mode", "global", "--user", "99"];
    let files = ["--secret", "db", "--secret", "source=db,target=/etc/db.key,uid=99,gid=98,mode=0400"];
    let config = ["--config", "source=app,target=/app.conf,mode=0440", "busybox", "sleep", "10000"];
    let _ = lab.orch(&[&service[..], &files[..], &config[..]].concat()).ok();
    for node in ["n1", "n2"] {
        let read = "cat /run/secrets/db /etc/db.key; stat -c ' %a %u %g' /run/secrets/db /etc/db.key /app.conf";
        let seen = eventually("the files are there", || in_task(&lab, node, read));
        assert_eq!(seen, format!("{SECRET}{SECRET} 444 0 0\n 400 99 98\n 440 0 0\n"));
        let mounts = in_task(&lab, node, "grep -c '^tmpfs /run/secrets/db tmpfs ro,' /proc/mounts").expect("grep");
        assert_eq!(mounts, "1\n");
        assert!(in_task(&lab, node, "echo x > /etc/db.key").is_err(), "a secret was overwritten");
    }
    for kind in ["secret", "config"] {
        let name = if kind == "secret" { "db" } else { "app" };
        let said = lab.orch(&[kind, "rm", name]).refused();
        assert!(said.contains(&format!("{kind} {name} is in use by service user")), "{said}");
    }
    // Also not when a worker is killed in the middle and comes back.
    let _ = lab.command("kill", &["n2", "worker"]).ok();
    eventually("n2 goes on", || in_task(&lab, "n2", "cat /run/secrets/db"));
    for host in lab.hosts() {
        for folder in ["data_dir", "run_dir"] {
            let Some(dir) = host[folder].as_str() else { continue };
            assert_eq!(holders(Path::new(dir), SECRET.as_bytes()), [] as [&str; 0], "{}", host["name"]);
        }
    }

    let _ = lab.orch(&["service", "update", "-d", "--secret-rm", "db", "--config-rm", "app", "user"]).ok();
    eventually("the update is through", || {
        let seen = in_task(&lab, "n2", "ls /run/secrets 2>&1 | grep -c db; ls /app.conf 2>&1 | grep -c '^/app.conf'");
        match seen {
            // grep counted nothing and said so with its exit code.
            Err(gone) if gone.contains("exit code 1") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    eventually("nobody uses them any more", || lab.orch(&["secret", "rm", "db"]).result());
    eventually("nobody uses them any more", || lab.orch(&["config", "rm", "app"]).result());
    assert!(lab.orch(&["secret", "rm", "db"]).refused().contains("no such secret: db"));
}

/// What Docker's commands say and do, short of a secret's content ever coming back.
#[test]
fn secrets_and_configs_are_listed_inspected_and_removed() {
    let lab = Lab::up("secret-words", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let create = |args: &[&str], content: &[u8]| lab.exec_with_input("n1", &[&["orch"], args].concat(), content);
    for kind in ["secret", "config"] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("content");
        fs::write(&file, SECRET).expect("a file");
        let file = file.to_str().expect("utf-8");
        let id = lab.orch(&[kind, "create", "--label", "env=prod", "-l", "tier", "from-file", file]).ok();
        let id = id.trim();
        assert!(id.len() == 25 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
        let _ = create(&[kind, "create", "from.stdin_2", "-"], b"\x00\xff binary").ok();

        let listed = |args: &[&str]| lab.orch(&[&[kind, "ls"], args].concat()).ok();
        let heading =
            if kind == "secret" { "ID  NAME  DRIVER  CREATED  UPDATED" } else { "ID  NAME  CREATED  UPDATED" };
        let columns: Vec<String> = listed(&[])
            .lines()
            .next()
            .expect("a heading")
            .split("   ")
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        assert_eq!(columns.join("  "), heading);
        assert_eq!(listed(&["--format", "{{.Name}} {{.Labels}}"]), "from-file env=prod,tier=\nfrom.stdin_2 \n");
        assert_eq!(listed(&["--format", "{{.Name}} {{.Label \"env\"}}"]), "from-file prod\nfrom.stdin_2 \n");
        assert_eq!(listed(&["-q", "--filter", "name=from-f"]), format!("{id}\n"));
        assert_eq!(listed(&["-q", "--filter", "label=env=prod"]), format!("{id}\n"));
        assert_eq!(listed(&["-q", "--filter", "label=env=test"]), "");
        assert_eq!(listed(&["--filter", &format!("id={}", &id[..12]), "--format", "{{.Name}}"]), "from-file\n");
        let said = lab.orch(&[kind, "ls", "--filter", "colour=red"]).refused();
        assert!(said.contains("colour"), "{said}");

        let inspect = |args: &[&str]| lab.orch(&[&[kind, "inspect"], args].concat());
        assert_eq!(
            inspect(&["--format", "{{.Spec.Name}} {{.ID}}", "from-file", &id[..10]]).ok(),
            format!("from-file {id}\n").repeat(2)
        );
        let all = inspect(&["from-file"]).ok()
            + &inspect(&["--pretty", "from-file"]).ok()
            + &inspect(&["--format", "json", "from-file"]).ok();
        // Also not as the API encodes bytes.
        let is_shown = all.contains(SECRET) || all.contains("dGhlLXZlcnktc2VjcmV0");
        assert_eq!(is_shown, kind == "config", "{all}");
        assert!(inspect(&["nobody"]).refused().contains(&format!("no such {kind}: nobody")));

        let max = if kind == "secret" { 500 * 1024 - 1 } else { 1000 * 1024 - 1 };
        let _ = create(&[kind, "create", "largest", "-"], &vec![b'x'; max]).ok();
        for (content, name) in [(vec![b'x'; max + 1], "too-large"), (Vec::new(), "empty")] {
            let said = create(&[kind, "create", name, "-"], &content).refused();
            assert!(said.contains(&format!("from 1 to {max} bytes")), "{said}");
        }
        for name in ["-start", "end-", "sp ace", "sla/sh", "", &"x".repeat(65)] {
            let said = create(&[kind, "create", "--", name, "-"], b"x").refused();
            assert!(said.contains("[a-zA-Z0-9-_.]"), "{name:?}: {said}");
        }
        let _ = create(&[kind, "create", &"x".repeat(64), "-"], b"x").ok();

        // Several are removed at once; one that is in use, or is not there, keeps none of the others.
        let flag = format!("--{kind}");
        for name in ["one", "two"] {
            let args = ["service", "create", "-d", "--name", name, &flag, "from-file", "busybox", "sleep", "10000"];
            let _ = lab.orch(&args).ok();
        }
        let said = lab.orch(&[kind, "rm", "from-file", "nobody", "largest"]).refused();
        assert!(said.contains(&format!("{kind} from-file is in use by services one and two")), "{said}");
        assert!(said.contains(&format!("no such {kind}: nobody")), "{said}");
        assert!(!listed(&["--format", "{{.Name}}"]).contains("largest"));
        assert!(!lab.orch(&["service", "inspect", "one"]).ok().contains(SECRET));
        let _ = lab.orch(&["service", "rm", "one", "two"]).ok();
        eventually("nobody uses it any more", || lab.orch(&[kind, "rm", "from-file"]).result());
        let _ = lab.orch(&[kind, "rm", "from.stdin_2"]).ok();
    }
}

/// A new content is another version; services that use it are updated to it, one task after the other.
#[test]
fn another_content_reaches_the_tasks_and_a_rollback_brings_the_old_one_back() {
    let lab = Lab::up("secret-update", 2, 1);
    lab.import("busybox", "busybox", &[]);
    let put = |args: &[&str], content: &str| lab.exec_with_input("n1", &[&["orch"], args].concat(), content.as_bytes());
    let _ = put(&["secret", "create", "--label", "use=test", "db", "-"], "first").ok();
    let _ = put(&["config", "create", "app", "-"], "one").ok();
    let service = [
        "service",
        "create",
        "-d",
        "--name",
        "user",
        "--mode",
        "global",
        "--stop-grace-period",
        "1s",
        "--secret",
        "source=db,target=key,mode=0400",
    ];
    let config = ["--config", "source=app,target=/etc/app.conf", "busybox", "sleep", "10000"];
    let _ = lab.orch(&[&service[..], &config[..]].concat()).ok();
    let reads = |wanted: &str| {
        for node in ["n1", "n2"] {
            eventually(&format!("the tasks read {wanted}"), || {
                let seen = in_task(&lab, node, "cat /run/secrets/key /etc/app.conf; stat -c ' %a' /run/secrets/key")?;
                if seen == format!("{wanted} 400\n") { Ok(()) } else { Err(seen) }
            });
        }
    };
    reads("firstone");
    let old = lab.orch(&["secret", "inspect", "db", "--format", "{{.ID}}"]).ok();
    let new = put(&["secret", "update", "--label-add", "more=1", "db", "-"], "second").ok();
    assert_ne!(new, old);
    reads("secondone");
    let _ = put(&["config", "update", "app", "-"], "two").ok();
    reads("secondtwo");
    let names = lab.orch(&["secret", "ls", "--format", "{{.Name}} {{.Labels}}"]).ok();
    assert_eq!(names, "db more=1,use=test\ndb.1 orch.version-of=db,use=test\n");
    let shown =
        lab.orch(&["service", "inspect", "user", "--format", "{{json .Spec.TaskTemplate.ContainerSpec.Secrets}}"]).ok();
    assert!(shown.contains(new.trim()) && shown.contains("\"db\""), "{shown}");
    let _ = lab.orch(&["service", "rollback", "-d", "user"]).ok();
    reads("secondone");
    // Labels alone change nothing for the tasks; what is in use goes along however old it is.
    let before = lab.orch(&["ps", "-q"]).ok();
    assert_eq!(lab.orch(&["secret", "update", "--label-rm", "more", "db"]).ok(), new);
    let _ = put(&["secret", "update", "db", "-"], "second").ok();
    assert_eq!(lab.orch(&["ps", "-q"]).ok(), before);
    let _ = put(&["config", "update", "app", "-"], "three").ok();
    reads("secondthree");
    for content in ["", &"x".repeat(500 * 1024)] {
        assert!(put(&["secret", "update", "db", "-"], content).refused().contains("511999"));
    }
}

#[test]
fn a_stack_brings_its_secrets_and_configs_along() {
    let lab = Lab::up("secret-stack", 2, 1);
    lab.import("busybox", "busybox", &[]);
    let file = fixture("secrets/compose.yml");
    let file = file.to_str().expect("utf-8 path");
    let _ = lab.exec_with_input("n1", &["orch", "secret", "create", "outer", "-"], b"from outside").ok();
    let _ = lab.orch(&["stack", "deploy", "-d", "-c", file, "shop"]).ok();
    lab.wait_replicas("shop_db", "1/1");
    lab.wait_replicas("shop_web", "1/1");
    let read = "cat /run/secrets/password /run/secrets/key /etc/settings.ini 2>/dev/null; true";
    let mut seen: Vec<String> =
        ["n1", "n2"].map(|node| eventually("the files are there", || in_task(&lab, node, read))).into_iter().collect();
    seen.sort();
    assert_eq!(seen, ["open sesame\n", "open sesame\nfrom outside[settings]\nlevel = 3\n"]);
    let _ = lab.orch(&["stack", "rm", "shop"]).ok();
    eventually("the stack's own are gone, the outer one stays", || {
        let left = lab.orch(&["secret", "ls", "--format", "{{.Name}}"]).result()?;
        let configs = lab.orch(&["config", "ls", "-q"]).result()?;
        if left == "outer\n" && configs.is_empty() { Ok(()) } else { Err(format!("{left}{configs}")) }
    });
}
