# Three nodes on a kernel with nothing but cgroup v2: names, virtual addresses, and a published port on every node.
fail() {
  echo "FAILED: $*"
  for what in "service ls" "service ps --no-trunc web" "service ps --no-trunc user" "node ls"; do on n1 $what || true; done
  exit 1
}
on() { node=$1; shift; orch lab exec --name vm "$node" -- orch "$@"; }
# More may follow: "3/3 (max 1 per node)".
running() { on n1 service ls --format '{{.Name}} {{.Replicas}}' | grep -qE "^$1( |$)"; }
# Every task's name comes back through this address.
all_answer() {
  rm -f /tmp/names
  for _ in 1 2 3 4 5 6; do "$@" >>/tmp/names || return 1; done
  [ "$(sort -u /tmp/names | wc -l)" = 3 ]
}

step() { echo "$(cut -d. -f1 /proc/uptime) s: $*"; }
echo "kernel $(uname -r)"
# Managers elect each other again and again where an emulated processor is shared: they are made when there is a cluster, and
# calls are repeated.
orch lab up --name vm --nodes 3 --managers 1
within 60 "an image" on n1 image import --replace busybox /files/busybox.tar
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
step "every node answers"
user=$(on n1 service ps -q --no-trunc user)
where=$(on n1 service ps --format '{{.Node}}' user)
within 30 "the name leads to all tasks" all_answer on "$where" exec "$user" timeout 5 wget -q -O - http://web/
within 60 "scaling down" on n1 service scale -d web=2
within 60 "one task less" running "web 2/2"
step "names, scaling"
within 120 "n2 and n3 become managers" on n1 node promote n2 n3
reachable() { [ "$(on n1 node ls --format '{{.ManagerStatus}}' | grep -c -E 'Leader|Reachable')" = 3 ]; }
within 120 "three managers" reachable
step "three managers"
# The leader's node is lost; the others go on.
orch lab kill --name vm n1 all
within 120 "another manager leads" on n2 service ls
within 120 "what was lost runs elsewhere" sh -c "orch lab exec --name vm n2 -- orch service ls --format '{{.Name}} {{.Replicas}}' | grep -qE '^web 2/2( |\$)'"
step "what was lost runs elsewhere"
within 60 "the port answers at another node" orch lab exec --name vm client -- curl -sSf -m 5 http://192.168.100.12:8080/
orch lab down --name vm
echo "a cluster works on $(uname -r) with cgroup v2"
