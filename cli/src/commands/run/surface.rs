//! Every flag of `run`: a good value arrives in what the worker is asked for, a wrong one is refused by flag, value and form
//! before it is asked.

use clap::{Args, Command, Parser};

use super::{Attaching, CreateArgs, RunArgs, given::Given, request};

/// Flag, good value, wrong value (empty: none is, or the worker knows), what the refusal has to say besides both.
const FLAGS: &[(&str, &str, &str, &str)] = &[
    ("add-host", "db:1.2.3.4", "a\nb:1.2.3.4", "db:10.1.2.3"),
    ("cap-add", "NET_ADMIN", "NET", "NET_ADMIN"),
    ("cap-drop", "CHOWN", "NOPE", "NET_ADMIN"),
    ("cpu-quota", "50000", "999", "microseconds"),
    ("cpu-shares", "512", "-1", "whole number"),
    ("cpus", "0.5", "two", "0.5"),
    ("cpuset-cpus", "0-1", "x", "0-3,5"),
    ("cpuset-mems", "0", "1-0", "0-3,5"),
    ("device", "/dev/fuse", "", ""),
    ("dns", "1.2.3.4", "resolver", "10.1.2.3"),
    ("dns-option", "ndots:2", "a b", "ndots:2"),
    ("dns-search", "example.org", "a b", "example.org"),
    ("entrypoint", "/my app/run", "[open", "program"),
    ("env", "A=1", "=x", "NAME=VALUE"),
    ("group-add", "44", "a b", "video or 44"),
    ("health-cmd", "true", "", ""),
    ("health-interval", "1s", "1us", "less than 1ms"),
    ("health-retries", "3", "-1", "whole number"),
    ("health-start-interval", "1s", "soon", "1m30s"),
    ("health-start-period", "1s", "soon", "1m30s"),
    ("health-timeout", "1s", "soon", "1m30s"),
    ("hostname", "h", "a b", "without spaces"),
    ("ip", "10.9.0.5", "x", "IPv4"),
    ("ip6", "fd00::5", "x", "IPv6"),
    ("ipc", "host", "", ""),
    ("label", "a=b", "a b=c", "KEY=VALUE"),
    ("log-driver", "none", "", ""),
    ("log-opt", "max-size=1m", "=x", "KEY=VALUE"),
    ("memory", "64m", "lots", "50M"),
    ("memory-reservation", "64m", "lots", "50M"),
    ("memory-swap", "64m", "lots", "50M"),
    ("mount", "target=/x", "target=x", "absolute"),
    ("name", "web", "", ""),
    ("network", "front", "name=,alias=a", "name="),
    ("network-alias", "a", "", ""),
    ("oom-score-adj", "5", "1001", "-1000 to 1000"),
    ("pid", "host", "", ""),
    ("pids-limit", "9", "many", "whole number"),
    ("publish", "8080:80", "1:x", "8080:80"),
    ("restart", "always", "often", "unless-stopped"),
    ("security-opt", "no-new-privileges", "", ""),
    ("shm-size", "64m", "lots", "50M"),
    ("stop-signal", "INT", "SIGNOPE", "SIGTERM"),
    ("stop-timeout", "3", "-1", "whole number"),
    ("sysctl", "net.a=1", "kernel.panic=1", "not allowed"),
    ("tmpfs", "/t:size=1m", "/t:what", "size=BYTES"),
    ("ulimit", "nofile=5", "nofile=6:5", "less than or equal to hard limit"),
    ("user", "1000:1000", "a b", "NAME or UID"),
    ("userns", "host", "", ""),
    ("uts", "host", "", ""),
    ("volume", "data:/d", "", ""),
    ("workdir", "/app", "app", "absolute path"),
];

/// Switches that the worker is told of.
const SWITCHES: &[&str] =
    &["init", "interactive", "no-healthcheck", "privileged", "publish-all", "read-only", "rm", "tty"];

/// What the command itself does.
const OWN: &[(&str, &str, &str)] = &[
    ("cidfile", "", ""),
    ("cpu-period", "5", "1000..=1000000"),
    ("detach", "", ""),
    ("detach-keys", "alt-x", "ctrl- and a letter"),
    ("env-file", "", ""),
    ("expose", "8080:80", "53/udp"),
    ("help", "", ""),
    ("label-file", "", ""),
    ("platform", "linux/s390x", "this node runs linux/"),
    ("pull", "often", "always, missing, never"),
    ("quiet", "", ""),
    ("sig-proxy", "maybe", "true"),
    ("volumes-from", "store:z", "CONTAINER[:ro|rw]"),
];

#[derive(Debug, Parser)]
#[command(disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    args: CreateArgs,
}

