//! The ports that a node needs, tried before anything is written: a daemon would only fail later, in its log.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use super::error::{NodeError, Result};

/// Where workers give images to each other.
const PEER_PORT: u16 = 7946;
/// A packet to oneself that takes longer is lost.
const REACH_LIMIT: Duration = Duration::from_secs(3);

/// Whether a manager can listen here and is found where it says it is.
pub(super) async fn manager(listen: SocketAddr, advertise: SocketAddr) -> Result<()> {
    let _listener = free(listen)?;
    let problem = match timeout(REACH_LIMIT, TcpStream::connect(advertise)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", REACH_LIMIT.as_secs()),
    };
    Err(NodeError::Refused(format!(
        "a manager here would listen on {listen}, but nothing reaches it at the address that it would advertise, \
         {advertise} ({problem}): give an address or an interface of this machine with --advertise-addr; \
         `ip address` lists them"
    )))
}

/// Whether a manager can listen here; nobody else can while the listener is kept.
pub(super) fn free(listen: SocketAddr) -> Result<TcpListener> {
    listen_on(listen, "or choose another with --listen-addr")
}

/// Whether this node's worker can listen for other workers.
pub(super) fn peer() -> Result<()> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PEER_PORT));
    listen_on(any, "because nodes pass images to each other on it").map(drop)
}

fn listen_on(listen: SocketAddr, way_out: &str) -> Result<TcpListener> {
    TcpListener::bind(listen).map_err(|error| {
        NodeError::Refused(if error.kind() == io::ErrorKind::AddrInUse {
            format!(
                "port {} is taken on this machine ({listen}): stop what uses it (`ss -ltnp` shows it), {way_out}",
                listen.port()
            )
        } else {
            format!("cannot listen on {listen}: {error}; --listen-addr must be an address of this machine")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manager_must_be_found_where_it_says() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let error = manager(addr, addr).await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {} is taken", addr.port())), "{error}");
        drop(taken);
        manager(addr, addr).await.unwrap();
        // Nobody listens on the other loopback address.
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], addr.port()));
        let error = manager(addr, elsewhere).await.unwrap_err().to_string();
        assert!(error.contains("--advertise-addr") && error.contains(&elsewhere.to_string()), "{error}");
        let error = manager(SocketAddr::from(([192, 0, 2, 1], 0)), addr).await.unwrap_err().to_string();
        assert!(error.contains("--listen-addr must be an address of this machine"), "{error}");
    }
}
