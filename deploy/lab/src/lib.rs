//! Clusters of namespaces on one machine: `orch lab`.
//!
//! A lab is a switch (a network namespace with a bridge) and hosts on it: the nodes `n1`, `n2`, … and `client`, which is
//! outside the cluster. A host is a network, mount and hostname namespace kept by one small process, a cgroup, and
//! folders that appear in it as `/var/lib/orch`, `/run/orch` and `/etc/orch`. What runs on a node is the ordinary
//! `orch node`, which knows nothing of labs.
//!
//! Invariants: nothing is mounted and no address is set outside the lab's own namespaces; every process of a lab is
//! below `/orch-lab/<lab>` in every cgroup hierarchy, so that a lab can be found and removed after any crash. This crate
//! starts no threads: a thread could not change its mount namespace.

mod cgroup;
mod enter;
mod host;
mod net;
mod power;
mod registry;
mod show;
mod up;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};

/// Arguments of `orch lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster out of namespaces on this machine
    Up {
        #[command(flatten)]
        lab: LabName,
        /// Number of nodes
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// How many of them are managers
        #[arg(long, default_value_t = 1)]
        managers: u8,
    },
    /// Run a command on a node, or on `client`
    Exec {
        #[command(flatten)]
        lab: LabName,
        /// `n1`, `n2`, … or `client`
        node: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Kill a daemon, or cut a node's power
    Kill {
        #[command(flatten)]
        lab: LabName,
        node: String,
        /// What to kill
        #[arg(value_enum, default_value_t = Target::All)]
        target: Target,
    },
    /// Make a daemon stand still, as on a machine that has no time for it
    Pause {
        #[command(flatten)]
        lab: LabName,
        node: String,
        /// What stands still; `all`: the supervisor and its daemons, not the containers
        #[arg(value_enum, default_value_t = Target::All)]
        target: Target,
    },
    /// Let whatever stands still on a node go on
    Resume {
        #[command(flatten)]
        lab: LabName,
        node: String,
    },
    /// Bring a node back
    Start {
        #[command(flatten)]
        lab: LabName,
        node: String,
    },
    /// Cut the connection between two hosts
    Partition {
        #[command(flatten)]
        lab: LabName,
        a: String,
        b: String,
        /// B no longer hears A, but A still hears B
        #[arg(long)]
        one_way: bool,
    },
    /// Undo every partition
    Heal {
        #[command(flatten)]
        lab: LabName,
    },
    /// List the lab's hosts
    Ls {
        #[command(flatten)]
        lab: LabName,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Remove the lab and everything in it
    Down {
        #[command(flatten)]
        lab: LabName,
    },
    /// Keeps a host's namespaces; started by the lab itself
    #[command(hide = true)]
    Hold {
        #[command(flatten)]
        lab: LabName,
        host: String,
    },
}

#[derive(Debug, Args)]
struct LabName {
    /// Which lab; several may live side by side
    #[arg(long, default_value = "lab")]
    name: String,
}

/// What `orch lab kill` kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Manager,
    Worker,
    Netd,
    /// The supervisor; the daemons die with it, containers do not
    Node,
    /// A power cut: every process dies, the links go down
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Runs one `orch lab` command. Must be called before the process has any other thread.
pub fn run(args: LabArgs) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab is made of namespaces, which needs root: run this command with sudo");
    }
    match args.command {
        Command::Up { lab, nodes, managers } => up::up(&lab.name, nodes, managers)?,
        Command::Down { lab } => up::down(&lab.name)?,
        Command::Exec { lab, node, command } => return enter::exec(&lab.name, &node, &command),
        Command::Kill { lab, node, target } => power::kill(&lab.name, &node, target)?,
        Command::Pause { lab, node, target } => power::pause(&lab.name, &node, target)?,
        Command::Resume { lab, node } => power::resume(&lab.name, &node)?,
        Command::Start { lab, node } => power::start(&lab.name, &node)?,
        Command::Partition { lab, a, b, one_way } => net::partition(&lab.name, &a, &b, one_way)?,
        Command::Heal { lab } => net::heal(&lab.name)?,
        Command::Ls { lab, format } => show::list(&lab.name, format)?,
        Command::Hold { lab, host } => host::hold(&lab.name, &host)?,
    }
    Ok(ExitCode::SUCCESS)
}
