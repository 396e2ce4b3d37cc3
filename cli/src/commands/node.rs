//! `orch node …`.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use orch_model::{
    Kind,
    node::{Availability, Node, NodeRole, NodeSpec, NodeState},
    task::Task,
};
use orch_proto::{conv::ToProto, paths::Paths, wire};

use super::{
    ListFlags,
    cluster::{AvailabilityFlag, RoleFlag},
    for_each, print_inspected,
    service::print_tasks,
    warn,
};
use crate::{
    api::{Api, explain},
    flags::key_value,
    inspect,
    render::{
        listing::{Listing, Row, row},
        natural_order,
    },
};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes in the cluster
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more nodes
    Inspect(InspectArgs),
    /// List tasks running on one or more nodes, defaults to current node
    Ps(PsArgs),
    /// Remove one or more nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Update a node
    Update(UpdateArgs),
    /// Promote one or more nodes to manager in the cluster
    Promote {
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Demote one or more nodes from manager in the cluster
    Demote {
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Let this node's manager, whose files are lost or damaged, join the other managers anew
    ResetManager,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output: 'json' or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Print the information in a human friendly format
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[arg(required = true, value_name = "self|NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    list: ListFlags,
    /// Do not map IDs to names
    #[arg(long)]
    no_resolve: bool,
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force remove a node from the cluster
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Availability of the node
    #[arg(long, value_enum)]
    availability: Option<AvailabilityFlag>,
    /// Add or update a node label (key=value)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value::pair)]
    label_add: Vec<(String, String)>,
    /// Remove a node label if exists
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Role of the node
    #[arg(long, value_enum)]
    role: Option<RoleFlag>,
    node: String,
}

/// How often a change of a node is tried that others change at the same time.
const STALE_TRIES: u32 = 10;

/// What `--filter` takes.
pub(super) const FILTERS: [&str; 6] = ["id", "name", "label", "node.label", "role", "membership"];

pub(super) const NODES: Listing<'static> = Listing {
    default: "{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}{{if .Message}} ({{.Message}}){{end}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
    headings: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
        ("Message", ""),
        ("Address", "ADDRESS"),
    ],
    quiet: "ID",
};

pub(crate) async fn run(command: NodeCommand, paths: &Paths) -> anyhow::Result<()> {
    if matches!(command, NodeCommand::ResetManager) {
        return reset_manager(paths).await;
    }
    let mut api = Api::connect(paths).await?;
    match command {
        NodeCommand::ResetManager => Ok(()),
        NodeCommand::Ls(flags) => list(&flags, &mut api).await,
        NodeCommand::Inspect(args) => inspect_nodes(&args, &mut api).await,
        NodeCommand::Ps(args) => ps(&args, &mut api).await,
        NodeCommand::Rm(args) => {
            for_each(&args.nodes, async |reference| {
                api.remove(Kind::Node, reference, args.force).await?;
                println!("{reference}");
                Ok(())
            })
            .await
        }
        NodeCommand::Update(args) => update(&args, &mut api).await,
        NodeCommand::Promote { nodes } => change_roles(&nodes, NodeRole::Manager, &mut api).await,
        NodeCommand::Demote { nodes } => change_roles(&nodes, NodeRole::Worker, &mut api).await,
    }
}

/// Asks the supervisor: the manager itself may not run.
async fn reset_manager(paths: &Paths) -> anyhow::Result<()> {
    let mut node = crate::api::node(paths).await?;
    let answer = node.reset_manager(wire::Empty {}).await.map_err(explain)?.into_inner();
    println!("This node's manager has joined the other managers anew.");
    if !answer.kept.is_empty() {
        println!("Its old files are in {}: delete them once nobody needs them.", answer.kept);
    }
    Ok(())
}

/// Node id to (leads, answers).
pub(crate) fn reachability(info: &wire::ClusterInfo) -> HashMap<String, (bool, bool)> {
    info.reachability.iter().map(|r| (r.node_id.clone(), (r.leader, r.reachable))).collect()
}

async fn list(flags: &ListFlags, api: &mut Api) -> anyhow::Result<()> {
    let filters = flags.filters(&FILTERS)?.only("role", &["manager", "worker"]);
    let filters =
        filters.and_then(|set| set.only("membership", &["accepted", "pending"])).map_err(anyhow::Error::msg)?;
    let info = api.info().await?;
    let reachable = reachability(&info);
    let mut nodes = api.all::<Node>().await?;
    nodes.sort_by(|a, b| natural_order(&a.description.hostname, &b.description.hostname).then(a.id.cmp(&b.id)));
    let rows: Vec<Row> = nodes
        .iter()
        .filter(|node| {
            filters.any("id", |id| node.id.as_str().starts_with(id))
                && filters.any("name", |name| node.description.hostname.starts_with(name))
                && filters.any("role", |role| inspect::role_word(node.role) == role)
                && filters.any("membership", |word| word == "accepted")
                && filters.labels("label", &node.description.engine_labels)
                && filters.labels("node.label", &node.spec.annotations.labels)
        })
        .map(|node| {
            let known = reachable.get(node.id.as_str()).copied();
            node_row(node, node.id.as_str() == info.node_id, known, tls_status(node, info.root.as_ref()))
        })
        .collect();
    Ok(NODES.print(&flags.shape(), &rows)?)
}

/// Docker's words for how a node is with the cluster's root.
fn tls_status(node: &Node, root: Option<&wire::RootStatus>) -> &'static str {
    match (&node.certificates, root) {
        (Some(certificates), Some(root)) if certificates.issuer == root.desired_digest => "Ready",
        (Some(_), Some(_)) => "Needs Rotation",
        (None, _) | (_, None) => "Unknown",
    }
}

