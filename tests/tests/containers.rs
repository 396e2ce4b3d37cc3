//! One-off containers, as the tutorials use them.

use std::{
    process::Child,
    time::{Duration, Instant},
};

use orch_tests::{Lab, eventually};

fn lab(name: &str) -> Lab {
    let lab = Lab::up(name, 1, 1);
    lab.import("busybox", "busybox", &[]);
    lab
}

fn status(lab: &Lab, name: &str) -> Result<String, String> {
    lab.orch(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name])
        .result()
        .map(|text| text.trim().to_owned())
}

#[test]
fn run_in_the_foreground() {
    let lab = lab("run");
    let run = |args: &[&str]| lab.orch(&[&["run", "--rm"][..], args].concat());
    assert_eq!(run(&["busybox", "echo", "hello"]).ok(), "hello\n");
    for (command, code, said) in [
        (&["sh", "-c", "echo to-stderr >&2; exit 42"][..], 42, "to-stderr"),
        (&["nosuch"], 127, "exec: \"nosuch\": executable file not found in $PATH"),
        (&["/etc/passwd"], 126, "exec: \"/etc/passwd\": permission denied"),
    ] {
        let outcome = run(&[&["busybox"], command].concat());
        assert_eq!(outcome.code, code, "{command:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{command:?}: {}", outcome.stderr);
    }
    for (flags, said) in [
        (&["--pull", "never", "nosuch"][..], "Unable to find image 'nosuch:latest' locally"),
        (&["--network", "web", "busybox", "true"], "network web not found"),
        (&["--name", "we b", "busybox", "true"], "Invalid container name (we b)"),
        (&["--restart", "always", "busybox"], "cannot specify both --restart and --rm"),
        (&["--sysctl", "net.nope=1", "busybox", "true"], "sysctl net.nope is none that this node's kernel has"),
        (&["-p", "192.0.2.1:80:80", "busybox", "true"], "no address 192.0.2.1"),
        (&["-p", "[fd00::77]:80:80", "busybox", "true"], "no address fd00::77"),
        (&["-p", "[::1]:80:80/sctp", "busybox", "true"], "80/sctp cannot be published on an address of IPv6"),
    ] {
        let outcome = run(flags);
        assert!(outcome.stderr.contains(said), "{flags:?}: {}", outcome.stderr);
        assert!(outcome.code != 0, "{flags:?}");
    }
    let flags = ["-w", "/tmp", "-e", "A=b", "-u", "1000:7", "-h", "box", "-l", "x=y", "--tmpfs", "/scratch:size=1m"];
    let more = ["--read-only", "--memory", "32m", "--entrypoint", "sh", "-v", "/srv/shared:/shared", "busybox", "-c"];
    let script = "pwd; echo $A; id -u; id -g; hostname; cat /shared/given; touch /scratch/x && echo wrote; touch /x";
    let _ = lab.exec("n1", &["sh", "-c", "mkdir -p /srv/shared && echo given > /srv/shared/given"]).ok();
    let seen = run(&[&flags[..], &more, &[script]].concat());
    assert_eq!(seen.stdout, "/tmp\nb\n1000\n7\nbox\ngiven\nwrote\n");
    assert!(seen.stderr.contains("Read-only file system"), "{}", seen.stderr);
    // One path, whatever is in it; empty: the image's entrypoint goes, and its command with it.
    let entry = r#"ENTRYPOINT ["/bin/sh","-c","echo \"ep:$0:$@\""]"#;
    lab.import("epsh", "busybox", &[entry, "CMD [\"cmd\"]"]);
    assert_eq!(run(&["epsh"]).stdout, "ep:cmd:\n");
    assert_eq!(run(&["--entrypoint", "", "epsh", "echo", "reset"]).stdout, "reset\n");
    let none = run(&["--entrypoint=", "epsh"]);
    assert_eq!((none.code, none.stderr.contains("no command specified")), (125, true), "{none:?}");
    let split = run(&["--entrypoint", "sh -c", "epsh", "echo split"]);
    assert_eq!((split.code, split.stderr.contains("sh -c")), (127, true), "{split:?}");
    // Standard input, to its end; more than any buffer.
    let input = vec![b'x'; 3 << 20];
    let counted = lab.exec_with_input("n1", &["orch", "run", "-i", "--rm", "busybox", "wc", "-c"], &input).ok();
    assert_eq!(counted.trim(), (3 << 20).to_string());
    let printed = run(&["busybox", "sh", "-c", "dd if=/dev/zero bs=1M count=8 2>/dev/null"]).ok();
    assert_eq!(printed.len(), 8 << 20);
    // The node's network comes with the names that the node knows.
    let own = lab.exec("n1", &["cat", "/etc/hosts"]).ok();
    let seen = run(&["--network", "host", "--add-host", "db:1.2.3.4", "busybox", "cat", "/etc/hosts"]).ok();
    assert!(seen.starts_with(own.trim_end()) && seen.ends_with("1.2.3.4 db\n"), "{own} became {seen}");
    // The node answers under the name that stands for it.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("index.html"), "here\n").expect("a page");
    let page = folder.path().to_str().expect("utf-8 path");
    let mut server = lab.spawn("n1", &["busybox", "httpd", "-f", "-p", "18099", "-h", page]);
    let fetch = ["--add-host", "host.docker.internal:host-gateway", "busybox", "wget", "-qO-"];
    eventually("the node answers", || {
        match run(&[&fetch[..], &["http://host.docker.internal:18099"]].concat()).result()? {
            said if said == "here\n" => Ok(()),
            other => Err(other),
        }
    });
    let _ = server.kill();
    let _ = server.wait();
    assert_eq!(run(&["--nosuch", "busybox"]).code, 125);
    assert_eq!(lab.orch(&["ps", "-aq"]).ok(), "", "--rm left something");
    commands_go_on_without_their_user(&lab);
}

