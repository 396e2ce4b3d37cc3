//! A node's identity for one role: certificate, key and the cluster's root, on disk and in memory.

use std::{
    fmt, fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use orch_model::{ClusterId, NodeId, node::NodeRole};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::watch;

use super::{PeerIdentity, TlsError};
use crate::ca::BACKDATE;

const ROOT_FILE: &str = "root.crt";
const CERT_FILE: &str = "node.crt";
const KEY_FILE: &str = "node.key";
/// A renewed key waits here until its certificate is in place, so that a crash in between loses neither.
const NEXT_KEY_FILE: &str = "node.key.next";
/// How often [`SharedIdentity::follow`] looks for a renewed certificate.
pub const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Who this node is in one role.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: ClusterId,
    pub node_id: NodeId,
    pub role: NodeRole,
    pub root_pem: String,
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl Identity {
    /// An identity from PEM texts; the ids and the role are read from the certificate.
    pub fn from_pem(root_pem: String, cert_pem: String, key_pem: String) -> Result<Self, TlsError> {
        let PeerIdentity { node_id, cluster_id, role, .. } = PeerIdentity::from_certificate(&leaf(&cert_pem)?)?;
        Ok(Self { cluster_id, node_id, role, root_pem, cert_pem, key_pem })
    }

    /// Reads what [`Identity::save`] wrote into `dir`, also when that was interrupted.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        Self::load_sealed(dir, &Ok)
    }

    /// As [`Identity::load`], with keys that pass through `open` on their way from the disk.
    pub fn load_sealed(dir: &Path, open: &impl Fn(String) -> Result<String, TlsError>) -> Result<Self, TlsError> {
        let (root_pem, cert_pem) = (read(&dir.join(ROOT_FILE))?, read(&dir.join(CERT_FILE))?);
        let read = |path: &Path| read(path).and_then(open);
        let key_pem = read(&dir.join(KEY_FILE));
        let key_pem = match key_pem {
            Ok(key) if key_matches(&key, &cert_pem)? => key,
            Ok(_) | Err(_) => match read(&dir.join(NEXT_KEY_FILE)) {
                Ok(next) if key_matches(&next, &cert_pem)? => next,
                Ok(_) | Err(_) => {
                    key_pem?;
                    return Err(TlsError::KeyMismatch { dir: dir.to_owned() });
                }
            },
        };
        Self::from_pem(root_pem, cert_pem, key_pem)
    }

    /// Writes the identity into `dir` so that a crash at any moment leaves either the old one or the new one.
    pub fn save(&self, dir: &Path) -> Result<(), TlsError> {
        fs::create_dir_all(dir).map_err(|source| TlsError::Write { path: dir.to_owned(), source })?;
        let _lock = lock(dir)?;
        write(&dir.join(ROOT_FILE), &self.root_pem, 0o644)?;
        write(&dir.join(NEXT_KEY_FILE), &self.key_pem, 0o600)?;
        write(&dir.join(CERT_FILE), &self.cert_pem, 0o644)?;
        let key = dir.join(KEY_FILE);
        fs::rename(dir.join(NEXT_KEY_FILE), &key)
            .and_then(|()| sync_dir(dir))
            .map_err(|source| TlsError::Write { path: key, source })
    }

    /// Replaces the key on the disk by another form of it, such as a sealed one; `rewrite` gets the key as it is there and
    /// returns what to write, if anything. No renewal comes in between.
    pub fn rewrite_key(
        dir: &Path,
        open: &impl Fn(String) -> Result<String, TlsError>,
        rewrite: impl FnOnce(&str, &Self) -> Option<String>,
    ) -> Result<(), TlsError> {
        let _lock = lock(dir)?;
        let identity = Self::load_sealed(dir, open)?;
        let path = dir.join(KEY_FILE);
        let Some(text) = rewrite(&read(&path)?, &identity) else { return Ok(()) };
        write(&path, &text, 0o600)?;
        // What an interrupted renewal left there is what was just written.
        let next = dir.join(NEXT_KEY_FILE);
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TlsError::Write { path: next, source: error }),
            _ => Ok(()),
        }
    }

    /// Writes only the roots to trust.
    pub fn save_roots(dir: &Path, roots_pem: &str) -> Result<(), TlsError> {
        let _lock = lock(dir)?;
        certificates(roots_pem, "the root certificate")?;
        write(&dir.join(ROOT_FILE), roots_pem, 0o644)
    }

    /// The certificate (with its chain) and the roots that are saved in `dir`, whatever became of the key.
    pub fn saved_certificate(dir: &Path) -> Result<(String, String), TlsError> {
        Ok((read(&dir.join(CERT_FILE))?, read(&dir.join(ROOT_FILE))?))
    }

    /// When the certificate was made, by the clock of the manager that signed it.
    #[must_use]
    pub fn issued_at(&self) -> SystemTime {
        let peer = leaf(&self.cert_pem).and_then(|leaf| PeerIdentity::from_certificate(&leaf));
        // The cluster's time, which the serial number has, may be ahead of the clock. Validity is in whole seconds.
        let by_clock = self.not_before() + BACKDATE + Duration::from_secs(1);
        peer.map_or(SystemTime::UNIX_EPOCH, |peer| peer.issued_at.min(by_clock))
    }

    /// When the certificate stops being valid; 1970 when it cannot be read.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.validity().map_or(SystemTime::UNIX_EPOCH, |(_, not_after)| not_after)
    }

    /// When the certificate starts being valid; 1970 when it cannot be read.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.validity().map_or(SystemTime::UNIX_EPOCH, |(not_before, _)| not_before)
    }

    fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        validity(&leaf(&self.cert_pem).ok()?)
    }
}

