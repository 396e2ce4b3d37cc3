//! Files to specs, and what bad files are told.

use orch_model::service::{MountKind, RestartCondition, ServiceMode};

use super::*;

const SHOP: &str = r#"
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
    let variable = |name: &str| (name == "FROM_SHELL").then(|| "shell".to_owned());
    let env_file = |path: &str| match path {
        "/srv/shop/web.env" => Ok("# c\nA=1\nLEVEL=debug\n".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let around = Surroundings { stack: "shop", dir: "/srv/shop", variable: &variable, env_file: &env_file };
    Document::parse(&[("compose.yml".into(), text.into())]).and_then(|d| d.resolve(&around)).map_err(|e| e.to_string())
}

#[test]
fn a_file_becomes_specs() {
    let stack = load(SHOP).unwrap();
    let web = &stack.services[0];
    let container = &web.spec.task.container;
    assert_eq!(web.spec.annotations.name, "shop_web");
    assert_eq!(container.image, "shop/web:1");
    assert_eq!(container.args, ["serve", "--port", "80", "two words"]);
    assert_eq!(container.env, ["A=1", "FLAG=yes", "FROM_SHELL=shell", "LEVEL=info", "RATIO=0.10"]);
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

    let db = &stack.services[1];
    assert_eq!(db.spec.mode, ServiceMode::Global);
    let mounts: Vec<_> =
        db.spec.task.container.mounts.iter().map(|m| (m.kind, m.source.as_str(), m.read_only)).collect();
    assert_eq!(mounts, [(MountKind::Volume, "shop_data", false), (MountKind::Bind, "/srv/shop/conf", true)]);

    let made: Vec<_> = stack.networks.iter().map(|n| (n.spec.annotations.name.as_str(), n.external)).collect();
    assert_eq!(made, [("shop_default", false), ("shop_front", false)]);
    let data: Vec<_> = stack.data.iter().map(|d| (d.annotations.name.as_str(), d.file.as_deref())).collect();
    assert_eq!(data, [("shop_pw", Some("/srv/shop/pw.txt")), ("site", None)]);
    assert_eq!(stack.warnings[0], "Ignoring unsupported options: build, links\n");
    assert!(stack.warnings[1].starts_with("Ignoring deprecated options:\n\ncontainer_name: "));
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
        Document::parse(&[("f".into(), "name: n$X\nservices: {a: {image: b}}\n".into())])
            .unwrap()
            .name(&|_| Some("1".into()))
            .unwrap()
            .as_deref(),
        Some("n1")
    );
}
