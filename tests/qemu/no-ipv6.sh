# A node on a kernel without IPv6 (ipv6.disable=1): all that is IPv4 works, what needs IPv6 says so, and no log repeats itself.
fail() { echo "FAILED: $*"; orch service ps --no-trunc web || true; tail -n 20 /var/lib/orch/node/log/netd.log; exit 1; }
running() { orch service ls --format '{{.Name}} {{.Replicas}}' | grep -qx "$1"; }

echo "kernel $(uname -r)"
[ ! -e /proc/sys/net/ipv6 ] && [ ! -e /proc/net/if_inet6 ] || fail "this kernel has IPv6"
ip link add outside type dummy && ip addr add 10.9.0.1/24 dev outside && ip link set outside up
orch init --advertise-addr 10.9.0.1 >/dev/null
orch image import busybox /files/busybox.tar
orch network create -d overlay inner >/dev/null
orch network create -d overlay --ipv6 --subnet fd00:7::/64 both >/dev/null
orch service create -d --name web --replicas 2 --network inner -p 8080:80 busybox \
  sh -c 'hostname >/index.html; exec httpd -f -p 80' >/dev/null
orch service create -d --name six --network both busybox sleep 1000 >/dev/null
within 120 "both tasks run" running "web 2/2"
within 30 "it answers at the node's address" curl -sSf -m 5 http://10.9.0.1:8080/
within 30 "it answers at 127.0.0.1" curl -sSf -m 5 http://127.0.0.1:8080/
task=$(orch service ps -q --filter desired-state=running web | head -n 1)
within 30 "a task finds the service" orch exec "$task" timeout 3 wget -q -O - http://web/
within 30 "it is said why the other waits" sh -c "orch service ps --no-trunc six | grep 'missing feature of the kernel'"
orch network create -d bridge --ipv6 mine >/tmp/said 2>&1 && fail "a bridge with IPv6 was made"
grep -q "no IPv6" /tmp/said || { cat /tmp/said; fail "it is not said why there is no bridge with IPv6"; }
orch run -d --name plain busybox sleep 1000 >/dev/null

# The daemon looks at everything every 4 s: what it complains of then is said again and again.
sleep 13
for daemon in netd worker; do
  grep -E ' (WARN|ERROR) ' /var/lib/orch/node/log/$daemon.log >/tmp/complaints || true
  [ "$(wc -l </tmp/complaints)" -le 2 ] || { tail -n 20 /tmp/complaints; fail "the $daemon complains"; }
done
orch network trace web:80 >/tmp/said || { cat /tmp/said; fail "something is broken on the way to the service"; }
echo "a node works on $(uname -r) without IPv6"
