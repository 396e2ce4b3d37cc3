//! What the kernel has counted, added up: its counters end with what they belong to (a task's namespace, a rule), totals
//! do not.

use std::{
    collections::BTreeMap,
    io,
    sync::{LazyLock, Mutex, PoisonError},
};

use orch_model::{ServiceId, TaskId};
use orch_netd_core::{
    counts::{Counted, behind, meaning},
    desired::Desired,
    ns::NsName,
    plan::guard::OFFENDERS,
    ruleset::{Family, Key, Ruleset},
};

use crate::{nfnetlink::Socket, nft};

/// Of all that was ever counted since the daemon started, for the page of metrics.
pub(crate) static TOTALS: LazyLock<Mutex<BTreeMap<Counted, u64>>> = LazyLock::new(Mutex::default);

/// A counter: the family of its table, the set it is in, and the key.
type Place = (Family, &'static str, Key);
/// One counter, and what it stands at.
pub(crate) type Reading = (Place, u64);

/// What each counter stood at when it was last read.
#[derive(Default)]
pub(crate) struct Counts(BTreeMap<NsName, BTreeMap<Place, u64>>);

/// Reads all counters of `ruleset`, which is loaded in the socket's namespace.
pub(crate) fn read(socket: &Socket, ruleset: &Ruleset) -> io::Result<Vec<Reading>> {
    let mut readings = Vec::new();
    for table in &ruleset.tables {
        for set in table.sets.iter().filter(|set| set.counted && !set.elements.is_empty()) {
            let counted = nft::counters(socket, table, set)?;
            readings.extend(counted.into_iter().map(|(key, packets)| ((table.family, set.name, key), packets)));
        }
    }
    Ok(readings)
}

impl Counts {
    /// Adds what came since the last reading, and tells the log who sends in others' names.
    pub(crate) fn add<'a>(
        &mut self,
        ns: &NsName,
        readings: Vec<Reading>,
        desired: &Desired,
        tasks: impl Iterator<Item = &'a TaskId> + Clone,
    ) {
        let before = self.0.remove(ns).unwrap_or_default();
        let mut totals = TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeMap::new();
        for (place, packets) in readings {
            let (_, set, key) = &place;
            let known = before.get(&place).copied().unwrap_or_default();
            // Less than before: the counter was made anew meanwhile.
            let more = packets.checked_sub(known).unwrap_or(packets);
            if more > 0
                && let Some(counted) = meaning(desired, ns, set, key)
            {
                *totals.entry(counted).or_default() += more;
            }
            if let (OFFENDERS, Key::Link(link), 1..) = (*set, key, more) {
                let task = behind(link, tasks.clone()).map_or_else(|| link.clone(), ToString::to_string);
                tracing::warn!(%task, at = %ns, packets = more, "dropped what a task sent in another's name");
            }
            now.insert(place, packets);
        }
        self.0.insert(ns.clone(), now);
    }

    /// Adds the questions of a task's DNS server.
    pub(crate) fn add_questions(service: &ServiceId, questions: u64, desired: &Desired) {
        let mut of = desired.services.values().filter_map(|services| services.get(service));
        let name = of.find_map(|item| item.names.first()).map_or_else(|| service.to_string(), Clone::clone);
        let mut totals = TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
        *totals.entry(Counted::Asked { service: name }).or_default() += questions;
    }

    pub(crate) fn forget(&mut self, ns: &NsName) {
        self.0.remove(ns);
    }
}