/// What a command that counts has come to.
fn count(lab: &Lab, file: &str) -> Result<u32, String> {
    let text = lab.orch(&["exec", "keeper", "cat", file]).result()?;
    text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
}

fn goes_on(lab: &Lab, file: &str) {
    let before = eventually("it counts", || count(lab, file));
    eventually("it counts on", || match count(lab, file)? {
        now if now > before + 5 => Ok(()),
        now => Err(format!("{now} after {before}")),
    });
}

fn commands_go_on_without_their_user(lab: &Lab) {
    let _ = lab.orch(&["run", "-d", "--name", "keeper", "busybox", "sleep", "1000"]).ok();
    let counting = |file: &str| {
        format!(
            "trap \"echo > /hung-up\" HUP PIPE; \
             i=0; while :; do i=$((i+1)); echo $i; echo $i >&2; echo $i > /new; mv /new {file}; sleep 0.1; done"
        )
    };
    let detached = lab.orch(&["exec", "-d", "keeper", "sh", "-c", &counting("/detached")]);
    assert_eq!((detached.code, detached.stdout.as_str(), detached.stderr.as_str()), (0, "", ""));
    goes_on(lab, "/detached");
    // Neither does it need the worker.
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    goes_on(lab, "/detached");
    let missing = lab.orch(&["exec", "-d", "keeper", "nosuch"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    let nobody = lab.orch(&["exec", "-u", "nosuch", "keeper", "true"]);
    assert!(nobody.code == 126 && nobody.stderr.contains("unable to find user nosuch"), "{nobody:?}");
    let negative = lab.orch(&["logs", "--tail", "-1", "keeper"]);
    assert_eq!(negative.code, 0, "{negative:?}");

    // At a terminal, until the keys that leave it.
    let exec = format!("orch exec -it --detach-keys a,b keeper sh -c '{}'", counting("/left"));
    let left = lab.exec_with_input("n1", &["script", "-qec", &exec, "/dev/null"], b"ab");
    assert_eq!(left.code, 0, "{left:?}");
    goes_on(lab, "/left");
    assert!(lab.orch(&["exec", "keeper", "ls", "/hung-up"]).refused().contains("No such file"));
    let _ = lab.orch(&["rm", "-f", "keeper"]).ok();
}

#[test]
fn what_the_image_says_is_its_containers() {
    let lab = Lab::up("said", 1, 1);
    let changes = ["LABEL a.b=image x=image", "ENV SP=set", "VOLUME /anonymous", "EXPOSE 80"];
    lab.import("labelled", "busybox", &changes);
    let run = |args: &[&str]| lab.orch(&[&["run", "-d"][..], args].concat()).ok().trim().to_owned();
    let first = run(&["--name", "first", "-l", "x=own", "-p", "8080:80", "labelled", "sleep", "1000"]);
    let _ = run(&["--name", "second", "-v", "named:/named", "labelled", "sleep", "1000"]);
    let service =
        ["service", "create", "-d", "--name", "busybox", "--container-label", "x=service", "labelled", "sleep", "999"];
    let _ = lab.orch(&service).ok();
    lab.wait_replicas("busybox", "1/1");
    let names = |filters: &[&str]| {
        let flags: Vec<&str> = filters.iter().flat_map(|filter| ["-f", *filter]).collect();
        let names = lab.orch(&[&["ps", "-a", "--format", "{{.Names}}"][..], &flags].concat()).ok();
        let mut names: Vec<String> =
            names.lines().map(|name| name.split('.').next().unwrap_or_default().into()).collect();
        names.sort_unstable();
        names.join(" ")
    };
    for (filters, want) in [
        (&["label=a.b"][..], "busybox first second"),
        (&["label=a.b=image", "label=x=own"], "first"),
        (&["label=x=service", "label=com.docker.swarm.service.name=busybox"], "busybox"),
        (&["is-task=false"], "first second"),
        (&["since=first", "is-task=0"], "second"),
        (&["before=second"], "first"),
        (&["publish=8000-8100/tcp"], "first"),
        (&["expose=80", "is-task=false"], "first second"),
        (&["expose=80/udp"], ""),
        (&["volume=named"], "second"),
    ] {
        assert_eq!(names(filters), want, "{filters:?}");
    }
    let format = "{{.Label \"a.b\"}} {{.Label \"x\"}} {{.LocalVolumes}} {{.Networks}}";
    let shown = lab.orch(&["ps", "--filter", "name=second", "--format", format]).ok();
    assert_eq!(shown, "image image 2 bridge\n");
    let sized = lab.orch(&["ps", "-s", "--filter", "name=second"]).ok();
    assert!(sized.contains("SIZE") && sized.contains(" (virtual "), "{sized}");
    for (filter, said) in
        [("status=bogus", "invalid filter status=bogus"), ("since=nosuch", "No such container: nosuch")]
    {
        let refused = lab.orch(&["ps", "--filter", filter]).refused();
        assert!(refused.contains(said), "{refused}");
    }
    let labels = lab.orch(&["inspect", "-f", "{{json .Config.Labels}}", "first"]).ok();
    assert_eq!(labels, "{\"a.b\":\"image\",\"x\":\"own\"}\n");

    // A variable that the user's shell does not have takes the image's away, in services too.
    let show = ["labelled", "sh", "-c", "echo ${SP-unset}"];
    assert_eq!(lab.orch(&[&["run", "--rm", "-e", "SP"][..], &show].concat()).ok(), "unset\n");
    assert_eq!(lab.orch(&[&["run", "--rm"][..], &show].concat()).ok(), "set\n");

    // By any name, of any kind, in Docker's order: an image before a service.
    lab.import("busybox", "busybox", &[]);
    let inspected = lab.orch(&["inspect", "first", "labelled", "nosuch", "named", "bridge", "n1"]);
    assert!(inspected.code == 1 && inspected.stderr.contains("no such object: nosuch"), "{inspected:?}");
    let all: serde_json::Value = serde_json::from_str(&inspected.stdout).expect("one array");
    assert_eq!(all.as_array().map(Vec::len), Some(5), "{all}");
    assert_eq!((&all[0]["Id"], &all[2]["Name"], &all[3]["Name"]), (&first.into(), &"named".into(), &"bridge".into()));
    let kind = |args: &[&str]| lab.orch(&[&["inspect"][..], args].concat());
    assert!(kind(&["busybox"]).ok().contains("RepoTags"));
    assert_eq!(kind(&["--type", "service", "-f", "{{.Spec.Name}}", "busybox"]).ok(), "busybox\n");
    assert!(kind(&["--type", "volume", "first"]).refused().contains("no such volume: first"));
    let container = lab.orch(&["ps", "-q", "-f", "is-task=true"]).ok();
    assert!(kind(&["-f", "{{.Name}}", container.trim()]).ok().starts_with("/busybox.1."));
}

#[test]
fn a_container_lives_on_its_own() {
    let lab = lab("containers");
    let script = "echo started; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www";
    let ports = ["-p", "8080", "-p", "18080:8080", "-p", "[::1]:18081:8080"];
    let run = [&["run", "-d", "--name", "web", "-v", "/www"], &ports[..], &["busybox", "sh", "-c", script]].concat();
    let id = lab.orch(&run).ok();
    assert_eq!(id.trim().len(), 64);
    let taken = lab.orch(&["run", "-d", "--name", "web", "busybox", "true"]);
    assert_eq!(taken.code, 125);
    let want = format!("The container name \"/web\" is already in use by container \"{}\"", id.trim());
    assert!(taken.stderr.contains(&want), "{}", taken.stderr);
    let clash = lab.orch(&["run", "-d", "--rm", "-p", "18080:1", "busybox", "sleep", "9"]);
    assert_eq!(clash.code, 125);
    let want = "Bind for 0.0.0.0:18080 failed: port is already allocated";
    assert!(clash.stderr.contains(want), "{}", clash.stderr);

    // Of a range the first that is free: the second is taken on one address.
    let range = ["run", "-d", "--name", "next", "-p", "18080-18083:8080", "busybox", "sleep", "99"];
    let _ = lab.orch(&range).ok();
    assert!(lab.orch(&["port", "next"]).ok().starts_with("8080/tcp -> 0.0.0.0:18082\n"));
    let _ = lab.orch(&["rm", "-f", "next"]).ok();

    // The tutorials' way to find a port.
    let format = r#"{{(index (index .NetworkSettings.Ports "8080/tcp") 0).HostPort}}"#;
    let port = lab.orch(&["inspect", "--format", format, "web"]).ok();
    let address = lab.address("n1");
    for port in [port.trim(), "18080"] {
        let seen = eventually("it answers", || lab.get("client", &format!("http://{address}:{port}/")));
        assert_eq!(seen, "hello\n");
    }
    let ports = lab.orch(&["port", "web"]).ok();
    let all = ["8080/tcp -> 0.0.0.0:18080\n", "8080/tcp -> [::]:18080\n", "8080/tcp -> [::1]:18081\n"].concat();
    assert!(ports.ends_with(&all), "{ports}");
    for port in [18080, 18081] {
        assert_eq!(lab.get("n1", &format!("http://[::1]:{port}/")).as_deref(), Ok("hello\n"));
    }
    assert!(lab.get("client", &format!("http://{address}:18081/")).is_err(), "answers on ::1 alone");
    let clash = lab.orch(&["run", "--rm", "-p", "[::1]:18081:1", "busybox", "true"]).refused();
    assert!(clash.contains("Bind for [::1]:18081 failed: port is already allocated"), "{clash}");
    assert_eq!(lab.orch(&["logs", "web"]).ok(), "started\n");
    assert_eq!(lab.orch(&["exec", "web", "cat", "/www/index.html"]).ok(), "hello\n");
    assert_eq!(lab.exec_with_input("n1", &["orch", "exec", "-i", "web", "cat"], b"through").ok(), "through");
    assert!(lab.orch(&["rm", "web"]).refused().contains("cannot remove a running container"));

    // What it wrote stays.
    let _ = lab.orch(&["exec", "web", "sh", "-c", "echo kept > /root/file; sync"]).ok();
    let _ = lab.orch(&["stop", "-t", "1", "web"]).ok();
    assert_eq!(lab.orch(&["ps", "-q"]).ok(), "");
    assert!(status(&lab, "web").is_ok_and(|status| status.starts_with("exited")));
    let _ = lab.orch(&["start", "web"]).ok();
    assert_eq!(lab.orch(&["exec", "web", "cat", "/root/file"]).ok(), "kept\n");
    let _ = lab.orch(&["restart", "-t", "1", "web"]).ok();
    // It leads to the container's new address.
    let again = || lab.get("n1", "http://[::1]:18081/");
    assert_eq!(eventually("it answers", again), "hello\n");
    assert_eq!(lab.orch(&["exec", "web", "cat", "/root/file"]).ok(), "kept\n");
    assert!(lab.orch(&["rename", "web", ""]).refused().contains("may be empty"));
    let _ = lab.orch(&["rename", "web", "site"]).ok();
    assert_eq!(lab.orch(&["kill", "site"]).ok(), "site\n");
    assert_eq!(lab.orch(&["wait", "site"]).ok(), "137\n");
    let used = lab.orch(&["image", "rm", "busybox"]).refused();
    assert!(used.contains("is using its referenced image") && used.contains("orch rm"), "{used}");
    // The content stays for the container.
    assert_eq!(lab.orch(&["image", "rm", "-f", "busybox"]).ok(), "Untagged: busybox:latest\n");
    let _ = lab.orch(&["start", "site"]).ok();
    let _ = lab.orch(&["kill", "site"]).ok();
    assert_eq!(lab.orch(&["wait", "site"]).ok(), "137\n");
    let pruned = lab.orch(&["container", "prune", "-f"]).ok();
    assert!(pruned.contains(id.trim()), "{pruned}");
    assert_eq!(lab.orch(&["ps", "-aq"]).ok(), "");
    for command in [
        &["start", "site"][..],
        &["exec", "site", "true"],
        &["logs", "site"],
        &["inspect", "--type", "container", "site"],
    ] {
        let refused = lab.orch(command).refused();
        assert!(refused.to_lowercase().contains("no such container: site"), "{command:?}: {refused}");
    }
    let gone = lab.orch(&["rm", "-f", "site"]);
    assert_eq!((gone.code, gone.stdout.as_str(), gone.stderr.as_str()), (0, "", "No such container: site\n"));
}

#[test]
fn restart_policies_hold_across_the_worker() {
    let lab = lab("restarts");
    let run = |name: &str, policy: &str, script: &str| {
        let _ = lab.orch(&["run", "-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", script]).ok();
    };
    run("always", "always", "exec sleep 10000");
    run("stopped", "unless-stopped", "exec sleep 10000");
    run("thrice", "on-failure:2", "exit 7");
    run("done", "on-failure", "exit 0");
    run("counted", "on-failure:2", "sleep 3; exit 7");
    run("plain", "no", "exec sleep 10000");
    let started = |name: &str| lab.orch(&["inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", name]).result();
    let before = started("plain").expect("it runs");
    eventually("on-failure gives up", || match status(&lab, "thrice")?.as_str() {
        "exited 7" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(lab.orch(&["inspect", "-f", "{{.RestartCount}}", "thrice"]).ok(), "2\n");
    assert_eq!(status(&lab, "done"), Ok("exited 0".to_owned()));
    let _ = lab.orch(&["exec", "always", "sh", "-c", "kill -9 -1 2>/dev/null; kill 1; true"]);
    let _ = lab.orch(&["stop", "-t", "0", "stopped"]).ok();

    let count = |name: &str| lab.orch(&["inspect", "-f", "{{.RestartCount}}", name]).result();
    eventually("it has been restarted once", || match count("counted")?.as_str() {
        "1\n" => Ok(()),
        other => Err(other.to_owned()),
    });
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    eventually("the worker is back", || lab.orch(&["ps", "-q"]).result());
    // Untouched: found again, not started again.
    assert_eq!(started("plain"), Ok(before));
    assert_eq!(status(&lab, "stopped"), Ok("exited 137".to_owned()));
    // The next worker counts on, and who starts it by hand begins anew.
    eventually("on-failure gives up across the worker", || match status(&lab, "counted")?.as_str() {
        "exited 7" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(count("counted"), Ok("2\n".to_owned()));
    let _ = lab.orch(&["start", "counted"]).ok();
    assert_eq!(count("counted"), Ok("0\n".to_owned()));
    let _ = lab.orch(&["rm", "-f", "counted"]).ok();
    // What ends while no worker looks is noticed by the next one.
    let pid = lab.orch(&["inspect", "-f", "{{.State.Pid}}", "always"]).ok();
    let _ = lab.command("pause", &["n1"]);
    let _ = lab.command("resume", &["n1"]);
    let _ = lab.exec("n1", &["kill", "-9", pid.trim()]);
    eventually("it runs again", || {
        let now = lab.orch(&["inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "always"]).result()?;
        let running = now.trim().ends_with("running") && !now.starts_with(&format!("{} ", pid.trim()));
        if running { Ok(()) } else { Err(now) }
    });
}

fn eventually_is(lab: &Lab, name: &str, want: &str) {
    eventually(&format!("{name} is {want}"), || match status(lab, name)? {
        now if now == want => Ok(()),
        other => Err(other),
    });
}

/// As Docker does, whatever becomes of who asks.
#[test]
fn stopping_and_signals() {
    let lab = lab("stopping");
    let run = |flags: &[&str], script: &str| {
        let _ = lab.orch(&[&["run", "-d"][..], flags, &["busybox", "sh", "-c", script]].concat()).ok();
    };
    const FOREVER: &str = "while :; do sleep 0.1; done";

    // Images of systemd stop by a real-time signal.
    run(&["--name", "systemd", "--stop-signal", "SIGRTMIN+3"], &format!("trap 'exit 5' 37; echo up; {FOREVER}"));
    let is_up = |name: &str| match lab.orch(&["logs", name]).result()? {
        text if text.contains("up") => Ok(()),
        other => Err(other),
    };
    eventually("it is up", || is_up("systemd"));
    let _ = lab.orch(&["stop", "-t", "20", "systemd"]).ok();
    assert_eq!(status(&lab, "systemd"), Ok("exited 5".to_owned()));
    run(&["--name", "deaf", "--stop-signal", "SIGRTMIN+3"], FOREVER);
    let _ = lab.orch(&["stop", "-t", "1", "deaf"]).ok();
    assert_eq!(status(&lab, "deaf"), Ok("exited 137".to_owned()));

    // Several at once, and told of in the order given.
    run(&["--name", "slower"], FOREVER);
    run(&["--name", "prompt"], &format!("trap 'exit 5' TERM; echo up; {FOREVER}"));
    eventually("it is up", || is_up("prompt"));
    let stop = lab.spawn("n1", &["orch", "stop", "-t", "100", "slower", "prompt"]);
    eventually_is(&lab, "prompt", "exited 5");
    let _ = lab.orch(&["kill", "slower"]).ok();
    let said = stop.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "slower\nprompt\n");
    run(&["--name", "init", "--init"], "exec sleep 1000");
    for (signal, code) in [("RTMIN+3", "165\n"), ("SIGRTMAX", "192\n"), ("63", "191\n")] {
        let _ = lab.orch(&["start", "init"]).ok();
        eventually("it sleeps", || match lab.orch(&["exec", "init", "ps"]).result()? {
            text if text.lines().any(|line| line.ends_with(" sleep 1000")) => Ok(()),
            other => Err(other),
        });
        let _ = lab.orch(&["kill", "-s", signal, "init"]).ok();
        assert_eq!(lab.orch(&["wait", "init"]).ok(), code, "{signal}");
    }

    // Nobody waits for the stop, and it is finished.
    let deaf = format!("trap 'echo told' TERM; {FOREVER}");
    run(&["--name", "left", "--restart", "always"], &deaf);
    let given_up = lab.exec("n1", &["timeout", "0.7", "orch", "stop", "-t", "2", "left"]);
    assert_ne!(given_up.code, 0);
    eventually_is(&lab, "left", "exited 137");
    let _ = lab.orch(&["start", "left"]).ok();
    let started = || lab.orch(&["inspect", "-f", "{{.State.StartedAt}}", "left"]).result();
    let before = started();
    let _ = lab.exec("n1", &["timeout", "0.7", "orch", "restart", "-t", "2", "left"]);
    eventually("it is started again", || match (started(), status(&lab, "left")?.as_str()) {
        (now, state) if now != before && state.starts_with("running") => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // Others need not wait for it either.
    run(&["--name", "slow"], &deaf);
    let mut stop = lab.spawn("n1", &["orch", "stop", "-t", "100", "slow"]);
    eventually("it is told", || match lab.orch(&["logs", "slow"]).result()? {
        text if text.contains("told") => Ok(()),
        other => Err(other),
    });
    let began = Instant::now();
    let _ = lab.orch(&["pause", "slow"]).ok();
    let _ = lab.orch(&["unpause", "slow"]).ok();
    let _ = lab.orch(&["rm", "-f", "slow"]).ok();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(stop.wait().is_ok_and(|status| status.success()));

    // Removals whose clients go: each is done or was not asked for.
    for n in 0..12 {
        run(&["--name", &format!("many{n}")], "exec sleep 1000");
    }
    let script = "for n in $(seq 0 11); do timeout 0.0$((n / 2 + 1)) orch rm -f many$n & done; wait; true";
    let _ = lab.exec("n1", &["sh", "-c", script]).ok();
    eventually("nothing is half removed", || {
        let states = lab.orch(&["ps", "-a", "--filter", "name=many", "--format", "{{.State}}"]).result()?;
        if states.lines().all(|state| state == "running") { Ok(()) } else { Err(states) }
    });

    // Any signal of the user's that ends a container is a stop, unless another one is its stop signal.
    let leaves = format!("trap 'exit 4' HUP; echo up; {FOREVER}");
    run(&["--name", "stays", "--restart", "always"], &leaves);
    run(&["--name", "returns", "--restart", "always", "--stop-signal", "TERM"], &leaves);
    eventually("both have their traps", || is_up("stays").and_then(|()| is_up("returns")));
    let _ = lab.orch(&["kill", "-s", "HUP", "stays", "returns"]).ok();
    let restarts = |name: &str| lab.orch(&["inspect", "-f", "{{.RestartCount}}", name]).result();
    eventually("it is restarted", || match restarts("returns")?.as_str() {
        "1\n" => Ok(()),
        other => Err(other.to_owned()),
    });
    // One that is to be started again is "restarting" from the moment of its end.
    eventually("the other has ended", || match status(&lab, "stays")?.as_str() {
        "exited 4" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(restarts("stays"), Ok("0\n".to_owned()));

    // A command is over when it ends, also when it leaves something behind.
    for tty in [false, true] {
        let began = Instant::now();
        let exec = ["orch", "exec", "returns", "sh", "-c", "sleep 100 & echo hi; exit 3"];
        let exec = if tty {
            vec!["script", "-qec", "orch exec -t returns sh -c 'sleep 100 & echo hi; exit 3'", "/dev/null"]
        } else {
            exec.to_vec()
        };
        let said = lab.exec("n1", &exec);
        assert_eq!((said.code, said.stdout.trim_end()), (3, "hi"), "{said:?}");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }

    // What the command is sent is the program's, with a terminal too; one that only looks on puts the terminal back.
    let typed = |command: &str| {
        let script = format!("echo $$ >/run/orch/typed; exec orch {command}");
        lab.spawn("n1", &["script", "-qec", &format!("sh -c '{script}'; stty -a"), "/dev/null"])
    };
    let sent = |signal: &str| lab.exec("n1", &["sh", "-c", &format!("kill -{signal} $(cat /run/orch/typed)")]).ok();
    let said = |program: Child| {
        let output = program.wait_with_output().expect("its output");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = typed(
        r#"run -it --name heeds busybox sh -c "trap \"echo got; exit 7\" USR1; echo up; while :; do sleep 0.1; done""#,
    );
    eventually("it has its trap", || is_up("heeds"));
    let _ = sent("USR1");
    assert!(said(first).contains("got"));
    assert_eq!(status(&lab, "heeds"), Ok("exited 7".to_owned()));
    // Also while more is typed than it takes.
    let full = r#"yes | sh -c 'echo $$ >/run/orch/typed; exec orch run -i --name full busybox sh -c "trap \"exit 7\" USR1; echo up; while :; do sleep 0.1; done"'"#;
    let full = lab.spawn("n1", &["sh", "-c", full]);
    eventually("it has its trap", || is_up("full"));
    std::thread::sleep(Duration::from_secs(1));
    let _ = sent("USR1");
    let _ = said(full);
    assert_eq!(status(&lab, "full"), Ok("exited 7".to_owned()));
    // The same of a command, here and by way of a manager.
    let _ = lab.orch(&["service", "create", "-q", "--name", "served", "busybox", "sleep", "1000"]).ok();
    lab.wait_replicas("served", "1/1");
    for target in ["returns", "served.1"] {
        let file = format!("/run/orch/said-{target}");
        let full = format!(
            r#"yes | sh -c 'echo $$ >/run/orch/typed; exec orch exec -i {target} sh -c "trap \"exit 9\" TERM; echo up; while :; do sleep 0.1; done"' >{file}"#
        );
        let mut full = lab.spawn("n1", &["sh", "-c", &full]);
        eventually("it has its trap", || {
            let said = lab.exec("n1", &["cat", &file]).result()?;
            if said.contains("up") { Ok(()) } else { Err(said) }
        });
        let _ = sent("TERM");
        assert_eq!(full.wait().expect("its end").code(), Some(9), "{target}");
        let all = format!("seq 1000000 | orch exec -i {target} tail -n 1");
        assert_eq!(lab.exec("n1", &["sh", "-c", &all]).ok(), "1000000\n", "{target}: all of it arrives");
    }
    let second = typed(r#"exec -it returns sh -c "echo begun; sleep 1000""#);
    eventually("the command runs", || {
        let seen = lab.orch(&["top", "returns"]).result()?;
        if seen.contains("sleep 1000") { Ok(()) } else { Err(seen) }
    });
    let _ = sent("TERM");
    let left = said(second);
    assert!(left.contains(" icanon") && left.contains(" echo "), "{left}");
}
