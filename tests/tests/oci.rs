//! What a container sees, beside what it sees when runc runs the same bundle; what `orch run` can ask of the kernel.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use orch_tests::{Lab, eventually};
use serde_json::{Value, json};

/// Prints a line `key: value` for everything that it can find out about itself.
const PROBE: &str = include_str!("oci/probe.sh");

/// Where the two differ, and why; docs/containers.md has the same table.
const DIFFERENT: [(&str, &str); 3] = [
    ("cgroup", "each has its own; runc also makes one in hierarchies that control nothing (systemd's, version 2)"),
    ("fd 0", "runc reads from the test's pipe"),
    ("status SigIgn", "runc passes on what its caller ignores; a container of Orch's ignores nothing"),
];

fn lab(name: &str) -> Lab {
    let lab = Lab::up(name, 1, 1);
    lab.import("busybox", "busybox", &[]);
    lab
}

fn seen(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(": ")) {
        all.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    all
}

/// The bundle as runc needs it: the capabilities that the shim keeps for itself until the last moment taken away, the
/// system call filter, which the shim loads itself, named, and another control group.
fn for_runc(mut spec: Value, caps: u64, args: &[&str]) -> Value {
    const NAMES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
        NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
        SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE \
        AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
        CHECKPOINT_RESTORE";
    let names = NAMES.split_whitespace().enumerate().filter(|(n, _)| caps >> n & 1 == 1);
    let names: Vec<String> = names.map(|(_, name)| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(names);
    }
    spec["process"]["args"] = json!(args);
    let cgroup = format!("{}-runc", spec["linux"]["cgroupsPath"].as_str().expect("a cgroup"));
    spec["linux"]["cgroupsPath"] = json!(cgroup);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
    });
    for mount in spec["mounts"].as_array_mut().expect("mounts") {
        if mount["destination"].as_str().is_some_and(|target| target.starts_with("/sys/fs/cgroup/")) {
            mount["source"] = json!(format!("{}-runc", mount["source"].as_str().expect("a source")));
        }
    }
    spec
}

#[test]
fn a_container_sees_what_runc_shows_it() {
    assert!(Command::new("runc").arg("--version").output().is_ok(), "runc is missing: install the package runc");
    let lab = lab("oci");
    let shared = Path::new("/tmp").join(format!("orch-oci-{}", std::process::id()));
    fs::create_dir_all(shared.join("bundle")).expect("a folder");
    fs::write(shared.join("probe.sh"), PROBE).expect("the probe");
    let bind = format!("{}:/probe:ro", shared.display());
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "77", "--ulimit", "nofile=1000:2000"];
    let rights =
        ["--cap-add", "NET_ADMIN", "--cap-drop", "MKNOD", "--sysctl", "kernel.msgmax=9000", "--device", "/dev/fuse"];
    let rest = ["-e", "A=b", "-w", "/tmp", "--tmpfs", "/t", "-v", "/anon", "-v", &bind, "--oom-score-adj", "100"];
    let command = ["busybox", "sh", "-c", "exec sh /probe/probe.sh | (cat; echo 'end: '; sleep 1000)"];
    let run = [&["run", "-d", "--name", "probed"][..], &limits, &rights, &rest, &command].concat();
    let _ = lab.orch(&run).ok();
    let ours = eventually("the probe has ended", || {
        let text = lab.orch(&["logs", "probed"]).result()?;
        if text.ends_with("end: \n") { Ok(text) } else { Err(text) }
    });

    // The same bundle, while the container holds its network and its root.
    let find = "grep -l /probe/probe.sh /run/orch/shim/*/bundle/config.json";
    let bundle = lab.exec("n1", &["sh", "-c", find]).ok();
    let read = |path: &str| -> Value {
        serde_json::from_str(&lab.exec("n1", &["cat", path]).ok()).expect("what the worker wrote is JSON")
    };
    let shim = read(&bundle.trim().replace("bundle/config.json", "config.json"));
    let caps = shim["caps"].as_u64().expect("capabilities");
    let spec = for_runc(read(bundle.trim()), caps, &["sh", "-c", "exec sh /probe/probe.sh | cat"]);
    fs::write(shared.join("bundle/config.json"), spec.to_string()).expect("the bundle");
    let cgroup = spec["linux"]["cgroupsPath"].as_str().expect("a cgroup");
    let script = format!(
        "cd {0}; for h in /sys/fs/cgroup/*; do mkdir -p $h/{cgroup} 2>/dev/null; done; \
         runc --root {0}/state run -b bundle probe; code=$?; \
         for h in /sys/fs/cgroup/*; do rmdir $h/{cgroup} 2>/dev/null; done; exit $code",
        shared.display()
    );
    let theirs = lab.exec_with_input("n1", &["sh", "-c", &script], b"").ok();
    let _ = lab.orch(&["rm", "-f", "-v", "probed"]).ok();
    fs::remove_dir_all(&shared).expect("cleaning up");

    let (ours, mut theirs) = (seen(&ours), seen(&theirs));
    theirs.insert("end".to_owned(), vec![String::new()]);
    assert!(ours.len() > 80, "the probe saw little: {ours:?}");
    let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differ: Vec<String> = keys
        .into_iter()
        .filter(|key| !DIFFERENT.iter().any(|(known, _)| known == key) && ours.get(*key) != theirs.get(*key))
        .map(|key| format!("{key}:\n  orch {:?}\n  runc {:?}", ours.get(key), theirs.get(key)))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    // What must be so in both.
    let one = |key: &str| ours.get(key).map(|values| values.join(" ")).unwrap_or_default();
    assert_eq!(one("status CapEff").trim(), "00000000a00435fb");
    assert_eq!((one("status Seccomp").trim(), one("status NoNewPrivs").trim()), ("2", "0"));
    assert_eq!((one("oom_score_adj").as_str(), one("sysctl kernel/msgmax").as_str()), ("100", "9000"));
}

