//! Image names: what the user wrote, and the full form that means the same on every node.

/// A text that cannot name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid reference format: {name:?} does not name an image: {problem}; expected [HOST[:PORT]/]NAME[:TAG][@DIGEST]"
)]
pub struct ImageNameError {
    pub name: String,
    pub problem: &'static str,
}

/// Completes an image name as Docker does: `web` is `docker.io/library/web:latest`.
///
/// A name with a digest keeps its digest and gets no tag.
///
/// # Errors
/// When the text is not a reference.
pub fn normalise_image_name(name: &str) -> Result<String, ImageNameError> {
    let refuse = |problem| ImageNameError { name: name.to_owned(), problem };
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|d| !is_digest(d)) {
        return Err(refuse("what follows @ is not a digest (sha256: and 64 hexadecimal digits)"));
    }
    let (path, tag) = match rest.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|t| !is_tag(t)) {
        return Err(refuse("the tag must be 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'"));
    }
    let (host, repository) = match path.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
        Some(_) => ("docker.io", path.to_owned()),
        None => ("docker.io", format!("library/{path}")),
    };
    let (host, repository) = match host {
        "index.docker.io" | "docker.io" if !repository.contains('/') => ("docker.io", format!("library/{repository}")),
        "index.docker.io" => ("docker.io", repository),
        _ => (host, repository),
    };
    if !repository.split('/').all(is_path_component) {
        return Err(refuse(
            "each part of the name must be lower-case letters and digits, joined by '.', '_', '__' or '-'",
        ));
    }
    Ok(match (tag, digest) {
        (_, Some(digest)) => format!("{host}/{repository}@{digest}"),
        (tag, None) => format!("{host}/{repository}:{}", tag.unwrap_or("latest")),
    })
}

/// The digest that a name carries itself.
#[must_use]
pub fn digest_of(name: &str) -> Option<&str> {
    name.split_once('@').map(|(_, digest)| digest).filter(|d| is_digest(d))
}

fn is_host(text: &str) -> bool {
    (text.contains('.') || text.contains(':') || text == "localhost")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Whether the text is a content's digest: `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_path_component(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Option<&str>) {
        assert_eq!(normalise_image_name(name).ok().as_deref(), expected, "{name}");
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        check("web", Some("docker.io/library/web:latest"));
        check("web:1.0", Some("docker.io/library/web:1.0"));
        check("user/web", Some("docker.io/user/web:latest"));
        check("docker.io/web", Some("docker.io/library/web:latest"));
        check("localhost:5000/web", Some("localhost:5000/web:latest"));
        check("reg.example.com/a/b:2", Some("reg.example.com/a/b:2"));
        let digest = format!("sha256:{}", "a".repeat(64));
        check(&format!("web:1@{digest}"), Some(&format!("docker.io/library/web@{digest}")));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "Web", "web:", "web:-x", "web@sha256:12", "a//b", "-web", "web image"] {
            check(name, None);
        }
    }
}
