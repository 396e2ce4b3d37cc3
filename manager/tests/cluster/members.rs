//! Managers come, go and are lost: roles, certificates, and going on alone.

use orch_model::node::NodeRole;
use orch_proto::wire::{self, Kind, object::Object};
use tonic::Code;

use super::{LIMIT, lab, lab::Lab};

async fn node(manager: &lab::LabManager, id: &str) -> wire::Node {
    let Some(Object::Node(node)) = manager.get(Kind::Node, id).await.unwrap().object else { panic!("not a node") };
    node
}

async fn want(manager: &lab::LabManager, id: &str, role: NodeRole) -> Result<(), tonic::Status> {
    use orch_proto::conv::ToProto as _;
    let node = node(manager, id).await;
    let spec = wire::NodeSpec { role: role.to_proto(), ..node.spec.unwrap() };
    let request = wire::UpdateRequest {
        kind: Kind::Node.into(),
        id: id.to_owned(),
        version: node.meta.unwrap().version,
        spec: Some(wire::Spec { spec: Some(wire::spec::Spec::Node(spec)) }),
        ..wire::UpdateRequest::default()
    };
    manager.control().await.update(request).await.map(drop)
}

async fn reachable(manager: &lab::LabManager, count: usize) {
    lab::eventually("all managers answer", LIMIT, async || {
        manager.info().await.reachability.iter().filter(|m| m.reachable).count() == count
    })
    .await;
}

#[test]
fn a_demoted_leader_hands_over_leaves_raft_and_is_refused_from_then_on() {
    let lab = Lab::new(3);
    lab.block_on(async {
        let [first, second, third] = lab.start_three().await;
        reachable(&first, 3).await;
        assert_eq!(lab.call_as_manager(0, 1).await, Ok(()));
        let own = lab.node_id(0);
        assert_eq!(first.info().await.leader_id, own);
        want(&first, &own, NodeRole::Worker).await.unwrap();
        lab::eventually("two managers are left", LIMIT, async || {
            let info = second.info().await;
            info.managers == 2 && info.leader_id != own && second.consensus().members().len() == 2
        })
        .await;
        assert_eq!(node(&second, &own).await.role, wire::NodeRole::Worker as i32);
        // Its certificate is good for another hour, and of no use.
        for at in [1, 2] {
            // As soon as that manager has heard of it.
            lab::eventually("it is refused", LIMIT, async || {
                lab.call_as_manager(0, at).await == Err((Code::PermissionDenied, "node-demoted".to_owned()))
            })
            .await;
        }
        drop((first, third));
        second.crash().await;
    });
}

#[test]
fn a_manager_goes_on_alone_with_everything_after_the_quorum_is_lost() {
    let lab = Lab::new(3);
    lab.block_on(async {
        let [first, second, third] = lab.start_three().await;
        reachable(&first, 3).await;
        first.control().await.create(lab::service("web", 1)).await.unwrap();
        lab::eventually("the second has it all", LIMIT, async || second.local_services() == 1).await;
        let tokens = first.info().await.worker_token;
        first.crash().await;
        third.crash().await;
        second.crash().await;

        lab.go_on_alone(1);
        let second = lab.start(1).await;
        lab::eventually("one manager", LIMIT, async || second.info().await.managers == 1).await;
        assert_eq!(second.consensus().members().len(), 1);
        assert_eq!(second.info().await.worker_token, tokens);
        second.control().await.create(lab::service("more", 1)).await.unwrap();
        assert_eq!(second.list(Kind::Service).await.len(), 2);
        for lost in [0, 2] {
            assert_eq!(node(&second, &lab.node_id(lost)).await.role, wire::NodeRole::Worker as i32);
        }
        // The lost ones come back: together they would be a quorum of the old raft, and do not get at the new one.
        let (first, third) = (lab.start(0).await, lab.start(2).await);
        lab::eventually("the lost ones lead themselves", LIMIT, async || first.info().await.managers == 3).await;
        assert_eq!(lab.call_as_manager(0, 1).await, Err((Code::PermissionDenied, "node-demoted".to_owned())));
        assert_eq!(second.list(Kind::Service).await.len(), 2);
        assert!(second.consensus().is_leader());
        // As any other time: a restart finds it all.
        second.crash().await;
        let second = lab.start(1).await;
        lab::eventually("it leads", LIMIT, async || second.info().await.managers == 1).await;
        assert_eq!(second.list(Kind::Service).await.len(), 2);
        drop((first, third));
        second.crash().await;
    });
}
