//! What only the node can say of `run`'s flags: another container's volumes, the node's own address.

use anyhow::{Context as _, bail};
use orch_model::{
    resolver::{self, HOST_GATEWAY},
    service::{Mount, MountKind},
};
use orch_proto::{conv::FromProto as _, wire};

use super::{CreateArgs, Failure};
use crate::api::{Worker, explain};

/// What the node has said.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    /// Of `--volumes-from`.
    pub(super) mounts: Vec<Mount>,
    /// What `host-gateway` stands for; empty where nobody asked.
    pub(super) address: String,
}

impl Given {
    pub(super) async fn ask(args: &CreateArgs, worker: &mut Worker) -> Result<Self, Failure> {
        let mut given = Self::default();
        for from in &args.volumes_from {
            let request = wire::ContainerReference { reference: from.container.clone() };
            let details = worker.inspect_container(request).await.map_err(explain)?.into_inner();
            given.mounts.extend(mounts_of(&details, from)?);
        }
        if args.add_host.iter().any(|line| resolver::is_of_node(line)) {
            let node = worker.info(wire::Empty {}).await.map_err(explain)?.into_inner().description.unwrap_or_default();
            given.address = node.data_addr.unwrap_or_default();
        }
        Ok(given)
    }

    /// A line of /etc/hosts with the address in it.
    pub(super) fn host(&self, line: &str) -> String {
        line.replacen(HOST_GATEWAY, &self.address, usize::from(resolver::is_of_node(line)))
    }
}

/// `CONTAINER[:ro|rw]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumesFrom {
    container: String,
    /// `None`: as the other has them.
    read_only: Option<bool>,
}

pub(super) fn volumes_from(text: &str) -> Result<VolumesFrom, String> {
    let (container, mode) = text.split_once(':').unwrap_or((text, ""));
    let read_only = match mode {
        "" => None,
        "ro" => Some(true),
        "rw" => Some(false),
        other => return Err(format!("{other:?} is not a mode: expected CONTAINER[:ro|rw]")),
    };
    if container.is_empty() {
        return Err("no container: expected CONTAINER[:ro|rw]".to_owned());
    }
    Ok(VolumesFrom { container: container.to_owned(), read_only })
}

