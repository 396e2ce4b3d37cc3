//! Times containers of the worker's runtime alone, for `tests/bench/containers`: no images, no network, no manager.
//!
//! `containers DIR ROOTFS ROUNDS AT_ONCE` prints JSON: milliseconds of each container that is created, started, waited for
//! and deleted by itself; of AT_ONCE of them together; and until AT_ONCE that go on all run. The bundle of the first one is
//! kept as DIR/config.json, so that others can be timed with the same. With a PROGRAM after it nothing but the last is
//! timed, once, with that program.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use anyhow::Context as _;
use futures::future::try_join_all;
use orch_model::{
    TaskId,
    service::{ContainerSpec, TaskSpec},
};
use orch_proto::paths::Paths;
use orch_worker::runtime::{Container, ContainerPlan, HostOptions, ImageDefaults, LogFiles, Runtime};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "shim") {
        std::process::exit(orch_worker::shim::main());
    }
    let [dir, rootfs, rounds, at_once, program @ ..] = args.as_slice() else {
        anyhow::bail!("usage: containers DIR ROOTFS ROUNDS AT_ONCE [PROGRAM…]");
    };
    let bench = Bench::new(dir.into(), rootfs.into())?;
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
}

impl Bench {
    fn new(dir: PathBuf, rootfs: PathBuf) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let runtime = Runtime::with_shim_command(&Paths::under(&dir), "/orch-bench", own, vec!["shim".into()])?;
        Ok(Self { dir, rootfs, runtime, containers: AtomicU32::new(0) })
    }

    async fn rounds(&self, rounds: u32, at_once: u32) -> anyhow::Result<serde_json::Value> {
        let (short_lived, long_lived) = (["true".to_owned()], ["sleep".to_owned(), "1000".to_owned()]);
        let (mut one_ms, mut many_ms, mut started_ms) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            one_ms.push(milliseconds(self.live(&short_lived)).await?);
        }
        for _ in 0..rounds.div_ceil(10) {
            many_ms.push(milliseconds(try_join_all((0..at_once).map(|_| self.live(&short_lived)))).await?);
            started_ms.push(self.start_many(at_once, &long_lived).await?);
        }
        Ok(serde_json::json!({"one_ms": one_ms, "many_ms": many_ms, "started_ms": started_ms}))
    }

    /// One that lives before them takes what only the first costs.
    async fn only_start(&self, at_once: u32, program: &[String]) -> anyhow::Result<serde_json::Value> {
        self.live(&["true".to_owned()]).await?;
        Ok(serde_json::json!({"started_ms": [self.start_many(at_once, program).await?]}))
    }

    async fn start_many(&self, at_once: u32, program: &[String]) -> anyhow::Result<f64> {
        let mut running = Vec::new();
        let starting = async {
            running = try_join_all((0..at_once).map(|_| self.start(program))).await?;
            Ok(())
        };
        let took = milliseconds(starting).await?;
        try_join_all(running.iter().map(Container::delete)).await?;
        Ok(took)
    }

    async fn live(&self, args: &[String]) -> anyhow::Result<()> {
        let container = self.start(args).await?;
        let exit = container.wait().await?;
        anyhow::ensure!(exit.code == 0, "it ended with {}: {:?}", exit.code, exit.error);
        container.delete().await?;
        Ok(())
    }

    async fn start(&self, args: &[String]) -> anyhow::Result<Container> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let task_id = TaskId::from_random(u128::from(number) + 1);
        let container = ContainerSpec { args: args.to_vec(), ..Default::default() };
        let plan = ContainerPlan {
            container_id: format!("{number:064x}"),
            rootfs: self.rootfs.clone(),
            image: ImageDefaults::default(),
            spec: &TaskSpec { container, ..TaskSpec::default() },
            netns: None,
            host_network: false,
            binds: Vec::new(),
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

async fn milliseconds<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<f64> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

fn keep_bundle(dir: &Path, task_id: &TaskId) -> anyhow::Result<()> {
    let bundle = Paths::under(dir).shims_dir().join(task_id.as_str()).join("bundle/config.json");
    fs::copy(&bundle, dir.join("config.json")).with_context(|| format!("copy {}", bundle.display())).map(drop)
}
