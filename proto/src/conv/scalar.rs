//! What fields are made of: identifiers, addresses, times, numbers, and collections of anything convertible.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use orch_model::{
    ClusterId, ConfigId, Duration, ImageId, NetworkId, NodeId, ParseIdError, SecretId, ServiceId, SessionId, TaskId,
    Timestamp, Version,
};

use super::{DecodeError, FromProto, Problem, ToProto};

/// Types that travel as themselves.
macro_rules! same {
    ($($name:ty),+) => {$(
        impl ToProto for $name {
            type Proto = Self;

            fn to_proto(&self) -> Self {
                self.clone()
            }
        }

        impl FromProto for $name {
            type Proto = Self;

            fn from_proto(proto: Self) -> Result<Self, DecodeError> {
                Ok(proto)
            }
        }
    )+};
}

same!(bool, u32, u64, i32, i64, f32, String);

/// Types that travel as text.
macro_rules! text {
    ($($name:ident: $problem:expr),+ $(,)?) => {$(
        impl ToProto for $name {
            type Proto = String;

            fn to_proto(&self) -> String {
                self.to_string()
            }
        }

        impl FromProto for $name {
            type Proto = String;

            fn from_proto(proto: String) -> Result<Self, DecodeError> {
                let parsed = proto.parse();
                parsed.map_err(|_| DecodeError::new($problem(proto)))
            }
        }
    )+};
}

text! {
    IpAddr: Problem::Address,
    IpNetwork: Problem::Network,
    ClusterId: not_an_id,
    NodeId: not_an_id,
    ServiceId: not_an_id,
    TaskId: not_an_id,
    NetworkId: not_an_id,
    SecretId: not_an_id,
    ConfigId: not_an_id,
    ImageId: not_an_id,
    SessionId: not_an_id,
}

fn not_an_id(text: String) -> Problem {
    Problem::Id(ParseIdError(text))
}

/// Numbers narrower than the narrowest that protobuf has.
macro_rules! narrow {
    ($($name:ty),+) => {$(
        impl ToProto for $name {
            type Proto = u32;

            fn to_proto(&self) -> u32 {
                (*self).into()
            }
        }

        impl FromProto for $name {
            type Proto = u32;

            fn from_proto(proto: u32) -> Result<Self, DecodeError> {
                let too_large = Problem::TooLarge { value: proto, max: Self::MAX.into() };
                proto.try_into().map_err(|_| DecodeError::new(too_large))
            }
        }
    )+};
}

narrow!(u8, u16);

impl ToProto for Version {
    type Proto = u64;

    fn to_proto(&self) -> u64 {
        self.0
    }
}

impl FromProto for Version {
    type Proto = u64;

    fn from_proto(proto: u64) -> Result<Self, DecodeError> {
        Ok(Self(proto))
    }
}

impl ToProto for Timestamp {
    type Proto = u64;

    fn to_proto(&self) -> u64 {
        self.unix_ms
    }
}

impl FromProto for Timestamp {
    type Proto = u64;

    fn from_proto(proto: u64) -> Result<Self, DecodeError> {
        Ok(Self::from_unix_ms(proto))
    }
}

impl ToProto for Duration {
    type Proto = u64;

    /// Rounds up to whole milliseconds, so that a short time never becomes the 0 that means "unlimited".
    fn to_proto(&self) -> u64 {
        self.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(u64::MAX)
    }
}

impl FromProto for Duration {
    type Proto = u64;

    fn from_proto(proto: u64) -> Result<Self, DecodeError> {
        Ok(Self::from_millis(proto))
    }
}

impl<T: ToProto> ToProto for Option<T> {
    type Proto = Option<T::Proto>;

    fn to_proto(&self) -> Self::Proto {
        self.as_ref().map(T::to_proto)
    }
}

impl<T: FromProto> FromProto for Option<T> {
    type Proto = Option<T::Proto>;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        proto.map(T::from_proto).transpose()
    }
}

impl<T: ToProto> ToProto for Vec<T> {
    type Proto = Vec<T::Proto>;

    fn to_proto(&self) -> Self::Proto {
        self.iter().map(T::to_proto).collect()
    }
}

impl<T: FromProto> FromProto for Vec<T> {
    type Proto = Vec<T::Proto>;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        proto.into_iter().map(T::from_proto).collect()
    }
}

impl<T: ToProto> ToProto for BTreeSet<T> {
    type Proto = Vec<T::Proto>;

    fn to_proto(&self) -> Self::Proto {
        self.iter().map(T::to_proto).collect()
    }
}

impl<T: FromProto + Ord> FromProto for BTreeSet<T> {
    type Proto = Vec<T::Proto>;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        proto.into_iter().map(T::from_proto).collect()
    }
}

impl<K: ToProto<Proto: Ord>, V: ToProto> ToProto for BTreeMap<K, V> {
    type Proto = BTreeMap<K::Proto, V::Proto>;

    fn to_proto(&self) -> Self::Proto {
        self.iter().map(|(key, value)| (key.to_proto(), value.to_proto())).collect()
    }
}

impl<K: FromProto<Proto: Ord> + Ord, V: FromProto> FromProto for BTreeMap<K, V> {
    type Proto = BTreeMap<K::Proto, V::Proto>;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        proto.into_iter().map(|(key, value)| Ok((K::from_proto(key)?, V::from_proto(value)?))).collect()
    }
}

impl<T: ToProto> ToProto for Arc<T> {
    type Proto = T::Proto;

    fn to_proto(&self) -> Self::Proto {
        T::to_proto(self)
    }
}

impl<T: FromProto> FromProto for Arc<T> {
    type Proto = T::Proto;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        T::from_proto(proto).map(Self::new)
    }
}

impl<T: ToProto> ToProto for Box<T> {
    type Proto = T::Proto;

    fn to_proto(&self) -> Self::Proto {
        T::to_proto(self)
    }
}

impl<T: FromProto> FromProto for Box<T> {
    type Proto = T::Proto;

    fn from_proto(proto: Self::Proto) -> Result<Self, DecodeError> {
        T::from_proto(proto).map(Self::new)
    }
}
