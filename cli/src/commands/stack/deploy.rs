//! `orch stack deploy`.

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, Write as _},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::Args;
use orch_model::{
    Kind, ServiceId,
    network::{Network, NodeNetwork},
    secret::{Config, Secret},
    service::{Service, ServiceSpec},
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use super::{
    files::{self, FileArgs},
    in_stack, record,
    remove::give_up,
    rotate::{self, Current},
};
use crate::{
    api::Api,
    commands::{
        data,
        service::{
            self,
            registry::{self, Wanted},
            resolve,
        },
        warn,
    },
    compose::{Content, Stack, StackData, StackNetwork, StackService},
    progress,
};

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Exit immediately instead of waiting for the stack services to converge (default true)
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    detach: Option<bool>,
    /// Prune services that are no longer referenced; on a terminal, asks first
    #[arg(long)]
    prune: bool,
    /// Do not ask before services are removed
    #[arg(short, long)]
    yes: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// When to ask again which content an image's name means
    #[arg(long, value_name = "WHEN", default_value = "always", value_parser = ["always", "changed", "never"])]
    resolve_image: String,
    /// Send registry authentication details to the nodes that run the services
    #[arg(long)]
    with_registry_auth: bool,
    /// The stack's name; without it the file's `name:`, else its folder's name
    stack: Option<String>,
}

pub(super) async fn run(args: DeployArgs, paths: &Paths) -> anyhow::Result<()> {
    let (name, stack) = files::load(&args.files, args.stack.as_deref())?;
    let options = Options {
        prune: args.prune,
        ask: !args.yes && std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        resolve: args.resolve_image == "always",
        image: Wanted { resolve: args.resolve_image != "never", login: args.with_registry_auth },
        detach: args.detach.unwrap_or(true),
        quiet: args.quiet,
    };
    deploy(paths, &name, &stack, &options).await
}

/// How a stack is deployed.
pub(super) struct Options {
    pub(super) prune: bool,
    /// Before anything is pruned.
    pub(super) ask: bool,
    /// Whether an image's name may mean another content than at the last deployment.
    pub(super) resolve: bool,
    /// What is found out about images whose content is not known, and whether their login goes along.
    pub(super) image: Wanted,
    pub(super) detach: bool,
    pub(super) quiet: bool,
}

pub(super) async fn deploy(paths: &Paths, name: &str, stack: &Stack, options: &Options) -> anyhow::Result<()> {
    // Read before anything is changed, so that a missing file leaves nothing half done.
    let contents = stack.data.iter().map(content).collect::<anyhow::Result<Vec<_>>>()?;
    let mut api = Api::connect(paths).await?;
    stack.warnings.iter().for_each(|warning| remark!("{warning}"));
    check_external(&mut api, stack).await?;
    let pruned = if options.prune { superfluous(&mut api, name, stack).await? } else { Vec::new() };
    if options.ask && !pruned.is_empty() && !confirmed(&pruned)? {
        bail!("nothing was changed");
    }
    let watched = apply_or_undo(&mut api, stack, &contents, options, &pruned).await?;
    record::save(&mut api, name).await.context("the stack is deployed, but this deployment could not be noted")?;
    if options.detach { Ok(()) } else { progress::wait_all(&mut api, &watched, options.quiet).await }
}

