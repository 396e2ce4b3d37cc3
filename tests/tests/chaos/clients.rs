//! Clients that write and read through all managers, and know what must be true of every answer.
//!
//! A client counts: its label on one shared node only goes up, so whatever was acknowledged, or seen by anyone, before a
//! read began must be in what the read answers. Configs are made and removed, and must be there, or not, for good.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use orch_tests::{Dice, Lab};

use crate::faults::NODES;

pub(crate) const CLIENTS: usize = 3;
/// The object that all of them change.
const SHARED: &str = "n1";
const PAUSE: Duration = Duration::from_millis(60);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(200);
/// A command that hangs longer is a finding of its own.
const LIMIT_SECS: &str = "25";
const TIMED_OUT: i32 = 124;

/// What one read of the shared object answered; every number only goes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) version: u64,
    pub(crate) counts: [u64; CLIENTS],
}

/// What the clients know.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// At least this is true for every read that begins now.
    floor: Seen,
    attempted: [u64; CLIENTS],
    /// Configs of which making was acknowledged and removing never tried.
    there: BTreeSet<String>,
    /// Configs of which removing was acknowledged.
    gone: BTreeSet<String>,
    violations: Vec<String>,
}

/// Shared by the clients and whoever checks.
#[derive(Debug, Default)]
pub(crate) struct History {
    known: Mutex<Known>,
    stop: AtomicBool,
    acknowledged: [AtomicU64; CLIENTS],
    failed: AtomicU64,
    reads: AtomicU64,
}

impl History {
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Acknowledged writes of each client.
    pub(crate) fn acknowledged(&self) -> [u64; CLIENTS] {
        std::array::from_fn(|client| self.acknowledged[client].load(Ordering::SeqCst))
    }

