//! One module per command: flags in, calls to the API, text out.
//!
//! Everything that can be decided without a daemon is decided before the first call, so that bad input changes nothing.

pub(crate) mod ca;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod container;
pub(crate) mod container_attach;
pub(crate) mod container_control;
pub(crate) mod container_copy;
pub(crate) mod container_live;
pub(crate) mod data;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod health;
pub(crate) mod image;
pub(crate) mod image_build;
pub(crate) mod image_files;
pub(crate) mod image_login;
pub(crate) mod image_registry;
mod image_source;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod run;
pub(crate) mod service;
pub(crate) mod stack;
pub(crate) mod system;
pub(crate) mod terminal;
pub(crate) mod volume;

use std::{collections::HashMap, pin::pin, sync::Arc};

use clap::Args;
use futures::{StreamExt as _, stream};
use orch_model::{node::Node, service::Service};
use serde_json::Value;

use orch_template::{Template, native};

use crate::{flags::filter::FilterSet, render::listing::Shape};

/// As many as Docker's client does.
const AT_ONCE: usize = 50;

/// The flags that every list has.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListFlags {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Only display IDs
    #[arg(short, long)]
    quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
}

impl ListFlags {
    fn filters(&self, known: &[&str]) -> anyhow::Result<FilterSet> {
        FilterSet::parse(&self.filter, known).map_err(anyhow::Error::msg)
    }

    fn shape(&self) -> Shape {
        Shape { format: self.format.clone(), quiet: self.quiet }
    }
}

/// `[…]` of all objects, or each through `--format`.
fn print_inspected(objects: Vec<Value>, format: Option<&str>) -> anyhow::Result<()> {
    match format {
        None => println!("{}", pretty(&native::shown(&Value::Array(objects)))?),
        Some("json") => objects.iter().for_each(|object| println!("{}", native::shown(object))),
        Some(format) => {
            let template = Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n"))?;
            for object in &objects {
                println!("{}", template.render(object)?);
            }
        }
    }
    Ok(())
}

/// Four spaces, as Docker indents.
fn pretty(value: &Value) -> anyhow::Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)?)
}

fn node_names(nodes: &[Arc<Node>]) -> HashMap<String, String> {
    nodes.iter().map(|node| (node.id.to_string(), node.description.hostname.clone())).collect()
}

fn service_names(services: &[Arc<Service>]) -> HashMap<String, String> {
    services.iter().map(|s| (s.id.to_string(), s.spec.annotations.name.clone())).collect()
}

/// Runs `action` for every reference, reports each failure, and fails at the end when any did.
async fn for_each<F>(references: &[String], mut action: F) -> anyhow::Result<()>
where
    F: AsyncFnMut(&str) -> anyhow::Result<()>,
{
    let mut failures = Vec::new();
    for reference in references {
        if let Err(error) = action(reference).await {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failures.join("\n"))) }
}

/// As [`for_each`], many at once, for what takes its time. Says what is done, in the order given.
async fn for_each_at_once<F>(references: &[String], action: F) -> anyhow::Result<()>
where
    F: AsyncFn(&str) -> anyhow::Result<()>,
{
    let mut outcomes = pin!(stream::iter(references).map(|reference| action(reference)).buffered(AT_ONCE));
    for_each(references, async |reference| {
        outcomes.next().await.unwrap_or(Ok(()))?;
        println!("{reference}");
        Ok(())
    })
    .await
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        remark!("WARNING: {warning}");
    }
}
