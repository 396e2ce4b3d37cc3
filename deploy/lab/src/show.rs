//! `orch lab ls`.

use std::{io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    Format,
    cgroup::Cgroups,
    host, power,
    registry::{Host, Lab},
};

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    address: String,
    data_dir: PathBuf,
    roles: Vec<&'static str>,
    state: &'static str,
}

pub(crate) fn list(lab: &str, format: Format) -> Result<()> {
    let lab = Lab::load(lab)?;
    let cgroups = Cgroups::find()?;
    let rows: Vec<Row> = lab.hosts().iter().map(|host| row(host, &cgroups)).collect();
    let text = match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&rows)?),
        Format::Table => table(&rows),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print the list"),
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<8} {:<16} {:<16} {:<9} DATA DIR\n", "NAME", "ADDRESS", "ROLES", "STATE");
    for Row { name, address, data_dir, roles, state } in rows {
        let (roles, data_dir) = (roles.join(","), data_dir.display());
        text.push_str(&format!("{name:<8} {address:<16} {roles:<16} {state:<9} {data_dir}\n"));
    }
    text
}

fn row(host: &Host<'_>, cgroups: &Cgroups) -> Row {
    Row {
        name: host.name.clone(),
        address: host.address().to_string(),
        data_dir: host.data_dir(),
        roles: roles(host),
        state: state(host, cgroups),
    }
}

fn roles(host: &Host<'_>) -> Vec<&'static str> {
    match power::membership(host) {
        None => Vec::new(),
        Some(power::Membership { manager: false }) => vec!["worker"],
        Some(power::Membership { manager: true }) => vec!["manager", "worker"],
    }
}

/// `stopped`: the machine is on, the supervisor is not.
fn state(host: &Host<'_>, cgroups: &Cgroups) -> &'static str {
    if host::holder(host, cgroups).is_none() {
        "off"
    } else if host.is_node() && !power::supervisor_runs(host, cgroups) {
        "stopped"
    } else {
        "running"
    }
}
