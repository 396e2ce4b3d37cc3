//! Names of the kernel's: capabilities, signals, devices of the operator's own.

use orch_model::linux;

use super::Refusal;

pub(crate) fn capability(text: &str) -> Result<String, Refusal> {
    named(text, linux::is_capability(text), "expected a capability such as NET_ADMIN, or ALL")
}

pub(crate) fn signal(text: &str) -> Result<String, Refusal> {
    named(text, linux::is_signal(text), "expected a signal such as SIGTERM, or its number")
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
    let count = count.parse().ok().filter(|count| *count > 0).ok_or(form)?;
    if kind.is_empty() { Err(form.into()) } else { Ok((kind.to_owned(), count)) }
}

/// Linux has one.
pub(crate) fn isolation(text: &str) -> Result<String, Refusal> {
    named(text, text == "default", "expected default: process and hyperv isolate containers of Windows")
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
        for text in ["GPU", "GPU=UUID1", "GPU=0", "=1"] {
            assert!(generic_resource(text).unwrap_err().contains("GPU=2"), "{text}");
        }
        assert!(capability("NET").is_err() && signal("SIGNOPE").is_err() && credential_spec("file://x").is_err());
    }
}
