//! What no lint can check: module documentation, allowed edges between crates, inherited lints, licences of what is linked.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Crate folder -> crates of the workspace that it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("proto/model", &[]),
    ("proto/template", &["orch-model"]),
    ("proto", &["orch-model"]),
    ("manager/core", &["orch-model", "orch-template"]),
    ("manager", &["orch-model", "orch-proto", "orch-manager-core"]),
    ("worker", &["orch-model", "orch-proto", "orch-template"]),
    ("netd/core", &["orch-model"]),
    ("netd", &["orch-model", "orch-proto", "orch-netd-core"]),
    ("cli", &["orch-model", "orch-template", "orch-proto", "orch-manager", "orch-worker", "orch-netd", "orch-lab"]),
    ("deploy/lab", &[]),
    ("tests", &[]),
    ("tests/bench", &["orch-model", "orch-proto", "orch-manager-core"]),
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (folder, _) in EDGES {
        rust_files(&root().join(folder), &mut found);
    }
    found.sort();
    found.dedup();
    assert!(found.len() > 50, "only {} files found", found.len());
    found
}

#[test]
fn every_module_opens_with_its_purpose() {
    let without: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|path| !fs::read_to_string(path).expect("a source file").starts_with("//!"))
        .collect();
    assert!(without.is_empty(), "modules without //! on the first line: {without:#?}");
}

#[test]
fn no_module_is_a_drawer_for_everything() {
    let drawers: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|path| {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            ["utils", "util", "helpers", "helper", "common", "misc"].contains(&stem)
        })
        .collect();
    assert!(drawers.is_empty(), "{drawers:#?}");
}

#[test]
fn crates_depend_only_along_the_allowed_edges() {
    let allowed: BTreeMap<_, _> = EDGES.iter().copied().collect();
    for (folder, edges) in &allowed {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let Some(name) = line.split(['.', '=', ' ']).next().filter(|name| name.starts_with("orch-")) else {
                continue;
            };
            if section == "[dependencies]" {
                assert!(edges.contains(&name), "{folder} depends on {name}");
            }
        }
    }
}

#[test]
fn every_crate_inherits_the_lints() {
    for (folder, _) in EDGES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{folder} does not inherit the workspace's lints");
    }
}

/// Who follows the README's words has a unit that starts, and finds every key of orch.toml there.
#[test]
fn the_readme_knows_the_unit_and_every_key() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect(path);
    let (readme, unit, config) = (read("README.md"), read("deploy/orch.service"), read("worker/src/config.rs"));
    let program =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=")?.strip_suffix("/orch node")).expect("ExecStart");
    assert!(readme.contains(&format!("copy `target/release/orch` to `{program}`")), "the unit starts {program}/orch");
    let fields = config.split_once("struct File {").expect("the file").1.split_once("\n}").expect("its end").0;
    let names = fields.lines().filter_map(|line| line.trim().split_once(": ").map(|(name, _)| name.replace('_', "-")));
    let keys: Vec<String> =
        names.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()) && name != "unknown").collect();
    assert!(keys.len() > 8, "{keys:?}");
    for key in keys.iter().map(String::as_str).chain(["log-level"]) {
        assert!(readme.contains(&format!("`{key}`")), "{key} is not in the README");
    }
}

/// The list under `key` in deny.toml, which `cargo deny` reads too; this test needs neither it nor the network.
fn denied(key: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let list = text.split_once(&format!("\n{key} = [")).expect("the key").1.split_once(']').expect("its end").0;
    let strings = list.lines().map(|line| line.split('#').next().unwrap_or_default()).collect::<String>();
    strings.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Crates whose licence is in a file only, and what deny.toml says that it is.
fn clarified() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let value = |block: &str, key: &str| {
        let after = block.split_once(&format!("{key} = \"")).expect("the key").1;
        after.split('"').next().unwrap_or_default().to_owned()
    };
    text.split("[[licenses.clarify]]")
        .skip(1)
        .map(|block| (value(block, "crate"), value(block, "expression")))
        .collect()
}

/// Whether an SPDX expression leaves a choice that is allowed. Also the old form `MIT/Apache-2.0`.
fn permits(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    let (mut depth, mut or, mut and) = (0_i32, None, None);
    for (at, c) in expression.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' if depth == 0 && expression[at..].starts_with(" OR ") => or = Some(at),
            ' ' if depth == 0 && expression[at..].starts_with(" AND ") => and = Some(at),
            _ => {}
        }
    }
    if let Some(at) = or {
        return permits(&expression[..at], allowed) || permits(&expression[at + 4..], allowed);
    }
    if let Some(at) = and {
        return permits(&expression[..at], allowed) && permits(&expression[at + 5..], allowed);
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => permits(inner, allowed),
        // "or later" leaves the version that is allowed.
        None => allowed.iter().any(|licence| licence == expression.trim_end_matches('+')),
    }
}

#[test]
fn licence_expressions_are_read() {
    let allowed = ["MIT".to_owned(), "Apache-2.0".to_owned(), "Unicode-3.0".to_owned()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("MIT/Apache-2.0", true),
        ("Apache-2.0+", true),
        ("(MIT OR GPL-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND LGPL-2.1", false),
    ] {
        assert_eq!(permits(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn only_permissive_crates_are_linked() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = "metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu";
    let output = Command::new(cargo).args(arguments.split(' ')).current_dir(root()).output().expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (allowed, banned, clarified) = (denied("allow"), denied("deny"), clarified());
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100 && allowed.len() > 5 && banned.len() > 3, "the lists were not read");
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let stated = package["license"].as_str().filter(|text| !text.is_empty());
        let licence = stated.or(clarified.get(name).map(String::as_str)).unwrap_or_default();
        assert!(permits(licence, &allowed), "{name} is under {licence:?}, which deny.toml does not allow");
        assert!(banned.iter().all(|ban| ban != name), "{name} is banned by deny.toml");
    }
}
