//! The worker: brings this node's tasks to the state that managers want, and keeps them there without managers.
//!
//! [`run`] composes the parts: `agent` (session, assignments, tasks), `image`, `volume`, `netd_client`, `peer` (images for
//! other nodes), `api` (the local socket), over `runtime` and `shim` (containers) and `store` (what outlives a restart).
//!
//! Invariants: containers outlive this process and are found again by the next one; nothing of a secret reaches the
//! disk; only this crate talks to netd's socket.

// It panics where what it prints to is on a disk that is full, and a shim takes its container along.
#![deny(clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::print_stderr))]

pub mod runtime;
pub mod shim;

mod agent;
mod api;
mod arriving;
mod cleanup;
mod config;
mod contents;
mod events;
#[cfg(test)]
mod fuzz;
mod image;
mod local;
mod metrics;
mod netd_client;
mod peer;
mod signals;
mod store;
mod users;
mod volume;
mod within;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use orch_proto::{
    files,
    paths::Paths,
    tls::{SharedIdentity, install_crypto_provider},
    wire::DaemonConfig,
};
use prost::Message;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{Agent, Host},
    config::Settings,
    image::{Images, store::ImageStore},
    netd_client::Netd,
    runtime::Runtime,
    store::Store,
    volume::Volumes,
};

pub use arriving::Arriving;
pub use cleanup::cleanup;

/// What [`run`] needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    pub paths: Paths,
}

/// Runs the worker until SIGTERM or a fatal error. Containers go on either way.
pub fn run(config: Config) -> anyhow::Result<()> {
    install_crypto_provider();
    files::make_room();
    let tokio =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the worker's threads")?;
    let result = tokio.block_on(serve(config));
    // Crash-only: the process ends with everything as it is. Shutting the threads down would make what they wait for
    // fail, and such failures are not the containers'.
    std::mem::forget(tokio);
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let paths = config.paths;
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let addr = SocketAddr::from(([0, 0, 0, 0], peer::PEER_PORT));
    let listener = peer::listen(addr).await?;
    let agent = start(&paths, Runtime::new).await?;
    let (host, socket) = (agent.host.clone(), paths.worker_sock());
    tokio::select! {
        served = peer::serve(listener, host.identity.clone(), host.images.store.clone(), agent.members.clone()) => served.context("peer server"),
        served = api::serve(&socket, agent.clone()) => served.context("local API"),
        () = agent.clone().keep_session() => Ok(()),
        () = agent.gossip.keep(paths.node_sock()) => Ok(()),
        () = image::collect::keep(agent.clone()) => Ok(()),
        () = host.netd.clone().keep(|task| agent.knows(task)) => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Opens everything and takes up the tasks of an earlier run.
async fn start(
    paths: &Paths,
    make_runtime: impl FnOnce(&Paths, &str) -> Result<Runtime, runtime::RuntimeError>,
) -> anyhow::Result<Arc<Agent>> {
    let dir = paths.worker_dir();
    let store = Arc::new(Store::open(&dir)?);
    let daemon = read_daemon_config(paths)?;
    let settings = Settings::new(paths.config_file());
    for name in settings.unknown() {
        tracing::warn!(%name, "orch.toml: this is no key that orch reads, so it changes nothing; the README lists those that there are");
    }
    settings.offer()?;
    let tls = dir.join("tls");
    let identity = SharedIdentity::follow(&tls).with_context(|| {
        format!(
            "load this node's worker certificate from {} (restore that folder from a copy, or let the node join anew: \
             orch leave, then orch join)",
            tls.display()
        )
    })?;
    let images = ImageStore::open(&dir.join("images")).context("open the image store")?;
    let images = Images::new(images, settings.clone(), identity.clone());
    let remap = settings.remap()?;
    let volumes =
        Volumes::open(&paths.volumes_dir(), &paths.volume_users_dir(), &paths.volume_pins_dir())?.owned_by(remap);
    let netd = Netd::new(paths.netd_sock(), daemon.node_id.clone());
    let runtime = make_runtime(paths, &settings.cgroup_parent()?)?;
    runtime.warm_up().await;
    let host = Host::new(paths.clone(), store, images, volumes, netd, runtime, identity, remap);
    host.open_folders().context("open the worker's folders to remapped containers")?;
    let agent = Agent::new(host, daemon, settings);
    agent.recover().await?;
    Ok(agent)
}

fn read_daemon_config(paths: &Paths) -> anyhow::Result<DaemonConfig> {
    let path = paths.worker_dir().join("daemon.pb");
    let bytes = std::fs::read(&path).with_context(|| {
        format!("read {}: the node supervisor (orch node) writes it and starts the worker", path.display())
    })?;
    // What was cut at the start is as readable as nothing.
    let config = DaemonConfig::decode(bytes.as_slice()).ok().filter(|config| !config.node_id.is_empty());
    config.with_context(|| {
        format!(
            "{} is damaged: start orch anew on this node (\"systemctl restart orch\"; containers go on), which writes it again",
            path.display()
        )
    })
}
