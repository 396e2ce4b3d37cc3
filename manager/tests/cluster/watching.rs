//! Watches and reads at managers that do not lead, over the death of the one that does.

use orch_proto::{
    conv::FromProto as _,
    wire::{self, Kind, watch_event::Event},
};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use super::{
    LIMIT,
    lab::{self, Lab, LabManager, service},
};

async fn watch(manager: &LabManager, after: u64) -> Result<Streaming<wire::WatchResponse>, tonic::Status> {
    let request = wire::WatchRequest { kinds: vec![Kind::Service.into()], after, ..wire::WatchRequest::default() };
    manager.control().await.watch(request).await.map(tonic::Response::into_inner)
}

async fn next(stream: &mut Streaming<wire::WatchResponse>) -> wire::WatchResponse {
    timeout(LIMIT, stream.message()).await.expect("nothing comes").unwrap().expect("the watch ended")
}

/// The names of the services in a message.
fn names(response: &wire::WatchResponse) -> Vec<String> {
    let put = |event: &wire::WatchEvent| match event.event.clone() {
        Some(Event::Put(object)) => orch_model::Object::from_proto(object).ok(),
        _ => None,
    };
    let services = response.events.iter().filter_map(put);
    services
        .filter_map(|object| match object {
            orch_model::Object::Service(service) => Some(service.spec.annotations.name.clone()),
            _ => None,
        })
        .collect()
}

/// The next message that shows this service for the first time; what comes before it is about others.
async fn until_shown(stream: &mut Streaming<wire::WatchResponse>, name: &str) -> wire::WatchResponse {
    loop {
        let response = next(stream).await;
        if names(&response).iter().any(|shown| shown == name) {
            return response;
        }
    }
}

#[test]
fn a_watch_at_a_follower_outlives_the_leader_and_goes_on_elsewhere() {
    let lab = Lab::new(3);
    lab.block_on(async {
        let [first, second, third] = lab.start_three().await;
        lab::eventually("three managers", LIMIT, async || first.consensus().voters().1.len() == 3).await;
        assert!(first.consensus().is_leader());

        let mut stream = watch(&second, 0).await.unwrap();
        assert!(next(&mut stream).await.synced);
        first.control().await.create(service("before", 0)).await.unwrap();
        // Read where nobody leads, at once.
        assert_eq!(second.list(Kind::Service).await.len(), 1);
        until_shown(&mut stream, "before").await;
        first.crash().await;
        lab::eventually("a service is made", LIMIT, async || {
            third.control().await.create(service("after", 0)).await.is_ok()
        })
        .await;
        let shown = until_shown(&mut stream, "after").await;
        drop(stream);

        // Only what came since, at another manager.
        second.control().await.create(service("later", 0)).await.unwrap();
        let mut stream = watch(&third, shown.index).await.unwrap();
        let mut seen = Vec::new();
        loop {
            let response = next(&mut stream).await;
            assert!(response.index >= shown.index);
            seen.extend(names(&response));
            if response.synced {
                break;
            }
        }
        seen.dedup();
        assert_eq!(seen, ["later"]);

        // What no manager can know is refused with a code that says what to do.
        let refused = watch(&third, u64::MAX).await.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted);
        assert_eq!(refused.metadata().get("orch-code").unwrap(), "resync");
        second.crash().await;
        // Alone, it does not answer from what it happens to have.
        let list = third.control().await.list(wire::ListRequest { kind: Kind::Service.into(), filters: None }).await;
        assert_eq!(list.unwrap_err().code(), Code::Unavailable);
        third.crash().await;
    });
}
