//! What a task waits for while it is prepared, told to the managers: a large image or a registry without an answer would
//! otherwise be minutes of silence.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use orch_model::{size, task::Task};
use orch_proto::wire::{self, pull_progress};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::Host;
use crate::image::pull::Progress;

/// Most tasks are prepared sooner, and nothing is said of them.
const FIRST: Duration = Duration::from_secs(2);
/// Each time is an entry in the managers' log.
const EVERY: Duration = Duration::from_secs(5);
/// Steps of a pull that may wait here; more are dropped.
const STEPS_AHEAD: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Mounts,
    Image,
    /// Volumes, the root, and the network.
    Ground,
}

/// Where the work says how far it is.
pub(crate) struct Steps {
    stage: watch::Sender<Stage>,
    pub(crate) progress: Progress,
}

/// Where it is heard.
pub(crate) struct Heard {
    stage: watch::Receiver<Stage>,
    progress: mpsc::Receiver<wire::PullProgress>,
}

impl Steps {
    pub(crate) fn new() -> (Self, Heard) {
        let (stage, stage_heard) = watch::channel(Stage::Mounts);
        let (progress, progress_heard) = mpsc::channel(STEPS_AHEAD);
        (Self { stage, progress }, Heard { stage: stage_heard, progress: progress_heard })
    }

    pub(crate) fn at(&self, stage: Stage) {
        // Whoever listened may be gone.
        let _ = self.stage.send(stage);
    }
}

/// Tells managers for as long as it is polled.
pub(super) async fn tell(host: &Host, task: &Task, mut heard: Heard) -> Infallible {
    let mut waiting = Waiting::default();
    let mut ticks = interval_at(Instant::now() + FIRST, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(step) = heard.progress.recv() => waiting.hear(step),
            _ = ticks.tick() => {
                let stage = *heard.stage.borrow();
                host.book.explain(&task.id, waiting.words(stage));
            }
        }
    }
}

/// What was heard of an image on its way.
#[derive(Debug, Default)]
struct Waiting {
    /// Who is asked for it now.
    asked: String,
    /// By digest: bytes that are here, and all of them.
    layers: BTreeMap<String, (u64, u64)>,
    trouble: Option<String>,
}

/// What a status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    pub message: String,
    pub error: Option<String>,
}

impl Waiting {
    fn hear(&mut self, step: wire::PullProgress) {
        match step.progress {
            // What another has sent of it is not what this one sends.
            Some(pull_progress::Progress::Asking(asked)) => *self = Self { asked, ..Self::default() },
            Some(pull_progress::Progress::Status(trouble)) => self.trouble = Some(trouble),
            Some(pull_progress::Progress::Layer(layer)) => {
                self.trouble = None;
                if layer.state == "exists" {
                    self.layers.remove(&layer.digest);
                } else {
                    self.layers.insert(layer.digest, (layer.done_bytes, layer.total_bytes));
                }
            }
            Some(pull_progress::Progress::Done(_)) | None => {}
        }
    }

    fn words(&self, stage: Stage) -> Words {
        let message = match stage {
            Stage::Mounts => "looking at its mounts".to_owned(),
            Stage::Image => self.of_image(),
            Stage::Ground => "preparing its volumes and networks".to_owned(),
        };
        Words { message, error: self.trouble.clone().filter(|_| stage == Stage::Image) }
    }

    fn of_image(&self) -> String {
        let (done, total) = self.layers.values().fold((0, 0), |(a, b), (done, total)| (a + done, b + total));
        match total {
            0 if self.asked.is_empty() => "waiting for its image".to_owned(),
            0 => format!("waiting for its image from {}", self.asked),
            total if done >= total => "unpacking its image".to_owned(),
            total => format!("downloading its image: {} of {}", size::human(done), size::human(total)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, done_bytes: u64, total_bytes: u64, state: &str) -> pull_progress::Progress {
        let (digest, state) = (digest.to_owned(), state.to_owned());
        pull_progress::Progress::Layer(wire::LayerProgress { digest, done_bytes, total_bytes, state })
    }

    #[test]
    fn what_a_pull_says_is_told_in_words() {
        let busy = || pull_progress::Progress::Status("registry r is busy: asking again in 2 s".to_owned());
        let asking = |who: &str| Some(pull_progress::Progress::Asking(who.to_owned()));
        let mut waiting = Waiting::default();
        let mut said = |step: Option<pull_progress::Progress>| {
            waiting.hear(wire::PullProgress { progress: step });
            let Words { message, error } = waiting.words(Stage::Image);
            (message, error.is_some())
        };
        for (step, message, in_trouble) in [
            (None, "waiting for its image", false),
            (asking("r:5000"), "waiting for its image from r:5000", false),
            (Some(busy()), "waiting for its image from r:5000", true),
            (Some(layer("a", 0, 30_000_000, "waiting")), "downloading its image: 0B of 30MB", false),
            (Some(layer("old", 0, 70_000_000, "waiting")), "downloading its image: 0B of 100MB", false),
            (Some(layer("old", 70_000_000, 70_000_000, "exists")), "downloading its image: 0B of 30MB", false),
            (Some(layer("b", 0, 4_200_000, "waiting")), "downloading its image: 0B of 34.2MB", false),
            (Some(layer("a", 12_340_000, 30_000_000, "downloading")), "downloading its image: 12.3MB of 34.2MB", false),
            (Some(busy()), "downloading its image: 12.3MB of 34.2MB", true),
            (asking("mirror"), "waiting for its image from mirror", false),
            (Some(layer("b", 0, 4_200_000, "downloading")), "downloading its image: 0B of 4.2MB", false),
            (Some(layer("b", 4_200_000, 4_200_000, "unpacking")), "unpacking its image", false),
        ] {
            assert_eq!(said(step.clone()), (message.to_owned(), in_trouble), "{step:?}");
        }
        waiting.hear(wire::PullProgress { progress: Some(busy()) });
        let error = None;
        let of = |message: &str| Words { message: message.to_owned(), error: error.clone() };
        assert_eq!(waiting.words(Stage::Mounts), of("looking at its mounts"));
        assert_eq!(waiting.words(Stage::Ground), of("preparing its volumes and networks"));
    }
}
