//! What a lab is made of, on disk: `/var/lib/orch-lab/<lab>/lab.json`.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

const LABS_DIR: &str = "/var/lib/orch-lab";
const FILE: &str = "lab.json";
pub(crate) const CLIENT: &str = "client";
pub(crate) const SWITCH: &str = "switch";
/// Subnets are 192.168.<k>.0/24: the default pool of overlays (10.0.0.0/8) must stay free of them.
const FIRST_SUBNET: u8 = 100;
const LAST_SUBNET: u8 = 199;
const CLIENT_ADDRESS: u8 = 1;
const FIRST_NODE_ADDRESS: u8 = 11;
pub(crate) const PREFIX_LEN: u8 = 24;
/// Addresses .11 to .210.
pub(crate) const MAX_NODES: u8 = 200;
const MAX_NAME_LEN: usize = 32;

/// A lab as it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lab {
    pub(crate) name: String,
    /// The third byte of its addresses.
    pub(crate) subnet: u8,
    pub(crate) nodes: u8,
    pub(crate) managers: u8,
    /// The program that the nodes run.
    pub(crate) program: PathBuf,
    /// Pairs of hosts of which the second does not hear the first; most cuts are two such pairs.
    #[serde(default)]
    pub(crate) partitions: Vec<(String, String)>,
}

/// Held while labs are made, removed or changed.
#[derive(Debug)]
pub(crate) struct LabsLock {
    _file: Flock<fs::File>,
}

impl LabsLock {
    pub(crate) fn take() -> Result<Self> {
        fs::create_dir_all(LABS_DIR).with_context(|| format!("cannot make the folder {LABS_DIR}"))?;
        let path = Path::new(LABS_DIR).join(".lock");
        let file = fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

impl Lab {
    /// A new lab with a subnet that no other lab has; not saved yet.
    pub(crate) fn plan(name: &str, nodes: u8, managers: u8, program: PathBuf) -> Result<Self> {
        check_name(name)?;
        if nodes == 0 || nodes > MAX_NODES || managers == 0 || managers > nodes {
            bail!("a lab has 1 to {MAX_NODES} nodes and at least one of them is a manager");
        }
        if dir(name).join(FILE).exists() {
            bail!("the lab {name:?} is up already; `orch lab down --name {name}` removes it");
        }
        let used: Vec<u8> = all()?.iter().map(|lab| lab.subnet).collect();
        let subnet = (FIRST_SUBNET..=LAST_SUBNET).find(|subnet| !used.contains(subnet));
        let subnet = subnet.context("too many labs; `orch lab down --name …` removes one")?;
        Ok(Self { name: name.to_owned(), subnet, nodes, managers, program, partitions: Vec::new() })
    }

    pub(crate) fn load(name: &str) -> Result<Self> {
        check_name(name)?;
        match read(&dir(name).join(FILE))? {
            Some(lab) => Ok(lab),
            None => bail!("there is no lab {name:?}; `orch lab up --name {name}` makes it"),
        }
    }

    pub(crate) fn save(&self) -> Result<()> {
        let (dir, tmp) = (self.dir(), self.dir().join("lab.json.tmp"));
        let saved = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&tmp, serde_json::to_vec_pretty(self)?))
            .and_then(|()| fs::rename(&tmp, dir.join(FILE)));
        saved.with_context(|| format!("cannot write {}", dir.join(FILE).display()))
    }

    pub(crate) fn dir(&self) -> PathBuf {
        dir(&self.name)
    }

    /// The folder whose `orch` is this lab's program.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.dir().join("bin")
    }

    pub(crate) fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(|number| format!("n{number}")).collect()
    }

    /// The nodes and the client.
    pub(crate) fn hosts(&self) -> Vec<Host<'_>> {
        let client = std::iter::once(CLIENT.to_owned());
        self.node_names().into_iter().chain(client).map(|name| Host { lab: self, name }).collect()
    }

    pub(crate) fn host(&self, name: &str) -> Result<Host<'_>> {
        let hosts = self.hosts();
        let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
        let found = hosts.into_iter().find(|host| host.name == name);
        found.with_context(|| format!("the lab {:?} has no host {name:?}; it has {}", self.name, names.join(", ")))
    }

    pub(crate) fn switch(&self) -> Host<'_> {
        Host { lab: self, name: SWITCH.to_owned() }
    }
}