fn confirmed(pruned: &[Arc<Service>]) -> anyhow::Result<bool> {
    println!("These services are not in the file and will be removed with their tasks:");
    pruned.iter().for_each(|service| println!("  {}", service.spec.annotations.name));
    print!("Go on? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// What this run did, so that it can be taken back.
enum Done {
    Created(Kind, String),
    Updated(ServiceId, Box<ServiceSpec>),
    Removed(Box<ServiceSpec>),
}

struct Deployment<'a> {
    stack: &'a Stack,
    /// Of each of the stack's secrets and configs; `None` when the file does not bring it.
    contents: &'a [Option<Vec<u8>>],
    /// What the secrets and configs of the file are called now.
    current: Current,
    /// The stack's own networks that were there, or were made.
    networks: Vec<&'a str>,
    options: &'a Options,
    /// Services that go.
    pruned: &'a [Arc<Service>],
    done: Vec<Done>,
}

/// How often a deployment starts over because a removal took something away under it: it meets each kind of object once.
const ATTEMPTS: usize = 5;

/// A refused deployment leaves nothing half done.
async fn apply_or_undo(
    api: &mut Api,
    stack: &Stack,
    contents: &[Option<Vec<u8>>],
    options: &Options,
    pruned: &[Arc<Service>],
) -> anyhow::Result<Vec<progress::Watched>> {
    let mut attempt = 1;
    loop {
        let mut deployment = Deployment::new(stack, contents, options, pruned);
        let error = match deployment.apply(api).await {
            Ok(watched) => return Ok(watched),
            Err(error) => error,
        };
        let start_over = attempt < ATTEMPTS && lost_something(api, &deployment).await;
        deployment.undo(api).await;
        if !start_over {
            return Err(error);
        }
        attempt += 1;
    }
}

/// Whether something of the stack is gone although it was there, or made, a moment ago.
async fn lost_something(api: &mut Api, deployment: &Deployment<'_>) -> bool {
    for name in &deployment.networks {
        if matches!(find_named_network(api, name).await, Ok(false)) {
            return true;
        }
    }
    for ((kind, _), name) in &deployment.current {
        let is_gone = match kind {
            Kind::Secret => api.get_optional::<Secret>(name).await.is_ok_and(|found| found.is_none()),
            _ => api.get_optional::<Config>(name).await.is_ok_and(|found| found.is_none()),
        };
        if is_gone {
            return true;
        }
    }
    false
}

impl<'a> Deployment<'a> {
    fn new(
        stack: &'a Stack,
        contents: &'a [Option<Vec<u8>>],
        options: &'a Options,
        pruned: &'a [Arc<Service>],
    ) -> Self {
        let (current, networks, done) = (Current::default(), Vec::new(), Vec::new());
        Self { stack, contents, current, networks, options, pruned, done }
    }

    async fn apply(&mut self, api: &mut Api) -> anyhow::Result<Vec<progress::Watched>> {
        // First: what comes may need their ports.
        for service in self.pruned {
            println!("Removing service {}", service.spec.annotations.name);
            api.remove(Kind::Service, service.id.as_str(), false).await?;
            self.done.push(Done::Removed(Box::new(service.spec.clone())));
        }
        for network in &self.stack.networks {
            self.network(api, network).await?;
        }
        for (item, content) in self.stack.data.iter().zip(self.contents) {
            let Some(content) = content else { continue };
            let (name, created) = rotate::ensure(api, item, content).await?;
            if created {
                self.done.push(Done::Created(item.kind, name.clone()));
            }
            self.current.insert((item.kind, item.annotations.name.clone()), name);
        }
        let mut watched = Vec::new();
        for service in &self.stack.services {
            watched.push(self.service(api, service).await?);
        }
        Ok(watched)
    }

    /// Newest first.
    async fn undo(self, api: &mut Api) {
        for done in self.done.into_iter().rev() {
            let outcome = match &done {
                Done::Created(kind, name) => {
                    println!("Removing {kind} {name} (the deployment failed)");
                    give_up(api, *kind, name).await.map(drop)
                }
                Done::Updated(id, before) => {
                    println!("Restoring service {} (the deployment failed)", before.annotations.name);
                    restore(api, id, before).await
                }
                Done::Removed(spec) => {
                    println!("Creating service {} again (the deployment failed)", spec.annotations.name);
                    api.create::<Service>(resolve::asked(spec)).await.map(drop)
                }
            };
            if let Err(error) = outcome {
                remark!("cannot take that back: {error:#}");
            }
        }
    }

    async fn network(&mut self, api: &mut Api, network: &'a StackNetwork) -> anyhow::Result<()> {
        let name = &network.spec.annotations.name;
        if network.external {
            return Ok(());
        }
        if find_named_network(api, name).await? {
            self.networks.push(name);
            return Ok(());
        }
        println!("Creating network {name}");
        let spec = wire::spec::Spec::Network(network.spec.to_proto());
        let (_, warnings) =
            api.create::<Network>(spec).await.with_context(|| format!("failed to create network {name}"))?;
        self.networks.push(name);
        self.done.push(Done::Created(Kind::Network, name.clone()));
        warn(&warnings);
        Ok(())
    }

    async fn service(&mut self, api: &mut Api, service: &StackService) -> anyhow::Result<progress::Watched> {
        let mut spec = service.spec.clone();
        let name = spec.annotations.name.clone();
        let networks = resolve::networks(api, &service.networks).await?;
        (spec.task.networks, spec.task.node_network) = (networks.of_cluster, networks.of_node);
        spec.task.container.secrets =
            resolve::secrets(api, &rotate::renamed(&self.current, Kind::Secret, &service.secrets)).await?;
        spec.task.container.configs =
            resolve::configs(api, &rotate::renamed(&self.current, Kind::Config, &service.configs)).await?;
        let existing =
            api.get_optional::<Service>(&name).await?.filter(|s| s.spec.annotations.name == name && !s.removing);
        let Some(before) = existing else {
            println!("Creating service {name}");
            let login = registry::settle(api, &name, &mut spec.task.container, self.options.image).await?;
            let created = api.create::<Service>(resolve::asked(&spec)).await;
            let (created, warnings) = match created.with_context(|| format!("failed to create service {name}")) {
                Ok(created) => created,
                Err(error) => {
                    login.take_back(api).await;
                    return Err(error);
                }
            };
            self.done.push(Done::Created(Kind::Service, name));
            warn(&warnings);
            return Ok(progress::Watched::after_create(&created));
        };
        println!("Updating service {name} (id: {})", before.id);
        carry_over(&before.spec, &mut spec, self.options.resolve);
        let login = registry::settle(api, &name, &mut spec.task.container, self.options.image).await?;
        // A paused update is to begin anew.
        let is_paused = before.update_status.as_ref().is_some_and(|status| progress::is_paused(status.state));
        if spec == before.spec && !is_paused {
            return Ok(progress::Watched::after_update(&before, &before));
        }
        let updated = service::send(api, &before, Some(&spec)).await;
        let after = match updated.with_context(|| format!("failed to update service {name}")) {
            Ok(updated) => updated,
            Err(error) => {
                login.take_back(api).await;
                return Err(error);
            }
        };
        self.done.push(Done::Updated(before.id.clone(), Box::new(before.spec.clone())));
        Ok(progress::Watched::after_update(&before, &after))
    }
}

async fn restore(api: &mut Api, id: &ServiceId, before: &ServiceSpec) -> anyhow::Result<()> {
    let now = api.get::<Service>(id.as_str()).await?;
    service::send(api, &now, Some(before)).await.map(drop)
}

pub(super) fn content(item: &StackData) -> anyhow::Result<Option<Vec<u8>>> {
    let name = &item.annotations.name;
    let content = match &item.content {
        Content::External => return Ok(None),
        Content::Text(text) => text.clone().into_bytes(),
        Content::File(file) => std::fs::read(file)
            .with_context(|| format!("cannot read the content of {} {name} from {file}", item.kind))?,
    };
    data::check_size(item.kind, content.len()).with_context(|| format!("{} {name}", item.kind))?;
    Ok(Some(content))
}

pub(super) async fn check_external(api: &mut Api, stack: &Stack) -> anyhow::Result<()> {
    for network in stack.networks.iter().filter(|n| n.external) {
        let name = &network.spec.annotations.name;
        // What every node has needs nobody to make it.
        if NodeNetwork::of_service(name, true)?.is_none() && api.get_optional::<Network>(name).await?.is_none() {
            bail!(
                "network {name:?} is declared as external, but could not be found. You need to create an overlay \
                 network before the stack is deployed: orch network create --driver overlay {name}"
            );
        }
    }
    for item in stack.data.iter().filter(|d| d.content == Content::External) {
        let name = &item.annotations.name;
        let found = match item.kind {
            Kind::Secret => api.get_optional::<Secret>(name).await?.is_some(),
            _ => api.get_optional::<Config>(name).await?.is_some(),
        };
        if !found {
            bail!(
                "{0} {name:?} is declared as external, but could not be found: orch {0} create {name} FILE",
                item.kind
            );
        }
    }
    Ok(())
}

/// Services of the stack that the file does not name.
async fn superfluous(api: &mut Api, name: &str, stack: &Stack) -> anyhow::Result<Vec<Arc<Service>>> {
    let kept: BTreeSet<&str> = stack.services.iter().map(|s| s.spec.annotations.name.as_str()).collect();
    let mut services = api.list::<Service>(in_stack(name)).await?;
    services.retain(|service| !service.removing && !kept.contains(service.spec.annotations.name.as_str()));
    Ok(services)
}

/// By full name only: a prefix of an id must not be taken for it.
async fn find_named_network(api: &mut Api, name: &str) -> anyhow::Result<bool> {
    Ok(api.get_optional::<Network>(name).await?.is_some_and(|network| network.spec.annotations.name == name))
}

/// What the cluster or an operator added to the stored spec and the file says nothing about.
fn carry_over(stored: &ServiceSpec, spec: &mut ServiceSpec, resolve: bool) {
    spec.task.force_update = stored.task.force_update;
    spec.task.container.registry_auth.clone_from(&stored.task.container.registry_auth);
    // Variables have no order; one that an operator added is at the end.
    let sorted = |env: &[String]| env.iter().cloned().collect::<BTreeSet<String>>();
    if sorted(&stored.task.container.env) == sorted(&spec.task.container.env) {
        spec.task.container.env.clone_from(&stored.task.container.env);
    }
    if !resolve
        && spec.task.container.image_digest.is_none()
        && stored.task.container.image == spec.task.container.image
    {
        spec.task.container.image_digest.clone_from(&stored.task.container.image_digest);
    }
}
