//! Who is about to make a container of an image, and who is about to delete one: never both at once.
//!
//! Once the container is on record, that keeps its image; a claim does so from when the image is found until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How often each is claimed.
    claimed: BTreeMap<String, usize>,
    going: BTreeSet<String>,
}

/// Keeps an image until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Claims,
    digest: String,
}

/// Lets nobody claim an image until it is dropped.
#[derive(Debug)]
pub(crate) struct Going {
    claims: Claims,
    digest: String,
}

impl Claims {
    /// `None`: it is about to go.
    pub(super) fn claim(&self, digest: &str) -> Option<Claim> {
        let mut state = self.lock();
        if state.going.contains(digest) {
            return None;
        }
        *state.claimed.entry(digest.to_owned()).or_default() += 1;
        Some(Claim { claims: self.clone(), digest: digest.to_owned() })
    }

    /// For whoever looks then whether a container uses it, and deletes it. `None`: it is claimed, or going already.
    pub(crate) fn going(&self, digest: &str) -> Option<Going> {
        let mut state = self.lock();
        let is_free = !state.claimed.contains_key(digest) && state.going.insert(digest.to_owned());
        is_free.then(|| Going { claims: self.clone(), digest: digest.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each holder makes one change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.claims.lock();
        if let Some(times) = state.claimed.get_mut(&self.digest) {
            *times -= 1;
            if *times == 0 {
                state.claimed.remove(&self.digest);
            }
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.claims.lock().going.remove(&self.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_claimed_or_goes() {
        let claims = Claims::default();
        let (first, second) = (claims.claim("a").unwrap(), claims.claim("a").unwrap());
        assert!(claims.going("a").is_none());
        let other = claims.going("b").unwrap();
        assert!(claims.claim("b").is_none() && claims.going("b").is_none());
        drop(first);
        assert!(claims.going("a").is_none(), "one claim is left");
        drop(second);
        let going = claims.going("a").unwrap();
        assert!(claims.claim("a").is_none());
        drop((going, other));
        assert!(claims.claim("a").is_some() && claims.claim("b").is_some());
        assert!(claims.lock().claimed.is_empty() && claims.lock().going.is_empty());
    }
}
