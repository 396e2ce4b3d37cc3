//! Times containers of the worker's runtime alone, for `tests/bench/containers`: no images, no network, no manager.
//!
//! `containers DIR ROOTFS ROUNDS AT_ONCE` prints JSON: milliseconds of each container that is created, started, waited for
//! and deleted by itself; of AT_ONCE of them together; and until AT_ONCE that go on all run. The bundle of the first one is
//! kept as DIR/config.json, so that others can be timed with the same. With a PROGRAM after it nothing but the last is
//! timed, once, with that program. `--furnished LINKS ROOTS` before the program gives each what a task has as well: a root of
//! its own over ROOTFS, in the folder ROOTS; hosts, hostname and resolv.conf; and a network namespace with that many links to
//! bridges of the node, made by one `ip -batch`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Instant,
};

use anyhow::Context as _;
use futures::future::try_join_all;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use orch_model::{
    TaskId,
    service::{ContainerSpec, TaskSpec},
};
use orch_proto::paths::Paths;
use orch_worker::runtime::{BindMount, Container, ContainerPlan, HostOptions, ImageDefaults, LogFiles, Runtime};
use tokio::task::spawn_blocking;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "shim") {
        std::process::exit(orch_worker::shim::main());
    }
    let [dir, rootfs, rounds, at_once, program @ ..] = args.as_slice() else {
        anyhow::bail!("usage: containers DIR ROOTFS ROUNDS AT_ONCE [[--furnished LINKS ROOTS] PROGRAM…]");
    };
    let (furnished, program) = match program {
        [flag, links, roots, program @ ..] if flag == "--furnished" => (Some((links.parse()?, roots.into())), program),
        program => (None, program),
    };
    let bench = Bench::new(dir.into(), rootfs.into(), furnished)?;
    let (rounds, at_once) = (rounds.parse()?, at_once.parse()?);
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = threads.block_on(async {
        if program.is_empty() { bench.rounds(rounds, at_once).await } else { bench.only_start(at_once, program).await }
    })?;
    println!("{figures}");
    Ok(())
}

struct Bench {
    dir: PathBuf,
    rootfs: PathBuf,
    runtime: Runtime,
    containers: AtomicU32,
    furnishing: Option<Furnishing>,
}

impl Bench {
    fn new(dir: PathBuf, rootfs: PathBuf, furnished: Option<(u32, PathBuf)>) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let paths = Paths::under(&dir);
        let runtime = Runtime::with_shim_command(&paths, "/orch-bench", own, vec!["shim".into()])?;
        let furnishing = furnished.map(|(links, roots)| Furnishing::new(&paths, roots, &rootfs, links)).transpose()?;
        Ok(Self { dir, rootfs, runtime, containers: AtomicU32::new(0), furnishing })
    }

    async fn rounds(&self, rounds: u32, at_once: u32) -> anyhow::Result<serde_json::Value> {
        let (short_lived, long_lived) = (["true".to_owned()], ["sleep".to_owned(), "1000".to_owned()]);
        let (mut one_ms, mut many_ms, mut started_ms) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            one_ms.push(milliseconds(self.live(&short_lived)).await?.0);
        }
        for _ in 0..rounds.div_ceil(10) {
            many_ms.push(milliseconds(try_join_all((0..at_once).map(|_| self.live(&short_lived)))).await?.0);
            started_ms.push(self.start_many(at_once, &long_lived).await?);
        }
        Ok(serde_json::json!({"one_ms": one_ms, "many_ms": many_ms, "started_ms": started_ms}))
    }

    /// One that lives before them takes what only the first costs.
    async fn only_start(&self, at_once: u32, program: &[String]) -> anyhow::Result<serde_json::Value> {
        self.live(&["true".to_owned()]).await?;
        let started_ms = self.start_many(at_once, program).await?;
        if let Some(furnishing) = &self.furnishing {
            furnishing.remove()?;
        }
        Ok(serde_json::json!({"started_ms": [started_ms]}))
    }

    async fn start_many(&self, at_once: u32, program: &[String]) -> anyhow::Result<f64> {
        let (took, running) = milliseconds(async {
            let Some(furnishing) = &self.furnishing else {
                return try_join_all((0..at_once).map(|_| self.start(program, None))).await;
            };
            let first = self.containers.load(Ordering::Relaxed);
            let all = try_join_all((first..first + at_once).map(|number| furnishing.furnish(number))).await?;
            let links = furnishing.link(&all);
            let linking = async { spawn_blocking(move || ip(&links)).await? };
            let starting = try_join_all(all.iter().map(|furnished| self.start(program, Some(furnished))));
            let ((), running) = tokio::try_join!(linking, starting)?;
            Ok(running)
        })
        .await?;
        try_join_all(running.iter().map(Container::delete)).await?;
        Ok(took)
    }

    async fn live(&self, args: &[String]) -> anyhow::Result<()> {
        let container = self.start(args, None).await?;
        let exit = container.wait().await?;
        anyhow::ensure!(exit.code == 0, "it ended with {}: {:?}", exit.code, exit.error);
        container.delete().await?;
        Ok(())
    }

    async fn start(&self, args: &[String], furnished: Option<&Furnished>) -> anyhow::Result<Container> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let task_id = TaskId::from_random(u128::from(number) + 1);
        let container = ContainerSpec { args: args.to_vec(), ..Default::default() };
        let plan = ContainerPlan {
            container_id: format!("{number:064x}"),
            rootfs: furnished.map_or(&self.rootfs, |furnished| &furnished.root).clone(),
            image: ImageDefaults::default(),
            spec: &TaskSpec { container, ..TaskSpec::default() },
            netns: furnished.map(|furnished| furnished.netns.clone()),
            host_network: false,
            binds: furnished.map(|furnished| furnished.binds.clone()).unwrap_or_default(),
            log: LogFiles::at(self.dir.join(format!("{number}.log"))),
            options: HostOptions::default(),
            users: None,
            task_id: task_id.clone(),
        };
        let container = self.runtime.create(&plan).await?;
        if number == 0 {
            keep_bundle(&self.dir, &task_id)?;
        }
        container.start().await?;
        Ok(container)
    }
}

