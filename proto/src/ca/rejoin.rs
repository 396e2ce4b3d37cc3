//! How a node whose certificate has expired proves that it is the node that the certificate names.
//!
//! TLS refuses such a certificate, so the proof is a signature in the request: by the certificate's key, over what the
//! node wants to have signed. Whoever repeats it gets certificates for keys that only the node has.

use orch_model::{ClusterId, NodeId};
use rcgen::{KeyPair, SigningKey};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::{
    CaError,
    roots::{certificates, is_signed_by, parse},
};
use crate::tls::PeerIdentity;

/// Keeps the statement from ever being anything else that a node signs.
const DOMAIN: &[u8] = b"orch rejoin 1\0";

/// What is signed: who asks, and for which keys.
#[must_use]
pub fn rejoin_statement(cluster: &ClusterId, node: &NodeId, worker_csr_pem: &str, manager_csr_pem: &str) -> Vec<u8> {
    let mut statement = DOMAIN.to_vec();
    for part in [cluster.as_str(), node.as_str(), worker_csr_pem, manager_csr_pem] {
        statement.extend_from_slice(&(part.len() as u64).to_be_bytes());
        statement.extend_from_slice(part.as_bytes());
    }
    statement
}

/// Signs a statement with a node's private key (PEM).
pub fn sign_statement(key_pem: &str, statement: &[u8]) -> Result<Vec<u8>, CaError> {
    KeyPair::from_pem(key_pem).and_then(|key| key.sign(statement)).map_err(CaError::Generate)
}

/// Whose certificate this is, when a root of the bundle vouches for it (its age does not matter) and the statement was
/// signed by its key.
pub fn check_statement(
    chain_pem: &str,
    roots_pem: &str,
    statement: impl FnOnce(&PeerIdentity) -> Vec<u8>,
    signature: &[u8],
) -> Result<PeerIdentity, CaError> {
    let (chain, roots) = (certificates(chain_pem)?, certificates(roots_pem)?);
    let parsed = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let roots = roots.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let (leaf, between) = parsed.split_first().ok_or(CaError::Signature)?;
    let is_vouched = |cert| roots.iter().any(|root| is_signed_by(cert, root));
    if !is_vouched(leaf) && !between.iter().any(|ca| ca.is_ca() && is_signed_by(leaf, ca) && is_vouched(ca)) {
        return Err(CaError::ForeignCertificate);
    }
    let peer = PeerIdentity::from_certificate(&chain[0]).map_err(|_| CaError::ForeignCertificate)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, leaf.public_key().subject_public_key.data.as_ref())
        .verify(&statement(&peer), signature)
        .map_err(|_| CaError::Signature)?;
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use orch_model::node::NodeRole;

    use super::*;
    use crate::ca::{bundle, cross_sign, generate_root, new_key_and_csr, sign_csr};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn only_the_nodes_own_key_under_this_clusters_root_proves_it() {
        let (now, cluster, node) = (SystemTime::now(), ClusterId::from_random(1), NodeId::from_random(2));
        let (root, next, foreign) = (
            generate_root(&cluster, now).unwrap(),
            generate_root(&cluster, now).unwrap(),
            generate_root(&cluster, now).unwrap(),
        );
        let long_ago = now - 100 * 24 * HOUR;
        let (key, other) = (new_key_and_csr().unwrap(), new_key_and_csr().unwrap());
        let sign = |root, csr: &str| sign_csr(root, csr, &node, &cluster, NodeRole::Worker, HOUR, long_ago).unwrap();
        let of = |peer: &PeerIdentity| rejoin_statement(&peer.cluster_id, &peer.node_id, "csr", "");
        let statement = rejoin_statement(&cluster, &node, "csr", "");
        let signature = sign_statement(&key.key_pem, &statement).unwrap();

        let cert = sign(&root, &key.csr_pem);
        let proven = check_statement(&cert, &root.cert_pem, of, &signature).unwrap();
        assert_eq!((proven.node_id, proven.role), (node.clone(), NodeRole::Worker));
        // By the next root, which the present one vouches for.
        let crossed = cross_sign(&root, &next, &cluster, now).unwrap();
        let chain = bundle([sign(&next, &key.csr_pem).as_str(), &crossed]);
        check_statement(&chain, &root.cert_pem, of, &signature).unwrap();

        let refused =
            |chain: &str, signature: &[u8]| check_statement(chain, &root.cert_pem, of, signature).unwrap_err();
        assert!(matches!(refused(&sign(&next, &key.csr_pem), &signature), CaError::ForeignCertificate));
        assert!(matches!(refused(&sign(&foreign, &key.csr_pem), &signature), CaError::ForeignCertificate));
        let stolen = sign_statement(&other.key_pem, &statement).unwrap();
        assert!(matches!(refused(&cert, &stolen), CaError::Signature));
        let for_other_keys = sign_statement(&key.key_pem, &rejoin_statement(&cluster, &node, "csr2", "")).unwrap();
        assert!(matches!(refused(&cert, &for_other_keys), CaError::Signature));
        // A node cannot vouch for another.
        let forged =
            sign(&orch_model::cluster::RootCa { cert_pem: cert.clone(), key_pem: key.key_pem.clone() }, &other.csr_pem);
        let chain = bundle([forged.as_str(), &cert]);
        let own = sign_statement(&other.key_pem, &statement).unwrap();
        assert!(matches!(refused(&chain, &own), CaError::ForeignCertificate));
    }
}
