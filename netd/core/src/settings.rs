//! Settings of the node that the daemon changes and are not of its own links: what they were before, so that a node that
//! leaves is as it was.

use std::{collections::BTreeMap, fmt};

use crate::{names::HOST_PREFIX, ns::NsPlan};

/// Of a link that learns routes from router advertisements, unless it forwards.
const LEARNS: &str = "1";
const LEARNS_NOT: &str = "0";
/// Of such links: also while the node forwards.
pub(crate) const LEARNS_AND_FORWARDS: &str = "2";
const FORWARDS: &str = "1";
const FORWARDS_NOT: &str = "0";

/// Of each link, too.
pub const FORWARD_ALL: &str = "net/ipv6/conf/all/forwarding";

/// Stays on: who came later and found it so (Docker, hypervisors) relies on it.
const IP_FORWARD: &str = "net/ipv4/ip_forward";

/// Path below /proc/sys to the value before the daemon's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads what was printed; what is no setting is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let setting = |line: &str| line.split_once(' ').map(|(path, value)| (path.to_owned(), value.to_owned()));
        Self(text.lines().filter_map(setting).collect())
    }

    /// What `plan` changes for the first time and is to be as before in the end.
    pub fn unknown<'a>(&'a self, plan: &'a NsPlan) -> impl Iterator<Item = &'a str> {
        let is_own = |path: &str| link_of(path).is_some_and(|link| link.starts_with(HOST_PREFIX));
        let is_lent = move |path: &&str| *path != IP_FORWARD && !is_own(path) && !self.0.contains_key(*path);
        plan.sysctls.keys().map(String::as_str).filter(is_lent)
    }

    /// Keeps what a setting was; not again.
    pub fn keep(&mut self, path: String, value: String) {
        self.0.entry(path).or_insert(value);
    }

    /// What to set, in order, where settings are as `now` says. What somebody else has set since stays.
    #[must_use]
    pub fn put_back(&self, now: impl Fn(&str) -> Option<String>) -> Vec<(&str, &str)> {
        let is_ours = |path: &str| match forwards(path) {
            // Setting it for all sets it for each.
            true => now(FORWARD_ALL).as_deref() == Some(FORWARDS),
            false => now(path).as_deref() == Some(LEARNS_AND_FORWARDS),
        };
        let kept = self.0.iter().map(|(path, value)| (path.as_str(), value.as_str()));
        let mut settings: Vec<_> = kept.filter(|(path, _)| is_ours(path)).collect();
        // Nothing forwards any more when links learn as they did.
        settings.sort_by_key(|(path, _)| (!forwards(path), *path != FORWARD_ALL));
        settings
    }

    /// Whether `link` learns routes from router advertisements, by its settings now or by those that it had before. Who has
    /// told it not to since is right.
    #[must_use]
    pub fn learns(&self, link: &str, accept_ra: &str, forwarding: &str) -> bool {
        let before = self.0.get(&accept_ra_of(link)).map(String::as_str);
        (before == Some(LEARNS) && accept_ra != LEARNS_NOT) || (accept_ra, forwarding) == (LEARNS, FORWARDS_NOT)
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(path, value)| writeln!(f, "{path} {value}"))
    }
}

/// Whether a link learns routes from router advertisements: 0 no, 1 unless it forwards, 2 always.
#[must_use]
pub fn accept_ra_of(link: &str) -> String {
    format!("net/ipv6/conf/{link}/accept_ra")
}

/// Whether a link has neither addresses nor anything else of IPv6.
#[must_use]
pub fn disable_ipv6(link: &str) -> String {
    format!("net/ipv6/conf/{link}/disable_ipv6")
}

#[must_use]
pub fn forwarding_of(link: &str) -> String {
    format!("net/ipv6/conf/{link}/forwarding")
}

/// Whether the setting makes something forward by IPv6.
#[must_use]
pub fn forwards(path: &str) -> bool {
    path.ends_with("/forwarding")
}

fn link_of(path: &str) -> Option<&str> {
    path.split('/').nth(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_is_put_back() {
        let mut plan = NsPlan::default();
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/orchg1/accept_ra"] {
            plan.sysctls.insert(path.to_owned(), "1".to_owned());
        }
        plan.sysctls.insert(accept_ra_of("eth0.7"), "2".to_owned());
        let mut settings = Settings::default();
        let unknown: Vec<_> = settings.unknown(&plan).map(str::to_owned).collect();
        assert_eq!(unknown, ["net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0.7/accept_ra"]);
        for (path, value) in unknown.into_iter().zip(["0", "1"]) {
            settings.keep(path.clone(), value.to_owned());
            settings.keep(path, "another".to_owned());
        }
        assert_eq!(settings.unknown(&plan).count(), 0);
        assert_eq!(Settings::parse(&settings.to_string()), settings);
        settings.keep("net/ipv6/conf/a/forwarding".to_owned(), "1".to_owned());
        let forwarding = [("net/ipv6/conf/all/forwarding", "0"), ("net/ipv6/conf/a/forwarding", "1")];
        let learning = [("net/ipv6/conf/eth0.7/accept_ra", "1")];
        for (all, learns, expected) in [
            ("1", "2", [&forwarding[..], &learning].concat()),
            ("0", "2", learning.to_vec()),
            ("1", "0", forwarding.to_vec()),
        ] {
            let now = |path: &str| Some(if forwards(path) { all } else { learns }.to_owned());
            assert_eq!(settings.put_back(now), expected, "{all} {learns}");
        }
    }

    #[test]
    fn a_link_goes_on_learning_what_it_has_learnt_before() {
        let mut settings = Settings::default();
        settings.keep(accept_ra_of("eth0"), "1".to_owned());
        settings.keep(accept_ra_of("eth1"), "0".to_owned());
        for (link, accept_ra, forwarding, expected) in [
            ("eth0", "2", "1", true),
            ("eth0", "1", "1", true),
            ("eth1", "0", "1", false),
            ("eth0", "0", "1", false),
            ("new", "1", "0", true),
            ("new", "1", "1", false),
            ("new", "0", "0", false),
            ("new", "2", "0", false),
        ] {
            assert_eq!(settings.learns(link, accept_ra, forwarding), expected, "{link} {accept_ra} {forwarding}");
        }
    }
}