#[test]
fn the_kernel_does_what_was_asked() {
    let lab = lab("ociasked");
    let run = |args: &[&str]| lab.orch(&[&["run", "--rm"][..], args].concat());
    let sh = |flags: &[&str], script: &str| run(&[flags, &["busybox", "sh", "-c", script]].concat());
    for (flags, script, want) in [
        (
            &["--init"][..],
            "cat /proc/1/comm; sh -c 'sleep 0.1 & exit' & wait; sleep 0.3; set -- /proc/[0-9]*; echo $#",
            "init\n2\n",
        ),
        (&["--init"], "exit 9", ""),
        (&["--shm-size", "1g"], "df -k /dev/shm | awk 'END {print $2}'", "1048576\n"),
        (&["--security-opt", "no-new-privileges"], "grep NoNew /proc/self/status | cut -f2", "1\n"),
        (&["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status | cut -f2", "0\n"),
        (&["--privileged"], "mount -t tmpfs x /tmp && echo 1 > /proc/sys/kernel/msgmax && ls /dev/kmsg", "/dev/kmsg\n"),
        (
            &["--network", "none"],
            "ip -o -4 addr | awk '{print $2, $4}'; ping -c1 -W2 127.0.0.1 > /dev/null && echo up",
            "lo 127.0.0.1/8\nup\n",
        ),
        (
            &["--tmpfs", "/t:size=64k,mode=700,exec"],
            "grep ' /t ' /proc/mounts | cut -d' ' -f4",
            "rw,nosuid,nodev,relatime,size=64k,mode=700\n",
        ),
        (&["--group-add", "55", "-u", "nobody"], "id -G", "65534 55\n"),
        (&["--cap-drop", "ALL", "--cap-add", "KILL"], "grep CapEff /proc/self/status | cut -f2", "0000000000000020\n"),
        (&["--device", "/dev:/dev/there:r"], "exec 3< /dev/there/zero && ls /dev/there/null", "/dev/there/null\n"),
        (&["--device", "/dev/fuse"], "exec 3<>/dev/fuse && echo opened", "opened\n"),
        (&["--device", "/dev/fuse:/srv/fuse"], "exec 3<>/srv/fuse && echo opened", "opened\n"),
        (&["--device", "/dev/fuse:/srv/fuse"], "chmod 600 /srv/fuse 2>/dev/null || echo kept", "kept\n"),
        (&["--pid", "host", "-v", "/proc:/host:ro"], "[ $$ != 1 ] && readlink /proc/self/ns/pid | grep -c pid", "1\n"),
        (&["--uts", "host"], "[ $(hostname) = $(cat /proc/sys/kernel/hostname) ] && echo same", "same\n"),
        (&["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn", "100\n200\n"),
        (&["--cpu-shares", "512", "--memory-reservation", "8m"], "echo ok", "ok\n"),
    ] {
        let outcome = sh(flags, script);
        assert_eq!(outcome.stdout, want, "{flags:?}: {}", outcome.stderr);
    }
    assert_eq!(sh(&["--init"], "exit 9").code, 9);
    assert_eq!(run(&["--init", "busybox", "nosuch"]).code, 127);
    for (flags, said) in [
        (&["--security-opt", "nope"][..], "invalid --security-opt \"nope\""),
        (&["--tmpfs", "/t:nope"], "invalid tmpfs option \"nope\""),
        (&["--device", "/dev/nope"], "/dev/nope"),
        (&["--pids-limit", "1"], "a limit of 1 process is too small"),
        (&["-v", "/tmp:/proc/foo"], "\"/proc/foo\" cannot be mounted because it is inside /proc"),
        (&["-v", "/etc/passwd:/etc"], "cannot mount \"/etc/passwd\", which is a file, on \"/etc\", which is a folder"),
        (&["--memory", "1k"], "Minimum memory limit allowed is 6MB"),
        (&["--sysctl", "kernel.panic=7"], "kernel.panic"),
        (&["--pid", "container:nobody"], "No such container: nobody"),
    ] {
        let outcome = run(&[flags, &["busybox", "true"]].concat());
        assert!(outcome.stderr.contains(said) && outcome.code != 0, "{flags:?}: {} {}", outcome.code, outcome.stderr);
    }
    let said = lab.orch(&["create", "--log-opt", "tag={{", "busybox"]).refused();
    assert!(said.contains("log opt tag: \"{{\" is not"), "{said}");

    // Out of memory is called that.
    let killed = lab.orch(&["run", "--name", "greedy", "--memory", "16m", "busybox", "tail", "/dev/zero"]);
    assert_eq!(killed.code, 137);
    let state = lab.orch(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "greedy"]).ok();
    assert_eq!(state, "true 137\n");
    // Also of a container that outlives it, such as a database that loses a worker.
    let survivor = ["sh", "-c", "tail /dev/zero; echo survived; exec sleep 1000"];
    let _ =
        lab.orch(&[&["run", "-d", "--name", "survivor", "--memory", "16m", "busybox"], &survivor[..]].concat()).ok();
    eventually("the kernel kills one of two", || match lab.orch(&["logs", "survivor"]).result()? {
        said if said.contains("survived") => Ok(()),
        other => Err(other),
    });
    let state = lab.orch(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.Running}}", "survivor"]).ok();
    assert_eq!(state, "true true\n");
    let _ = lab.orch(&["rm", "-f", "survivor"]).ok();

    // The stop signal of the user; an init that passes it on.
    let _ = lab
        .orch(&[
            "run",
            "-d",
            "--init",
            "--name",
            "stops",
            "--stop-signal",
            "USR1",
            "busybox",
            "sh",
            "-c",
            "trap 'exit 5' USR1; while :; do sleep 0.1; done",
        ])
        .ok();
    let _ = lab.orch(&["stop", "stops"]).ok();
    assert_eq!(lab.orch(&["wait", "stops"]).ok(), "5\n");
}

