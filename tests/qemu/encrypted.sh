# Encrypted networks on a kernel with WireGuard: what travels between nodes, daemons and nodes that come back, and a node that
# cannot encrypt yet.
fail() { echo "FAILED: $*"; on n1 service ps --no-trunc web user || true; on n1 network trace web.secret || true; exit 1; }
on() { node=$1; shift; orch lab exec --name vm "$node" -- orch "$@"; }
at() { node=$1; shift; orch lab exec --name vm "$node" -- "$@"; }
running() { on n1 service ls --format '{{.Name}} {{.Replicas}}' | grep -qx "$1"; }
says() { text=$1; shift; "$@" 2>&1 | grep -F "$text"; }
key_of() { on n1 node inspect "$1" | sed -n 's/.*"PublicKey": "\(.*\)".*/\1/p'; }
has_key() { [ -n "$(key_of "$1")" ]; }
has_another_key() { has_key "$1" && [ "$(key_of "$1")" != "$2" ]; }

step() { echo "$(cut -d. -f1 /proc/uptime) s: $*"; }
echo "kernel $(uname -r)"
# As on a kernel without it: not loaded, and not to be loaded on demand.
rmmod wireguard
echo /bin/false >/proc/sys/kernel/modprobe
orch lab up --name vm --nodes 2 --managers 1
on n1 image import busybox /files/busybox.tar >/dev/null
on n1 network create -d overlay --opt encrypted secret >/tmp/said 2>&1 && fail "no node can, and a network was made"
grep -q "no node of the cluster can encrypt (n1, n2: the kernel has no WireGuard" /tmp/said || { cat /tmp/said; fail "it is not said why"; }
on n1 network inspect secret >/dev/null 2>&1 && fail "a refused network is there"

step "refused where no node can"
# One node gets it; a daemon finds out when it starts.
modprobe wireguard
orch lab kill --name vm n1 netd
within 60 "n1 tells its key" has_key n1
within 30 "a network" on n1 network create -d overlay --opt encrypted --attachable secret
within 30 "another network" on n1 network create -d overlay open
within 30 "a service" on n1 service create -d --name web --network secret --network open --constraint node.hostname==n2 \
  busybox sh -c 'echo found >/index.html; exec httpd -f -p 80'
within 30 "another service" on n1 service create -d --name user --network secret --network open --constraint node.hostname==n1 \
  busybox sleep 10000
within 60 "it is said why one waits" says "no WireGuard for an encrypted network on 1 node" on n1 service ps --no-trunc web
on n2 image import mine /files/busybox.tar >/dev/null
on n2 run -d --network secret mine sleep 1000 >/tmp/said 2>&1 && fail "a container is on a network that its node cannot encrypt"
grep -q "cannot encrypt" /tmp/said || { cat /tmp/said; fail "it is not said why the container was refused"; }

step "a node that cannot has no tasks"
orch lab kill --name vm n2 netd
within 120 "a task runs" running "user 1/1"
within 120 "the other runs where it can now" running "web 1/1"

user=$(on n1 service ps -q --no-trunc user)
asked() { on n1 exec "$user" timeout 5 wget -q -O - "http://$1/" | grep -x found; }
within 60 "the service answers at its virtual address" asked web.secret
within 30 "the task answers" asked tasks.web.secret
at n1 ip link show orch_wg0 >/dev/null 2>&1 && fail "the device is where others can use it"