fn node_row(node: &Node, is_self: bool, reachability: Option<(bool, bool)>, tls_status: &'static str) -> Row {
    let manager_status = match (&node.manager, reachability) {
        (None, _) => "",
        (Some(_), Some((true, _))) => "Leader",
        (Some(_), Some((false, true))) => "Reachable",
        (Some(_), _) => "Unreachable",
    };
    row([
        ("ID", node.id.as_str().into()),
        ("Self", is_self.into()),
        ("Hostname", node.description.hostname.as_str().into()),
        ("Status", status_word(node.status.state).into()),
        ("Availability", title(inspect::availability_word(node.spec.availability)).into()),
        ("ManagerStatus", manager_status.into()),
        ("EngineVersion", node.description.engine_version.as_str().into()),
        ("TLSStatus", tls_status.into()),
        ("Message", node.status.message.as_str().into()),
        ("Address", node.status.addr.map(|a| a.to_string()).unwrap_or_default().into()),
    ])
}

fn status_word(state: NodeState) -> String {
    title(inspect::state_word(state))
}

fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `self` is the node that answers.
async fn find(api: &mut Api, reference: &str) -> anyhow::Result<std::sync::Arc<Node>> {
    if reference == "self" {
        let id = api.info().await?.node_id;
        return api.get(&id).await;
    }
    api.get(reference).await
}

async fn inspect_nodes(args: &InspectArgs, api: &mut Api) -> anyhow::Result<()> {
    let reachable = reachability(&api.info().await?);
    let mut found = Vec::new();
    let outcome = for_each(&args.nodes, async |reference| {
        found.push(find(api, reference).await?);
        Ok(())
    })
    .await;
    if args.pretty {
        for node in &found {
            print!("{}", pretty(node, &inspect::node(node, reachable.get(node.id.as_str()).copied())));
        }
    } else {
        let values = found.iter().map(|n| inspect::node(n, reachable.get(n.id.as_str()).copied())).collect();
        print_inspected(values, args.format.as_deref())?;
    }
    outcome
}

