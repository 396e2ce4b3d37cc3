//! Managers whose files or whose place in the log are gone.

use std::{fs, path::PathBuf, time::Duration};

use crate::lab::{self, Lab, service};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_manager_that_was_off_while_the_log_was_purged_catches_up_by_a_snapshot() {
    let lab = Lab::new(3);
    lab.block_on(async {
        let [first, second, third] = lab.start_three().await;
        lab::eventually("three vote", LIMIT, async || first.consensus().voters().0.len() == 3).await;
        third.crash().await;
        for number in 0..20 {
            first.control().await.create(service(&format!("s{number}"), 1)).await.unwrap();
        }
        // What the one that is off would need is nowhere any more.
        first.consensus().compact().await.unwrap();
        let third = lab.start(2).await;
        lab::eventually("it has everything", LIMIT, async || third.local_services() == 20).await;
        // It counts: with the second one gone, it is needed for a write.
        second.crash().await;
        lab::eventually("two decide", LIMIT, async || {
            first.control().await.create(service("later", 1)).await.is_ok() || first.local_services() == 21
        })
        .await;
        lab::eventually("it follows", LIMIT, async || third.local_services() == 21).await;
        third.crash().await;
        first.crash().await;
    });
}

#[test]
fn a_manager_whose_raft_has_stopped_says_so() {
    let lab = Lab::new(1);
    lab.block_on(async {
        // Tasks of the manager end with raft and may be seen before it: it takes a few to see both.
        for _ in 0..6 {
            let outcome = lab.start(0).await.lose_raft().await;
            let error = outcome.unwrap_err().to_string();
            assert!(error.starts_with("raft stopped: "), "{error}");
        }
    });
}

#[test]
fn a_damaged_snapshot_is_named_and_nothing_is_made_up() {
    let lab = Lab::new(1);
    lab.block_on(async {
        let manager = lab.start(0).await;
        for number in 0..20 {
            // Without tasks: those are made when the leader gets to it, also after what is compared was read.
            manager.control().await.create(service(&format!("s{number}"), 0)).await.unwrap();
        }
        manager.consensus().compact().await.unwrap();
        let before = manager.objects().await;
        manager.crash().await;
        let snapshot = snapshot_of(&lab);
        let whole = fs::read(&snapshot).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for (what, damaged) in
            [("a flipped bit", &flipped[..]), ("cut short", &whole[..whole.len() - 10]), ("empty", &[])]
        {
            fs::write(&snapshot, damaged).unwrap();
            let error = lab.open(0).await.err().map(|error| format!("{error:#}"));
            let error = error.unwrap_or_else(|| panic!("{what}: opened all the same"));
            assert!(error.contains(&snapshot.display().to_string()), "{what}: {error}");
        }
        fs::write(&snapshot, &whole).unwrap();
        lab::released(&lab.paths(0)).await;
        let manager = lab.start(0).await;
        assert_eq!(manager.objects().await, before);
        manager.crash().await;
    });
}

fn snapshot_of(lab: &Lab) -> PathBuf {
    let folder = lab.paths(0).manager_dir().join("raft/snapshots");
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "snapshot")).unwrap()
}
