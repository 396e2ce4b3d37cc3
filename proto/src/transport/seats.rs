//! How many connections somebody may hold at once, and who has to go when there are too many.
//!
//! A table of seats, each with an owner. When an owner has too many, its oldest seat is taken away; when the table is
//! full, the oldest seat of whoever has the most. So whoever takes much loses first, and a newcomer gets in. Each seat
//! says what it was given for, so that those can be found whose reason has gone.

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
pub(super) struct Seats<K, V = ()> {
    limit: Limit,
    taken: Arc<Mutex<Taken<K, V>>>,
}

impl<K, V> Clone for Seats<K, V> {
    fn clone(&self) -> Self {
        Self { limit: self.limit, taken: Arc::clone(&self.taken) }
    }
}

#[derive(Debug)]
struct Taken<K, V> {
    next: u64,
    by_owner: HashMap<K, BTreeMap<u64, Held<V>>>,
    count: usize,
}

#[derive(Debug)]
struct Held<V> {
    cut: oneshot::Sender<()>,
    reason: V,
}

impl<K: Hash + Eq + Clone, V: Clone> Seats<K, V> {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, taken: Arc::new(Mutex::new(Taken { next: 0, by_owner: HashMap::new(), count: 0 })) }
    }

    /// A seat for `owner`; somebody may lose theirs.
    pub(super) fn take(&self, owner: K, reason: V) -> Seat<K, V> {
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
        taken.by_owner.entry(owner.clone()).or_default().insert(number, Held { cut, reason });
        drop(taken);
        Seat { table: self.clone(), owner, number, lost }
    }

    /// Takes away the seats whose reason does not hold. Whoever looks may take its time: nobody waits for it.
    pub(super) fn retain(&self, mut holds: impl FnMut(&V) -> bool) {
        let listed: Vec<_> = {
            let taken = self.lock();
            let of = |(owner, seats): (&K, &BTreeMap<u64, Held<V>>)| {
                seats.iter().map(|(number, held)| (owner.clone(), *number, held.reason.clone())).collect::<Vec<_>>()
            };
            taken.by_owner.iter().flat_map(of).collect()
        };
        for (owner, number, reason) in listed {
            if !holds(&reason) {
                self.lock().cut(&owner, number);
            }
        }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K, V>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, V> Taken<K, V> {
    /// Whoever has the most; of several, whoever has the oldest seat.
    fn greediest(&self) -> Option<K> {
        let rank = |seats: &BTreeMap<u64, _>| (seats.len(), std::cmp::Reverse(seats.keys().next().copied()));
        self.by_owner.iter().max_by_key(|(_, seats)| rank(seats)).map(|(owner, _)| owner.clone())
    }

    /// Takes the owner's oldest seat away.
    fn evict(&mut self, owner: &K) {
        let oldest = self.by_owner.get(owner).and_then(|seats| seats.keys().next().copied());
        if let Some(number) = oldest {
            self.cut(owner, number);
        }
    }

    fn cut(&mut self, owner: &K, number: u64) {
        if let Some(held) = self.remove(owner, number) {
            // Whoever had it may have gone by itself.
            let _ = held.cut.send(());
        }
    }

    fn remove(&mut self, owner: &K, number: u64) -> Option<Held<V>> {
        let seats = self.by_owner.get_mut(owner)?;
        let held = seats.remove(&number)?;
        if seats.is_empty() {
            self.by_owner.remove(owner);
        }
        self.count -= 1;
        Some(held)
    }
}

/// One place at the table, given back when dropped.
#[derive(Debug)]
pub(super) struct Seat<K: Hash + Eq + Clone, V: Clone = ()> {
    table: Seats<K, V>,
    owner: K,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl<K: Hash + Eq + Clone, V: Clone> Seat<K, V> {
    /// Resolves when somebody else needs it more.
    pub(super) fn lost(&mut self) -> &mut oneshot::Receiver<()> {
        &mut self.lost
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for Seat<K, V> {
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
        let mut honest = seats.take(1, ());
        let mut greedy: Vec<_> = (0..3).map(|_| seats.take(2, ())).collect();
        let mut other = seats.take(3, ());
        assert_eq!(seats.count(), 5);
        // One more of the greedy one costs its own oldest; a newcomer costs the greedy one, too.
        greedy.push(seats.take(2, ()));
        assert!(is_lost(&mut greedy[0]) && !is_lost(&mut greedy[1]));
        let mut newcomer = seats.take(4, ());
        assert!(is_lost(&mut greedy[1]) && !is_lost(&mut greedy[2]));
        assert_eq!(seats.count(), 5);
        assert!(![&mut honest, &mut other, &mut newcomer].into_iter().any(is_lost));
        drop(greedy);
        drop((honest, other, newcomer));
        assert_eq!(seats.count(), 0);
        assert!(seats.lock().by_owner.is_empty(), "owners without a seat are forgotten");
    }

    #[test]
    fn a_seat_goes_with_its_reason() {
        let seats = Seats::new(Limit { total: 5, per_owner: 3 });
        let mut all: Vec<_> = [(1, 'a'), (1, 'b'), (2, 'a')].map(|(owner, why)| seats.take(owner, why)).into();
        seats.retain(|why| *why == 'b');
        let lost: Vec<_> = all.iter_mut().map(|seat| seat.lost().try_recv().is_ok()).collect();
        assert_eq!((lost, seats.count()), (vec![true, false, true], 1));
    }
}
