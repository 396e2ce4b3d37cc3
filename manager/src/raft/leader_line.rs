//! The line from a manager to the leader: where it asks how far it must have come before it may answer a read.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use orch_proto::wire::{self, raft_client::RaftClient};
use tokio::time::timeout;
use tonic::Status;

use super::network::{Dial, Link, addressed, connect};

/// The leader asks a quorum before it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// For managers that may be down.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// A connection to one leader at a time.
pub(super) struct LeaderLine {
    dial: Arc<dyn Dial>,
    current: Mutex<Option<Connection>>,
}

#[derive(Clone)]
struct Connection {
    addr: String,
    client: RaftClient<Link>,
}

impl LeaderLine {
    pub(super) fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial, current: Mutex::default() }
    }

    /// The index of the last entry that was committed when the leader was asked, confirmed by a quorum since.
    pub(super) async fn read_index(&self, leader: u64, addr: &str) -> Result<u64, Status> {
        let asking = async {
            let mut client = self.client(addr).await?;
            client.read_index(addressed(leader, wire::Empty {})).await
        };
        let answer = timeout(ANSWER_LIMIT, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the leader does not answer")));
        if answer.is_err() {
            *self.lock() = None;
        }
        answer.map(|answer| answer.into_inner().index)
    }

    /// The same of a manager that may lead, once.
    pub(super) async fn ask(&self, manager: u64, addr: &str) -> Result<u64, Status> {
        let asking = async {
            let connected = connect(self.dial.as_ref(), addr).await;
            let mut client = connected.map_err(|error| Status::unavailable(error.to_string()))?;
            client.read_index(addressed(manager, wire::Empty {})).await
        };
        let answer = timeout(ASK_LIMIT, asking).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))).map(|answer| answer.into_inner().index)
    }

    async fn client(&self, addr: &str) -> Result<RaftClient<Link>, Status> {
        if let Some(known) = self.lock().clone().filter(|known| known.addr == addr) {
            return Ok(known.client);
        }
        let connected = connect(self.dial.as_ref(), addr).await;
        let client = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        *self.lock() = Some(Connection { addr: addr.to_owned(), client: client.clone() });
        Ok(client)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