/// One machine of a lab (or its switch).
#[derive(Debug, Clone)]
pub(crate) struct Host<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: String,
}

impl Host<'_> {
    pub(crate) fn is_node(&self) -> bool {
        self.name != CLIENT && self.name != SWITCH
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        let number = self.name.strip_prefix('n').and_then(|number| number.parse::<u8>().ok());
        let last = number.map_or(CLIENT_ADDRESS, |number| FIRST_NODE_ADDRESS + (number - 1));
        Ipv4Addr::new(192, 168, self.lab.subnet, last)
    }

    /// The same after every power cut, as a machine's would be: other hosts remember it.
    pub(crate) fn mac_address(&self) -> String {
        let [_, _, subnet, last] = self.address().octets();
        format!("02:6f:72:63:{subnet:02x}:{last:02x}")
    }

    /// Holds `lib` and `etc`; `/run/orch` lives in memory and is gone with the power.
    pub(crate) fn dir(&self) -> PathBuf {
        self.lab.dir().join(&self.name)
    }

    /// What the host sees as `/var/lib/orch`.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir().join("lib")
    }

    pub(crate) fn etc_dir(&self) -> PathBuf {
        self.dir().join("etc")
    }

    /// Relative to the root of every hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("{}/{}", lab_cgroup(&self.lab.name), self.name)
    }

    /// The process that keeps the namespaces. Processes live only in leaves, as cgroup v2 wants it.
    pub(crate) fn holder_cgroup(&self) -> String {
        format!("{}/holder", self.cgroup())
    }

    /// Daemons and commands.
    pub(crate) fn processes_cgroup(&self) -> String {
        format!("{}/host", self.cgroup())
    }

    pub(crate) fn containers_cgroup(&self) -> String {
        format!("{}/containers", self.cgroup())
    }

    /// The switch's end of the host's cable.
    pub(crate) fn port(&self) -> String {
        format!("p-{}", self.name)
    }
}

pub(crate) fn lab_cgroup(lab: &str) -> String {
    format!("orch-lab/{lab}")
}

pub(crate) fn dir(lab: &str) -> PathBuf {
    Path::new(LABS_DIR).join(lab)
}

/// Every lab of this machine whose registry can be read.
pub(crate) fn all() -> Result<Vec<Lab>> {
    let entries = match fs::read_dir(LABS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {LABS_DIR}")),
    };
    let mut labs = Vec::new();
    for entry in entries {
        labs.extend(read(&entry?.path().join(FILE)).ok().flatten());
    }
    Ok(labs)
}

/// The folder of all labs goes with the last one.
pub(crate) fn remove_labs_dir_if_empty() {
    let others = fs::read_dir(LABS_DIR).map_or(0, |entries| entries.flatten().filter(|e| e.path().is_dir()).count());
    if others == 0 {
        // Whoever waits for the lock in it makes the folder anew.
        drop(fs::remove_dir_all(LABS_DIR));
    }
}

/// The name becomes part of paths and cgroups.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !valid {
        bail!("{name:?} is not a name for a lab: use up to {MAX_NAME_LEN} letters, digits, - and _");
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Lab>> {
    match fs::read(path) {
        Ok(text) => {
            let lab = serde_json::from_slice(&text);
            let damaged = || format!("{} is damaged; `orch lab down` removes the lab", path.display());
            Ok(Some(lab.with_context(damaged)?))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_names_and_addresses_of_their_own() {
        let lab = Lab {
            name: "t".into(),
            subnet: 100,
            nodes: 2,
            managers: 1,
            program: "/orch".into(),
            partitions: Vec::new(),
        };
        let hosts: Vec<_> = lab.hosts().iter().map(|h| format!("{} {}", h.name, h.address())).collect();
        assert_eq!(hosts, ["n1 192.168.100.11", "n2 192.168.100.12", "client 192.168.100.1"]);
        let error = lab.host("n3").unwrap_err().to_string();
        assert_eq!(error, "the lab \"t\" has no host \"n3\"; it has n1, n2, client");
    }

    #[test]
    fn a_lab_cannot_be_named_out_of_its_folder() {
        for name in ["", "..", "a/b", "-x", ".lock", &"x".repeat(33)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("my-lab_2").unwrap();
    }
}