/// When a certificate stops being valid; 1970 when it cannot be read.
pub(crate) fn not_after(der: &CertificateDer<'_>) -> SystemTime {
    validity(der).map_or(SystemTime::UNIX_EPOCH, |(_, not_after)| not_after)
}

fn validity(der: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = cert.validity();
    Some((unix_time(validity.not_before.timestamp()), unix_time(validity.not_after.timestamp())))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("cluster_id", &self.cluster_id)
            .field("node_id", &self.node_id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// An identity that everyone who holds a clone sees renewed.
#[derive(Clone, Debug)]
pub struct SharedIdentity(Arc<watch::Sender<Arc<Identity>>>);

impl SharedIdentity {
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(identity))))
    }

    /// The identity saved in `dir`, replaced whenever the supervisor renews it there. Must be called inside a tokio
    /// runtime; the watching ends when the last clone is dropped.
    pub fn follow(dir: &Path) -> Result<Self, TlsError> {
        Self::follow_sealed(dir, Ok)
    }

    /// As [`SharedIdentity::follow`], with keys that pass through `open` on their way from the disk.
    pub fn follow_sealed(
        dir: &Path,
        open: impl Fn(String) -> Result<String, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let shared = Self::new(Identity::load_sealed(dir, &open)?);
        tokio::spawn(follow(Arc::downgrade(&shared.0), dir.to_owned(), open));
        Ok(shared)
    }

    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        self.0.borrow().clone()
    }

    /// Tells of each renewal from now on.
    #[must_use]
    pub fn renewals(&self) -> watch::Receiver<Arc<Identity>> {
        self.0.subscribe()
    }

    pub fn replace(&self, identity: Identity) {
        self.0.send_replace(Arc::new(identity));
    }
}

async fn follow(
    shared: std::sync::Weak<watch::Sender<Arc<Identity>>>,
    dir: PathBuf,
    open: impl Fn(String) -> Result<String, TlsError> + Send + Sync,
) {
    loop {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let known = shared.borrow().clone();
        // A key comes with its certificate, and opening it costs more than looking.
        if let Ok((cert, roots)) = Identity::saved_certificate(&dir)
            && (&cert, &roots) == (&known.cert_pem, &known.root_pem)
        {
            continue;
        }
        match Identity::load_sealed(&dir, &open) {
            Ok(identity) if identity != *known => {
                tracing::info!(role = ?identity.role, "certificate renewed");
                shared.send_replace(Arc::new(identity));
            }
            Ok(_) => {}
            // The one in memory goes on; a node that has left has no files any more.
            Err(error) => tracing::debug!(%error, "no certificate to follow"),
        }
    }
}

/// Held while files of an identity are replaced; released when dropped.
fn lock(dir: &Path) -> Result<fs::File, TlsError> {
    let locked = fs::File::open(dir).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|source| TlsError::Write { path: dir.to_owned(), source })
}

/// Every certificate of a PEM text; there is at least one.
pub(super) fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| TlsError::Pem { what, reason: error.to_string() })?;
    if all.is_empty() { Err(TlsError::Pem { what, reason: "there is no certificate".to_owned() }) } else { Ok(all) }
}

/// The first certificate of a PEM text.
pub(super) fn leaf(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    certificate(pem, "the node's certificate")
}

pub(super) fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::Pem { what, reason: error.to_string() })
}

fn key_matches(key_pem: &str, cert_pem: &str) -> Result<bool, TlsError> {
    let key = rcgen::KeyPair::from_pem(key_pem)
        .map_err(|error| TlsError::Pem { what: "the node's private key", reason: error.to_string() })?;
    let der = leaf(cert_pem)?;
    let (_, cert) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| TlsError::NotANode { reason: error.to_string() })?;
    Ok(cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

fn unix_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let attempt = || -> io::Result<()> {
        let tmp = path.with_extension("tmp");
        match fs::remove_file(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        sync_dir(path.parent().unwrap_or(path))
    };
    attempt().map_err(|source| TlsError::Write { path: path.to_owned(), source })
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
