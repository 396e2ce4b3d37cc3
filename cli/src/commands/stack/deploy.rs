//! `orch stack deploy`.

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use orch_model::{
    Kind,
    network::Network,
    secret::{Config, Secret},
    service::{Service, ServiceSpec},
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use super::{in_stack, remove::remove_when_free};
use crate::{
    api::Api,
    commands::{data, service::resolve, warn},
    compose::{Document, Stack, StackData, StackNetwork, StackService, Surroundings},
    progress,
};

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Path to a Compose file, or "-" to read from stdin
    #[arg(short, long, value_name = "FILE", required = true)]
    compose_file: PathBuf,
    /// Exit immediately instead of waiting for the stack services to converge (default true)
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    detach: Option<bool>,
    /// Prune services that are no longer referenced
    #[arg(long)]
    prune: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Accepted for Docker's sake: names are resolved by the cluster
    #[arg(long, hide = true)]
    resolve_image: Option<String>,
    /// Accepted for Docker's sake
    #[arg(long, hide = true)]
    with_registry_auth: bool,
    /// The stack's name; without it the file's `name:`, else its folder's name
    stack: Option<String>,
}

pub(super) async fn run(args: DeployArgs, paths: &Paths) -> anyhow::Result<()> {
    let (name, stack) = load(&args)?;
    // Read before anything is changed, so that a missing file leaves nothing half done.
    let contents = stack.data.iter().map(content).collect::<anyhow::Result<Vec<_>>>()?;
    let mut api = Api::connect(paths).await?;
    stack.warnings.iter().for_each(|warning| eprintln!("{warning}"));
    check_external(&mut api, &stack).await?;
    if args.prune {
        prune(&mut api, &name, &stack).await?;
    }
    let mut made = Vec::new();
    let watched = match apply(&mut api, &stack, contents, &mut made).await {
        Ok(watched) => watched,
        Err(error) => {
            undo(&mut api, made).await;
            return Err(error);
        }
    };
    if !args.detach.unwrap_or(true) {
        for watched in watched {
            progress::wait(&mut api, &watched, args.quiet).await?;
        }
    }
    Ok(())
}

/// What this run created: kind and full name.
type Made = Vec<(Kind, String)>;

async fn apply(
    api: &mut Api,
    stack: &Stack,
    contents: Vec<Option<Vec<u8>>>,
    made: &mut Made,
) -> anyhow::Result<Vec<progress::Watched>> {
    for network in &stack.networks {
        deploy_network(api, network, made).await?;
    }
    for (item, content) in stack.data.iter().zip(contents) {
        if let Some(content) = content {
            deploy_data(api, item, content, made).await?;
        }
    }
    let mut watched = Vec::new();
    for service in &stack.services {
        watched.push(deploy_service(api, service, made).await?);
    }
    Ok(watched)
}

/// A refused deployment leaves nothing half done: what it created goes again, newest first.
async fn undo(api: &mut Api, made: Made) {
    for (kind, name) in made.into_iter().rev() {
        println!("Removing {kind} {name} (the deployment failed)");
        if let Err(error) = remove_when_free(api, kind, &name).await {
            eprintln!("cannot remove {kind} {name}: {error:#}");
        }
    }
}

/// The stack's name and what the file says.
fn load(args: &DeployArgs) -> anyhow::Result<(String, Stack)> {
    let from_stdin = args.compose_file.as_os_str() == "-";
    let (text, dir) = if from_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read the stack file from standard input")?;
        (text, std::env::current_dir()?)
    } else {
        let file = &args.compose_file;
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let file = std::path::absolute(file)?;
        (text, file.parent().unwrap_or(Path::new("/")).to_owned())
    };
    let shown = if from_stdin { "stdin".to_owned() } else { args.compose_file.display().to_string() };
    let document = Document::parse(&text, &shown)?;
    let folder = dir.file_name().map(|name| normalised(&name.to_string_lossy())).unwrap_or_default();
    let name = args.stack.clone().or_else(|| document.name().map(str::to_owned)).unwrap_or(folder);
    check_name(&name)?;
    let surroundings = Surroundings {
        stack: &name,
        dir: dir.to_str().ok_or_else(|| anyhow!("the path {} is not UTF-8", dir.display()))?,
        variable: &|name| std::env::var(name).ok(),
        env_file: &|path| std::fs::read_to_string(path).map_err(|error| error.to_string()),
    };
    let stack = document.resolve(&surroundings)?;
    Ok((name, stack))
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !valid {
        bail!(
            "invalid stack name {name:?}: it starts with a letter or digit and has letters, digits, _, . and - only; \
             give one: orch stack deploy -c FILE STACK"
        );
    }
    Ok(())
}

/// A folder's name as a stack's name.
fn normalised(folder: &str) -> String {
    let kept =
        folder.to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).collect::<String>();
    kept.trim_start_matches(['_', '-']).to_owned()
}

