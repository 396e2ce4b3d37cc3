//! Compares how Orch and Docker's client read stack files: `compare-stacks FOLDER…`.
//!
//! Every `.yml` and `.yaml` file below the folders is read by `orch stack config` and, where it is of version 3, by
//! `docker stack config`, which needs no engine. Of those both must say the same: whether the file is right, what it
//! means, and, where Docker complains, its words. Files without `version:` must only be accepted. Ends with 1 when
//! there is a difference, and when there is no `docker` that knows the command.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// The first client with a `docker stack config` whose words these are.
const OLDEST_DOCKER: u32 = 25;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare-stacks: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the number of differences.
fn run(folders: Vec<String>) -> anyhow::Result<usize> {
    if folders.is_empty() {
        bail!("name a folder with stack files: compare-stacks FOLDER…");
    }
    check_docker()?;
    let orch = std::env::var("ORCH_TEST_BINARY").unwrap_or_else(|_| "target/debug/orch".into());
    let orch = std::path::absolute(&orch)?;
    if !orch.is_file() {
        bail!("{} is not there: build it (cargo build -p orch), or say ORCH_TEST_BINARY=PATH", orch.display());
    }
    let mut files = BTreeSet::new();
    for folder in &folders {
        collect(Path::new(folder), &mut files).with_context(|| format!("cannot read {folder}"))?;
    }
    let (mut compared, mut accepted, mut different) = (0, 0, 0);
    for file in &files {
        let difference = match kind(file) {
            Kind::Other => continue,
            Kind::Versioned => {
                compared += 1;
                compare(&orch, file)?
            }
            Kind::Modern => {
                accepted += 1;
                let ours = read(&orch, &[], file)?;
                (!ours.status.success()).then(|| format!("refused\n{}", text(&ours.stderr)))
            }
        };
        if let Some(difference) = difference {
            different += 1;
            println!("{}: {difference}\n", file.display());
        }
    }
    println!("{compared} files of version 3 compared, {accepted} without version read, {different} differences");
    if compared + accepted == 0 {
        bail!("there is no stack file in {}", folders.join(", "));
    }
    Ok(different)
}

fn check_docker() -> anyhow::Result<()> {
    let need = format!("a docker client from {OLDEST_DOCKER} on is needed (no engine)");
    let version = Command::new("docker").arg("--version").output().with_context(|| need.clone())?;
    let version = text(&version.stdout);
    let number =
        version.split_whitespace().nth(2).and_then(|v| v.split('.').next()).and_then(|v| v.parse::<u32>().ok());
    if number.is_none_or(|number| number < OLDEST_DOCKER) {
        bail!("{need}, this is: {}", version.trim());
    }
    let help = Command::new("docker").args(["stack", "config", "--help"]).output()?;
    if !help.status.success() || !text(&help.stdout).contains("stack config") {
        bail!("{need}; this one does not know `docker stack config`");
    }
    Ok(())
}

fn collect(path: &Path, files: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    if path.is_file() {
        if path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml") {
            files.insert(path.to_owned());
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            continue;
        }
        collect(&entry.path(), files)?;
    }
    Ok(())
}

enum Kind {
    Versioned,
    Modern,
    /// No stack file, or one of a version that neither takes.
    Other,
}

fn kind(file: &Path) -> Kind {
    let Ok(text) = std::fs::read_to_string(file) else { return Kind::Other };
    let top = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    match top("version:") {
        Some(version) if version.trim_start_matches(['"', '\'']).starts_with('3') => Kind::Versioned,
        Some(_) => Kind::Other,
        None if top("services:").is_some() => Kind::Modern,
        None => Kind::Other,
    }
}

fn compare(orch: &Path, file: &Path) -> anyhow::Result<Option<String>> {
    let docker = read(Path::new("docker"), &[], file)?;
    let ours = read(orch, &["--strict"], file)?;
    let said = text(&docker.stderr);
    if docker.status.success() != ours.status.success() {
        let word = |output: &Output| if output.status.success() { "accepts" } else { "refuses" };
        let (theirs, own) = (word(&docker), word(&ours));
        return Ok(Some(format!("docker {theirs}, orch {own} it\n{said}{}", text(&ours.stderr))));
    }
    if !docker.status.success() {
        let expected = core_of(&said);
        let missing = !text(&ours.stderr).contains(&expected);
        return Ok(missing.then(|| format!("docker says\n{said}orch says\n{}", text(&ours.stderr))));
    }
    let theirs: Value = serde_saphyr::from_str(&text(&docker.stdout)).context("cannot read docker's answer")?;
    let own: Value = serde_saphyr::from_str(&text(&ours.stdout)).context("cannot read orch's answer")?;
    let mut differences = Vec::new();
    differ("", &theirs, &own, &mut differences);
    Ok((!differences.is_empty()).then(|| format!("means another thing\n  {}", differences.join("\n  "))))
}

fn read(program: &Path, flags: &[&str], file: &Path) -> anyhow::Result<Output> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut command = Command::new(program);
    command.args(["stack", "config"]).args(flags).arg("-c").arg(file.file_name().unwrap_or_default());
    command.current_dir(folder).output().with_context(|| format!("cannot start {}", program.display()))
}

/// What Docker's client says without the names of its own insides before it.
fn core_of(said: &str) -> String {
    let line = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let after = |text: &str, start: &str| {
        text.strip_prefix(start).and_then(|rest| rest.split_once(": ")).map(|(_, rest)| rest.to_owned())
    };
    let line = after(line, "yaml: line ").unwrap_or_else(|| line.to_owned());
    let line = after(&line, "line ").unwrap_or(line);
    let line = after(&line, "error decoding '").unwrap_or(line);
    // It says the path twice when a word is not one of those allowed.
    match line.split_once(' ') {
        Some((path, rest)) if rest.starts_with(&format!("{path} ")) => rest.to_owned(),
        _ => line.strip_prefix("yaml: ").unwrap_or(&line).to_owned(),
    }
}

fn differ(path: &str, theirs: &Value, own: &Value, out: &mut Vec<String>) {
    match (theirs, own) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let path = format!("{path}.{key}");
                differ(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        _ if theirs == own => {}
        _ => out.push(format!("{}: docker {theirs}, orch {own}", path.trim_start_matches('.'))),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_words_are_found_among_its_own() {
        for (said, core) in [
            ("services.a.user must be a string\n", "services.a.user must be a string"),
            (
                "yaml: line 3: found character that cannot start any token",
                "found character that cannot start any token",
            ),
            (
                "yaml: unmarshal errors:\n  line 5: mapping key \"a\" already defined",
                "mapping key \"a\" already defined",
            ),
            ("decoding failed due to:\n\nerror decoding 'Volumes[0]': invalid spec: x", "invalid spec: x"),
            ("a.order a.order must be one of: \"x\"", "a.order must be one of: \"x\""),
        ] {
            assert_eq!(core_of(said), core);
        }
    }

    #[test]
    fn differences_are_named() {
        let mut out = Vec::new();
        differ(
            "",
            &serde_json::json!({"a": {"b": 1, "c": 2.0}}),
            &serde_json::json!({"a": {"b": 2, "c": 2}}),
            &mut out,
        );
        assert_eq!(out, ["a.b: docker 1, orch 2"]);
    }
}
