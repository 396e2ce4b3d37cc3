//! TCP connections of IPv6 clients, passed on byte by byte.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Of one port at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 4_096;
/// A task that just died is replaced in the rules while a connection attempt goes on.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Nobody is cut for being idle, but who is gone without a word does not keep a place for ever.
const KEEPALIVE_S: u32 = 120;
/// Pause after a failed accept, so that a lasting error (no descriptors) does not take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Until it is aborted; connections that are there by then go on.
pub(super) async fn serve(listener: TcpListener, to: impl Fn() -> SocketAddr) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((client, _)) => {
                let to = to();
                tokio::spawn(async move {
                    pass_on(client, to).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take an IPv6 client's connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn pass_on(mut client: TcpStream, to: SocketAddr) {
    let ended = match timeout(CONNECT_PATIENCE, TcpStream::connect(to)).await {
        Ok(Ok(mut server)) => {
            let copied = both(&mut client, &mut server).await;
            if copied.is_err() {
                let _ = server.set_zero_linger();
            }
            copied
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    if ended.is_err() {
        // The client is to see what it would have seen without somebody in between: a reset, not an end.
        let _ = client.set_zero_linger();
    }
}

async fn both(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    for stream in [&*client, &*server] {
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_S)?;
    }
    copy_bidirectional(client, server).await.map(drop)
}
