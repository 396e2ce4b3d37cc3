//! AppArmor where the host has it: the profile that containers get unless they ask for another, Docker's in effect.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::OnceLock,
};

pub(super) const DEFAULT_PROFILE: &str = "orch-default";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The default profile, loaded; `None` where the kernel has no AppArmor, or nothing that could load a profile.
pub(super) fn default_profile() -> Option<&'static str> {
    static READY: OnceLock<bool> = OnceLock::new();
    READY.get_or_init(load).then_some(DEFAULT_PROFILE)
}

/// Whether the kernel has AppArmor at all.
pub(super) fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

fn load() -> bool {
    if !is_enabled() {
        return false;
    }
    let loaded = fs::read_to_string(LOADED).unwrap_or_default();
    if loaded.lines().any(|line| line.split(' ').next() == Some(DEFAULT_PROFILE)) {
        return true;
    }
    let outcome =
        Command::new("apparmor_parser").args(["-Kr"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().and_then(
            |mut parser| {
                let text = profile();
                parser.stdin.take().map_or(Ok(()), |mut input| input.write_all(text.as_bytes()))?;
                parser.wait()
            },
        );
    match outcome {
        Ok(status) if status.success() => true,
        Ok(status) => {
            tracing::warn!(%status, "apparmor_parser does not load the profile of containers: they run without one");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "apparmor_parser cannot be run: containers have no AppArmor profile; install it (package apparmor)");
            false
        }
    }
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
