//! Two macros that write the conversions which are alike for every message and every enum.
//!
//! Both sides are taken apart without a rest pattern: a field or variant that is added to the model, or a field that is
//! added to the wire, does not compile until it is converted.

/// Implements both conversions for a struct and the message of the same name (or `Model as Message`).
///
/// - `values`: fields of the same name whose wire form is always there;
/// - `renamed`: the same, `model => wire` (`delay => delay_ms`);
/// - `parts`: messages that must be present;
/// - `blobs`: bytes.
macro_rules! record {
    ($name:ident { $($body:tt)* }) => {
        $crate::conv::record::record!($name as $name { $($body)* });
    };
    ($name:ident as $wire:ident {
        $(values: $($value:ident),+;)?
        $(renamed: $($from:ident => $to:ident),+;)?
        $(parts: $($part:ident),+;)?
        $(blobs: $($blob:ident),+;)?
    }) => {
        impl $crate::conv::ToProto for $name {
            type Proto = $crate::wire::$wire;

            fn to_proto(&self) -> Self::Proto {
                let Self { $($($value,)+)? $($($from,)+)? $($($part,)+)? $($($blob,)+)? } = self;
                $crate::wire::$wire {
                    $($($value: $crate::conv::ToProto::to_proto($value),)+)?
                    $($($to: $crate::conv::ToProto::to_proto($from),)+)?
                    $($($part: Some($crate::conv::ToProto::to_proto($part)),)+)?
                    $($($blob: bytes::Bytes::copy_from_slice($blob),)+)?
                }
            }
        }

        impl $crate::conv::FromProto for $name {
            type Proto = $crate::wire::$wire;

            fn from_proto(proto: Self::Proto) -> Result<Self, $crate::conv::DecodeError> {
                let $crate::wire::$wire { $($($value,)+)? $($($to,)+)? $($($part,)+)? $($($blob,)+)? } = proto;
                Ok(Self {
                    $($($value: $crate::conv::field($value, stringify!($wire), stringify!($value))?,)+)?
                    $($($from: $crate::conv::field($to, stringify!($wire), stringify!($to))?,)+)?
                    $($($part: $crate::conv::required($part, stringify!($wire), stringify!($part))?,)+)?
                    $($($blob: $blob.into(),)+)?
                })
            }
        }
    };
}

/// Implements both conversions for an enum without data and the wire enum of the same name, variant by variant.
macro_rules! choice {
    ($name:ident { $($variant:ident),+ $(,)? }) => {
        impl $crate::conv::ToProto for $name {
            type Proto = i32;

            fn to_proto(&self) -> Self::Proto {
                match self {
                    $(Self::$variant => $crate::wire::$name::$variant.into(),)+
                }
            }
        }

        impl $crate::conv::FromProto for $name {
            type Proto = i32;

            fn from_proto(proto: Self::Proto) -> Result<Self, $crate::conv::DecodeError> {
                match $crate::wire::$name::try_from(proto) {
                    $(Ok($crate::wire::$name::$variant) => Ok(Self::$variant),)+
                    // Also `Unspecified`: whoever wrote this forgot the field.
                    _ => Err($crate::conv::DecodeError::new($crate::conv::Problem::UnknownValue(proto))),
                }
            }
        }
    };
}

pub(super) use {choice, record};