fn content(item: &StackData) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(file) = &item.file else { return Ok(None) };
    let content = std::fs::read(file)
        .with_context(|| format!("cannot read the content of {} {} from {file}", item.kind, item.annotations.name))?;
    data::check_size(item.kind, content.len()).with_context(|| file.clone())?;
    Ok(Some(content))
}

async fn check_external(api: &mut Api, stack: &Stack) -> anyhow::Result<()> {
    for network in stack.networks.iter().filter(|n| n.external) {
        let name = &network.spec.annotations.name;
        if api.get_optional::<Network>(name).await?.is_none() {
            bail!(
                "network {name:?} is declared as external, but could not be found. You need to create an overlay \
                 network before the stack is deployed: orch network create --driver overlay {name}"
            );
        }
    }
    for item in stack.data.iter().filter(|d| d.file.is_none()) {
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

async fn prune(api: &mut Api, name: &str, stack: &Stack) -> anyhow::Result<()> {
    let kept: BTreeSet<&str> = stack.services.iter().map(|s| s.spec.annotations.name.as_str()).collect();
    for service in api.list::<Service>(in_stack(name)).await? {
        let service_name = service.spec.annotations.name.as_str();
        if !kept.contains(service_name) {
            println!("Removing service {service_name}");
            api.remove(Kind::Service, service.id.as_str(), false).await?;
        }
    }
    Ok(())
}

async fn deploy_network(api: &mut Api, network: &StackNetwork, made: &mut Made) -> anyhow::Result<()> {
    let name = &network.spec.annotations.name;
    if network.external || find_named_network(api, name).await? {
        return Ok(());
    }
    println!("Creating network {name}");
    let spec = wire::spec::Spec::Network(network.spec.to_proto());
    let (_, warnings) =
        api.create::<Network>(spec).await.with_context(|| format!("failed to create network {name}"))?;
    made.push((Kind::Network, name.clone()));
    warn(&warnings);
    Ok(())
}

/// By full name only: a prefix of an id must not be taken for it.
async fn find_named_network(api: &mut Api, name: &str) -> anyhow::Result<bool> {
    Ok(api.get_optional::<Network>(name).await?.is_some_and(|network| network.spec.annotations.name == name))
}

async fn deploy_data(api: &mut Api, item: &StackData, content: Vec<u8>, made: &mut Made) -> anyhow::Result<()> {
    let (kind, name) = (item.kind, &item.annotations.name);
    let same = match kind {
        // A secret's content never leaves the managers, so it cannot be compared here.
        Kind::Secret => api.get_optional::<Secret>(name).await?.map(|_| true),
        _ => api.get_optional::<Config>(name).await?.map(|config| config.data == content),
    };
    match same {
        Some(true) => Ok(()),
        Some(false) => bail!(
            "config {name} exists with another content, and tasks use it: give it another `name:` in the file (for \
             example {name}_2) and deploy again"
        ),
        None => {
            println!("Creating {kind} {name}");
            let stored = data::store(api, kind, &item.annotations, content).await;
            stored.with_context(|| format!("failed to create {kind} {name}"))?;
            made.push((kind, name.clone()));
            Ok(())
        }
    }
}

async fn deploy_service(api: &mut Api, service: &StackService, made: &mut Made) -> anyhow::Result<progress::Watched> {
    let mut spec = service.spec.clone();
    let name = spec.annotations.name.clone();
    spec.task.networks = resolve::networks(api, &service.networks).await?;
    spec.task.container.secrets = resolve::secrets(api, &service.secrets).await?;
    spec.task.container.configs = resolve::configs(api, &service.configs).await?;
    let existing = api.get_optional::<Service>(&name).await?.filter(|s| s.spec.annotations.name == name && !s.removing);
    let Some(before) = existing else {
        println!("Creating service {name}");
        let created = api.create::<Service>(wire::spec::Spec::Service(spec.to_proto())).await;
        let (created, warnings) = created.with_context(|| format!("failed to create service {name}"))?;
        made.push((Kind::Service, name));
        warn(&warnings);
        return Ok(progress::Watched::after_create(&created));
    };
    println!("Updating service {name} (id: {})", before.id);
    carry_over(&before.spec, &mut spec);
    if spec == before.spec {
        return Ok(progress::Watched::after_update(&before, &before));
    }
    let wire = wire::spec::Spec::Service(spec.to_proto());
    let updated = api.update::<Service>(before.id.as_str(), before.meta.version, Some(wire)).await;
    let (after, warnings) = updated.with_context(|| format!("failed to update service {name}"))?;
    warn(&warnings);
    Ok(progress::Watched::after_update(&before, &after))
}

/// What the cluster or an operator added to the stored spec and the file says nothing about.
fn carry_over(stored: &ServiceSpec, spec: &mut ServiceSpec) {
    spec.task.force_update = stored.task.force_update;
    if stored.task.container.image == spec.task.container.image {
        spec.task.container.image_digest.clone_from(&stored.task.container.image_digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(normalised("My Shop_2"), "myshop_2");
        for name in ["shop", "shop-1.x", "1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-x", "a b", "é"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
