# Volumes that are a mount: NFS from a server outside the cluster, away and back, by address and by name; tmpfs, a bind, CIFS.
fail() {
  echo "FAILED: $*"
  on n1 service ps --no-trunc --format '{{.Name}} {{.Node}} {{.CurrentState}} {{.Error}}' writer || true
  at n1 grep -w nfs4 /proc/mounts || true
  exit 1
}
on() { node=$1; shift; orch lab exec --name vm "$node" -- orch "$@"; }
at() { node=$1; shift; orch lab exec --name vm "$node" -- "$@"; }
running() { on n1 service ls --format '{{.Name}} {{.Replicas}}' | grep -qx "$1"; }
says() { text=$1; shift; "$@" 2>&1 | grep -F "$text"; }
mounted() { at "$1" grep -q " nfs4 " /proc/mounts; }
unmounted() { ! mounted "$1"; }
step() { echo "$(cut -d. -f1 /proc/uptime) s: $*"; }
echo "kernel $(uname -r)"

# The kernel's own server, for a network of the lab: without mountd the kernel is told beforehand what mountd would answer.
mkdir -p /srv && mount -t tmpfs -o mode=755 srv /srv && mkdir -p /srv/export && chmod 777 /srv/export
cat >/tmp/server <<'SERVER'
set -e
never=2147483647
mount -t nfsd nfsd /proc/fs/nfsd
for node in 192.168.100.11 192.168.100.12 192.168.100.13; do echo "nfsd $node $never nodes" >/proc/net/rpc/auth.unix.ip/channel; done
# async, no_subtree_check, insecure, and the root of all exports; root of the nodes is root.
echo "nodes /srv $never 9234 65534 65534 0" >/proc/net/rpc/nfsd.export/channel
echo "nodes 1 \\x00000000 $never /srv" >/proc/net/rpc/nfsd.fh/channel
echo 10 >/proc/fs/nfsd/nfsv4gracetime
echo "-2 -3 +4 +4.1 +4.2" >/proc/fs/nfsd/versions
echo 4 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace 2>/dev/null || true
SERVER

orch lab up --name vm --nodes 2 --managers 1
server=$(at client ip -4 -o addr | sed -n 's/.* inet \(192\.168\.100\.[0-9]*\).*/\1/p')
at client sh /tmp/server || fail "no NFS server"
step "a server at $server"
for node in n1 n2; do within 60 "an image" on $node image import --replace busybox /files/busybox.tar; done

nfs="type=volume,source=shared,target=/d,volume-driver=local,volume-opt=type=nfs,volume-opt=device=:/export,\"volume-opt=o=addr=$server,rw,nfsvers=4\""
within 30 "a service" on n1 service create -d --name writer --mount "$nfs" --constraint node.hostname==n1 busybox \
  sh -c 'echo written >/d/file; exec sleep 10000'
within 60 "a task writes" running "writer 1/1"
within 10 "it is written on the server" grep -qx written /srv/export/file
within 30 "another service" on n1 service create -d --name reader --mount "$nfs" --constraint node.hostname==n2 busybox \
  sh -c 'grep -qx written /d/file && exec sleep 10000'
within 60 "a task on another node reads it" running "reader 1/1"
mounted n1 && mounted n2 || fail "a node has not mounted it"
on n2 volume rm shared >/tmp/said 2>&1 && fail "a volume in use was removed"
step "written on one node, read on another"

# Two use it on one node; it stays for the second.
on n2 run -d --name local --mount "$nfs" busybox sleep 10000 >/dev/null
on n1 service rm reader >/dev/null
sleep 3
on n2 exec local grep -qx written /d/file || fail "it is gone for who uses it still"
mounted n2 || fail "it was unmounted while it was used"
on n2 stop -t 0 local >/dev/null
within 20 "unmounted with the last container" unmounted n2
echo copied >/tmp/copied
on n2 cp /tmp/copied local:/d/copied
grep -qx copied /srv/export/copied || fail "cp into a stopped container missed its volume"
unmounted n2 || fail "cp leaves it mounted"
on n2 rm local >/dev/null
on n2 volume rm shared >/dev/null
[ -e /srv/export/file ] || fail "removing a volume removed what is on the server"
# A killed worker finds what it left.
orch lab kill --name vm n1 worker
on n1 service rm writer >/dev/null
within 60 "unmounted by the next worker" unmounted n1
step "unmounted when nobody uses it, removed"

