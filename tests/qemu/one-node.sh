# A node on a kernel with nothing but cgroup v2: limits are in force, and a service answers.
fail() { echo "FAILED: $*"; orch service ps --no-trunc web || true; exit 1; }
# expect FILE TEXT: the file in the cgroup of container $id.
expect() {
  now=$(cat /sys/fs/cgroup/orch.slice/"$id"/"$1")
  [ "$now" = "$2" ] || fail "$1 is $now, not $2"
}
running() { orch service ls --format '{{.Name}} {{.Replicas}}' | grep -qx "$1"; }

echo "kernel $(uname -r)"
[ -e /sys/fs/cgroup/cgroup.controllers ] && ! grep -q ' cgroup ' /proc/mounts || fail "this is not pure cgroup v2"
ip link add outside type dummy && ip addr add 10.9.0.1/24 dev outside && ip link set outside up
orch init --advertise-addr 10.9.0.1 >/dev/null
[ "$(orch info --format '{{.CgroupVersion}}')" = 2 ] || fail "orch info does not say cgroup version 2"
orch image import busybox /files/busybox.tar

id=$(orch run -d --name one --memory 64m --cpus 0.5 --pids-limit 50 busybox sleep 1000)
expect memory.max 67108864
expect cpu.max "50000 100000"
expect pids.max 50
[ "$(orch exec one cat /sys/fs/cgroup/memory.max)" = 67108864 ] || fail "the container does not see its own cgroup"
# A fork bomb of sixty ends at fifty.
orch exec one sh -c 'i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i + 1)); done' >/tmp/bomb 2>&1 || true
grep -q "fork" /tmp/bomb || { cat /tmp/bomb; fail "sixty processes were started within a limit of fifty"; }
orch rm -f one
[ ! -e /sys/fs/cgroup/orch.slice/"$id" ] || fail "the cgroup of a removed container is left"

orch run -d --name greedy --memory 16m busybox sh -c 'exec tail /dev/zero' >/dev/null
within 60 "it is killed for its memory" sh -c "orch inspect --format '{{.State.OOMKilled}} {{.State.ExitCode}}' greedy | grep -x 'true 137'"
orch rm greedy

# Checks run in the container's own group, and count there.
id=$(orch run -d --name checked --pids-limit 20 --health-cmd 'cat /proc/self/cgroup; [ -e /well ]' --health-interval 1s \
  --health-retries 2 busybox sh -c 'touch /well; exec sleep 1000')
health() { orch inspect --format '{{.State.Health.Status}}' checked | grep -qx "$1"; }
within 60 "its check passes" health healthy
orch inspect --format '{{json .State.Health.Log}}' checked >/tmp/checks
grep -qF '"Output":"0::/\n"' /tmp/checks || { cat /tmp/checks; fail "a check is not in its container's control group"; }
orch exec checked rm /well
within 60 "its check fails" health unhealthy
[ "$(cat /sys/fs/cgroup/orch.slice/"$id"/pids.current)" -le 3 ] || fail "checks leave processes behind"
orch rm -f checked >/dev/null
[ ! -e /sys/fs/cgroup/orch.slice/"$id" ] || fail "the control group of a container with checks is left"

orch service create -d --name web --replicas 2 --limit-memory 32m --limit-cpu 0.25 --limit-pids 20 -p 8080:80 \
  busybox sh -c 'hostname >/index.html; exec httpd -f -p 80' >/dev/null
within 120 "both tasks run" running "web 2/2"
for id in $(orch ps -q --no-trunc); do
  expect memory.max 33554432
  expect cpu.max "25000 100000"
  expect pids.max 20
done
within 30 "it answers at the node's address" curl -sSf -m 5 http://10.9.0.1:8080/
within 30 "it answers at 127.0.0.1" curl -sSf -m 5 http://127.0.0.1:8080/
orch service rm web >/dev/null
within 60 "no container is left" sh -c '[ -z "$(orch ps -aq)" ]'
echo "one node works on $(uname -r) with cgroup v2"
