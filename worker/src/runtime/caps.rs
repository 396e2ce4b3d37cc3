//! Capabilities as a set of bits, with the names that users write.

use std::sync::LazyLock;

use orch_model::linux::CAPABILITIES as NAMES;

/// What a container gets when nothing else is asked: the 14 that Docker gives.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {0:?}: write it like NET_ADMIN, or ALL")]
pub(crate) struct UnknownCapability(pub(crate) String);

/// A set of capabilities; bit n is capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CapSet(pub(crate) u64);

impl CapSet {
    /// Every capability that this code knows.
    pub(crate) const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The default set, with `drop` taken away and `add` added; `ALL` stands for everything, and what is named beside it
    /// counts as an exception (`drop ALL, add CHOWN` leaves one).
    pub(crate) fn effective(add: &[String], drop: &[String]) -> Result<Self, UnknownCapability> {
        let named = |names: &[String]| -> Result<(bool, u64), UnknownCapability> {
            names.iter().try_fold((false, 0), |(all, bits), name| {
                let bare = name.to_ascii_uppercase();
                let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
                match (bare, bit(bare)) {
                    ("ALL", _) => Ok((true, bits)),
                    (_, Some(bit)) => Ok((all, bits | bit)),
                    (_, None) => Err(UnknownCapability(name.clone())),
                }
            })
        };
        let (add_all, added) = named(add)?;
        let (drop_all, dropped) = named(drop)?;
        let base = match (add_all, drop_all) {
            (true, _) => Self::ALL.0,
            (false, true) => 0,
            (false, false) => Self::default().0,
        };
        Ok(Self((base & !dropped) | added))
    }

    pub(crate) fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }

    pub(crate) fn with(self, names: &[&str]) -> Self {
        Self(names.iter().filter_map(|name| bit(name)).fold(self.0, |bits, bit| bits | bit))
    }

    pub(crate) fn without(self, name: &str) -> Self {
        Self(self.0 & !bit(name).unwrap_or(0))
    }

    /// `CAP_CHOWN`, … in the kernel's order.
    pub(crate) fn names(self) -> Vec<String> {
        NAMES
            .iter()
            .enumerate()
            .filter(|(n, _)| self.0 & (1 << n) != 0)
            .map(|(_, name)| format!("CAP_{name}"))
            .collect()
    }

    /// Without those that this process does not have itself (the kernel may not know them, or a machine that is a
    /// container may lack them): nobody can be given these.
    pub(crate) fn grantable(self) -> Self {
        static PERMITTED: LazyLock<u64> = LazyLock::new(|| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
            permitted.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(u64::MAX)
        });
        Self(self.0 & *PERMITTED)
    }
}

impl Default for CapSet {
    fn default() -> Self {
        Self(0).with(&DEFAULT)
    }
}

fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|n| 1 << n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], want: Result<u64, &str>) {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let got = CapSet::effective(&owned(add), &owned(drop));
        assert_eq!(got.map(|set| set.0), want.map_err(|name| UnknownCapability(name.to_owned())));
    }

    #[test]
    fn adding_and_dropping_is_dockers() {
        check(&[], &[], Ok(0xa804_25fb));
        check(&["NET_ADMIN"], &[], Ok(0xa804_35fb));
        check(&["cap_net_admin"], &["CAP_MKNOD"], Ok(0xa004_35fb));
        check(&["CHOWN"], &["ALL"], Ok(1));
        check(&["ALL"], &["CHOWN"], Ok(CapSet::ALL.0 & !1));
        check(&["FLY"], &[], Err("FLY"));
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(CapSet(1 | 1 << 21).names(), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        assert!(CapSet::default().has("KILL") && !CapSet::default().has("SYS_ADMIN"));
    }
}
