//! `image import --change`: Dockerfile instructions applied to an image's configuration.

mod health;

use super::config::{Empty, RunConfig};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("{0:?} is not a change: write an instruction and its value, such as CMD [\"nginx\"]")]
    NoValue(String),
    #[error(
        "{0} is not a valid change instruction: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, \
         USER, VOLUME and WORKDIR are"
    )]
    Unknown(String),
    #[error("{0}: {1:?} is not NAME=value")]
    Pair(&'static str, String),
    #[error("{0}: {1:?} ends inside a quotation")]
    Quote(&'static str, String),
    #[error("EXPOSE: {0:?} is not PORT[/tcp|udp|sctp] or PORT-PORT")]
    Port(String),
    #[error("HEALTHCHECK: {0}")]
    Health(String),
    #[error("{0} is not allowed as an ONBUILD trigger")]
    Trigger(String),
}

/// Applies one instruction.
pub(crate) fn apply(config: &mut RunConfig, change: &str) -> Result<(), ChangeError> {
    let change = change.trim();
    let (instruction, value) = change.split_once(char::is_whitespace).unwrap_or((change, ""));
    let value = value.trim();
    match instruction.to_ascii_uppercase().as_str() {
        // Docker makes a shell without a line of the first, which cannot run.
        "CMD" => config.cmd = if value.is_empty() { Vec::new() } else { command(value) },
        "ENTRYPOINT" => config.entrypoint = if value.is_empty() { Vec::new() } else { command(value) },
        _ if value.is_empty() => return Err(ChangeError::NoValue(change.to_owned())),
        "HEALTHCHECK" => config.healthcheck = Some(health::check(value)?),
        "ONBUILD" => config.on_build.push(trigger(value)?),
        "ENV" => {
            for (name, value) in pairs("ENV", value)? {
                set_env(&mut config.env, &name, &value);
            }
        }
        "LABEL" => config.labels.extend(pairs("LABEL", value)?),
        "EXPOSE" => {
            for port in words("EXPOSE", value)? {
                config.exposed_ports.insert(exposed(&port)?, Empty {});
            }
        }
        "VOLUME" => {
            let paths = json_list(value).map_or_else(|| words("VOLUME", value), Ok)?;
            config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        }
        "WORKDIR" => config.working_dir = joined(&config.working_dir, value),
        "USER" => config.user = value.to_owned(),
        "STOPSIGNAL" => config.stop_signal = value.to_owned(),
        _ => return Err(ChangeError::Unknown(instruction.to_owned())),
    }
    Ok(())
}

/// What a build that begins with the image does first.
fn trigger(value: &str) -> Result<String, ChangeError> {
    let instruction = value.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match instruction.as_str() {
        "ONBUILD" | "FROM" | "MAINTAINER" => Err(ChangeError::Trigger(instruction)),
        _ => Ok(value.to_owned()),
    }
}

/// The JSON form is taken as it is; anything else is a line for the shell.
fn command(value: &str) -> Vec<String> {
    json_list(value).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), value.to_owned()])
}

fn json_list(value: &str) -> Option<Vec<String>> {
    value.starts_with('[').then(|| serde_json::from_str(value).ok()).flatten()
}

/// `A=b C="d e"`, or the old form `A the rest`.
fn pairs(instruction: &'static str, value: &str) -> Result<Vec<(String, String)>, ChangeError> {
    let first = value.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, rest) =
            value.split_once(char::is_whitespace).ok_or_else(|| ChangeError::Pair(instruction, value.to_owned()))?;
        return Ok(vec![(name.to_owned(), rest.trim().to_owned())]);
    }
    words(instruction, value)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(ChangeError::Pair(instruction, word)),
        })
        .collect()
}

/// Splits at white space outside quotes; quotes go, and backslashes that escape something: inside double quotes, as in a
/// shell, that is a quote, `$` or another backslash.
fn words(instruction: &'static str, value: &str) -> Result<Vec<String>, ChangeError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some('"'), '\\') if !chars.as_str().starts_with(['"', '$', '\\']) => word.get_or_insert_default().push(c),
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(ChangeError::Quote(instruction, value.to_owned()));
    }
    words.extend(word);
    Ok(words)
}

fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match env.iter_mut().find(|have| have.split('=').next() == Some(name)) {
        Some(have) => *have = entry,
        None => env.push(entry),
    }
}

fn exposed(text: &str) -> Result<String, ChangeError> {
    let bad = || ChangeError::Port(text.to_owned());
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if !ports.split('-').all(is_port) || ports.split('-').count() > 2 {
        return Err(bad());
    }
    match protocol {
        "tcp" | "udp" | "sctp" => Ok(format!("{ports}/{protocol}")),
        _ => Err(bad()),
    }
}

