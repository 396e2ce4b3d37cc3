//! AppArmor where the host has it: the profile that containers get unless they ask for another, Docker's in effect.
//!
//! The default profile is loaded anew once in a worker's life, so that a newer version's is in force, and again whenever
//! somebody removed it. It is never removed here: other nodes of the machine may use it, and what runs under a removed
//! profile is confined no more.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

const DEFAULT_PROFILE: &str = "orch-default";
pub(super) const UNCONFINED: &str = "unconfined";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: &str = "apparmor_parser";
/// Where it is when `PATH` does not lead to it.
const PARSER_DIRS: [&str; 2] = ["/sbin", "/usr/sbin"];
/// It needs a fraction of a second.
const PARSER_LIMIT: Duration = Duration::from_secs(10);
const PARSER_POLL_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum AppArmorError {
    #[error(
        "AppArmor profile {0:?} is not loaded on this node: load it with apparmor_parser, or choose another with \
         --security-opt apparmor=PROFILE"
    )]
    NotLoaded(String),
    #[error("AppArmor is on, but apparmor_parser does not load the profile {DEFAULT_PROFILE:?} of containers: {0}")]
    Refused(String),
    #[error("AppArmor is on, but the profile {DEFAULT_PROFILE:?} of containers cannot be loaded with apparmor_parser")]
    Parser(#[source] io::Error),
}

/// What the host has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Off,
    /// The kernel has it, but the default profile is not loaded and nothing could load it.
    NoParser,
    On,
}

/// What keeps a container within bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Confinement {
    /// The host has no AppArmor.
    Off,
    Unconfined,
    Default,
    Named(String),
}

impl Confinement {
    /// Its own, else the node's default; a privileged container has none.
    fn decide(host: Host, asked: Option<&str>, privileged: bool) -> Self {
        match (host, asked) {
            (Host::Off, _) => Self::Off,
            (_, Some(UNCONFINED)) => Self::Unconfined,
            (_, Some(DEFAULT_PROFILE)) => Self::Default,
            (_, Some(name)) => Self::Named(name.to_owned()),
            (_, None) if privileged => Self::Unconfined,
            (Host::NoParser, None) => Self::Unconfined,
            (Host::On, None) => Self::Default,
        }
    }

    /// Of a container on this node.
    fn here(asked: Option<&str>, privileged: bool) -> Self {
        Self::decide(host(), asked, privileged)
    }

    fn profile(&self) -> &str {
        match self {
            Self::Off => "",
            Self::Unconfined => UNCONFINED,
            Self::Default => DEFAULT_PROFILE,
            Self::Named(name) => name,
        }
    }
}

/// The profile to start a container with, which is loaded then; `None`: none.
pub(super) fn ready(asked: Option<&str>, privileged: bool) -> Result<Option<String>, AppArmorError> {
    let confinement = Confinement::here(asked, privileged);
    match &confinement {
        Confinement::Off => {
            if let Some(profile) = asked.filter(|profile| *profile != UNCONFINED) {
                tracing::warn!(profile, "this node has no AppArmor: a container runs without the profile it asks for");
            }
            return Ok(None);
        }
        Confinement::Unconfined => {
            if asked.is_none() && !privileged {
                warn_without_parser();
            }
            return Ok(None);
        }
        Confinement::Default => load_default()?,
        Confinement::Named(name) if is_loaded(name) || !is_plain(name) => {}
        Confinement::Named(name) => return Err(AppArmorError::NotLoaded(name.clone())),
    }
    Ok(Some(confinement.profile().to_owned()))
}

/// Loads the default profile where containers will have it. Whoever needs it finds out what is wrong.
pub(super) fn warm_up() {
    if host() == Host::On {
        let _ = load_default();
    }
}

/// Whether containers have a profile here unless they ask for none.
pub(crate) fn is_on() -> bool {
    host() == Host::On
}

fn host() -> Host {
    if !is_enabled() {
        Host::Off
    } else if parser().is_some() || is_loaded(DEFAULT_PROFILE) {
        Host::On
    } else {
        Host::NoParser
    }
}

/// Whether the kernel has AppArmor and lets its profiles be seen: both for as long as it runs.
pub(super) fn is_enabled() -> bool {
    static IS_ENABLED: OnceLock<bool> = OnceLock::new();
    *IS_ENABLED.get_or_init(|| {
        fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')) && Path::new(LOADED).exists()
    })
}

fn is_loaded(profile: &str) -> bool {
    names(&fs::read_to_string(LOADED).unwrap_or_default()).any(|name| name == profile)
}

