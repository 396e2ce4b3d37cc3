//! What no lint can check: module documentation, allowed edges between crates, inherited lints.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Crate folder -> crates of the workspace that it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("proto/model", &[]),
    ("proto", &["orch-model"]),
    ("manager/core", &["orch-model"]),
    ("manager", &["orch-model", "orch-proto", "orch-manager-core"]),
    ("worker", &["orch-model", "orch-proto"]),
    ("netd/core", &["orch-model"]),
    ("netd", &["orch-model", "orch-proto", "orch-netd-core"]),
    ("cli", &["orch-model", "orch-proto", "orch-manager", "orch-worker", "orch-netd", "orch-lab"]),
    ("deploy/lab", &[]),
    ("tests", &[]),
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
