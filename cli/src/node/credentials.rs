//! This node's two identities on disk, one per role.

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
        let root = &answer.root_cert_pem;
        let worker = Identity::from_pem(root.clone(), answer.worker_cert_pem.clone(), self.worker.key_pem)?;
        if worker.node_id.as_str() != answer.node_id || worker.cluster_id.as_str() != answer.cluster_id {
            return Err(NodeError::Invalid("the manager sent the certificate of another node".to_owned()));
        }
        worker.save(&paths.worker_dir().join("tls"))?;
        if answer.manager_cert_pem.is_empty() {
            return Ok(false);
        }
        Identity::from_pem(root.clone(), answer.manager_cert_pem.clone(), self.manager.key_pem)?
            .save(&paths.manager_dir().join("tls"))?;
        Ok(true)
    }
}

/// The identity that this node's worker has now.
pub(super) fn worker_identity(paths: &Paths) -> Result<Identity> {
    Ok(Identity::load(&paths.worker_dir().join("tls"))?)
}
