//! Clients in a closed loop: each writes again as soon as its last write was acknowledged.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{task::JoinSet, time::sleep};

/// The first part of a run does not count.
const WARM_UP: Duration = Duration::from_millis(700);

/// What so many clients saw.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

/// Runs `writers` for so long. A writer gets a number that no other write has.
pub(crate) async fn run<W, F>(writers: Vec<W>, length: Duration) -> anyhow::Result<Outcome>
where
    W: FnMut(u64) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let numbers = Arc::new(AtomicU64::new(rand::random::<u32>().into()));
    let (counts, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for mut writer in writers {
        let (numbers, counts, over) = (Arc::clone(&numbers), Arc::clone(&counts), Arc::clone(&over));
        clients.spawn(async move {
            let mut taken = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let (counted, start) = (counts.load(Ordering::Relaxed), Instant::now());
                writer(number).await?;
                if counted && !over.load(Ordering::Relaxed) {
                    taken.push(start.elapsed());
                }
            }
            anyhow::Ok(taken)
        });
    }
    sleep(WARM_UP).await;
    counts.store(true, Ordering::Relaxed);
    let start = Instant::now();
    sleep(length).await;
    over.store(true, Ordering::Relaxed);
    let elapsed = start.elapsed();
    let mut all = Vec::new();
    while let Some(taken) = clients.join_next().await {
        all.extend(taken??);
    }
    all.sort_unstable();
    let part = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (all.len() as f64 * share) as usize;
        all.get(at.min(all.len().saturating_sub(1))).copied()
    };
    #[allow(clippy::cast_precision_loss)]
    let per_second = all.len() as f64 / elapsed.as_secs_f64();
    let none = "no write came through";
    Ok(Outcome {
        per_second,
        p50: part(0.5).context(none)?,
        p99: part(0.99).context(none)?,
        max: part(1.0).context(none)?,
    })
}

/// The middle of some figures.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}
