//! A watch that goes on: over the death of a leader, of the manager that is asked, and over a connection that breaks.

use std::time::Duration;

use orch_model::Kind;
use orch_proto::{code, conv::ToProto as _, paths::Paths, transport::unix_channel, wire};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

use crate::api::control_client;

/// Managers elect a leader within two seconds, and their supervisor starts a dead one within a few.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);
const RESYNC: &str = "resync";

/// What a watch brings.
pub(crate) enum News {
    /// Everything comes (again) from the beginning; what was known may be gone.
    Anew,
    Changes(wire::WatchResponse),
}

/// The objects of some kinds that a filter shows, and their changes.
pub(crate) struct Watching {
    paths: Paths,
    kinds: Vec<Kind>,
    filters: wire::Filters,
    stream: Option<Streaming<wire::WatchResponse>>,
    /// Everything up to this index was handed out; 0 until there is a complete beginning.
    index: u64,
    /// Since no manager answers.
    give_up_at: Option<Instant>,
}

impl Watching {
    pub(crate) fn new(paths: Paths, kinds: Vec<Kind>, filters: wire::Filters) -> Self {
        Self { paths, kinds, filters, stream: None, index: 0, give_up_at: None }
    }

    /// What comes next; an error only when it was refused, or when no manager answered for a long time.
    pub(crate) async fn next(&mut self) -> Result<News, Status> {
        loop {
            let failed = match self.step().await {
                Ok(news) => {
                    self.give_up_at = None;
                    return Ok(news);
                }
                Err(status) => status,
            };
            self.stream = None;
            let give_up_at = *self.give_up_at.get_or_insert_with(|| Instant::now() + PATIENCE);
            if code::of(&failed) == Some(RESYNC) {
                self.index = 0;
            } else if !may_pass(&failed) || Instant::now() >= give_up_at {
                return Err(failed);
            }
            sleep(PAUSE).await;
        }
    }

    async fn step(&mut self) -> Result<News, Status> {
        let Some(stream) = &mut self.stream else {
            self.stream = Some(self.open().await?);
            return if self.index == 0 { Ok(News::Anew) } else { Ok(News::Changes(wire::WatchResponse::default())) };
        };
        let response = stream.message().await?;
        let response = response.ok_or_else(|| Status::unavailable("the manager ended the watch"))?;
        if response.synced || self.index > 0 {
            self.index = response.index;
        }
        Ok(News::Changes(response))
    }

    async fn open(&self) -> Result<Streaming<wire::WatchResponse>, Status> {
        let channel = unix_channel(&self.paths.manager_sock()).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let kinds = self.kinds.iter().map(|kind| kind.to_proto()).collect();
        let request = wire::WatchRequest { kinds, filters: Some(self.filters.clone()), after: self.index };
        Ok(control_client(channel).watch(request).await?.into_inner())
    }
}

/// Whether it helps to wait: a connection that broke, a manager that stops, no leader at the moment.
fn may_pass(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
    )
}
