//! `orch network trace`.

use anyhow::{anyhow, bail};
use clap::Args;
use orch_proto::{paths::Paths, wire};

use crate::api::{explain, worker};

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The container of this node that asks: a task's or one of `orch run`; without, any that can ask
    #[arg(long, value_name = "CONTAINER", default_value = "")]
    from: String,
    /// A service, task or container by the name that DNS knows, and the port to try
    #[arg(value_name = "SERVICE[:PORT]", value_parser = target)]
    target: (String, u16),
}

/// Fails when the way breaks, and says where.
pub(super) async fn trace(args: TraceArgs, paths: &Paths) -> anyhow::Result<()> {
    let (name, port) = args.target;
    let request = wire::TraceNameRequest { container: args.from, name: name.clone(), port: port.into() };
    let traced = worker(paths).await?.trace_name(request).await.map_err(explain)?.into_inner();
    for step in &traced.steps {
        let verdict = if step.broken { "broken" } else { "ok" };
        println!("{verdict:<8}{:<9}{}", step.stage, step.text);
    }
    match traced.steps.iter().find(|step| step.broken) {
        Some(step) => bail!("the way to {name} breaks at {}: {}", step.stage, step.text),
        None if traced.steps.is_empty() => Err(anyhow!("the network daemon said nothing")),
        None => Ok(()),
    }
}

fn target(text: &str) -> Result<(String, u16), String> {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| format!("{port:?} is no port"))?),
        None => (text, 0),
    };
    if name.is_empty() { Err("expected SERVICE or SERVICE:PORT".into()) } else { Ok((name.to_owned(), port)) }
}