#[test]
fn a_running_container_is_looked_at_and_changed() {
    let lab = lab("ocilive");
    let script = "mkdir /opt; touch /new; echo changed >> /etc/passwd; rm /etc/group; i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done";
    let _ = lab.orch(&["run", "-d", "--name", "live", "--memory", "32m", "busybox", "sh", "-c", script]).ok();
    let count = || lab.orch(&["exec", "live", "cat", "/count"]).result();
    let first = eventually("it counts", count);
    let refused = |args: &[&str]| lab.orch(args).refused();
    let _ = lab.orch(&["exec", "live", "touch", "/dev/shm/shared"]).ok();
    let beside = ["run", "--rm", "--pid", "container:live", "--ipc", "container:live", "busybox"];
    let seen = lab.orch(&[&beside[..], &["sh", "-c", "ls /dev/shm; tr '\\0' ' ' </proc/1/cmdline"]].concat()).ok();
    assert!(seen.starts_with("shared\nsh -c mkdir /opt;"), "{seen}");

    let _ = lab.orch(&["pause", "live"]).ok();
    assert!(refused(&["pause", "live"]).contains("is already paused"));
    assert!(refused(&["exec", "live", "true"]).contains("is paused, unpause the container before exec"));
    assert!(lab.orch(&["ps"]).ok().contains("(Paused)"));
    assert_eq!(lab.orch(&["inspect", "-f", "{{.State.Status}} {{.State.Paused}}", "live"]).ok(), "paused true\n");
    let _ = lab.orch(&["unpause", "live"]).ok();
    assert!(refused(&["unpause", "live"]).contains("is not paused"));
    eventually("it counts on", || count().and_then(|now| if now == first { Err(now) } else { Ok(()) }));

    let refused = lab.orch(&["container", "update", "--memory", "48m", "--cpus", "0.001", "live"]).refused();
    assert!(refused.contains("Range of CPUs is from 0.01 to "), "{refused}");
    // Limits that do not fit each other are refused, also of a container that does not run: it could not be started then.
    let _ = lab.orch(&["create", "--name", "resting", "--memory", "32m", "busybox", "true"]).ok();
    for (flags, said) in [
        (&["--memory", "1m"][..], "Minimum memory limit allowed is 6MB"),
        (&["--memory", "64m", "--memory-swap", "32m"], "memoryswap limit should be larger"),
        (&["--memory-swap", "16m"], "memoryswap limit should be larger"),
        (&["--memory-reservation", "64m"], "can not be less than memory reservation"),
        (&["--cpuset-cpus", "4000"], "Requested CPUs are not available"),
    ] {
        for name in ["resting", "live"] {
            let refused = lab.orch(&[&["container", "update"], flags, &[name]].concat()).refused();
            assert!(refused.contains(said), "{name} {flags:?}: {refused}");
        }
    }
    // A number for swap stays: nobody gets swap that he was made without.
    let _ = lab.orch(&["container", "update", "--memory", "32m", "--memory-swap", "40m", "resting"]).ok();
    let refused = lab.orch(&["container", "update", "--memory", "64m", "resting"]).refused();
    assert!(refused.contains("update the memoryswap at the same time"), "{refused}");
    let _ = lab.orch(&["container", "update", "--memory", "36m", "resting"]).ok();
    let _ = lab.orch(&["start", "-a", "resting"]).ok();
    let shown = lab.orch(&["inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}", "resting"]).ok();
    assert_eq!(shown, format!("{} {}\n", 36 << 20, 40 << 20));
    let _ = lab.orch(&["rm", "resting"]).ok();
    let _ = lab.orch(&["container", "update", "--memory", "48m", "--pids-limit", "50", "--cpus", "0.5", "live"]).ok();
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    assert_eq!(lab.orch(&["exec", "live", "sh", "-c", limits]).ok(), format!("{}\n50\n50000\n", 48 << 20));
    let shown = lab.orch(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}"]).ok();
    assert!(shown.starts_with("live ") && shown.contains("/ 48MiB"), "{shown}");
    let processes = lab.orch(&["top", "live"]).ok();
    assert!(processes.starts_with("UID") && processes.contains("sh -c mkdir /opt"), "{processes}");
    let others = lab.orch(&["top", "live", "-o", "pid,cmd"]).ok();
    assert!(others.trim_start().starts_with("PID CMD") && others.contains("sh -c mkdir /opt"), "{others}");
    let changed = lab.orch(&["diff", "live"]).ok();
    for line in ["A /new", "C /etc/passwd", "D /etc/group"] {
        assert!(changed.lines().any(|seen| seen == line), "{line}: {changed}");
    }

    // Files in and out, of a running container and of one that has ended; folders, names, streams.
    let on_node = |script: &str| lab.exec("n1", &["sh", "-c", script]);
    let copied = "mkdir -p /run/orch/cp/in/sub && cd /run/orch/cp && echo one > in/sub/file && ln -s sub/file in/link && \
        orch cp -q in live:/opt && orch exec live cat /opt/in/link && orch cp -q in/. live:/opt/new && \
        orch exec live cat /opt/new/sub/file && orch cp -q live:/opt/in out && cat out/sub/file && \
        orch cp -q live:/opt/in . && readlink in/link && orch cp live:/etc/hostname - | tar -tf - && \
        tar -cf - -C in sub | orch cp - live:/tmp && orch exec live cat /tmp/sub/file";
    assert_eq!(on_node(copied).ok(), "one\none\none\nsub/file\nhostname\none\n");
    // A folder's content, by `/.` or through a link; what stands at the destination decides.
    let content = "cd /run/orch/cp && mkdir c there && cd c && \
        orch exec live sh -c 'mkdir -p /s/d/sub && echo 1 >/s/d/a && echo 2 >/s/d/sub/b && ln -s d /s/ld && echo x >/s/old && \
            ln -s old /s/lold && ln -s fresh /s/ldang' && \
        orch cp -q live:/s/d/. ../there && orch cp -q live:/s/d/. new && orch cp -q live:/s/ld/. . && \
        orch cp -q live:/s/ld/ into && orch cp -q live:/s/./d/../d/. dotted && \
        (cd ../there && find . -type f | sort) && find . -type f | sort && orch cp live:/s/ld/. - | tar -tf - && \
        orch cp -q new/a live:/s/lold && orch cp -q new/sub/. live:/s/ldang && \
        orch cp -q new/. live:/s/ld/ && orch exec live readlink /s/ld && \
        orch exec live sh -c 'cat /s/old /s/fresh/b; readlink /s/lold; readlink /s/ldang'";
    assert_eq!(
        on_node(content).ok(),
        "./a\n./sub/b\n./a\n./dotted/a\n./dotted/sub/b\n./into/a\n./into/sub/b\n./new/a\n./new/sub/b\n./sub/b\n\
         ./\na\nsub/\nsub/b\nd\n1\n2\nold\nfresh\n"
    );
    for (from, to, said) in [
        ("live:/s/d", "none/new", "does not exist"),
        ("live:/s/d/.", "none/.", "no such directory"),
        ("live:/s/d/a", "none/", "no such directory"),
        ("live:/s/d/a/.", "x", "not a directory"),
        ("new", "live:/s/lold", "cannot copy directory"),
        ("new", "live:/none/.", "no such directory"),
        ("new/a", "live:/none/", "no such directory"),
    ] {
        let refused = on_node(&format!("cd /run/orch/cp/c && orch cp {from} {to}")).refused();
        assert!(refused.contains(said), "{from} to {to}: {refused}");
    }
    // A stopped container's mounts may be single files.
    let single = "cd /run/orch/cp && echo mine > mine && \
        orch create -q --name filed -v /run/orch/cp/mine:/etc/mine busybox true >/dev/null && \
        orch cp -q filed:/etc/mine got && cat got && orch cp filed:/etc/mine - | tar -tf - && orch rm filed >/dev/null";
    assert_eq!(on_node(single).ok(), "mine\nmine\n");
    assert!(on_node("orch cp live:/nope /tmp/x").refused().contains("Could not find the file /nope in container live"));
    assert!(on_node("orch cp /run/orch/cp/in live:/etc/passwd").refused().contains("cannot copy directory"));
    let _ = lab.orch(&["stop", "-t", "0", "live"]).ok();
    let stopped = "cd /run/orch/cp && orch cp -q live:/opt/in/sub/file stopped && cat stopped && echo two > two && \
        orch cp -q two live:/root/ && orch cp -q live:/root/two - | tar -xOf -";
    assert_eq!(on_node(stopped).ok(), "one\ntwo\n");

    let all = lab
        .orch(&["events", "--since", "10m", "--until", "0s", "--format", "{{.Action}}", "-f", "container=live"])
        .ok();
    let (commands, all): (Vec<&str>, Vec<&str>) = all.lines().partition(|action| action.starts_with("exec_"));
    assert_eq!(commands[..3], ["exec_create: cat /count", "exec_start: cat /count", "exec_die"]);
    assert_eq!(&all[..4], ["create", "start", "pause", "unpause"], "{all:?}");
    assert!(all.contains(&"update") && all.contains(&"die") && all.contains(&"stop"), "{all:?}");
    let used = lab.orch(&["system", "df"]).ok();
    assert!(used.contains("Local Volumes") && used.contains("Images          1 "), "{used}");
}

