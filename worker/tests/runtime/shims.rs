//! Shims, when workers and shims come and go.

use super::*;

#[tokio::test]
async fn another_worker_finds_what_the_first_one_left() {
    let node = Node::new();
    let created = node.create(&["sleep", "1000"], |_, _| {}).await.unwrap();
    let running = node.start(&["sleep", "1000"]).await;
    let ended = node.start(&["sh", "-c", "exit 9"]).await;
    ended.wait().await.unwrap();
    let second = runtime(node.dir.path(), &node.cgroup);
    let mut seen = 0;
    for found in second.recover().await.unwrap() {
        seen += 1;
        match found {
            Recovered::Created(container) => {
                assert_eq!(container.container_id(), created.container_id());
                container.delete().await.unwrap();
            }
            Recovered::Running(container) => {
                assert_eq!((container.task_id(), container.pid()), (running.task_id(), running.pid()));
                assert_eq!(output(container.exec(&command(&["echo", "still"])).await.unwrap()).await.1, "still\n");
                container.delete().await.unwrap();
            }
            Recovered::Ended(container, exit) => {
                assert_eq!((container.task_id(), exit.code), (ended.task_id(), 9));
                container.delete().await.unwrap();
            }
        }
    }
    assert_eq!(seen, 3);
    assert!(second.recover().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_killed_shim_takes_its_container_along() {
    let node = Node::new();
    for paused in [false, true] {
        let container = node.start(&["sh", "-c", "sleep 1000 & sleep 1000"]).await;
        container.set_frozen(paused).await.unwrap();
        let waiting = tokio::spawn({
            let container = container.clone();
            async move { container.wait().await }
        });
        kill(shim_of(&container));
        let exit = timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
        assert!(exit.error.unwrap().contains("shim was killed"));
        // Its control group is empty, but the kernel may still be taking the process apart.
        poll("the container's process is gone", || is_gone(container.pid())).await;
        assert!(matches!(node.runtime.recover().await.unwrap().as_slice(), [Recovered::Ended(..)]));
        container.delete().await.unwrap();
        assert!(node.runtime.recover().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_ends_without_a_worker_too() {
    let node = Node::new();
    let container = node.start(&["sleep", "1000"]).await;
    let user = node.create(&["sleep", "1000"], |spec, _| spec.user = "web".to_owned()).await.unwrap();
    user.start().await.unwrap();
    for container in [&container, &user] {
        kill(shim_of(container));
        poll("the container's process is gone", || is_gone(container.pid())).await;
    }
    assert_eq!(node.runtime.recover().await.unwrap().len(), 2);
    container.delete().await.unwrap();
    user.delete().await.unwrap();
}

#[tokio::test]
async fn a_shim_that_is_killed_before_the_start_is_noticed() {
    let node = Node::new();
    let container = node.create(&["sleep", "1000"], |_, _| {}).await.unwrap();
    let first = container.pid();
    kill(shim_of(&container));
    // The container's first process holds what it was born with; the shim's socket must not be among it.
    let refused = timeout(LIMIT, container.start()).await.expect("the start is stuck").unwrap_err();
    assert!(refused.to_string().contains("shim was killed"), "{refused}");
    assert!(is_gone(first), "the container's first process is still there");
    container.delete().await.unwrap();
}

#[tokio::test]
async fn shims_do_without_the_process_that_they_are_born_from() {
    let node = Node::new();
    let before = node.start(&["sleep", "1000"]).await;
    let nursery = parent_of(shim_of(&before));
    assert_eq!(parent_of(nursery), nix::unistd::getpid().as_raw(), "the nursery is the worker's child");
    kill(nursery);
    poll("the killed nursery is collected", || !Path::new(&format!("/proc/{nursery}")).exists()).await;
    let after = node.start(&["sleep", "1000"]).await;
    assert_ne!(parent_of(shim_of(&after)), nursery);
    for container in [before, after] {
        let (code, ..) = output(container.exec(&command(&["true"])).await.unwrap()).await;
        assert_eq!(code, 0);
        container.kill(libc::SIGKILL).await.unwrap();
        assert_eq!(finish(&container).await.0, 137);
    }
}

/// 0.3 MB is what a container may cost in memory of its own. A shim of tests is made as one of the product is.
#[tokio::test]
async fn shims_share_nearly_all_of_their_memory() {
    const LIMIT_KB: u64 = 300;
    let node = Node::new();
    // Pages of a program that was just built are dirty until they are on the disk, whoever has them.
    fs::File::open(shim_program()).unwrap().sync_all().unwrap();
    let mut containers = Vec::new();
    for _ in 0..3 {
        let container = node.start(&["sh", "-c", "seq 1000; sleep 1000"]).await;
        let (code, out, _) = output(container.exec(&command(&["seq", "100"])).await.unwrap()).await;
        assert_eq!((code, out.lines().count()), (0, 100));
        containers.push(container);
    }
    for container in containers {
        let shim = shim_of(&container);
        let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let kb = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
        };
        // Clean pages are the program's file, whoever has touched them first.
        let private = kb("Private_Dirty");
        assert!(private <= LIMIT_KB, "{private} kB of a shim's memory are its own:\n{rollup}");
        let name = fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap();
        assert!(name.starts_with("orch\0shim\0/"), "{name:?}");
        container.kill(libc::SIGKILL).await.unwrap();
        finish(&container).await;
    }
}

pub(crate) fn shim_of(container: &Container) -> i32 {
    parent_of(i32::try_from(container.pid()).unwrap())
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Or a zombie of whoever adopts orphans here.
fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once() {
    let node = Node::new();
    let begin = std::time::Instant::now();
    let created = futures::future::join_all((0..50).map(|_| async {
        let container = node.create(&["sleep", "1000"], |_, _| {}).await.unwrap();
        container.start().await.unwrap();
        container
    }));
    let containers = created.await;
    println!("50 started in {:?}", begin.elapsed());
    let begin = std::time::Instant::now();
    let one_more = node.start(&["sleep", "1000"]).await;
    println!("one more made and started in {:?}", begin.elapsed());
    one_more.delete().await.unwrap();
    let begin = std::time::Instant::now();
    futures::future::join_all(containers.iter().map(|container| async { container.delete().await.unwrap() })).await;
    println!("50 deleted in {:?}", begin.elapsed());
    assert!(node.runtime.recover().await.unwrap().is_empty());
}
