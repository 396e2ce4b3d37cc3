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
/// Users and groups have numbers up to here, as with Docker.
const LAST_USER: u32 = 0x7fff_ffff;
/// Settings of the kernel that a container has its own of, besides those of its network and message queues.
const SYSCTLS: [&str; 9] = [
    "kernel.domainname",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// `NET_ADMIN`, `CAP_NET_ADMIN` in any case, or `ALL`.
#[must_use]
pub fn is_capability(text: &str) -> bool {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    upper == "ALL" || CAPABILITIES.contains(&name)
}

/// `TERM`, `SIGTERM` in any case, `RTMIN+3`, `RTMAX-2`, or a number.
#[must_use]
pub fn is_signal(text: &str) -> bool {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS.contains(&name)
        || real_time_offset(name).is_some()
        || number(text).is_some_and(|number| (1..=LAST_SIGNAL).contains(&number))
}

/// How far a real-time signal, named without `SIG`, is from the first one.
#[must_use]
pub fn real_time_offset(name: &str) -> Option<u32> {
    let (first, rest) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return None,
    };
    let offset = match (first, rest) {
        (_, "") => 0,
        (true, rest) => number(rest.strip_prefix('+')?)?,
        (false, rest) => number(rest.strip_prefix('-')?)?,
    };
    let offset = if first { offset } else { LAST_REAL_TIME.checked_sub(offset)? };
    (offset <= LAST_REAL_TIME).then_some(offset)
}

#[must_use]
pub fn is_ulimit(name: &str) -> bool {
    ULIMITS.contains(&name)
}

/// `NAME|UID[:[GROUP|GID]]`.
#[must_use]
pub fn is_user(text: &str) -> bool {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    (!user.is_empty() || !group.is_empty())
        && [user, group].into_iter().all(|part| part.is_empty() || is_user_or_group(part))
}

/// A name as /etc/group has it, or a number.
#[must_use]
pub fn is_group(text: &str) -> bool {
    is_user_or_group(text)
}

/// Whether a container may have its own value of a kernel setting.
#[must_use]
pub fn is_sysctl(name: &str) -> bool {
    let has_form = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) && !name.contains("..");
    let in_namespace = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    has_form && (SYSCTLS.contains(&name) || in_namespace("net.") || in_namespace("fs.mqueue."))
}

fn is_user_or_group(text: &str) -> bool {
    let is_name = !text.is_empty() && !text.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control());
    let is_number = text.strip_prefix('-').unwrap_or(text).bytes().all(|b| b.is_ascii_digit());
    is_name && (!is_number || number(text).is_some_and(|number| number <= LAST_USER))
}

/// Digits alone: `parse` would take a sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_forms_that_docker_takes() {
        for text in ["NET_ADMIN", "cap_net_admin", "all", "CHECKPOINT_RESTORE"] {
            assert!(is_capability(text), "{text}");
        }
        for text in ["SIGTERM", "term", "9", "64", "SigQuit", "RTMIN+3", "RTMIN", "SIGRTMAX-30", "rtmax"] {
            assert!(is_signal(text), "{text}");
        }
        for text in
            ["", "NET", "SIG", "0", "65", "-1", "+9", "SIGSIGTERM", "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMAX+1"]
        {
            assert!(!is_capability(text) && !is_signal(text), "{text}");
        }
        assert!(is_ulimit("nofile") && !is_ulimit("NOFILE") && !is_ulimit("files"));
    }

    #[test]
    fn users_groups_and_settings() {
        for text in ["root", "0", "99:99", "www-data:adm", "1000:", ":adm", "2147483647", "ünsal"] {
            assert!(is_user(text), "{text}");
        }
        for text in ["", ":", " ", "a b", "a\nb", "-1", "2147483648", "99999999999", "1:2:3", "a:b c", "1:-1"] {
            assert!(!is_user(text), "{text}");
        }
        assert!(is_group("video") && is_group("44") && !is_group("") && !is_group("a:b") && !is_group("-1"));
        for name in ["net.core.somaxconn", "net.ipv4.conf.eth0/1.forwarding", "fs.mqueue.msg_max", "kernel.sem"] {
            assert!(is_sysctl(name), "{name}");
        }
        for name in ["", "net.", "net", "vm.swappiness", "kernel.panic", "net.a b", "net.../../x", "net.a\n", "a"] {
            assert!(!is_sysctl(name), "{name}");
        }
    }
}
