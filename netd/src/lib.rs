//! The network daemon: carries out what [`orch_netd_core`] decides.
//!
//! One engine owns all state and takes one step at a time (requests that wait meanwhile are carried out together); work
//! inside namespaces is done by threads that enter them and end there. It can be killed at any instant: on its start it
//! reads its files and the kernel, compares with what is wanted, and carries on; the packets of running containers never
//! depend on it, only what comes in by IPv6 for published ports does. Questions for names wait for the next one.
//!
//! Must not know containers, images or managers: only the worker talks to it.

mod conntrack;
mod counts;
mod dns;
mod engine;
mod entry;
mod firewall;
#[cfg(test)]
mod fuzz;
mod keeper;
mod memory;
mod metrics;
mod netlink;
mod netns;
mod nfnetlink;
mod nft;
mod service;
mod store;
mod trace;
mod wireguard;

use std::{fs, io, path::Path, sync::Arc};

use anyhow::Context as _;
use orch_netd_core::ruleset::Family;
use orch_proto::{files, metrics::MetricsLayer, paths::Paths, transport, wire::netd_server::NetdServer};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{dns::Resolvers, engine::Engine, keeper::Keeper, store::Store};

/// Requests that may wait for the engine.
const MAX_WAITING: usize = 1_024;
/// What a node has to know of a large cluster comes in one message: some 200 bytes for each task on a network of its own.
const MESSAGE_BYTES: usize = 64 << 20;
/// Only the worker, which is root, talks to the daemon.
const SOCKET_MODE: u32 = 0o600;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the daemon needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    pub paths: Paths,
}

/// Serves `Netd` until SIGTERM or a fatal error. What it made stays: containers keep their networks.
pub fn run(config: Config) -> anyhow::Result<()> {
    raise_descriptor_limit();
    files::make_room();
    memory::bound_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(serve(config))
}

/// Each task takes four descriptors (its namespace, rules, two DNS sockets): the usual 1024 are too few for 250 tasks. The
/// daemon starts no program that would inherit this.
fn raise_descriptor_limit() {
    if let Err(error) = files::raise_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files: some hundred tasks at most can have networks here");
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let store = Store::open(&config.paths).context("opening the network daemon's folders")?;
    let resolvers = Arc::new(Resolvers::new(RESOLV_CONF.into()));
    let keeper = Keeper::find().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the supervisor's sockets cannot be had");
        Keeper::nobody()
    });
    let engine = Engine::start(store.clone(), resolvers, keeper).await.context("starting the network daemon")?;
    let socket = config.paths.netd_sock();
    let incoming = transport::unix_incoming(&socket, SOCKET_MODE).context("opening the network daemon's socket")?;
    let (commands, receiver) = mpsc::channel(MAX_WAITING);
    let engine = tokio::spawn(engine.run(receiver));
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let waiting = commands.downgrade();
    let server = tonic::transport::Server::builder()
        .accept_http1(true)
        .layer(MetricsLayer::new(move || metrics::page(&waiting)))
        .add_service(NetdServer::new(service::Netd { commands, store }).max_decoding_message_size(MESSAGE_BYTES))
        .serve_with_incoming_shutdown(incoming, async move {
            terminate.recv().await;
        });
    tracing::info!(socket = %socket.display(), "the network daemon is ready");
    server.await.context("serving the network daemon's socket")?;
    // The last sender is gone with the server: the engine ends when it has done what was asked.
    engine.await.context("the network daemon's engine panicked")
}

/// Removes everything that the daemon ever made on this node: tables, links, namespaces, files. For leaving a cluster;
/// the daemon must not run, and the node's containers must have ended. Goes on after a failure and reports the first.
pub fn cleanup(paths: &Paths) -> anyhow::Result<()> {
    let store = Store::open(paths).context("opening the network daemon's folders")?;
    let mut results = Vec::new();
    for (path, known) in store.namespaces().context("listing namespaces")? {
        if known.is_some() {
            results.push(empty_sandbox(&path).with_context(|| format!("emptying {}", path.display())));
        }
        results.push(netns::remove(&path).with_context(|| format!("removing {}", path.display())));
    }
    results.push(netns::on_own_thread(netlink::delete_own_links).context("removing links"));
    results.push(delete_rules().context("removing rules"));
    results.push(put_back_settings(&store).context("putting back settings"));
    results.push(store.remove().context("removing files"));
    results.into_iter().collect()
}

fn delete_rules() -> io::Result<()> {
    nft::delete_tables(&nfnetlink::Socket::open()?, &[(Family::V4, "orch_host"), (Family::V6, "orch_host")])
}

/// What the node's settings were before. Those of a link that is gone are gone too.
fn put_back_settings(store: &Store) -> io::Result<()> {
    let settings = store.load_settings();
    let mut result = Ok(());
    for (path, value) in settings.put_back(|path| netlink::read_setting(path).ok()) {
        match fs::write(netlink::setting(path), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
            _ => {}
        }
    }
    result
}

/// Links are deleted by hand: the kernel takes its time with those of a namespace that goes, and a tunnel with the same
/// number cannot be made meanwhile.
fn empty_sandbox(path: &Path) -> io::Result<()> {
    let Some(ns) = netns::NetNs::open(path)? else { return Ok(()) };
    netns::on_own_thread(move || {
        ns.enter()?;
        netlink::delete_all_links()
    })
}
