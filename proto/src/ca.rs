//! The cluster's certificate authority: makes the root, signs node certificates and small blobs.
//!
//! This module must not store anything nor decide who gets a certificate. The caller passes the time.
//!
//! Invariants: of a certificate request only the public key is used, so that nobody chooses an own name; keys are ECDSA
//! P-256; a certificate is valid from an hour before it was made, for machines whose clock is behind.

mod rejoin;
mod roots;

pub use rejoin::{check_statement, rejoin_statement, sign_statement};
pub use roots::{bundle, cross_sign, digest, digests, issuer, own_root};

use std::time::{Duration, SystemTime};

use orch_model::{
    ClusterId, NodeId,
    cluster::{MIN_CERT_EXPIRY, RootCa},
    node::NodeRole,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SerialNumber, SigningKey,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::tls::{self, role_dns_name, role_unit};

/// A serial number is positive and has no leading zero byte.
const SERIAL_MARK: u64 = 0b11 << 62;
/// Clocks differ: so long before they were made certificates are valid.
pub(crate) const BACKDATE: Duration = Duration::from_secs(3600);
const ROOT_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Lowers the shortest life that a certificate may be given, in seconds: for tests, which cannot wait an hour.
const MIN_EXPIRY_VARIABLE: &str = "ORCH_LAB_MIN_CERT_EXPIRY_SECONDS";
/// Keeps what is signed as a blob from ever being a certificate.
const BLOB_DOMAIN: &[u8] = b"orch signed blob 1\0";

/// Why something was not signed or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot make a key or certificate")]
    Generate(#[source] rcgen::Error),
    #[error("the cluster's root certificate or key is damaged")]
    Root(#[source] rcgen::Error),
    #[error("the certificate request cannot be read")]
    Request(#[source] rcgen::Error),
    #[error("the certificate request has a key of another kind than ECDSA P-256")]
    KeyKind,
    #[error("the root certificate cannot be read: {0}")]
    RootCertificate(String),
    #[error("the signature is not valid")]
    Signature,
    #[error("the certificate is not one of this cluster")]
    ForeignCertificate,
    #[error("this root certificate cannot be used: {0}")]
    OwnRoot(String),
}

/// A new private key and the request for its certificate.
#[derive(Clone)]
pub struct KeyAndCsr {
    pub key_pem: String,
    pub csr_pem: String,
}

impl std::fmt::Debug for KeyAndCsr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyAndCsr").finish_non_exhaustive()
    }
}

/// When a certificate is made.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// By the clock: its life is counted from here.
    pub at: SystemTime,
    /// By the cluster's time, which may be ahead of the clock: tells what is newer than what.
    pub stamp: SystemTime,
}

impl From<SystemTime> for Made {
    fn from(at: SystemTime) -> Self {
        Self { at, stamp: at }
    }
}

/// A new root for a new cluster.
pub fn generate_root(cluster_id: &ClusterId, now: SystemTime) -> Result<RootCa, CaError> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "orch-ca");
    params.distinguished_name.push(DnType::OrganizationName, cluster_id.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial(now));
    set_validity(&mut params, now, ROOT_LIFETIME);
    let cert = params.self_signed(&key).map_err(CaError::Generate)?;
    Ok(RootCa { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A new key pair with its request; the request's subject is empty because the manager ignores it.
pub fn new_key_and_csr() -> Result<KeyAndCsr, CaError> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(CaError::Generate)?;
    Ok(KeyAndCsr { key_pem: key.serialize_pem(), csr_pem: csr })
}

/// The certificate (PEM) of this node in this role for the key in the request.
pub fn sign_csr(
    root: &RootCa,
    csr_pem: &str,
    node_id: &NodeId,
    cluster_id: &ClusterId,
    role: NodeRole,
    lifetime: Duration,
    made: impl Into<Made>,
) -> Result<String, CaError> {
    let made = made.into();
    let key = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?.public_key;
    if PublicKeyData::algorithm(&key) != &PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::KeyKind);
    }
    let names = vec![role_dns_name(role, cluster_id), node_id.to_string()];
    let mut params = CertificateParams::new(names).map_err(CaError::Generate)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node_id.as_str());
    params.distinguished_name.push(DnType::OrganizationName, cluster_id.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, role_unit(role));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial(made.stamp));
    // It is worth nothing without its root. With one that is over already, the certificate says so.
    let left = root_not_after(root)?.duration_since(made.at).unwrap_or_default();
    set_validity(&mut params, made.at, lifetime.min(left));
    let issuer = Issuer::from_ca_cert_pem(&root.cert_pem, root_key(root)?).map_err(CaError::Root)?;
    Ok(params.signed_by(&key, &issuer).map_err(CaError::Generate)?.pem())
}

/// The shortest life that a certificate may be given: an hour, except in labs of tests.
#[must_use]
pub fn min_cert_expiry() -> Duration {
    let lowered = std::env::var(MIN_EXPIRY_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
    lowered.map_or(MIN_CERT_EXPIRY, Duration::from_secs).min(MIN_CERT_EXPIRY)
}

/// When a certificate of this CA was made, to the millisecond: that is in its serial number.
pub(crate) fn issued_at(serial: &[u8]) -> SystemTime {
    let first = serial.get(..8).and_then(|first| first.try_into().ok()).map_or(0, u64::from_be_bytes);
    SystemTime::UNIX_EPOCH + Duration::from_millis(first & !SERIAL_MARK)
}

/// A signature that every node of the cluster can check with the root certificate alone.
pub fn sign_blob(root: &RootCa, blob: &[u8]) -> Result<Vec<u8>, CaError> {
    root_key(root)?.sign(&in_blob_domain(blob)).map_err(CaError::Root)
}

/// Checks what [`sign_blob`] made with one of these roots.
pub fn verify_blob(roots_pem: &str, blob: &[u8], signature: &[u8]) -> Result<(), CaError> {
    let blob = in_blob_domain(blob);
    for der in roots::certificates(roots_pem)? {
        let root = roots::parse(&der)?;
        let key = root.public_key().subject_public_key.data.as_ref();
        if UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&blob, signature).is_ok() {
            return Ok(());
        }
    }
    Err(CaError::Signature)
}

