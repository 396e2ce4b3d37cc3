//! Files that nobody would write: whatever they are, they are read or refused, soon, and without a panic.

use std::time::{Duration, Instant};

use super::*;

/// How many inputs a run tries; `ORCH_FUZZ_INPUTS` says another number.
const INPUTS: u64 = 4_000;
/// No small file may take longer, however slow the machine.
const SLOWEST: Duration = Duration::from_secs(2);

/// Words that mean something to YAML, to variables or to a key.
const WORDS: &[&str] = &[
    "~",
    "null",
    "true",
    "no",
    "0",
    "-1",
    "0755",
    "1e3",
    ".inf",
    "99999999999999999999",
    "''",
    "\"\"",
    "[]",
    "{}",
    "[a, b]",
    "{a: b}",
    "*a",
    "&a x",
    "<<: *a",
    "!reset null",
    "!override []",
    "!!str 5",
    "|",
    ">-",
    "# c",
    "---",
    "...",
    "\t",
    "é😀",
    "\u{feff}",
    "${",
    "${A",
    "$A",
    "$$",
    "${A:-${B:-c}}",
    "${A:?e}",
    "${A:+b}",
    "${}",
    "$1",
    "80",
    "8080:80",
    "80-90:80",
    "1:2:3:4",
    "a:/b",
    "C:\\a:/b",
    "~/x:/y",
    "::",
    "10s",
    "1h1h",
    "-5s",
    "50M",
    "1e9t",
    "0.5",
    "service_healthy",
    "x-a",
    "external",
    "default",
    "host",
    "none",
    "a=b",
    "=",
    "a: b: c",
    "\"\\x00\"",
    "? a",
    "- - a",
    "%YAML 1.1",
    "@",
    "`",
    "'",
];

const KEYS: &[&str] = &[
    "image",
    "command",
    "ports",
    "volumes",
    "networks",
    "secrets",
    "configs",
    "deploy",
    "environment",
    "env_file",
    "labels",
    "healthcheck",
    "depends_on",
    "ulimits",
    "extends",
    "include",
    "profiles",
    "build",
    "extra_hosts",
    "tmpfs",
    "logging",
    "version",
    "services",
    "name",
    "x-a",
    "restart",
    "scale",
    "dns",
    "sysctls",
    "devices",
    "external",
];

/// xorshift: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap_or(0)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

fn inputs() -> u64 {
    std::env::var("ORCH_FUZZ_INPUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(INPUTS)
}

/// A part of a fixture with some lines changed.
fn mutated(random: &mut Random, fixtures: &[Vec<&str>]) -> String {
    const LONGEST: usize = 30;
    let fixture = &fixtures[random.below(fixtures.len())];
    let start = if random.below(3) == 0 { random.below(fixture.len()) } else { 0 };
    let end = (start + 1 + random.below(LONGEST)).min(fixture.len());
    let mut lines: Vec<String> = fixture[start..end].iter().map(|line| (*line).to_owned()).collect();
    for _ in 0..=random.below(5) {
        if lines.is_empty() {
            break;
        }
        let at = random.below(lines.len());
        let word = random.pick(WORDS);
        match random.below(9) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let other = random.below(lines.len());
                lines.swap(at, other);
            }
            3 => lines[at] = format!("{}{}", " ".repeat(random.below(8)), lines[at].trim_start()),
            4 => {
                let (key, _) = lines[at].split_once(':').unwrap_or((&lines[at], ""));
                lines[at] = format!("{key}: {word}");
            }
            5 => {
                let indent = lines[at].len() - lines[at].trim_start().len();
                let key = random.pick(KEYS);
                lines.insert(at, format!("{}{key}: {word}", " ".repeat(indent)));
            }
            6 => {
                let middle = random.below(lines[at].len() + 1);
                if lines[at].is_char_boundary(middle) {
                    lines[at].insert_str(middle, word);
                }
            }
            7 => {
                let other = &fixtures[random.below(fixtures.len())];
                lines.insert(at, other[random.below(other.len())].to_owned());
            }
            _ => {
                let indent = lines[at].len() - lines[at].trim_start().len();
                lines[at] = format!("{}- {word}", " ".repeat(indent));
            }
        }
    }
    lines.join(if random.below(20) == 0 { "\r\n" } else { "\n" })
}

fn read_all(texts: &[String], strict: bool) {
    let variable = |name: &str| name.len().is_multiple_of(2).then(|| "$x".to_owned());
    let read = |path: &str| if path.ends_with('b') { Ok("A=1\nservices: {}\n".to_owned()) } else { Err("gone".into()) };
    let around = Surroundings { stack: "s", dir: "/d", variable: &variable, read: &read };
    let files: Vec<_> = texts.iter().map(|text| ("f.yml".to_owned(), text.clone())).collect();
    let Ok(document) = Document::parse(&files, strict) else { return };
    let _ = document.name(&variable);
    let _ = document.normalised(&around);
    let Ok(document) = Document::parse(&files, strict) else { return };
    // One whose services are all of profiles that nobody asked for has nothing to write down.
    if let Ok(stack) = document.resolve(&around)
        && !stack.services.is_empty()
    {
        let exported = serde_json::to_string(&export::escaped(&export::document("s", &stack))).unwrap();
        let again = Document::parse(&[("e.yml".to_owned(), exported.clone())], false).and_then(|d| d.resolve(&around));
        assert!(again.is_ok(), "{:?}: an export cannot be read:\n{exported}\nof {texts:?}", again.err());
    }
}

/// Files that hold everything there is, line by line.
fn fixtures() -> Vec<Vec<&'static str>> {
    let sources = [tests::SHOP, tests::FULL, include_str!("fixtures/every-form.yml")];
    sources.iter().map(|source| source.lines().collect()).collect()
}

#[test]
fn odd_files_are_read_or_refused() {
    let fixtures = fixtures();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..inputs() {
        let count = if random.below(8) == 0 { 2 } else { 1 };
        let texts: Vec<String> = (0..count).map(|_| mutated(&mut random, &fixtures)).collect();
        let begun = Instant::now();
        read_all(&texts, random.below(3) == 0);
        assert!(begun.elapsed() < SLOWEST, "{:?} for {texts:?}", begun.elapsed());
    }
}

#[test]
fn odd_variables_are_filled_in_or_refused() {
    const PARTS: &[&str] =
        &["$", "{", "}", "A", ":", "-", "?", "+", "$$", "${A", "${A:-", "b", "é", "${A:+", "}}", " "];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..inputs() * 10 {
        let text: String = (0..random.below(12)).map(|_| random.pick(PARTS)).collect();
        let lookup = |name: &str| (name == "A").then(|| "$a".to_owned());
        let variables = interpolate::Variables { lookup: &lookup, strict: random.below(2) == 0 };
        let _ = interpolate::expand(&text, variables, &mut Default::default());
    }
}