/// Its volumes and binds, as Docker has it; what is in memory stays its own.
fn mounts_of(details: &wire::ContainerDetails, from: &VolumesFrom) -> anyhow::Result<Vec<Mount>> {
    let container = details.container.as_ref();
    let has_run = container.is_none_or(|container| container.state != "created");
    let declares = details.image.as_ref().is_some_and(|image| !image.volumes.is_empty());
    if !has_run && (declares || details.mounts.iter().any(|mount| mount.kind == "volume" && mount.name.is_empty())) {
        bail!(
            "--volumes-from {}: the container's anonymous volumes are made when it starts: start it first",
            from.container
        );
    }
    let container = details.spec.as_ref().and_then(|spec| spec.container.as_ref());
    let all_asked = container.map_or(&[][..], |container| &container.mounts);
    let mut mounts = Vec::new();
    for mount in &details.mounts {
        let (kind, source) = match mount.kind.as_str() {
            "bind" => (MountKind::Bind, &mount.source),
            "volume" => (MountKind::Volume, &mount.name),
            _ => continue,
        };
        let asked = all_asked.iter().find(|asked| asked.target == mount.target).cloned().unwrap_or_default();
        mounts.push(Mount {
            kind,
            source: source.clone(),
            target: mount.target.clone(),
            // What the other may not write to, nobody may through it.
            read_only: mount.read_only || from.read_only == Some(true),
            propagation: mount.propagation.clone(),
            bind_recursive: Option::from_proto(asked.bind_recursive).with_context(|| {
                format!("--volumes-from {}: what is mounted below {}", from.container, mount.target)
            })?,
            volume_subpath: asked.volume_subpath,
            ..Mount::default()
        });
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use orch_model::service::BindRecursive;
    use orch_proto::conv::ToProto as _;

    use super::*;

    #[test]
    fn volumes_and_binds_of_another_container_are_taken() {
        let mount = |kind: &str, name: &str, source: &str, target: &str, read_only| wire::MountPoint {
            kind: kind.to_owned(),
            name: name.to_owned(),
            source: source.to_owned(),
            target: target.to_owned(),
            read_only,
            propagation: String::new(),
        };
        let mut details = wire::ContainerDetails {
            container: Some(wire::Container { state: "exited".to_owned(), ..wire::Container::default() }),
            mounts: vec![
                mount("volume", "data", "/var/lib/data", "/d", false),
                mount("bind", "", "/srv", "/s", true),
                mount("tmpfs", "", "", "/t", false),
            ],
            ..wire::ContainerDetails::default()
        };
        for (flag, want) in [
            ("store", &["Volume data /d rw", "Bind /srv /s ro"][..]),
            ("store:ro", &["Volume data /d ro", "Bind /srv /s ro"]),
            ("store:rw", &["Volume data /d rw", "Bind /srv /s ro"]),
        ] {
            let mounts = mounts_of(&details, &volumes_from(flag).unwrap()).unwrap();
            let mode = |mount: &Mount| if mount.read_only { "ro" } else { "rw" };
            let words = |m: &Mount| format!("{:?} {} {} {}", m.kind, m.source, m.target, mode(m));
            assert_eq!(mounts.iter().map(words).collect::<Vec<_>>(), want, "{flag}");
        }
        assert!(volumes_from("store:z").is_err() && volumes_from(":ro").is_err());
        details.container = Some(wire::Container { state: "created".to_owned(), ..wire::Container::default() });
        details.mounts = vec![mount("volume", "", "", "/d", false)];
        let refused = mounts_of(&details, &volumes_from("store").unwrap()).unwrap_err().to_string();
        assert!(refused.contains("start it first"), "{refused}");
    }

    #[test]
    fn what_is_mounted_below_a_bind_of_another_container_stays_as_it_has_it() {
        for recursive in
            [None, Some(BindRecursive::Disabled), Some(BindRecursive::Writable), Some(BindRecursive::Readonly)]
        {
            let mount = Mount {
                kind: MountKind::Bind,
                source: "/srv".to_owned(),
                target: "/s".to_owned(),
                read_only: true,
                propagation: "rprivate".to_owned(),
                bind_recursive: recursive,
                ..Mount::default()
            };
            let container = wire::ContainerSpec { mounts: vec![mount.to_proto()], ..wire::ContainerSpec::default() };
            let details = wire::ContainerDetails {
                spec: Some(wire::TaskSpec { container: Some(container), ..wire::TaskSpec::default() }),
                mounts: vec![wire::MountPoint {
                    kind: "bind".to_owned(),
                    name: String::new(),
                    source: mount.source.clone(),
                    target: mount.target.clone(),
                    read_only: mount.read_only,
                    propagation: mount.propagation.clone(),
                }],
                ..wire::ContainerDetails::default()
            };
            assert_eq!(mounts_of(&details, &volumes_from("store").unwrap()).unwrap(), [mount]);
        }
    }

    #[test]
    fn of_a_volume_no_more_is_taken_than_the_other_container_has() {
        let mount = Mount {
            source: "data".to_owned(),
            target: "/d".to_owned(),
            volume_subpath: "a/b".to_owned(),
            ..Mount::default()
        };
        let container = wire::ContainerSpec { mounts: vec![mount.to_proto()], ..wire::ContainerSpec::default() };
        let point =
            wire::MountPoint { kind: "volume".into(), name: "data".into(), target: "/d".into(), ..Default::default() };
        let details = wire::ContainerDetails {
            spec: Some(wire::TaskSpec { container: Some(container), ..wire::TaskSpec::default() }),
            mounts: vec![point],
            ..wire::ContainerDetails::default()
        };
        assert_eq!(mounts_of(&details, &volumes_from("store").unwrap()).unwrap(), [mount]);
    }

    #[test]
    fn the_nodes_address_stands_in_the_hosts_file() {
        let given = Given { address: "10.0.0.1".to_owned(), ..Given::default() };
        assert_eq!(given.host("host-gateway host.docker.internal"), "10.0.0.1 host.docker.internal");
        assert_eq!(given.host("1.2.3.4 host-gateway"), "1.2.3.4 host-gateway");
    }
}
