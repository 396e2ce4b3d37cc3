//! The peer: three members of Debian's `etcd-server` on loopback, TLS between members and to clients.
//!
//! The messages are the part of etcd's public API that a write needs, by its field numbers.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::uri::PathAndQuery;
use orch_model::{ClusterId, NodeId, node::NodeRole};
use orch_proto::{ca, tls::Identity, transport};
use tokio::time::sleep;
use tonic::{client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{managers, process::Process};

const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    cluster_id: u64,
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
    #[prost(uint64, tag = "4")]
    raft_term: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// Three members.
pub(crate) struct Etcd {
    identity: Identity,
    addrs: Vec<String>,
    /// Killed when dropped.
    _members: Vec<Process>,
}

impl Etcd {
    pub(crate) async fn start(binary: &Path, dir: &Path) -> anyhow::Result<Self> {
        let cluster = ClusterId::from_random(rand::random());
        let root = ca::generate_root(&cluster, std::time::SystemTime::now())?;
        let identity = managers::identity(&root, &cluster, NodeId::from_random(rand::random()).as_str())?;
        let tls = dir.join("tls");
        identity.save(&tls)?;
        peer_certificate(dir)?;
        let port = || anyhow::Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
        let ports: Vec<(String, String)> = (0..3).map(|_| Ok((port()?, port()?))).collect::<anyhow::Result<_>>()?;
        let all: Vec<_> = ports.iter().enumerate().map(|(i, (_, peer))| format!("e{i}=https://{peer}")).collect();
        let mut members = Vec::new();
        for (number, (client, peer)) in ports.iter().enumerate() {
            let mut command = Command::new(binary);
            let (client, peer) = (format!("https://{client}"), format!("https://{peer}"));
            command.args(["--name", &format!("e{number}"), "--initial-cluster-state", "new"]);
            command.args(["--initial-cluster", &all.join(","), "--initial-cluster-token", "bench"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            // Room for all runs; the rest is as it comes.
            command.args(["--quota-backend-bytes", "8000000000", "--logger", "zap", "--client-cert-auth"]);
            command.arg("--data-dir").arg(dir.join(format!("e{number}")));
            command.arg("--cert-file").arg(tls.join("node.crt")).arg("--key-file").arg(tls.join("node.key"));
            command.arg("--trusted-ca-file").arg(tls.join("root.crt")).arg("--peer-client-cert-auth");
            command.arg("--peer-cert-file").arg(dir.join("peer.crt")).arg("--peer-key-file").arg(dir.join("peer.key"));
            command.arg("--peer-trusted-ca-file").arg(dir.join("peer.crt"));
            members.push(Process::start(&mut command, &dir.join("log"))?);
        }
        let addrs = ports.into_iter().map(|(client, _)| client).collect();
        Ok(Self { identity, addrs, _members: members })
    }

    /// The member that leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let start = Instant::now();
        loop {
            for number in 0..self.addrs.len() {
                if self.leads(number).await.unwrap_or(false) {
                    return Ok(number);
                }
            }
            anyhow::ensure!(start.elapsed() < START_LIMIT, "no member of etcd leads");
            sleep(POLL).await;
        }
    }

    async fn leads(&self, number: usize) -> anyhow::Result<bool> {
        let mut client = Grpc::new(self.connect(number).await?);
        client.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
        let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
        let status = client.unary(tonic::Request::new(StatusRequest {}), path, codec).await?.into_inner();
        Ok(status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader))
    }

    pub(crate) async fn connect(&self, number: usize) -> anyhow::Result<Channel> {
        Ok(transport::tls_channel(&self.addrs[number], &self.identity, NodeRole::Manager).await?)
    }
}

/// Stores one value.
pub(crate) async fn put(channel: Channel, key: String, value: Bytes) -> anyhow::Result<()> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    client.unary(tonic::Request::new(PutRequest { key: key.into(), value }), path, codec).await?;
    Ok(())
}

/// Members check each other's address; one certificate is all of theirs and its own authority.
fn peer_certificate(dir: &Path) -> anyhow::Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).context("cannot sign etcd's peer certificate")?;
    fs::write(dir.join("peer.crt"), certificate.pem())?;
    fs::write(dir.join("peer.key"), key.serialize_pem())?;
    Ok(())
}