/// Of lines like `orch-default (enforce)`.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name)
}

/// Neither of another namespace of profiles nor several at once: what these are only the kernel knows.
fn is_plain(profile: &str) -> bool {
    !profile.starts_with(':') && !profile.contains("//&")
}

fn parser() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(PARSER_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(PARSER)).find(|program| program.is_file())
}

fn warn_without_parser() {
    static WARNED: OnceLock<()> = OnceLock::new();
    WARNED.get_or_init(|| {
        tracing::warn!(
            "AppArmor is on, but there is no {PARSER}: containers have no profile; install it (package apparmor)"
        );
    });
}

/// Whether it is the default profile, and somebody removed it.
pub(super) fn is_gone_default(profile: &str) -> bool {
    profile == DEFAULT_PROFILE && !is_loaded(profile)
}

pub(super) fn load_default() -> Result<(), AppArmorError> {
    static IS_OURS: Mutex<bool> = Mutex::new(false);
    let mut is_ours = IS_OURS.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = is_loaded(DEFAULT_PROFILE);
    if *is_ours && loaded {
        return Ok(());
    }
    let outcome = match parser() {
        Some(parser) => load(&parser),
        None if loaded => Ok(()),
        None => Err(AppArmorError::NotLoaded(DEFAULT_PROFILE.to_owned())),
    };
    match outcome {
        Err(error) if loaded => {
            tracing::warn!(
                error = crate::image::chain(&error),
                "containers have the profile that an earlier version loaded"
            );
        }
        outcome => outcome?,
    }
    *is_ours = true;
    Ok(())
}

fn load(parser: &Path) -> Result<(), AppArmorError> {
    // Replaces what is loaded, and leaves the parser's cache alone.
    let mut command = Command::new(parser);
    command.args(["--skip-cache", "--replace"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = || {
        let mut running = command.spawn()?;
        if let Some(mut input) = running.stdin.take() {
            // One that ends without reading says why.
            let _ = input.write_all(profile().as_bytes());
        }
        output_within(PARSER_LIMIT, running)
    };
    let output = run().map_err(AppArmorError::Parser)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(AppArmorError::Refused(format!("{} ({})", said.trim(), output.status)))
}

fn output_within(limit: Duration, mut running: Child) -> io::Result<Output> {
    let started = Instant::now();
    while running.try_wait()?.is_none() {
        if started.elapsed() >= limit {
            running.kill()?;
            // The kernel may not let it go at once.
            thread::spawn(move || running.wait());
            let text = format!("it did not end within {} s, and was killed", limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        thread::sleep(PARSER_POLL_PAUSE);
    }
    running.wait_with_output()
}

/// What a container may not do even as root: change the kernel's settings, mount, and trace others.
fn profile() -> String {
    let name = DEFAULT_PROFILE;
    format!(
        "@{{PROC}}=/proc/
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer={name},
  ptrace (trace,read,tracedby,readby) peer={name},
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_what_docker_would_give_it() {
        use Host::{NoParser, Off, On};
        let check = |host, asked: Option<&str>, privileged, wanted: &str| {
            let decided = Confinement::decide(host, asked, privileged);
            assert_eq!(decided.profile(), wanted, "{host:?} {asked:?} privileged: {privileged}");
        };
        check(On, None, false, "orch-default");
        check(On, None, true, "unconfined");
        check(On, Some("mine"), true, "mine");
        check(On, Some("mine"), false, "mine");
        check(On, Some("orch-default"), true, "orch-default");
        check(On, Some("unconfined"), false, "unconfined");
        check(NoParser, None, false, "unconfined");
        check(NoParser, Some("mine"), false, "mine");
        for asked in [None, Some("mine"), Some("unconfined")] {
            check(Off, asked, false, "");
        }
    }

    #[test]
    fn a_parser_that_does_not_end_is_killed() {
        let output = |script: &str, limit| {
            let mut command = Command::new("sh");
            let running = command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            output_within(limit, running)
        };
        assert_eq!(output("echo said >&2", PARSER_LIMIT).unwrap().stderr, b"said\n");
        let given_up = output("exec sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn names_of_loaded_profiles_may_have_spaces() {
        let list = "orch-default (enforce)\nsnap.a (b) (complain)\n/usr/bin/man (enforce)\n";
        assert_eq!(names(list).collect::<Vec<_>>(), ["orch-default", "snap.a (b)", "/usr/bin/man"]);
        assert!(is_plain("orch-default") && !is_plain(":lxd:mine") && !is_plain("a//&b"));
    }
}
