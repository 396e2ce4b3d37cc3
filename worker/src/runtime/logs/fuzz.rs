//! Logs as containers write them, whatever they write, and logs that something has damaged: reading finds what is there
//! and ends.

use std::{fs, path::PathBuf};

use jiff::Timestamp;

use super::{reader::MAX_OBJECT_BYTES, *};
use crate::{
    fuzz::{Random, damage, each_seed},
    shim::log::{Lines as Writing, LogWriter, Source, numbered},
};

/// How many logs a run tries; `ORCH_FUZZ_INPUTS` says another number.
const INPUTS: u64 = 400;

const PIECES: &[&str] = &[
    "a line\n",
    "no end",
    "\n",
    "\r\n",
    "\u{1f980} and \u{e9}\n",
    "\0\u{7f}\u{1b}[31m\n",
    "{\"log\":\"x\\n\",\"stream\":\"stdout\",\"time\":\"now\"}\n",
    "\\\"\n",
    "\u{2028}",
];

/// What a program writes at once.
fn piece(random: &mut Random) -> String {
    match random.below(12) {
        0 => "long ".repeat(random.below(10_000)),
        1 => "\u{1f980}".repeat(random.below(6000)),
        _ => (*random.pick(PIECES)).to_owned(),
    }
}

/// Writes a log with turns of its files; what standard output and error got.
fn write(random: &mut Random, files: &LogFiles) -> [String; 2] {
    let mut log = LogWriter::open(files.into()).unwrap();
    let mut sources = [Source::Stdout, Source::Stderr].map(|source| (Writing::new(source, &log), String::new()));
    let mut out = Vec::new();
    let at = |n: usize| Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
    let count = random.below(60);
    for n in 0..count {
        let (lines, written) = &mut sources[random.below(2)];
        let text = piece(random);
        lines.push(text.as_bytes(), at(n), &mut out);
        written.push_str(&text);
        if random.below(3) == 0 {
            log.write(&std::mem::take(&mut out)).unwrap();
        }
    }
    for (lines, _) in &mut sources {
        lines.finish(at(count), &mut out);
    }
    log.write(&out).unwrap();
    sources.map(|(_, written)| written)
}

/// Everything that is read, and no more steps than there are bytes.
fn read(files: &LogFiles) -> Vec<LogLine> {
    let bytes: u64 = logs(files).iter().map(|path| fs::metadata(path).map_or(0, |found| found.len())).sum();
    let mut reader = Reader::open(files).unwrap();
    let mut lines = Vec::new();
    for _ in 0..=bytes + 1 {
        match reader.next().unwrap() {
            Step::Line(line) => lines.push(line),
            Step::Skipped => {}
            Step::End => return lines,
        }
    }
    panic!("reading does not end");
}

fn logs(files: &LogFiles) -> Vec<PathBuf> {
    let older = (1..files.max_files).map(|n| numbered(&files.path, n));
    [files.path.clone()].into_iter().chain(older).collect()
}

fn log_in(dir: &Path, random: &mut Random) -> LogFiles {
    let details = match random.below(3) {
        0 => BTreeMap::from([("a\"b".to_owned(), "c\nd".to_owned())]),
        _ => BTreeMap::new(),
    };
    let max_size_bytes = [0, 200, 5000, 100_000][random.below(4)];
    let max_files = u32::try_from(1 + random.below(4)).unwrap();
    LogFiles { max_size_bytes, max_files, details, ..LogFiles::at(dir.join("log")) }
}

#[test]
fn what_was_written_is_read() {
    let mut turned = 0_u64;
    let inputs = each_seed(INPUTS, |seed| {
        let mut random = Random::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let files = log_in(dir.path(), &mut random);
        let written = write(&mut random, &files);
        let lines = read(&files);
        turned += u64::from(files.max_size_bytes > 0 && numbered(&files.path, 1).exists());
        for (source, written) in [LogSource::Stdout, LogSource::Stderr].into_iter().zip(&written) {
            let own = lines.iter().filter(|line| line.stream == source);
            let text: String = own.map(|line| line.line.as_str()).collect();
            // Of a log that has turned, the beginning may be gone.
            assert!(written.ends_with(&text), "seed {seed}: {source:?}");
            assert!(files.max_size_bytes > 0 || written == &text, "seed {seed}: {source:?} is not whole");
        }
        assert!(lines.iter().all(|line| line.details == files.details), "seed {seed}");
    });
    assert!(turned > inputs / 20, "{turned} logs have turned");
}

#[test]
fn damaged_logs_lose_lines_and_no_more() {
    let mut lines_read = 0;
    let inputs = each_seed(INPUTS, |seed| {
        let mut random = Random::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let files = log_in(dir.path(), &mut random);
        let _ = write(&mut random, &files);
        for path in logs(&files) {
            let Ok(mut bytes) = fs::read(&path) else { continue };
            damage(&mut random, &mut bytes);
            fs::write(&path, &bytes).unwrap();
        }
        lines_read += read(&files).len();
    });
    assert!(lines_read > usize::try_from(inputs).unwrap(), "{lines_read} lines were read");
}

#[test]
fn a_line_without_end_does_not_take_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let files = LogFiles::at(dir.path().join("log"));
    let object =
        |text: &str| format!("{{\"log\":\"{text}\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-01T00:00:00Z\"}}\n");
    let junk = vec![0; 3 * MAX_OBJECT_BYTES + 5];
    fs::write(&files.path, [object("before").as_bytes(), &junk, b"\n", object("after").as_bytes()].concat()).unwrap();
    let mut reader = Reader::open(&files).unwrap();
    let mut texts = Vec::new();
    loop {
        match reader.next().unwrap() {
            Step::Line(line) => texts.push(line.line),
            Step::Skipped => {}
            Step::End => break,
        }
        assert!(reader.partial.capacity() <= 2 * MAX_OBJECT_BYTES);
    }
    assert_eq!(texts, ["before\n", "after\n"]);
}