    pub(crate) fn summary(&self) -> String {
        let [acknowledged, failed, reads] = [
            self.acknowledged().iter().sum::<u64>(),
            self.failed.load(Ordering::SeqCst),
            self.reads.load(Ordering::SeqCst),
        ];
        format!("{acknowledged} writes acknowledged, {failed} calls failed, {reads} reads")
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.known().violations.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the list of configs through `node` and compares it with what was known before.
    pub(crate) fn check_configs(&self, lab: &Lab, node: &str) -> Result<String, String> {
        let (there, gone) = {
            let known = self.known();
            (known.there.clone(), known.gone.clone())
        };
        let listed = call(lab, node, &["config", "ls", "--format", "{{.ID}} {{.Name}}"], None)?;
        let names: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let mut known = self.known();
        // What a client began to remove meanwhile may be gone.
        let lost = there.iter().filter(|name| !names.contains(name.as_str()) && known.there.contains(*name));
        let risen = gone.iter().filter(|name| names.contains(name.as_str()));
        let found: Vec<String> = lost
            .map(|name| format!("config {name} was acknowledged, but {node} does not list it"))
            .chain(risen.map(|name| format!("config {name} was removed, but {node} lists it")))
            .collect();
        known.violations.extend(found);
        Ok(listed)
    }

    /// Reads the shared object through `node`.
    pub(crate) fn read(&self, lab: &Lab, node: &str) -> Result<Seen, String> {
        let floor = self.known().floor;
        let format =
            r#"{{.Version.Index}} {{index .Spec.Labels "c0"}} {{index .Spec.Labels "c1"}} {{index .Spec.Labels "c2"}}"#;
        let text = call(lab, node, &["node", "inspect", SHARED, "--format", format], None)?;
        let seen = parse(&text).ok_or(format!("{node} answered {text:?}"))?;
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mut known = self.known();
        let is_back =
            seen.version < floor.version || seen.counts.iter().zip(floor.counts).any(|(now, then)| *now < then);
        if is_back {
            known.violations.push(format!("a read through {node} went back: {seen:?} after {floor:?}"));
        }
        if seen.counts.iter().zip(known.attempted).any(|(now, tried)| *now > tried) {
            let tried = known.attempted;
            known.violations.push(format!("a read through {node} saw what nobody wrote: {seen:?} of {tried:?}"));
        }
        known.floor.version = known.floor.version.max(seen.version);
        for client in 0..CLIENTS {
            known.floor.counts[client] = known.floor.counts[client].max(seen.counts[client]);
        }
        Ok(seen)
    }
}

/// The first values, so that every read finds all labels.
pub(crate) fn prepare(lab: &Lab) {
    let labels = ["c0=0", "c1=0", "c2=0"].map(|label| ["--label-add", label]).concat();
    let _ = lab.orch(&[&["node", "update"][..], &labels, &[SHARED]].concat()).ok();
}

/// One client's life.
pub(crate) fn run(lab: &Lab, history: &History, client: usize, mut dice: Dice) {
    let (mut count, mut made) = (0_u64, 0_u64);
    let mut own: Vec<String> = Vec::new();
    while !history.stop.load(Ordering::SeqCst) {
        let node = *dice.pick(&NODES);
        let done = match dice.between(0, 9) {
            0..=3 => {
                count += 1;
                write_count(lab, history, client, node, count)
            }
            4 | 5 => {
                made += 1;
                make_config(lab, history, client, node, made, &mut own)
            }
            6 if !own.is_empty() => {
                let place = usize::try_from(dice.between(0, own.len() as u64 - 1)).expect("an index");
                remove_config(lab, history, client, node, own.swap_remove(place))
            }
            _ => history.read(lab, node).map(drop),
        };
        if let Err(error) = &done {
            history.failed.fetch_add(1, Ordering::SeqCst);
            if error.contains("hangs") {
                history.known().violations.push(error.clone());
            }
        }
        sleep(if done.is_ok() { PAUSE } else { PAUSE_AFTER_FAILURE });
    }
}

fn write_count(lab: &Lab, history: &History, client: usize, node: &str, count: u64) -> Result<(), String> {
    history.known().attempted[client] = count;
    call(lab, node, &["node", "update", "--label-add", &format!("c{client}={count}"), SHARED], None)?;
    let mut known = history.known();
    known.floor.counts[client] = known.floor.counts[client].max(count);
    drop(known);
    history.acknowledged[client].fetch_add(1, Ordering::SeqCst);
    Ok(())
}

fn make_config(
    lab: &Lab,
    history: &History,
    client: usize,
    node: &str,
    number: u64,
    own: &mut Vec<String>,
) -> Result<(), String> {
    let name = format!("c{client}-{number}");
    call(lab, node, &["config", "create", &name, "-"], Some(name.as_bytes()))?;
    history.known().there.insert(name.clone());
    own.push(name);
    history.acknowledged[client].fetch_add(1, Ordering::SeqCst);
    Ok(())
}

fn remove_config(lab: &Lab, history: &History, client: usize, node: &str, name: String) -> Result<(), String> {
    history.known().there.remove(&name);
    call(lab, node, &["config", "rm", &name], None)?;
    history.known().gone.insert(name);
    history.acknowledged[client].fetch_add(1, Ordering::SeqCst);
    Ok(())
}

fn call(lab: &Lab, node: &str, args: &[&str], stdin: Option<&[u8]>) -> Result<String, String> {
    let command = [&["timeout", "-k", "1", LIMIT_SECS, "orch"], args].concat();
    let outcome = match stdin {
        Some(bytes) => lab.exec_with_input(node, &command, bytes),
        None => lab.exec(node, &command),
    };
    if outcome.code == TIMED_OUT {
        return Err(format!("`orch {}` hangs on {node} for over {LIMIT_SECS} s", args.join(" ")));
    }
    outcome.result()
}

fn parse(text: &str) -> Option<Seen> {
    let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [version, counts @ ..] = &numbers[..] else { return None };
    Some(Seen { version: *version, counts: counts.try_into().ok()? })
}
