//! Names of the kernel's: capabilities, signals, devices of the operator's own.

use orch_model::{linux, service::Ulimit};

use super::{Refusal, quantity};

/// As inspect shows it: `CAP_NET_ADMIN`, `ALL`.
pub(crate) fn capability(text: &str) -> Result<String, Refusal> {
    named(text, linux::is_capability(text), "expected a capability such as NET_ADMIN, or ALL")?;
    let upper = text.to_uppercase();
    Ok(if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") })
}

/// Empty: the image's own.
pub(crate) fn signal(text: &str) -> Result<String, Refusal> {
    let is_known = text.is_empty() || linux::is_signal(text);
    named(text, is_known, "expected a signal such as SIGTERM, or its number")
}

/// Empty: the image's own.
pub(crate) fn user(text: &str) -> Result<String, Refusal> {
    let is_known = text.is_empty() || linux::is_user(text);
    named(text, is_known, "expected NAME or UID, or with a group NAME:GROUP, such as www-data or 1000:1000")
}

pub(crate) fn group(text: &str) -> Result<String, Refusal> {
    named(text, linux::is_group(text), "expected a group's name or number, such as video or 44")
}

/// Empty: the image's own.
pub(crate) fn working_dir(text: &str) -> Result<String, Refusal> {
    let is_path = text.is_empty() || (text.starts_with('/') && !text.contains(char::is_control));
    named(text, is_path, "expected an absolute path inside the container")
}

/// Which processors or memory nodes: `0-3,5`.
pub(crate) fn number_list(text: &str) -> Result<String, Refusal> {
    let is_part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let ends = (quantity::small_count(first), quantity::small_count(last));
        matches!(ends, (Ok(first), Ok(last)) if first <= last)
    };
    named(text, text.is_empty() || text.split(',').all(is_part), "expected numbers and ranges of them, such as 0-3,5")
}

/// `net.core.somaxconn=1024`
pub(crate) fn sysctl(text: &str) -> Result<(String, String), Refusal> {
    let form = "expected KEY=VALUE, such as net.core.somaxconn=1024";
    let (key, value) = text.split_once('=').ok_or(form)?;
    if value.trim().is_empty() || value.contains(|c: char| c.is_control() && c != '\t') {
        return Err(form.into());
    }
    if !linux::is_sysctl(key) {
        return Err(format!(
            "sysctl '{text}' is not allowed: containers have their own kernel.msg*, kernel.sem, kernel.shm*, \
             kernel.domainname, fs.mqueue.* and net.*; {form}"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME=SOFT[:HARD]`; -1 is without limit.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, Refusal> {
    let form = "expected NAME=SOFT[:HARD], such as nofile=1024:2048";
    let (name, limits) = text.split_once('=').ok_or(form)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    if !linux::is_ulimit(name) {
        return Err(format!("{form}; the names are {}", linux::ULIMITS.join(", ")));
    }
    let number = |text: &str| text.parse().ok().filter(|number: &i64| *number >= -1).ok_or_else(|| form.to_owned());
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}; {form}"));
    }
    Ok(Ulimit { name: name.into(), soft, hard })
}

/// How soon the kernel ends the container when memory runs out.
pub(crate) fn oom_score(text: &str) -> Result<i32, Refusal> {
    let score = text.parse().ok().filter(|score| (-1000..=1000).contains(score));
    score.ok_or_else(|| "expected a number from -1000 to 1000".into())
}

/// `GPU=2`: how many of a kind a task reserves. Which ones it gets, the scheduler says.
pub(crate) fn generic_resource(text: &str) -> Result<(String, u64), Refusal> {
    let form = "expected KIND=NUMBER, such as GPU=2";
    let (kind, count) = text.split_once('=').ok_or(form)?;
    let count =
        quantity::count(count).ok().filter(|count| (1..=i64::MAX.unsigned_abs()).contains(count)).ok_or(form)?;
    let is_kind = !kind.is_empty() && !kind.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_kind { Ok((kind.to_owned(), count)) } else { Err(form.into()) }
}

/// Linux has one.
pub(crate) fn isolation(text: &str) -> Result<String, Refusal> {
    named(
        "default",
        matches!(text, "" | "default"),
        "expected default: process and hyperv isolate containers of Windows",
    )
}

/// Nothing here reads one.
pub(crate) fn credential_spec(_: &str) -> Result<String, Refusal> {
    Err("expected no value: credential specs are for containers of Windows; leave the option out".into())
}

fn named(text: &str, is_known: bool, form: &str) -> Result<String, Refusal> {
    if is_known { Ok(text.to_owned()) } else { Err(form.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(oom_score("-1000"), Ok(-1000));
        assert_eq!(generic_resource("GPU=2"), Ok(("GPU".into(), 2)));
        assert_eq!(isolation("default"), Ok("default".into()));
        for text in ["1001", "-1001", "x", ""] {
            assert!(oom_score(text).unwrap_err().contains("-1000 to 1000"), "{text}");
        }
        for text in ["GPU", "GPU=UUID1", "GPU=0", "=1", "G P=1", "GPU=+1", "GPU=9223372036854775808"] {
            assert!(generic_resource(text).unwrap_err().contains("GPU=2"), "{text}");
        }
        assert!(capability("NET").is_err() && signal("SIGNOPE").is_err() && credential_spec("file://x").is_err());
        for text in ["net_admin", "CAP_NET_ADMIN", "Cap_Net_Admin"] {
            assert_eq!(capability(text), Ok("CAP_NET_ADMIN".into()));
        }
        assert_eq!((signal(""), user(""), isolation("")), (Ok("".into()), Ok("".into()), Ok("default".into())));
        assert_eq!(sysctl("kernel.sem=1 2 3 4"), Ok(("kernel.sem".into(), "1 2 3 4".into())));
        assert!(number_list("0-3,5").is_ok() && number_list("3-0").is_err() && number_list("x").is_err());
        assert!(working_dir("/a").is_ok() && working_dir("a").is_err() && working_dir("/a\n").is_err());
        assert_eq!(ulimit("nofile=5"), Ok(Ulimit { name: "nofile".into(), soft: 5, hard: 5 }));
        assert!(ulimit("nofile=5:-1").is_ok() && ulimit("core=-1").is_ok());
    }
}
