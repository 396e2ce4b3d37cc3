//! `orch inspect`: whatever has that name or id.

use clap::{Args, ValueEnum};
use orch_model::{
    node::Node,
    secret::{Config, Secret},
    service::Service,
    task::Task,
};
use orch_proto::{paths::Paths, wire};
use serde_json::Value;
use tonic::Code;

use super::{for_each, network, node::reachability, print_inspected};
use crate::{
    api::{Api, explain, worker},
    inspect,
};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output: 'json' or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Only inspect objects of the given type
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<What>,
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

/// In the order in which Docker's client looks: the first that has the name is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Container,
    Image,
    Network,
    Volume,
    Service,
    Task,
    Node,
    Secret,
    Config,
}

pub(crate) async fn run(args: InspectArgs, paths: &Paths) -> anyhow::Result<()> {
    let kinds = args.kind.as_ref().map_or(What::value_variants(), std::slice::from_ref);
    let mut found = Vec::new();
    let outcome = for_each(&args.names, async |reference| {
        found.push(find(kinds, reference, paths).await?);
        Ok(())
    })
    .await;
    print_inspected(found, args.format.as_deref())?;
    outcome
}

async fn find(kinds: &[What], reference: &str, paths: &Paths) -> anyhow::Result<Value> {
    // Where nobody can be asked about one kind, the name may still be of another.
    let mut unasked = None;
    for kind in kinds {
        match kind.find(reference, paths).await {
            Ok(Some(object)) => return Ok(object),
            Ok(None) => {}
            Err(error) => unasked = unasked.or(Some(error)),
        }
    }
    if let Some(error) = unasked {
        return Err(error);
    }
    match kinds {
        [kind] => anyhow::bail!("no such {}: {reference}; see `orch {} ls`", kind.word(), kind.word()),
        _ => anyhow::bail!("no such object: {reference}; see `orch ps -a`, `orch service ls`, `orch image ls`"),
    }
}

impl What {
    fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    async fn find(self, reference: &str, paths: &Paths) -> anyhow::Result<Option<Value>> {
        match self {
            Self::Container => container(reference, paths).await,
            Self::Image => {
                let request = wire::ImageReference { reference: reference.into() };
                let image = optional(worker(paths).await?.inspect_image(request).await)?;
                Ok(image.map(|image| inspect::image(&image)))
            }
            Self::Network => network::inspected(reference, paths).await,
            Self::Volume => {
                let volumes = worker(paths).await?.list_volumes(wire::Empty {}).await.map_err(explain)?.into_inner();
                Ok(volumes.volumes.iter().find(|volume| volume.name == reference).map(inspect::volume))
            }
            Self::Service => {
                let service = Api::connect(paths).await?.get_optional::<Service>(reference).await?;
                Ok(service.map(|service| inspect::service(&service)))
            }
            Self::Task => {
                let task = Api::connect(paths).await?.get_optional::<Task>(reference).await?;
                Ok(task.map(|task| inspect::task(&task)))
            }
            Self::Node => {
                let mut api = Api::connect(paths).await?;
                let Some(node) = api.get_optional::<Node>(reference).await? else { return Ok(None) };
                let reachable = reachability(&api.info().await?).get(node.id.as_str()).copied();
                Ok(Some(inspect::node(&node, reachable)))
            }
            Self::Secret => {
                let secret = Api::connect(paths).await?.get_optional::<Secret>(reference).await?;
                Ok(secret.map(|secret| inspect::secret(&secret)))
            }
            Self::Config => {
                let config = Api::connect(paths).await?.get_optional::<Config>(reference).await?;
                Ok(config.map(|config| inspect::config(&config)))
            }
        }
    }
}

/// A task's id and its name (`web.1`) mean the task, not its container.
async fn container(reference: &str, paths: &Paths) -> anyhow::Result<Option<Value>> {
    let request = wire::ContainerReference { reference: reference.into() };
    let Some(details) = optional(worker(paths).await?.inspect_container(request).await)? else { return Ok(None) };
    let named = details.container.clone().unwrap_or_default();
    let meant = details.local.is_some() || named.name == reference || named.container_id.starts_with(reference);
    Ok(meant.then(|| inspect::local_container(&details)))
}

fn optional<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(explain(status)),
    }
}
