//! `orch service ls` and `orch stack services`.

use std::{collections::HashMap, sync::Arc};

use orch_model::{
    Annotations,
    service::{Service, ServiceMode},
    task::{Task, TaskState},
};
use orch_proto::{paths::Paths, wire};

use crate::{
    api::Api,
    commands::{ListFlags, stack},
    render::{
        self,
        listing::{Listing, Row, row},
        natural_order, ports, short_id,
    },
};

/// What `--filter` takes.
pub(super) const FILTERS: [&str; 4] = ["id", "name", "label", "mode"];
const MODES: [&str; 4] = ["replicated", "global", "replicated-job", "global-job"];

pub(super) const SERVICES: Listing<'static> = Listing {
    default: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
    quiet: "ID",
};

pub(crate) async fn run(flags: &ListFlags, paths: &Paths) -> anyhow::Result<()> {
    print(flags, None, paths).await
}

/// All services, or those of one stack.
pub(crate) async fn print(flags: &ListFlags, stack: Option<&str>, paths: &Paths) -> anyhow::Result<()> {
    let filters = flags.filters(&FILTERS)?.only("mode", &MODES).map_err(anyhow::Error::msg)?;
    let mut api = Api::connect(paths).await?;
    let services = match stack {
        None => api.all::<Service>().await?,
        Some(stack) => api.list::<Service>(stack::in_stack(stack)).await?,
    };
    if let (Some(stack), true) = (stack, services.is_empty()) {
        remark!("{}", stack::nothing_found(stack));
        return Ok(());
    }
    let tasks = api.all::<Task>().await?;
    let counts = Counts::of(&tasks, &services);
    let mut rows: Vec<(String, Row)> = services
        .iter()
        // One that is being removed is gone for its users; only its tasks still wind down.
        .filter(|service| !service.removing)
        .filter(|service| {
            let Annotations { name, labels } = &service.spec.annotations;
            filters.any("id", |id| service.id.as_str().starts_with(id))
                && filters.any("name", |prefix| name.starts_with(prefix))
                && filters.any("mode", |mode| mode_word(service.spec.mode).replace(' ', "-") == mode)
                && filters.labels("label", labels)
        })
        .map(|service| (service.spec.annotations.name.clone(), service_row(service, &counts, flags.no_trunc)))
        .collect();
    rows.sort_by(|(a, _), (b, _)| natural_order(a, b));
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(SERVICES.print(&flags.shape(), &rows)?)
}

/// Tasks per service: running, wanted running, completed.
pub(crate) struct Counts(HashMap<String, (u64, u64, u64)>);

impl Counts {
    pub(crate) fn of(tasks: &[Arc<Task>], services: &[Arc<Service>]) -> Self {
        let current: HashMap<_, _> = services.iter().map(|service| (&service.id, service.spec_version)).collect();
        let mut counts: HashMap<String, (u64, u64, u64)> = HashMap::new();
        for task in tasks {
            let slot = counts.entry(task.service.to_string()).or_default();
            slot.0 += u64::from(task.status.state == TaskState::Running && task.desired_state <= TaskState::Running);
            slot.1 += u64::from(task.desired_state <= TaskState::Running && !task.status.state.is_terminal());
            // Of a job's run, not of those before it.
            let is_current = current.get(&task.service) == Some(&task.spec_version);
            slot.2 += u64::from(task.status.state == TaskState::Complete && is_current);
        }
        Self(counts)
    }
}

fn service_row(service: &Service, counts: &Counts, no_trunc: bool) -> Row {
    let spec = &service.spec;
    let (running, wanted, completed) = counts.0.get(service.id.as_str()).copied().unwrap_or_default();
    let max = spec.task.placement.max_replicas_per_node;
    let replicas = match spec.mode {
        ServiceMode::Replicated { replicas } if max > 0 => format!("{running}/{replicas} (max {max} per node)"),
        ServiceMode::Replicated { replicas } => format!("{running}/{replicas}"),
        ServiceMode::Global => format!("{running}/{wanted}"),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            format!("{running}/{max_concurrent} ({completed}/{total_completions} completed)")
        }
        ServiceMode::GlobalJob => format!("{running}/{wanted} ({completed}/{} completed)", wanted + completed),
    };
    let id = service.id.as_str();
    let published = if service.endpoint.ports.is_empty() { &spec.endpoint.ports } else { &service.endpoint.ports };
    row([
        ("ID", if no_trunc { id } else { short_id(id) }.into()),
        ("Name", spec.annotations.name.as_str().into()),
        ("Mode", mode_word(spec.mode).into()),
        ("Replicas", replicas.into()),
        ("Image", render::image(&spec.task.container.image).into()),
        ("Ports", ports::ingress(published).into()),
    ])
}

pub(crate) fn mode_word(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated job",
        ServiceMode::GlobalJob => "global job",
    }
}

pub(crate) fn of_services(services: &[Arc<Service>]) -> wire::Filters {
    wire::Filters { service_ids: services.iter().map(|s| s.id.to_string()).collect(), ..wire::Filters::default() }
}