fn new_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Generate)
}

fn root_key(root: &RootCa) -> Result<KeyPair, CaError> {
    KeyPair::from_pem(&root.key_pem).map_err(CaError::Root)
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
}

fn root_not_after(root: &RootCa) -> Result<SystemTime, CaError> {
    let der = CertificateDer::from_pem_slice(root.cert_pem.as_bytes());
    der.map(|der| tls::not_after(&der)).map_err(|error| CaError::RootCertificate(error.to_string()))
}

/// The time of issue in milliseconds, then random bits.
fn serial(now: SystemTime) -> SerialNumber {
    let ms = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let ms = u64::try_from(ms).unwrap_or(u64::MAX) & !SERIAL_MARK;
    let mut bytes: [u8; 16] = rand::random();
    bytes[..8].copy_from_slice(&(ms | (SERIAL_MARK & (u64::MAX >> 1))).to_be_bytes());
    SerialNumber::from_slice(&bytes)
}

fn in_blob_domain(blob: &[u8]) -> Vec<u8> {
    [BLOB_DOMAIN, blob].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_accepted_from_its_own_root_only() {
        let now = SystemTime::now();
        let cluster = ClusterId::from_random(1);
        let (ours, theirs) = (generate_root(&cluster, now).unwrap(), generate_root(&cluster, now).unwrap());
        let signature = sign_blob(&ours, b"grant").unwrap();
        verify_blob(&ours.cert_pem, b"grant", &signature).unwrap();
        assert!(matches!(verify_blob(&ours.cert_pem, b"Grant", &signature), Err(CaError::Signature)));
        assert!(matches!(verify_blob(&theirs.cert_pem, b"grant", &signature), Err(CaError::Signature)));
    }

    #[test]
    fn no_certificate_outlives_its_root() {
        let now = SystemTime::now();
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let root = generate_root(&cluster, now).unwrap();
        let key = new_key_and_csr().unwrap();
        let ends = |lifetime| {
            let cert = sign_csr(&root, &key.csr_pem, &node, &cluster, NodeRole::Worker, lifetime, now).unwrap();
            tls::not_after(&CertificateDer::from_pem_slice(cert.as_bytes()).unwrap())
        };
        let root_ends = root_not_after(&root).unwrap();
        assert_eq!((ends(2 * ROOT_LIFETIME), ends(Duration::MAX)), (root_ends, root_ends));
        assert!(ends(Duration::from_secs(3600)) < now + Duration::from_secs(3601));
    }

    #[test]
    fn the_name_in_a_request_is_ignored() {
        let now = SystemTime::now();
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let root = generate_root(&cluster, now).unwrap();
        let key = new_key().unwrap();
        let mut params = CertificateParams::new(vec![role_dns_name(NodeRole::Manager, &cluster)]).unwrap();
        params.distinguished_name.push(DnType::OrganizationalUnitName, "orch-manager");
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let cert = sign_csr(&root, &csr, &node, &cluster, NodeRole::Worker, BACKDATE, now).unwrap();
        let identity = crate::tls::Identity::from_pem(root.cert_pem, cert, key.serialize_pem()).unwrap();
        assert_eq!((identity.role, identity.node_id), (NodeRole::Worker, node));
    }

    #[test]
    fn a_certificate_tells_when_it_was_made() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        assert_eq!(issued_at(serial(now).as_ref()), now);
        assert_eq!(serial(now).as_ref()[0] & 0xc0, 0x40, "positive, and 16 bytes long");
    }

    /// The cluster's time is ahead when a clock was wrong before.
    #[test]
    fn a_certificate_is_valid_by_the_clock_and_newer_by_the_clusters_time() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let root = generate_root(&cluster, at).unwrap();
        let key = new_key_and_csr().unwrap();
        for ahead in [Duration::ZERO, 2 * BACKDATE, 10 * ROOT_LIFETIME] {
            let made = Made { at, stamp: at + ahead };
            let cert = sign_csr(&root, &key.csr_pem, &node, &cluster, NodeRole::Worker, BACKDATE, made).unwrap();
            let own = tls::Identity::from_pem(root.cert_pem.clone(), cert, key.key_pem.clone()).unwrap();
            assert!(own.not_before() < at && own.not_after() > at && own.not_after() <= at + BACKDATE, "{ahead:?}");
            let late = own.issued_at().duration_since(at).unwrap();
            assert!(late <= Duration::from_secs(1), "{ahead:?}: renewed {late:?} late");
        }
    }

    #[test]
    fn a_request_that_is_none_is_refused() {
        let now = SystemTime::now();
        let cluster = ClusterId::from_random(1);
        let root = generate_root(&cluster, now).unwrap();
        let signed = sign_csr(&root, "nonsense", &NodeId::from_random(2), &cluster, NodeRole::Worker, BACKDATE, now);
        assert!(matches!(signed, Err(CaError::Request(_))));
    }
}
