//! Every flag of `service create` and `update` with a good value, and where `service inspect` shows it.

use clap::{Args, Command, Parser};
use orch_model::{
    Duration, Meta, SecretId, ServiceId, Timestamp, Version,
    service::{Endpoint, Service, ServiceSpec, UpdateState, UpdateStatus},
};
use serde_json::{Value, json};

use super::{
    create::{self, CreateArgs},
    pretty, resolve,
    update::{self, UpdateArgs},
};
use crate::{flags::words, inspect};

const CONTAINER: &str = "/TaskTemplate/ContainerSpec";

/// A command line with the flag, where its value is shown, and how.
fn good() -> Vec<(&'static str, String, Value)> {
    let container = |field: &str| format!("{CONTAINER}/{field}");
    let task = |field: &str| format!("/TaskTemplate/{field}");
    let of = |field: &str| format!("/{field}");
    vec![
        ("--cap-add NET_ADMIN", container("CapabilityAdd"), json!(["CAP_NET_ADMIN"])),
        ("--cap-drop CHOWN", container("CapabilityDrop"), json!(["CAP_CHOWN"])),
        ("--constraint node.role==manager", task("Placement/Constraints"), json!(["node.role==manager"])),
        ("--container-label a=b", container("Labels"), json!({"a": "b"})),
        ("--dns 1.2.3.4", container("DNSConfig/Nameservers"), json!(["1.2.3.4"])),
        ("--dns-option use-vc", container("DNSConfig/Options"), json!(["use-vc"])),
        ("--dns-search example.org", container("DNSConfig/Search"), json!(["example.org"])),
        ("--endpoint-balance source-hash", of("EndpointSpec/Balance"), json!("source-hash")),
        ("--endpoint-prefer-local", of("EndpointSpec/PreferLocal"), json!(true)),
        ("--endpoint-mode dnsrr", of("EndpointSpec/Mode"), json!("dnsrr")),
        ("--entrypoint 'sh -c'", container("Command"), json!(["sh", "-c"])),
        ("--env A=1", container("Env"), json!(["A=1"])),
        (
            "--generic-resource GPU=2",
            task("Resources/Reservations/GenericResources"),
            json!([{"DiscreteResourceSpec": {"Kind": "GPU", "Value": 2}}]),
        ),
        ("--group video", container("Groups"), json!(["video"])),
        ("--health-cmd true", container("Healthcheck/Test"), json!(["CMD-SHELL", "true"])),
        ("--health-interval 1s", container("Healthcheck/Interval"), json!(1_000_000_000)),
        ("--health-retries 4", container("Healthcheck/Retries"), json!(4)),
        ("--health-start-interval 1s", container("Healthcheck/StartInterval"), json!(1_000_000_000)),
        ("--health-start-period 1s", container("Healthcheck/StartPeriod"), json!(1_000_000_000)),
        ("--health-timeout 1s", container("Healthcheck/Timeout"), json!(1_000_000_000)),
        ("--no-healthcheck", container("Healthcheck/Test"), json!(["NONE"])),
        ("--host db:1.2.3.4", container("Hosts"), json!(["1.2.3.4 db"])),
        ("--hostname h", container("Hostname"), json!("h")),
        ("--init", container("Init"), json!(true)),
        ("--isolation default", container("Isolation"), json!("default")),
        ("--label a=b", of("Labels"), json!({"a": "b"})),
        ("--limit-cpu 0.5", task("Resources/Limits/NanoCPUs"), json!(500_000_000)),
        ("--limit-memory 64M", task("Resources/Limits/MemoryBytes"), json!(64 << 20)),
        ("--limit-pids 9", task("Resources/Limits/Pids"), json!(9)),
        ("--log-driver local", task("LogDriver/Name"), json!("local")),
        ("--log-opt max-size=1m", task("LogDriver/Options"), json!({"max-size": "1m"})),
        ("--mount type=tmpfs,target=/x", container("Mounts/0/Type"), json!("tmpfs")),
        ("--oom-score-adj -5", container("OomScoreAdj"), json!(-5)),
        (
            "--placement-pref spread=node.labels.z",
            task("Placement/Preferences/0/Spread/SpreadDescriptor"),
            json!("node.labels.z"),
        ),
        ("--placement-strategy pack", task("Placement/Strategy"), json!("pack")),
        ("--publish 8080:80", of("EndpointSpec/Ports/0/PublishedPort"), json!(8080)),
        ("--read-only", container("ReadOnly"), json!(true)),
        ("--replicas 3", of("Mode/Replicated/Replicas"), json!(3)),
        ("--replicas-max-per-node 2", task("Placement/MaxReplicas"), json!(2)),
        ("--reserve-cpu 0.5", task("Resources/Reservations/NanoCPUs"), json!(500_000_000)),
        ("--reserve-memory 64M", task("Resources/Reservations/MemoryBytes"), json!(64 << 20)),
        ("--restart-condition none", task("RestartPolicy/Condition"), json!("none")),
        ("--restart-delay 1s", task("RestartPolicy/Delay"), json!(1_000_000_000)),
        ("--restart-max-attempts 3", task("RestartPolicy/MaxAttempts"), json!(3)),
        ("--restart-window 1s", task("RestartPolicy/Window"), json!(1_000_000_000)),
        ("--rollback-delay 1s", of("RollbackConfig/Delay"), json!(1_000_000_000)),
        ("--rollback-failure-action continue", of("RollbackConfig/FailureAction"), json!("continue")),
        ("--rollback-max-failure-ratio 0.5", of("RollbackConfig/MaxFailureRatio"), json!(0.5)),
        ("--rollback-monitor 1s", of("RollbackConfig/Monitor"), json!(1_000_000_000)),
        ("--rollback-order start-first", of("RollbackConfig/Order"), json!("start-first")),
        ("--rollback-parallelism 3", of("RollbackConfig/Parallelism"), json!(3)),
        ("--stop-grace-period 1s", container("StopGracePeriod"), json!(1_000_000_000)),
        ("--stop-signal SIGINT", container("StopSignal"), json!("SIGINT")),
        ("--sysctl net.core.somaxconn=9", container("Sysctls"), json!({"net.core.somaxconn": "9"})),
        ("--tty", container("TTY"), json!(true)),
        ("--ulimit nofile=5:6", container("Ulimits"), json!([{"Name": "nofile", "Soft": 5, "Hard": 6}])),
        ("--update-delay 1s", of("UpdateConfig/Delay"), json!(1_000_000_000)),
        ("--update-failure-action rollback", of("UpdateConfig/FailureAction"), json!("rollback")),
        ("--update-max-failure-ratio 0.5", of("UpdateConfig/MaxFailureRatio"), json!(0.5)),
        ("--update-monitor 1s", of("UpdateConfig/Monitor"), json!(1_000_000_000)),
        ("--update-order start-first", of("UpdateConfig/Order"), json!("start-first")),
        ("--update-parallelism 3", of("UpdateConfig/Parallelism"), json!(3)),
        ("--user 1000:1000", container("User"), json!("1000:1000")),
        ("--workdir /app", container("Dir"), json!("/app")),
    ]
}

