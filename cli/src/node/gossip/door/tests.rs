//! Packets as an enemy, a broken network or another cluster would send them.

use orch_proto::{gossip::KEY_BYTES, wire::gossip_packet::What};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use super::*;

fn id(n: u128) -> NodeId {
    NodeId::from_random(n)
}

fn keyring(byte: u8) -> Keyring {
    Keyring::new("c", &[wire::GossipKey { id: 1, key: vec![byte; KEY_BYTES].into() }])
}

fn packet(from: u128, to: u128, sequence: u64) -> wire::GossipPacket {
    convert::packet(&id(from), &id(to), sequence, Message::Probe(9))
}

#[test]
fn each_packet_is_taken_once_and_only_where_it_belongs() {
    let mut door = Door::new(id(1), keyring(1));
    let mut sent = |packet: &wire::GossipPacket, key| {
        let bytes = keyring(key).seal(packet, [7; 24]).unwrap();
        let before = door.counts;
        let taken = door.admit(&bytes).is_some();
        let (now, was) = (door.counts, before);
        (taken, now.foreign - was.foreign, now.astray - was.astray, now.replayed - was.replayed)
    };
    let taken = (true, 0, 0, 0);
    let replayed = (false, 0, 0, 1);
    assert_eq!(sent(&packet(2, 1, 100), 1), taken);
    assert_eq!(sent(&packet(2, 1, 100), 1), replayed);
    assert_eq!(sent(&packet(2, 1, 99), 1), taken, "overtaken on its way");
    assert_eq!(sent(&packet(2, 1, 99), 1), replayed);
    assert_eq!(sent(&packet(2, 1, 164), 1), taken);
    assert_eq!(sent(&packet(2, 1, 100), 1), replayed, "still remembered at the window's end");
    assert_eq!(sent(&packet(2, 1, 99), 1), replayed, "too old to tell");
    assert_eq!(sent(&packet(2, 1, 101), 1), taken);
    assert_eq!(sent(&packet(2, 1, u64::MAX), 1), taken);
    assert_eq!(sent(&packet(2, 1, 165), 1), replayed);
    assert_eq!(sent(&packet(3, 1, 100), 1), taken, "another sender counts by itself");
    assert_eq!(sent(&packet(2, 4, 1), 1), (false, 0, 1, 0), "for another node");
    assert_eq!(sent(&packet(1, 1, 1), 1), (false, 0, 1, 0), "its own, reflected");
    assert_eq!(sent(&packet(2, 1, 1), 2), (false, 1, 0, 0), "another key");
    let nobody = wire::GossipPacket { from: "no id".into(), ..packet(2, 1, 500) };
    assert_eq!(sent(&nobody, 1), (false, 1, 0, 0));
    assert_eq!(sent(&wire::GossipPacket { what: None, ..packet(2, 1, 500) }, 1), (false, 1, 0, 0));
    let relay = Some(What::Relay(wire::GossipRelay { number: 1, target: None }));
    assert_eq!(sent(&wire::GossipPacket { what: relay, ..packet(2, 1, 500) }, 1), (false, 1, 0, 0));
}

/// Random bytes, and packets with some bytes changed, cut off or added: dropped, counted, and nothing panics; neither does
/// what such bytes say once they are under a good seal.
#[test]
fn no_bytes_get_in_or_do_harm() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut door = Door::new(id(1), keyring(1));
    let good = keyring(1).seal(&packet(2, 1, 100), [7; 24]).unwrap();
    for round in 1..=50_000 {
        let mut bytes = good.clone();
        match random.random_range(0..3) {
            0 => {
                bytes = vec![0; random.random_range(0..1500)];
                random.fill_bytes(&mut bytes);
            }
            1 => {
                let place = random.random_range(0..bytes.len());
                bytes[place] ^= random.random_range(1..=255);
            }
            _ => {
                bytes.truncate(random.random_range(0..good.len()));
                bytes.extend((0..random.random_range(0..64)).map(|_| random.random::<u8>()));
            }
        }
        assert!(door.admit(&bytes).is_none());
        assert_eq!(door.counts.dropped(), round);
        let mut text = vec![0; random.random_range(0..200)];
        random.fill_bytes(&mut text);
        if let Ok(packet) = <wire::GossipPacket as prost::Message>::decode(&text[..])
            && let Some(what) = packet.what
        {
            let _ = convert::message(what);
        }
    }
}
