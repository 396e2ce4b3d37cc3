# AppArmor: which profile containers have and what it keeps them from, on a node and in a service; profiles that are not there.
# And users that are remapped, on the oldest kind of kernel for it.
fail() { echo "FAILED: $*"; orch service ps --no-trunc web || true; tail -n 5 /var/lib/orch/node/log/worker.log; exit 1; }
step() { echo "$(cut -d. -f1 /proc/uptime) s: $*"; }
# confined WORD COMMAND…: what the command prints is the kernel's word for the process's profile.
confined() {
  word=$1; shift
  now=$("$@" 2>&1) || true
  [ "$now" = "$word" ] || fail "confined as '$now', not '$word': $*"
}
refused() {
  text=$1; shift
  "$@" >/tmp/said 2>&1 && fail "not refused: $*"
  grep -qF "$text" /tmp/said || { cat /tmp/said; fail "it is not said why: $*"; }
}
running() { orch service ls --format '{{.Name}} {{.Replicas}}' | grep -qx "$1"; }
current="cat /proc/self/attr/current"

echo "kernel $(uname -r)"
[ "$(cat /sys/module/apparmor/parameters/enabled)" = Y ] || fail "this kernel has no AppArmor"
ip link add outside type dummy && ip addr add 10.9.0.1/24 dev outside && ip link set outside up

# In memory nothing can be mounted with other users on this kernel.
truncate -s 400M /disk && mke2fs -F /disk >/dev/null 2>&1 && mkdir -p /var/lib/orch && mount -t ext4 -o loop /disk /var/lib/orch

# Without what loads profiles the node has no AppArmor, as Docker sees it, and says so.
parser=$(command -v apparmor_parser)
mv "$parser" /files/
orch init --advertise-addr 10.9.0.1 >/dev/null
orch image import busybox /files/busybox.tar
confined unconfined orch run --rm busybox $current
grep -q "install it (package apparmor)" /var/lib/orch/node/log/worker.log || fail "it is not said that the parser is missing"
orch info | grep -q "apparmor" && fail "orch info says AppArmor without a parser"
refused 'AppArmor profile "orch-default"' orch run --rm --security-opt apparmor=orch-default busybox true
mv /files/apparmor_parser "$parser"
step "without a parser"

confined "orch-default (enforce)" orch run --rm busybox $current
orch info | grep -q "apparmor" || fail "orch info does not say AppArmor"
confined unconfined orch run --rm --security-opt apparmor=unconfined busybox $current
confined unconfined orch run --rm --privileged busybox $current
orch run -d --name one --cap-add SYS_ADMIN --security-opt systempaths=unconfined --health-cmd "$current" --health-interval 1s \
  busybox sleep 10000 >/dev/null
orch run -d --name free --cap-add SYS_ADMIN --security-opt systempaths=unconfined --security-opt apparmor=unconfined \
  busybox sleep 10000 >/dev/null
confined "orch-default (enforce)" orch exec one $current
confined "orch-default (enforce)" orch exec --privileged one $current
confined unconfined orch exec free $current
[ "$(orch inspect --format '{{.AppArmorProfile}}' one free | tr '\n' ' ')" = "orch-default unconfined " ] ||
  fail "inspect says $(orch inspect --format '{{.AppArmorProfile}}' one free)"
well() { orch inspect --format '{{json .State.Health.Log}}' one | grep -qF 'orch-default (enforce)'; }
within 30 "a check is confined" well
step "run, exec, health checks"

for what in "mount -t tmpfs none /mnt" "echo 1 >/proc/sys/vm/drop_caches" "echo h >/proc/sysrq-trigger" "cat /proc/sysrq-trigger"; do
  refused "ermission denied" orch exec one sh -c "mkdir -p /mnt; $what"
done
orch exec free sh -c "mkdir -p /mnt && mount -t tmpfs none /mnt && echo 1 >/proc/sys/vm/drop_caches && echo h >/proc/sysrq-trigger" ||
  fail "an unconfined container is confined"
# Signals among its own, and from the node.
orch exec one sh -c 'sleep 1000 & kill -0 $! && kill $!' || fail "a process cannot signal another of its container"
step "what is denied, and allowed without"

refused 'AppArmor profile "nosuch"' orch run --rm --security-opt apparmor=nosuch busybox true
printf 'profile mine flags=(attach_disconnected) {\n  file,\n  signal,\n  deny /etc/passwd r,\n}\n' | apparmor_parser -Kr
confined "mine (enforce)" orch run --rm --security-opt apparmor=mine busybox $current
refused "ermission denied" orch run --rm --security-opt apparmor=mine busybox cat /etc/passwd
step "profiles of one's own"

orch service create -d --name web --replicas 2 busybox sleep 10000 >/dev/null
within 60 "both tasks run" running "web 2/2"
tasks() { orch ps -q --no-trunc --filter name=web; }
for task in $(tasks); do
  confined "orch-default (enforce)" orch exec "$task" $current
  [ "$(orch container inspect --format '{{.AppArmorProfile}}' "$task")" = orch-default ] || fail "inspect does not say a task's profile"
done
# The shims outlive the worker, and so does what they know.
worker() {
  for process in /proc/[0-9]*; do
    if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q '^[^ ]*orch worker'; then echo "${process#/proc/}"; fi
  done
}
first=$(worker)
kill -9 $first
answers() { [ -n "$(worker)" ] && [ "$(worker)" != "$first" ] && orch ps >/dev/null; }
within 60 "a new worker" answers
confined "orch-default (enforce)" orch exec one $current
confined "orch-default (enforce)" orch exec "$(tasks | head -n 1)" $current
# As what tidies up profiles that are in no file does (aa-remove-unknown): it is loaded again.
apparmor_parser -R <<'PROFILE'
profile orch-default { }
PROFILE
confined "orch-default (enforce)" orch run --rm busybox $current
step "a new worker, a profile that was removed"

orch service rm web >/dev/null
orch rm -f one free >/dev/null
mkdir -p /etc/orch && echo 'userns-remap = "default"' >/etc/orch/orch.toml
first=$(worker)
kill -9 $first
within 60 "a new worker" answers
orch network create -d overlay far >/dev/null
orch service create -d --name nobody --network far --mount type=volume,source=vol,target=/v busybox \
  sh -c 'echo hi >/v/f; exec httpd -f -p 80 -h /v' >/dev/null
within 60 "a task of remapped users runs" running "nobody 1/1"
nobody() { orch exec "$(orch ps -q --no-trunc --filter name=nobody)" "$@"; }
confined "orch-default (enforce)" nobody $current
[ "$(nobody stat -c %u:%g /bin/busybox /v/f | tr '\n' ' ')" = "0:0 0:0 " ] || fail "files of the image or the volume are not root's"
[ "$(nobody wget -qO - http://nobody/f)" = hi ] || fail "a remapped task does not answer"
[ "$(stat -c %u /var/lib/orch/worker/volumes/vol/_data/f)" = 1000000 ] || fail "root of the container is root of the node"
step "remapped users"
orch service rm nobody >/dev/null
orch leave --force >/dev/null
grep -q '^orch-default (enforce)' /sys/kernel/security/apparmor/profiles || fail "leaving removed the profile that other nodes of the machine may use"
step "left"
echo "AppArmor works on $(uname -r)"