/// Where the cluster, a file or the command itself has a part: other tests show these.
const ELSEWHERE: &[&str] = &[
    "config",
    "config-add",
    "config-rm",
    "credential-spec",
    "detach",
    "env-file",
    "max-concurrent",
    "mode",
    "name",
    "network",
    "network-add",
    "network-rm",
    "no-resolve-image",
    "quiet",
    "rollback",
    "secret",
    "secret-add",
    "secret-rm",
    "with-registry-auth",
];

#[derive(Debug, Parser)]
struct CreateLine {
    #[command(flatten)]
    args: CreateArgs,
}

#[derive(Debug, Parser)]
struct UpdateLine {
    #[command(flatten)]
    args: UpdateArgs,
}

pub(super) fn created(line: &str) -> ServiceSpec {
    let words = words::split(&format!("create {line} web:1")).unwrap();
    let line = CreateLine::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
    create::spec(&line.args, "web".into(), Vec::new(), |_| None).unwrap()
}

fn updated(before: &ServiceSpec, line: &str) -> ServiceSpec {
    let words = words::split(&format!("update {line} web")).unwrap();
    let line = UpdateLine::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
    let mut spec = before.clone();
    update::change_spec(&line.args, &mut spec, |_| None).unwrap();
    spec
}

fn stored(spec: ServiceSpec) -> Service {
    Service {
        id: ServiceId::from_random(1),
        meta: Meta::default(),
        spec,
        spec_version: Version::default(),
        previous_spec: None,
        endpoint: Endpoint::default(),
        update_status: None,
        removing: false,
    }
}

