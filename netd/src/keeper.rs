//! The tasks' sockets for names are held by the supervisor as well: while this daemon is gone, questions wait in them for
//! the next one.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use orch_model::TaskId;
use orch_proto::keeper::{Line, Word};
use tokio::{sync::mpsc, time::timeout};

use crate::dns::Sockets;

/// What the supervisor holds is there when this daemon starts.
const HEAR_LIMIT: Duration = Duration::from_secs(5);
/// Words on their way to the supervisor; there is one or two per task that comes or goes.
const MAX_WAITING: usize = 16_384;

enum Order {
    Hold(TaskId, [OwnedFd; 2]),
    LetGo(String),
}

/// The daemon's side.
pub(crate) struct Keeper {
    /// What an earlier daemon served, by its name.
    found: BTreeMap<String, Vec<OwnedFd>>,
    /// Nobody listens where no supervisor has started this daemon.
    orders: Option<mpsc::Sender<Order>>,
}

impl Keeper {
    /// One that holds nothing.
    pub(crate) fn nobody() -> Self {
        Self { found: BTreeMap::new(), orders: None }
    }

    /// The supervisor, which says what it holds.
    pub(crate) async fn find() -> io::Result<Self> {
        let Some(line) = Line::of_standard_input()? else { return Ok(Self::nobody()) };
        let found = timeout(HEAR_LIMIT, hear_all(&line)).await??;
        let (orders, mut waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(async move {
            while let Some(order) = waiting.recv().await {
                if let Err(error) = tell(&line, order).await {
                    tracing::warn!(%error, "the supervisor no longer holds sockets: a restart will lose questions for names");
                    return;
                }
            }
        });
        Ok(Self { found, orders: Some(orders) })
    }

    pub(crate) fn take(&mut self, task: &TaskId) -> Option<Sockets> {
        Sockets::of(self.found.remove(&task.to_string())?)
    }

    pub(crate) fn hold(&self, task: &TaskId, sockets: &Sockets) {
        let copies = sockets.udp.try_clone().and_then(|udp| Ok([udp.into(), sockets.tcp.try_clone()?.into()]));
        // Without descriptors left there are worse problems.
        if let Ok(copies) = copies {
            self.order(Order::Hold(task.clone(), copies));
        }
    }

    pub(crate) fn let_go(&self, task: &TaskId) {
        self.order(Order::LetGo(task.to_string()));
    }

    /// What is held for tasks that are gone.
    pub(crate) fn let_go_of_the_rest(&mut self) {
        for (name, _) in std::mem::take(&mut self.found) {
            self.order(Order::LetGo(name));
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A full queue: the supervisor stands still. What it misses costs questions at the next restart.
            let _ = orders.try_send(order);
        }
    }
}

async fn hear_all(line: &Line) -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
    let mut found = BTreeMap::new();
    while let Some(word) = line.hear().await? {
        match word {
            Word::Hold(name, sockets) => drop(found.insert(name, sockets)),
            Word::LetGo(name) => drop(found.remove(&name)),
            Word::All => break,
        }
    }
    Ok(found)
}

async fn tell(line: &Line, order: Order) -> io::Result<()> {
    match order {
        Order::Hold(task, [udp, tcp]) => line.hold(&task.to_string(), &[udp.as_raw_fd(), tcp.as_raw_fd()]).await,
        Order::LetGo(name) => line.let_go(&name).await,
    }
}
