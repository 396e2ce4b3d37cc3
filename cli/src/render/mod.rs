//! What the user sees: tables, relative times, templates over rows.
//!
//! Pure, except [`listing::Listing::print`], which writes to stdout. Rows are JSON maps with the field names of Docker's
//! format strings; this module must not know where they come from.

pub(crate) mod listing;
pub(crate) mod ports;
pub(crate) mod task;
pub(crate) mod time;

/// The 12 characters that lists show of an id.
pub(crate) fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// An image's name as lists show it: short, with the tag that a name without one means, and without a digest.
pub(crate) fn image(name: &str) -> String {
    let (named, digest) = name.split_once('@').map_or((name, None), |(named, digest)| (named, Some(digest)));
    let has_tag = named.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if digest.is_some() && !has_tag {
        return name.to_owned();
    }
    let short = named.strip_prefix("docker.io/").unwrap_or(named);
    let short = short.strip_prefix("library/").unwrap_or(short);
    if has_tag { short.to_owned() } else { format!("{short}:latest") }
}

/// Cuts to `width` characters, the last of them an ellipsis.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Orders `web.2` before `web.10`.
pub(crate) fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (number_a, rest_a) = leading_number(a);
        let (number_b, rest_b) = leading_number(b);
        if let (Some(x), Some(y)) = (number_a, number_b) {
            match x.cmp(&y) {
                std::cmp::Ordering::Equal => (a, b) = (rest_a, rest_b),
                order => return order,
            }
            continue;
        }
        let (mut chars_a, mut chars_b) = (a.chars(), b.chars());
        match (chars_a.next(), chars_b.next()) {
            (Some(x), Some(y)) if x == y => (a, b) = (chars_a.as_str(), chars_b.as_str()),
            (x, y) => return x.cmp(&y),
        }
    }
}

fn leading_number(text: &str) -> (Option<u64>, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..digits].parse().ok(), &text[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shown_as_docker_does() {
        for (name, shown) in [
            ("web", "web:latest"),
            ("orch/hits", "orch/hits:latest"),
            ("docker.io/library/web:1", "web:1"),
            ("web:1@sha256:00", "web:1"),
            ("web@sha256:00", "web@sha256:00"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
        ] {
            assert_eq!(image(name), shown, "{name}");
        }
    }

    #[test]
    fn numbers_in_names_count() {
        let mut names = ["web.10", "web.2", "a", "web", "web.1"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["a", "web", "web.1", "web.2", "web.10"]);
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(ellipsis("abcdef", 4), "abc…");
        assert_eq!(ellipsis("abcd", 4), "abcd");
        assert_eq!(short_id("0123456789abcdef"), "0123456789ab");
    }
}
