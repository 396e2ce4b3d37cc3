//! `orch start|stop|restart|kill|rm|rename|wait|port|attach`, `container prune` and `container inspect`.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{anyhow, bail};
use clap::Args;
use orch_model::{service::PortConfig, size};
use orch_proto::{conv::FromProto, paths::Paths, wire};
use tonic::Code;

use super::{
    container_attach::{self, AttachArgs, DetachKeys, Session, detach_keys},
    for_each, for_each_at_once, print_inspected,
    run::exit_code,
};
use crate::{
    api::{Worker, explain, worker},
    flags::filter::FilterSet,
    inspect,
    render::{ports, time},
};

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS", value_parser = detach_keys, default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "")]
    signal: String,
    /// Seconds to wait before killing the container (-1: for ever)
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", value_parser = grace_s)]
    time: Option<u64>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Longer than anybody waits, and short enough to reckon with.
const FOREVER_S: u64 = 100 * 365 * 24 * 3600;

/// As with Docker, what is below 0 means for ever.
fn grace_s(text: &str) -> Result<u64, String> {
    let seconds: i64 = text.parse().map_err(|_| "expected a number of seconds, or -1 to wait for ever".to_owned())?;
    Ok(u64::try_from(seconds).map_or(FOREVER_S, |seconds| seconds.min(FOREVER_S)))
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    container: String,
    new_name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    container: String,
    /// Only this port
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    port: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Provide filter values (until=TIME, label=KEY=VALUE)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectContainerArgs {
    /// Format output: 'json' or a Go template
    #[arg(short, long)]
    format: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) fn named(reference: &str) -> wire::ContainerReference {
    wire::ContainerReference { reference: reference.into() }
}

pub(crate) async fn start(args: StartArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let mut worker = worker(paths).await?;
    if !args.attach && !args.interactive {
        for_each(&args.containers, async |reference| {
            worker.start_container(named(reference)).await.map_err(explain)?;
            println!("{reference}");
            Ok(())
        })
        .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let [reference] = args.containers.as_slice() else {
        bail!("you cannot start and attach multiple containers at once: give one");
    };
    let details = worker.inspect_container(named(reference)).await.map_err(explain)?.into_inner();
    let tty = details.spec.and_then(|spec| spec.container).is_some_and(|container| container.tty);
    let session = Session {
        reference: reference.clone(),
        run: true,
        stdin: args.interactive,
        tty,
        keys: args.detach_keys,
        signals: !tty,
    };
    let code = container_attach::attach(session, &mut worker, paths).await.map_err(explain)?;
    Ok(exit_code(code.unwrap_or(0)))
}

pub(crate) async fn attach(args: AttachArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let mut worker = worker(paths).await?;
    let details = worker.inspect_container(named(&args.container)).await.map_err(explain)?.into_inner();
    let container = details.spec.and_then(|spec| spec.container).unwrap_or_default();
    let session = Session {
        reference: args.container,
        run: false,
        stdin: container.open_stdin && !args.no_stdin,
        tty: container.tty,
        keys: args.detach_keys,
        // Whoever only looks on and loses the terminal shall not hang up on the program.
        signals: args.sig_proxy && !container.tty,
    };
    let code = container_attach::attach(session, &mut worker, paths).await.map_err(explain)?;
    Ok(exit_code(code.unwrap_or(0)))
}

pub(crate) async fn stop(args: StopArgs, restart: bool, paths: &Paths) -> anyhow::Result<()> {
    let worker = worker(paths).await?;
    let grace_ms = args.time.map(|seconds| seconds.saturating_mul(1000));
    for_each_at_once(&args.containers, async |reference| {
        let signal = args.signal.clone();
        let request = wire::StopContainerRequest { reference: reference.into(), grace_ms, signal, restart };
        worker.clone().stop_container(request).await.map(drop).map_err(explain)
    })
    .await
}

pub(crate) async fn kill(args: KillArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    for_each(&args.containers, async |reference| {
        let request = wire::KillContainerRequest { reference: reference.into(), signal: args.signal.clone() };
        worker.kill_container(request).await.map_err(explain)?;
        println!("{reference}");
        Ok(())
    })
    .await
}

pub(crate) async fn remove(args: RmArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    for_each(&args.containers, async |reference| {
        let (force, volumes) = (args.force, args.volumes);
        let request = wire::RemoveContainerRequest { reference: reference.into(), force, volumes };
        match worker.remove_container(request).await {
            // With force, one that is gone is no failure.
            Err(status) if force && status.code() == Code::NotFound => remark!("{}", explain(status)),
            removed => {
                removed.map_err(explain)?;
                println!("{reference}");
            }
        }
        Ok(())
    })
    .await
}

pub(crate) async fn rename(args: RenameArgs, paths: &Paths) -> anyhow::Result<()> {
    let request = wire::RenameContainerRequest { reference: args.container, name: args.new_name };
    worker(paths).await?.rename_container(request).await.map(drop).map_err(explain)
}

pub(crate) async fn wait(args: Named, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    for_each(&args.containers, async |reference| {
        let exit = worker.wait_container(named(reference)).await.map_err(explain)?.into_inner();
        println!("{}", exit.exit_code);
        Ok(())
    })
    .await
}

pub(crate) async fn port(args: PortArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let details = worker.inspect_container(named(&args.container)).await.map_err(explain)?.into_inner();
    let running = details.container.is_some_and(|container| container.state == "running");
    let published = Vec::<PortConfig>::from_proto(details.ports)?;
    let mut found = false;
    for port in published.iter().filter(|_| running) {
        let at = port.bound_to();
        let key = format!("{}/{}", port.target_port, ports::protocol_word(port.protocol));
        match &args.port {
            None => println!("{key} -> {at}"),
            Some(wanted) if *wanted == key || format!("{wanted}/tcp") == key => {
                println!("{at}");
            }
            Some(_) => continue,
        }
        found = true;
    }
    match args.port {
        Some(port) if !found => bail!("no public port '{port}' published for {}", args.container),
        _ => Ok(()),
    }
}

pub(crate) async fn prune(args: PruneArgs, paths: &Paths) -> anyhow::Result<()> {
    let filters = FilterSet::parse(&args.filter, &["until", "label", "label!"]).map_err(anyhow::Error::msg)?;
    let until = until(&filters)?;
    let mut worker = worker(paths).await?;
    if !args.force && !confirmed("This will remove all stopped containers.")? {
        return Ok(());
    }
    let freed_bytes = prune_stopped(&mut worker, &filters, until).await?;
    println!("Total reclaimed space: {}", size::human(freed_bytes));
    Ok(())
}

/// The time before which something must have been made for a prune to take it, in milliseconds.
pub(crate) fn until(filters: &FilterSet) -> anyhow::Result<Option<u64>> {
    let given = filters.values("until").first();
    given.map(|text| time::parse_since(text, time::now())).transpose().map_err(anyhow::Error::msg)
}

/// Says what it removes; returns how many bytes that frees.
pub(crate) async fn prune_stopped(worker: &mut Worker, filters: &FilterSet, until: Option<u64>) -> anyhow::Result<u64> {
    let usage = worker.disk_usage(wire::Empty {}).await.map_err(explain)?.into_inner().containers;
    let containers = usage.into_iter().filter_map(|usage| Some((usage.container?, usage.size_bytes)));
    let stopped = containers.filter(|(container, _)| {
        container.one_off
            && matches!(container.state.as_str(), "created" | "exited")
            && until.is_none_or(|until| container.created_at_ms < until)
            && filters.labels("label", &container.labels)
    });
    let mut header = "Deleted Containers:\n";
    let mut freed_bytes = 0;
    for (container, size_bytes) in stopped {
        let reference = container.container_id.clone();
        let request = wire::RemoveContainerRequest { reference, force: false, volumes: false };
        match worker.remove_container(request).await {
            // It went, or was started, since it was listed: the others go all the same.
            Err(status) if status.code() == Code::NotFound => continue,
            Err(status) if status.code() == Code::FailedPrecondition => {
                remark!("{}", explain(status));
                continue;
            }
            removed => removed.map_err(explain)?,
        };
        println!("{header}{}", container.container_id);
        header = "";
        freed_bytes += size_bytes;
    }
    if header.is_empty() {
        println!();
    }
    Ok(freed_bytes)
}

/// Whether the user says yes to what is about to go.
pub(crate) fn confirmed(warning: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(anyhow!("{warning} Nobody can be asked whether that is meant: add --force"));
    }
    agreed(warning)
}

/// As [`confirmed`], also through a pipe (`yes | orch …`); the end of the input is a no, which is said.
pub(crate) fn agreed(warning: &str) -> anyhow::Result<bool> {
    print!("WARNING! {warning}\nAre you sure you want to continue? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    if std::io::stdin().lock().read_line(&mut answer)? == 0 {
        println!();
        bail!("nobody said yes, so nothing was removed: add --force to go on without being asked");
    }
    Ok(matches!(answer.trim(), "y" | "Y"))
}

pub(crate) async fn inspect(args: InspectContainerArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut worker = worker(paths).await?;
    let mut found = Vec::new();
    let outcome = for_each(&args.containers, async |reference| {
        let details = worker.inspect_container(named(reference)).await.map_err(explain)?.into_inner();
        found.push(inspect::local_container(&details));
        Ok(())
    })
    .await;
    print_inspected(found, args.format.as_deref())?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_below_zero_is_for_ever() {
        for (text, want) in [
            ("0", Ok(0)),
            ("10", Ok(10)),
            ("-1", Ok(FOREVER_S)),
            ("9223372036854775807", Ok(FOREVER_S)),
            ("abc", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(grace_s(text).map_err(drop), want, "{text}");
        }
    }
}
