//! Roots: their digests, an operator's own, cross-signing, and which of them signed a certificate.
//!
//! While a root is replaced, nodes trust the old one and the new one, and what the new one signs travels with the new
//! root's key certified by the old: so it is believed also by nodes that have not heard of the new root.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use orch_model::{ClusterId, NodeId, cluster::RootCa, node::NodeRole};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::{asn1_rs::Tag, certificate::X509Certificate, x509::X509Name};

use super::{BACKDATE, CaError, ROOT_LIFETIME, new_key_and_csr, root_key, serial, set_validity, sign_csr};
use crate::tls::{Identity, verify_server};

/// A root that expires sooner than this is not worth the work of rotating to it.
const OWN_ROOT_MIN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// SHA-256 of the (first) certificate, in hexadecimal.
pub fn digest(root_pem: &str) -> Result<String, CaError> {
    digests(root_pem)?.into_iter().next().ok_or_else(|| CaError::RootCertificate("there is none".to_owned()))
}

/// The digest of every certificate of a bundle, in its order.
pub fn digests(roots_pem: &str) -> Result<Vec<String>, CaError> {
    Ok(certificates(roots_pem)?.iter().map(|der| hex(&Sha256::digest(der))).collect())
}

/// Several roots as one bundle.
#[must_use]
pub fn bundle<'a>(roots: impl IntoIterator<Item = &'a str>) -> String {
    let mut all = String::new();
    for root in roots {
        all.push_str(root.trim_end());
        all.push('\n');
    }
    all
}

/// The digest of that root in the bundle whose key signed the (first) certificate; `None` when none of them did.
pub fn issuer(cert_pem: &str, roots_pem: &str) -> Result<Option<String>, CaError> {
    let leaf = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|e| unreadable(&e))?;
    let leaf = parse(&leaf)?;
    for der in certificates(roots_pem)? {
        if is_signed_by(&leaf, &parse(&der)?) {
            return Ok(Some(hex(&Sha256::digest(&der))));
        }
    }
    Ok(None)
}

/// Takes over an operator's own root, once it is sure that certificates of it would be accepted.
pub fn own_root(cert_pem: &str, key_pem: &str, cluster: &ClusterId, now: SystemTime) -> Result<RootCa, CaError> {
    let refused = |reason: &str| CaError::OwnRoot(reason.to_owned());
    let ders = certificates(cert_pem).map_err(|_| refused("the certificate is not PEM (\"BEGIN CERTIFICATE\")"))?;
    let [der] = &ders[..] else {
        return Err(refused("expected exactly one certificate, the root itself without a chain"));
    };
    let cert = parse(der)?;
    if !cert.is_ca() {
        return Err(refused("the certificate may not sign others (its basic constraints do not say CA:TRUE)"));
    }
    if cert.subject() != cert.issuer() || !is_signed_by(&cert, &cert) {
        return Err(refused(
            "the certificate is not a root: it must be signed by its own key, ECDSA P-256 with SHA-256",
        ));
    }
    let not_after = SystemTime::UNIX_EPOCH
        + Duration::from_secs(u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default());
    if not_after < now + OWN_ROOT_MIN_LIFE {
        return Err(refused("the certificate expires within 30 days"));
    }
    if !matches!(PrivateKeyDer::from_pem_slice(key_pem.as_bytes()), Ok(PrivateKeyDer::Pkcs8(_))) {
        return Err(refused(
            "the key is not an unencrypted PKCS#8 key in PEM; make one of it with \"openssl pkcs8 -topk8 -nocrypt -in KEY\"",
        ));
    }
    let root = RootCa { cert_pem: bundle([only_block(cert_pem)]), key_pem: key_pem.to_owned() };
    let key = root_key(&root).map_err(|_| refused("the key cannot be used: an ECDSA P-256 key is needed"))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(refused("the key is of another kind than ECDSA P-256"));
    }
    if key.public_key_raw() != cert.public_key().subject_public_key.data.as_ref() {
        return Err(refused("the key does not belong to the certificate"));
    }
    try_out(&root, "", &root.cert_pem, cluster, now)
        .map_err(|e| CaError::OwnRoot(format!("certificates that it signs would not be accepted ({e})")))?;
    Ok(root)
}

/// The target's name and key in a certificate of the current root, tried out.
pub fn cross_sign(current: &RootCa, target: &RootCa, cluster: &ClusterId, now: SystemTime) -> Result<String, CaError> {
    let target_der = CertificateDer::from_pem_slice(target.cert_pem.as_bytes()).map_err(|e| unreadable(&e))?;
    let target_cert = parse(&target_der)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(target_cert.subject())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial(now));
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, ROOT_LIFETIME);
    let key = SubjectPublicKeyInfo::from_der(target_cert.public_key().raw).map_err(CaError::Generate)?;
    let issuer = Issuer::from_ca_cert_pem(&current.cert_pem, root_key(current)?).map_err(CaError::Root)?;
    let crossed = params.signed_by(&key, &issuer).map_err(CaError::Generate)?.pem();
    try_out(target, &crossed, &current.cert_pem, cluster, now)
        .map_err(|e| CaError::OwnRoot(format!("the present root cannot vouch for it ({e})")))?;
    Ok(crossed)
}

