//! docs/parity.md says of every flag, column and filter how it compares with Docker's; here it is held to that.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{Args, Command, Subcommand};

use super::{ServiceCommand, create::CreateArgs, list, ps, update::UpdateArgs};
use crate::commands::{node, run::RunArgs};

const PAGE: &str = include_str!("../../../../docs/parity.md");

/// What `docker service create --help` of Docker 28.2 lists.
const DOCKER_CREATE: &str = "cap-add cap-drop config constraint container-label credential-spec detach dns dns-option \
    dns-search endpoint-mode entrypoint env env-file generic-resource group health-cmd health-interval health-retries \
    health-start-interval health-start-period health-timeout host hostname init isolation label limit-cpu limit-memory \
    limit-pids log-driver log-opt max-concurrent mode mount name network no-healthcheck no-resolve-image oom-score-adj \
    placement-pref publish quiet read-only replicas replicas-max-per-node reserve-cpu reserve-memory restart-condition \
    restart-delay restart-max-attempts restart-window rollback-delay rollback-failure-action rollback-max-failure-ratio \
    rollback-monitor rollback-order rollback-parallelism secret stop-grace-period stop-signal sysctl tty ulimit \
    update-delay update-failure-action update-max-failure-ratio update-monitor update-order update-parallelism user \
    with-registry-auth workdir";

/// The same of `docker service update`.
const DOCKER_UPDATE: &str = "args cap-add cap-drop config-add config-rm constraint-add constraint-rm \
    container-label-add container-label-rm credential-spec detach dns-add dns-option-add dns-option-rm dns-rm \
    dns-search-add dns-search-rm endpoint-mode entrypoint env-add env-rm force generic-resource-add generic-resource-rm \
    group-add group-rm health-cmd health-interval health-retries health-start-interval health-start-period \
    health-timeout host-add host-rm hostname image init isolation label-add label-rm limit-cpu limit-memory limit-pids \
    log-driver log-opt max-concurrent mount-add mount-rm network-add network-rm no-healthcheck no-resolve-image \
    oom-score-adj placement-pref-add placement-pref-rm publish-add publish-rm quiet read-only replicas \
    replicas-max-per-node reserve-cpu reserve-memory restart-condition restart-delay restart-max-attempts restart-window \
    rollback rollback-delay rollback-failure-action rollback-max-failure-ratio rollback-monitor rollback-order \
    rollback-parallelism secret-add secret-rm stop-grace-period stop-signal sysctl-add sysctl-rm tty ulimit-add \
    ulimit-rm update-delay update-failure-action update-max-failure-ratio update-monitor update-order \
    update-parallelism user with-registry-auth workdir";

/// The same of the other commands for services and nodes that take any.
const DOCKER_COMMANDS: [(&str, &str); 11] = [
    ("service ls", "filter format quiet"),
    ("service ps", "filter format no-resolve no-trunc quiet"),
    ("service logs", "details follow no-resolve no-task-ids no-trunc raw since tail timestamps"),
    ("service scale", "detach"),
    ("service rollback", "detach quiet"),
    ("service inspect", "format pretty"),
    ("node ls", "filter format quiet"),
    ("node ps", "filter format no-resolve no-trunc quiet"),
    ("node inspect", "format pretty"),
    ("node update", "availability label-add label-rm role"),
    ("node rm", "force"),
];

/// The same of `docker run`.
const DOCKER_RUN: &str = "add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile \
    cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus \
    cpuset-mems detach detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps \
    device-write-iops disable-content-trust dns dns-option dns-search domainname entrypoint env env-file expose \
    gpus group-add health-cmd health-interval health-retries health-start-interval health-start-period \
    health-timeout help hostname init interactive io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory \
    label label-file link link-local-ip log-driver log-opt mac-address memory memory-reservation memory-swap \
    memory-swappiness mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid \
    pids-limit platform privileged publish publish-all pull quiet read-only restart rm runtime security-opt \
    shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user userns \
    uts volume volume-driver volumes-from workdir";

/// The same of all commands that are not named above, one a line.
const DOCKER_REST: &str = include_str!("docker-flags.txt");

/// One row: what it is about, how it compares, the tests that show it.
struct Row {
    what: String,
    verdict: String,
    tests: Vec<String>,
}

/// The rows under a heading.
fn section(heading: &str) -> Vec<Row> {
    let start = format!("\n## {heading}\n");
    let text = PAGE.split(&start).nth(1).unwrap_or_else(|| panic!("docs/parity.md has no section {heading:?}"));
    let text = text.split("\n## ").next().unwrap();
    let lines = text.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [what, verdict, tests] = cells[..] else { panic!("three cells: {line}") };
            let tests = tests.split(", ").map(|test| test.trim_matches('`').to_owned()).collect();
            Row { what: what.trim_matches('`').to_owned(), verdict: verdict.to_owned(), tests }
        })
        .collect()
}

fn names<'a>(rows: impl IntoIterator<Item = &'a Row>) -> BTreeSet<&'a str> {
    rows.into_iter().map(|row| row.what.as_str()).collect()
}

