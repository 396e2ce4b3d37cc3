//! `orch lab ls`.

use std::path::PathBuf;

use anyhow::Result;
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
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Format::Table => {
            println!("{:<8} {:<16} {:<16} {:<9} DATA DIR", "NAME", "ADDRESS", "ROLES", "STATE");
            for Row { name, address, data_dir, roles, state } in rows {
                println!("{name:<8} {address:<16} {:<16} {state:<9} {}", roles.join(","), data_dir.display());
            }
        }
    }
    Ok(())
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
