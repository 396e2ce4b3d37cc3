//! Takes away images that nothing uses when the disk fills up: the longest unused first, until there is room.
//!
//! Never what a container, running or not, or an assigned task uses; and only what can be had again: what came from a
//! registry or from another node. An image that was imported, loaded or built here stays until somebody removes it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use super::{chain, partial::KEPT_FOR, store::StoredImage};
use crate::{
    agent::{Agent, Entry},
    api::forget_image,
    config::CollectConfig,
};

/// How often the disk is looked at.
const INTERVAL: Duration = Duration::from_secs(20);

/// An image as the decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    digest: String,
    used_at: SystemTime,
    created_at_ms: u64,
    in_use: bool,
    /// It can be had again.
    elsewhere: bool,
}

/// Looks at the disk until the worker ends.
pub(crate) async fn keep(agent: Arc<Agent>) {
    loop {
        sleep(INTERVAL).await;
        let images = &agent.host.images;
        let config = images.collect_config();
        let dir = images.store.dir().to_owned();
        for image in candidates(&agent).into_iter().filter(|image| image.in_use) {
            images.note_used(&image.digest);
        }
        let is_full = used_percent(&dir).is_some_and(|used| used > config.high_percent);
        // What broke off is the first to go: no one misses it.
        let age = if is_full { config.minimum_age } else { KEPT_FOR };
        if is_full && let Err(error) = images.store.forget_partials(age) {
            tracing::warn!(error = chain(&error), "downloads that broke off could not be removed");
        }
        let store = images.store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.sweep_left(age)).await {
            tracing::warn!(error = chain(&error), "what no image uses could not be removed");
        }
        if is_full {
            free(&agent, &config, &dir).await;
        }
    }
}

async fn free(agent: &Agent, config: &CollectConfig, dir: &Path) {
    while used_percent(dir).is_some_and(|used| used > config.low_percent) {
        // What a pull may need is not deleted: images would go one after another and none of them make room.
        if agent.host.images.store.is_arriving() {
            tracing::info!("the disk with the images is filling up; room is made when what is on its way has arrived");
            return;
        }
        let candidates = candidates(agent);
        let Some(digest) = next(&candidates, SystemTime::now(), config.minimum_age) else {
            tracing::warn!(
                high = config.high_percent,
                low = config.low_percent,
                "the disk with the images is filling up, and every image is used, too young or only here: `orch image \
                 prune -a` removes what no container uses"
            );
            return;
        };
        let Some(image) = agent.host.images.store.by_digest(digest) else { return };
        let Some(_going) = agent.host.images.claims.going(&image.digest) else { return };
        // Looked at again, now that no container can be made of it any more.
        if is_used(agent, &image.digest) {
            continue;
        }
        tracing::info!(digest, names = ?image.names, "an unused image goes: the disk is filling up");
        let store = agent.host.images.store.clone();
        let digest = image.digest.clone();
        let removed = tokio::task::spawn_blocking(move || store.remove(&digest, None)).await;
        forget_image(agent, &image).await;
        match removed {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "an unused image could not be removed");
                return;
            }
            Err(_) => return,
        }
    }
}

fn candidates(agent: &Agent) -> Vec<Candidate> {
    let images = &agent.host.images;
    // Those of tasks that are not prepared yet, too.
    let wanted = |entry: &Entry| {
        let container = &entry.task.spec.container;
        images.here(&container.image, container.image_digest.as_deref()).map(|image| image.digest)
    };
    let assigned: BTreeSet<String> = agent.host.entries().iter().filter_map(wanted).collect();
    let candidate = |image: StoredImage| Candidate {
        used_at: images.used_at(&image.digest),
        created_at_ms: image.record.created_at_ms,
        in_use: assigned.contains(&image.digest) || is_used(agent, &image.digest),
        elsewhere: is_elsewhere(&image),
        digest: image.digest,
    };
    images.store.list().into_iter().map(candidate).collect()
}

