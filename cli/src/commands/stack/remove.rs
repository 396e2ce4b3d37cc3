//! `orch stack rm`: services first, then what they used. What stopping tasks still have is removed by the managers, after
//! the last of them; names are free at once.

use std::{collections::BTreeSet, sync::Arc};

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

/// The longest that `--wait` waits for tasks to stop.
const WAIT_LIMIT: Duration = Duration::from_secs(600);
const WAIT_PAUSE: Duration = Duration::from_millis(200);

/// An object of a stack.
struct Part {
    kind: Kind,
    id: String,
    name: String,
    /// By a removal that came before.
    is_going: bool,
}

pub(super) async fn run(stacks: &[String], wait: bool, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    for_each(stacks, async |stack| {
        let parts = parts(&mut api, stack).await?;
        if parts.iter().all(|part| part.is_going) && (parts.is_empty() || !wait) {
            remark!("{}", super::nothing_found(stack));
            return Ok(());
        }
        let gone = remove(&mut api, stack, parts).await?;
        if wait { wait_until_gone(&mut api, stack, &gone).await } else { Ok(()) }
    })
    .await
}

/// Everything of a stack, in the order in which it can go.
async fn parts(api: &mut Api, stack: &str) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut add = |kind: Kind, id: &str, name: &str, is_going: bool| {
        parts.push(Part { kind, id: id.to_owned(), name: name.to_owned(), is_going });
    };
    for service in api.list::<Service>(in_stack(stack)).await? {
        add(Kind::Service, service.id.as_str(), &service.spec.annotations.name, service.removing);
    }
    for secret in api.list::<Secret>(in_stack(stack)).await? {
        add(Kind::Secret, secret.id.as_str(), &secret.annotations.name, secret.removing);
    }
    for config in api.list::<Config>(in_stack(stack)).await? {
        add(Kind::Config, config.id.as_str(), &config.annotations.name, config.removing);
    }
    for network in api.list::<Network>(in_stack(stack)).await? {
        add(Kind::Network, network.id.as_str(), &network.spec.annotations.name, network.removing);
    }
    Ok(parts)
}

/// Returns the ids of what goes.
async fn remove(api: &mut Api, stack: &str, parts: Vec<Part>) -> anyhow::Result<BTreeSet<String>> {
    let mut gone = BTreeSet::new();
    let mut failures = Vec::new();
    for Part { kind, id, name, is_going } in parts {
        if !is_going {
            println!("Removing {kind} {name}");
            match give_up(api, kind, &id).await {
                Ok(GivenUp::Goes) => {}
                Ok(GivenUp::UsedBy(user)) if user.stack() == Some(stack) => {
                    println!("Keeping {kind} {name}: service {} was deployed meanwhile and uses it", user.name());
                    continue;
                }
                Ok(GivenUp::UsedBy(user)) => {
                    let user = user.name();
                    failures.push(format!("cannot remove {kind} {name}: service {user} uses it; remove that first"));
                    continue;
                }
                Err(error) => {
                    failures.push(format!("cannot remove {kind} {name}: {error:#}"));
                    continue;
                }
            }
        }
        gone.insert(id);
    }
    if failures.is_empty() { Ok(gone) } else { Err(anyhow::anyhow!(failures.join("\n"))) }
}

/// A service is gone once its last task has stopped and given its addresses back, and then what only its tasks had.
async fn wait_until_gone(api: &mut Api, stack: &str, gone: &BTreeSet<String>) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        let left = parts(api, stack).await?;
        let Some(first) = left.iter().find(|part| gone.contains(&part.id)) else { return Ok(()) };
        if Instant::now() >= deadline {
            anyhow::bail!(
                "{} {} is still there after {} s, because tasks have not stopped; see `orch node ps NODE`. The managers \
                 go on with the removal",
                first.kind,
                first.name,
                WAIT_LIMIT.as_secs()
            );
        }
        sleep(WAIT_PAUSE).await;
    }
}

/// What became of asking for a removal.
pub(super) enum GivenUp {
    /// At once, or when the last task that has it has stopped.
    Goes,
    /// By a service that stays.
    UsedBy(User),
}

/// A service that uses the object.
pub(super) struct User(Arc<Service>);

impl User {
    fn name(&self) -> &str {
        &self.0.spec.annotations.name
    }

    fn stack(&self) -> Option<&str> {
        self.0.spec.annotations.labels.get(NAMESPACE_LABEL).map(String::as_str)
    }
}

/// Has the managers remove an object as soon as nothing has it.
pub(super) async fn give_up(api: &mut Api, kind: Kind, reference: &str) -> anyhow::Result<GivenUp> {
    match api.remove_when_free(kind, reference).await {
        Ok(()) => Ok(GivenUp::Goes),
        // Somebody else removed it.
        Err(status) if status.code() == Code::NotFound => Ok(GivenUp::Goes),
        Err(status) if status.code() == Code::FailedPrecondition => match user_of(api, kind, reference).await? {
            Some(user) => Ok(GivenUp::UsedBy(user)),
            None => Err(explain(status)),
        },
        Err(status) => Err(explain(status)),
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
