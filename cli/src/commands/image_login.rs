//! `orch login` and `orch logout`, and Docker's credential files.
//!
//! `~/.docker/config.json` (or `$DOCKER_CONFIG/config.json`) is shared with Docker's client: what one stores the other
//! finds, and what is in it besides is left as it is.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use orch_proto::{paths::Paths, wire};
use serde_json::{Value, json};

use super::terminal;
use crate::api::{explain, worker};

/// The key of Docker's own registry in credential files, for history's sake.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What a credential helper may answer at most.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Username
    #[arg(short, long)]
    username: Option<String>,
    /// Password
    #[arg(short, long)]
    password: Option<String>,
    /// Take the password from stdin
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    server: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    server: Option<String>,
}

pub(crate) async fn login(args: LoginArgs, paths: &Paths) -> anyhow::Result<()> {
    let server = key_of(args.server.as_deref());
    let username = match args.username {
        Some(username) => username,
        None if args.password_stdin => bail!("must provide --username with --password-stdin"),
        None => ask("Username: ")?,
    };
    let password = match args.password {
        Some(password) => {
            remark!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password
        }
        None if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read the password from standard input")?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        None => ask_secretly("Password: ")?,
    };
    if password.is_empty() {
        // A registry that wants no login would take it.
        bail!("Password Required: what was given is empty; is the variable or file set that it comes from?");
    }
    let auth = wire::RegistryAuth { username, password, ..Default::default() };
    let request =
        wire::PullImageRequest { reference: host_of(&server).to_owned(), auth: Some(auth), ..Default::default() };
    let kept = worker(paths).await?.check_login(request).await.map_err(explain)?.into_inner();
    store(&server, &kept)?;
    println!("Login Succeeded");
    Ok(())
}

pub(crate) fn logout(args: &LogoutArgs) -> anyhow::Result<()> {
    let server = key_of(args.server.as_deref());
    println!("Removing login credentials for {}", host_of(&server));
    let mut config = read()?;
    match helper(&config, &server) {
        Some(helper) => drop(run_helper(&helper, "erase", &server)?),
        None => {
            if let Some(auths) = config["auths"].as_object_mut() {
                auths.retain(|key, _| *key != server && host_of(key) != server);
            }
            write(&config)?;
        }
    }
    Ok(())
}

/// What is stored for a registry.
pub(super) fn stored(registry: &str) -> anyhow::Result<Option<wire::RegistryAuth>> {
    let config = read()?;
    if let Some(helper) = helper(&config, registry) {
        let Some(answer) = run_helper(&helper, "get", registry)? else { return Ok(None) };
        let answer: Value =
            serde_json::from_str(&answer).with_context(|| format!("docker-credential-{helper} answers no JSON"))?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        return Ok(Some(of_pair(text("Username"), text("Secret"))));
    }
    let entry = kept(&config, registry);
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Ok(Some(of_pair("<token>".to_owned(), token.to_owned())));
    }
    let Some(auth) = entry["auth"].as_str().filter(|auth| !auth.is_empty()) else { return Ok(None) };
    let broken = || anyhow!("{} has no valid \"auth\" for {registry}: log in again", path().display());
    let pair = String::from_utf8(STANDARD.decode(auth).map_err(|_| broken())?).map_err(|_| broken())?;
    let (username, password) = pair.split_once(':').ok_or_else(broken)?;
    Ok(Some(of_pair(username.to_owned(), password.to_owned())))
}

/// The file's entry for a registry; as for Docker, also one that names it with `https://` or a path.
fn kept<'a>(config: &'a Value, registry: &str) -> &'a Value {
    let auths = config["auths"].as_object();
    let by_host = || auths?.iter().find(|(key, _)| host_of(key) == registry).map(|(_, entry)| entry);
    auths.and_then(|auths| auths.get(registry)).or_else(by_host).unwrap_or(&Value::Null)
}

/// Helpers mark tokens by that name.
fn of_pair(username: String, secret: String) -> wire::RegistryAuth {
    match username.as_str() {
        "<token>" => wire::RegistryAuth { identity_token: secret, ..Default::default() },
        _ => wire::RegistryAuth { username, password: secret, ..Default::default() },
    }
}

fn store(server: &str, auth: &wire::RegistryAuth) -> anyhow::Result<()> {
    let mut config = read()?;
    let is_token = !auth.identity_token.is_empty();
    if let Some(helper) = helper(&config, server) {
        let (username, secret) =
            if is_token { ("<token>", &auth.identity_token) } else { (auth.username.as_str(), &auth.password) };
        let entry = json!({"ServerURL": server, "Username": username, "Secret": secret});
        return run_helper(&helper, "store", &entry.to_string()).map(drop);
    }
    if !config["auths"].is_object() {
        config["auths"] = json!({});
    }
    // As Docker writes it: beside a token, the user's name alone.
    config["auths"][server] = json!({"auth": STANDARD.encode(format!("{}:{}", auth.username, auth.password))});
    if is_token {
        config["auths"][server]["identitytoken"] = json!(auth.identity_token);
    }
    write(&config)?;
    remark!("WARNING! Your password will be stored unencrypted in {}.", path().display());
    Ok(())
}

