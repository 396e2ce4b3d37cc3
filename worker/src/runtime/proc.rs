//! What may be mounted over a container's /proc.

use std::path::{Component, Path, PathBuf};

/// What programs may be shown in place of the kernel's own numbers, as lxcfs does: Docker's list, but for net/dev, which
/// libcontainer does not take.
const REPLACEABLE: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// A program with another /proc in its place could be led to believe that it is confined when it is not.
pub(super) fn is_inside(target: &str) -> bool {
    let mut path = PathBuf::from("/");
    for part in Path::new(target).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    // /proc itself: libcontainer takes the node's there and nothing else.
    let is_free = |below: &Path| below == Path::new("") || REPLACEABLE.iter().any(|name| below == Path::new(name));
    path.strip_prefix("/proc").is_ok_and(|below| !is_free(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_the_kernels() {
        for (target, want) in [
            ("/proc", false),
            ("/proc/", false),
            ("/proc/sys", true),
            ("/proc/sys/net", true),
            ("//proc/./foo", true),
            ("/srv/../proc/foo", true),
            ("/proc/uptime", false),
            ("/proc/net/dev", true),
            ("/proc/../srv", false),
            ("/process", false),
            ("/srv/proc", false),
        ] {
            assert_eq!(is_inside(target), want, "{target}");
        }
    }
}