/// Signs a certificate for nobody and checks it as a node would that trusts `roots_pem` only.
fn try_out(
    root: &RootCa,
    chain_pem: &str,
    roots_pem: &str,
    cluster: &ClusterId,
    now: SystemTime,
) -> Result<(), CaError> {
    let (key, node) = (new_key_and_csr()?, NodeId::from_random(0));
    let leaf = sign_csr(root, &key.csr_pem, &node, cluster, NodeRole::Manager, BACKDATE, now)?;
    let refused = |e: &dyn std::fmt::Display| CaError::OwnRoot(e.to_string());
    let identity = Identity::from_pem(roots_pem.to_owned(), bundle([leaf.as_str(), chain_pem]), key.key_pem)
        .map_err(|e| refused(&e))?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verify_server(&identity, UnixTime::since_unix_epoch(since)).map_err(|e| refused(&e))
}

pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| unreadable(&e))?;
    if all.is_empty() { Err(CaError::RootCertificate("there is none".to_owned())) } else { Ok(all) }
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    x509_parser::parse_x509_certificate(der).map(|(_, cert)| cert).map_err(|e| unreadable(&e))
}

pub(super) fn is_signed_by(cert: &X509Certificate<'_>, root: &X509Certificate<'_>) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, root.public_key().subject_public_key.data.as_ref())
        .verify(cert.tbs_certificate.as_ref(), cert.signature_value.data.as_ref())
        .is_ok()
}

/// A name as it stands in the certificate, value by value in its own kind of text: names are compared byte by byte.
fn name(name: &X509Name<'_>) -> Result<DistinguishedName, CaError> {
    let unusual = || CaError::OwnRoot("its subject has a value of an unusual kind".to_owned());
    let mut copy = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().ok_or_else(unusual)?.collect();
        let kind = DnType::from_oid(&oid);
        let (text, value) = (attribute.as_str().map_err(|_| unusual())?, attribute.attr_value());
        let value = match value.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| unusual())?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| unusual())?),
            _ => return Err(unusual()),
        };
        copy.push(kind, value);
    }
    Ok(copy)
}

/// The certificate without what `openssl` writes in front of it.
fn only_block(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----";
    let start = pem.find("-----BEGIN CERTIFICATE-----").unwrap_or_default();
    let end = pem.find(END).map_or(pem.len(), |at| at + END.len());
    pem.get(start..end).unwrap_or(pem)
}

fn unreadable(error: &dyn std::fmt::Display) -> CaError {
    CaError::RootCertificate(error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384};

    use super::*;
    use crate::ca::{generate_root, verify_blob};

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    /// A root as an operator may have it.
    fn made(change: impl FnOnce(&mut CertificateParams), key: &KeyPair, lifetime: Duration) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap()));
        params.distinguished_name.push(DnType::OrganizationName, "Ex\u{e4}mple");
        params.distinguished_name.push(DnType::CommonName, DnValue::PrintableString("Root 1".try_into().unwrap()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        set_validity(&mut params, SystemTime::now(), lifetime);
        change(&mut params);
        params.self_signed(key).unwrap().pem()
    }

    fn p256() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    #[test]
    fn an_operators_root_is_taken_over_and_vouched_for() {
        let (now, cluster, key) = (SystemTime::now(), ClusterId::from_random(1), p256());
        let text = format!("Certificate:\n  Data: ...\n{}\n", made(|_| {}, &key, YEAR));
        let own = own_root(&text, &key.serialize_pem(), &cluster, now).unwrap();
        assert!(own.cert_pem.starts_with("-----BEGIN"), "{}", own.cert_pem);
        let present = generate_root(&cluster, now).unwrap();
        let crossed = cross_sign(&present, &own, &cluster, now).unwrap();
        // And on from there.
        let third = generate_root(&cluster, now).unwrap();
        cross_sign(&own, &third, &cluster, now).unwrap();
        let both = bundle([present.cert_pem.as_str(), &own.cert_pem]);
        assert_eq!(digests(&both).unwrap(), [digest(&present.cert_pem).unwrap(), digest(&own.cert_pem).unwrap()]);
        assert_eq!(issuer(&crossed, &both).unwrap(), Some(digest(&present.cert_pem).unwrap()));
        assert_eq!(issuer(&third.cert_pem, &both).unwrap(), None);
        let signature = crate::ca::sign_blob(&own, b"grant").unwrap();
        verify_blob(&both, b"grant", &signature).unwrap();
        assert!(matches!(verify_blob(&present.cert_pem, b"grant", &signature), Err(CaError::Signature)));
    }

    #[test]
    fn what_is_no_root_is_refused_with_the_reason() {
        let (now, cluster, key, other) = (SystemTime::now(), ClusterId::from_random(1), p256(), p256());
        let good = made(|_| {}, &key, YEAR);
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let between = {
            let issuer = Issuer::from_ca_cert_pem(&good, p256()).unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.signed_by(&key, &issuer).unwrap().pem()
        };
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIA==\n-----END EC PRIVATE KEY-----\n".to_owned();
        for (cert, key, words) in [
            (String::new(), key.serialize_pem(), "is not PEM"),
            (format!("{good}{good}"), key.serialize_pem(), "exactly one certificate"),
            (made(|p| p.is_ca = IsCa::ExplicitNoCa, &key, YEAR), key.serialize_pem(), "may not sign others"),
            (between, key.serialize_pem(), "is not a root"),
            (made(|_| {}, &p384, YEAR), p384.serialize_pem(), "is not a root"),
            (made(|_| {}, &key, Duration::from_secs(3600)), key.serialize_pem(), "expires within 30 days"),
            (good.clone(), sec1, "openssl pkcs8 -topk8"),
            (good.clone(), other.serialize_pem(), "does not belong to the certificate"),
        ] {
            let error = own_root(&cert, &key, &cluster, now).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
