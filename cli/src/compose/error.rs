//! Errors that show the place in the file.

use std::fmt::Write as _;

/// The files of a stack, for excerpts.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub(super) files: Vec<SourceFile>,
}

#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    pub(super) name: String,
    pub(super) text: String,
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Which of the source's files.
    pub(super) file: usize,
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// One mistake, ready to be shown: `compose.yml:7:5: services.web Additional property x is not allowed` and an excerpt.
#[derive(Debug)]
pub(super) struct Finding(String);

/// Everything that is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct ComposeError {
    text: String,
}

const MAX_EXCERPT: usize = 200;

impl Finding {
    /// One that is only counted.
    pub(super) fn more() -> Self {
        Self(String::new())
    }
}

impl From<Finding> for ComposeError {
    fn from(finding: Finding) -> Self {
        Self { text: finding.0 }
    }
}

impl ComposeError {
    /// More than this are not read anyway.
    pub(super) const MOST: usize = 20;

    /// `None` when there is nothing to complain about.
    pub(super) fn of(findings: &[Finding]) -> Option<Self> {
        let mut shown: Vec<&str> = findings.iter().take(Self::MOST).map(|finding| finding.0.as_str()).collect();
        let more = format!("... and {} more", findings.len().saturating_sub(Self::MOST));
        if findings.len() > Self::MOST {
            shown.push(&more);
        }
        (!findings.is_empty()).then(|| Self { text: shown.join("\n") })
    }
}

impl Source {
    /// Returns the new file's number.
    pub(super) fn add(&mut self, name: &str, text: &str) -> usize {
        self.files.push(SourceFile { name: name.into(), text: text.into() });
        self.files.len() - 1
    }

    /// A plain scalar as it stands in the file, without quotes.
    pub(super) fn written(&self, place: Place) -> Option<&str> {
        let text = self.files.get(place.file)?.text.get(place.offset..place.offset + place.len)?;
        Some(text.trim().trim_matches(['"', '\'']))
    }

    pub(super) fn error(&self, place: Place, message: impl Into<String>) -> ComposeError {
        self.error_with_help(place, message, None)
    }

    pub(super) fn error_with_help(
        &self,
        place: Place,
        message: impl Into<String>,
        help: Option<String>,
    ) -> ComposeError {
        ComposeError { text: self.finding(place, message, help).0 }
    }

    pub(super) fn finding(&self, place: Place, message: impl Into<String>, help: Option<String>) -> Finding {
        let Some(file) = self.files.get(place.file) else { return Finding(message.into()) };
        let offset =
            (0..=place.offset.min(file.text.len())).rev().find(|at| file.text.is_char_boundary(*at)).unwrap_or(0);
        let (before, after) = file.text.split_at(offset);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let indent = before[start..].chars().count();
        let rest = after.lines().next().unwrap_or_default();
        let marked = after.get(..place.len).unwrap_or(rest).lines().next().unwrap_or_default().trim_end();
        let mut text = format!("{}:{line}:{}: {}", file.name, indent + 1, message.into());
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let marker = "^".repeat(marked.chars().count().max(1));
        // Only tabs stay tabs, so that the marker is under what it marks.
        let pad: String = before[start..].chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        // A line that no screen holds tells nobody anything.
        let width = indent + marked.chars().count();
        let shown: String = before[start..].chars().chain(rest.chars()).take(MAX_EXCERPT).collect();
        if width <= MAX_EXCERPT {
            let _ = write!(text, "\n {margin} |\n {number} | {}\n {margin} | {pad}{marker}", shown.trim_end());
        }
        if let Some(help) = help {
            let _ = write!(text, "\n {margin} = {help}");
        }
        Finding(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_point_at_the_place() {
        let mut source = Source::default();
        let file = source.add("f.yml", "a: 1\n  bb: é\n");
        let finding = source.finding(Place { file, offset: 7, len: 2 }, "no bb here", Some("write b".into()));
        assert_eq!(finding.0, "f.yml:2:3: no bb here\n   |\n 2 |   bb: é\n   |   ^^\n   = write b");
        for offset in 0..40 {
            let _ = source.finding(Place { file, offset, len: offset }, "anywhere", None);
        }
        let many: Vec<_> = (0..30).map(|_| source.finding(Place::default(), "x", None)).collect();
        assert!(ComposeError::of(&many).unwrap().to_string().ends_with("... and 10 more"));
        assert!(ComposeError::of(&[]).is_none());
    }
}
