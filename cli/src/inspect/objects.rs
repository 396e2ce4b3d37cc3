//! Tasks, networks, secrets, configs, images and volumes.

use std::sync::Arc;

use orch_model::{
    Annotations, Meta, Timestamp,
    network::{IpamConfig, Network, predefined_id},
    secret::{Config, Secret, TemplateDriver},
    task::{Task, TaskState},
};
use orch_proto::wire;
use orch_template::native::Zero;
use serde_json::{Value, json};

use super::{Fields, head, port_list, service::task_spec};
use crate::{commands::image::familiar, render::time};

pub(crate) fn task(task: &Task) -> Value {
    let status = &task.status;
    let container = status.container.as_ref().map(|c| {
        Fields::default()
            .always("ContainerID", c.container_id.as_str())
            .always("PID", c.pid)
            .some("ExitCode", c.exit_code)
            .done()
    });
    let attachment = |a: &orch_model::task::TaskAttachment| {
        let addresses: Vec<String> = a.addresses.iter().map(ToString::to_string).collect();
        json!({"Network": {"ID": a.network.as_str()}, "Addresses": addresses, "Aliases": a.aliases})
    };
    let of_node = task.spec.node_network.map(|n| json!({"Network": {"ID": predefined_id(n.name())}}));
    head(task.id.as_str(), &task.meta)
        .always("Name", task.name())
        .always("Labels", json!(&task.service_annotations.labels))
        .always("Spec", task_spec(&task.spec))
        .always("ServiceID", task.service.as_str())
        .some("Slot", task.slot)
        .some("NodeID", task.node.as_ref().map(|n| n.to_string()).unwrap_or_default())
        .always(
            "Status",
            Fields::default()
                .always("Timestamp", time::rfc3339(status.at))
                .always("State", word(status.state))
                .always("Message", status.message.as_str())
                .some("Err", status.error.clone().unwrap_or_default())
                .some("ContainerStatus", container)
                .always("PortStatus", json!({"Ports": port_list(&task.host_ports)}))
                .done(),
        )
        .always("DesiredState", word(task.desired_state))
        .some("NetworksAttachments", task.networks.iter().map(attachment).chain(of_node).collect::<Value>())
        .unset("GenericResources", Zero::List)
        .unset("JobIteration", Zero::Pointer)
        .unset("Volumes", Zero::List)
        .done()
}

fn word(state: TaskState) -> String {
    state.word().to_lowercase()
}

/// A network of this node alone, with who runs on it.
pub(crate) fn local_network(network: &wire::LocalNetwork) -> Value {
    let ipam = |config: &wire::IpamConfig| {
        Fields::default()
            .always("Subnet", config.subnet.as_str())
            .some("IPRange", config.range.clone().unwrap_or_default())
            .some("Gateway", config.gateway.clone().unwrap_or_default())
            .done()
    };
    let members = network.members.iter().map(|one| (one.container_id.clone(), member(&one.name, &one.addresses)));
    Fields::default()
        .always("Name", network.name.as_str())
        .always("Id", network.id.as_str())
        .always("Created", time::rfc3339(Timestamp::from_unix_ms(network.created_at_ms)))
        .always("Scope", "local")
        .always("Driver", network.driver.as_str())
        .always("EnableIPv4", true)
        .always("EnableIPv6", network.ipv6)
        .always(
            "IPAM",
            json!({"Driver": "default", "Options": null, "Config": network.ipam.iter().map(ipam).collect::<Value>()}),
        )
        .always("Internal", network.internal)
        .always("Attachable", false)
        .always("Ingress", false)
        .always("ConfigFrom", json!({"Network": ""}))
        .always("ConfigOnly", false)
        .always("Containers", members.collect::<serde_json::Map<_, _>>())
        .always("Options", json!(network.options))
        .always("Labels", json!(network.labels))
        .unset("Peers", Zero::List)
        .unset("Services", Zero::Map)
        .done()
}

/// One container on a network.
fn member(name: &str, addresses: &[String]) -> Value {
    let of_family = |v6: bool| addresses.iter().find(|a| a.contains(':') == v6).cloned().unwrap_or_default();
    json!({
        "Name": name,
        "EndpointID": "",
        "MacAddress": "",
        "IPv4Address": of_family(false),
        "IPv6Address": of_family(true),
    })
}

