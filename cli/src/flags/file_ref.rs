//! `--secret db-pw` and `--config source=site,target=/etc/site,mode=0440`.

use super::{Refusal, long_form_once, mount::octal};

const FORM: &str = "expected NAME or source=NAME[,target=PATH][,uid=ID][,gid=ID][,mode=0444]";

/// A secret or config whose id is still a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    pub(crate) source: String,
    /// Empty: the source's name.
    pub(crate) target: String,
    pub(crate) uid: String,
    pub(crate) gid: String,
    pub(crate) mode: u32,
}

impl NamedFile {
    pub(crate) fn new(source: &str) -> Self {
        Self { source: source.into(), target: String::new(), uid: "0".into(), gid: "0".into(), mode: 0o444 }
    }
}

pub(crate) fn parse(text: &str) -> Result<NamedFile, Refusal> {
    let mut file = NamedFile::new("");
    if !text.contains('=') {
        file.source = text.to_owned();
    } else {
        for (key, value) in long_form_once(text, &[])? {
            let value = value.ok_or_else(|| format!("{key:?} has no value; {FORM}"))?;
            match key.as_str() {
                "source" | "src" => file.source = value,
                "target" => file.target = value,
                "uid" => file.uid = owner(value)?,
                "gid" => file.gid = owner(value)?,
                "mode" => file.mode = octal(&value)?,
                _ => return Err(format!("unknown key {key:?}; {FORM}")),
            }
        }
    }
    if file.source.is_empty() { Err(FORM.into()) } else { Ok(file) }
}

/// The kernel keeps the last number for "nobody in particular".
fn owner(text: String) -> Result<String, Refusal> {
    let is_number = super::quantity::small_count(&text).is_ok_and(|id| id < u32::MAX);
    if is_number { Ok(text) } else { Err(format!("{text:?} is not the number of a user or group; {FORM}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long() {
        assert_eq!(parse("pw"), Ok(NamedFile::new("pw")));
        let file = parse("source=pw,target=x,uid=5,mode=0400").unwrap();
        assert_eq!((file.target.as_str(), file.uid.as_str(), file.mode), ("x", "5", 0o400));
        for text in [
            "",
            "target=x",
            "source=a,mode=9",
            "source=a,b=c",
            "source=a,uid=root",
            "source=a,gid=-1",
            "source=a,source=b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
