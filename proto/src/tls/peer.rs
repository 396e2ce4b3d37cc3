//! Who is at the other end of a connection, and whether it may make this call.

use std::{net::SocketAddr, time::SystemTime};

use orch_model::{ClusterId, NodeId, node::NodeRole};
use rustls::pki_types::CertificateDer;
use tonic::{Request, Status, transport::server::TcpConnectInfo};
use x509_parser::x509::X509Name;

use super::{TlsError, role_of_unit, role_unit};

/// What a verified certificate says of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub node_id: NodeId,
    pub cluster_id: ClusterId,
    pub role: NodeRole,
    /// When the certificate was made, by the clock of the manager that signed it.
    pub issued_at: SystemTime,
}

impl PeerIdentity {
    /// Reads a certificate's subject: CN node id, O cluster id, OU role. The certificate must have been verified.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let not_a_node = |reason: String| TlsError::NotANode { reason };
        let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|error| not_a_node(error.to_string()))?;
        let subject = cert.subject();
        let text = |value: Option<&str>, field: &str| {
            value.map(str::to_owned).ok_or_else(|| not_a_node(format!("its subject has no {field}")))
        };
        let node = text(only(subject, X509Name::iter_common_name), "common name (node id)")?;
        let cluster = text(only(subject, X509Name::iter_organization), "organisation (cluster id)")?;
        let unit = text(only(subject, X509Name::iter_organizational_unit), "organisational unit (role)")?;
        Ok(Self {
            node_id: node.parse().map_err(|error| not_a_node(format!("{error}")))?,
            cluster_id: cluster.parse().map_err(|error| not_a_node(format!("{error}")))?,
            role: role_of_unit(&unit).ok_or_else(|| not_a_node(format!("{unit:?} is no role")))?,
            issued_at: crate::ca::issued_at(cert.raw_serial()),
        })
    }
}

/// What a TLS connection tells every request that arrives on it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    pub remote_addr: SocketAddr,
    /// Absent when the caller showed no certificate.
    pub peer: Option<PeerIdentity>,
}

/// The node that sent this request; `None` when it showed no certificate or came through a local socket.
pub fn peer_identity<T>(request: &Request<T>) -> Option<&PeerIdentity> {
    let extensions = request.extensions();
    extensions.get::<PeerIdentity>().or_else(|| extensions.get::<ConnectionInfo>()?.peer.as_ref())
}

/// The address that this request came from; `None` through a local socket.
pub fn remote_addr<T>(request: &Request<T>) -> Option<SocketAddr> {
    let extensions = request.extensions();
    let tls = extensions.get::<ConnectionInfo>().map(|info| info.remote_addr);
    tls.or_else(|| extensions.get::<TcpConnectInfo>()?.remote_addr)
}

/// The node that sent this request, when it has one of `roles`.
#[allow(clippy::result_large_err)] // tonic's Status is what every handler returns.
pub fn require_role<T>(request: &Request<T>, roles: &[NodeRole]) -> Result<PeerIdentity, Status> {
    let Some(peer) = peer_identity(request) else {
        return Err(Status::unauthenticated("this call needs the certificate of a node of this cluster"));
    };
    if roles.contains(&peer.role) {
        return Ok(peer.clone());
    }
    let wanted: Vec<_> = roles.iter().map(|role| role_unit(*role)).collect();
    Err(Status::permission_denied(format!(
        "this call needs a certificate of role {}, and node {} showed one of role {}",
        wanted.join(" or "),
        peer.node_id,
        role_unit(peer.role),
    )))
}

/// The attribute's value when there is exactly one: two would leave open which of them counts.
fn only<'a, I, A>(name: &'a X509Name<'a>, values: impl FnOnce(&'a X509Name<'a>) -> I) -> Option<&'a str>
where
    I: Iterator<Item = &'a A>,
    A: 'a + AttributeText,
{
    let mut values = values(name);
    let first = values.next()?.text();
    if values.next().is_some() { None } else { first }
}

trait AttributeText {
    fn text(&self) -> Option<&str>;
}

impl AttributeText for x509_parser::x509::AttributeTypeAndValue<'_> {
    fn text(&self) -> Option<&str> {
        self.as_str().ok()
    }
}
