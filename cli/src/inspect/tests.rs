//! The shape that scripts written for Docker read.

use orch_model::{
    Annotations, NetworkId, ServiceId, Timestamp, Version,
    network::NodeNetwork,
    service::{ContainerSpec, Endpoint, EndpointSpec, Service, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, Vip},
};

use super::*;

fn sample() -> Service {
    let container = ContainerSpec {
        image: "web:1".into(),
        image_digest: Some("sha256:ab".into()),
        env: vec!["A=1".into()],
        mounts: vec![crate::flags::mount::parse("source=data,target=/d").unwrap()],
        ..ContainerSpec::default()
    };
    let ports = crate::flags::port::parse("8080:80").unwrap();
    Service {
        id: ServiceId::from_random(1),
        meta: Meta {
            version: Version(9),
            created_at: Timestamp::from_unix_ms(1_700_000_000_000),
            updated_at: Timestamp::from_unix_ms(1_700_000_000_000),
        },
        spec: ServiceSpec {
            annotations: Annotations { name: "web".into(), ..Annotations::default() },
            task: TaskSpec { container, ..TaskSpec::default() },
            mode: ServiceMode::Replicated { replicas: 2 },
            update: Some(UpdateConfig::default()),
            rollback: None,
            endpoint: EndpointSpec { ports: ports.clone(), ..EndpointSpec::default() },
            depends_on: Vec::new(),
        },
        spec_version: Version(9),
        previous_spec: None,
        endpoint: Endpoint {
            ports,
            vips: vec![Vip { network: NetworkId::from_random(2), addr: "10.0.1.2/24".parse().unwrap() }],
            problem: None,
        },
        update_status: None,
        removing: false,
    }
}

#[test]
fn a_service_has_dockers_shape() {
    let expected = json!({
        "ID": "0000000000000000000000001",
        "Version": {"Index": 9},
        "CreatedAt": "2023-11-14T22:13:20Z",
        "UpdatedAt": "2023-11-14T22:13:20Z",
        "Spec": {
            "Name": "web",
            "Labels": {},
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "web:1@sha256:ab",
                    "Env": ["A=1"],
                    "Mounts": [{"Type": "volume", "Source": "data", "Target": "/d"}],
                    "StopGracePeriod": 10_000_000_000_u64,
                    "Isolation": "default"
                },
                "Resources": {"Limits": {}, "Reservations": {}},
                "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0},
                "Placement": {},
                "ForceUpdate": 0,
                "Runtime": "container"
            },
            "Mode": {"Replicated": {"Replicas": 2}},
            "UpdateConfig": {
                "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64,
                "MaxFailureRatio": 0, "Order": "stop-first"
            },
            "RollbackConfig": {
                "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64,
                "MaxFailureRatio": 0, "Order": "stop-first"
            },
            "EndpointSpec": {
                "Mode": "vip",
                "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]
            }
        },
        "Endpoint": {
            "Spec": {
                "Mode": "vip",
                "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]
            },
            "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}],
            "VirtualIPs": [{"NetworkID": "0000000000000000000000002", "Addr": "10.0.1.2/24"}]
        }
    });
    assert_eq!(native::shown(&service(&sample())), expected);
}

/// Docker's templates read Go's structs, where a field that nobody set exists all the same.
#[test]
fn templates_find_what_nobody_set() {
    use orch_proto::wire;
    for (object, template, want) in [
        (service(&sample()), "{{with .UpdateStatus}}{{.State}}{{end}}", ""),
        (
            service(&sample()),
            "{{.UpdateStatus}}{{.PreviousSpec}}{{.ServiceStatus}}{{.JobStatus}}",
            "<nil><nil><nil><nil>",
        ),
        (
            service(&sample()),
            "{{with .Spec.TaskTemplate.ContainerSpec}}<{{.User}}{{.Dir}}> {{.StopGracePeriod}}{{end}}",
            "<> 10s",
        ),
        (
            service(&sample()),
            "{{.Spec.UpdateConfig.Parallelism}} {{.Spec.UpdateConfig.Delay}} {{.Spec.TaskTemplate.RestartPolicy.Delay}}",
            "1 0s 5s",
        ),
        (
            service(&sample()),
            "{{json .Spec.TaskTemplate.ContainerSpec.Secrets}} {{.Spec.TaskTemplate.LogDriver}}",
            "null <nil>",
        ),
        (
            local_container(&wire::ContainerDetails::default()),
            "{{.State.Health}}{{with .State.Health}}{{.Status}}{{end}}",
            "<nil>",
        ),
        (local_network(&wire::LocalNetwork::default()), "{{json .Peers}}", "null"),
        (volume(&wire::Volume::default()), "{{.Status}} {{.UsageData}}", "map[] <nil>"),
    ] {
        let template_of = orch_template::Template::parse(template).unwrap();
        assert_eq!(template_of.render(&object).as_deref(), Ok(want), "{template}");
    }
}

