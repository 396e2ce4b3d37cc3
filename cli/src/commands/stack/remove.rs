//! `orch stack rm`: services first, then what they used, which is free once their last task has stopped.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::Context as _;
use orch_model::{
    Kind,
    network::Network,
    secret::{Config, Secret},
    service::{Service, TaskSpec},
};
use orch_proto::paths::Paths;
use tokio::time::{Duration, Instant, sleep};
use tonic::Code;

use super::in_stack;
use crate::{
    api::{Api, explain},
    commands::for_each,
    compose::NAMESPACE_LABEL,
};

/// The longest that tasks may take to stop before their networks are given up on.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);
const RELEASE_PAUSE: Duration = Duration::from_millis(200);

/// The longest that `--wait` waits for tasks to stop.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn run(stacks: &[String], wait: bool, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for_each(stacks, async |stack| {
        let gone: Vec<Arc<Service>> = api.list::<Service>(in_stack(stack)).await?;
        remove(&mut api, stack, wait).await?;
        if wait { wait_until_gone(&mut api, stack, &gone).await } else { Ok(()) }
    })
    .await
}

/// A service is gone once its last task has stopped and given its addresses back.
async fn wait_until_gone(api: &mut Api, stack: &str, gone: &[Arc<Service>]) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        let left = api.list::<Service>(in_stack(stack)).await?;
        let mut waiting = left.iter().filter(|service| gone.iter().any(|g| g.id == service.id));
        let Some(first) = waiting.next() else { return Ok(()) };
        if Instant::now() >= deadline {
            anyhow::bail!(
                "service {} still has tasks after {} s; see `orch service ps {}`",
                first.spec.annotations.name,
                WAIT_LIMIT.as_secs(),
                first.id
            );
        }
        sleep(RELEASE_PAUSE).await;
    }
}

async fn remove(api: &mut Api, stack: &str, wait: bool) -> anyhow::Result<()> {
    let mut found: Vec<(Kind, String, String)> = Vec::new();
    for service in api.list::<Service>(in_stack(stack)).await?.iter().filter(|s| !s.removing) {
        found.push((Kind::Service, service.id.to_string(), service.spec.annotations.name.clone()));
    }
    for secret in api.list::<Secret>(in_stack(stack)).await? {
        found.push((Kind::Secret, secret.id.to_string(), secret.annotations.name.clone()));
    }
    for config in api.list::<Config>(in_stack(stack)).await? {
        found.push((Kind::Config, config.id.to_string(), config.annotations.name.clone()));
    }
    for network in api.list::<Network>(in_stack(stack)).await? {
        found.push((Kind::Network, network.id.to_string(), network.spec.annotations.name.clone()));
    }
    if found.is_empty() {
        anyhow::bail!("Nothing found in stack: {stack}");
    }
    let mut failures = Vec::new();
    let mut left = Vec::new();
    for (kind, id, name) in found {
        println!("Removing {kind} {name}");
        let outcome = if wait { remove_when_free(api, kind, &id).await } else { remove_if_free(api, kind, &id).await };
        match outcome {
            Ok(Freed::Removed) => {}
            Ok(Freed::Later) => left.push(format!("{kind}:{id}")),
            Ok(Freed::UsedBy(user)) if user.stack() == Some(stack) => {
                println!("Keeping {kind} {name}: service {} was deployed meanwhile and uses it", user.name());
            }
            Ok(Freed::UsedBy(user)) => {
                let user = user.name();
                failures.push(format!("cannot remove {kind} {name}: service {user} uses it; remove that first"));
            }
            Err(error) => failures.push(format!("cannot remove {kind} {name}: {error:#}")),
        }
    }
    if !left.is_empty() {
        finish_in_background(stack, &left)?;
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failures.join("\n"))) }
}

/// What tasks use that still stop is removed by a process of its own, so that nobody has to wait. Should it be lost with
/// the machine, the same removal again, or a deployment, finds what is left.
fn finish_in_background(stack: &str, left: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["stack", "rm"]).args(left.iter().map(|what| format!("--finish={what}"))).args(["--", stack]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().context("cannot go on in the background with what is still in use; use --wait")?;
    Ok(())
}

/// The part of a removal that waits for tasks to stop. What a new deployment uses stays.
pub(super) async fn finish(left: &[String], paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for what in left {
        let (word, id) = what.split_once(':').unwrap_or_default();
        let Some(kind) = KINDS.into_iter().find(|kind| kind.to_string() == word) else { continue };
        remove_when_free(&mut api, kind, id).await?;
    }
    Ok(())
}

const KINDS: [Kind; 3] = [Kind::Secret, Kind::Config, Kind::Network];

/// How waiting for an object to be free ended.
pub(super) enum Freed {
    Removed,
    /// Tasks that still stop use it.
    Later,
    /// By a service that stays: it will not get free.
    UsedBy(User),
}

/// A service that uses the object.
pub(super) struct User(Arc<Service>);

impl User {
    pub(super) fn name(&self) -> &str {
        &self.0.spec.annotations.name
    }

    fn stack(&self) -> Option<&str> {
        self.0.spec.annotations.labels.get(NAMESPACE_LABEL).map(String::as_str)
    }
}

/// Asks once.
async fn remove_if_free(api: &mut Api, kind: Kind, id: &str) -> anyhow::Result<Freed> {
    match api.try_remove(kind, id, false).await {
        Ok(()) => Ok(Freed::Removed),
        Err(status) if status.code() == Code::NotFound => Ok(Freed::Removed),
        Err(status) if status.code() == Code::FailedPrecondition && kind != Kind::Service => {
            Ok(user_of(api, kind, id).await?.map_or(Freed::Later, Freed::UsedBy))
        }
        Err(status) => Err(explain(status)),
    }
}

/// What services used is in use until their last task is gone: asks again until then.
pub(super) async fn remove_when_free(api: &mut Api, kind: Kind, id: &str) -> anyhow::Result<Freed> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        let Err(status) = api.try_remove(kind, id, false).await else { return Ok(Freed::Removed) };
        match status.code() {
            // Somebody else removed it.
            Code::NotFound => return Ok(Freed::Removed),
            Code::FailedPrecondition if kind != Kind::Service && Instant::now() < deadline => {}
            _ => return Err(explain(status)),
        }
        if let Some(user) = user_of(api, kind, id).await? {
            return Ok(Freed::UsedBy(user));
        }
        sleep(RELEASE_PAUSE).await;
    }
}

/// A service, not on its way out, that has the network, secret or config in its spec.
async fn user_of(api: &mut Api, kind: Kind, id: &str) -> anyhow::Result<Option<User>> {
    let uses = |spec: &TaskSpec| match kind {
        Kind::Network => spec.networks.iter().any(|n| n.network.as_str() == id),
        Kind::Secret => spec.container.secrets.iter().any(|s| s.id.as_str() == id),
        Kind::Config => spec.container.configs.iter().any(|c| c.id.as_str() == id),
        _ => false,
    };
    let services = api.all::<Service>().await?;
    Ok(services.into_iter().find(|s| !s.removing && uses(&s.spec.task)).map(User))
}
