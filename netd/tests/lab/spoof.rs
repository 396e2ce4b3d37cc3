//! Tasks and strangers that send in others' names, with packets made by hand.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

use crate::{
    VIP_WEB, dns,
    nodes::{Lab, USER_C, endpoint_of_both, network_of_both},
    sockets::{command, in_ns, way_out_of},
    started, who,
};

const PORT: u16 = 7_000;
/// Network B's number in the lab.
const VNI_B: u32 = 4_096 + b'b' as u32;
/// The daemon looks every 4 s at what others changed and what was counted.
const NOTICED: Duration = Duration::from_secs(20);

/// An IPv4 packet with a datagram, without the checksums that may be left out or are filled in by the kernel.
fn datagram(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_len).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend([from, to].concat());
    let sum = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&(!folded).to_be_bytes());
    for field in [PORT, PORT, udp_len, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// The same in IPv6, where the checksum may not be left out.
fn datagram_v6(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut udp: Vec<u8> = [PORT, PORT, udp_len, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    udp.extend(payload);
    let ends = [from.octets(), to.octets()].concat();
    let summed = [&ends[..], &u32::from(udp_len).to_be_bytes(), &[0, 0, 0, 17], &udp].concat();
    let pair = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
    let mut sum: u32 = summed.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    udp[6..8].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(udp_len.to_be_bytes());
    packet.extend([17, 64]);
    [packet, ends, udp].concat()
}

fn send_raw_v6(ns: &Path, from: Ipv6Addr, to: Ipv6Addr, payload: &'static [u8]) {
    in_ns(ns, move || {
        let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        let target = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
        sendto(fd.as_raw_fd(), &datagram_v6(from, to, payload), &target, MsgFlags::empty()).unwrap();
    });
}

/// Sends it as it is.
fn send_raw(ns: &Path, from: [u8; 4], to: [u8; 4], payload: &'static [u8]) {
    in_ns(ns, move || {
        let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        let target = SockaddrIn::from(SocketAddrV4::new(to.into(), 0));
        sendto(fd.as_raw_fd(), &datagram(from, to, payload), &target, MsgFlags::empty()).unwrap();
    });
}

/// A frame of network B in a tunnel's datagram, for task 4.
fn send_tunnelled(ns: &Path, node: IpAddr, payload: &[u8]) {
    let mac = |last: u8| [0x02, 0x42, 10, 0, 2, last];
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend(&VNI_B.to_be_bytes()[1..]);
    packet.push(0);
    packet.extend([mac(14), mac(99)].concat());
    packet.extend([0x08, 0x00]);
    packet.extend(datagram([10, 0, 2, 99], [10, 0, 2, 14], payload));
    let socket = in_ns(ns, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    socket.send_to(&packet, (node, 4_789)).unwrap();
}

/// A datagram to the loopback address of the node, put on the task's way out as it is.
fn send_to_loopback(ns: &Path, from: [u8; 4], payload: &[u8]) {
    let frame = [&[0xff; 6][..], &[0x02, 0x42, 0, 0, 0, 9, 0x08, 0x00], &datagram(from, [127, 0, 0, 1], payload)];
    let send = "import socket,sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth1', 0)); \
                s.send(bytes.fromhex(sys.argv[1]))";
    let hex: String = frame.concat().iter().map(|byte| format!("{byte:02x}")).collect();
    command(ns, "python3", &["-c", send, &hex]);
}

fn listener(ns: &Path) -> UdpSocket {
    // IPv4 too.
    let socket = in_ns(ns, || UdpSocket::bind(("::", PORT)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn metrics(lab: &Lab, node: u8) -> String {
    let mut stream = UnixStream::connect(lab.socket(node)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: netd\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// Waits until a line of the metrics is `wanted`.
fn told(lab: &Lab, node: u8, name: &str, wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + NOTICED;
    let is_it = |line: &str| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).is_some_and(&wanted);
    while !metrics(lab, node).lines().any(is_it) {
        assert!(Instant::now() < deadline, "{name} is not what was wanted:\n{}", metrics(lab, node));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until it counts something.
fn counted(lab: &Lab, node: u8, name: &str) {
    told(lab, node, name, |count| count != "0");
}

#[test]
fn nobody_sends_in_anothers_name() {
    let mut lab = started();
    let thief = lab.netns(1, 3);
    let on_web = listener(&lab.netns(2, 2));
    let (own, victim, web) = ([10, 0, 1, 13], [10, 0, 1, 11], [10, 0, 1, 12]);

    send_raw(&thief, own, web, b"mine");
    send_raw(&thief, victim, web, b"not mine");
    send_raw(&thief, [10, 0, 1, 200], web, b"nobody's");
    send_raw(&thief, own, web, b"mine again");
    assert_eq!([received(&on_web), received(&on_web)], ["mine", "mine again"]);
    // By the way out: the node itself drops what is not from the address there.
    send_raw(&thief, [172, 18, 9, 9], lab.client_octets(), b"x");
    // What answers clients of published ports has an address of its own.
    command(&lab.netns(1, 1), "ip", &["route", "add", "192.0.2.1/32", "via", "10.0.0.1", "dev", "eth0"]);
    send_raw(&lab.netns(1, 1), [10, 0, 0, 22], [192, 0, 2, 1], b"x");

    // With the victim's address on its own interface, it would answer who asks for the victim.
    command(&thief, "ip", &["address", "add", "10.0.1.11/32", "dev", "eth0"]);
    lab.attach(1, 6, &[(crate::USER_A, "10.0.1.16/24")]);
    let asker = lab.netns(1, 6);
    for _ in 0..5 {
        command(&asker, "ip", &["neighbour", "flush", "dev", "eth0"]);
        assert_eq!(who(&asker, ([10, 0, 1, 11], 80), 1), ["t1"]);
    }
    for network in ["net_a", "ingress", "gateway"] {
        counted(&lab, 1, &format!("orch_spoofed_packets_total{{network=\"{network}\"}}"));
    }
    assert_eq!(who(&lab.netns(1, 1), (VIP_WEB, 80), 4), ["t1", "t2"]);
    counted(&lab, 1, "orch_service_connections_total{service=\"web\",network=\"net_a\"}");
}

#[test]
fn no_task_and_no_stranger_is_taken_for_a_node() {
    let mut lab = started();
    let inside = listener(&lab.netns(2, 4));
    let node = lab.addr(2);
    let (task, stranger) = (lab.netns(1, 3), lab.client());
    // Nothing is wrong with the packets: without the rules they arrive.
    lab.kill(2);
    command(&lab.host(2), "nft", &["flush", "chain", "ip", "orch_host", "guard"]);
    send_tunnelled(&stranger, node, b"unguarded");
    assert_eq!(received(&inside), "unguarded");
    let (neighbour, own) = (lab.netns(2, 4), in_ns(&lab.host(2), || UdpSocket::bind(("127.0.0.1", PORT)).unwrap()));
    own.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let from = way_out_of(&neighbour);
    send_to_loopback(&neighbour, from, b"unguarded");
    assert_eq!(received(&own), "unguarded");
    lab.start(2);
    send_to_loopback(&neighbour, from, b"from a task");
    counted(&lab, 2, "orch_spoofed_packets_total{network=\"gateway\"}");
    own.set_nonblocking(true).unwrap();
    assert!(own.recv(&mut [0; 64]).is_err(), "a task reached what the node keeps to itself");
    send_tunnelled(&stranger, node, b"from a stranger");
    send_tunnelled(&task, node, b"from a task");
    // The kernel takes a tunnel's packets at every address of the node.
    send_tunnelled(&task, IpAddr::from([172, 18, 0, 1]), b"from a task, to its own node");
    counted(&lab, 2, "orch_tunnel_packets_refused_total{port=\"4789\"}");
    counted(&lab, 1, "orch_spoofed_packets_total{network=\"gateway\"}");
    // A node's own are heard.
    lab.attach(1, 7, &[(crate::USER_B, "10.0.2.17/24")]);
    let mut items = crate::items(&[1, 2]);
    items.push(crate::endpoint(crate::USER_B, 7, 4, 1, [10, 0, 2, 17], true));
    lab.set_all(&items);
    send_raw(&lab.netns(1, 7), [10, 0, 2, 17], [10, 0, 2, 14], b"from a node");
    assert_eq!(received(&inside), "from a node");
}

#[test]
fn nobody_sends_in_anothers_name_by_ipv6() {
    let mut lab = started();
    let v6 = |last: u16| Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, last);
    for (ns, addr) in [(lab.host(1), "fd99::1/64"), (lab.client(), "fd99::99/64")] {
        command(&ns, "ip", &["address", "add", addr, "dev", "u0", "nodad"]);
    }
    let mut items = crate::items(&[1, 2]);
    items.push(network_of_both(crate::network(USER_C, "net_c", "10.0.3.0/24", false), "fd00:3::/64"));
    for (task, node) in [(8, 1), (9, 2), (10, 1), (11, 1)] {
        let plain = crate::endpoint(USER_C, task, 4, node, [10, 0, 3, u8::try_from(task).unwrap()], true);
        items.push(endpoint_of_both(plain, &v6(u16::try_from(task).unwrap()).to_string()));
    }
    lab.set_all(&items);
    for (task, node) in [(8, 1), (9, 2), (10, 1), (11, 1)] {
        lab.attach(node, task, &[(USER_C, &format!("10.0.3.{task}/24 fd00:3::{task:x}/64"))]);
    }
    let (victim, thief, asker) = (listener(&lab.netns(1, 8)), lab.netns(1, 10), lab.netns(1, 11));
    let elsewhere = listener(&lab.netns(2, 9));
    for target in [(v6(9), &elsewhere), (v6(8), &victim)] {
        send_raw_v6(&thief, v6(10), target.0, b"mine");
        send_raw_v6(&thief, v6(11), target.0, b"not mine");
        send_raw_v6(&thief, v6(200), target.0, b"nobody's");
        send_raw_v6(&thief, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), target.0, b"nobody's on this link");
        send_raw_v6(&thief, v6(10), target.0, b"mine again");
        assert_eq!([received(target.1), received(target.1)], ["mine", "mine again"]);
    }
    counted(&lab, 1, "orch_spoofed_packets_total{network=\"net_c\"}");

    // By the way out: only what is from the address there.
    let (outside, target) = (listener(&lab.client()), "fd99::99".parse().unwrap());
    let text = command(&thief, "ip", &["-6", "-o", "address", "show", "dev", "eth1", "scope", "global"]);
    let own = text.split_whitespace().find_map(|word| word.strip_suffix("/128")).unwrap();
    let own: Ipv6Addr = own.parse().unwrap();
    send_raw_v6(&thief, own, target, b"mine");
    send_raw_v6(&thief, v6(10), target, b"of the other link");
    send_raw_v6(&thief, Ipv6Addr::from_bits(own.to_bits() + 1), target, b"the neighbour's");
    send_raw_v6(&thief, own, target, b"mine again");
    assert_eq!([received(&outside), received(&outside)], ["mine", "mine again"]);
    counted(&lab, 1, "orch_spoofed_packets_total{network=\"gateway\"}");

    // With the victim's address on its own interface, it would answer who asks for the victim.
    command(&thief, "ip", &["address", "add", &format!("{}/128", v6(8)), "dev", "eth0", "nodad"]);
    let imposter = listener(&thief);
    imposter.set_nonblocking(true).unwrap();
    for _ in 0..5 {
        command(&asker, "ip", &["-6", "neighbour", "flush", "dev", "eth0"]);
        let socket = in_ns(&asker, || UdpSocket::bind(("::", 0)).unwrap());
        socket.send_to(b"for the victim", (v6(8), PORT)).unwrap();
        assert_eq!(received(&victim), "for the victim");
    }
    assert!(imposter.recv(&mut [0; 64]).is_err(), "the thief was sent something");
}

#[test]
fn questions_and_connections_are_counted() {
    let lab = started();
    let asker = lab.netns(1, 3);
    for name in ["web", "tasks.web", "nobody"] {
        let _ = dns::ask(&asker, name);
    }
    let client = lab.client();
    for _ in 0..5 {
        who(&client, (lab.addr(3), 8080), 1);
    }
    told(&lab, 1, "orch_service_dns_queries_total{service=\"asker\"}", |count| count == "3");
    told(&lab, 1, "orch_dns_queries_total", |count| count == "3");
    // At the node that was asked, whoever answered.
    told(&lab, 3, "orch_published_connections_total{service=\"\",protocol=\"tcp\",port=\"8080\"}", |count| {
        count == "5"
    });
    for node in [1, 2] {
        assert!(!metrics(&lab, node).contains("orch_published_connections_total{"), "node {node} was not asked");
    }
}

/// The daemon's socket is a file of the node, for root alone: no name leads to it from another network namespace.
#[test]
fn the_daemons_socket_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = started();
    let socket = lab.socket(1);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let names = command(&lab.host(1), "cat", &["/proc/net/unix"]);
    let abstract_names: Vec<_> = names.lines().filter(|line| line.contains(" @")).collect();
    assert_eq!(abstract_names, Vec::<&str>::new());
    let as_nobody = command(
        &lab.host(1),
        "setpriv",
        &[
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            &format!("curl -s --max-time 5 --unix-socket {} http://netd/metrics || echo refused", socket.display()),
        ],
    );
    assert_eq!(as_nobody, "refused\n");
}