fn shown(spec: &ServiceSpec, place: &str) -> Option<Value> {
    orch_template::native::shown(&inspect::service(&stored(spec.clone()))).pointer(&format!("/Spec{place}")).cloned()
}

fn long_flags(command: &Command) -> Vec<String> {
    command.get_arguments().filter_map(|flag| flag.get_long()).map(str::to_owned).collect()
}

/// `--env A=1` is `env`.
fn name_of(line: &str) -> &str {
    line.split([' ', '=']).next().unwrap().trim_start_matches('-')
}

#[test]
fn every_flag_of_create_is_shown_by_inspect() {
    let good = good();
    for (line, place, value) in &good {
        assert_eq!(shown(&created(line), place).as_ref(), Some(value), "{line}");
        let without = shown(&created(""), place);
        assert!(without.as_ref() != Some(value) || line.starts_with("--isolation"), "{line} changes nothing");
    }
    for name in long_flags(&CreateArgs::augment_args(Command::new("create"))) {
        let known = good.iter().any(|(line, ..)| name_of(line) == name) || ELSEWHERE.contains(&name.as_str());
        assert!(known, "--{name}: what does it do?");
    }
}

/// What a list's flag of `update` adds and removes, by the flag of `create`.
const LISTS: &[(&str, &str)] = &[
    ("constraint", "node.role==manager"),
    ("container-label", "a"),
    ("dns", "1.2.3.4"),
    ("dns-option", "use-vc"),
    ("dns-search", "example.org"),
    ("env", "A"),
    ("generic-resource", "GPU"),
    ("group", "video"),
    ("host", "db:1.2.3.4"),
    ("label", "a"),
    ("mount", "/x"),
    ("placement-pref", "spread=node.labels.z"),
    ("publish", "80"),
    ("sysctl", "net.core.somaxconn"),
    ("ulimit", "nofile"),
];

#[test]
fn every_flag_of_update_is_shown_by_inspect() {
    let before = created("");
    let mut seen: Vec<String> = ["args", "force", "image"].map(str::to_owned).to_vec();
    for (line, place, value) in good() {
        let name = name_of(line);
        seen.push(name.to_owned());
        let Some((_, key)) = LISTS.iter().find(|(list, _)| *list == name) else {
            assert_eq!(shown(&updated(&before, line), &place), Some(value), "{line}");
            continue;
        };
        let added = updated(&before, &line.replacen(name, &format!("{name}-add"), 1));
        assert_eq!(shown(&added, &place), Some(value), "--{name}-add");
        let removed = updated(&added, &format!("--{name}-rm {key}"));
        assert_eq!(shown(&removed, &place), shown(&before, &place), "--{name}-rm");
        seen.extend([format!("{name}-add"), format!("{name}-rm")]);
    }
    let container = |field: &str| format!("{CONTAINER}/{field}");
    assert_eq!(shown(&updated(&before, "--image web:2"), &container("Image")), Some(json!("web:2")));
    assert_eq!(shown(&updated(&before, "--args '-v x'"), &container("Args")), Some(json!(["-v", "x"])));
    assert_eq!(shown(&updated(&before, "--force"), "/TaskTemplate/ForceUpdate"), Some(json!(1)));
    for name in long_flags(&UpdateArgs::augment_args(Command::new("update"))) {
        assert!(seen.contains(&name) || ELSEWHERE.contains(&name.as_str()), "--{name}: what does it do?");
    }
}

