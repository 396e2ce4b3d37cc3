//! `ContainerSpec` and what is in it.

use orch_model::service::{BindRecursive, ContainerSpec, DnsConfig, FileRef, HealthConfig, Mount, MountKind};
use orch_template::native::Zero;
use serde_json::{Value, json};

use super::{Fields, nanos};

pub(super) fn container_spec(spec: &ContainerSpec) -> Value {
    Fields::default()
        .always("Image", image(spec))
        .some("Labels", json!(spec.labels))
        .some("Command", json!(spec.command))
        .some("Args", json!(spec.args))
        .some("Hostname", spec.hostname.as_str())
        .some("Env", json!(spec.env))
        .some("Dir", spec.dir.as_str())
        .some("User", spec.user.as_str())
        .some("Groups", json!(spec.groups))
        .some("StopSignal", spec.stop_signal.as_str())
        .unset("Privileges", Zero::Pointer)
        .some("TTY", spec.tty)
        .some("OpenStdin", spec.open_stdin)
        .some("ReadOnly", spec.read_only)
        .some("Mounts", spec.mounts.iter().map(mount).collect::<Value>())
        .some("StopGracePeriod", spec.stop_grace_period.map(nanos))
        .some("Healthcheck", spec.health.as_ref().map(health))
        .some("Hosts", json!(spec.hosts))
        .some("DNSConfig", dns(&spec.dns))
        .some("Secrets", spec.secrets.iter().map(|f| file(f, f.id.as_str(), "Secret")).collect::<Value>())
        .some("Configs", spec.configs.iter().map(|f| file(f, f.id.as_str(), "Config")).collect::<Value>())
        .some("Init", spec.init)
        .some("Privileged", spec.privileged)
        .some("Sysctls", json!(spec.sysctls))
        .some("CapabilityAdd", json!(spec.cap_add))
        .some("CapabilityDrop", json!(spec.cap_drop))
        .some("Devices", json!(spec.devices))
        .some("Ulimits", ulimits(spec))
        .some("OomScoreAdj", spec.oom_score_adj)
        .always("Isolation", "default")
        .done()
}

/// With its tag, and what that meant when it was asked: `web:latest@sha256:…`.
fn image(spec: &ContainerSpec) -> String {
    if spec.image.contains('@') {
        return spec.image.clone();
    }
    let has_tag = spec.image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let tagged = format!("{}{}", spec.image, if has_tag { "" } else { ":latest" });
    spec.image_digest.as_ref().map_or_else(|| tagged.clone(), |digest| format!("{tagged}@{digest}"))
}

fn ulimits(spec: &ContainerSpec) -> Value {
    spec.ulimits.iter().map(|u| json!({"Name": u.name, "Soft": u.soft, "Hard": u.hard})).collect()
}

fn mount(mount: &Mount) -> Value {
    let kind = match mount.kind {
        MountKind::Volume => "volume",
        MountKind::Bind => "bind",
        MountKind::Tmpfs => "tmpfs",
    };
    let driver = mount.volume_driver.as_ref();
    let driver =
        driver.map(|d| Fields::default().some("Name", d.name.as_str()).some("Options", json!(d.options)).done());
    let volume = Fields::default()
        .some("NoCopy", mount.no_copy)
        .some("Labels", json!(mount.volume_labels))
        .some("DriverConfig", driver)
        .some("Subpath", mount.volume_subpath.as_str());
    let tmpfs = Fields::default().some("SizeBytes", mount.tmpfs_size_bytes).some("Mode", mount.tmpfs_mode);
    let bind = Fields::default()
        .some("Propagation", mount.propagation.as_str())
        .some("NonRecursive", mount.bind_recursive == Some(BindRecursive::Disabled))
        .some("ReadOnlyNonRecursive", mount.bind_recursive == Some(BindRecursive::Writable))
        .some("ReadOnlyForceRecursive", mount.bind_recursive == Some(BindRecursive::Readonly));
    Fields::default()
        .always("Type", kind)
        .some("Source", mount.source.as_str())
        .always("Target", mount.target.as_str())
        .some("ReadOnly", mount.read_only)
        .some("BindOptions", bind.done())
        .some("VolumeOptions", volume.done())
        .some("TmpfsOptions", tmpfs.done())
        .done()
}

pub(super) fn health(health: &HealthConfig) -> Value {
    Fields::default()
        .some("Test", json!(health.test))
        .some("Interval", nanos(health.interval.unwrap_or_default()))
        .some("Timeout", nanos(health.timeout.unwrap_or_default()))
        .some("StartPeriod", nanos(health.start_period.unwrap_or_default()))
        .some("StartInterval", nanos(health.start_interval.unwrap_or_default()))
        .some("Retries", health.retries)
        .done()
}

fn dns(dns: &DnsConfig) -> Value {
    Fields::default()
        .some("Nameservers", dns.nameservers.iter().map(ToString::to_string).collect::<Value>())
        .some("Search", json!(dns.search))
        .some("Options", json!(dns.options))
        .done()
}

fn file<Id>(file: &FileRef<Id>, id: &str, word: &str) -> Value {
    Fields::default()
        .always("File", json!({"Name": file.target, "UID": file.uid, "GID": file.gid, "Mode": file.mode}))
        .always(&format!("{word}ID"), id)
        .always(&format!("{word}Name"), file.name.as_str())
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_its_tag_beside_the_digest() {
        for (name, digest, shown) in [
            ("web", Some("sha256:ab"), "web:latest@sha256:ab"),
            ("web:1", Some("sha256:ab"), "web:1@sha256:ab"),
            ("host:5000/web", Some("sha256:ab"), "host:5000/web:latest@sha256:ab"),
            ("web@sha256:cd", Some("sha256:cd"), "web@sha256:cd"),
            ("web", None, "web:latest"),
            ("host:5000/web:1", None, "host:5000/web:1"),
        ] {
            let spec = ContainerSpec {
                image: name.into(),
                image_digest: digest.map(str::to_owned),
                ..ContainerSpec::default()
            };
            assert_eq!(image(&spec), shown);
        }
    }
}