/// `value`: what `inspect` shows of it.
fn pretty(node: &Node, value: &serde_json::Value) -> String {
    let list = |heading: &str, labels: &std::collections::BTreeMap<String, String>| {
        let lines: String = labels.iter().map(|(k, v)| format!(" - {k}={v}\n")).collect();
        if lines.is_empty() { lines } else { format!("{heading}:\n{lines}") }
    };
    let labels = list("Labels", &node.spec.annotations.labels);
    let engine_labels = list("Engine Labels", &node.description.engine_labels);
    let text = |pointer: &str| value.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
    let message = match text("/Status/Message") {
        "" => String::new(),
        message => format!(" Message:              \t{message}\n"),
    };
    let manager = match text("/ManagerStatus/Addr") {
        "" => String::new(),
        addr => format!(
            "Manager Status:\n Address:\t\t{addr}\n Raft Status:\t\t{}\n Leader:\t\t{}\n",
            title(text("/ManagerStatus/Reachability")),
            if value.pointer("/ManagerStatus/Leader") == Some(&true.into()) { "Yes" } else { "No" }
        ),
    };
    let description = &node.description;
    let tls = node.certificates.as_ref().map(|certificates| {
        let roots: String = certificates.trusted.iter().map(|root| format!("  sha256:{root}\n")).collect();
        format!(
            "TLS Info:\n Issuer:\t\tsha256:{}\n Trusted Roots:\n{roots} Expires:\t\t{}\n",
            certificates.issuer,
            crate::render::time::go_style(certificates.expires_at)
        )
    });
    let tls = tls.unwrap_or_default();
    format!(
        "ID:\t\t\t{}\n{labels}Hostname:              \t{}\nJoined at:             \t{}\nStatus:\n State:\t\t\t{}\n\
         {message} Availability:         \t{}\n Address:\t\t{}\n{manager}Platform:\n Operating System:\t{}\n Architecture:\t\t{}\n\
         Resources:\n CPUs:\t\t\t{}\n Memory:\t\t{}\nEngine Version:\t\t{}\n{engine_labels}{tls}",
        node.id,
        description.hostname,
        crate::render::time::go_style(node.meta.created_at),
        status_word(node.status.state),
        title(inspect::availability_word(node.spec.availability)),
        node.status.addr.map(|a| a.to_string()).unwrap_or_default(),
        description.platform.os,
        description.platform.arch,
        description.resources.nano_cpus / 1_000_000_000,
        orch_model::size::human_binary(description.resources.memory_bytes),
        description.engine_version,
    )
}

async fn ps(args: &PsArgs, api: &mut Api) -> anyhow::Result<()> {
    let current = ["self".to_owned()];
    let references = if args.nodes.is_empty() { &current[..] } else { &args.nodes };
    let mut ids = Vec::new();
    for reference in references {
        ids.push(find(api, reference).await?.id.to_string());
    }
    let tasks = api.list::<Task>(wire::Filters { node_ids: ids, ..wire::Filters::default() }).await?;
    print_tasks(api, &tasks, &args.list, args.no_resolve).await
}

async fn update(args: &UpdateArgs, api: &mut Api) -> anyhow::Result<()> {
    let warnings = change(api, &args.node, |spec| apply(args, spec)).await?;
    warn(&warnings);
    println!("{}", args.node);
    Ok(())
}