#[test]
fn a_rollback_is_nothing_else() {
    let before = created("");
    let refused = |line: &str| {
        let words = words::split(&format!("update --rollback {line} web")).unwrap();
        update::only_rollback(&UpdateLine::try_parse_from(words).unwrap().args, &before)
    };
    assert_eq!(refused("--detach --quiet"), Ok(()));
    for line in ["--replicas 2", "--env-add A=1", "--secret-add s", "--network-rm n", "--force"] {
        assert!(refused(line).unwrap_err().contains("may not be combined with --rollback"), "{line}");
    }
}

#[test]
fn combinations_that_docker_refuses() {
    let create = |line: &str| {
        let words = words::split(&format!("create {line} web:1")).unwrap();
        create::spec(&CreateLine::try_parse_from(words).unwrap().args, "web".into(), Vec::new(), |_| None)
    };
    for (line, refusal) in [
        ("--mode global --replicas 2", "--replicas can only be used with replicated or replicated-job mode"),
        ("--mode global-job --replicas 2", "--replicas can only be used with replicated or replicated-job mode"),
        ("--mode global --max-concurrent 2", "--max-concurrent can only be used with --mode replicated-job"),
        ("--mode replicated-job --update-delay 1s", "update and rollback configuration is not supported for jobs"),
        ("--mode global-job --rollback-order start-first", "not supported for jobs"),
        ("--no-healthcheck --health-interval 1s", "--no-healthcheck conflicts with the other --health-* options"),
        ("--cap-add RESET", "RESET is for service update"),
    ] {
        let refused = create(line).unwrap_err();
        assert!(refused.contains(refusal), "{line}: {refused}");
    }
    let global = created("--mode global");
    let job = created("--mode replicated-job --replicas 4 --max-concurrent 2");
    assert_eq!(shown(&job, "/Mode/ReplicatedJob"), Some(json!({"MaxConcurrent": 2, "TotalCompletions": 4})));
    let alone = created("--mode replicated-job --max-concurrent 2");
    assert_eq!(shown(&alone, "/Mode/ReplicatedJob"), Some(json!({"MaxConcurrent": 2, "TotalCompletions": 2})));
    let update = |before: &ServiceSpec, line: &str| {
        let words = words::split(&format!("update {line} web")).unwrap();
        update::change_spec(&UpdateLine::try_parse_from(words).unwrap().args, &mut before.clone(), |_| None)
    };
    assert!(update(&global, "--replicas 2").unwrap_err().contains("this service is global"));
    assert!(update(&global, "--max-concurrent 2").unwrap_err().contains("replicated-job mode"));
    assert_eq!(update(&job, "--max-concurrent 3"), Ok(()));
}

/// `inspect --pretty` of a service that has something of everything.
pub(super) fn pretty_of_everything() -> String {
    let lines = good();
    let compatible = |line: &str| !["--no-healthcheck", "--endpoint-mode"].iter().any(|flag| line.starts_with(flag));
    let line: Vec<_> = lines.iter().map(|(line, ..)| *line).filter(|line| compatible(line)).collect();
    let mut spec = created(&line.join(" "));
    let named = crate::flags::file_ref::parse("password").unwrap();
    spec.task.container.args = vec!["sh".into()];
    let secret = resolve::file_ref(&named, SecretId::from_random(3), "password", "");
    spec.task.container.secrets = vec![secret];
    let config = resolve::file_ref(&named, orch_model::ConfigId::from_random(4), "password", "/");
    spec.task.container.configs = vec![config];
    spec.task.networks = vec![orch_model::service::NetworkAttachmentSpec {
        network: orch_model::NetworkId::from_random(5),
        aliases: Vec::new(),
        driver_options: std::collections::BTreeMap::new(),
    }];
    let mut service = stored(spec);
    let now = Timestamp::from_unix_ms(100_000);
    service.update_status = Some(UpdateStatus {
        state: UpdateState::Completed,
        started_at: Timestamp::from_unix_ms(0),
        first_started_at: None,
        completed_at: Some(now),
        message: "update completed".into(),
    });
    pretty::service(&service, now + Duration::from_secs(60), &|_| "front".to_owned())
}
