//! `--network web` and `--network name=web,alias=www,driver-opt=k=v`.

use std::collections::BTreeMap;

use super::{Refusal, long_form_once};

const FORM: &str = "expected NETWORK or name=NETWORK[,alias=NAME][,driver-opt=KEY=VALUE]";

/// An attachment whose network is still a name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NamedAttachment {
    pub(crate) network: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) driver_options: BTreeMap<String, String>,
}

pub(crate) fn parse(text: &str) -> Result<NamedAttachment, Refusal> {
    let mut attachment = NamedAttachment::default();
    if !text.contains('=') {
        attachment.network = text.to_owned();
    } else {
        for (key, value) in long_form_once(text, &["alias", "driver-opt"])? {
            let value = value.ok_or_else(|| format!("{key:?} has no value; {FORM}"))?;
            match key.as_str() {
                "name" => attachment.network = value,
                "alias" => attachment.aliases.push(value),
                "driver-opt" => {
                    let pair = value.split_once('=').filter(|(name, _)| !name.trim().is_empty());
                    let (name, value) = pair.ok_or_else(|| FORM.to_owned())?;
                    attachment.driver_options.insert(name.into(), value.into());
                }
                _ => return Err(format!("unknown key {key:?}; {FORM}")),
            }
        }
    }
    if attachment.network.is_empty() { Err(FORM.into()) } else { Ok(attachment) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long() {
        assert_eq!(parse("web").unwrap().network, "web");
        let long = parse("name=web,alias=a,alias=b,driver-opt=x=y").unwrap();
        assert_eq!((long.network.as_str(), long.aliases.len(), long.driver_options["x"].as_str()), ("web", 2, "y"));
        for text in ["", "alias=a", "name=web,x=1", "name=w,driver-opt=x", "name=w,driver-opt==x", "name=w,name=v"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
