//! This node's two identities on disk, one per role.

use std::path::{Path, PathBuf};

use orch_proto::{
    ca::{KeyAndCsr, new_key_and_csr},
    paths::Paths,
    tls::Identity,
    wire,
};

use super::error::{NodeError, Result};

/// Keys of a node that has no certificates yet.
#[derive(Debug)]
pub(super) struct NewKeys {
    pub(super) worker: KeyAndCsr,
    pub(super) manager: KeyAndCsr,
}

impl NewKeys {
    pub(super) fn generate() -> Result<Self> {
        Ok(Self { worker: new_key_and_csr()?, manager: new_key_and_csr()? })
    }

    /// Saves the certificates that a manager signed for these keys; says whether one for a manager was among them.
    pub(super) fn save(self, answer: &wire::JoinResponse, paths: &Paths) -> Result<bool> {
        let manager_key = self.manager.key_pem.clone();
        self.save_worker(answer, paths)?;
        if answer.manager_cert_pem.is_empty() {
            return Ok(false);
        }
        Identity::from_pem(answer.root_cert_pem.clone(), answer.manager_cert_pem.clone(), manager_key)?
            .save(&manager_tls(paths))?;
        Ok(true)
    }

    /// Saves the worker's certificate alone.
    pub(super) fn save_worker(self, answer: &wire::JoinResponse, paths: &Paths) -> Result<()> {
        let root = answer.root_cert_pem.clone();
        let worker = Identity::from_pem(root, answer.worker_cert_pem.clone(), self.worker.key_pem)?;
        if worker.node_id.as_str() != answer.node_id || worker.cluster_id.as_str() != answer.cluster_id {
            return Err(NodeError::Invalid("the manager sent the certificate of another node".to_owned()));
        }
        Ok(worker.save(&worker_tls(paths))?)
    }
}

/// The certificates of this node as they lie on the disk, with the roots beside them; not the keys.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Saved {
    worker: Pair,
    manager: Option<Pair>,
}

#[derive(Clone, PartialEq, Eq)]
struct Pair {
    cert_pem: String,
    roots_pem: String,
}

impl Pair {
    fn load(dir: &Path) -> Result<Self> {
        let (cert_pem, roots_pem) = Identity::saved_certificate(dir)?;
        Ok(Self { cert_pem, roots_pem })
    }
}

impl Saved {
    pub(super) fn load(paths: &Paths, manager: bool) -> Result<Self> {
        let worker = Pair::load(&worker_tls(paths))?;
        let manager = if manager { Some(Pair::load(&manager_tls(paths))?) } else { None };
        Ok(Self { worker, manager })
    }

    pub(super) fn write_roots(paths: &Paths, manager: bool, roots_pem: &str) -> Result<()> {
        // The manager first: as long as the worker's differ, this is done again.
        if manager {
            Identity::save_roots(&manager_tls(paths), roots_pem)?;
        }
        Ok(Identity::save_roots(&worker_tls(paths), roots_pem)?)
    }

    pub(super) fn certificates(&self) -> impl Iterator<Item = &str> {
        self.pairs().map(|pair| pair.cert_pem.as_str())
    }

    /// Without their keys. One that cannot be read is not there.
    pub(super) fn identities(&self) -> impl Iterator<Item = Identity> {
        self.pairs()
            .filter_map(|pair| Identity::from_pem(pair.roots_pem.clone(), pair.cert_pem.clone(), String::new()).ok())
    }

    pub(super) fn trusts_exactly(&self, roots_pem: &str) -> bool {
        self.pairs().all(|pair| pair.roots_pem == roots_pem)
    }

    /// Whether none of the certificates is the same as before.
    pub(super) fn differs_whole(&self, before: &Self) -> bool {
        !self.certificates().any(|cert| before.certificates().any(|old| old == cert))
    }

    pub(super) fn report(&self) -> wire::CertificateReport {
        wire::CertificateReport {
            worker_cert_pem: self.worker.cert_pem.clone(),
            manager_cert_pem: self.manager.as_ref().map(|pair| pair.cert_pem.clone()).unwrap_or_default(),
            root_cert_pem: self.worker.roots_pem.clone(),
        }
    }

    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        [&self.worker].into_iter().chain(&self.manager)
    }
}

fn worker_tls(paths: &Paths) -> PathBuf {
    paths.worker_dir().join("tls")
}

fn manager_tls(paths: &Paths) -> PathBuf {
    paths.manager_dir().join("tls")
}

/// The identity that this node's worker has now.
pub(super) fn worker_identity(paths: &Paths) -> Result<Identity> {
    Ok(Identity::load(&worker_tls(paths))?)
}
