//! Goldens: what Docker's client said of the files in `fixtures/docker`. No `docker` is needed to compare with them.

use super::*;

/// The files of `fixtures/docker` mean what Docker's client (28.2) said when `compare-stacks --write` asked it.
#[test]
fn every_fixture_means_what_docker_says() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compose/fixtures/docker");
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(base) = name.strip_suffix(".golden.json") else { continue };
        let golden: serde_json::Value = serde_json::from_str(&text(&name).unwrap()).unwrap();
        let files: Vec<_> = [format!("{base}.yml"), format!("{base}.over.yml")]
            .into_iter()
            .filter_map(|name| text(&name).map(|text| (name, text)))
            .collect();
        let document = strictly(&files, &text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut differences = Vec::new();
        differ("", &golden, &document, &mut differences);
        assert!(differences.is_empty(), "{name}:\n{}", differences.join("\n"));
        compared += 1;
    }
    assert!(compared > 25, "{compared} goldens");
}

/// What Docker's client refuses is refused, and its words are among ours.
#[test]
fn every_refusal_has_dockers_words() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compose/fixtures/docker");
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let cases = text("refused.cases").unwrap();
    let mut count = 0;
    for case in cases.split("=== ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let (words, file) = rest.split_once("\n---\n").unwrap();
        let outcome = strictly(&[("stack.yml".to_owned(), file.to_owned())], &|name| {
            text(name).filter(|_| name == "variables.env")
        });
        let error = outcome.err().unwrap_or_else(|| panic!("{name} is accepted"));
        assert!(error.contains(words), "{name}: {words:?} is not in {error}");
        count += 1;
    }
    assert!(count > 200, "{count} cases");
}

/// As `orch stack config --strict` reads the files in the folder `/stack`.
fn strictly(files: &[(String, String)], text: &dyn Fn(&str) -> Option<String>) -> Result<serde_json::Value, String> {
    let set = text("variables.env").unwrap_or_default();
    let variable = |name: &str| {
        let mut lines = set.lines().filter_map(|line| line.split_once('='));
        lines.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
    };
    let read = |path: &str| {
        let inside = path.strip_prefix("/stack").map(|name| name.trim_start_matches('/'));
        match inside {
            Some("") => Err("is a directory".to_owned()),
            Some(name) => text(name).ok_or("no such file or directory".to_owned()),
            None => Err("no such file or directory".to_owned()),
        }
    };
    let around = Surroundings { stack: "s", dir: "/stack", variable: &variable, read: &read };
    let document = Document::parse(files, true).and_then(|document| document.normalised(&around));
    document.map(|(document, _)| document).map_err(|error| error.to_string())
}

/// Names what differs; `1` is as good as `1.0`.
fn differ(path: &str, docker: &serde_json::Value, ours: &serde_json::Value, out: &mut Vec<String>) {
    use serde_json::Value::{Array, Null, Number, Object};
    match (docker, ours) {
        (Object(a), Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                differ(&format!("{path}.{key}"), a.get(key).unwrap_or(&Null), b.get(key).unwrap_or(&Null), out);
            }
        }
        (Array(a), Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{path}.{at}"), a, b, out);
            }
        }
        (Number(a), Number(b)) if a.as_f64() == b.as_f64() => {}
        _ if docker == ours => {}
        _ => out.push(format!("{path}: docker {docker}, orch {ours}")),
    }
}
