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

    let service = ["service", "create", "-d", "--name", "user", "--mode", "global", "--user", "99"];
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
