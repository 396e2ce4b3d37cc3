//! Image references as Docker reads them: `web` means `docker.io/library/web:latest`.

use std::fmt;

/// The registry that a name without a host means.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Longest `REPOSITORY` that registries take.
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// A complete reference: nothing left to default.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    /// `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/web`.
    pub repository: String,
    /// `None` only when there is a digest.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReferenceError {
    #[error("invalid reference format: {0:?} is not NAME[:TAG][@sha256:DIGEST]")]
    Format(String),
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid tag {0:?}: letters, digits, `_`, `.` and `-`, at most 128 of them")]
    Tag(String),
    #[error("invalid digest {0:?}: expected sha256: and 64 hex digits")]
    Digest(String),
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        let (registry, repository) = split_registry(name);
        check_repository(text, &repository)?;
        check_port(text, &registry)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(checked_tag(tag)?),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry, repository, tag, digest })
    }

    /// Registry and repository, without tag or digest.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// As users write it: `web:latest`.
    pub(crate) fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/library/").or_else(|| full.strip_prefix("docker.io/")) {
            Some(short) => short.to_owned(),
            None => full,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` is `sha256:` and 64 hex digits: the only form in which a digest may reach a path.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn checked_digest(digest: &str) -> Result<String, ReferenceError> {
    if is_digest(digest) { Ok(digest.to_owned()) } else { Err(ReferenceError::Digest(digest.to_owned())) }
}

/// A colon after the last slash starts a tag; one before it belongs to the registry's port.
fn split_tag(rest: &str) -> (&str, Option<&str>) {
    match rest.rfind(':') {
        Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
        _ => (rest, None),
    }
}

fn split_registry(name: &str) -> (String, String) {
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost" || part.to_lowercase() != part;
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    (registry.to_owned(), repository)
}

fn check_repository(text: &str, repository: &str) -> Result<(), ReferenceError> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        let name = repository.strip_prefix("library/").unwrap_or(repository);
        return Err(ReferenceError::Uppercase(name.to_owned()));
    }
    let valid_part = |part: &str| {
        let separator = |b: u8| matches!(b, b'.' | b'_' | b'-');
        let bytes = part.as_bytes();
        bytes.iter().all(|&b| b.is_ascii_lowercase() || b.is_ascii_digit() || separator(b))
            && bytes.first().is_some_and(|&b| !separator(b))
            && bytes.last().is_some_and(|&b| !separator(b))
    };
    if repository.len() <= MAX_NAME_BYTES && repository.split('/').all(valid_part) {
        Ok(())
    } else {
        Err(ReferenceError::Format(text.to_owned()))
    }
}

/// What follows a host's colon; not the colons of an IPv6 address.
fn check_port(text: &str, registry: &str) -> Result<(), ReferenceError> {
    match registry.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') && port.parse::<u16>().is_err() => {
            Err(ReferenceError::Format(text.to_owned()))
        }
        _ => Ok(()),
    }
}

fn checked_tag(tag: &str) -> Result<String, ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if valid { Ok(tag.to_owned()) } else { Err(ReferenceError::Tag(tag.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn check(text: &str, normalised: &str, familiar: &str) {
        let reference = Reference::parse(text).unwrap();
        assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (normalised, familiar), "{text}");
        assert_eq!(Reference::parse(normalised).as_ref(), Ok(&reference), "normalising is idempotent");
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        check("web", "docker.io/library/web:latest", "web:latest");
        check("web:1.2", "docker.io/library/web:1.2", "web:1.2");
        check("me/web", "docker.io/me/web:latest", "me/web:latest");
        check("index.docker.io/web", "docker.io/library/web:latest", "web:latest");
        check("localhost/web", "localhost/web:latest", "localhost/web:latest");
        check("127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x");
        check("reg:5000/web", "reg:5000/web:latest", "reg:5000/web:latest");
        check("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest");
        check("[fd00::1]/web", "[fd00::1]/web:latest", "[fd00::1]/web:latest");
        check(
            &format!("web@sha256:{HEX}"),
            &format!("docker.io/library/web@sha256:{HEX}"),
            &format!("web@sha256:{HEX}"),
        );
        check(
            &format!("web:1@sha256:{HEX}"),
            &format!("docker.io/library/web:1@sha256:{HEX}"),
            &format!("web:1@sha256:{HEX}"),
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            ":x",
            "a//b",
            "-a",
            "a/",
            "/a",
            "a b",
            "web:",
            "web:-x",
            "web@sha256:12",
            "a/../b",
            "docker.io/",
            "reg:/web",
            "reg:65536/web",
            "reg:http/web",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Reference::parse("Web"), Err(ReferenceError::Uppercase("Web".to_owned())));
    }
}
