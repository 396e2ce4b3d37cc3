//! Every flag of `service create` and `update` with a wrong value: refused before a manager is asked, in words that name
//! the flag, the value and the accepted form.

use clap::{Arg, Args, Command};

use super::{create::CreateArgs, update::UpdateArgs};

/// Flag, wrong value, what the refusal has to say besides both.
const WRONG: &[(&str, &str, &str)] = &[
    ("args", "'open", "quote"),
    ("cap-add", "NET", "NET_ADMIN"),
    ("cap-drop", "CAP_NOPE", "NET_ADMIN"),
    ("config", "mode=9999,source=a", "octal"),
    ("config-add", "mode=9999,source=a", "octal"),
    ("constraint", "node.role", "=="),
    ("constraint-add", "node.role", "=="),
    ("container-label", "=x", "KEY=VALUE"),
    ("container-label-add", "=x", "KEY=VALUE"),
    ("credential-spec", "file://spec.json", "Windows"),
    ("detach", "maybe", "true, false"),
    ("dns", "resolver", "10.1.2.3"),
    ("dns-add", "resolver", "10.1.2.3"),
    ("dns-rm", "resolver", "10.1.2.3"),
    ("endpoint-balance", "any", "round-robin, random, source-hash, weighted"),
    ("endpoint-prefer-local", "maybe", "true, false"),
    ("endpoint-mode", "any", "vip, dnsrr"),
    ("entrypoint", "'open", "quote"),
    ("env", "=x", "NAME=VALUE"),
    ("env-add", "=x", "NAME=VALUE"),
    ("generic-resource", "GPU", "GPU=2"),
    ("generic-resource-add", "GPU=UUID1", "GPU=2"),
    ("health-interval", "soon", "1m30s"),
    ("health-retries", "-1", "whole number"),
    ("health-start-interval", "soon", "1m30s"),
    ("health-start-period", "soon", "1m30s"),
    ("health-timeout", "1d", "1m30s"),
    ("host", "db", "db:10.1.2.3"),
    ("host-add", "db:nowhere", "db:10.1.2.3"),
    ("host-rm", "db", "db:10.1.2.3"),
    ("init", "maybe", "true, false"),
    ("isolation", "hyperv", "default"),
    ("label", "=x", "KEY=VALUE"),
    ("label-add", "=x", "KEY=VALUE"),
    ("limit-cpu", "two", "0.5"),
    ("limit-memory", "5x", "50M"),
    ("limit-pids", "many", "whole number"),
    ("log-opt", "=x", "KEY=VALUE"),
    ("max-concurrent", "-1", "whole number"),
    ("mode", "lots", "replicated-job"),
    ("mount", "type=nonsense,target=/x", "volume, bind, tmpfs"),
    ("mount-add", "target=x", "absolute"),
    ("network", "name=,alias=a", "network"),
    ("network-add", "name=,alias=a", "network"),
    ("network-rm", "name=,alias=a", "network"),
    ("oom-score-adj", "1001", "-1000 to 1000"),
    ("placement-pref", "binpack", "spread=node.labels"),
    ("placement-pref-add", "spread=", "spread=node.labels"),
    ("placement-pref-rm", "x=y", "spread=node.labels"),
    ("placement-strategy", "binpack", "spread, pack"),
    ("publish", "1:x", "8080:80"),
    ("publish-add", "99999:80", "8080:80"),
    ("publish-rm", "http", "80"),
    ("read-only", "maybe", "true, false"),
    ("replicas", "-1", "whole number"),
    ("replicas-max-per-node", "x", "whole number"),
    ("reserve-cpu", "0.1234567891", "9 decimals"),
    ("reserve-memory", "lots", "50M"),
    ("restart-condition", "never", "on-failure"),
    ("restart-delay", "soon", "1m30s"),
    ("restart-max-attempts", "x", "whole number"),
    ("restart-window", "5", "1m30s"),
    ("rollback-delay", "soon", "1m30s"),
    ("rollback-failure-action", "rollback", "pause or continue"),
    ("rollback-max-failure-ratio", "2", "from 0 to 1"),
    ("rollback-monitor", "soon", "1m30s"),
    ("rollback-order", "any", "start-first, stop-first"),
    ("rollback-parallelism", "x", "whole number"),
    ("secret", "source=", "source"),
    ("secret-add", "source=", "source"),
    ("stop-grace-period", "soon", "1m30s"),
    ("stop-signal", "SIGNOPE", "SIGTERM"),
    ("sysctl", "=1", "KEY=VALUE"),
    ("sysctl-add", "=1", "KEY=VALUE"),
    ("tty", "maybe", "true, false"),
    ("ulimit", "files=1", "nofile"),
    ("ulimit-add", "nofile=x", "nofile=1024:2048"),
    ("update-delay", "soon", "1m30s"),
    ("update-failure-action", "stop", "pause, continue or rollback"),
    ("update-max-failure-ratio", "-1", "from 0 to 1"),
    ("update-monitor", "soon", "1m30s"),
    ("update-order", "any", "start-first, stop-first"),
    ("update-parallelism", "x", "whole number"),
    ("workdir", "relative", "absolute"),
];

/// Any text has the right form: what it names is looked for, or is the container's business. The managers check names,
/// images and drivers (`manager/core/tests/cluster/control.rs`).
const ANY_TEXT: &[&str] = &[
    "config-rm",
    "constraint-rm",
    "container-label-rm",
    "dns-option",
    "dns-option-add",
    "dns-option-rm",
    "dns-search",
    "dns-search-add",
    "dns-search-rm",
    "env-file",
    "env-rm",
    "generic-resource-rm",
    "group",
    "group-add",
    "group-rm",
    "health-cmd",
    "hostname",
    "image",
    "label-rm",
    "log-driver",
    "mount-rm",
    "name",
    "secret-rm",
    "sysctl-rm",
    "ulimit-rm",
    "user",
];

fn commands() -> [(Command, &'static str); 2] {
    [
        (CreateArgs::augment_args(Command::new("create")), "image"),
        (UpdateArgs::augment_args(Command::new("update")), "service"),
    ]
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|flag| flag.get_long().is_some() && flag.get_action().takes_values())
}

#[test]
fn a_wrong_value_is_refused_by_name_value_and_form() {
    for (command, operand) in commands() {
        for flag in flags(&command) {
            let name = flag.get_long().unwrap();
            let Some((_, value, form)) = WRONG.iter().find(|(known, ..)| *known == name) else {
                assert!(ANY_TEXT.contains(&name), "{}: which value of --{name} is wrong?", command.get_name());
                continue;
            };
            let words = [command.get_name().to_owned(), format!("--{name}={value}"), operand.to_owned()];
            let refusal = command.clone().try_get_matches_from(words).expect_err(name).to_string();
            for part in [format!("--{name}").as_str(), value, form] {
                assert!(refusal.contains(part), "--{name}={value}: {part:?} is not in {refusal}");
            }
        }
    }
}

#[test]
fn the_tables_are_about_flags_that_there_are() {
    let commands = commands();
    let known: Vec<&str> = commands.iter().flat_map(|(command, _)| flags(command)).filter_map(Arg::get_long).collect();
    for name in WRONG.iter().map(|(name, ..)| name).chain(ANY_TEXT) {
        assert!(known.contains(name), "there is no --{name}");
    }
}
