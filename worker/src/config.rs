//! The operator's configuration, `orch.toml`: what the worker reads of it.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orch_model::node::GenericResources;
use serde::Deserialize;

use crate::{
    agent::generic,
    users::{Remap, RemapError},
};

/// Where containers' cgroups go when the operator does not say.
const DEFAULT_CGROUP_PARENT: &str = "/orch.slice";
const DEFAULT_HIGH_PERCENT: u64 = 85;
const DEFAULT_LOW_PERCENT: u64 = 80;
const DEFAULT_MINIMUM_AGE: Duration = Duration::from_secs(120);
/// Where Docker looks for the roots of registries.
const DOCKERS_CERTS: &str = "/etc/docker/certs.d";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("read {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} is not valid: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path:?}: the label {label:?} is not NAME=value")]
    Label { path: PathBuf, label: String },
    #[error("{path:?}: node-generic-resources: {line:?}: {why}")]
    Generic { path: PathBuf, line: String, why: String },
    #[error(transparent)]
    Remap(#[from] RemapError),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    registry_mirrors: Vec<String>,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default)]
    node_generic_resources: Vec<String>,
    cgroup_parent: Option<String>,
    #[serde(default)]
    userns_remap: String,
    image_gc_high_threshold: Option<u64>,
    image_gc_low_threshold: Option<u64>,
    /// Seconds.
    image_gc_minimum_age: Option<u64>,
    /// The supervisor's.
    #[serde(rename = "log-level")]
    _log_level: Option<toml::Value>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

/// Read anew each time it is asked, so that a change needs no restart.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    path: PathBuf,
    /// What could be read last.
    offer: Arc<Mutex<Option<Offer>>>,
}

/// What managers are told that the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub labels: BTreeMap<String, String>,
    pub generic: GenericResources,
}

/// When images that nothing uses go by themselves. The names and defaults are the kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CollectConfig {
    /// Above it, of the disk with the images, they go; 100 is never.
    pub high_percent: u64,
    /// Until it is reached.
    pub low_percent: u64,
    /// Unused for at least so long.
    pub minimum_age: Duration,
}

/// What the operator says about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistryConfig {
    /// `host[:port]` or a network in CIDR form.
    pub insecure: Vec<String>,
    /// Asked before docker.io.
    pub mirrors: Vec<String>,
    /// Folders with a folder per registry, which has the roots to trust for it as `*.crt`.
    pub certs: Vec<PathBuf>,
}

impl RegistryConfig {
    pub(crate) fn is_insecure(&self, registry: &str) -> bool {
        let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, _)) => host,
            None => registry.rsplit_once(':').map_or(registry, |(host, _)| host),
        };
        let ip: Option<IpAddr> = host.parse().ok();
        self.insecure.iter().any(|entry| {
            let in_network = || {
                let network: Option<ipnetwork::IpNetwork> = entry.contains('/').then(|| entry.parse().ok()).flatten();
                ip.zip(network).is_some_and(|(ip, network)| network.contains(ip))
            };
            let named = entry.strip_prefix("http://").or_else(|| entry.strip_prefix("https://")).unwrap_or(entry);
            named.trim_end_matches('/') == registry || in_network()
        })
    }
}

