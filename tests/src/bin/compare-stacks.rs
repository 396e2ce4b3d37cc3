//! Compares how Orch and Docker's client read stack files: `compare-stacks [--write] FOLDER…`.
//!
//! Every `.yml` and `.yaml` file below the folders is read by `orch stack config` and, where it is of version 3, by
//! `docker stack config`, which needs no engine. Of those both must say the same: whether the file is right, what it
//! means, and, where Docker complains, its words. Files without `version:` must only be accepted. Ends with 1 when
//! there is a difference, and when there is no `docker` that knows the command.
//!
//! `NAME.over.yml` is laid over `NAME.yml`. `NAME.cases` has many small files, each after a line `=== what it is`, what
//! Docker's client says of it, and a line `---`. Variables of a `variables.env` beside the files are there for both
//! programs. `--write` keeps what Docker's client says: as `NAME.golden.json`, and in the cases; tests that have no
//! `docker` compare with that.

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
fn run(mut folders: Vec<String>) -> anyhow::Result<usize> {
    let write = folders.iter().any(|word| word == "--write");
    folders.retain(|word| word != "--write");
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
            Kind::Cases => {
                let (count, differences) = cases(&orch, file, write)?;
                compared += count;
                different += differences.len();
                differences.iter().for_each(|difference| println!("{}: {difference}\n", file.display()));
                continue;
            }
            Kind::Versioned => {
                compared += 1;
                if write {
                    keep(file)?;
                }
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
        if path.extension().is_some_and(|extension| ["yml", "yaml", "cases"].iter().any(|known| extension == *known)) {
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
    Cases,
    Versioned,
    Modern,
    /// No stack file, or one of a version that neither takes.
    Other,
}

fn kind(file: &Path) -> Kind {
    if file.extension().is_some_and(|extension| extension == "cases") {
        return Kind::Cases;
    }
    if file.with_extension("").extension().is_some_and(|over| over == "over") {
        return Kind::Other;
    }
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
    let over = file.with_extension("over.yml");
    if over.is_file() {
        command.arg("-c").arg(over.file_name().unwrap_or_default());
    }
    let variables = std::fs::read_to_string(folder.join("variables.env")).unwrap_or_default();
    command.envs(variables.lines().filter_map(|line| line.split_once('=')));
    command.current_dir(folder).output().with_context(|| format!("cannot start {}", program.display()))
}

/// Keeps Docker's answer beside the file, with `/stack` for the file's folder.
fn keep(file: &Path) -> anyhow::Result<()> {
    let docker = read(Path::new("docker"), &[], file)?;
    if !docker.status.success() {
        bail!("{}: docker refuses it; such files go into NAME.cases: {}", file.display(), text(&docker.stderr));
    }
    let folder = std::path::absolute(file)?.parent().unwrap_or(Path::new("/")).display().to_string();
    let said: Value = serde_saphyr::from_str(&text(&docker.stdout).replace(&folder, "/stack"))?;
    std::fs::write(file.with_extension("golden.json"), serde_json::to_string_pretty(&said)? + "\n")?;
    Ok(())
}

/// How many cases the file has, and what differs.
fn cases(orch: &Path, file: &Path, write: bool) -> anyhow::Result<(usize, Vec<String>)> {
    let all = std::fs::read_to_string(file)?;
    let folder = tempfile::tempdir()?;
    let variables = file.with_file_name("variables.env");
    if variables.is_file() {
        std::fs::copy(&variables, folder.path().join("variables.env"))?;
    }
    let one = folder.path().join("stack.yml");
    let (mut count, mut differences, mut kept) = (0, Vec::new(), String::new());
    for case in all.split("=== ").skip(1) {
        let (name, rest) = case.split_once('\n').context("a case without a text")?;
        let (_, body) = rest.split_once("---\n").with_context(|| format!("{name}: there is no ---"))?;
        std::fs::write(&one, body)?;
        count += 1;
        differences.extend(compare(orch, &one)?.map(|difference| format!("{name}: {difference}")));
        if write {
            let docker = read(Path::new("docker"), &[], &one)?;
            kept.push_str(&format!("=== {name}\n{}\n---\n{body}", core_of(&text(&docker.stderr))));
        }
    }
    if write {
        std::fs::write(file, kept)?;
    }
    Ok((count, differences))
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
