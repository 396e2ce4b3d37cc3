//! What a container sees and may do: limits, privileges, users, devices.

use std::os::fd::AsRawFd;

use super::*;

#[tokio::test]
async fn limits_are_in_the_cgroups() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |_, task| {
        task.limits.memory_bytes = 64 << 20;
        task.limits.nano_cpus = 500_000_000;
        task.limits.pids = 20;
    });
    let container = container.await.unwrap();
    container.start().await.unwrap();
    assert_eq!(node.cgroup_file(&container, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(node.cgroup_file(&container, "pids", "pids.max", "pids.max"), "20");
    let cpu = node.cgroup_file(&container, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["50000", "50000 100000"].contains(&cpu.as_str()), "{cpu}");
    let inside = output(
        container
            .exec(&command(&[
                "sh",
                "-c",
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null",
            ]))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(inside.1.trim(), (64 << 20).to_string(), "a program sees its limit");
    let write = output(
        container
            .exec(&command(&[
                "sh",
                "-c",
                "echo 1 > $(ls -d /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null)",
            ]))
            .await
            .unwrap(),
    )
    .await;
    assert_ne!(write.0, 0, "and cannot change it");
    let path = container.cgroup().to_owned();
    container.delete().await.unwrap();
    let left: Vec<_> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|e| e.path().join(&path[1..]))
        .filter(|p| p.exists())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_container_that_wants_too_much_memory_is_killed_and_says_so() {
    let node = Node::new();
    let container =
        node.create(&["sh", "-c", "yes | head -c 200m | tail -c 200m > /dev/null; echo survived"], |_, task| {
            task.limits.memory_bytes = 16 << 20;
        });
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let exit = timeout(LIMIT, container.wait()).await.unwrap().unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn privileges_are_dockers() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let caps = if v2 { "00000000a00425fb" } else { "00000000a80425fb" };
    let exec = container.exec(&command(&["sleep", "1000"])).await.unwrap();
    for pid in [container.pid(), exec.pid] {
        assert_eq!(status(pid, "Seccomp"), "2");
        assert_eq!(status(pid, "NoNewPrivs"), "0");
        for (set, want) in [
            ("CapEff", caps),
            ("CapPrm", caps),
            ("CapBnd", caps),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            assert_eq!(status(pid, set), want, "{set} of {pid}");
        }
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "0");
        for set in ["SigBlk", "SigIgn"] {
            assert_eq!(status(pid, set), "0000000000000000", "{set} of {pid}");
        }
        assert_eq!(status(pid, "Groups"), "0");
    }
    let (code, _, err) = output(container.exec(&command(&["unshare", "-m", "true"])).await.unwrap()).await;
    assert_eq!((code, err.contains("Operation not permitted")), (1, true), "{err}");

    let mut privileged = command(&["sleep", "1000"]);
    privileged.privileged = true;
    let exec = container.exec(&privileged).await.unwrap();
    assert_eq!(status(exec.pid, "Seccomp"), "0");
    assert_ne!(status(exec.pid, "CapEff"), caps);
    container.delete().await.unwrap();

    let adjusted = node.create(&["sleep", "1000"], |c, _| {
        c.cap_drop = vec!["ALL".to_owned()];
        c.cap_add = vec!["NET_ADMIN".to_owned()];
    });
    let adjusted = adjusted.await.unwrap();
    adjusted.start().await.unwrap();
    assert_eq!(status(adjusted.pid(), "CapBnd"), "0000000000001000");
    adjusted.delete().await.unwrap();
}

#[tokio::test]
async fn users_other_than_root_own_their_output() {
    let node = Node::new();
    let script = "id; echo again > /dev/stdout; grep CapEff /proc/self/status; pwd; echo $HOME";
    let (_, out) = node
        .run(&["sh", "-c", script], |c, _| {
            c.user = "web".to_owned();
            c.dir = "/srv/new".to_owned();
        })
        .await;
    let want =
        ["uid=33(web) gid=33(web) groups=33(web),40(logs)", "again", "CapEff:\t0000000000000000", "/srv/new", "/srv"];
    assert_eq!(out.lines().collect::<Vec<_>>(), want);
}

#[tokio::test]
async fn setuid_programs_work() {
    let node = Node::new();
    let container = node.create_with(
        &["/suid/su", "root"],
        |c, _| {
            c.user = "web".to_owned();
            // It waits there for a password.
            c.open_stdin = true;
        },
        |plan| {
            let program = plan.rootfs.join("suid/su");
            fs::create_dir(plan.rootfs.join("suid")).unwrap();
            fs::copy("/bin/busybox", &program).unwrap();
            fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
        },
    );
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let uids: Vec<String> = status(container.pid(), "Uid").split_whitespace().map(str::to_owned).collect();
    assert_eq!(uids[..2], ["33", "0"], "real and effective");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn the_inside_looks_as_it_should() {
    let node = Node::new();
    let file = node.dir.path().join("hosts");
    fs::write(&file, "10.0.0.9 me\n").unwrap();
    let script = "hostname; cat /etc/hosts; touch /x 2>/dev/null && echo writable; touch /data/f && echo data; \
                  touch /ro/f 2>/dev/null || echo readonly; grep -c ' /scratch ' /proc/mounts; cat /proc/1/comm; \
                  touch /proc/sys/kernel/hostname 2>/dev/null || echo protected; \
                  grep 'open files' /proc/self/limits; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /dev";
    let data = node.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let mount = |kind, source: &Path, target: &str, read_only| Mount {
        kind,
        source: source.to_str().unwrap().to_owned(),
        target: target.to_owned(),
        read_only,
        tmpfs_size_bytes: 1 << 20,
        ..Mount::default()
    };
    let args = ["sh", "-c", script];
    let container = node.create_with(
        &args,
        |c, _| {
            c.read_only = true;
            c.hostname = "box".to_owned();
            c.mounts = vec![
                mount(MountKind::Bind, &data, "/data", false),
                mount(MountKind::Bind, &data, "/ro", true),
                mount(MountKind::Tmpfs, Path::new(""), "/scratch", false),
            ];
            c.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 }];
        },
        |plan| {
            fs::create_dir(plan.rootfs.join("data")).unwrap();
            fs::create_dir(plan.rootfs.join("ro")).unwrap();
            plan.binds = vec![BindMount {
                source: file,
                target: "/etc/hosts".to_owned(),
                read_only: false,
                propagation: String::new(),
            }];
        },
    );
    let container = container.await.unwrap();
    container.start().await.unwrap();
    let (_, out) = finish(&container).await;
    let (words, devices) = out.split_once("Max open files").unwrap();
    assert_eq!(words, "box\n10.0.0.9 me\ndata\nreadonly\n1\nsh\nprotected\n");
    let fields: Vec<&str> = devices.split_whitespace().collect();
    assert_eq!(fields[..4], ["100", "200", "files", "0"]);
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdout"] {
        assert!(fields.contains(&device), "/dev/{device} is missing: {fields:?}");
    }
    assert!(!fields.contains(&"mem") && !fields.contains(&"kmsg"), "{fields:?}");
}

