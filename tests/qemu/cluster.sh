# Three nodes on a kernel with nothing but cgroup v2: names, virtual addresses, and a published port on every node.
set -eu
fail() { echo "FAILED: $*"; on n1 service ps --no-trunc web || true; exit 1; }
on() { node=$1; shift; orch lab exec --name vm "$node" -- orch "$@"; }
within() {
  left=$1 what=$2; shift 2
  until "$@" >/tmp/said 2>&1; do
    left=$((left - 1)); [ "$left" -gt 0 ] || { cat /tmp/said; fail "$what"; }
    sleep 1
  done
}
# More may follow: "3/3 (max 1 per node)".
running() { on n1 service ls --format '{{.Name}} {{.Replicas}} ' | grep -q "^$1 "; }
# Every task's name comes back through this address.
all_answer() {
  rm -f /tmp/names
  for _ in 1 2 3 4 5 6; do "$@" >>/tmp/names || return 1; done
  [ "$(sort -u /tmp/names | wc -l)" = 3 ]
}

echo "kernel $(uname -r)"
orch lab up --name vm --nodes 3 --managers 3
on n1 image import busybox /files/busybox.tar
# On an emulated processor the leader may change in the middle of a call.
made() {
  kind=$1 name=$2; shift 2
  on n1 "$kind" inspect "$name" >/dev/null 2>&1 || on n1 "$kind" create "$@"
}
within 60 "a network" made network net -d overlay net
within 60 "a service" made service web -d --name web --network net --replicas 3 --replicas-max-per-node 1 -p 8080:80 \
  busybox sh -c 'hostname >/index.html; exec httpd -f -p 80'
within 60 "another service" made service user -d --name user --network net busybox sleep 10000
within 180 "all tasks run" running "web 3/3"
within 60 "the other service runs" running "user 1/1"
for i in 1 2 3; do
  within 30 "all tasks answer through node $i" all_answer orch lab exec --name vm client -- curl -sSf -m 5 "http://192.168.100.1$i:8080/"
done
user=$(on n1 service ps -q --no-trunc user)
where=$(on n1 service ps --format '{{.Node}}' user)
within 30 "the name leads to all tasks" all_answer on "$where" exec "$user" timeout 5 wget -q -O - http://web/
within 60 "scaling down" on n1 service scale -d web=2
within 60 "one task less" running "web 2/2"
# The leader's node is lost; the others go on.
orch lab kill --name vm n1 all
within 120 "another manager leads" on n2 service ls
within 120 "what was lost runs elsewhere" sh -c "orch lab exec --name vm n2 -- orch service ls --format '{{.Name}} {{.Replicas}} ' | grep -q '^web 2/2 '"
within 60 "the port answers at another node" orch lab exec --name vm client -- curl -sSf -m 5 http://192.168.100.12:8080/
orch lab down --name vm
echo "a cluster works on $(uname -r) with cgroup v2"