#[test]
fn volumes_live_beside_containers() {
    let lab = Lab::up("ocivol", 1, 1);
    lab.import("busybox", "busybox", &["VOLUME /var/data"]);
    let run = |args: &[&str]| lab.orch(&[&["run", "--rm"][..], args].concat());
    assert_eq!(lab.orch(&["volume", "create", "--label", "a=b", "data"]).ok(), "data\n");
    assert_eq!(lab.orch(&["volume", "create", "data"]).ok(), "data\n");
    assert_eq!(lab.orch(&["volume", "inspect", "-f", "{{.Labels.a}} {{.Driver}}", "data"]).ok(), "b local\n");
    for (args, said) in [
        (&["a/b"][..], "volume name \"a/b\" is not valid"),
        (&["-d", "nfs4", "x1"], "plugin \"nfs4\" not found"),
        (&["-o", "size=1", "x1"], "invalid option \"size\""),
        (&["-o", "type=tmpfs", "x1"], "missing required option \"device\""),
    ] {
        assert!(lab.orch(&[&["volume", "create"][..], args].concat()).refused().contains(said), "{args:?}");
    }
    // Empty, named: filled from the image, with owners; what is written stays.
    let prepared =
        "mkdir -p /filled && echo from-image > /filled/file && chown 33:44 /filled/file /filled && chmod 750 /filled";
    let _ = lab.orch(&["run", "--name", "maker", "busybox", "sh", "-c", prepared]).ok();
    let exported = lab.exec(
        "n1",
        &["sh", "-c", "orch cp maker:/ - > /run/orch/filled.tar && orch image import filled /run/orch/filled.tar"],
    );
    let _ = exported.ok();
    let look = "stat -c '%u:%g %a' /filled; stat -c %u:%g /filled/file; cat /filled/file; echo mine > /filled/file";
    let flags = ["-v", "kept:/filled", "filled", "sh", "-c"];
    assert_eq!(run(&[&flags[..], &[look]].concat()).ok(), "33:44 750\n33:44\nfrom-image\n");
    assert_eq!(run(&[&flags[..], &["cat /filled/file"]].concat()).ok(), "mine\n");
    assert_eq!(run(&["--mount", "type=volume,src=bare,dst=/filled,volume-nocopy", "filled", "ls", "/filled"]).ok(), "");
    // A mount of its own.
    let options = ["-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=128k,uid=7"];
    let _ = lab.orch(&[&["volume", "create"][..], &options, &["scratch"]].concat()).ok();
    let seen = run(&["-v", "scratch:/s", "busybox", "sh", "-c", "grep ' /s ' /proc/mounts | cut -d' ' -f1,4"]).ok();
    assert_eq!(seen, "tmpfs rw,relatime,size=128k,uid=7\n");
    assert!(!lab.exec("n1", &["cat", "/proc/mounts"]).ok().contains("/scratch/"), "mounted for nobody");
    // A folder of the node, in the words of Docker's own example.
    let _ = lab.exec("n1", &["sh", "-c", "mkdir -p /srv/bound && echo given > /srv/bound/file"]).ok();
    let options = ["-o", "type=none", "-o", "o=bind,ro", "-o", "device=/srv/bound"];
    let _ = lab.orch(&[&["volume", "create"][..], &options, &["bound"]].concat()).ok();
    let seen = run(&["-v", "bound:/b", "busybox", "sh", "-c", "cat /b/file; touch /b/x"]);
    assert!(seen.stdout == "given\n" && seen.stderr.contains("Read-only file system"), "{seen:?}");
    let absent = ["-o", "type=none", "-o", "o=bind", "-o", "device=/srv/absent"];
    let _ = lab.orch(&[&["volume", "create"][..], &absent, &["absent"]].concat()).ok();
    let refused = run(&["-v", "absent:/b", "busybox", "true"]);
    assert!(refused.code == 125 && refused.stderr.contains("/srv/absent"), "{refused:?}");
    let _ = lab.orch(&["volume", "rm", "absent", "bound"]).ok();
    assert_eq!(lab.exec("n1", &["cat", "/srv/bound/file"]).ok(), "given\n", "removing the volume reached through it");

    mounts_do_what_they_say(&lab);

    // An image's VOLUME is anonymous: gone with --rm and `rm -v`, kept by `rm`, listed as dangling then.
    let _ = lab.orch(&["run", "-d", "--name", "user", "-v", "data:/d", "busybox", "sleep", "1000"]).ok();
    let names = |filter: &str| lab.orch(&["volume", "ls", "-q", "-f", filter]).ok();
    let anonymous = lab
        .orch(&[
            "inspect",
            "-f",
            "{{range .Mounts}}{{if eq .Destination \"/var/data\"}}{{.Name}}{{end}}{{end}}",
            "user",
        ])
        .ok();
    assert_eq!(anonymous.trim().len(), 64);
    assert!(lab.orch(&["volume", "rm", "data"]).refused().contains("volume is in use - ["));
    assert!(lab.orch(&["volume", "rm", anonymous.trim()]).refused().contains("volume is in use - ["));
    assert!(!names("dangling=true").contains(anonymous.trim()));
    let _ = lab.orch(&["rm", "-f", "user"]).ok();
    assert!(names("dangling=true").contains(anonymous.trim()));
    assert!(lab.orch(&["volume", "ls", "-f", "dangling=x"]).refused().contains("dangling is one of"));
    let scopes = lab.orch(&["volume", "ls", "--format", "{{.Scope}} {{.Size}}"]).ok();
    assert!(scopes.lines().all(|line| line == "local N/A"), "{scopes}");
    let kept = lab.orch(&["system", "prune", "-f", "--filter", "label=none"]).ok();
    assert!(kept.contains("Total reclaimed space: 0B") && names("dangling=true").contains(anonymous.trim()), "{kept}");
    let pruned = lab.orch(&["volume", "prune", "-f", "--filter", "label!=none"]).ok();
    assert!(pruned.contains(anonymous.trim()) && pruned.contains("Total reclaimed space: "), "{pruned}");
    assert!(names("name=data").contains("data"), "a named volume went");
    let _ = lab.orch(&["rm", "-v", "maker"]).ok();
    let made = lab.orch(&["volume", "create", "--name", "old-style"]).ok();
    assert_eq!(made, "old-style\n");
    let _ = lab.orch(&["run", "--name", "ended", "-v", "/x", "busybox", "true"]).ok();
    let pruned = lab.orch(&["system", "prune", "-f", "--volumes"]).ok();
    assert!(pruned.contains("Deleted Containers:\n") && pruned.contains("Deleted Volumes:\n"), "{pruned}");
    let _ = lab.orch(&["volume", "prune", "-f", "-a"]).ok();
    assert_eq!(lab.orch(&["volume", "ls", "-q"]).ok(), "");
    assert!(!lab.exec("n1", &["cat", "/proc/mounts"]).ok().contains("/volumes/"), "a mount stays");
}

