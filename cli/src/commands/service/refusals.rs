//! Every flag of `service create` and `update` with a wrong value: refused before a manager is asked, in words that name
//! the flag, the value and the accepted form.

use clap::{Arg, Args, Command};

use super::{create::CreateArgs, update::UpdateArgs};

/// Flag, wrong value, what the refusal has to say besides both. What a value does to files and nodes is seen in
/// `manager/core/tests/cluster/control.rs::values_are_refused_before_a_node_meets_them`.
const WRONG: &[(&str, &str, &str)] = &[
    ("args", "'open", "quote"),
    ("cap-add", "NET", "NET_ADMIN"),
    ("cap-drop", "CAP_NOPE", "NET_ADMIN"),
    ("config", "mode=9999,source=a", "octal"),
    ("config", "source=a,uid=root", "number of a user"),
    ("config", "source=a,source=b", "twice"),
    ("config-add", "mode=9999,source=a", "octal"),
    ("constraint", "node.role", "=="),
    ("constraint", "==x", "=="),
    ("constraint", "node.role=manager", "=="),
    ("constraint-add", "node.role", "=="),
    ("container-label", "=x", "KEY=VALUE"),
    ("container-label", "a b=c", "whitespaces"),
    ("container-label", "", "KEY=VALUE"),
    ("container-label-add", "=x", "KEY=VALUE"),
    ("credential-spec", "file://spec.json", "Windows"),
    ("detach", "maybe", "true, false"),
    ("dns", "resolver", "10.1.2.3"),
    ("dns", "300.1.1.1", "10.1.2.3"),
    ("dns", "1.2.3.4/24", "10.1.2.3"),
    ("dns-add", "resolver", "10.1.2.3"),
    ("dns-rm", "resolver", "10.1.2.3"),
    ("dns-option", "a b", "ndots:2"),
    ("dns-option", "ndots:1\nnameserver 6.6.6.6", "ndots:2"),
    ("dns-option-add", "", "ndots:2"),
    ("dns-search", "a b", "example.org"),
    ("dns-search", "a..b", "example.org"),
    ("dns-search", "a\nnameserver 6.6.6.6", "example.org"),
    ("dns-search-add", "ä.org", "example.org"),
    ("endpoint-balance", "any", "round-robin, random, source-hash, weighted"),
    ("endpoint-prefer-local", "maybe", "true, false"),
    ("endpoint-mode", "any", "vip, dnsrr"),
    ("entrypoint", "'open", "quote"),
    ("env", "=x", "NAME=VALUE"),
    ("env-add", "=x", "NAME=VALUE"),
    ("generic-resource", "GPU", "GPU=2"),
    ("generic-resource", "G P=1", "GPU=2"),
    ("generic-resource", "GPU=9223372036854775808", "GPU=2"),
    ("generic-resource", "GPU=-1", "GPU=2"),
    ("generic-resource", "A=1,B=2", "GPU=2"),
    ("generic-resource-add", "GPU=UUID1", "GPU=2"),
    ("group", "a b", "video or 44"),
    ("group", "-1", "video or 44"),
    ("group-add", "", "video or 44"),
    ("health-interval", "soon", "1m30s"),
    ("health-interval", "1us", "less than 1ms"),
    ("health-interval", "-1s", "1m30s"),
    ("health-retries", "-1", "whole number"),
    ("health-retries", "99999999999", "from 0 to 4294967295"),
    ("health-start-interval", "soon", "1m30s"),
    ("health-start-period", "soon", "1m30s"),
    ("health-timeout", "1d", "1m30s"),
    ("health-timeout", "999us", "less than 1ms"),
    ("host", "db", "db:10.1.2.3"),
    ("host", "a b:1.2.3.4", "db:10.1.2.3"),
    ("host", "a#b:1.2.3.4", "db:10.1.2.3"),
    ("host", "a\nb:1.2.3.4", "db:10.1.2.3"),
    ("host", "db:host-gateways", "db:10.1.2.3"),
    ("host-add", "db:nowhere", "db:10.1.2.3"),
    ("host-rm", "db:x", "HOST alone"),
    ("init", "maybe", "true, false"),
    ("init", "", "BOOL"),
    ("isolation", "hyperv", "default"),
    ("label", "=x", "KEY=VALUE"),
    ("label", "a b=c", "whitespaces"),
    ("label-add", "=x", "KEY=VALUE"),
    ("limit-cpu", "two", "0.5"),
    ("limit-cpu", "NaN", "0.5"),
    ("limit-cpu", "1e400", "0.5"),
    ("limit-cpu", "-1", "0.5"),
    ("limit-cpu", "", "0.5"),
    ("limit-memory", "5x", "50M"),
    ("limit-memory", "NaN", "50M"),
    ("limit-memory", "-5m", "50M"),
    ("limit-memory", "9223372036854775807", "50M"),
    ("limit-memory", "8e", "50M"),
    ("limit-memory", "1e400", "50M"),
    ("limit-pids", "many", "whole number"),
    ("limit-pids", "-2", "whole number"),
    ("limit-pids", "9223372036854775808", "no limit"),
    ("limit-pids", "+1", "whole number"),
    ("log-opt", "=x", "KEY=VALUE"),
    ("max-concurrent", "-1", "whole number"),
    ("mode", "lots", "replicated-job"),
    ("mount", "type=nonsense,target=/x", "volume, bind, tmpfs"),
    ("mount", "type=bind,source=/a,target=/b,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
    ("mount", "type=tmpfs,target=/b,volume-nocopy", "cannot mix 'volume-*'"),
    ("mount", "source=a,target=/b,target=/c", "twice"),
    ("mount", "source=a,target=/b,volume-subpath=../c", "subpath must be a relative path within the volume"),
    ("mount", "source=a,target=/b,volume-opt==x", "volume-opt=KEY=VALUE"),
    ("mount", "type=tmpfs,target=/a,tmpfs-size=-1", "50M"),
    ("mount-add", "target=x", "absolute"),
    ("network", "name=,alias=a", "network"),
    ("network", "name=a,driver-opt==b", "driver-opt=KEY=VALUE"),
    ("network", "name=a,name=b", "twice"),
    ("network-add", "name=,alias=a", "network"),
    ("network-rm", "name=,alias=a", "network"),
    ("oom-score-adj", "1001", "-1000 to 1000"),
    ("oom-score-adj", "1e3", "-1000 to 1000"),
    ("oom-score-adj", "", "-1000 to 1000"),
    ("placement-pref", "binpack", "spread=node.labels"),
    ("placement-pref-add", "spread=", "spread=node.labels"),
    ("placement-pref-rm", "x=y", "spread=node.labels"),
    ("placement-strategy", "binpack", "spread, pack"),
    ("publish", "1:x", "8080:80"),
    ("publish", "65536", "8080:80"),
    ("publish", "80-70", "8080:80"),
    ("publish", "1-3:5-6", "same length"),
    ("publish", "80/icmp", "tcp, udp or sctp"),
    ("publish", "target=0", "target is missing"),
    ("publish", "target=80,target=81", "twice"),
    ("publish", "target=80,mode=x", "ingress or host"),
    ("publish-add", "99999:80", "8080:80"),
    ("publish-rm", "http", "80"),
    ("read-only", "maybe", "true, false"),
    ("replicas", "-1", "whole number"),
    ("replicas", "+1", "whole number"),
    ("replicas", "18446744073709551616", "whole number"),
    ("replicas", "1e3", "whole number"),
    ("replicas", " 1", "whole number"),
    ("replicas", "", "whole number"),
    ("replicas-max-per-node", "x", "whole number"),
    ("reserve-cpu", "0.1234567891", "9 decimals"),
    ("reserve-memory", "lots", "50M"),
    ("restart-condition", "never", "on-failure"),
    ("restart-delay", "soon", "1m30s"),
    ("restart-delay", "-5s", "1m30s"),
    ("restart-delay", "1e9s", "1m30s"),
    ("restart-delay", " 5s", "1m30s"),
    ("restart-delay", "5", "1m30s"),
    ("restart-delay", "", "1m30s"),
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
    ("stop-signal", "0", "SIGTERM"),
    ("stop-signal", "65", "SIGTERM"),
    ("stop-signal", "-9", "SIGTERM"),
    ("stop-signal", "RTMIN+31", "SIGTERM"),
    ("sysctl", "=1", "KEY=VALUE"),
    ("sysctl", "a", "KEY=VALUE"),
    ("sysctl", "kernel.panic=1", "not allowed"),
    ("sysctl", "vm.swappiness=1", "not allowed"),
    ("sysctl", "net.a=1\n2", "KEY=VALUE"),
    ("sysctl", "../../x=1", "not allowed"),
    ("sysctl", "net.a=", "KEY=VALUE"),
    ("sysctl-add", "=1", "KEY=VALUE"),
    ("tty", "maybe", "true, false"),
    ("ulimit", "files=1", "nofile"),
    ("ulimit", "nofile=6:5", "less than or equal to hard limit"),
    ("ulimit", "nofile=-1:5", "less than or equal to hard limit"),
    ("ulimit", "nofile=-2", "nofile=1024:2048"),
    ("ulimit", "nofile=9223372036854775808", "nofile=1024:2048"),
    ("ulimit", "nofile=5:6:7", "nofile=1024:2048"),
    ("ulimit-add", "nofile=x", "nofile=1024:2048"),
    ("update-delay", "soon", "1m30s"),
    ("update-failure-action", "stop", "pause, continue or rollback"),
    ("update-max-failure-ratio", "-1", "from 0 to 1"),
    ("update-max-failure-ratio", "NaN", "from 0 to 1"),
    ("update-max-failure-ratio", "1e400", "from 0 to 1"),
    ("update-monitor", "soon", "1m30s"),
    ("update-order", "any", "start-first, stop-first"),
    ("update-parallelism", "x", "whole number"),
    ("user", "a b", "NAME or UID"),
    ("user", "a\nb", "NAME or UID"),
    ("user", "1:2:3", "NAME or UID"),
    ("user", "99999999999", "NAME or UID"),
    ("workdir", "relative", "absolute"),
    ("workdir", "/a\nb", "absolute"),
];

/// Any text has the right form: what it names is looked for, or is the container's business. The managers check names,
/// images and drivers (`manager/core/tests/cluster/control.rs`).
const ANY_TEXT: &[&str] = &[
    "config-rm",
    "constraint-rm",
    "container-label-rm",
    "dns-option-rm",
    "dns-search-rm",
    "env-file",
    "env-rm",
    "generic-resource-rm",
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
            let wrong: Vec<_> = WRONG.iter().filter(|(known, ..)| *known == name).collect();
            let is_known = !wrong.is_empty() || ANY_TEXT.contains(&name);
            assert!(is_known, "{}: which value of --{name} is wrong?", command.get_name());
            for (_, value, form) in wrong {
                let words = [command.get_name().to_owned(), format!("--{name}={value}"), operand.to_owned()];
                let refusal = command.clone().try_get_matches_from(words).expect_err(name).to_string();
                for part in [format!("--{name}").as_str(), value, form] {
                    assert!(refusal.contains(part), "--{name}={value}: {part:?} is not in {refusal}");
                }
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
