//! Objects as JSON in the shape and with the names of Docker Engine's API, for `inspect` and templates.
//!
//! Pure. Scripts written for Docker read these fields, so a name here is never changed; fields that Docker does not
//! have are only ever added.

mod container;
mod node;
mod objects;
mod service;
mod state;

pub(crate) use node::{availability_word, node, role_word, state_word};
pub(crate) use objects::{config, image, local_network, network, secret, task, volume};
pub(crate) use service::{balance, endpoint_mode, service, update_state_word};
pub(crate) use state::local_container;

use orch_model::{Meta, service::PortConfig};
use orch_template::native::{self, Zero};
use serde_json::{Map, Value, json};

use crate::{
    flags::duration,
    render::{ports, time},
};

/// Builds an object; what is empty (Go's `omitempty`) is left out unless [`Fields::always`] put it in. Templates find it
/// with Go's zero value all the same; [`native::shown`] is the object as JSON.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn always(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    fn some(self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        match Zero::of(&value) {
            Some(zero) => self.unset(name, zero),
            None => self.always(name, value),
        }
    }

    /// A field of Docker's that is never set here.
    fn unset(mut self, name: &str, zero: Zero) -> Self {
        native::hide(&mut self.0, name, zero);
        self
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// `ID`, `Version`, `CreatedAt`, `UpdatedAt`.
fn head(id: &str, meta: &Meta) -> Fields {
    Fields::default()
        .always("ID", id)
        .always("Version", json!({ "Index": meta.version.0 }))
        .always("CreatedAt", time::rfc3339(meta.created_at))
        .always("UpdatedAt", time::rfc3339(meta.updated_at))
}

fn port_list(list: &[PortConfig]) -> Value {
    let port = |p: &PortConfig| {
        Fields::default()
            .some("Name", p.name.as_str())
            .always("Protocol", ports::protocol_word(p.protocol))
            .always("TargetPort", p.target_port)
            .some("PublishedPort", p.published_port)
            .always("PublishMode", ports::mode_word(p.publish_mode))
            .some("HostIP", p.host_ip.map_or_else(String::new, |addr| addr.to_string()))
            .some("Source", if p.masquerade { "masquerade" } else { "" })
            .done()
    };
    list.iter().map(port).collect()
}

/// A number in JSON; templates print it as Go does: `10s`.
fn nanos(length: std::time::Duration) -> Value {
    native::printed(&duration::show(length), u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).into())
}

#[cfg(test)]
mod tests;
