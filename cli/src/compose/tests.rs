//! Files to specs, and what bad files are told.

use orch_model::service::{BindRecursive, LogDriver, Mount, MountKind, RestartCondition, ServiceMode};

use super::*;

pub(super) const SHOP: &str = r#"
version: "3.7"
x-env: &env
  LEVEL: info
services:
  web:
    image: shop/web:${TAG:-1}
    command: serve --port 80 "two words"
    ports:
      - "8080:80"
      - target: 9000
        published: 9001
        mode: host
    environment:
      <<: *env
      RATIO: 0.10
      FLAG: yes
      FROM_SHELL:
      NOWHERE:
    env_file: web.env
    networks:
      front:
        aliases: [shop]
      default:
    depends_on: [db]
    secrets:
      - pw
      - source: site
        target: key.pem
        mode: 0400
    healthcheck:
      test: ["CMD", "true"]
      interval: 1m30s
    deploy:
      replicas: 3
      labels: ["tier=front"]
      update_config: {parallelism: 2, delay: 10s, order: start-first}
      restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3}
      resources:
        limits: {cpus: "0.5", memory: 50M}
      placement:
        constraints: [node.role == manager]
  db:
    image: db
    build: .
    links: [web]
    container_name: x
    deploy: {mode: global}
    volumes:
      - data:/var/lib/data
      - ./conf:/etc/conf:ro
networks:
  front:
    driver: overlay
  unused: {}
volumes:
  data:
secrets:
  pw:
    file: ./pw.txt
  site:
    external: true
"#;

fn load(text: &str) -> Result<Stack, String> {
    with(&[text], |document, around| document.resolve(around))
}

fn normal(texts: &[&str]) -> Result<serde_json::Value, String> {
    with(texts, |document, around| document.normalised(around).map(|(document, _)| document))
}