fn check_flags(heading: &str, command: &Command, docker: &str) {
    let rows = section(heading);
    let own: BTreeSet<String> =
        command.get_arguments().filter_map(|flag| flag.get_long()).map(|name| format!("--{name}")).collect();
    let docker: BTreeSet<String> = docker.split_whitespace().map(|name| format!("--{name}")).collect();
    let documented: BTreeSet<String> = names(&rows).into_iter().map(str::to_owned).collect();
    assert_eq!(documented.len(), rows.len(), "{heading}: a row is there twice");
    assert_eq!(documented, own.union(&docker).cloned().collect(), "{heading}: rows, and flags of both");
    for row in &rows {
        let is_here = own.contains(&row.what);
        let is_refused = row.verdict.starts_with("not here");
        assert!(is_here || is_refused, "{heading}: {} is not here", row.what);
        if !docker.contains(&row.what) {
            assert!(row.verdict.starts_with("better"), "{heading}: Docker has no {}", row.what);
        }
    }
}

fn check_words(heading: &str, own: &[&str]) {
    let rows = section(heading);
    let here = rows.iter().filter(|row| !row.verdict.starts_with("not here"));
    assert_eq!(names(here), own.iter().copied().collect(), "{heading}");
}

#[test]
fn every_flag_has_a_row() {
    check_flags("service create", &CreateArgs::augment_args(Command::new("create")), DOCKER_CREATE);
    check_flags("service update", &UpdateArgs::augment_args(Command::new("update")), DOCKER_UPDATE);
}

fn run_command() -> Command {
    RunArgs::augment_args(Command::new("run").disable_help_flag(true))
}

#[test]
fn every_flag_of_the_other_commands_has_a_row() {
    let service = ServiceCommand::augment_subcommands(Command::new("service"));
    let node = node::NodeCommand::augment_subcommands(Command::new("node"));
    for (words, docker) in DOCKER_COMMANDS {
        let (of, name) = words.split_once(' ').unwrap();
        let command = if of == "service" { &service } else { &node };
        check_flags(&format!("{words}: flags"), command.find_subcommand(name).unwrap(), docker);
    }
    check_flags("run", &run_command(), DOCKER_RUN);
}

#[test]
fn what_is_not_here_is_refused() {
    let rows = section("run");
    let missing: Vec<_> = rows.iter().filter(|row| row.verdict.starts_with("not here")).collect();
    for row in &missing {
        let words = ["run".to_owned(), format!("{}=1", row.what), "busybox".to_owned()];
        let refusal = run_command().try_get_matches_from(words).expect_err(&row.what).to_string();
        assert!(refusal.contains(&row.what), "{}: {refusal}", row.what);
    }
    assert!(missing.len() > 30, "{}", missing.len());
}

#[test]
fn flags_of_the_rest_are_here_or_have_a_reason() {
    let (whole, rows) = (crate::cli::whole(), section("All other commands: flags that are not here"));
    let mut missing = BTreeSet::new();
    for line in DOCKER_REST.lines() {
        let (words, flags) = line.split_once(':').unwrap();
        let find =
            |of: &Command, name: &str| of.find_subcommand(name).unwrap_or_else(|| panic!("orch {words}")).clone();
        let command = words.split(' ').fold(whole.clone(), |of, name| find(&of, name));
        let own: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        let hidden: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_all_aliases).flatten().collect();
        missing.extend(flags.split_whitespace().filter(|flag| !own.contains(flag) && !hidden.contains(flag)).map(
            |flag| {
                let row = rows.iter().find(|row| row.what == format!("--{flag}"));
                assert!(row.is_some_and(|row| row.verdict.contains(&format!("`{words}`"))), "orch {words} --{flag}");
                format!("--{flag}")
            },
        ));
    }
    assert_eq!(names(&rows), missing.iter().map(String::as_str).collect(), "rows, and flags that are not here");
}

#[test]
fn commands_that_are_not_here_are_refused() {
    for row in section("Commands that are not here") {
        assert!(crate::cli::whole().find_subcommand(&row.what).is_none(), "orch {}", row.what);
    }
}

#[test]
fn every_column_and_filter_has_a_row() {
    let fields = |headings: &[(&'static str, &str)]| headings.iter().map(|(field, _)| *field).collect::<Vec<_>>();
    check_words("service ls: columns", &fields(list::SERVICES.headings));
    check_words("service ls: filters", &list::FILTERS);
    check_words("service ps: columns", &fields(crate::render::task::TASKS.headings));
    check_words("service ps: filters", &ps::FILTERS);
    check_words("node ls: columns", &fields(node::NODES.headings));
    check_words("node ls: filters", &node::FILTERS);
}

#[test]
fn every_row_says_how_it_compares_and_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let headings = PAGE.lines().filter_map(|line| line.strip_prefix("## "));
    let (mut count, mut read) = (0, std::collections::BTreeMap::new());
    for heading in headings {
        for row in section(heading) {
            count += 1;
            let known = ["same", "better: ", "not here: "].iter().any(|word| row.verdict.starts_with(word));
            assert!(known, "{heading}: {}: {:?}", row.what, row.verdict);
            for test in &row.tests {
                let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{heading}: {}: {test}", row.what));
                let text = read.entry(file.to_owned()).or_insert_with(|| {
                    fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
                });
                assert!(text.contains(&format!("fn {name}(")), "{heading}: {}: no fn {name} in {file}", row.what);
            }
        }
    }
    assert!(count > 380, "{count} rows");
}

#[test]
fn inspect_pretty_has_the_lines_of_the_page() {
    let shown = super::surface::pretty_of_everything();
    for row in section("service inspect --pretty") {
        if !row.verdict.starts_with("not here") {
            assert!(shown.lines().any(|line| line.trim_start().starts_with(&row.what)), "{}: {shown}", row.what);
        }
    }
}