fn is_used(agent: &Agent, digest: &str) -> bool {
    agent.host.user_of_image(digest).is_some() || !agent.locals.users_of_image(digest).is_empty()
}

/// Whether it came from a registry, under each of its names, or from another node.
fn is_elsewhere(image: &StoredImage) -> bool {
    image.record.fetched || (!image.names.is_empty() && image.names.iter().all(|name| image.is_elsewhere(name)))
}

/// The one that was unused for the longest.
fn next(candidates: &[Candidate], now: SystemTime, minimum_age: Duration) -> Option<&str> {
    let is_old = |used_at: SystemTime| now.duration_since(used_at).is_ok_and(|age| age >= minimum_age);
    candidates
        .iter()
        .filter(|image| image.elsewhere && !image.in_use && is_old(image.used_at))
        .min_by_key(|image| (image.used_at, image.created_at_ms))
        .map(|image| image.digest.as_str())
}

/// As `df` counts: what is free for root only counts as used.
fn used_percent(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir)
        .inspect_err(|error| tracing::warn!(?dir, %error, "how full the disk is cannot be found out"))
        .ok()?;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree);
    let usable = used + disk.f_bavail;
    (usable > 0).then(|| (used * 100).div_ceil(usable))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use orch_model::task::TaskState;

    use super::*;
    use crate::{
        agent::tests::{Node, import_box, task, task_with},
        image::{reference::Reference, store::ImageRecord},
    };

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_longest_unused_goes_first_and_nothing_that_is_used_or_only_here() {
        let image = |digest: &str, used_at, in_use, elsewhere| Candidate {
            digest: digest.to_owned(),
            used_at: at(used_at),
            created_at_ms: 0,
            in_use,
            elsewhere,
        };
        let all = [
            image("young", 95, false, true),
            image("used", 1, true, true),
            image("only-here", 1, false, false),
            image("newer", 50, false, true),
            image("older", 40, false, true),
        ];
        let age = Duration::from_secs(10);
        assert_eq!(next(&all, at(100), age), Some("older"));
        assert_eq!(next(&all[..4], at(100), age), Some("newer"));
        assert_eq!(next(&all[..3], at(100), age), None);
        assert_eq!(next(&all[..1], at(105), age), Some("young"));
        // A clock that went back.
        assert_eq!(next(&all, at(0), age), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_task_with_a_digest_uses_that_and_not_what_its_tag_means() {
        let node = Node::new().await;
        let worker = node.worker().await;
        let store = &worker.agent.host.images.store;
        import_box(store);
        let (nowhere, old) = ("127.0.0.1:1/box:1", store.find("box").unwrap().digest);
        store.set_name(&Reference::parse(nowhere).unwrap(), &old).unwrap();
        for (n, digest, want) in [(1, format!("sha256:{}", "0".repeat(64)), false), (2, old, true)] {
            let mut spec = task(n, nowhere, &["sleep", "1000"]).spec.container.clone();
            spec.image_digest = Some(digest);
            let web = task_with(n, spec);
            node.assign(&[(&web, TaskState::Running)]);
            node.heard.wait(&format!("{} ", web.id)).await;
            let candidates = candidates(&worker.agent);
            assert_eq!(candidates.iter().map(|image| image.in_use).collect::<Vec<_>>(), [want], "{n}");
        }
    }

    #[test]
    fn what_has_a_name_of_its_own_is_only_here() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let check = |names: &[String], fetched, expected| {
            let record = ImageRecord { fetched, ..ImageRecord::default() };
            let image = StoredImage { names: names.to_vec(), digest: digest.clone(), record };
            assert_eq!(is_elsewhere(&image), expected, "{names:?}");
        };
        let pulled = [format!("reg:5000/web@{digest}"), "reg:5000/web:1".to_owned()];
        check(&pulled, false, true);
        check(&pulled[..1], false, true);
        check(&pulled[1..], false, false);
        check(&[&pulled[..], &["docker.io/library/mine:1".to_owned()]].concat(), false, false);
        check(&[], false, false);
        check(&pulled[1..], true, true);
    }
}