impl Settings {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, offer: Arc::default() }
    }

    /// An unreadable file must not stop a pull that needs none of it.
    pub(crate) fn registries(&self) -> RegistryConfig {
        let file = self.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "ignoring the configuration of registries");
            File::default()
        });
        let own = self.path.with_file_name("certs.d");
        RegistryConfig {
            insecure: file.insecure_registries,
            mirrors: file.registry_mirrors,
            certs: vec![own, DOCKERS_CERTS.into()],
        }
    }

    /// As with registries, an unreadable file means the defaults.
    pub(crate) fn collect(&self) -> CollectConfig {
        let file = self.read().unwrap_or_default();
        let high_percent = file.image_gc_high_threshold.unwrap_or(DEFAULT_HIGH_PERCENT);
        let low_percent = file.image_gc_low_threshold.unwrap_or(DEFAULT_LOW_PERCENT).min(high_percent);
        let minimum_age = file.image_gc_minimum_age.map_or(DEFAULT_MINIMUM_AGE, Duration::from_secs);
        CollectConfig { high_percent, low_percent, minimum_age }
    }

    /// What nobody reads, a slip of the pen most likely: without a word it would look as if it had been obeyed.
    pub(crate) fn unknown(&self) -> Vec<String> {
        self.read().unwrap_or_default().unknown.into_keys().collect()
    }

    pub(crate) fn cgroup_parent(&self) -> Result<String, ConfigError> {
        Ok(self.read()?.cgroup_parent.unwrap_or_else(|| DEFAULT_CGROUP_PARENT.to_owned()))
    }

    /// Docker's key: `default`, `USER` or `USER:GROUP`. Read when the worker starts.
    pub(crate) fn remap(&self) -> Result<Option<Remap>, ConfigError> {
        Ok(Remap::read(&self.read()?.userns_remap)?)
    }

    /// A slip of the pen must not cost the node its next session, whenever that is: what it had goes on. One that is there
    /// when the worker starts is an error.
    pub(crate) fn offer(&self) -> Result<Offer, ConfigError> {
        let read = self.labels().and_then(|labels| Ok(Offer { labels, generic: self.generic_resources()? }));
        let mut last = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        match (read, &*last) {
            (Ok(offer), _) => Ok(last.insert(offer).clone()),
            (Err(error), Some(last)) => {
                tracing::warn!(%error, "labels and generic resources stay as they were: correct the file, the worker will not start with it");
                Ok(last.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn labels(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let parse = |label: String| match label.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(ConfigError::Label { path: self.path.clone(), label }),
        };
        self.read()?.labels.into_iter().map(parse).collect()
    }

    /// What the operator says this node has besides CPUs and memory.
    fn generic_resources(&self) -> Result<GenericResources, ConfigError> {
        let mut resources = GenericResources::default();
        for line in self.read()?.node_generic_resources {
            if let Err(why) = generic::add(&mut resources, &line) {
                return Err(ConfigError::Generic { path: self.path.clone(), line, why });
            }
        }
        Ok(resources)
    }

    fn read(&self) -> Result<File, ConfigError> {
        read(&self.path)
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.message().to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(File::default()),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_optional_and_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orch.toml");
        let settings = Settings::new(path.clone());
        assert_eq!(settings.cgroup_parent().unwrap(), "/orch.slice");
        std::fs::write(&path, "insecure-registries = [\"a:5000\"]\nlabels = [\"k=v=w\"]\nlog-level = \"debug\"\n")
            .unwrap();
        assert!(settings.registries().is_insecure("a:5000"));
        assert_eq!(settings.unknown(), [""; 0]);
        assert_eq!(settings.labels().unwrap()["k"], "v=w");
        std::fs::write(&path, "node-generic-resources = [\"gpu=UUID1\", \"ssd=2\"]").unwrap();
        let generic = settings.generic_resources().unwrap();
        assert_eq!((generic.count("gpu"), generic.count("ssd")), (1, 2));
        std::fs::write(&path, "node-generic-resources = [\"gpu\"]").unwrap();
        assert!(settings.generic_resources().unwrap_err().to_string().contains("expected KIND=NAME or KIND=NUMBER"));
        std::fs::write(&path, "image-gc-high-threshold = 70\nimage-gc-minimum-age = 5").unwrap();
        let collect = settings.collect();
        assert_eq!((collect.high_percent, collect.low_percent, collect.minimum_age.as_secs()), (70, 70, 5));
        std::fs::write(&path, "insecure-registry = [\"a:5000\"]\n[log]\nlevel = \"info\"").unwrap();
        assert_eq!(settings.unknown(), ["insecure-registry", "log"]);
        std::fs::write(&path, "labels = [\"novalue\"]").unwrap();
        assert!(matches!(settings.labels(), Err(ConfigError::Label { .. })));
    }

    #[test]
    fn what_cannot_be_read_any_more_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orch.toml");
        let settings = Settings::new(path.clone());
        let good = "labels = [\"disk=fast\"]\nnode-generic-resources = [\"gpu=2\"]\n";
        for bad in ["labels = [\"disk\"]", "node-generic-resources = [\"gpu=-2\"]", "labels = 3", "labels ="] {
            std::fs::write(&path, bad).unwrap();
            assert!(Settings::new(path.clone()).offer().is_err(), "{bad}");
            std::fs::write(&path, good).unwrap();
            let before = settings.offer().unwrap();
            assert_eq!((before.labels["disk"].as_str(), before.generic.count("gpu")), ("fast", 2));
            std::fs::write(&path, bad).unwrap();
            assert_eq!(settings.offer().unwrap(), before, "{bad}");
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(settings.offer().unwrap(), Offer::default());
    }
}
