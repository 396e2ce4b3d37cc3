//! `orch stack plan`, `diff`, `rollback`, `export` and `up`.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::bail;
use clap::Args;
use orch_model::{Kind, network::Network, service::ServiceMode};
use orch_proto::paths::Paths;

use super::{
    config, current,
    deploy::{self, Options},
    files::{self, FileArgs, FoundFileArgs},
    plan::{self, Existing},
    record,
    rotate::{self, Current},
};
use crate::{
    api::Api,
    commands::service::registry::Wanted,
    compose::{Stack, export},
};

/// What `--exit-code` answers when something would change; errors are 1.
const CHANGES: u8 = 2;

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Plan to remove services that the files do not name, too
    #[arg(long)]
    prune: bool,
    /// Exit with 2 when something would be done, with 0 when nothing would
    #[arg(long)]
    exit_code: bool,
    /// The stack's name; without it the file's `name:`, else its folder's name
    stack: Option<String>,
}

pub(super) async fn plan(args: PlanArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let (name, stack) = files::load(&args.files, args.stack.as_deref())?;
    let mut api = Api::connect(paths).await?;
    stack.warnings.iter().for_each(|warning| remark!("{warning}"));
    let (wanted, new_data) = wanted(&mut api, stack).await?;
    let existing = existing(&mut api, &name).await?;
    let plan = plan::plan(&name, &existing, &wanted, &new_data, args.prune);
    print!("{}", plan::show(&plan));
    Ok(exit_code(args.exit_code && plan.does_something()))
}

fn exit_code(changes: bool) -> ExitCode {
    if changes { ExitCode::from(CHANGES) } else { ExitCode::SUCCESS }
}

async fn existing(api: &mut Api, name: &str) -> anyhow::Result<Existing> {
    let stack = current::stack(api, name).await?;
    let networks: BTreeSet<String> = api
        .all::<Network>()
        .await?
        .iter()
        .filter(|network| !network.removing)
        .map(|network| network.spec.annotations.name.clone())
        .collect();
    Ok(Existing { stack, networks })
}

/// The stack with the versions of its secrets and configs that it would use, and those that would have to be made.
async fn wanted(api: &mut Api, mut stack: Stack) -> anyhow::Result<(Stack, Vec<(Kind, String)>)> {
    let mut current = Current::default();
    let mut made = Vec::new();
    deploy::check_external(api, &stack).await?;
    for item in &stack.data {
        let Some(content) = deploy::content(item)? else { continue };
        let (name, is_there) = rotate::preview(api, item, &content).await?;
        if !is_there {
            made.push((item.kind, name.clone()));
        }
        current.insert((item.kind, item.annotations.name.clone()), name);
    }
    for service in &mut stack.services {
        service.secrets = rotate::renamed(&current, Kind::Secret, &service.secrets);
        service.configs = rotate::renamed(&current, Kind::Config, &service.configs);
    }
    Ok((stack, made))
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Exit with 2 when there is a difference, with 0 when there is none
    #[arg(long)]
    exit_code: bool,
    /// The stack's name; without it the file's `name:`, else its folder's name
    stack: Option<String>,
}

/// Both sides as files, line by line: what runs, and what the files say.
pub(super) async fn diff(args: DiffArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let (name, stack) = files::load(&args.files, args.stack.as_deref())?;
    let mut api = Api::connect(paths).await?;
    let (mut wanted, _) = wanted(&mut api, stack).await?;
    let runs = current::stack(&mut api, &name).await?;
    plan::align(&runs, &mut wanted);
    let text = |stack: &Stack| config::yaml(&export::document(&name, stack));
    let diff = plan::line_diff(&text(&runs), &text(&wanted));
    print!("{diff}");
    Ok(exit_code(args.exit_code && !diff.is_empty()))
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Exit immediately instead of waiting for the stack services to converge (default true)
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    detach: Option<bool>,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    stack: String,
}

/// Also takes away what the last deployment added.
pub(super) async fn rollback(args: RollbackArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let (record, text) = record::previous(&mut api, &args.stack).await?;
    println!("Returning stack {} to {record}", args.stack);
    let stack = files::load_text(&args.stack, &record, &text)?;
    let options = Options {
        prune: true,
        ask: false,
        resolve: false,
        image: Wanted::default(),
        detach: args.detach.unwrap_or(true),
        quiet: args.quiet,
    };
    deploy::deploy(paths, &args.stack, &stack, &options).await
}

