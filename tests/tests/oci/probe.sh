# Everything that a program can find out about where it runs, a line each.
cd "$PWD"
p() { echo "$1: $2"; }
for key in Umask Uid Gid Groups SigPnd ShdPnd SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters Speculation_Store_Bypass Cpus_allowed_list; do
  p "status $key" "$(grep "^$key:" /proc/self/status | cut -d: -f2 | tr '\t' ' ')"
done
sort /proc/self/mounts | while read -r source target kind options rest; do
  [ "$target" = / ] && options="${options%%,lowerdir*}"
  p "mount $target" "$kind $options"
done
while read -r line; do p "limit" "$line"; done < /proc/self/limits
ls -l /dev | grep -v ^total | while read -r mode links owner group a b c d e f g; do
  case $mode in c*|b*) p "dev ${e#/}" "$mode $owner $group $a $b" ;; l*) p "dev link $d" "$mode -> $f$g" ;; *) p "dev $e" "$mode $owner $group" ;; esac
done
env | sort | while read -r line; do p env "$line"; done
p hostname "$(hostname)"; p cwd "$(pwd)"; p id "$(id)"
p oom_score_adj "$(cat /proc/self/oom_score_adj)"
# To a file: the pipes of $(...) would be among what it lists, for as long as this shell takes to close its ends.
ls -l /proc/$$/fd > /t/fds
while read -r mode links owner group size month day time fd arrow to; do
  [ -z "$fd" ] || p "fd $fd" "$(echo "$to" | sed 's/[0-9]\{3,\}/N/g')"
done < /t/fds
set -- $(cat /proc/$$/stat); p "pgrp session tty tpgid" "$5 $6 $7 $8"; p "priority nice rt policy" "${18} ${19} ${40} ${41}"
for file in coredump_filter personality setgroups uid_map gid_map loginuid attr/current timerslack_ns; do p "proc $file" "$(cat /proc/self/$file 2>&1 | tr '\0' ' ')"; done
p cgroup "$(sort -t: -k2 /proc/self/cgroup | cut -d: -f2,3 | sed 's#/[^ ]*/##; s/[0-9a-f]\{64\}/ID/' | tr '\n' ' ')"
for file in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.swappiness memory/memory.oom_control memory/memory.use_hierarchy cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max blkio/blkio.weight; do
  p "cgroup file $file" "$(cat /sys/fs/cgroup/$file 2>/dev/null | tr '\n' ' ')"
done
for key in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/core/somaxconn kernel/msgmax kernel/shmmax kernel/hostname kernel/domainname net/ipv4/ip_forward; do p "sysctl $key" "$(cat /proc/sys/$key | tr '\t' ' ')"; done
for path in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /sys/firmware /proc/sys /proc/bus /proc/interrupts /proc/scsi; do p "path $path" "$(ls -ld $path 2>&1 | cut -c1-10) $(stat -c '%t:%T %h' $path 2>/dev/null)"; done
for path in /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /proc /sys /tmp; do p "file $path" "$(stat -c '%a %u %g %F' $path)"; done
p writable "$(touch /sys/x 2>&1; touch /proc/sys/x 2>&1; touch /sys/fs/cgroup/memory/x 2>&1 | cut -c1-80)"