/// A relative WORKDIR continues the one before it.
fn joined(before: &str, value: &str) -> String {
    if value.starts_with('/') {
        value.to_owned()
    } else {
        format!("{}/{value}", if before == "/" { "" } else { before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[&str], expected: &str) {
        let mut config = RunConfig::default();
        for change in changes {
            apply(&mut config, change).unwrap();
        }
        assert_eq!(serde_json::to_string(&config).unwrap(), expected, "{changes:?}");
    }

    #[test]
    fn instructions_set_the_configuration() {
        check(&[r#"CMD ["a", "b c"]"#], r#"{"Cmd":["a","b c"]}"#);
        check(&["cmd nginx -g 'x y'"], r#"{"Cmd":["/bin/sh","-c","nginx -g 'x y'"]}"#);
        check(&[r#"ENTRYPOINT ["/init"]"#, "CMD x"], r#"{"Entrypoint":["/init"],"Cmd":["/bin/sh","-c","x"]}"#);
        check(&[r#"ENV A=1 B="two words" C=a\ b"#, "ENV A=2"], r#"{"Env":["A=2","B=two words","C=a b"]}"#);
        check(
            &[r#"LABEL rule="HostRegexp(\d+)" b="\"\$x\\" c=\d"#],
            r#"{"Labels":{"b":"\"$x\\","c":"d","rule":"HostRegexp(\\d+)"}}"#,
        );
        check(&["ENV GREETING hello  there"], r#"{"Env":["GREETING=hello  there"]}"#);
        check(&["WORKDIR /app", "WORKDIR src"], r#"{"WorkingDir":"/app/src"}"#);
        check(&["EXPOSE 80 53/udp 8000-8010"], r#"{"ExposedPorts":{"53/udp":{},"80/tcp":{},"8000-8010/tcp":{}}}"#);
        check(&[r#"VOLUME ["/data"]"#, "VOLUME /a /b"], r#"{"Volumes":{"/a":{},"/b":{},"/data":{}}}"#);
        check(&["USER 1000:1000", "STOPSIGNAL SIGQUIT"], r#"{"User":"1000:1000","StopSignal":"SIGQUIT"}"#);
        check(&[r#"LABEL a.b="c d""#], r#"{"Labels":{"a.b":"c d"}}"#);
        check(&["CMD x", "ENTRYPOINT y", "CMD", "ENTRYPOINT []"], "{}");
        check(&["ONBUILD RUN echo hi", "onbuild COPY . /"], r#"{"OnBuild":["RUN echo hi","COPY . /"]}"#);
        check(
            &["HEALTHCHECK --interval=1m0.5s  --retries=3 CMD curl -f 'x y'"],
            r#"{"Healthcheck":{"Test":["CMD-SHELL","curl -f 'x y'"],"Interval":60500000000,"Retries":3}}"#,
        );
        check(
            &["HEALTHCHECK --start-period=1ms --start-interval=1s --timeout=2s cmd [\"a\", \"b c\"]"],
            r#"{"Healthcheck":{"Test":["CMD","a","b c"],"Timeout":2000000000,"StartPeriod":1000000,"StartInterval":1000000000}}"#,
        );
        check(&["HEALTHCHECK CMD x", "HEALTHCHECK none"], r#"{"Healthcheck":{"Test":["NONE"]}}"#);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for change in [
            "USER",
            "RUN x",
            "EXPOSE http",
            "EXPOSE 0",
            "ENV A",
            "ENV =x",
            "LABEL a=\"b",
            "EXPOSE 80/icmp",
            "ONBUILD",
            "ONBUILD from x",
            "ONBUILD ONBUILD RUN x",
            "HEALTHCHECK",
            "HEALTHCHECK CMD",
            "HEALTHCHECK NONE x",
            "HEALTHCHECK curl x",
            "HEALTHCHECK --interval=0 CMD x",
            "HEALTHCHECK --interval=1us CMD x",
            "HEALTHCHECK --interval= CMD x",
            "HEALTHCHECK --interval=5 CMD x",
            "HEALTHCHECK --timeout=1e99999h CMD x",
            "HEALTHCHECK --retries=0 CMD x",
            "HEALTHCHECK --retries CMD x",
            "HEALTHCHECK --foo=1 CMD x",
            "HEALTHCHECK --interval=5s",
        ] {
            assert!(apply(&mut RunConfig::default(), change).is_err(), "{change}");
        }
    }
}