#[tokio::test]
async fn shared_memory_goes_with_the_ipc_namespace() {
    let node = Node::new();
    let script = ["sh", "-c", "echo shared >/dev/shm/one; sleep 1000"];
    let first = node.create(&script, |_, _| {}).await.unwrap();
    first.start().await.unwrap();
    // By the process and not by its number, as the worker does.
    let process = fs::File::open(format!("/proc/{}", first.pid())).unwrap();
    let held = format!("/proc/{}/fd/{}/ns/ipc", std::process::id(), process.as_raw_fd());
    let ipc = || Sharing::Other(held.clone().into());
    let looks = ["sh", "-c", "cat /dev/shm/one; echo back >/dev/shm/two"];
    for (sharing, want) in
        [(ipc(), "shared\n"), (Sharing::Own, "cat: can't open '/dev/shm/one': No such file or directory\n")]
    {
        let second = node.create_with(&looks, |_, _| {}, |plan| plan.options.ipc = sharing).await.unwrap();
        second.start().await.unwrap();
        assert_eq!(finish(&second).await, (0, want.to_owned()));
    }
    assert_eq!(output(first.exec(&command(&["cat", "/dev/shm/two"])).await.unwrap()).await.1, "back\n");
    // On the node there is nothing of it to be seen.
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(node.dir.path().to_str().unwrap()));
    // What is mounted where the maker has the other's could not be passed on.
    let refused = node.create_with(
        &looks,
        |_, _| {},
        |plan| {
            let (source, propagation) = (node.dir.path().to_owned(), "rshared".to_owned());
            plan.binds = vec![BindMount { source, target: "/srv".to_owned(), read_only: false, propagation }];
            plan.options.ipc = ipc();
        },
    );
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("is on the same mount as"), "{refused}");
    first.delete().await.unwrap();
    let late = node.create_with(&looks, |_, _| {}, |plan| plan.options.ipc = ipc()).await.unwrap_err().to_string();
    assert!(late.contains("cannot share the other container's /dev/shm"), "{late}");
}