fn asked(flag: Option<String>) -> String {
    // An alias and an address need a network.
    let network =
        ["--network-alias", "--ip"].iter().any(|name| flag.as_deref().is_some_and(|flag| flag.starts_with(name)));
    let network = network.then(|| "--network=other".to_owned());
    let words = ["run".to_owned()].into_iter().chain(network).chain(flag).chain(["busybox".to_owned()]);
    let words: Vec<String> = words.collect();
    let line = Line::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    format!(
        "{:?}",
        request(&line.args, Attaching::Perhaps, &Given::default()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    )
}

#[test]
fn every_flag_of_run_arrives() {
    let (plain, networked) = (asked(None), asked(Some("--network=other".into())));
    for (flag, good, ..) in FLAGS {
        let asked = asked(Some(format!("--{flag}={good}")));
        assert!(asked != plain && asked != networked, "--{flag}={good} changes nothing");
    }
    for flag in SWITCHES {
        assert_ne!(asked(Some(format!("--{flag}"))), plain, "--{flag}");
    }
    let command = RunArgs::augment_args(Command::new("run").disable_help_flag(true));
    for name in command.get_arguments().filter_map(|flag| flag.get_long()) {
        let known = FLAGS.iter().any(|(flag, ..)| *flag == name)
            || OWN.iter().any(|(flag, ..)| *flag == name)
            || SWITCHES.contains(&name);
        assert!(known, "--{name}: what does it do?");
    }
}

#[test]
fn a_wrong_value_is_refused_by_name_value_and_form() {
    let command = RunArgs::augment_args(Command::new("run").disable_help_flag(true));
    let wrong = FLAGS.iter().map(|(flag, _, wrong, form)| (*flag, *wrong, *form));
    for (flag, wrong, form) in wrong.chain(OWN.iter().copied()).filter(|(_, wrong, _)| !wrong.is_empty()) {
        let words = ["run".to_owned(), format!("--{flag}={wrong}"), "busybox".to_owned()];
        let refusal = command.clone().try_get_matches_from(words).expect_err(flag).to_string();
        for part in [format!("--{flag}").as_str(), wrong, form] {
            assert!(refusal.contains(part), "--{flag}={wrong}: {part:?} is not in {refusal}");
        }
    }
}

#[test]
fn what_flags_come_to_together() {
    let spec = |flags: &[&str]| {
        let words = [&["run"], flags, &["busybox"]].concat();
        let line = Line::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        request(&line.args, Attaching::Perhaps, &Given { address: "10.0.0.1".to_owned(), ..Given::default() })
    };
    let nano_cpus = |flags: &[&str]| spec(flags).unwrap().spec.unwrap().limits.unwrap().nano_cpus;
    for (flags, want) in [
        (&["--cpu-quota=50000"][..], 500_000_000),
        (&["--cpu-quota=50000", "--cpu-period=25000"], 2_000_000_000),
        (&["--cpu-quota=1000"], 10_000_000),
        (&["--cpu-quota=10000", "--cpu-period=1000000"], 10_000_000),
        (&["--cpu-period=25000"], 0),
        (&["--cpu-quota=-1"], 0),
        (&["--cpus=2"], 2_000_000_000),
    ] {
        assert_eq!(nano_cpus(flags), want, "{flags:?}");
    }
    for (flags, words) in [
        (&["--cpus=0.001"][..], "from 0.01: --cpus is less"),
        (&["--cpu-quota=1000", "--cpu-period=1000000"], "from 0.01: --cpu-quota of each --cpu-period is less"),
        (&["--cpus=1", "--cpu-quota=50000"], "leave one out"),
    ] {
        let refused = spec(flags).unwrap_err().to_string();
        assert!(refused.contains(words), "{flags:?}: {refused}");
    }

    let command = |flag: &str| spec(&[flag]).unwrap().spec.unwrap().container.unwrap().command;
    for (flag, want) in [
        ("--entrypoint=/my app/run", &["/my app/run"][..]),
        ("--entrypoint=sh -c", &["sh -c"]),
        ("--entrypoint='open", &["'open"]),
        ("--entrypoint=[\"sh\",\"-c\"]", &["sh", "-c"]),
        ("--entrypoint=", &[""]),
    ] {
        assert_eq!(command(flag), want, "{flag}");
    }

    for (flag, words) in [
        ("--hostname=a", "hostname and the network mode"),
        ("--dns=1.2.3.4", "dns and the network mode"),
        ("--dns-search=example.org", "dns and the network mode"),
        ("--add-host=a:1.2.3.4", "custom host-to-IP mapping and the network mode"),
        ("--publish=80", "port publishing and the container type network mode"),
        ("-P", "port publishing and the container type network mode"),
        ("--expose=80", "port exposing and the container type network mode"),
        ("--network=front", "cannot attach both user-defined and non-user-defined network-modes"),
        ("--network=host", "cannot attach both user-defined and non-user-defined network-modes"),
    ] {
        let refused = spec(&["--network=container:web", flag]).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("conflicting options: {words}")), "{flag}: {refused}");
    }
    let joined = spec(&["--network=container:web", "--env=A=1"]).unwrap();
    assert_eq!((joined.network.as_str(), joined.networks.len()), ("container:web", 0));

    let ports = |flags: &[&str]| spec(flags).unwrap().ports.iter().map(|port| port.target_port).collect::<Vec<_>>();
    assert!(ports(&["--expose=80"]).is_empty());
    assert_eq!(ports(&["-P", "--expose=80-81", "--expose=53/udp"]), [80, 81, 53]);
    assert_eq!(ports(&["-P", "-p=8080:80", "--expose=80-81", "--expose=80/udp", "--expose=81"]), [80, 81, 80]);

    let container = |flags: &[&str]| spec(flags).unwrap().spec.unwrap().container.unwrap();
    assert_eq!(container(&["--add-host=host.docker.internal:host-gateway"]).hosts, ["10.0.0.1 host.docker.internal"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("labels");
    std::fs::write(&file, "# ours\na=1\n\nb\n").unwrap();
    let from_file = format!("--label-file={}", file.display());
    let labels = container(&[&from_file, "--label=a=2"]).labels;
    assert_eq!(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(), ["a=2", "b="]);
}
