//! Conversions: what goes out comes back, what is wrong is refused by name, and no bytes make decoding panic.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod fixtures;

use std::fmt::Debug;

use orch_model::{
    Duration, NodeId, Object, ObjectId, TaskId,
    assignment::{Assignment, AssignmentKey, NetworkItem},
    change::Transaction,
    network::ENCRYPTED_OPTION,
    node::NodeDescription,
    service::{PortConfig, ServiceMode, ServiceSpec, Vip},
    task::{Task, TaskState, TaskStatus},
};
use orch_proto::{
    conv::{DecodeError, FromProto, ToProto},
    wire,
};
use proptest::prelude::*;
use prost::Message;

#[test]
fn everything_comes_back_as_it_went() {
    let transaction = fixtures::transaction();
    assert_eq!(there_and_back(&transaction), transaction);
    for assignment in fixtures::assignments() {
        assert_eq!(there_and_back(&assignment), assignment);
        assert_eq!(there_and_back(&assignment.key()), assignment.key());
    }
}

/// By number and option: what older versions read as the tunnel's number (0: none), and what is read back. An item that
/// another version wrote may have both numbers where they should not be.
#[test]
fn the_tunnel_of_an_encrypted_network_is_nobodys_who_does_not_know_the_option() {
    let item = fixtures::assignments().into_iter().find_map(|item| match item {
        Assignment::Network(item) => Some(item),
        _ => None,
    });
    let item = |vni, option: &str| {
        let options = [(option.to_owned(), String::new())].into();
        NetworkItem { vni, driver_options: options, ..item.clone().expect("a network") }
    };
    for (vni, option, written) in [
        (4097, "mtu", (4097, 0)),
        (4097, ENCRYPTED_OPTION, (0, 4097)),
        (0, "mtu", (0, 0)),
        (0, ENCRYPTED_OPTION, (0, 0)),
    ] {
        let wire = item(vni, option).to_proto();
        assert_eq!((wire.vni, wire.encrypted_vni), written, "{vni} {option}");
        assert_eq!(there_and_back(&item(vni, option)), item(vni, option));
    }
    for (vni, encrypted_vni, option, read) in
        [(0, 4097, "mtu", 0), (4097, 0, ENCRYPTED_OPTION, 4097), (4097, 4098, "mtu", 4097)]
    {
        let wire = wire::NetworkItem { vni, encrypted_vni, ..item(0, option).to_proto() };
        assert_eq!(NetworkItem::from_proto(wire).map(|item| item.vni), Ok(read), "{vni} {encrypted_vni} {option}");
    }
}

#[test]
fn every_state_role_and_mode_comes_back() {
    for state in TaskState::ALL {
        assert_eq!(TaskState::from_proto(state.to_proto()), Ok(state));
        assert_eq!(state.to_proto(), state as i32, "states travel as the model's numbers");
    }
    for mode in fixtures::modes() {
        assert_eq!(there_and_back(&mode), mode);
    }
}

/// Every number from 0 to 16 is either an enum's value, and comes back as the same number, or refused.
#[test]
fn enum_numbers_are_kept_or_refused() {
    use orch_model::{Kind, node::*, service::*};
    fn known<T: ToProto<Proto = i32> + FromProto<Proto = i32>>() -> usize {
        assert!(T::from_proto(0).is_err(), "0 is unspecified");
        let values = (0..16).filter_map(|number| T::from_proto(number).ok().map(|value| (number, value)));
        values.inspect(|(number, value)| assert_eq!(*number, value.to_proto())).count()
    }
    assert_eq!(known::<Kind>(), 8);
    assert_eq!(known::<NodeRole>(), 2);
    assert_eq!(known::<Availability>(), 3);
    assert_eq!(known::<NodeState>(), 4);
    assert_eq!(known::<EndpointMode>(), 2);
    assert_eq!(known::<Protocol>(), 3);
    assert_eq!(known::<PublishMode>(), 2);
    assert_eq!(known::<FailureAction>(), 3);
    assert_eq!(known::<UpdateOrder>(), 2);
    assert_eq!(known::<UpdateState>(), 6);
    assert_eq!(known::<RestartCondition>(), 3);
    assert_eq!(known::<MountKind>(), 3);
}

