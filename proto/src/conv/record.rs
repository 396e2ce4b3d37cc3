//! Two macros that write the conversions which are the same for every message and every enum.
//!
//! Both sides are struct expressions and matches without a rest pattern: a field or variant that is added to the model
//! or to the wire does not compile until it is converted.

/// Implements both conversions for a struct and the message of the same name.
///
/// - `values`: fields whose wire form is always there; `model => wire` when the names differ (`delay => delay_ms`);
/// - `parts`: messages that must be present;
/// - `blobs`: bytes.
macro_rules! record {
    ($name:ident { $($body:tt)* }) => {
        $crate::conv::record::record!($name as $name { $($body)* });
    };
    ($name:ident as $wire:ident {
        $(values: $($value:ident $(=> $value_wire:ident)?),+ ;)?
        $(parts: $($part:ident),+ ;)?
        $(blobs: $($blob:ident),+ ;)?
    }) => {
        impl $crate::conv::ToProto for $name {
            type Proto = $crate::wire::$wire;

            fn to_proto(&self) -> Self::Proto {
                let Self { $($($value,)+)? $($($part,)+)? $($($blob,)+)? } = self;
                $crate::wire::$wire {
                    $($($crate::conv::record::wire_name!($value $($value_wire)?): $value.to_proto(),)+)?
                    $($($part: Some($part.to_proto()),)+)?
                    $($($blob: bytes::Bytes::copy_from_slice($blob),)+)?
                }
            }
        }
    };
}
