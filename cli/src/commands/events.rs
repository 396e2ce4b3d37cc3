//! `orch events`: what happens to this node's containers and volumes and, on a manager, to what the cluster holds.

mod changes;

use std::{collections::BTreeMap, future::pending, time::Duration};

use anyhow::bail;
use clap::Args;
use orch_model::Kind;
use orch_proto::{paths::Paths, wire};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use self::changes::Ledger;
use super::image::asked_for;
use crate::{
    api::{Api, explain, node_info, watch_events, worker},
    flags::filter::FilterSet,
    render::time,
    watching::{News, Watching},
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// A supervisor that stands still keeps nobody from hearing of the containers.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
const LOCAL: [&str; 2] = ["container", "volume"];
const CLUSTER: [Kind; 5] = [Kind::Node, Kind::Service, Kind::Network, Kind::Secret, Kind::Config];
const TYPES: [&str; 7] = ["container", "volume", "node", "service", "network", "secret", "config"];
const KEYS: [&str; 12] = [
    "config",
    "container",
    "event",
    "image",
    "label",
    "network",
    "node",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Show all events created since timestamp (the cluster's are told from now on only)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Filter output based on conditions provided (config, container, event, image, label, network, node, scope, secret,
    /// service, type, volume)
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Format output: 'json' or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

/// Something that has happened, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Event {
    at_ns: u64,
    kind: String,
    action: String,
    id: String,
    attributes: BTreeMap<String, String>,
}

impl From<wire::ContainerEvent> for Event {
    fn from(event: wire::ContainerEvent) -> Self {
        let wire::ContainerEvent { at_ns, kind, action, id, attributes } = event;
        Self { at_ns, kind, action, id, attributes: attributes.into_iter().collect() }
    }
}

pub(crate) async fn events(args: EventsArgs, paths: &Paths) -> anyhow::Result<()> {
    let filters = event_filters(&args.filter).map_err(anyhow::Error::msg)?;
    let at = |text: &Option<String>| -> anyhow::Result<u64> {
        text.as_ref().map_or(Ok(0), |text| time::parse_since(text, time::now()).map_err(anyhow::Error::msg))
    };
    let (since_ms, until_ms) = (at(&args.since)?, at(&args.until)?);
    let of_node = LOCAL.iter().any(|kind| filters.shows(kind, "local"));
    let mut local = match of_node {
        true => Some(
            worker(paths)
                .await?
                .events(wire::EventsRequest { since_ms, until_ms })
                .await
                .map_err(explain)?
                .into_inner(),
        ),
        false => None,
    };
    let kinds: Vec<Kind> = CLUSTER.into_iter().filter(|kind| filters.shows(kind.word(), "swarm")).collect();
    // Who asks for all hears on a worker of what there is; who asks for the cluster only is told that it is not there.
    let node = || timeout(ANSWER_LIMIT, node_info(paths));
    let is_manager = || async { node().await.ok().flatten().is_some_and(|info| info.manager) };
    let is_wanted = !kinds.is_empty() && (!of_node || is_manager().await);
    if is_wanted && !of_node {
        let _ = Api::connect(paths).await?;
    }
    // A manager that does not answer at the moment is waited for, and keeps nobody from hearing of the node.
    let mut cluster = is_wanted.then(|| Watching::new(paths.clone(), kinds, wire::Filters::default()));
    let left = (args.until.is_some()).then(|| until_ms.saturating_sub(time::now().unix_ms));
    let end = left.map(|ms| Instant::now() + Duration::from_millis(ms));
    let mut ledger = Ledger::default();
    let show = |event: Event| match filters.wants(&event) {
        true => print_event(&event, args.format.as_deref()),
        false => Ok(()),
    };
    while local.is_some() || cluster.is_some() {
        tokio::select! {
            event = next_local(&mut local) => match event {
                Some(event) => show(event.map_err(explain)?.into())?,
                // Ended at its `until`, or with the worker.
                None if end.is_some() => local = None,
                None => return Ok(()),
            },
            news = next_change(&mut cluster) => match news {
                Ok(News::Anew) => ledger.begin(),
                Ok(News::Changes(response)) => {
                    let synced = response.synced;
                    for event in watch_events(response)? {
                        ledger.note(event, time::now()).map_or(Ok(()), &show)?;
                    }
                    if synced {
                        ledger.settle(time::now()).into_iter().try_for_each(&show)?;
                    }
                }
                Err(status) if of_node => {
                    remark!("WARNING: no manager tells of the cluster any more: {}", explain(status));
                    cluster = None;
                }
                Err(status) => bail!(explain(status)),
            },
            () = until(end), if cluster.is_some() => cluster = None,
        }
    }
    Ok(())
}

async fn next_local(
    stream: &mut Option<Streaming<wire::ContainerEvent>>,
) -> Option<Result<wire::ContainerEvent, Status>> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}

async fn next_change(watching: &mut Option<Watching>) -> Result<News, Status> {
    match watching {
        Some(watching) => watching.next().await,
        None => pending().await,
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}

fn event_filters(given: &[String]) -> Result<FilterSet, String> {
    FilterSet::parse(given, &KEYS)?.only("type", &TYPES)?.only("scope", &["local", "swarm"])
}

impl FilterSet {
    /// Whether events of a type can pass.
    fn shows(&self, kind: &str, scope: &str) -> bool {
        self.any("type", |wanted| wanted == kind) && self.any("scope", |wanted| wanted == scope)
    }

    fn wants(&self, event: &Event) -> bool {
        let attribute = |key: &str| event.attributes.get(key).map(String::as_str).unwrap_or_default();
        // Whoever names one of a type does not ask for other types.
        let named = |kind: &str| {
            let fits = |name: &str| event.kind == kind && (event.id.starts_with(name) || attribute("name") == name);
            self.any(kind, fits)
        };
        let is_container = event.kind == "container";
        let image = attribute("image");
        self.shows(&event.kind, event.scope())
            // `health_status` is any of them, `exec_start` any command.
            && self.any("event", |action| event.action.split(':').next() == Some(action) || event.action == action)
            && ["container", "config", "network", "node", "secret", "service"].into_iter().all(named)
            && self.any("image", |name| is_container && (image == name || without_tag(image) == name))
            && self.any("volume", |name| event.kind == "volume" && event.id == name)
            && self.labels("label", &event.attributes)
    }
}

/// The name of `name:tag@digest`.
fn without_tag(image: &str) -> &str {
    asked_for(image.split('@').next().unwrap_or(image)).0
}

impl Event {
    /// Docker's word for what only this node has, and for what all share.
    fn scope(&self) -> &'static str {
        if LOCAL.contains(&self.kind.as_str()) { "local" } else { "swarm" }
    }
}

fn print_event(event: &Event, format: Option<&str>) -> anyhow::Result<()> {
    let mut object = serde_json::json!({
        "Type": event.kind, "Action": event.action, "scope": event.scope(),
        "Actor": {"ID": event.id, "Attributes": event.attributes},
        "time": event.at_ns / NANOS_PER_SECOND, "timeNano": event.at_ns,
    });
    if event.scope() == "local" {
        // Of Docker's older form, which never knew anything else.
        object["status"] = event.action.clone().into();
        object["id"] = event.id.clone().into();
    }
    match format {
        None => {
            let words: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let at = time::rfc3339_nanos(event.at_ns);
            println!("{at} {} {} {} ({})", event.kind, event.action, event.id, words.join(", "));
        }
        Some("json") => println!("{object}"),
        Some(template) => println!("{}", orch_template::Template::parse(template)?.render(&object)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(given: &[&str]) -> Result<FilterSet, String> {
        event_filters(&given.iter().map(|&filter| filter.to_owned()).collect::<Vec<_>>())
    }

    fn event(kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
        let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Event { at_ns: 0, kind: kind.into(), action: action.into(), id: id.into(), attributes }
    }

    #[test]
    fn events_are_filtered() {
        let attributes = [("image", "shop:5000/web:1@sha256:ab"), ("name", "web.1.x"), ("com.docker.swarm.task", "")];
        let container = event("container", "health_status: healthy", "0123456789ab", &attributes);
        let service = event("service", "update", "ab34", &[("name", "web")]);
        // (filters, whether the container's event passes, whether the service's does)
        for (given, of_container, of_service) in [
            (&[][..], true, true),
            (&["event=health_status"], true, false),
            (&["event=health_status: healthy"], true, false),
            (&["event=health_status: unhealthy"], false, false),
            (&["event=die", "event=health_status"], true, false),
            (&["event=update"], false, true),
            (&["container=web.1.x"], true, false),
            (&["container=012345"], true, false),
            (&["container=web"], false, false),
            (&["image=shop:5000/web"], true, false),
            (&["image=shop:5000/web:1@sha256:ab"], true, false),
            (&["image=shop"], false, false),
            (&["type=container", "label=com.docker.swarm.task"], true, false),
            (&["type=volume"], false, false),
            (&["volume=0123456789ab"], false, false),
            (&["type=service"], false, true),
            (&["type=service", "type=container"], true, true),
            (&["scope=swarm"], false, true),
            (&["scope=local"], true, false),
            (&["service=web"], false, true),
            (&["service=ab3"], false, true),
            (&["service=shop"], false, false),
            (&["service=web", "container=web.1.x"], false, false),
            (&["node=ab34"], false, false),
        ] {
            let set = filters(given).unwrap();
            assert_eq!((set.wants(&container), set.wants(&service)), (of_container, of_service), "{given:?}");
        }
    }

    #[test]
    fn what_there_is_no_news_of_is_refused() {
        let types = "container, volume, node, service, network, secret, config";
        for (given, refused) in [
            ("type=plugin", format!("invalid filter type=plugin: type is one of {types}")),
            ("scope=all", "invalid filter scope=all: scope is one of local, swarm".to_owned()),
        ] {
            assert_eq!(filters(&[given]).unwrap_err(), refused);
        }
    }
}