pub(super) fn key_of(server: Option<&str>) -> String {
    match server {
        None | Some("docker.io" | "index.docker.io" | "registry-1.docker.io") => DOCKER_HUB.to_owned(),
        Some(DOCKER_HUB) => DOCKER_HUB.to_owned(),
        Some(server) => host_of(server).to_owned(),
    }
}

fn host_of(server: &str) -> &str {
    if server == DOCKER_HUB {
        return "docker.io";
    }
    let host = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    host.split('/').next().unwrap_or(host)
}

fn path() -> PathBuf {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        home.join(".docker")
    });
    folder.join("config.json")
}

fn read() -> anyhow::Result<Value> {
    let path = path();
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => Ok(json!({})),
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(json!({})),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write(config: &Value) -> anyhow::Result<()> {
    write_to(&path(), config)
}

/// Written aside and renamed: passwords are for the user alone, and never half there.
fn write_to(path: &Path, config: &Value) -> anyhow::Result<()> {
    // A link to where the file really is stays one.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let failed = || format!("cannot write {}", path.display());
    let folder = path.parent().context("the credential file has no folder")?;
    std::fs::create_dir_all(folder).with_context(failed)?;
    let aside = path.with_extension(format!("json.{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .with_context(failed)?;
    file.write_all(serde_json::to_string_pretty(config)?.as_bytes()).with_context(failed)?;
    std::fs::rename(&aside, &path).with_context(failed)
}

/// The credential helper that keeps this registry's login, if one does.
fn helper(config: &Value, registry: &str) -> Option<String> {
    let own = config["credHelpers"][registry].as_str();
    own.or(config["credsStore"].as_str()).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// `None`: the helper knows nothing of it.
fn run_helper(name: &str, verb: &str, input: &str) -> anyhow::Result<Option<String>> {
    let program = format!("docker-credential-{name}");
    let spawned = Command::new(&program).arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| {
        format!("cannot run {program}, which {} names: install it, or take it out there", path().display())
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    }
    if child.wait()?.success() {
        return Ok(Some(answer));
    }
    if answer.contains("credentials not found") {
        Ok(None)
    } else {
        Err(anyhow!("{program} {verb}: {}", answer.trim()))
    }
}

fn ask(prompt: &str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("cannot perform an interactive login from a non TTY device: use --username and --password-stdin");
    }
    print!("{prompt}");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn ask_secretly(prompt: &str) -> anyhow::Result<String> {
    let quiet = terminal::without_echo();
    let answer = ask(prompt);
    drop(quiet);
    println!();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_have_dockers_keys() {
        for (server, key, host) in [
            (None, DOCKER_HUB, "docker.io"),
            (Some("docker.io"), DOCKER_HUB, "docker.io"),
            (Some("reg:5000"), "reg:5000", "reg:5000"),
            (Some("https://reg.example/v2/"), "reg.example", "reg.example"),
        ] {
            assert_eq!((key_of(server).as_str(), host_of(&key_of(server))), (key, host));
        }
    }

    #[test]
    fn entries_are_found_by_their_host_too() {
        let config = json!({"auths": {
            "https://ghcr.io": {"auth": "a"}, "reg.example/v2/": {"auth": "b"}, "reg.example": {"auth": "c"},
            DOCKER_HUB: {"auth": "d"},
        }});
        for (registry, auth) in
            [("ghcr.io", json!("a")), ("reg.example", json!("c")), (DOCKER_HUB, json!("d")), ("io", Value::Null)]
        {
            assert_eq!(kept(&config, registry)["auth"], auth, "{registry}");
        }
        assert_eq!(kept(&json!({}), "ghcr.io"), &Value::Null);
    }

    #[test]
    fn a_linked_file_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let [link, file] = ["config.json", "kept/docker.json"].map(|name| dir.path().join(name));
        std::fs::create_dir(dir.path().join("kept")).unwrap();
        std::fs::write(&file, "{}").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for config in [json!({"auths": {}}), json!({"a": 1})] {
            write_to(&link, &config).unwrap();
            assert_eq!(std::fs::read_link(&link).unwrap(), file);
            assert_eq!(serde_json::from_str::<Value>(&std::fs::read_to_string(&file).unwrap()).unwrap(), config);
        }
        write_to(&dir.path().join("new/config.json"), &json!({})).unwrap();
    }

    #[test]
    fn helpers_go_before_the_file() {
        let config = json!({"credsStore": "all", "credHelpers": {"reg:5000": "one"}});
        assert_eq!(helper(&config, "reg:5000").as_deref(), Some("one"));
        assert_eq!(helper(&config, "other").as_deref(), Some("all"));
        assert_eq!(helper(&json!({}), "other"), None);
    }
}