#[tokio::test]
async fn a_privileged_container_has_devices_and_no_filter() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |c, _| c.privileged = true).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(status(container.pid(), "Seccomp"), "0");
    assert_eq!(status(container.pid(), "CapEff"), status(std::process::id(), "CapEff"));
    let mount = ["sh", "-c", "mount -t tmpfs none /tmp && echo mounted"];
    let mut request = command(&mount);
    request.privileged = true;
    assert_eq!(output(container.exec(&request).await.unwrap()).await.1, "mounted\n");
    container.delete().await.unwrap();
}

/// An i386 program that prints `32 bits` and ends with the error of `unshare(0)`, which without a filter has none.
#[cfg(target_arch = "x86_64")]
fn program_of_32_bits() -> Vec<u8> {
    const ADDRESS: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    const WORDS: &[u8] = b"32 bits\n";
    let [write, unshare, exit] = [4_u32, 310, 1];
    let code = |words: u32| -> Vec<u8> {
        let set = |register: u8, value: u32| [&[0xb8 + register][..], &value.to_le_bytes()].concat();
        let (eax, ebx, ecx, edx) = (|v| set(0, v), |v| set(3, v), |v| set(1, v), |v| set(2, v));
        let call = vec![0xcd, 0x80];
        let length = u32::try_from(WORDS.len()).unwrap();
        let print = [eax(write), ebx(1), ecx(words), edx(length), call.clone()].concat();
        let ask = [eax(unshare), ebx(0), call.clone()].concat();
        // neg eax; mov ebx, eax
        let end = [vec![0xf7, 0xd8, 0x89, 0xc3], eax(exit), call].concat();
        [print, ask, end].concat()
    };
    let words = ADDRESS + HEADERS + u32::try_from(code(0).len()).unwrap();
    let body = [&code(words), WORDS].concat();
    let size = HEADERS + u32::try_from(body.len()).unwrap();
    // ELF, 32 bits, little end first; an executable for i386 with one program header.
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    file.extend([ADDRESS + HEADERS, 52, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([52_u16, 32, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    // Loaded as a whole, to be read and executed.
    file.extend([1, 0, ADDRESS, ADDRESS, size, size, 5, 4096].iter().flat_map(|word: &u32| word.to_le_bytes()));
    file.extend(body);
    file
}

#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn a_program_of_32_bits_runs_under_the_same_filter() {
    use std::os::unix::fs::PermissionsExt;

    let node = Node::new();
    let write = |path: &Path| {
        fs::write(path, program_of_32_bits()).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let here = node.dir.path().join("bits");
    write(&here);
    // Not every kernel takes such programs (IA32_EMULATION).
    let Ok(unfiltered) = std::process::Command::new(&here).output() else { return };
    assert_eq!((unfiltered.status.code(), unfiltered.stdout), (Some(0), b"32 bits\n".to_vec()));
    let container = node.create_with(&["/bits"], |_, _| {}, |plan| write(&plan.rootfs.join("bits"))).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(finish(&container).await, (1, "32 bits\n".to_owned()));
}