/// `here`: what of it runs on this node, each with its container's id.
pub(crate) fn network(network: &Network, here: &[(String, Arc<Task>)]) -> Value {
    let members = here.iter().filter_map(|(container, task)| {
        let attachment = task.networks.iter().find(|n| n.network == network.id)?;
        let addresses: Vec<String> = attachment.addresses.iter().map(ToString::to_string).collect();
        let name = if task.is_one_off() { task.name() } else { task.container_name() };
        Some((container.clone(), member(&name, &addresses)))
    });
    let configs = network.allocation.as_ref().map_or(&network.spec.ipam, |a| &a.ipam);
    let ipam = |config: &IpamConfig| {
        Fields::default()
            .always("Subnet", config.subnet.to_string())
            .some("IPRange", config.range.map(|r| r.to_string()).unwrap_or_default())
            .unset("AuxiliaryAddresses", Zero::Map)
            .some("Gateway", config.gateway.map(|g| g.to_string()).unwrap_or_default())
            .done()
    };
    let mut options = network.spec.driver_options.clone();
    if let Some(allocation) = &network.allocation {
        options.entry("com.docker.network.driver.overlay.vxlanid_list".into()).or_insert(allocation.vni.to_string());
    }
    Fields::default()
        .always("Name", network.spec.annotations.name.as_str())
        .always("Id", network.id.as_str())
        .always("Created", time::rfc3339(network.meta.created_at))
        .always("Scope", "swarm")
        .always("Driver", network.spec.driver.as_str())
        .always("EnableIPv4", true)
        .always("EnableIPv6", network.spec.has_ipv6())
        .always(
            "IPAM",
            json!({"Driver": "default", "Options": null, "Config": configs.iter().map(ipam).collect::<Value>()}),
        )
        .always("Internal", network.spec.internal)
        .always("Attachable", network.spec.attachable)
        .always("Ingress", network.spec.ingress)
        .always("ConfigFrom", json!({"Network": ""}))
        .always("ConfigOnly", false)
        .always("Containers", members.collect::<serde_json::Map<_, _>>())
        .always("Options", json!(options))
        .always("Labels", json!(network.spec.annotations.labels))
        .some("Problem", network.problem.clone().unwrap_or_default())
        .unset("Peers", Zero::List)
        .unset("Services", Zero::Map)
        .done()
}

/// The content is never shown.
pub(crate) fn secret(secret: &Secret) -> Value {
    named(secret.id.as_str(), &secret.meta, &secret.annotations, None, secret.template)
}

pub(crate) fn config(config: &Config) -> Value {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(&config.data);
    named(config.id.as_str(), &config.meta, &config.annotations, Some(data), config.template)
}

fn named(
    id: &str,
    meta: &Meta,
    annotations: &Annotations,
    data: Option<String>,
    template: Option<TemplateDriver>,
) -> Value {
    let spec = Fields::default()
        .always("Name", annotations.name.as_str())
        .always("Labels", json!(annotations.labels))
        .some("Data", data.map_or(json!([]), Value::from))
        .unset("Driver", Zero::Pointer)
        .some("Templating", template.map(|TemplateDriver::Golang| json!({"Name": "golang"})))
        .done();
    head(id, meta).always("Spec", spec).done()
}

pub(crate) fn image(image: &wire::LocalImage) -> Value {
    let oci: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let names = image.names.iter().map(|name| familiar(name));
    let (digests, tags): (Vec<&str>, Vec<&str>) = names.partition(|name| name.contains('@'));
    Fields::default()
        .always("Id", image.config_digest.as_str())
        .always("RepoTags", json!(tags))
        .always("RepoDigests", json!(digests))
        .always("Created", time::rfc3339(Timestamp::from_unix_ms(image.created_at_ms)))
        .always("Size", image.size_bytes)
        .always("Architecture", oci["architecture"].clone())
        .always("Os", oci["os"].clone())
        .always("Config", oci["config"].clone())
        .always("RootFS", json!({"Type": "layers", "Layers": oci["rootfs"]["diff_ids"]}))
        .done()
}

pub(crate) fn volume(volume: &wire::Volume) -> Value {
    Fields::default()
        .always("CreatedAt", time::rfc3339(Timestamp::from_unix_ms(volume.created_at_ms)))
        .always("Driver", volume.driver.as_str())
        .always("Labels", json!(volume.labels))
        .always("Mountpoint", volume.mountpoint.as_str())
        .always("Name", volume.name.as_str())
        .always("Options", json!(volume.options))
        .always("Scope", "local")
        .unset("Status", Zero::Map)
        .unset("ClusterVolume", Zero::Pointer)
        .unset("UsageData", Zero::Pointer)
        .done()
}
