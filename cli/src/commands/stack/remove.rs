//! `orch stack rm`: services first, then what they used.

use orch_model::{
    Kind,
    network::Network,
    secret::{Config, Secret},
    service::Service,
};
use orch_proto::paths::Paths;
use tokio::time::{Duration, Instant, sleep};
use tonic::Code;

use super::in_stack;
use crate::{
    api::{Api, explain},
    commands::for_each,
};

/// The longest that tasks may take to stop before their networks are given up on.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);
const RELEASE_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(stacks: &[String], paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for_each(stacks, async |stack| remove(&mut api, stack).await).await
}

async fn remove(api: &mut Api, stack: &str) -> anyhow::Result<()> {
    let mut found: Vec<(Kind, String, String)> = Vec::new();
    for service in api.list::<Service>(in_stack(stack)).await? {
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
    for (kind, id, name) in found {
        println!("Removing {kind} {name}");
        if let Err(error) = remove_when_free(api, kind, &id).await {
            failures.push(format!("cannot remove {kind} {name}: {error:#}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failures.join("\n"))) }
}

/// What services used is in use until their last task is gone: asks again until then.
pub(super) async fn remove_when_free(api: &mut Api, kind: Kind, id: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        let Err(status) = api.try_remove(kind, id, false).await else { return Ok(()) };
        let in_use = kind != Kind::Service && status.code() == Code::FailedPrecondition;
        if !in_use || Instant::now() >= deadline {
            return Err(explain(status));
        }
        sleep(RELEASE_PAUSE).await;
    }
}
