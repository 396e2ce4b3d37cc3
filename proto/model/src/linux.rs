//! What the kernel calls things that users name: capabilities, limits, signals.

/// In the kernel's order: the position is the number.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Names of resource limits (`RLIMIT_…`).
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// Above those with names, real-time signals have numbers only.
const LAST_SIGNAL: u32 = 64;
/// `SIGRTMAX` is `RTMIN+30`.
const LAST_REAL_TIME: u32 = 30;

/// `NET_ADMIN`, `CAP_NET_ADMIN` in any case, or `ALL`.
#[must_use]
pub fn is_capability(text: &str) -> bool {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    upper == "ALL" || CAPABILITIES.contains(&name)
}

/// `TERM`, `SIGTERM` in any case, `RTMIN+3`, or a number.
#[must_use]
pub fn is_signal(text: &str) -> bool {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name.strip_prefix("RTMIN+").and_then(|offset| offset.parse().ok());
    SIGNALS.contains(&name)
        || real_time.is_some_and(|offset: u32| offset <= LAST_REAL_TIME)
        || text.parse().is_ok_and(|number: u32| (1..=LAST_SIGNAL).contains(&number))
}

#[must_use]
pub fn is_ulimit(name: &str) -> bool {
    ULIMITS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_forms_that_docker_takes() {
        for text in ["NET_ADMIN", "cap_net_admin", "all", "CHECKPOINT_RESTORE"] {
            assert!(is_capability(text), "{text}");
        }
        for text in ["SIGTERM", "term", "9", "64", "SigQuit", "RTMIN+3"] {
            assert!(is_signal(text), "{text}");
        }
        for text in ["", "NET", "SIG", "0", "65", "-1", "SIGSIGTERM"] {
            assert!(!is_capability(text) && !is_signal(text), "{text}");
        }
        assert!(is_ulimit("nofile") && !is_ulimit("NOFILE") && !is_ulimit("files"));
    }
}