# By name: as the device says it, and with addr=, which the node resolves.
for node in n1 n2; do at $node sh -c "grep -q nas /etc/hosts || echo '$server nas' >>/etc/hosts"; done
read_through() { on n2 run --rm --mount "type=volume,source=named,target=/d,$1" busybox cat /d/file; }
opts="volume-driver=local,volume-opt=type=nfs"
[ "$(read_through "$opts,volume-opt=device=:/export,\"volume-opt=o=addr=nas,nfsvers=4\"")" = written ] || fail "not by the name in addr="
on n2 volume rm named >/dev/null
[ "$(read_through "$opts,volume-opt=device=nas:/export,volume-opt=o=nfsvers=4.2")" = written ] || fail "not by the name in the device"
on n2 volume rm named >/dev/null
on n2 run --rm --mount "type=volume,source=named,target=/d,$opts,volume-opt=device=nas:/export,\"volume-opt=o=nfsvers=4,ro\"" busybox \
  touch /d/no 2>&1 | grep -q "Read-only" || fail "ro is not in force"
on n2 volume rm named >/dev/null
# In a stack file.
cat >/tmp/stack.yml <<'YAML'
services:
  reader:
    image: busybox
    command: sh -c 'grep -qx written /d/file && exec sleep 10000'
    volumes: ["data:/d"]
volumes:
  data:
    driver: local
    driver_opts: {type: nfs, o: "addr=nas,rw,nfsvers=4", device: ":/export"}
YAML
within 30 "a stack" on n1 stack deploy -d -c /tmp/stack.yml st
within 60 "its task reads" running "st_reader 1/1"
on n1 stack rm st >/dev/null
step "by name, and in a stack"

why() {
  text=$1; shift
  began=$(cut -d. -f1 /proc/uptime)
  on n2 run --rm --mount "type=volume,source=odd,target=/d,volume-driver=local,$1" busybox true >/tmp/said 2>&1 && fail "started with $1"
  echo "$(($(cut -d. -f1 /proc/uptime) - began)) s: $(head -n 1 /tmp/said)"
  grep -qF "$text" /tmp/said || { cat /tmp/said; fail "it is not said why: $1"; }
  [ $(($(cut -d. -f1 /proc/uptime) - began)) -lt 60 ] || fail "it took too long: $1"
  on n2 volume rm odd >/dev/null
}
why "network volume address \"nosuch\"" "volume-opt=type=nfs,volume-opt=device=:/export,volume-opt=o=addr=nosuch"
why "No such file or directory" "volume-opt=type=nfs,volume-opt=device=:/nosuch,\"volume-opt=o=addr=nas,nfsvers=4\""
why "nonsense" "volume-opt=type=nfs,volume-opt=device=:/export,\"volume-opt=o=addr=nas,nonsense=1\""
why "onnection refused" "volume-opt=type=cifs,volume-opt=device=//nas/share,\"volume-opt=o=username=me,password=secret\""
why "No such file or directory" "volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/nosuch"
why "no file system \"nosuchfs\"" "volume-opt=type=nosuchfs,volume-opt=device=x"
grep -q secret /var/lib/orch*/node/log/*.log 2>/dev/null && fail "a password is in a log"
at n2 mkdir -p /tmp/folder
on n2 run --rm --mount 'type=volume,source=odd,target=/d,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/tmp/folder' busybox \
  touch /d/file && at n2 ls /tmp/folder/file >/dev/null || fail "a bind does not work"
on n2 volume rm odd >/dev/null
on n2 run --rm --mount 'type=volume,source=odd,target=/d,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=1m' busybox \
  sh -c 'df /d | grep -q " 1024 "' || fail "a tmpfs is not of its size"
on n2 volume rm odd >/dev/null
step "what cannot be mounted, other kinds"

# The server is away: packets to it are lost. What is mounted hangs, and costs nobody else anything.
on n1 run -d --name holder --mount "$nfs" busybox sleep 10000 >/dev/null
for node in n1 n2; do at $node nft -f - <<NFT
table inet away { chain out { type filter hook output priority 0; ip daddr $server drop; }; }
NFT
done
why "no answer within 30 s" "volume-opt=type=nfs,volume-opt=device=:/export,\"volume-opt=o=addr=$server,nfsvers=4\""
within 30 "a service" on n1 service create -d --name writer --restart-delay 1s --mount "$nfs" --constraint node.hostname==n1 busybox true
within 60 "its task fails, and says why" says "no answer within" on n1 service ps --no-trunc writer
began=$(cut -d. -f1 /proc/uptime)
on n1 run --rm -v other:/d busybox touch /d/file || fail "another container does not start"
[ $(($(cut -d. -f1 /proc/uptime) - began)) -lt 20 ] || fail "another container waited"
on n1 system df >/dev/null
on n1 volume ls -q | grep -qx shared || fail "volumes are not listed"
on n1 service rm writer >/dev/null
on n1 rm -f holder >/dev/null
within 40 "unmounted without its server" unmounted n1
step "a server that is away"
for node in n1 n2; do at $node nft delete table inet away; done
within 60 "it is back" on n1 run --rm --mount "$nfs" busybox grep -qx written /d/file
on n1 volume rm shared >/dev/null
step "a server that is back"
orch lab down --name vm
echo "NFS volumes work on $(uname -r)"
