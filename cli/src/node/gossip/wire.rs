//! Between what the prober says and what travels. What makes no sense is `None`: the packet is dropped.

use orch_model::NodeId;
use orch_proto::wire::{self, gossip_packet::What};

use super::prober::{Circle, Message, Peer, Verdict, View};

/// Verdicts taken from one packet.
const MAX_VERDICTS: usize = 64;

pub(super) fn packet(from: &NodeId, to: &NodeId, sequence: u64, message: Message) -> wire::GossipPacket {
    let what = match message {
        Message::Probe(number) => What::Probe(number),
        Message::Ack(number) => What::Ack(number),
        Message::Relay(number, target) => {
            let target = wire::GossipPeer { node_id: target.id.to_string(), addr: target.addr.to_string() };
            What::Relay(wire::GossipRelay { number, target: Some(target) })
        }
        Message::News(verdicts) => What::News(wire::GossipNews { verdicts: verdicts.iter().map(to_verdict).collect() }),
    };
    wire::GossipPacket { from: from.to_string(), to: to.to_string(), sequence, what: Some(what) }
}

pub(super) fn message(what: What) -> Option<Message> {
    Some(match what {
        What::Probe(number) => Message::Probe(number),
        What::Ack(number) => Message::Ack(number),
        What::Relay(relay) => Message::Relay(relay.number, peer(relay.target?)?),
        What::News(news) => {
            Message::News(news.verdicts.into_iter().take(MAX_VERDICTS).map(verdict).collect::<Option<_>>()?)
        }
    })
}

/// Peers that cannot be read are left out: a manager that knows more than this node names them.
pub(super) fn circle(config: &wire::GossipConfig) -> Circle {
    let peers = config.peers.iter().cloned().filter_map(peer).collect();
    Circle { peers, watchers: usize::try_from(config.watchers).unwrap_or(usize::MAX) }
}

pub(super) fn view(view: &View) -> wire::GossipView {
    wire::GossipView { unreachable: view.unreachable.iter().map(ToString::to_string).collect(), deaf: view.deaf }
}

fn peer(peer: wire::GossipPeer) -> Option<Peer> {
    Some(Peer { id: peer.node_id.parse().ok()?, addr: peer.addr.parse().ok()? })
}

fn to_verdict(verdict: &Verdict) -> wire::GossipVerdict {
    wire::GossipVerdict {
        observer: verdict.observer.to_string(),
        target: verdict.target.to_string(),
        sequence: verdict.sequence,
        unreachable: verdict.unreachable,
    }
}

fn verdict(verdict: wire::GossipVerdict) -> Option<Verdict> {
    let (observer, target) = (verdict.observer.parse().ok()?, verdict.target.parse().ok()?);
    Some(Verdict { observer, target, sequence: verdict.sequence, unreachable: verdict.unreachable })
}