fn mounts_do_what_they_say(lab: &Lab) {
    let run = |args: &[&str]| lab.orch(&[&["run", "--rm"][..], args].concat());
    // What is mounted below a bind.
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().to_str().expect("utf-8 path");
    let below = format!("mkdir {source}/below && mount -t tmpfs none {source}/below && touch {source}/below/there");
    let _ = lab.exec("n1", &["sh", "-c", &below]).ok();
    let look = "ls /b/below; touch /b/x 2>/dev/null && echo top; touch /b/below/x 2>/dev/null && echo below; true";
    for (options, seen) in [
        ("", "there\ntop\nbelow\n"),
        (",ro", "there\nx\n"),
        (",ro,bind-recursive=writable", "there\nx\nbelow\n"),
        (",ro,bind-propagation=rprivate,bind-recursive=readonly", "there\nx\n"),
        (",bind-recursive=disabled", "top\nbelow\n"),
        (",ro,bind-nonrecursive", "x\n"),
    ] {
        let bind = format!("type=bind,source={source},target=/b{options}");
        assert_eq!(run(&["--mount", &bind, "busybox", "sh", "-c", look]).ok(), seen, "{options}");
    }
    let _ = lab.exec("n1", &["umount", &format!("{source}/below")]).ok();

    // In memory, with its own size and mode; an anonymous volume with its own label and options.
    let scratch = "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=0700";
    let shown = run(&["--mount", scratch, "busybox", "sh", "-c", "stat -c %a /t; df -k /t | tail -1"]).ok();
    assert!(shown.starts_with("700\n") && shown.contains(" 1024 "), "{shown}");
    let labelled = "type=volume,target=/v,volume-label=who=me,volume-opt=type=tmpfs,volume-opt=device=tmpfs";
    let _ = lab.orch(&["run", "-d", "--name", "store", "--mount", labelled, "busybox", "sleep", "1000"]).ok();
    let _ = lab.orch(&["exec", "store", "touch", "/v/kept"]).ok();
    let named = lab.orch(&["volume", "ls", "-q", "-f", "label=who=me"]).ok();
    assert_eq!(named.trim().len(), 64, "{named}");

    // Another container's volumes, which do not go while they are used.
    assert_eq!(run(&["--volumes-from", "store", "busybox", "ls", "/v"]).ok(), "kept\n");
    assert!(run(&["--volumes-from", "store:ro", "busybox", "touch", "/v/x"]).refused().contains("Read-only"));
    let from = ["run", "-d", "--name", "reader", "--volumes-from", "store", "busybox", "sleep", "1000"];
    let _ = lab.orch(&from).ok();
    let _ = lab.orch(&["rm", "-f", "-v", "store"]).ok();
    assert_eq!(lab.orch(&["exec", "reader", "ls", "/v"]).ok(), "kept\n");
    let _ = lab.orch(&["rm", "-f", "reader"]).ok();
    let _ = lab.orch(&["volume", "rm", named.trim()]).ok();
    let _ = lab.orch(&["create", "--name", "unborn", "-v", "/v", "busybox", "true"]).ok();
    assert!(run(&["--volumes-from", "unborn", "busybox", "ls", "/v"]).refused().contains("start it first"));
    let _ = lab.orch(&["rm", "unborn"]).ok();
}

