//! What tests with odd inputs share: numbers from a seed, how many inputs a run tries, and damage.
//!
//! A run tries few inputs; `ORCH_FUZZ_INPUTS` says any other number. A failure names its seed.

use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Map, Value, json};

/// No small input may take longer, however slow the machine.
const SLOWEST: Duration = Duration::from_secs(5);

/// Strings that programs stumble over.
const TEXTS: &[&str] = &[
    "",
    "..",
    "../../etc/passwd",
    "/",
    "\0",
    "\u{fffd}\u{202e}",
    "sha256:",
    "sha256:../../../etc/passwd",
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "sha512:00",
    "-1",
    "18446744073709551616",
    "9999-12-31T23:59:59.999999999Z",
    "-009999-01-01T00:00:00Z",
    "root:root:root",
    "=",
    "PATH=",
    "99999/tcp",
    "8080/nope",
];

/// The same numbers for the same seed.
pub(crate) struct Random(StdRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.random()
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    /// Mostly one of the first `usual`.
    pub(crate) fn mostly(&mut self, usual: usize, all: usize) -> usize {
        if self.below(6) > 0 { self.below(usual) } else { self.below(all) }
    }
}

/// Tries seed after seed; each must end, and soon.
pub(crate) fn each_seed(usual: u64, mut check: impl FnMut(u64)) -> u64 {
    let inputs = std::env::var("ORCH_FUZZ_INPUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    for seed in 0..inputs {
        let started = Instant::now();
        check(seed);
        assert!(started.elapsed() < SLOWEST, "seed {seed} took {:?}", started.elapsed());
    }
    inputs
}

/// Flips, cuts, doubles and moves some bytes.
pub(crate) fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, random.next().to_le_bytes()[0]),
            3 => drop(bytes.drain(at..(at + random.below(20)).min(bytes.len()))),
            _ => {
                let piece = bytes[at..(at + random.below(40)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
}

/// Puts something odd in one place of a document, or in several.
pub(crate) fn bend(random: &mut Random, document: &mut Value) {
    for _ in 0..=random.below(3) {
        let count = places(document);
        let mut at = random.below(count);
        let with = odd(random);
        bend_at(random, document, &mut at, with);
    }
}

fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(places).sum(),
        Value::Object(fields) => fields.values().map(places).sum(),
        _ => 0,
    }
}

/// Whether the place was found.
fn bend_at(random: &mut Random, value: &mut Value, at: &mut usize, with: Value) -> bool {
    if *at == 0 {
        match (random.below(4), value) {
            (0, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
            (1, Value::Array(items)) if !items.is_empty() => items.push(items[random.below(items.len())].clone()),
            (0, Value::Object(fields)) if !fields.is_empty() => {
                let gone = fields.keys().nth(random.below(fields.len())).cloned().unwrap_or_default();
                drop(fields.remove(&gone));
            }
            (_, value) => *value = with,
        }
        return true;
    }
    *at -= 1;
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => return false,
    };
    for child in children {
        let inside = places(child);
        if *at < inside {
            return bend_at(random, child, at, with);
        }
        *at -= inside;
    }
    false
}

fn odd(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(-1),
        3 => json!(random.next()),
        4 => json!(i64::MIN),
        5 => json!(1e300),
        6 => json!([]),
        7 => Value::Object(Map::new()),
        8 => json!("x".repeat(random.below(100_000))),
        9 => (0..random.below(200)).fold(json!("deep"), |inner, _| json!([inner])),
        _ => json!(random.pick(TEXTS)),
    }
}