#[test]
fn refusals_name_message_and_field() {
    let service = || match fixtures::service().to_proto() {
        wire::Object { object: Some(wire::object::Object::Service(service)) } => service,
        other => panic!("not a service: {other:?}"),
    };
    let task = || fixtures::task().to_proto();
    let object = |object| wire::Object { object: Some(object) };

    refused::<Object>(wire::Object { object: None }, "Object.object: missing");
    refused::<Object>(
        object(wire::object::Object::Service(wire::Service { spec: None, ..service() })),
        "Service.spec: missing",
    );
    refused::<Task>(
        wire::Task { id: "x".into(), ..task() },
        "Task.id: \"x\" is not an id: expected 25 characters of 0-9 and a-z",
    );
    refused::<Task>(wire::Task { desired_state: 7, ..task() }, "Task.desired_state: unknown value 7");
    refused::<TaskStatus>(wire::TaskStatus { state: -1, ..Default::default() }, "TaskStatus.state: unknown value -1");
    refused::<PortConfig>(
        wire::PortConfig { protocol: 1, target_port: 70_000, ..Default::default() },
        "PortConfig.target_port: 70000 is more than 65535",
    );
    refused::<NodeDescription>(
        wire::NodeDescription { data_addr: Some("10.0.0".into()), ..Default::default() },
        "NodeDescription.data_addr: \"10.0.0\" is not an IP address",
    );
    refused::<Vip>(
        wire::Vip { network: fixtures::id::<NodeId>(1).to_string(), addr: "10.0.0.0/33".into() },
        "Vip.addr: \"10.0.0.0/33\" is not an IP network (ADDRESS/PREFIX)",
    );
    refused::<ObjectId>(wire::ObjectId { kind: 0, id: String::new() }, "ObjectId.kind: unknown value 0");
    refused::<AssignmentKey>(wire::AssignmentKey { key: None }, "AssignmentKey.key: missing");
    refused::<ServiceMode>(wire::ServiceMode { mode: None }, "ServiceMode.mode: missing");
    refused::<TaskId>(String::new(), "\"\" is not an id: expected 25 characters of 0-9 and a-z");
}

#[test]
fn a_short_duration_does_not_become_the_zero_that_means_unlimited() {
    assert_eq!(Duration::from_nanos(1).to_proto(), 1);
    assert_eq!(Duration::from_micros(1500).to_proto(), 2);
    assert_eq!(Duration::MAX.to_proto(), u64::MAX);
}

#[test]
fn keys_tokens_and_secrets_stay_out_of_debug_output() {
    let text = format!("{:?}", fixtures::transaction().to_proto());
    assert!(text.contains("RootCa") && text.contains("JoinTokens") && text.contains("Secret"));
    for hidden in [fixtures::KEY, fixtures::TOKEN, fixtures::SECRET] {
        assert!(!text.contains(hidden), "{hidden} is visible");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        decode_all(&bytes);
    }

    /// Damaged messages get further into decoding than noise does.
    #[test]
    fn damaged_messages_never_panic(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let good = samples();
        let mut bytes = good[which.index(good.len())].clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if truncate {
            bytes.truncate(keep.index(bytes.len()));
        }
        decode_all(&bytes);
    }

    #[test]
    fn any_text_in_an_address_or_id_is_answered(text in ".*") {
        let _ = std::net::IpAddr::from_proto(text.clone());
        let _ = ipnetwork::IpNetwork::from_proto(text.clone());
        let _ = TaskId::from_proto(text);
    }
}

/// Through bytes, as between two daemons.
fn there_and_back<T>(value: &T) -> T
where
    T: ToProto + FromProto<Proto = <T as ToProto>::Proto>,
    <T as ToProto>::Proto: Message + Default,
{
    let bytes = value.to_proto().encode_to_vec();
    T::from_proto(Message::decode(bytes.as_slice()).unwrap()).unwrap()
}

fn refused<T: FromProto + Debug>(proto: T::Proto, expected: &str) {
    let error: DecodeError = T::from_proto(proto).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

fn samples() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = fixtures::assignments().iter().map(|item| item.to_proto().encode_to_vec()).collect();
    all.extend(fixtures::transaction().changes.iter().map(|change| {
        let transaction = Transaction { at: Default::default(), changes: vec![change.clone()] };
        transaction.to_proto().encode_to_vec()
    }));
    all
}

fn decode_all(bytes: &[u8]) {
    decode::<Transaction>(bytes);
    decode::<Object>(bytes);
    decode::<ServiceSpec>(bytes);
    decode::<Assignment>(bytes);
    decode::<AssignmentKey>(bytes);
}

/// What is accepted is also stable: written and read again it is the same bytes.
fn decode<T>(bytes: &[u8])
where
    T: ToProto + FromProto<Proto = <T as ToProto>::Proto>,
    <T as ToProto>::Proto: Message + Default,
{
    let Ok(proto) = Message::decode(bytes) else { return };
    let Ok(value) = T::from_proto(proto) else { return };
    let once = value.to_proto().encode_to_vec();
    let again = T::from_proto(Message::decode(once.as_slice()).unwrap()).unwrap();
    // Bytes, not values: a failure ratio that is not a number differs from itself.
    assert_eq!(again.to_proto().encode_to_vec(), once);
}
