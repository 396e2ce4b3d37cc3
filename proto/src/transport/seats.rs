//! How many connections somebody may hold at once, and who has to go when there are too many.
//!
//! A table of seats, each with an owner. When an owner has too many, its oldest seat is taken away; when the table is
//! full, the oldest seat of whoever has the most. So whoever takes much loses first, and a newcomer gets in.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) total: usize,
    pub(super) per_owner: usize,
}

/// The table. Clones share it.
#[derive(Debug)]
pub(super) struct Seats<K> {
    limit: Limit,
    taken: Arc<Mutex<Taken<K>>>,
}

impl<K> Clone for Seats<K> {
    fn clone(&self) -> Self {
        Self { limit: self.limit, taken: Arc::clone(&self.taken) }
    }
}

#[derive(Debug)]
struct Taken<K> {
    next: u64,
    by_owner: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
    count: usize,
}

impl<K: Hash + Eq + Clone> Seats<K> {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, taken: Arc::new(Mutex::new(Taken { next: 0, by_owner: HashMap::new(), count: 0 })) }
    }

    /// A seat for `owner`; somebody may lose theirs.
    pub(super) fn take(&self, owner: K) -> Seat<K> {
        let mut taken = self.lock();
        while taken.by_owner.get(&owner).is_some_and(|seats| seats.len() >= self.limit.per_owner) {
            taken.evict(&owner);
        }
        while taken.count >= self.limit.total {
            let Some(greediest) = taken.greediest() else { break };
            taken.evict(&greediest);
        }
        let (cut, lost) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.count += 1;
        taken.by_owner.entry(owner.clone()).or_default().insert(number, cut);
        drop(taken);
        Seat { table: self.clone(), owner, number, lost }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> Taken<K> {
    /// Whoever has the most; of several, whoever has the oldest seat.
    fn greediest(&self) -> Option<K> {
        let rank = |seats: &BTreeMap<u64, _>| (seats.len(), std::cmp::Reverse(seats.keys().next().copied()));
        self.by_owner.iter().max_by_key(|(_, seats)| rank(seats)).map(|(owner, _)| owner.clone())
    }

    /// Takes the owner's oldest seat away.
    fn evict(&mut self, owner: &K) {
        let oldest = self.by_owner.get(owner).and_then(|seats| seats.keys().next().copied());
        if let Some(cut) = oldest.and_then(|number| self.remove(owner, number)) {
            // Whoever had it may have gone by itself.
            let _ = cut.send(());
        }
    }

    fn remove(&mut self, owner: &K, number: u64) -> Option<oneshot::Sender<()>> {
        let seats = self.by_owner.get_mut(owner)?;
        let cut = seats.remove(&number)?;
        if seats.is_empty() {
            self.by_owner.remove(owner);
        }
        self.count -= 1;
        Some(cut)
    }
}

/// One place at the table, given back when dropped.
#[derive(Debug)]
pub(super) struct Seat<K: Hash + Eq + Clone> {
    table: Seats<K>,
    owner: K,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl<K: Hash + Eq + Clone> Seat<K> {
    /// Resolves when somebody else needs it more.
    pub(super) fn lost(&mut self) -> &mut oneshot::Receiver<()> {
        &mut self.lost
    }
}

impl<K: Hash + Eq + Clone> Drop for Seat<K> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.owner, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost(seat: &mut Seat<u8>) -> bool {
        seat.lost().try_recv().is_ok()
    }

    #[test]
    fn whoever_takes_the_most_loses_first() {
        let seats = Seats::new(Limit { total: 5, per_owner: 3 });
        let mut honest = seats.take(1);
        let mut greedy: Vec<_> = (0..3).map(|_| seats.take(2)).collect();
        let mut other = seats.take(3);
        assert_eq!(seats.count(), 5);
        // One more of the greedy one costs its own oldest; a newcomer costs the greedy one, too.
        greedy.push(seats.take(2));
        assert!(is_lost(&mut greedy[0]) && !is_lost(&mut greedy[1]));
        let mut newcomer = seats.take(4);
        assert!(is_lost(&mut greedy[1]) && !is_lost(&mut greedy[2]));
        assert_eq!(seats.count(), 5);
        assert!(![&mut honest, &mut other, &mut newcomer].into_iter().any(is_lost));
        drop(greedy);
        drop((honest, other, newcomer));
        assert_eq!(seats.count(), 0);
        assert!(seats.lock().by_owner.is_empty(), "owners without a seat are forgotten");
    }
}
