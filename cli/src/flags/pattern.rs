//! Patterns of names as Docker's filters have them, Go's `path.Match`: `*` and `?` stop at slashes, `[a-c]`, `[^a-c]`, `\` before a
//! character that means itself. `{a,b}` is more than Go has; no name has braces.

use globset::{GlobBuilder, GlobMatcher};

use super::Refusal;

#[derive(Debug, Clone)]
pub(crate) struct Pattern(GlobMatcher);

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        let told = |error: globset::Error| {
            format!(
                "invalid pattern {text:?}, {}: expected a name with *, ?, [a-c] or \\ before one of these",
                error.kind()
            )
        };
        Ok(Self(glob.map_err(told)?.compile_matcher()))
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_gos() {
        for (pattern, name, is_match) in [
            ("b*", "busybox", true),
            ("b*", "team/box", false),
            ("b*", "busybox/x", false),
            ("*:1", "web:1", true),
            ("*:1", "web:11", false),
            ("*/*:1", "team/web:1", true),
            ("*box*", "busybox:latest", true),
            ("a*b*c", "axxbxbxc", true),
            ("a*b*c", "axxb/xc", false),
            ("web:?", "web:2", true),
            ("web?", "web/", false),
            ("web:[1-3]", "web:2", true),
            ("web:[^1-3]", "web:2", false),
            ("web:[^1-3]", "web:4", true),
            ("w\\*b", "w*b", true),
            ("w\\*b", "web", false),
            ("", "", true),
            ("*", "", true),
            ("web", "web", true),
            ("we", "web", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), is_match, "{pattern} {name}");
        }
        for pattern in ["[", "[]", "[a", "a\\"] {
            assert!(Pattern::parse(pattern).unwrap_err().contains("invalid pattern"), "{pattern}");
        }
    }
}
