//! Between the leader and this node's gossip, which the supervisor runs: passes on whom to watch, and takes back what the
//! node sees of its peers.
//!
//! Without the supervisor (restarted, paused) nothing is claimed about anybody.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use orch_proto::{
    transport::unix_channel,
    wire::{GossipConfig, GossipView, node_control_client::NodeControlClient},
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::WatchStream};

/// The supervisor says what it sees every second.
const SILENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Gossip {
    config: watch::Sender<GossipConfig>,
    view: watch::Sender<GossipView>,
    ping: Notify,
}

impl Gossip {
    /// What the leader says.
    pub(super) fn set_config(&self, now: GossipConfig) {
        self.config.send_replace(now);
    }

    /// What the node sees, to follow.
    pub(super) fn view(&self) -> watch::Receiver<GossipView> {
        self.view.subscribe()
    }

    /// What the supervisor says.
    pub(super) fn see(&self, now: GossipView) {
        self.view.send_if_modified(|known| {
            let is_new = *known != now;
            *known = now;
            is_new
        });
    }

    /// The leader wants a sign of life now.
    pub(super) fn ask_for_ping(&self) {
        self.ping.notify_one();
    }

    /// Completes when the leader wants one.
    pub(super) async fn asked_for_ping(&self) {
        self.ping.notified().await;
    }

    /// Whether the node that has `addr` (`host:port`) is out of sight.
    pub(super) fn is_out_of_sight(&self, addr: &str) -> bool {
        let Some(ip) = addr.rsplit_once(':').and_then(|(host, _)| host.trim_matches(['[', ']']).parse().ok()) else {
            return false;
        };
        self.out_of_sight().contains(&ip)
    }

    /// Completes when the node that has `addr` is out of sight.
    pub(super) async fn goes_out_of_sight(&self, addr: &str) {
        let mut view = self.view.subscribe();
        while !self.is_out_of_sight(addr) {
            // The sender is here.
            let _ = view.changed().await;
        }
    }

    fn out_of_sight(&self) -> BTreeSet<IpAddr> {
        let (config, view) = (self.config.borrow(), self.view.borrow());
        let lost = config.peers.iter().filter(|peer| view.unreachable.contains(&peer.node_id));
        lost.filter_map(|peer| peer.addr.parse().ok()).collect()
    }

    /// Keeps in touch with the supervisor; ends with the process.
    pub(crate) async fn keep(&self, socket: PathBuf) {
        loop {
            if let Err(error) = self.exchange(&socket).await {
                tracing::debug!(error, "no word of the supervisor's gossip");
            }
            self.view.send_if_modified(|view| std::mem::take(view) != GossipView::default());
            sleep(RETRY).await;
        }
    }

    async fn exchange(&self, socket: &Path) -> Result<(), String> {
        let channel = unix_channel(socket).await.map_err(|e| e.to_string())?;
        // Until the leader has said something, what an earlier worker passed on stays.
        let configs = WatchStream::new(self.config.subscribe()).filter(|config| !config.keys.is_empty());
        let opened = timeout(SILENCE, NodeControlClient::new(channel).gossip(configs)).await;
        let mut views = opened.map_err(|e| e.to_string())?.map_err(|e| e.message().to_owned())?.into_inner();
        loop {
            let view = timeout(SILENCE, views.message()).await.map_err(|e| e.to_string())?;
            let Some(now) = view.map_err(|e| e.message().to_owned())? else { return Ok(()) };
            self.see(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use orch_proto::wire::GossipPeer;

    use super::*;

    #[test]
    fn a_managers_node_is_out_of_sight_by_its_address() {
        let gossip = Gossip::default();
        let peer = |id: &str, addr: &str| GossipPeer { node_id: id.into(), addr: addr.into() };
        let peers = vec![peer("a", "192.0.2.1"), peer("b", "2001:db8::1"), peer("c", "192.0.2.3")];
        gossip.set_config(GossipConfig { peers, ..GossipConfig::default() });
        gossip.view.send_replace(GossipView { unreachable: vec!["a".into(), "b".into()], deaf: false });
        assert!(gossip.is_out_of_sight("192.0.2.1:2377") && gossip.is_out_of_sight("[2001:db8::1]:2377"));
        assert!(!gossip.is_out_of_sight("192.0.2.3:2377") && !gossip.is_out_of_sight("nonsense"));
    }
}
