//! What is loaded in process is what the `nft` program loads from the text: both are listed and compared.
//!
//! Needs root and `nft`. Each comparison is made in network namespaces of its own threads.

#[path = "../../core/tests/core/random.rs"]
#[allow(dead_code)]
pub(crate) mod random;
#[path = "../../core/tests/core/scenario.rs"]
#[allow(dead_code)]
pub(crate) mod scenario;

use std::{
    io::Write as _,
    net::{IpAddr, Ipv6Addr},
    process::{Command, Stdio},
};

use orch_model::assignment::Assignment;
use orch_netd_core::{
    names::Mac,
    ruleset::{Chain, Expr, Family, Hook, HookKind, Point, Rule, Ruleset, Table},
};

use super::{changes, generation, load, reload};
use crate::netns::{NetNs, on_own_thread};

const SEEDS: u64 = 20;

/// Runs `work` in a new network namespace.
fn in_new_ns<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    on_own_thread(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
    .unwrap()
}

fn nft(args: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{input}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is loaded: the blocks of each table in order of their names, since what came later is listed later.
fn listed() -> String {
    let text = nft(&["list", "ruleset"], "");
    let mut tables: Vec<_> = text
        .split("\n}\n")
        .map(|table| {
            let mut blocks: Vec<_> = table.split("\n\n").flat_map(|block| block.split("\n\t}\n")).collect();
            if let Some(first) = blocks.first_mut() {
                *first = first.trim_start_matches(|c| c != '\n');
            }
            let head = table.lines().next().unwrap_or_default();
            let mut blocks: Vec<_> = blocks.iter().map(|b| b.trim().trim_end_matches('}').trim().to_owned()).collect();
            blocks.retain(|block| !block.is_empty());
            blocks.sort_unstable();
            format!("{head}\n{}", blocks.join("\n"))
        })
        .collect();
    tables.sort_unstable();
    tables.join("\n")
}

fn listed_after_text(ruleset: &Ruleset) -> String {
    let text = ruleset.to_string();
    in_new_ns(move || {
        nft(&["-f", "-"], &text);
        listed()
    })
}

/// Each of `rulesets` after the other in one namespace; what is listed after each.
fn listed_after_loads(rulesets: Vec<Ruleset>) -> Vec<String> {
    in_new_ns(move || {
        let socket = NetNs::host().unwrap().netfilter().unwrap();
        let mut known = None;
        let mut seen = Vec::new();
        for ruleset in rulesets {
            load(&socket, known.as_ref(), &ruleset).unwrap_or_else(|error| panic!("{error}\n{ruleset}"));
            known = Some(ruleset);
            seen.push(listed());
        }
        seen
    })
}

fn check(rulesets: Vec<Ruleset>, what: &str) {
    let expected: Vec<_> = rulesets.iter().map(listed_after_text).collect();
    for (number, (seen, expected)) in listed_after_loads(rulesets.clone()).iter().zip(&expected).enumerate() {
        assert!(seen == expected, "{what}, {number}: loaded\n{seen}\ninstead of\n{expected}\n{}", rulesets[number]);
    }
}

#[test]
fn what_is_loaded_is_what_the_text_says_from_any_state_to_any_other() {
    for seed in 0..SEEDS {
        let (first, second) = random::seeded(seed);
        let (first, second) = (first.plan(), second.plan());
        for (name, ns) in &first.namespaces {
            let later = second.namespaces.get(name).map(|ns| ns.ruleset.clone());
            let states: Vec<_> =
                [Some(ns.ruleset.clone()), later, Some(ns.ruleset.clone())].into_iter().flatten().collect();
            if states.iter().any(|ruleset| !ruleset.tables.is_empty()) {
                check(states, &format!("seed {seed}, {name}"));
            }
        }
    }
}

#[test]
fn every_statement_of_the_sixth_version_too() {
    let mut scenario = scenario::Scenario::new(1).network(1, false).service(1, 1, vec![]).service(1, 2, vec![]);
    scenario = scenario.endpoint(1, 1, 1, 1, true).endpoint(1, 2, 1, 1, true).task(1, &[1], vec![], false);
    let v6 = |v4: &IpAddr| {
        IpAddr::from(Ipv6Addr::from_bits(match v4 {
            IpAddr::V4(v4) => 0xfd00 << 112 | u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        }))
    };
    for item in &mut scenario.items {
        match item {
            Assignment::Endpoint(endpoint) => endpoint.addresses = endpoint.addresses.iter().map(v6).collect(),
            Assignment::ServiceEndpoint(service) => service.vips = service.vips.iter().map(v6).collect(),
            _ => {}
        }
    }
    for task in scenario.tasks.values_mut() {
        task.attachments[0].addresses.push("fd00::9/64".parse().unwrap());
    }
    let plan = scenario.plan();
    let ruleset =
        plan.namespaces.values().map(|ns| &ns.ruleset).find(|r| r.tables.iter().any(|t| t.family == Family::V6));
    check(vec![ruleset.unwrap().clone()], "IPv6");
}

#[test]
fn a_change_of_nothing_is_nothing() {
    let ruleset = random::seeded(1).0.plan().namespaces.values().next().unwrap().ruleset.clone();
    assert_eq!(changes(Some(&ruleset), &ruleset), []);
}

#[test]
fn a_refusal_names_the_rule_and_changes_nothing() {
    // Zones are set before connections are looked up: the kernel refuses this in a `nat` chain's place only for masquerading.
    let rule = Rule(vec![Expr::MarkOf(vec![(Mac([2, 0, 0, 0, 0, 1]), 1)]), Expr::Masquerade]);
    let chain = Chain::at("forward", Hook::new(HookKind::Filter, Point::Forward, 0), vec![rule]);
    let table = Table { family: Family::V4, name: "orch_host", sets: vec![], chains: vec![chain] };
    in_new_ns(move || {
        let socket = NetNs::host().unwrap().netfilter().unwrap();
        let error = load(&socket, None, &Ruleset { tables: vec![table] }).unwrap_err().to_string();
        assert!(error.contains("masquerade` of chain forward"), "{error}");
        assert_eq!(listed(), listed_after_text(&Ruleset::default()));
    });
}

#[test]
fn what_somebody_else_has_touched_is_not_changed_unseen() {
    let (first, second) = random::seeded(1);
    let of_host = |scenario: &scenario::Scenario| scenario.plan().namespaces.into_values().next().unwrap().ruleset;
    let (first, second) = (of_host(&first), of_host(&second));
    assert!(first != second);
    in_new_ns(move || {
        let socket = NetNs::host().unwrap().netfilter().unwrap();
        load(&socket, None, &first).unwrap();
        let mut known = generation(&socket).unwrap();
        for (was, wanted) in [(&first, &second), (&second, &first), (&first, &first)] {
            known = reload(&socket, known, was, wanted).unwrap();
            assert_eq!(generation(&socket).unwrap(), known);
        }
        nft(&["add", "table", "ip", "somebodys"], "");
        let before = listed();
        reload(&socket, known, &first, &second).unwrap_err();
        assert_eq!(listed(), before);
    });
}