/// As `network ls` lists it.
#[test]
fn a_network_of_the_nodes_is_shown_by_its_id() {
    for (network, target) in
        [(NodeNetwork::Host, "host000000000000000000000"), (NodeNetwork::Bridge, "bridge0000000000000000000")]
    {
        let mut shown = sample();
        shown.spec.task.node_network = Some(network);
        assert_eq!(native::shown(&service(&shown))["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": target}]));
        assert_eq!(NodeNetwork::find(target), Some(network));
    }
}

/// What scripts for Docker read of a container that was started with many options.
#[test]
fn a_container_has_dockers_shape() {
    use orch_proto::{conv::ToProto, wire};
    let spec = TaskSpec {
        container: ContainerSpec {
            hosts: vec!["10.0.0.1 db cache".into()],
            devices: ["/dev/null:/dev/x", "/dev/null:r", "/dev/null", "/dev/null:/dev/y:rw"].map(Into::into).into(),
            stop_grace_period: Some(std::time::Duration::from_secs(3)),
            ..ContainerSpec::default()
        },
        ..TaskSpec::default()
    };
    let tmpfs = wire::MountPoint { kind: "tmpfs".into(), target: "/t".into(), ..wire::MountPoint::default() };
    let data = wire::MountPoint { kind: "volume".into(), target: "/d".into(), ..wire::MountPoint::default() };
    let options =
        wire::LocalOptions { tmpfs: [("/t".into(), "size=1m".into())].into(), ..wire::LocalOptions::default() };
    let details = |network: &str| wire::ContainerDetails {
        spec: Some(spec.to_proto()),
        container: Some(wire::Container { pid: 7, state: "running".into(), ..wire::Container::default() }),
        local: Some(wire::LocalContainer {
            network: network.into(),
            options: Some(options.clone()),
            ..wire::LocalContainer::default()
        }),
        files_dir: "/run/orch/files/abc".into(),
        root: Some(wire::RootDirs {
            lower: vec!["/l/2".into(), "/l/1".into()],
            upper: "/c/upper".into(),
            ..wire::RootDirs::default()
        }),
        mounts: vec![tmpfs.clone(), data.clone()],
        exposed: vec!["80/tcp".into()],
        ..wire::ContainerDetails::default()
    };
    let device = |path: &str, access: &str| json!({"PathOnHost": "/dev/null", "PathInContainer": path, "CgroupPermissions": access});
    let shown = local_container(&details(""));
    for (pointer, want) in [
        ("/HostConfig/ExtraHosts", json!(["db:10.0.0.1", "cache:10.0.0.1"])),
        (
            "/HostConfig/Devices",
            json!([
                device("/dev/x", "rwm"),
                device("/dev/null", "r"),
                device("/dev/null", "rwm"),
                device("/dev/y", "rw")
            ]),
        ),
        ("/Config/StopTimeout", json!(3)),
        ("/HostsPath", json!("/run/orch/files/abc/hosts")),
        ("/ResolvConfPath", json!("/run/orch/files/abc/resolv.conf")),
        ("/GraphDriver/Data/UpperDir", json!("/c/upper")),
        ("/GraphDriver/Data/LowerDir", json!("/l/2:/l/1")),
        ("/NetworkSettings/SandboxKey", json!("/proc/7/ns/net")),
        ("/NetworkSettings/Ports", json!({"80/tcp": null})),
    ] {
        assert_eq!(native::shown(&shown).pointer(pointer), Some(&want), "{pointer}");
    }
    assert_eq!(native::shown(&shown)["Mounts"].as_array().map(Vec::len), Some(1), "--tmpfs is in HostConfig alone");
    assert_eq!(native::shown(&local_container(&details("host")))["NetworkSettings"]["Ports"], json!({}));
    for (template, want) in [
        ("{{.HostConfig.CpuQuota}} {{.HostConfig.PublishAllPorts}} {{len .HostConfig.MaskedPaths}}", "0 false 0"),
        ("<{{.NetworkSettings.Gateway}}> {{.ExecIDs}} {{.Config.AttachStdout}}", "<> [] false"),
    ] {
        let template_of = orch_template::Template::parse(template).unwrap();
        assert_eq!(template_of.render(&shown).as_deref(), Ok(want), "{template}");
    }
}