/// Changes what is wanted of a node, again from the start when the node was changed meanwhile: managers write to the same
/// object what they see of it.
async fn change(
    api: &mut Api,
    reference: &str,
    apply: impl Fn(&mut NodeSpec) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<String>> {
    let mut tries_left = STALE_TRIES;
    loop {
        let node = find(api, reference).await?;
        let mut spec = node.spec.clone();
        apply(&mut spec)?;
        let wire = wire::spec::Spec::Node(spec.to_proto());
        tries_left -= 1;
        match api.try_update(Kind::Node, node.id.as_str(), node.meta.version, Some(wire)).await {
            Ok(response) => return Ok(response.warnings),
            Err(status) if tries_left > 0 && is_stale(&status) => {}
            Err(status) => return Err(explain(status)),
        }
    }
}

fn is_stale(status: &tonic::Status) -> bool {
    orch_proto::code::of(status) == Some("stale")
}

fn apply(args: &UpdateArgs, spec: &mut NodeSpec) -> anyhow::Result<()> {
    // In Docker's words; what the same command adds may go again.
    let is_there = |key: &String| {
        spec.annotations.labels.contains_key(key) || args.label_add.iter().any(|(added, _)| added == key)
    };
    if let Some(key) = args.label_rm.iter().find(|key| !is_there(key)) {
        anyhow::bail!("key {key} doesn't exist in node's labels: `orch node inspect {}` shows them", args.node);
    }
    spec.annotations.labels.retain(|key, _| !args.label_rm.contains(key));
    spec.annotations.labels.extend(args.label_add.iter().cloned());
    spec.availability = match args.availability {
        Some(AvailabilityFlag::Active) => Availability::Active,
        Some(AvailabilityFlag::Pause) => Availability::Pause,
        Some(AvailabilityFlag::Drain) => Availability::Drain,
        None => spec.availability,
    };
    spec.role = match args.role {
        Some(RoleFlag::Worker) => NodeRole::Worker,
        Some(RoleFlag::Manager) => NodeRole::Manager,
        None => spec.role,
    };
    Ok(())
}

async fn change_roles(nodes: &[String], role: NodeRole, api: &mut Api) -> anyhow::Result<()> {
    let word = inspect::role_word(role);
    for_each(nodes, async |reference| {
        let node = find(api, reference).await?;
        if node.spec.role == role {
            println!("Node {reference} is already a {word}.");
            return Ok(());
        }
        change(api, reference, |spec| {
            spec.role = role;
            Ok(())
        })
        .await?;
        let (noun, verb) = match role {
            NodeRole::Manager => ("Node", "promoted to a manager"),
            NodeRole::Worker => ("Manager", "demoted"),
        };
        println!("{noun} {reference} {verb} in the cluster.");
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use orch_model::{
        Annotations, Meta, NodeId, Timestamp,
        node::{NodeDescription, NodeStatus},
    };

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn node() -> Node {
        let labels = [("disk".to_owned(), "ssd".to_owned())].into();
        Node {
            id: NodeId::from_random(7),
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations { name: String::new(), labels },
                role: NodeRole::Worker,
                availability: Availability::Drain,
            },
            role: NodeRole::Worker,
            description: NodeDescription { hostname: "n1".to_owned(), ..NodeDescription::default() },
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: "10.1.2.3".parse().ok(),
                since: Timestamp::default(),
            },
            manager: None,
            index: 1,
            attachments: [].into(),
            certificates: None,
        }
    }

    #[test]
    fn templates_find_what_nobody_set() {
        let template =
            orch_template::Template::parse("<{{.Spec.Name}}{{.Status.Message}}> {{.ManagerStatus}}").unwrap();
        assert_eq!(template.render(&inspect::node(&node(), None)).as_deref(), Ok("<> <nil>"));
    }

    #[test]
    fn inspect_pretty_says_what_a_node_is() {
        let mut node = node();
        node.description.engine_labels.insert("rack".to_owned(), "7".to_owned());
        let text = pretty(&node, &inspect::node(&node, None));
        assert!(text.contains("Engine Labels:\n - rack=7\n") && !text.contains("Manager"), "{text}");
        assert!(text.contains("Ready\n Availability:") || text.contains("Unknown\n Availability:"), "{text}");
        for line in
            ["Hostname:              \tn1\n", " - disk=ssd\n", "Availability:         \tDrain\n", "\t10.1.2.3\n"]
        {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    }

    #[test]
    fn labels_are_changed_as_docker_does() {
        let labels = |line: &str| {
            let args = Line::try_parse_from(format!("update {line} n1").split(' ')).unwrap().args;
            let mut spec = node().spec;
            let changed = apply(&args, &mut spec).map_err(|error| error.to_string());
            changed.map(|()| spec.annotations.labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())
        };
        assert_eq!(labels("--label-add zone=a --label-rm disk"), Ok(vec!["zone=a".to_owned()]));
        assert_eq!(labels("--label-rm disk --label-add disk=hdd"), Ok(vec!["disk=hdd".to_owned()]));
        let refusal = labels("--label-rm nope").unwrap_err();
        assert!(refusal.starts_with("key nope doesn't exist in node's labels"), "{refusal}");
        assert!(Line::try_parse_from(["update", "--label-add", "a b=c", "n1"]).is_err());
    }
}