step "it answers"
# What arrives at the other node: with a pattern that would stand there in clear text.
watch() {
  at n2 nft -f - <<'NFT'
table inet watch
delete table inet watch
table inet watch {
  counter clear {}
  counter sealed {}
  counter pattern {}
  chain in {
    type filter hook prerouting priority -400
    udp dport 4789 counter name clear
    udp dport 7947 counter name sealed
    meta l4proto udp @th,720,64 0xa5a5a5a5a5a5a5a5 counter name pattern
    meta l4proto udp @th,1200,64 0xa5a5a5a5a5a5a5a5 counter name pattern
  }
}
NFT
}
watch
seen() { at n2 nft list counter inet watch "$1" | sed -n 's/.*packets \([0-9]*\) .*/\1/p'; }
ping_web() { on n1 exec "$user" ping -c 5 -s 300 -p a5 -W 20 "tasks.web.$1" >/tmp/said || { cat /tmp/said; fail "no ping on $1"; }; }
ping_web open
[ "$(seen clear)" -ge 5 ] && [ "$(seen pattern)" -ge 5 ] || fail "an open network cannot be read: clear $(seen clear), pattern $(seen pattern)"
at n2 nft reset counters >/dev/null
ping_web secret
echo "five packets: sealed $(seen sealed), clear $(seen clear), pattern $(seen pattern)"
[ "$(seen sealed)" -ge 5 ] && [ "$(seen clear)" = 0 ] && [ "$(seen pattern)" = 0 ] || fail "an encrypted network can be read"
step "not to be read"
# The largest packet that fits inside fits outside too.
mtu=$(on n1 exec "$user" cat /sys/class/net/eth0/mtu)
echo "MTU $mtu"
[ "$mtu" = 1390 ] || fail "the MTU is $mtu"
on n1 exec "$user" ping -c 2 -s $((mtu - 28)) -W 20 tasks.web.secret >/tmp/said || { cat /tmp/said; fail "large packets are lost"; }

step "large packets fit"
# The daemons are not needed for packets, and find their key again.
first=$(key_of n2)
on n1 exec "$user" ping -c 40 -i 0.5 -W 20 tasks.web.secret >/tmp/pings 2>&1 &
pings=$!
sleep 3
orch lab kill --name vm n1 netd
orch lab kill --name vm n2 netd
wait $pings || true
grep "packets transmitted" /tmp/pings
grep -q ' 0% packet loss' /tmp/pings || fail "packets were lost"
within 60 "names resolve" asked web.secret
[ "$(key_of n2)" = "$first" ] || fail "a restarted daemon made another key"

step "nothing lost without daemons"
# A node that was started anew has a new key, and others follow.
orch lab kill --name vm n2 all
orch lab start --name vm n2
within 120 "the node tells its new key" has_another_key n2 "$first"
within 120 "the service answers again" asked web.secret
within 30 "the way is told" says "encrypted, to 192.168.100.12" on n1 network trace web.secret
step "a node came back"
# The same where tunnels go by IPv6.
on n2 leave --force >/dev/null
on n1 leave --force >/dev/null
at n1 ip address add fd00:9::1/64 dev eth0 nodad
at n2 ip address add fd00:9::2/64 dev eth0 nodad
on n1 init --advertise-addr 192.168.100.11 --data-path-addr fd00:9::1 >/dev/null
token=$(on n1 join-token -q worker)
on n2 join --token "$token" --data-path-addr fd00:9::2 192.168.100.11:2377 >/dev/null
within 60 "both nodes tell their keys" has_key n2
on n1 image import busybox /files/busybox.tar >/dev/null
on n1 network create -d overlay --opt encrypted secret >/dev/null
on n1 service create -d --name web --network secret --constraint node.hostname==n2 \
  busybox sh -c 'echo found >/index.html; exec httpd -f -p 80' >/dev/null
on n1 service create -d --name user --network secret --constraint node.hostname==n1 busybox sleep 10000 >/dev/null
within 120 "a task runs" running "user 1/1"
within 120 "the other runs" running "web 1/1"
user=$(on n1 service ps -q --no-trunc user)
within 60 "the service answers by IPv6" asked web.secret
within 30 "the way is told" says "encrypted, to fd00:9::2" on n1 network trace web.secret
watch
ping_web secret
echo "five packets by IPv6: sealed $(seen sealed), clear $(seen clear), pattern $(seen pattern)"
[ "$(seen sealed)" -ge 5 ] && [ "$(seen clear)" = 0 ] && [ "$(seen pattern)" = 0 ] || fail "it can be read on its way by IPv6"
mtu=$(on n1 exec "$user" cat /sys/class/net/eth0/mtu)
[ "$mtu" = 1370 ] || fail "by IPv6 the MTU is $mtu"
on n1 exec "$user" ping -c 2 -s $((mtu - 28)) -W 20 tasks.web.secret >/tmp/said || { cat /tmp/said; fail "large packets are lost by IPv6"; }
step "by IPv6"
orch lab down --name vm
echo "encrypted networks work on $(uname -r)"