pub(super) async fn export(stack: &str, paths: &Paths) -> anyhow::Result<()> {
    let mut api = Api::connect(paths).await?;
    let objects = current::stack(&mut api, stack).await?;
    if objects.services.is_empty() {
        bail!("{}", super::nothing_found(stack));
    }
    print!("{}", config::yaml(&export::escaped(&export::document(stack, &objects))));
    Ok(())
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    files: FoundFileArgs,
    /// Do not wait until the services run
    #[arg(short, long)]
    detach: bool,
    /// Number of a service's replicas, instead of the file's
    #[arg(long, value_name = "SERVICE=N", value_parser = scale)]
    scale: Vec<(String, u64)>,
    /// The stack's name; without it the file's `name:`, else its folder's name
    #[arg(short, long, value_name = "STACK")]
    project_name: Option<String>,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Only these services and those that they depend on
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

fn scale(text: &str) -> Result<(String, u64), String> {
    let form = "expected SERVICE=NUMBER, such as web=3";
    let (service, count) = text.split_once('=').ok_or(form)?;
    Ok((service.to_owned(), count.parse().map_err(|_| form)?))
}

pub(super) async fn up(args: UpArgs, paths: &Paths) -> anyhow::Result<()> {
    let (name, mut stack) = files::load(&args.files.found()?, args.project_name.as_deref())?;
    for (service, count) in &args.scale {
        rescale(&mut stack, &name, service, *count)?;
    }
    if !args.services.is_empty() {
        only(&mut stack, &name, &args.services)?;
    }
    let image = Wanted { resolve: true, login: false };
    let options = Options { prune: false, ask: false, resolve: true, image, detach: args.detach, quiet: args.quiet };
    deploy::deploy(paths, &name, &stack, &options).await
}

fn rescale(stack: &mut Stack, name: &str, service: &str, count: u64) -> anyhow::Result<()> {
    let full = format!("{name}_{service}");
    let Some(found) = stack.services.iter_mut().find(|s| s.spec.annotations.name == full) else {
        bail!("no such service in the file: {service}");
    };
    match &mut found.spec.mode {
        ServiceMode::Replicated { replicas } => *replicas = count,
        ServiceMode::ReplicatedJob { total_completions, .. } => *total_completions = count,
        ServiceMode::Global | ServiceMode::GlobalJob => {
            bail!("{service} runs once on every node: it cannot be scaled");
        }
    }
    Ok(())
}

/// Leaves these services, what they depend on, and the networks that those use.
fn only(stack: &mut Stack, name: &str, services: &[String]) -> anyhow::Result<()> {
    let mut kept: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = services.iter().map(|service| format!("{name}_{service}")).collect();
    while let Some(full) = open.pop() {
        let Some(service) = stack.services.iter().find(|s| s.spec.annotations.name == full) else {
            bail!("no such service in the file: {}", full.trim_start_matches(&format!("{name}_")));
        };
        if kept.insert(full) {
            open.extend(service.spec.depends_on.iter().map(|dependency| dependency.service.clone()));
        }
    }
    stack.services.retain(|service| kept.contains(&service.spec.annotations.name));
    let services = &stack.services;
    let is_used = |network: &str| services.iter().any(|s| s.networks.iter().any(|n| n.network == network));
    stack.networks.retain(|network| is_used(&network.spec.annotations.name));
    let mentions = |kind: Kind, source: &str| {
        let files = |s: &crate::compose::StackService| {
            let files = if kind == Kind::Secret { &s.secrets } else { &s.configs };
            files.iter().any(|file| file.source == source)
        };
        services.iter().any(files)
    };
    stack.data.retain(|data| mentions(data.kind, &data.annotations.name));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
services:
  web: {image: web, depends_on: [db], networks: [front]}
  db: {image: db, networks: [back], secrets: [pw]}
  other: {image: other, networks: [far], configs: [site]}
  agent: {image: agent, deploy: {mode: global}}
networks: {front: , back: , far: }
secrets: {pw: {external: true}}
configs: {site: {content: x}}
";

    fn stack() -> Stack {
        files::load_text("shop", "f.yml", FILE).unwrap()
    }

    #[test]
    fn a_service_comes_with_what_it_depends_on() {
        let mut chosen = stack();
        only(&mut chosen, "shop", &["web".into()]).unwrap();
        let names: Vec<_> = chosen.services.iter().map(|s| s.spec.annotations.name.as_str()).collect();
        assert_eq!(names, ["shop_db", "shop_web"]);
        let networks: Vec<_> = chosen.networks.iter().map(|n| n.spec.annotations.name.as_str()).collect();
        assert_eq!(networks, ["shop_back", "shop_front"]);
        assert_eq!(chosen.data.len(), 1);
        assert!(only(&mut stack(), "shop", &["nope".into()]).unwrap_err().to_string().contains("nope"));
    }

    #[test]
    fn only_what_has_replicas_is_scaled() {
        let mut scaled = stack();
        rescale(&mut scaled, "shop", "web", 4).unwrap();
        let web = scaled.services.iter().find(|s| s.spec.annotations.name == "shop_web").unwrap();
        assert_eq!(web.spec.mode, ServiceMode::Replicated { replicas: 4 });
        for service in ["agent", "nope"] {
            assert!(rescale(&mut scaled, "shop", service, 2).is_err(), "{service}");
        }
        assert_eq!(scale("a=3"), Ok(("a".into(), 3)));
        assert!(scale("a").is_err() && scale("a=x").is_err());
    }
}