fn with<T>(
    texts: &[&str],
    use_it: impl FnOnce(Document, &Surroundings<'_>) -> Result<T, ComposeError>,
) -> Result<T, String> {
    let variable = |name: &str| (name == "FROM_SHELL").then(|| "shell".to_owned());
    let read = |path: &str| match path {
        "/srv/shop/web.env" => Ok("# c\nA=1\nLEVEL=debug\n".to_owned()),
        "/srv/shop/base.yml" => Ok("services:\n  base: {image: base, environment: {A: a, B: b}}\n".to_owned()),
        "/srv/shop/inner.yml" => Ok("services:\n  inner: {image: 'i:${TAG}', hostname: '${NONE}'}\n".to_owned()),
        "/srv/shop/bad.env" => Ok("A=1\nno such\n".to_owned()),
        "/srv/shop/inner.env" => Ok("export TAG=2 # of the inner one\nFROM_SHELL=file\n".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let around = Surroundings { stack: "shop", dir: "/srv/shop", variable: &variable, read: &read };
    let files: Vec<_> = texts.iter().map(|text| ("compose.yml".to_owned(), (*text).to_owned())).collect();
    Document::parse(&files, false).and_then(|document| use_it(document, &around)).map_err(|error| error.to_string())
}

#[test]
fn a_file_becomes_specs() {
    let stack = load(SHOP).unwrap();
    let [db, web] = stack.services.as_slice() else { panic!("two services, in order of dependence") };
    let container = &web.spec.task.container;
    assert_eq!(web.spec.annotations.name, "shop_web");
    assert_eq!(container.image, "shop/web:1");
    assert_eq!(container.args, ["serve", "--port", "80", "two words"]);
    assert_eq!(container.env, ["A=1", "FLAG=yes", "FROM_SHELL=shell", "LEVEL=info", "NOWHERE", "RATIO=0.1"]);
    assert_eq!(web.spec.mode, ServiceMode::Replicated { replicas: 3 });
    assert_eq!(web.spec.endpoint.ports.len(), 2);
    assert_eq!(web.spec.annotations.labels["tier"], "front");
    assert_eq!(web.spec.annotations.labels[NAMESPACE_LABEL], "shop");
    assert_eq!(web.spec.annotations.labels[IMAGE_LABEL], "shop/web:1");
    assert_eq!(web.spec.task.limits.memory_bytes, 50 << 20);
    assert_eq!(web.spec.task.restart.condition, RestartCondition::OnFailure);
    assert_eq!(web.spec.update.as_ref().unwrap().parallelism, 2);
    assert_eq!(web.spec.task.placement.constraints, ["node.role == manager"]);
    let networks: Vec<_> = web.networks.iter().map(|n| (n.network.as_str(), n.aliases.join(","))).collect();
    assert_eq!(networks, [("shop_default", "web".to_owned()), ("shop_front", "shop,web".to_owned())]);
    let secrets: Vec<_> = web.secrets.iter().map(|s| (s.source.as_str(), s.target.as_str(), s.mode)).collect();
    assert_eq!(secrets, [("shop_pw", "pw", 0o444), ("site", "key.pem", 0o400)]);

    assert_eq!(db.spec.mode, ServiceMode::Global);
    let mounts: Vec<_> =
        db.spec.task.container.mounts.iter().map(|m| (m.kind, m.source.as_str(), m.read_only)).collect();
    assert_eq!(mounts, [(MountKind::Volume, "shop_data", false), (MountKind::Bind, "/srv/shop/conf", true)]);

    let made: Vec<_> = stack.networks.iter().map(|n| (n.spec.annotations.name.as_str(), n.external)).collect();
    assert_eq!(made, [("shop_default", false), ("shop_front", false)]);
    let data: Vec<_> = stack.data.iter().map(|d| (d.annotations.name.as_str(), &d.content)).collect();
    assert_eq!(data, [("shop_pw", &Content::File("/srv/shop/pw.txt".into())), ("site", &Content::External)]);
    assert_eq!(stack.warnings[0], "Ignoring unsupported options: build, links\n");
    assert!(stack.warnings[1].starts_with("Ignoring deprecated options:\n\ncontainer_name: "));
}

/// The network's definition, and what the service is on and by which names.
#[test]
fn networks_of_the_nodes_are_external_and_without_names() {
    for (key, definition, network, aliases) in [
        ("x", "{external: true, name: host}", "host", ""),
        ("host", "{external: true}", "host", ""),
        ("bridge", "{external: {name: bridge}}", "bridge", ""),
        ("x", "{external: true, name: theirs}", "theirs", "web"),
        ("host", "{}", "shop_host", "web"),
    ] {
        let text = format!("services: {{web: {{image: web, networks: [{key}]}}}}\nnetworks: {{{key}: {definition}}}\n");
        let stack = load(&text).unwrap();
        let attachment = &stack.services[0].networks[0];
        assert_eq!((attachment.network.as_str(), attachment.aliases.join(",").as_str()), (network, aliases), "{text}");
    }
}

#[test]
fn the_same_file_gives_the_same_spec() {
    let (first, second) = (load(SHOP).unwrap(), load(SHOP).unwrap());
    assert_eq!(first.services[0].spec, second.services[0].spec);
}

#[test]
fn bad_files_are_told_what_and_where() {
    for (text, fragments) in [
        (
            "services:\n  web:\n    image: x\n    imge: y\n",
            &["compose.yml:4", "services.web Additional property imge is not allowed", "image"][..],
        ),
        (
            "version: '3.0'\nservices:\n  web:\n    image: x\n    secrets: [a]\nsecrets:\n  a: {file: b}\n",
            &["Additional property secrets is not allowed", "3.1", "compose.yml:6"],
        ),
        ("version: '3.2'\nconfigs: {}\nservices: {a: {image: b}}\n", &["compose.yml:2", "configs", "3.3"]),
        ("version: '2'\nservices: {}\n", &["compose.yml:1", "version 2 format", "version: \"3\""]),
        ("web:\n  image: x\n  ports: [80]\n", &["compose.yml:1", "version 1 format", "services:"]),
        ("version: '4'\nservices: {}\n", &["unsupported Compose file version", "4"]),
        ("services:\n  web: {image: x\n", &["not valid YAML"]),
        ("services:\n\tweb: x\n", &["not valid YAML", "compose.yml:2"]),
        ("- a\n- b\n", &["not a stack file"]),
        ("networks: {}\n", &["services"]),
        ("services:\n  web:\n    build: .\n", &["compose.yml:2", "no image"]),
        ("services:\n  web:\n    image: x\n    ports: ['80:x']\n", &["compose.yml:4", "services.web.ports", "8080:80"]),
        ("services:\n  web:\n    image: x\n    networks: [nope]\n", &["compose.yml:4", "undefined network \"nope\""]),
        (
            "services: {a: {image: b, networks: [x]}}\nnetworks:\n  x: {name: host}\n",
            &["compose.yml:3", "networks.x: every node has the network host already", "external: true"],
        ),
        ("services:\n  web:\n    image: x\n    volumes: ['d:/d']\n", &["compose.yml:4", "undefined volume \"d\""]),
        (
            "services:\n  web:\n    image: x\n    deploy:\n      replicas: many\n",
            &["compose.yml:5", "replicas", "many"],
        ),
        (
            "services:\n  web:\n    image: x\n    deploy:\n      resources:\n        limits:\n          memory: lots\n",
            &["compose.yml:7", "50M"],
        ),
        ("services:\n  web:\n    image: ${NEED:?set it}\n", &["compose.yml:3", "NEED", "set it"]),
        ("services:\n  web:\n    image: x\n    env_file: gone.env\n", &["compose.yml:4", "gone.env"]),
    ] {
        let error = load(text).unwrap_err();
        for fragment in fragments {
            assert!(error.contains(fragment), "{text}: {fragment:?} is not in:\n{error}");
        }
    }
}

#[test]
fn a_bare_three_means_the_newest() {
    assert!(load("version: '3'\nservices: {a: {image: b}}\nsecrets: {s: {external: true}}\n").is_ok());
    assert!(load("version: 3\nname: n\nservices: {a: {image: b}}\n").is_ok());
    assert_eq!(
        Document::parse(&[("f".into(), "name: n$X\nservices: {a: {image: b}}\n".into())], false)
            .unwrap()
            .name(&|_| Some("1".into()))
            .unwrap()
            .as_deref(),
        Some("n1")
    );
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let text = "version: '3.0'\nservices:\n  web:\n    imagee: x\n    ports: 80\n    deploy: {replica: 3}\n    secrets: [a]\nvolumess: {}\n";
    let error = load(text).unwrap_err();
    for fragment in [
        "compose.yml:4:5: services.web Additional property imagee is not allowed",
        "did you mean image?",
        "compose.yml:5:12: services.web.ports must be a list",
        "compose.yml:6:14: services.web.deploy Additional property replica is not allowed",
        "did you mean replicas?",
        "compose.yml:7:5: services.web Additional property secrets is not allowed",
        "secrets exists from version 3.1 on",
        "compose.yml:8:1: (root) Additional property volumess is not allowed",
    ] {
        assert!(error.contains(fragment), "{fragment:?} is not in:\n{error}");
    }
}

#[test]
fn later_files_are_laid_over_earlier_ones() {
    let base = "services:
  web:
    image: a
    command: [one, two]
    ports: ['8080:80', '9090:90']
    environment: [A=1, B=2]
    volumes: ['data:/d', './x:/x']
    dns: 1.1.1.1
    labels: {a: '1'}
  gone: {image: g}
volumes: {data: }
";
    let over = "services:
  web:
    image: b
    command: three
    ports: ['8080:80', '7070:70']
    environment: {B: 3, C: 4}
    volumes: ['other:/d']
    dns: [2.2.2.2]
    labels: !override {b: '2'}
  gone: !reset null
volumes: {other: {driver: nfs}}
";
    let document = normal(&[base, over]).unwrap();
    let web = &document["services"]["web"];
    assert_eq!(web["image"], "b");
    assert_eq!(web["command"], serde_json::json!(["three"]));
    let published: Vec<_> = web["ports"].as_array().unwrap().iter().map(|p| p["published"].as_u64().unwrap()).collect();
    assert_eq!(published, [8080, 9090, 7070]);
    assert_eq!(web["environment"], serde_json::json!({"A": "1", "B": "3", "C": "4"}));
    let sources: Vec<_> = web["volumes"].as_array().unwrap().iter().map(|v| v["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["other", "/srv/shop/x"]);
    assert_eq!(web["dns"], serde_json::json!(["1.1.1.1", "2.2.2.2"]));
    assert_eq!(web["labels"], serde_json::json!({"b": "2"}));
    assert!(document["services"].get("gone").is_none());
    assert_eq!(document["volumes"]["other"]["driver"], "nfs");
    assert!(normal(&["version: '3.1'\nservices: {}\n", base]).unwrap_err().contains("version mismatched"));
}

#[test]
fn the_compose_specification_without_a_version() {
    let stack = load(
        "include: [base.yml]
services:
  web:
    extends: {service: base, file: base.yml}
    environment: {B: own}
    mem_limit: 50m
    cpus: 0.5
    scale: 4
    restart: on-failure:3
    privileged: true
    configs: [site]
    env_file: [{path: gone.env, required: false}]
    depends_on: {base: {condition: service_started}}
  debug: {image: d, profiles: [dev]}
configs:
  site: {content: hello}
",
    )
    .unwrap();
    let names: Vec<_> = stack.services.iter().map(|s| s.spec.annotations.name.as_str()).collect();
    assert_eq!(names, ["shop_base", "shop_web"]);
    let web = &stack.services[1].spec;
    assert_eq!(web.task.container.env, ["A=a", "B=own"]);
    assert_eq!((web.task.limits.memory_bytes, web.task.limits.nano_cpus), (50 << 20, 500_000_000));
    assert_eq!(web.mode, ServiceMode::Replicated { replicas: 4 });
    assert_eq!((web.task.restart.condition, web.task.restart.max_attempts), (RestartCondition::OnFailure, 3));
    assert!(web.task.container.privileged);
    assert_eq!(stack.data[0].content, Content::Text("hello".into()));
    for text in [
        "services:\n  a: {extends: b}\n  b: {extends: a}\n",
        "services:\n  a: {extends: nobody}\n",
        "include: [gone.yml]\nservices:\n  a: {image: a}\n",
    ] {
        assert!(load(text).unwrap_err().contains("compose.yml:"), "{text}");
    }
}

#[test]
fn other_files_are_read_as_the_first_one_is() {
    let own = "services: {web: {image: web, extends: {service: inner, file: inner.yml}}}\n";
    let unset = |name: &str| format!("The {name:?} variable is not set. Defaulting to a blank string.");
    for text in [own, "include: [inner.yml]\n"] {
        let (document, warnings) = with(&[text], |document, around| document.normalised(around)).unwrap();
        assert_eq!(warnings, [unset("NONE"), unset("TAG")], "{document}");
        let raw = with(&[text], |document, around| document.without_variables().normalised(around)).unwrap().0;
        let service = raw["services"].as_object().unwrap().values().next().unwrap();
        assert_eq!(service["hostname"], "${NONE}");
    }
    let include = |keys: &str| format!("include: [{{path: [inner.yml], {keys}}}]\n");
    let stack = load(&include("env_file: inner.env, project_directory: ./")).unwrap();
    assert_eq!(stack.services[0].spec.task.container.image, "i:2");
    assert_eq!(stack.warnings, [unset("NONE")]);
    for (keys, said) in [
        ("env_file: [gone.env]", "cannot read gone.env: no such file"),
        ("env_file: bad.env", "cannot read bad.env: line 2: expected NAME=VALUE"),
        ("project_directory: ..", "project_directory can only be the folder of the first -c file"),
        ("paths: a", "include Additional property paths is not allowed"),
    ] {
        let error = load(&include(keys)).unwrap_err();
        assert!(error.contains(said) && error.contains("compose.yml:1"), "{keys}: {error}");
    }
    for own in ["inner.yml", "{path: inner.yml}"] {
        let error = load(&format!("include: {own}\nservices: {{web: {{image: web}}}}\n")).unwrap_err();
        assert!(error.contains("compose.yml:1:10: include must be a list"), "{error}");
    }
}

#[test]
fn with_a_version_some_keys_are_warned_of() {
    let text = "version: '3.8'\nservices:\n  a:\n    image: a\n    privileged: true\n    scale: 2\n    group_add: [video]\n    restart: always\n    ports: ['127.0.0.1:80:80']\n";
    let stack = load(text).unwrap();
    assert!(!stack.services[0].spec.task.container.privileged);
    assert_eq!(stack.services[0].spec.task.container.groups, ["video"]);
    let warnings = stack.warnings.join("\n");
    for fragment in [
        "services.a Additional property scale is not allowed in version 3 of the format: Docker refuses it",
        "services.a Additional property group_add is not allowed in version 3 of the format: Docker refuses it",
        "Ignoring unsupported options: privileged, restart",
        "ignoring IP-address (127.0.0.1:80:80/tcp) service will listen on '0.0.0.0'",
    ] {
        assert!(warnings.contains(fragment), "{fragment:?} is not in {warnings}");
    }
}

#[test]
fn a_scale_stays_where_deploy_has_no_replicas() {
    let job = ServiceMode::ReplicatedJob { max_concurrent: 3, total_completions: 3 };
    for (keys, mode) in [
        ("scale: 3", ServiceMode::Replicated { replicas: 3 }),
        ("scale: 3, deploy: {mode: replicated}", ServiceMode::Replicated { replicas: 3 }),
        ("scale: 3, deploy: {mode: replicated-job}", job),
        ("scale: 3, deploy: {replicas: 2}", ServiceMode::Replicated { replicas: 2 }),
        ("scale: 3, deploy: {mode: global}", ServiceMode::Global),
        ("deploy: {mode: replicated}", ServiceMode::Replicated { replicas: 1 }),
    ] {
        let stack = load(&format!("services: {{a: {{image: a, {keys}}}}}")).unwrap();
        assert_eq!(stack.services[0].spec.mode, mode, "{keys}");
    }
}

/// `stack config | stack deploy -c -` deploys what the file itself does.
#[test]
fn a_file_as_it_was_understood_means_the_same_again() {
    let text = "services: {a: {image: a, privileged: true, devices: [/dev/null], group_add: [video], restart: 'no'}}";
    let written = normal(&[text]).unwrap();
    assert_eq!(written.get("version"), None);
    let [before, after] = [text, &written.to_string()].map(|text| load(text).unwrap());
    assert_eq!(format!("{:#?}", after.services), format!("{:#?}", before.services));
    assert_eq!(normal(&["version: '3.4'\nservices: {a: {image: a}}"]).unwrap()["version"], "3.4");
}

#[test]
fn a_port_in_the_long_form_answers_on_its_address_only() {
    for (entries, address) in [
        ("host_ip: 127.0.0.1", Some("127.0.0.1")),
        ("host_ip: 127.0.0.1, mode: host", Some("127.0.0.1")),
        ("x-host-ip: 10.0.0.5", Some("10.0.0.5")),
        ("host_ip: 0.0.0.0", None),
        ("host_ip: ''", None),
        ("app_protocol: http", None),
    ] {
        for version in ["", "version: '3.8'\n"] {
            let port = format!("{{target: 80, published: 8080, {entries}}}");
            let stack = load(&format!("{version}services: {{a: {{image: a, ports: [{port}]}}}}")).unwrap();
            let bound = stack.services[0].spec.endpoint.ports[0].host_ip.map(|addr| addr.to_string());
            assert_eq!(bound.as_deref(), address, "{version}{entries}");
        }
    }
    let refused = load("services: {a: {image: a, ports: [{target: 80, host_ip: localhost}]}}").unwrap_err();
    assert!(refused.contains("services.a.ports") && refused.contains("127.0.0.1"), "{refused}");
}

#[test]
fn the_options_of_a_short_tmpfs_arrive() {
    for (text, size, mode, read_only, ignored) in [
        ("/t", 0, 0, false, ""),
        ("/t:size=64m,mode=1770", 64 << 20, 0o1770, false, ""),
        ("/t:ro,noexec,nosuid", 0, 0, true, ""),
        ("/t:rw,exec,uid=5,size=1k", 1024, 0, false, "exec, uid=5"),
        ("/t:size=50%", 0, 0, false, "size=50%"),
    ] {
        let stack = load(&format!("services:\n  a:\n    image: a\n    tmpfs: ['{text}']\n")).unwrap();
        let mount = &stack.services[0].spec.task.container.mounts[0];
        assert_eq!((mount.target.as_str(), mount.kind), ("/t", MountKind::Tmpfs), "{text}");
        assert_eq!((mount.tmpfs_size_bytes, mount.tmpfs_mode, mount.read_only), (size, mode, read_only), "{text}");
        let warned = stack.warnings.join("");
        assert!(if ignored.is_empty() { warned.is_empty() } else { warned.contains(ignored) }, "{text}: {warned}");
    }
    for text in ["/t:size=much", "/t:mode=99", "t"] {
        let refused = load(&format!("services: {{a: {{image: a, tmpfs: '{text}'}}}}")).unwrap_err();
        assert!(refused.contains("services.a.tmpfs"), "{text}: {refused}");
    }
}

#[test]
fn hostile_files_are_refused_soon() {
    let deep = format!("a: {}", "[".repeat(100_000));
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(9);
        laughs.push_str(&format!("a{level}: &a{level} [{}]\n", before.trim_end_matches(", ")));
    }
    let huge = format!("# {}\n", "x".repeat(6 << 20));
    let mut chain = "x: 1\nx: 2\na0: &a0 {}\n".to_owned();
    for level in 1..2_000 {
        chain.push_str(&format!("a{level}: &a{level} [[*a{}]]\n", level - 1));
    }
    let itself = "&a {*a : b}\n".to_owned();
    let doubled = "a: 1\n".repeat(100_000);
    let begun = std::time::Instant::now();
    for text in [deep, laughs, huge, chain.replacen("x: 1\n", "", 1), chain, itself, doubled] {
        assert!(load(&text).is_err());
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

pub(super) const FULL: &str = r#"
services:
  web:
    image: "web:1"
    entrypoint: [a, "b c"]
    command: [d]
    environment: {A: "$$x", B: "", C: "two words"}
    hostname: h
    working_dir: /w
    user: "1:2"
    group_add: ["3"]
    labels: {a: b}
    tty: true
    stdin_open: true
    read_only: true
    init: false
    privileged: true
    stop_signal: SIGINT
    stop_grace_period: 1m30s
    oom_score_adj: -500
    volumes:
      - data:/d
      - kept:/k:ro
      - /host:/h:rslave
      - /anonymous
      - {type: tmpfs, target: /t, tmpfs: {size: 1000000, mode: 448}}
      - {type: volume, source: data, target: /n, volume: {nocopy: true}}
    secrets: [{source: pw, target: x, uid: "5", gid: "6", mode: 256}]
    configs: [site]
    extra_hosts: ["a:1.1.1.1", "b=::1", "c:host-gateway"]
    dns: [1.1.1.1]
    dns_search: [x]
    dns_opt: [ndots:1]
    healthcheck: {test: [CMD, "true"], interval: 1.5s, timeout: 2s, retries: 3, start_period: 1m, start_interval: 5s}
    cap_add: [NET_ADMIN]
    cap_drop: [ALL]
    sysctls: {net.ipv4.ip_forward: "1"}
    ulimits: {nofile: {soft: 5, hard: 6}, nproc: 7}
    devices: [/dev/null]
    logging: {driver: json-file, options: {max-size: 1m}}
    ports: ["8080:80", {target: 53, protocol: udp, mode: host, name: dns}]
    networks: {front: {aliases: [shop], driver_opts: {k: v}}, other: {}}
    depends_on: {db: {condition: service_healthy}, job: {condition: service_completed_successfully, required: false}}
    deploy:
      replicas: 0
      labels: {tier: front}
      endpoint_mode: vip
      update_config: {parallelism: 0, delay: 1s, failure_action: rollback, monitor: 2s, max_failure_ratio: 0.1, order: start-first}
      rollback_config: {parallelism: 2, failure_action: continue}
      resources: {limits: {cpus: "0.25", memory: 50M, pids: 9}, reservations: {cpus: "0.1", memory: 1k,
        generic_resources: [{discrete_resource_spec: {kind: GPU, value: 2}}]}}
      restart_policy: {condition: on-failure, delay: 3s, max_attempts: 4, window: 5s}
      placement: {constraints: [node.role==manager], preferences: [{spread: node.labels.z}], max_replicas_per_node: 1}
    x-orch: {image-digest: "sha256:00", placement-strategy: pack}
  db: {image: db, deploy: {mode: global, endpoint_mode: dnsrr}}
  agent: {image: agent, networks: [host], deploy: {mode: global}}
  job: {image: j, deploy: {mode: replicated-job, replicas: 5}, x-orch: {max-concurrent: 2}}
networks:
  front: {attachable: true, internal: true, enable_ipv6: true, labels: {a: b}, driver_opts: {o: p},
    ipam: {config: [{subnet: 10.5.0.0/24, gateway: 10.5.0.1, ip_range: 10.5.0.128/25, aux_addresses: {router: 10.5.0.9}}]}}
  other: {external: true, name: theirs}
  host: {external: true}
volumes:
  data: {driver: local, driver_opts: {type: nfs}, labels: {x: y}, name: fixed}
  kept: {external: true}
secrets: {pw: {external: true, name: shop_pw.2}}
configs: {site: {content: "a$$b", template_driver: golang}}
"#;

#[test]
fn what_is_reserved_kept_back_and_filled_in_is_not_forgotten() {
    let stack = load(FULL).unwrap();
    let web = &stack.services.iter().find(|s| s.spec.annotations.name == "shop_web").unwrap().spec;
    assert_eq!(web.task.generic, [("GPU".to_owned(), 2)].into());
    assert_eq!(web.task.container.oom_score_adj, -500);
    let front = stack.networks.iter().find(|n| n.spec.annotations.name == "shop_front").unwrap();
    assert_eq!(front.spec.ipam[0].aux, [("router".to_owned(), "10.5.0.9".parse().unwrap())].into());
    let site = stack.data.iter().find(|d| d.annotations.name == "shop_site").unwrap();
    assert_eq!(site.template, Some(TemplateDriver::Golang));
    let with = |more: &str| load(&format!("services: {{a: {{image: a, {more}}}}}\n")).unwrap_err();
    let half = "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: GPU}}]}}}";
    assert!(with(half).contains("write both `kind` and `value`"), "{}", with(half));
    assert!(with("oom_score_adj: 2000").contains("-1000 to 1000"));
}

/// Of each kind one of the stack's own and one of somebody else's, whose whole names are the short ones of the first.
const TWINS: &str = r"
services:
  web:
    image: web
    networks: {own: {aliases: [a]}, other: {aliases: [b]}, default: {}, third: {}}
    volumes: ['own:/o', 'other:/p']
    secrets: [own, other, third]
    configs: [own, other]
networks: {own: {internal: true}, other: {external: true, name: own}, third: {external: true, name: default}}
volumes: {own: {}, other: {external: true, name: own}}
secrets: {own: {file: a}, other: {external: true, name: own}, third: {file: c, name: shop_shop_own}}
configs: {own: {content: a}, other: {external: true, name: own}}
";

#[test]
fn an_export_means_the_same_again() {
    for text in [SHOP, FULL, TWINS] {
        let before = load(text).unwrap();
        let exported = export::document("shop", &before);
        let file = serde_json::to_string(&export::escaped(&exported)).unwrap();
        let after = load(&file).unwrap_or_else(|error| panic!("{error}: {file}"));
        assert_eq!(after.services.len(), before.services.len());
        for service in &before.services {
            let name = &service.spec.annotations.name;
            let again = after.services.iter().find(|s| s.spec.annotations.name == *name).unwrap();
            assert_eq!(format!("{:#?}", again.spec), format!("{:#?}", service.spec));
            assert_eq!(again.networks, service.networks);
            assert_eq!((&again.secrets, &again.configs), (&service.secrets, &service.configs));
        }
        // By their names, not by the keys that the file has for them.
        let [before, after] = [before, after].map(|mut stack| {
            stack.networks.sort_by(|a, b| a.spec.annotations.name.cmp(&b.spec.annotations.name));
            stack.data.sort_by(|a, b| (a.kind, &a.annotations.name).cmp(&(b.kind, &b.annotations.name)));
            stack
        });
        assert_eq!(format!("{:#?}", after.networks), format!("{:#?}", before.networks));
        assert_eq!(format!("{:#?}", after.data), format!("{:#?}", before.data));
    }
}

/// Every kind of mount with every option that a file can say of it.
fn every_mount() -> Vec<Mount> {
    let labels = [("x", "y"), (NAMESPACE_LABEL, "shop")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let options = [("type".to_owned(), "nfs".to_owned())].into();
    let own = Mount {
        source: "shop_data".to_owned(),
        volume_driver: Some(LogDriver { name: "local".to_owned(), options }),
        volume_labels: labels.into(),
        ..Mount::default()
    };
    let other = Mount { source: "theirs".to_owned(), ..Mount::default() };
    let bind = Mount { kind: MountKind::Bind, source: "/srv".to_owned(), ..Mount::default() };
    let tmpfs = Mount { kind: MountKind::Tmpfs, ..Mount::default() };
    let mut all = Vec::new();
    for volume in [own, other, Mount::default()] {
        for (no_copy, volume_subpath) in [(false, ""), (true, ""), (false, "a/b"), (true, "a/b")] {
            all.push(Mount { no_copy, volume_subpath: volume_subpath.to_owned(), ..volume.clone() });
        }
    }
    for propagation in ["", "rprivate", "private", "rshared", "shared", "rslave", "slave"] {
        for bind_recursive in
            [None, Some(BindRecursive::Disabled), Some(BindRecursive::Writable), Some(BindRecursive::Readonly)]
        {
            all.push(Mount { propagation: propagation.to_owned(), bind_recursive, ..bind.clone() });
        }
    }
    for (tmpfs_size_bytes, tmpfs_mode) in [(0, 0), (1 << 20, 0), (0, 0o1777), (9, 0o700)] {
        all.push(Mount { tmpfs_size_bytes, tmpfs_mode, ..tmpfs.clone() });
    }
    let both = all.into_iter().flat_map(|mount| [false, true].map(|read_only| Mount { read_only, ..mount.clone() }));
    let mut kept: Vec<Mount> = both.filter(|mount| crate::flags::mount::check_recursive(mount).is_ok()).collect();
    for (n, mount) in kept.iter_mut().enumerate() {
        // A new field is a new option: say above what it can be.
        let Mount {
            kind: _,
            source: _,
            target,
            read_only: _,
            no_copy: _,
            volume_driver: _,
            volume_labels: _,
            propagation: _,
            tmpfs_size_bytes: _,
            tmpfs_mode: _,
            bind_recursive: _,
            volume_subpath: _,
        } = mount;
        *target = format!("/t{n}");
    }
    kept
}

#[test]
fn every_mount_of_an_export_is_the_same_again() {
    let mut before = load("services: {web: {image: x}}\n").unwrap();
    before.services[0].spec.task.container.mounts = every_mount();
    let file = serde_json::to_string(&export::escaped(&export::document("shop", &before))).unwrap();
    let after = load(&file).unwrap_or_else(|error| panic!("{error}: {file}"));
    let [before, after] = [&before, &after].map(|stack| &stack.services[0].spec.task.container.mounts);
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before, after);
    }
}

#[test]
fn services_come_after_those_they_wait_for() {
    let text = "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: {c: {condition: service_healthy}}}\n  c: {image: x}\n";
    let stack = load(text).unwrap();
    let names: Vec<_> = stack.services.iter().map(|s| s.spec.annotations.name.as_str()).collect();
    assert_eq!(names, ["shop_c", "shop_b", "shop_a"]);
    assert_eq!(stack.services[1].spec.depends_on[0].service, "shop_c");
    for (text, fragment) in [
        ("services:\n  a: {image: x, depends_on: [a]}\n", "wait for each other by depends_on: shop_a"),
        ("services:\n  a: {image: x, depends_on: [z]}\n", "no service \"z\""),
        ("services:\n  b: {image: x}\n  a: {image: x, depends_on: {b: {condition: soon}}}\n", "service_healthy"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(fragment), "{error}");
    }
    let older = load("version: '3'\nservices:\n  a: {image: x, depends_on: [z]}\n").unwrap();
    assert!(older.services[0].spec.depends_on.is_empty() && older.warnings.join("").contains("no service \"z\""));
}

#[test]
fn strict_refuses_what_docker_refuses() {
    let service = |body: &str| format!("version: '3.8'\nservices:\n  a:\n    image: x\n    {body}\n");
    for (body, said) in [
        ("scale: 2", "services.a Additional property scale is not allowed"),
        ("tty: yes", "services.a.tty must be a boolean"),
        ("user: 1000", "services.a.user must be a string"),
        ("command: [5]", "services.a.command.0 must be a string"),
        ("ports: [{target: '80'}]", "services.a.ports.0.target must be a integer"),
        ("ports: ['80:x']", "services.a.ports.0 Does not match format 'ports'"),
        ("ports: [80, 80]", "services.a.ports array items[0,1] must be unique"),
        ("environment: {A: true}", "services.a.environment.A must be a string, number or null"),
        ("deploy: {replicas: '3'}", "services.a.deploy.replicas must be a integer"),
        ("deploy: {x-a: 1}", "services.a.deploy Additional property x-a is not allowed"),
        ("healthcheck: {interval: x}", "services.a.healthcheck.interval Does not match format 'duration'"),
        ("volumes: [{source: x}]", "services.a.volumes.0 type is required"),
        ("ulimits: {nofile: {soft: 5}}", "services.a.ulimits.nofile hard is required"),
        ("depends_on: {b: {condition: service_healthy}}", "services.a.depends_on must be a list"),
        ("hostname: $1", "invalid interpolation format for services.a.hostname: \"$1\"; you may need to escape any $"),
    ] {
        let files = [("compose.yml".to_owned(), service(body))];
        let around = Surroundings { stack: "s", dir: "/", variable: &|_| None, read: &|_| Err(String::new()) };
        let error = Document::parse(&files, true).and_then(|d| d.normalised(&around)).unwrap_err().to_string();
        assert!(error.contains(said), "{body}: {error}");
    }
    for lenient in ["scale: 2", "tty: yes", "deploy: {replicas: '3'}", "environment: {A: true}"] {
        assert!(load(&service(lenient)).is_ok(), "{lenient}");
    }
}

/// The golden document is what `docker stack config` (28.2) printed for the same file.
#[test]
fn every_form_means_what_docker_says() {
    let expected: serde_json::Value = serde_json::from_str(include_str!("fixtures/every-form.golden.json")).unwrap();
    assert_eq!(normal(&[include_str!("fixtures/every-form.yml")]).unwrap(), expected);
}
