//! Requests: what is refused, in which words; finding things by name; the rules that `apply` keeps.

use std::{collections::BTreeMap, sync::Arc};

use orch_manager_core::{
    control::{self, Code, Registration},
    resolve,
    roles::{Seat, Seats},
    validate,
};
use orch_model::{
    Annotations, Object, SecretId, TaskId,
    change::{Change, Transaction},
    node::{Availability, NodeSpec},
    service::{
        ContainerSpec, EndpointMode, FileRef, LogDriver, Mount, MountKind, PortConfig, Protocol, PublishMode, Service,
        ServiceMode, ServiceSpec, Ulimit, WEIGHT_LABEL,
    },
    task::{Task, TaskState},
};

use crate::sim::{Sim, node_id, port, secs, web};

#[test]
fn specs_are_refused_with_a_sentence() {
    type Case = (&'static str, fn(&mut ServiceSpec));
    let mount = |kind, source: &str, target: &str| Mount {
        kind,
        source: source.into(),
        target: target.into(),
        ..tmpfs_mount()
    };
    let cases: [Case; 10] = [
        ("service name \"-web\" is not valid: name must be valid as a DNS name component", |s| {
            s.annotations.name = "-web".into();
        }),
        ("image reference must be provided", |s| s.task.container.image = String::new()),
        ("invalid reference format", |s| s.task.container.image = "No Image".into()),
        ("unknown key \"node.colour\"", |s| s.task.placement.constraints = vec!["node.colour == red".into()]),
        ("has no operator", |s| s.task.placement.constraints = vec!["node.role = manager".into()]),
        ("Must be at least 4MiB", |s| s.task.limits.memory_bytes = 1024),
        ("invalid cpu value 0.0005", |s| s.task.limits.nano_cpus = 500_000),
        ("port published with ingress mode can't be used with dnsrr mode", |s| {
            s.endpoint.mode = EndpointMode::DnsRoundRobin;
            s.endpoint.ports = vec![port(80, 80, PublishMode::Ingress)];
        }),
        ("duplicate published ports provided", |s| {
            s.endpoint.ports = vec![port(80, 80, PublishMode::Ingress), port(80, 81, PublishMode::Ingress)];
        }),
        ("Jobs may not have an update config", |s| {
            s.mode = ServiceMode::GlobalJob;
            s.update = Some(orch_model::service::UpdateConfig::default());
        }),
    ];
    for (words, edit) in cases {
        let mut spec = web("web", "nginx", 1);
        edit(&mut spec);
        let text = validate::service_spec(&spec).expect_err(words).to_string();
        assert!(text.contains(words), "{text}");
    }
    for (words, one) in [
        ("must be an absolute path", mount(MountKind::Volume, "data", "data")),
        ("invalid bind mount source", mount(MountKind::Bind, "data", "/data")),
        ("use type=bind", mount(MountKind::Volume, "/data", "/data")),
        (
            "subpath must be a relative path within the volume",
            Mount { volume_subpath: "a/../../b".into(), ..mount(MountKind::Volume, "data", "/data") },
        ),
        ("only a mount of type volume", Mount { volume_subpath: "a".into(), ..mount(MountKind::Bind, "/a", "/data") }),
        (
            "volume driver \"rexray\" is not known, only \"local\" is",
            Mount {
                volume_driver: Some(LogDriver { name: "rexray".into(), ..LogDriver::default() }),
                ..mount(MountKind::Volume, "data", "/data")
            },
        ),
    ] {
        let mut spec = web("web", "nginx", 1);
        spec.task.container.mounts = vec![one];
        let text = validate::service_spec(&spec).expect_err(words).to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn ports_of_the_cluster_are_not_published() {
    let mut sim = Sim::new(1);
    for (number, protocol, words) in [
        (2377, Protocol::Tcp, "port 2377/tcp cannot be published: managers answer on it"),
        (7946, Protocol::Tcp, "port 7946/tcp cannot be published: nodes reach each other on it"),
        (7946, Protocol::Udp, "port 7946/udp cannot be published"),
        (7947, Protocol::Udp, "port 7947/udp cannot be published: encrypted networks connect nodes on it"),
        (4789, Protocol::Udp, "port 4789/udp cannot be published: the cluster's networks connect nodes on it"),
    ] {
        for mode in [PublishMode::Ingress, PublishMode::Host] {
            let mut spec = web("web", "nginx", 1);
            spec.endpoint.ports = vec![PortConfig::new(protocol, number, 80, mode)];
            let refused = sim.create(spec).expect_err(words);
            assert!(refused.text.starts_with(words) && refused.text.ends_with("publish another port"), "{refused}");
        }
    }
    let mut spec = web("web", "nginx", 1);
    spec.endpoint.ports = vec![PortConfig::new(Protocol::Udp, 2377, 7946, PublishMode::Ingress)];
    sim.create(spec).expect("another protocol, and inside the container all are free");
    let refused = sim.update("web", |s| s.endpoint.ports = vec![port(2377, 80, PublishMode::Ingress)]);
    assert!(refused.expect_err("refused").text.contains("managers answer"));

    // As an earlier version stored it.
    let mut service = Service::clone(&sim.service("web"));
    service.spec.endpoint.ports = vec![port(2377, 80, PublishMode::Ingress)];
    sim.commit_changes(vec![Change::Update(Object::Service(Arc::new(service)))]);
    sim.scale("web", 2);
    let refused = sim.update("web", |s| s.endpoint.ports.push(port(7946, 80, PublishMode::Ingress)));
    assert!(refused.expect_err("another").text.starts_with("port 7946/tcp"));
}

#[test]
fn a_node_with_labels_of_an_earlier_version_is_still_drained() {
    let mut sim = Sim::new(2);
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let old = [("a b", "1"), (WEIGHT_LABEL, "many")];
    sim.edit_node(2, |n| n.spec.annotations.labels = labels(&old));
    let update = |edit: &dyn Fn(&mut NodeSpec)| {
        let node = sim.state.node(&node_id(2)).expect("n2");
        let mut spec = node.spec.clone();
        edit(&mut spec);
        let seats = Seats { leader: 1, all: Vec::new() };
        control::update_node(&sim.state, sim.now, &node.id, node.meta.version, spec, &seats)
    };
    update(&|spec| spec.availability = Availability::Drain).expect("drained");
    let with = |name: &'static str, value: &'static str| {
        update(&move |spec| drop(spec.annotations.labels.insert(name.to_owned(), value.to_owned())))
    };
    with("c", "1").expect("a label");
    assert!(with("c d", "1").expect_err("a space").text.contains("a label needs a name without spaces"));
    assert!(with(WEIGHT_LABEL, "few").expect_err("no number").text.contains("whole number"));
}

/// What would begin another line of a file, leave a folder, or only fail on a node is refused before it is stored.
#[test]
fn values_are_refused_before_a_node_meets_them() {
    type Edit = fn(&mut ContainerSpec, &str);
    let user: Edit = |c, text| c.user = text.into();
    let group: Edit = |c, text| c.groups = vec![text.into()];
    let host: Edit = |c, text| c.hosts = vec![text.into()];
    let search: Edit = |c, text| c.dns.search = vec![text.into()];
    let option: Edit = |c, text| c.dns.options = vec![text.into()];
    let sysctl: Edit = |c, text| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        c.sysctls = [(key.to_owned(), value.to_owned())].into();
    };
    let ulimit: Edit = |c, text| {
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        c.ulimits = vec![Ulimit {
            name: "nofile".into(),
            soft: soft.parse().expect("a number"),
            hard: hard.parse().expect("a number"),
        }];
    };
    let target: Edit = |c, text| c.secrets = vec![file(text, "0")];
    let owner: Edit = |c, text| c.secrets = vec![file("s", text)];
    let label: Edit = |c, text| c.labels = [(text.to_owned(), String::new())].into();
    let dir: Edit = |c, text| c.dir = text.into();
    let hostname: Edit = |c, text| c.hostname = text.into();
    let tmpfs: Edit = |c, text| {
        let mounts = text.split(' ').map(|target| Mount { target: target.into(), ..tmpfs_mount() });
        c.mounts = mounts.collect();
    };
    let cases: [(&str, Edit, &[&str], &[&str]); 13] = [
        ("user", user, &["root", "0:0", "app:"], &["a b", "a\nb", "-1", "1:2:3", "99999999999"]),
        ("group", group, &["video", "44"], &["", "a b", "a:b", "-1"]),
        ("host", host, &["1.2.3.4 db", "::1 a b"], &["db", "1.2.3.4", "1.2.3.4 a\n6.6.6.6 bank", "1.2.3.4 a#b"]),
        ("DNS search domain", search, &["example.org", "."], &["", "a b", "a\nnameserver 6.6.6.6", "a..b"]),
        ("DNS option", option, &["ndots:2"], &["", "a b", "a\nnameserver 6.6.6.6"]),
        (
            "sysctl",
            sysctl,
            &["net.core.somaxconn=9", "kernel.sem=1 2 3 4"],
            &["kernel.panic=1", "net.a=", "net.a=1\n2"],
        ),
        ("ulimit", ulimit, &["5", "5:6", "-1", "5:-1"], &["6:5", "-1:5", "-2"]),
        ("secret", target, &["s", "/run/s", "a/b"], &["", ".", "a/", "a/.", "../s", "a\nb"]),
        ("secret", owner, &["0", "1000"], &["root", "-1", "4294967295", "99999999999"]),
        ("container label", label, &["a", "com.example/a"], &["", "a b", "a\nb"]),
        ("working directory", dir, &["/", "/a b"], &["a", "/a\nb"]),
        ("hostname", hostname, &["h", "a_b", "{{.Node.Hostname}}"], &["a b", "a\nb", "ä"]),
        ("mount", tmpfs, &["/a", "/a /b"], &["/", "//", "/a/..", "/a\nb", "/a /a/", "/a /b/../a"]),
    ];
    for (what, edit, good, bad) in cases {
        for text in good {
            let mut spec = web("web", "nginx", 1);
            edit(&mut spec.task.container, text);
            assert_eq!(validate::service_spec(&spec), Ok(()), "{what} {text:?}");
        }
        for text in bad {
            let mut spec = web("web", "nginx", 1);
            edit(&mut spec.task.container, text);
            let refusal = validate::service_spec(&spec).expect_err(&format!("{what} {text:?}")).to_string();
            assert!(refusal.contains(what), "{what} {text:?}: {refusal}");
        }
    }
}

#[test]
fn logs_resources_and_reservations_are_refused_before_a_node_meets_them() {
    let refusal = |edit: fn(&mut ServiceSpec)| {
        let mut spec = web("web", "nginx", 1);
        edit(&mut spec);
        validate::service_spec(&spec).expect_err("refused").to_string()
    };
    for (edit, words) in [
        (
            (|s| s.task.log_driver = Some(LogDriver { name: "syslog".into(), ..LogDriver::default() }))
                as fn(&mut ServiceSpec),
            "logging driver \"syslog\" is not known: json-file, local, journald and none are",
        ),
        (
            |s| {
                let options = [("max-size".to_owned(), "lots".to_owned())].into();
                s.task.log_driver = Some(LogDriver { options, ..LogDriver::default() });
            },
            "log opt max-size: \"lots\" is not a size such as 10m",
        ),
        (|s| s.task.generic = [("G P".to_owned(), 1)].into(), "generic resource \"G P=1\" is not valid"),
        (|s| s.task.generic = [("GPU".to_owned(), u64::MAX)].into(), "expected KIND=NUMBER, such as GPU=2"),
        (|s| s.task.limits.pids = u64::MAX, "limit of processes \"18446744073709551615\" is not valid"),
        (|s| s.task.placement.spread = vec!["node.labels.a b".into()], "placement preference \"node.labels.a b\""),
        (|s| s.annotations.labels = [("a b".to_owned(), String::new())].into(), "label \"a b\" is not valid"),
        (
            |s| (s.task.reservations.nano_cpus, s.task.limits.nano_cpus) = (2_000_000_000, 500_000_000),
            "a reservation is larger than its limit: 2 CPUs are reserved and 0.5 allowed",
        ),
    ] {
        let refusal = refusal(edit);
        assert!(refusal.contains(words), "{words:?} is not in {refusal}");
    }
}

fn file(target: &str, owner: &str) -> FileRef<SecretId> {
    FileRef {
        id: SecretId::from_random(7),
        name: "s".into(),
        target: target.into(),
        uid: owner.into(),
        gid: owner.into(),
        mode: 0o444,
    }
}

fn tmpfs_mount() -> Mount {
    Mount { kind: MountKind::Tmpfs, target: String::new(), ..Mount::default() }
}

#[test]
fn names_are_unique_and_versions_are_checked() {
    let mut sim = Sim::new(1);
    sim.create(web("web", "nginx", 1)).expect("accepted");
    let refused = sim.create(web("web", "nginx", 1)).expect_err("taken");
    assert_eq!(refused.code, Code::AlreadyExists);
    assert!(refused.text.starts_with("name conflicts with an existing object: service web already exists"));
    let service = sim.service("web");
    sim.scale("web", 2);
    let stale = control::update_service(&sim.state, sim.now, &service.id, service.meta.version, service.spec.clone());
    let stale = stale.expect_err("out of date");
    assert_eq!(stale.code, Code::Aborted);
    assert!(stale.text.starts_with("update out of sequence"), "{stale}");
}

#[test]
fn services_and_tasks_are_found_by_what_users_type() {
    let mut sim = Sim::new(1);
    for (stack, name) in [("shop", "shop_web"), ("shop", "shop_db"), ("blog", "blog_db")] {
        let mut spec = web(name, "nginx", 1);
        spec.annotations.labels.insert(resolve::STACK_LABEL.into(), stack.into());
        sim.create(spec).expect("accepted");
    }
    sim.run(secs(1));
    let web_id = sim.service("shop_web").id.clone();
    assert_eq!(sim.service("web").id, web_id);
    assert_eq!(resolve::service(&sim.state, web_id.as_str()).map(|s| s.id.clone()), Ok(web_id));
    let ambiguous = resolve::service(&sim.state, "db").expect_err("two").to_string();
    assert!(ambiguous.starts_with("service db is ambiguous (2 matches found): "), "{ambiguous}");
    assert!(ambiguous.contains("shop_db (") && ambiguous.contains("blog_db ("), "{ambiguous}");
    assert_eq!(resolve::service(&sim.state, "cache").expect_err("none").to_string(), "no such service: cache");
    let task = resolve::task(&sim.state, "web.1").expect("a task");
    for text in [task.id.as_str(), &task.container_name(), "shop_web.1"] {
        assert_eq!(resolve::task(&sim.state, text).map(|t| t.id.clone()), Ok(task.id.clone()), "{text}");
    }
    assert!(resolve::task(&sim.state, "web.2").is_err());
    assert_eq!(resolve::node(&sim.state, "n1").map(|n| n.id.clone()), Ok(node_id(1)));
}

#[test]
fn an_image_name_means_one_content() {
    let mut sim = Sim::new(2);
    let digest = |c: &str| format!("sha256:{}", c.repeat(64));
    let register = |sim: &mut Sim, node: u8, digest: String, replace: bool| {
        let (now, node) = (sim.now, node_id(node));
        let request = Registration {
            node,
            name: "web".into(),
            digest,
            size_bytes: 1,
            platform: None,
            replace,
            holder_only: false,
        };
        let tx = sim.with_ids(|state, ids| control::register_image(state, now, ids, &request))?;
        sim.commit(&tx);
        Ok::<_, control::ControlError>(tx.changes.len())
    };
    for no_digest in ["", "sha256:", "sha512:aa", &"a".repeat(71), &digest("A"), &digest("aa")] {
        assert!(register(&mut sim, 1, no_digest.to_owned(), false).is_err(), "{no_digest}");
    }
    assert_eq!(register(&mut sim, 1, digest("a"), false), Ok(1));
    assert_eq!(register(&mut sim, 1, digest("a"), false), Ok(0), "again");
    assert_eq!(register(&mut sim, 2, digest("a"), false), Ok(1), "another holder");
    let refused = register(&mut sim, 2, digest("b"), false).expect_err("another content");
    assert!(refused.text.contains("pass --replace"), "{refused}");
    sim.create(web("web", "web", 1)).expect("accepted");
    assert_eq!(sim.service("web").spec.task.container.image_digest, Some(digest("a")));
    assert_eq!(register(&mut sim, 2, digest("b"), true), Ok(1));
    // Saying the same again keeps what was resolved; a new name is resolved anew.
    sim.update("web", |s| s.task.container.image_digest = None).expect("accepted");
    assert_eq!(sim.service("web").spec.task.container.image_digest, Some(digest("b")));
    sim.update("web", |s| s.task.container.image = "other".into()).expect("accepted");
    assert_eq!(sim.service("web").spec.task.container.image_digest, None);
    let gone = control::forget_image(&sim.state, sim.now, &node_id(2), "web", &digest("b")).expect("accepted");
    sim.commit(&gone);
    assert_eq!(sim.state.images().count(), 0);
}

#[test]
fn a_node_without_the_content_holds_none_of_its_names() {
    let mut sim = Sim::new(2);
    let digest = |c: &str| format!("sha256:{}", c.repeat(64));
    for (node, name, content) in [(1, "web", "a"), (1, "app", "a"), (2, "app", "a"), (2, "own", "a"), (1, "other", "b")]
    {
        let (now, node) = (sim.now, node_id(node));
        let (name, digest) = (name.into(), digest(content));
        let request =
            Registration { node, name, digest, size_bytes: 1, platform: None, replace: false, holder_only: false };
        let tx = sim.with_ids(|state, ids| control::register_image(state, now, ids, &request)).expect("accepted");
        sim.commit(&tx);
    }
    let held = |sim: &Sim| {
        let mut held: Vec<_> = sim
            .state
            .images()
            .map(|i| (i.name.rsplit('/').next().expect("a name").to_owned(), i.holders.iter().cloned().collect()))
            .collect();
        held.sort();
        held
    };
    let of = |name: &str, nodes: &[u8]| (name.to_owned(), nodes.iter().map(|n| node_id(*n)).collect::<Vec<_>>());
    let (one, both) = ([1], [1, 2]);
    let before = [of("app:latest", &both), of("other:latest", &one), of("own:latest", &[2]), of("web:latest", &both)];
    assert_eq!(held(&sim), before);
    let gone = control::forget_image(&sim.state, sim.now, &node_id(1), "", &digest("a")).expect("accepted");
    sim.commit(&gone);
    let after = [of("app:latest", &[2]), of("other:latest", &one), of("own:latest", &[2]), of("web:latest", &[2])];
    assert_eq!(held(&sim), after);
}

#[test]
fn a_secret_in_use_stays() {
    let mut sim = Sim::new(1);
    let now = sim.now;
    let annotations = Annotations { name: "key".into(), labels: BTreeMap::new() };
    let made =
        sim.with_ids(|s, ids| control::create_secret(s, now, ids, annotations, b"x".to_vec(), None)).expect("accepted");
    sim.accept(&made);
    let secret = sim.state.secrets().next().expect("stored").clone();
    let mut spec = web("web", "nginx", 1);
    spec.task.container.secrets.push(orch_model::service::FileRef {
        id: secret.id.clone(),
        name: "key".into(),
        target: "key".into(),
        uid: "0".into(),
        gid: "0".into(),
        mode: 0o444,
    });
    sim.create(spec).expect("accepted");
    let refused = control::remove_secret(&sim.state, sim.now, &secret.id).expect_err("in use");
    assert_eq!(refused.text, "secret key is in use by service web: remove that first");
    sim.run(secs(1));
    assert!(sim.set_of(1).keys().any(|k| matches!(k, orch_model::assignment::AssignmentKey::Secret(_))));
}

/// Another content takes the name; services go over, and may go back as long as the old one is there.
#[test]
fn a_secret_gets_another_content_and_services_go_over() {
    let mut sim = Sim::new(1);
    let now = sim.now;
    let annotations = Annotations { name: "key".into(), labels: BTreeMap::from([("a".into(), "b".into())]) };
    let made = sim.with_ids(|s, ids| control::create_secret(s, now, ids, annotations.clone(), b"1".to_vec(), None));
    sim.accept(&made.expect("accepted"));
    let named = |sim: &Sim, name: &str| sim.state.secrets().find(|s| s.annotations.name == name).cloned();
    let first = named(&sim, "key").expect("stored");
    let mut spec = web("web", "nginx", 1);
    spec.task.container.secrets.push(orch_model::service::FileRef {
        id: first.id.clone(),
        name: "key".into(),
        target: "key".into(),
        uid: "0".into(),
        gid: "0".into(),
        mode: 0o444,
    });
    sim.create(spec).expect("accepted");
    sim.run(secs(1));
    let used = |sim: &Sim| {
        let service = sim.state.services().next().expect("a service").clone();
        (service.spec.task.container.secrets[0].id.clone(), service.meta.version, service.id.clone())
    };
    for content in [b"2", b"3", b"4"] {
        let current = named(&sim, "key").expect("stored");
        let (now, labels) = (sim.now, current.annotations.clone());
        let version = current.meta.version;
        let made =
            sim.with_ids(|s, ids| control::replace_secret(s, now, ids, &current.id, version, labels, content.to_vec()));
        sim.accept(&made.expect("accepted"));
        let newest = named(&sim, "key").expect("stored");
        assert_eq!((newest.data.as_slice(), &newest.annotations), (&content[..], &annotations));
        assert_eq!(used(&sim).0, newest.id);
        sim.run(secs(60));
    }
    // The first is gone: no task has it and no service could go back to it.
    let mut names: Vec<String> = sim.state.secrets().map(|s| s.annotations.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["key", "key.2", "key.3"]);
    assert!(sim.state.secret(&first.id).is_none());
    let (_, version, service) = used(&sim);
    let back = control::rollback_service(&sim.state, sim.now, &service, version).expect("accepted");
    sim.accept(&back);
    assert_eq!(used(&sim).0, named(&sim, "key.3").expect("kept").id);

    // The same content again changes labels only; another name is refused; nobody works on an old version.
    let newest = named(&sim, "key").expect("stored");
    let renamed = Annotations { name: "lock".into(), ..annotations.clone() };
    let mut replace = |annotations: &Annotations, version, content: &[u8]| {
        let (now, annotations, content) = (sim.now, annotations.clone(), content.to_vec());
        sim.with_ids(|s, ids| control::replace_secret(s, now, ids, &newest.id, version, annotations, content))
    };
    let same = replace(&annotations, newest.meta.version, b"4").expect("accepted");
    assert_eq!(same.transaction.changes.len(), 1);
    let refused = replace(&renamed, newest.meta.version, b"5").expect_err("renamed");
    assert_eq!(refused.text, "key cannot be renamed to lock: create another object beside it");
    let refused = replace(&annotations, orch_model::Version(1), b"5").expect_err("stale");
    assert_eq!(refused.code, Code::Aborted);
}

/// `apply` is all-or-nothing, takes reports only upward and only from the task's node, and fills no slot twice.
#[test]
fn apply_keeps_its_rules() {
    let mut sim = Sim::new(2);
    sim.create(web("web", "nginx", 1)).expect("accepted");
    sim.run(secs(1));
    let task = resolve::task(&sim.state, "web.1").expect("a task");
    let before = sim.state.clone();
    let twin = Task { id: TaskId::from_random(1), ..Task::clone(&task) };
    let stop = Task { desired_state: TaskState::Shutdown, ..Task::clone(&task) };
    let create = |t: Task| Change::Create(Object::Task(Arc::new(t)));
    let update = |t: Task| Change::Update(Object::Task(Arc::new(t)));
    let apply = |changes: Vec<Change>| {
        let mut state = before.clone();
        let result = state.apply(1000, &Transaction { at: before.last_stamp(), changes });
        assert!(result.is_ok() || state.objects().eq(before.objects()), "a refused transaction left something");
        result.map(|events| (state, events.len())).map_err(|e| e.to_string())
    };
    let refused = apply(vec![create(twin.clone())]).expect_err("the slot is taken");
    assert!(refused.contains("already has task"), "{refused}");
    let refused = apply(vec![update(stop.clone()), update(stop.clone())]).expect_err("stale");
    assert!(refused.starts_with("update out of sequence"), "{refused}");
    assert!(apply(vec![update(stop.clone()), create(twin)]).is_ok(), "stopped first");
    let report = |node: u8, state: TaskState| Change::TaskStatus {
        task: task.id.clone(),
        node: node_id(node),
        status: orch_model::task::TaskStatus { state, ..task.status.clone() },
    };
    let own = if task.node == Some(node_id(1)) { 1 } else { 2 };
    let state_after = |changes: Vec<Change>| {
        let (state, events) = apply(changes).expect("accepted");
        (state.task(&task.id).expect("there").status.state, events)
    };
    assert_eq!(state_after(vec![report(3 - own, TaskState::Failed)]), (TaskState::Running, 0));
    assert_eq!(state_after(vec![report(own, TaskState::Ready)]), (TaskState::Running, 0));
    assert_eq!(state_after(vec![report(own, TaskState::Failed)]), (TaskState::Failed, 1));
    assert_eq!(state_after(vec![update(stop), report(own, TaskState::Failed)]), (TaskState::Shutdown, 2));
    // A decision made before the report does not take the report back.
    let stale_status = Task { desired_state: TaskState::Shutdown, ..Task::clone(&task) };
    assert_eq!(state_after(vec![report(own, TaskState::Failed), update(stale_status)]), (TaskState::Failed, 2));
}

#[test]
fn the_last_manager_is_not_demoted() {
    let sim = Sim::new(2);
    let node = sim.state.node(&node_id(1)).expect("n1").clone();
    let mut spec = node.spec.clone();
    spec.role = orch_model::node::NodeRole::Worker;
    let seat = Seat { raft_id: 1, node: node.id.to_string(), is_voter: true, is_reachable: true };
    let seats = Seats { leader: 1, all: vec![seat] };
    let refused = control::update_node(&sim.state, sim.now, &node.id, node.meta.version, spec, &seats);
    let refused = refused.expect_err("the last");
    assert!(refused.text.starts_with("attempting to demote the last manager"), "{refused}");
    let refused = control::remove_node(&sim.state, sim.now, &node.id, true).expect_err("a manager");
    assert!(refused.text.contains("must be demoted to worker before removal"), "{refused}");
}

#[test]
fn a_cluster_holds_so_many_tasks_and_no_more() {
    let mut sim = Sim::new(2);
    for number in 0..5 {
        sim.create(web(&format!("s{number}"), "nginx", 100_000)).expect("there is room");
    }
    let refused = sim.create(web("more", "nginx", 1)).expect_err("full").to_string();
    assert_eq!(refused, "all services together would want 500001 tasks: a cluster can hold 500000");
    let everywhere = || ServiceSpec { mode: ServiceMode::Global, ..web("everywhere", "nginx", 0) };
    sim.scale("s0", 99_998);
    sim.create(web("more", "nginx", 1)).expect("two places are free");
    let refused = sim.create(everywhere()).expect_err("there are two nodes, and one place").to_string();
    assert!(refused.starts_with("all services together"), "{refused}");
    sim.scale("s0", 1);
    sim.create(everywhere()).expect("there is room");
}