/// What tasks have of their own, made with the least that the kernel asks for.
struct Furnishing {
    roots: PathBuf,
    namespaces: PathBuf,
    files: PathBuf,
    layer: PathBuf,
    links: u32,
}

/// One container's.
struct Furnished {
    number: u32,
    root: PathBuf,
    netns: PathBuf,
    binds: Vec<BindMount>,
}

impl Furnishing {
    /// The folders are mounts, as on a node: containers' makers do not see each other's.
    fn new(paths: &Paths, roots: PathBuf, layer: &Path, links: u32) -> anyhow::Result<Self> {
        let namespaces = paths.netns_dir();
        for folder in [&roots, &namespaces] {
            fs::create_dir_all(folder)?;
            mount(Some(folder), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        ip(&(0..links).map(|n| format!("link add orchbench{n} up type bridge\n")).collect::<String>())?;
        Ok(Self { roots, namespaces, files: paths.run.join("files"), layer: layer.to_owned(), links })
    }

    async fn furnish(&self, number: u32) -> anyhow::Result<Furnished> {
        let (folder, netns) = (self.roots.join(number.to_string()), self.namespaces.join(number.to_string()));
        let (layer, files) = (self.layer.clone(), self.files.join(number.to_string()));
        spawn_blocking(move || {
            let root = make_root(&layer, &folder)?;
            make_namespace(netns.clone())?;
            Ok(Furnished { number, root, netns, binds: write_files(&files)? })
        })
        .await?
    }

    /// What makes the links of all.
    fn link(&self, all: &[Furnished]) -> String {
        let link = |furnished: &Furnished, n: u32| {
            let (number, netns) = (furnished.number, furnished.netns.display());
            let one = "numtxqueues 1 numrxqueues 1";
            format!("link add ob{number}x{n} {one} master orchbench{n} up type veth peer eth{n} {one} netns {netns}\n")
        };
        all.iter().flat_map(|furnished| (0..self.links).map(move |n| link(furnished, n))).collect()
    }

    fn remove(&self) -> anyhow::Result<()> {
        ip(&(0..self.links).map(|n| format!("link del orchbench{n}\n")).collect::<String>())
    }
}

fn make_root(layer: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| folder.join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir_all(dir)?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", layer.display(), upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(root)
}

/// What a container knows its network by.
fn write_files(folder: &Path) -> io::Result<Vec<BindMount>> {
    fs::create_dir_all(folder)?;
    let write = |name: &str| {
        let (source, target) = (folder.join(name), format!("/etc/{name}"));
        fs::write(&source, format!("{name}\n"))?;
        Ok(BindMount { source, target, read_only: false, propagation: String::new() })
    };
    ["hosts", "hostname", "resolv.conf"].into_iter().map(write).collect()
}

/// On a thread that ends: it cannot come back.
fn make_namespace(path: PathBuf) -> anyhow::Result<()> {
    let made = thread::spawn(move || -> io::Result<()> {
        File::create(&path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    });
    Ok(made.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??)
}

fn ip(batch: &str) -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), batch)?;
    let status = Command::new("ip").arg("-batch").arg(file.path()).status().context("run ip")?;
    anyhow::ensure!(status.success(), "ip -batch failed: {status}");
    Ok(())
}

async fn milliseconds<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(f64, T)> {
    let began = Instant::now();
    let result = work.await?;
    Ok((began.elapsed().as_secs_f64() * 1000.0, result))
}

fn keep_bundle(dir: &Path, task_id: &TaskId) -> anyhow::Result<()> {
    let bundle = Paths::under(dir).shims_dir().join(task_id.as_str()).join("bundle/config.json");
    fs::copy(&bundle, dir.join("config.json")).with_context(|| format!("copy {}", bundle.display())).map(drop)
}
