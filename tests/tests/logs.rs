//! What containers write: kept within limits, told apart, found again; and what a flood of it does to the neighbour.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    time::{Duration, Instant},
};

use orch_tests::{Lab, PATIENCE, eventually};

/// A service of one task on n1.
fn service(lab: &Lab, name: &str, options: &[&str], script: &str) {
    let create = ["service", "create", "-d", "--name", name, "--restart-condition", "none"];
    let _ = lab.orch(&[&create[..], options, &["busybox", "sh", "-c", script]].concat()).ok();
}

fn task_id(lab: &Lab, service: &str) -> String {
    eventually("the service has a task", || {
        let ids = lab.orch(&["service", "ps", "-q", "--no-trunc", service]).result()?;
        ids.lines().next().map(str::to_owned).ok_or(ids)
    })
}

fn ended(lab: &Lab, service: &str) {
    eventually("the task has ended", || {
        let tasks = lab.orch(&["service", "ps", "--format", "{{.CurrentState}}", service]).result()?;
        if tasks.starts_with("Complete") { Ok(()) } else { Err(tasks) }
    });
}

#[test]
fn logs_are_found_again_as_they_were_written() {
    let lab = Lab::up("logs", 1, 1);
    lab.import("busybox", "busybox", &[]);
    service(&lab, "two", &[], "echo out1; echo err1 >&2; sleep 1; echo out2; printf tail");
    ended(&lab, "two");
    let logs = |flags: &[&str]| lab.orch(&[&["service", "logs", "--raw"][..], flags, &["two"]].concat());
    let all = logs(&[]);
    assert_eq!((all.stdout.as_str(), all.stderr.as_str()), ("out1\nout2\ntail", "err1\n"));
    assert_eq!(logs(&["--tail", "2"]).stdout, "out2\ntail");
    assert_eq!(logs(&["-n", "0"]).stdout, "");
    let stamped = logs(&["-t"]).stdout;
    let times: Vec<&str> = stamped.lines().filter_map(|line| line.split_once(' ')).map(|(time, _)| time).collect();
    assert_eq!(times.len(), 3, "{stamped}");
    assert_eq!(logs(&["--since", times[1]]).stdout, "out2\ntail");
    let until = logs(&["--until", times[0]]);
    assert!(until.stdout.starts_with("out1\n") && !until.stdout.contains("out2"), "{until:?}");
    // A service may get more tasks; a container that has ended says nothing more, and following it ends.
    let container = lab.orch_on("n1", &["ps", "-aq", "--filter", "name=two"]).ok();
    assert_eq!(lab.orch_on("n1", &["logs", "--follow", container.trim()]).stdout, "out1\nout2\ntail");

    let options =
        ["--log-opt", "labels=team", "--log-opt", "env=WHO", "--container-label", "team=a", "--env", "WHO=me"];
    service(&lab, "detailed", &options, "echo line");
    ended(&lab, "detailed");
    assert_eq!(lab.orch(&["service", "logs", "--raw", "--details", "detailed"]).stdout, "WHO=me,team=a line\n");
    assert_eq!(lab.orch(&["service", "logs", "--raw", "detailed"]).stdout, "line\n");

    following_ends_when_nothing_later_is_wanted(&lab);
    service(&lab, "none", &["--log-driver", "none"], "echo unheard");
    ended(&lab, "none");
    let refused = lab.orch(&["service", "logs", "none"]);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("configured logging driver does not support reading"), "{said}");
    assert!(refused.code == 1 && said.contains("the output of a task is missing"), "{refused:?}");

    let other = lab.orch(&["service", "create", "--log-driver", "syslog", "busybox"]);
    assert!(other.code == 1 && other.stderr.contains("logging driver \"syslog\" is not known"), "{}", other.stderr);
    if !Path::new("/run/systemd/journal/socket").exists() {
        service(&lab, "journal", &["--log-driver", "journald"], "true");
        refused_because(&lab, "journal", "this node has no systemd journal");
    }
    the_journal_gets_lines_with_fields(&lab);
}

/// Of a container that runs on, quietly, and of its service.
fn following_ends_when_nothing_later_is_wanted(lab: &Lab) {
    service(lab, "quiet", &[], "echo said; sleep 10000");
    let container = eventually("it has said something", || {
        let container = lab.orch(&["ps", "-q", "--filter", "name=quiet"]).result()?;
        let said = lab.orch(&["logs", container.trim()]).result()?;
        if said == "said\n" { Ok(container.trim().to_owned()) } else { Err(said) }
    });
    for of in [&["logs", container.as_str()][..], &["service", "logs", "--raw", "quiet"]] {
        let followed = |until: &str| {
            let args = [&["timeout", "30", "orch"], of, &["--follow", "--until", until]].concat();
            lab.exec("n1", &args).ok()
        };
        assert_eq!(followed("0s"), "said\n", "{of:?}");
        assert_eq!(followed("2020-01-01"), "", "{of:?}");
        let ahead = std::time::SystemTime::now() + Duration::from_secs(2);
        let ahead = ahead.duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs().to_string();
        assert_eq!(followed(&ahead), "said\n", "{of:?}");
    }
    let _ = lab.orch(&["service", "rm", "quiet"]).ok();
}