#[test]
fn root_of_a_container_can_be_nobody_on_its_node() {
    let lab = lab("ociremap");
    let on_node = |script: &str| lab.exec("n1", &["sh", "-c", script]);
    let _ = on_node("mkdir -p /etc/orch && echo 'userns-remap = \"default\"' > /etc/orch/orch.toml").ok();
    let _ = lab.command("kill", &["n1", "worker"]).ok();
    eventually("the worker is back", || lab.orch(&["ps", "-q"]).result());
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %u / /bin/busybox /etc/hosts; echo hi > /v/f; exec httpd -f -p 80 -h /v";
    let run = ["run", "-d", "--name", "nobody", "-v", "vol:/v", "-p", "8080:80"];
    let check = ["--health-cmd", "cat /proc/self/uid_map; test -O /v/f", "--health-interval", "1s"];
    let _ = lab.orch(&[&run[..], &check, &["busybox", "sh", "-c", script]].concat()).ok();
    let address = lab.address("n1");
    eventually("it answers", || lab.get("client", &format!("http://{address}:8080/f")));
    eventually("its checks run as its own root", || {
        let said = lab.orch(&["inspect", "--format", "{{.State.Health.Status}} {{json .State.Health.Log}}", "nobody"]);
        let said = said.result()?;
        if said.starts_with("healthy ") && said.contains("1000000") { Ok(()) } else { Err(said) }
    });
    assert_eq!(lab.orch(&["logs", "nobody"]).ok(), "0\n 0 1000000 65536\n0\n0\n0\n");
    assert_eq!(lab.orch(&["exec", "nobody", "sh", "-c", "id -u; ls /sys/class/net"]).ok(), "0\neth0\nlo\n");
    for user in ["0", "33"] {
        let script = "echo $(id -u) >/dev/stdout; stat -c %u $(tty)";
        let said = lab.orch(&["exec", "-t", "-u", user, "nobody", "sh", "-c", script]).ok();
        assert_eq!(said, format!("{user}\r\n{user}\r\n"));
    }
    let seen = "stat -c %u:%g /var/lib/orch/worker/volumes/vol/_data/f; orch top nobody | awk 'NR == 2 {print $1}'; \
        echo in > /run/orch/in && orch cp -q /run/orch/in nobody:/v/in && orch exec nobody stat -c %u:%g /v/in";
    assert_eq!(on_node(seen).ok(), "1000000:1000000\n1000000\n0:0\n");
    for (flags, said) in [
        (&["--privileged"][..], "privileged mode is incompatible with user namespaces"),
        (&["--network", "host"], "cannot share the host's network namespace when user namespaces are enabled"),
        (&["--pid", "host"], "cannot share the host's PID namespace"),
    ] {
        let refused = lab.orch(&[&["run", "--rm"][..], flags, &["busybox", "true"]].concat()).refused();
        assert!(refused.contains(said), "{flags:?}: {refused}");
    }
    let own =
        lab.orch(&["run", "--rm", "--privileged", "--userns", "host", "busybox", "cat", "/proc/self/uid_map"]).ok();
    assert!(own.contains("4294967295"), "{own}");
    let _ = lab.orch(&["rm", "-f", "nobody"]).ok();

    // A task's user can read the secrets that are meant for it, and those for all; their numbers are the container's.
    let _ = lab.exec_with_input("n1", &["orch", "secret", "create", "key", "-"], b"told").ok();
    let secrets = ["--secret", "source=key,uid=99,gid=98,mode=0400", "--secret", "source=key,target=open"];
    let script = "cd /run/secrets; cat key open; stat -c ' %u:%g' key; exec sleep 1000";
    let create = ["service", "create", "-d", "--name", "reader", "--user", "99"];
    let _ = lab.orch(&[&create[..], &secrets, &["busybox", "sh", "-c", script]].concat()).ok();
    eventually("it reads its secrets", || match lab.orch(&["service", "logs", "--raw", "reader"]).result()? {
        read if read == "toldtold 99:98\n" => Ok(()),
        other => Err(other),
    });
    let _ = lab.orch(&["service", "rm", "reader"]).ok();
    let _ =
        lab.orch(&["service", "create", "-d", "--name", "agent", "--network", "host", "busybox", "sleep", "9"]).ok();
    let rejected =
        "cannot share the host's network namespace when user namespaces are enabled (userns-remap): let its tasks";
    eventually("its task is rejected", || match lab.orch(&["service", "ps", "--no-trunc", "agent"]).result()? {
        said if said.contains("Rejected") && said.contains(rejected) => Ok(()),
        other => Err(other),
    });
    let _ = lab.orch(&["service", "rm", "agent"]).ok();
    eventually("no namespace of users is left", || match on_node("ls /run/orch/users").result()? {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}
