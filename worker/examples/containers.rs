//! Times containers of the worker's runtime alone, for `tests/bench/containers`: no images, no network, no manager.
//!
//! `containers DIR ROOTFS ROUNDS AT_ONCE [PROGRAM…]` prints JSON: milliseconds of each container that is created, started,
//! waited for and deleted by itself; of AT_ONCE of them together; and until AT_ONCE that go on (`sleep`, or PROGRAM) all
//! run. The bundle of the first one is kept as DIR/config.json, so that others can be timed with the same.

use std::{
    fs,
    path::{Path, PathBuf},
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
    let program = if program.is_empty() { vec!["sleep".to_owned(), "1000".to_owned()] } else { program.to_vec() };
    let bench = Bench::new(dir.into(), rootfs.into(), program)?;
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    threads.block_on(bench.run(rounds.parse()?, at_once.parse()?))
}

struct Bench {
    dir: PathBuf,
    rootfs: PathBuf,
    /// What goes on.
    program: Vec<String>,
    runtime: Runtime,
}

impl Bench {
    fn new(dir: PathBuf, rootfs: PathBuf, program: Vec<String>) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let runtime = Runtime::with_shim_command(&Paths::under(&dir), "/orch-bench", own, vec!["shim".into()])?;
        Ok(Self { dir, rootfs, program, runtime })
    }

    async fn run(&self, rounds: u32, at_once: u32) -> anyhow::Result<()> {
        let mut numbers = 0..;
        let mut number = || numbers.next().unwrap_or_default();
        let short_lived = ["true".to_owned()];
        let mut one_ms = Vec::new();
        let (mut many_ms, mut started_ms) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let began = Instant::now();
            self.live(number(), &short_lived).await?;
            one_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        for _ in 0..rounds.div_ceil(10) {
            let began = Instant::now();
            try_join_all((0..at_once).map(|_| self.live(number(), &short_lived))).await?;
            many_ms.push(began.elapsed().as_secs_f64() * 1000.0);
            let began = Instant::now();
            let running = try_join_all((0..at_once).map(|_| self.start(number(), &self.program))).await?;
            started_ms.push(began.elapsed().as_secs_f64() * 1000.0);
            try_join_all(running.iter().map(Container::delete)).await?;
        }
        println!("{}", serde_json::json!({"one_ms": one_ms, "many_ms": many_ms, "started_ms": started_ms}));
        Ok(())
    }

    async fn live(&self, number: u128, args: &[String]) -> anyhow::Result<()> {
        let container = self.start(number, args).await?;
        let exit = container.wait().await?;
        anyhow::ensure!(exit.code == 0, "it ended with {}: {:?}", exit.code, exit.error);
        container.delete().await?;
        Ok(())
    }

    async fn start(&self, number: u128, args: &[String]) -> anyhow::Result<Container> {
        let task_id = TaskId::from_random(number + 1);
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

fn keep_bundle(dir: &Path, task_id: &TaskId) -> anyhow::Result<()> {
    let bundle = Paths::under(dir).shims_dir().join(task_id.as_str()).join("bundle/config.json");
    fs::copy(&bundle, dir.join("config.json")).with_context(|| format!("copy {}", bundle.display())).map(drop)
}
