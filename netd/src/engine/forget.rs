//! Forgetting connections to backends that are gone, beside the passes.
//!
//! For each namespace the kernel goes through the table of the whole machine: milliseconds on a large one, seconds for a crowd
//! of tasks. No pass waits for that. What passes find meanwhile is gathered, and forgotten in one look per namespace next.

use std::{collections::BTreeMap, future, io, net::IpAddr, sync::Arc};

use orch_netd_core::{
    flows::{Cut, Cuts},
    ns::NsName,
};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

use super::{
    Engine,
    pass::{MAX_PARALLEL, blocking},
};
use crate::{conntrack, netns::NetNs};

/// What to forget where.
type Work = BTreeMap<NsName, (NetNs, BTreeMap<IpAddr, Cut>)>;

#[derive(Default)]
pub(super) struct Forgetting {
    /// What waits for the next time.
    pub(super) gathered: Cuts,
    under_way: Option<JoinHandle<()>>,
}

impl Forgetting {
    /// Waits for the end of what is under way; for ever when nothing is.
    pub(super) async fn done(&mut self) {
        match &mut self.under_way {
            Some(work) => drop(work.await),
            None => future::pending().await,
        }
        self.under_way = None;
    }
}

impl Engine {
    /// Begins with what was gathered, unless an earlier lot is under way.
    pub(super) fn forget_gathered(&mut self) {
        if self.forgetting.under_way.is_some() || self.forgetting.gathered.is_empty() {
            return;
        }
        let cuts = std::mem::take(&mut self.forgetting.gathered);
        self.forgetting.under_way = Some(tokio::spawn(forget_all(self.by_namespace(&cuts))));
    }

    /// To the end, for who goes on to end too.
    pub(super) async fn finish_forgetting(&mut self) {
        while self.forgetting.under_way.is_some() {
            self.forgetting.done().await;
            self.forget_gathered();
        }
    }

    /// Where flows over the networks of `cuts` are remembered. A dead task sends nothing any more.
    fn by_namespace(&self, cuts: &Cuts) -> Work {
        let mut by_ns = Work::new();
        for (network, cut) in cuts {
            for (name, ns) in &self.namespaces {
                let concerned = match name {
                    NsName::Host | NsName::Crypt => false,
                    NsName::Sandbox(sandbox) => sandbox == network,
                    NsName::Task(id) => self.tasks.get(id).is_some_and(|task| {
                        !task.down && task.attachments.iter().any(|attachment| attachment.network == *network)
                    }),
                };
                if concerned {
                    let (_, of_ns) = by_ns.entry(name.clone()).or_insert_with(|| (ns.clone(), BTreeMap::new()));
                    of_ns.extend(cut.iter().map(|(addr, cut)| (*addr, *cut)));
                }
            }
        }
        by_ns
    }
}

async fn forget_all(by_ns: Work) {
    let mut work = JoinSet::new();
    let limit = Arc::new(Semaphore::new(MAX_PARALLEL));
    for (name, (ns, cuts)) in by_ns {
        let limit = limit.clone();
        work.spawn(async move {
            let _permit = limit.acquire_owned().await;
            match forget(ns, cuts).await {
                Ok(0) => {}
                Ok(count) => tracing::debug!(ns = %name, count, "forgot flows to backends that are gone"),
                Err(error) => tracing::warn!(ns = %name, %error, "cannot forget flows to backends that are gone"),
            }
        });
    }
    while work.join_next().await.is_some() {}
}

async fn forget(ns: NetNs, cuts: BTreeMap<IpAddr, Cut>) -> io::Result<usize> {
    match ns.opened_netfilter() {
        Some(socket) => blocking(move || conntrack::forget(&socket, &cuts)).await,
        None => {
            let inside = ns.clone();
            ns.run(move || conntrack::forget(&*inside.netfilter()?, &cuts)).await
        }
    }
}