#[test]
fn a_containers_health_check_is_the_users_over_the_images() {
    use orch_model::service::HealthConfig;
    use orch_proto::{conv::ToProto, wire};
    let seconds = std::time::Duration::from_secs;
    let check = |test: &str, interval: Option<u64>, retries: u32| HealthConfig {
        test: if test.is_empty() { Vec::new() } else { vec!["CMD".into(), test.into()] },
        interval: interval.map(seconds),
        retries,
        timeout: None,
        start_period: None,
        start_interval: None,
    };
    for (own, of_image, want) in [
        (None, None, json!(null)),
        (None, Some(check("image", None, 7)), json!({"Test": ["CMD", "image"], "Retries": 7})),
        (Some(check("own", None, 2)), None, json!({"Test": ["CMD", "own"], "Retries": 2})),
        (
            Some(check("", Some(9), 0)),
            Some(check("image", Some(1), 7)),
            json!({"Test": ["CMD", "image"], "Interval": 9_000_000_000_u64, "Retries": 7}),
        ),
        (Some(check("own", None, 0)), Some(check("image", None, 7)), json!({"Test": ["CMD", "own"], "Retries": 7})),
    ] {
        let container = ContainerSpec { health: own, ..ContainerSpec::default() };
        let details = wire::ContainerDetails {
            spec: Some(TaskSpec { container, ..TaskSpec::default() }.to_proto()),
            image: Some(wire::ImageWords { health: of_image.map(|check| check.to_proto()), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(native::shown(&local_container(&details))["Config"]["Healthcheck"], want);
    }
}

#[test]
fn an_images_names_are_as_users_type_them() {
    let names =
        ["docker.io/library/web:1", "docker.io/team/web:1", "reg:5000/web:1", "docker.io/library/web@sha256:ab"];
    let stored = orch_proto::wire::LocalImage { names: names.map(str::to_owned).to_vec(), ..Default::default() };
    let shown = native::shown(&image(&stored));
    assert_eq!(shown["RepoTags"], json!(["web:1", "team/web:1", "reg:5000/web:1"]));
    assert_eq!(shown["RepoDigests"], json!(["web@sha256:ab"]));
}

#[test]
fn a_tasks_networks_have_their_names() {
    use orch_proto::wire;
    let network = wire::ContainerNetwork {
        network: "shop".into(),
        network_id: "n1".into(),
        given: vec!["10.0.1.5/24".into(), "fd00::5/64".into()],
        ..Default::default()
    };
    let details = wire::ContainerDetails {
        container: Some(wire::Container { networks: vec!["shop".into()], ..Default::default() }),
        networks: vec![network],
        ..Default::default()
    };
    let shown = native::shown(&local_container(&details))["NetworkSettings"]["Networks"].clone();
    assert_eq!(shown["shop"]["NetworkID"], "n1");
    assert_eq!((&shown["shop"]["IPAddress"], &shown["shop"]["IPPrefixLen"]), (&json!("10.0.1.5"), &json!(24)));
    assert_eq!(shown["shop"]["GlobalIPv6Address"], "fd00::5");
}
