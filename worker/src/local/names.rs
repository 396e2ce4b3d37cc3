//! What one-off containers are called: given names, and made-up ones.

const ADJECTIVES: [&str; 24] = [
    "amber", "brisk", "calm", "clever", "daring", "eager", "fair", "gentle", "honest", "jolly", "keen", "lively",
    "merry", "nimble", "patient", "quick", "quiet", "rapid", "silver", "steady", "sunny", "tidy", "vivid", "witty",
];
const NOUNS: [&str; 24] = [
    "badger", "beacon", "birch", "canyon", "comet", "falcon", "fjord", "harbor", "heron", "lantern", "lynx", "maple",
    "meadow", "otter", "pebble", "pine", "raven", "reef", "river", "sparrow", "spruce", "summit", "tundra", "willow",
];

/// Letters, digits, `_`, `.` and `-`; the first a letter or digit, at least two of them.
pub(super) fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() >= 2
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// A name from random bits; with a number when the first tries were taken.
pub(super) fn made_up(bits: u64, attempt: u32) -> String {
    let pick = |words: &[&'static str], bits: u64| words[usize::try_from(bits % words.len() as u64).unwrap_or(0)];
    let (adjective, noun) = (pick(&ADJECTIVES, bits), pick(&NOUNS, bits / ADJECTIVES.len() as u64));
    if attempt == 0 { format!("{adjective}_{noun}") } else { format!("{adjective}_{noun}{attempt}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for good in ["registry", "a1", "A_b.c-d", "1web"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a", "-web", ".web", "we b", "web/1", "wéb"] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!((0..2000).all(|bits| is_valid(&made_up(bits, 0)) && is_valid(&made_up(bits, 7))));
    }
}