/// With a socket of ours where systemd's is.
fn the_journal_gets_lines_with_fields(lab: &Lab) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("journal")).expect("a folder");
    let journal = UnixDatagram::bind(folder.path().join("journal/socket")).expect("a socket");
    journal.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The node's mounts are its own.
    let bind = format!("mkdir -p /run/systemd && mount --bind {} /run/systemd", folder.path().display());
    let _ = lab.exec("n1", &["sh", "-c", &bind]).ok();
    let options = ["--log-driver", "journald", "--log-opt", "tag=t/{{.ImageName}}", "--log-opt", "labels=team"];
    let script = "echo out; echo err >&2; printf half";
    service(lab, "heard", &[&options[..], &["--container-label", "team=a"]].concat(), script);
    ended(lab, "heard");
    let mut buffer = vec![0; 1 << 16];
    let mut next = || {
        let len = journal.recv(&mut buffer).expect("an entry");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let entries = [next(), next(), next()];
    let id = task_id(lab, "heard");
    for (message, priority, partial) in [("out", 6, false), ("err", 3, false), ("half", 6, true)] {
        let own = |entry: &&String| entry.lines().any(|line| line == format!("MESSAGE={message}"));
        let entry = entries.iter().find(own).unwrap_or_else(|| panic!("{message}: {entries:?}"));
        let name = format!("CONTAINER_NAME=heard.1.{id}");
        let priority = format!("PRIORITY={priority}");
        for field in [name.as_str(), "CONTAINER_TAG=t/busybox", "TEAM=a", priority.as_str()] {
            assert!(entry.lines().any(|line| line == field), "{field}: {entry}");
        }
        assert_eq!(entry.contains("CONTAINER_PARTIAL_MESSAGE=true\n"), partial, "{entry}");
    }
}

fn refused_because(lab: &Lab, service: &str, why: &str) {
    eventually("the task says why", || {
        let tasks = lab.orch(&["service", "ps", "--no-trunc", service]).result()?;
        if tasks.contains(why) { Ok(()) } else { Err(tasks) }
    });
}

/// Answers of the neighbour, sorted.
fn latencies(lab: &Lab, url: &str, count: usize) -> Vec<Duration> {
    let script = format!(
        "for i in $(seq {count}); do curl -s -o /dev/null -w '%{{time_total}}\\n' --max-time 10 {url} || echo 10; sleep 0.01; done"
    );
    let text = lab.exec("client", &["sh", "-c", &script]).ok();
    let mut all: Vec<Duration> =
        text.lines().filter_map(|line| line.parse().ok()).map(Duration::from_secs_f64).collect();
    assert!(all.len() >= count, "{text}");
    all.sort_unstable();
    all
}

#[test]
fn a_flood_stays_within_its_files() {
    const SIZE: u64 = 200 << 10;
    let lab = Lab::up("log-flood", 1, 1);
    lab.import("busybox", "busybox", &[]);
    let serve = "mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";
    let publish = ["--publish", "8080:80"];
    service(&lab, "web", &publish, serve);
    lab.wait_replicas("web", "1/1");
    let url = format!("http://{}:8080/", lab.address("n1"));
    eventually("the neighbour answers", || lab.get("client", &url));
    let before = latencies(&lab, &url, 300);

    let limits = ["--log-opt", "max-size=200k", "--log-opt", "max-file=3"];
    service(&lab, "flood", &limits, "exec yes 'a line of the kind that a program in a hurry writes over and over'");
    lab.wait_replicas("flood", "1/1");
    let task = task_id(&lab, "flood");
    let host = lab.hosts().into_iter().find(|host| host["name"] == "n1").expect("n1");
    let folder = Path::new(host["data_dir"].as_str().expect("text")).join("worker/containers").join(&task);
    // By name: rotation goes on while the folder is read.
    let sizes = || -> BTreeMap<String, u64> {
        let files = fs::read_dir(&folder).expect("the container's folder").filter_map(Result::ok);
        let named = files.map(|file| (file.file_name().to_string_lossy().into_owned(), file.metadata()));
        let logs = named.filter(|(name, _)| name.starts_with("container.log"));
        logs.filter_map(|(name, meta)| Some((name, meta.ok()?.len()))).collect()
    };
    let names = ["container.log", "container.log.1", "container.log.2"];
    eventually("it has filled its files", || {
        let now = sizes();
        if names.iter().all(|name| now.contains_key(*name)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let started = Instant::now();
    let during = latencies(&lab, &url, 300);
    while started.elapsed() < Duration::from_secs(3) {
        let now = sizes();
        assert!(now.iter().all(|(name, &size)| names.contains(&name.as_str()) && size <= SIZE), "{now:?}");
    }
    // How much slower is for a quiet machine to say (tests/bench/flood); that it answers at all holds on any.
    let p99 = |all: &[Duration]| all[all.len() * 99 / 100];
    println!("p99 of the neighbour: {:?} before, {:?} during the flood", p99(&before), p99(&during));
    assert!(p99(&during) < Duration::from_secs(2), "{:?}", p99(&during));
    let last = lab.orch(&["service", "logs", "--raw", "-n", "1", "flood"]).ok();
    assert!(last.starts_with("a line of the kind"), "{last}");
}
