//! Errors that show the place in the file.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceSpan};

/// The file's text, for excerpts.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) file: String,
    pub(super) text: String,
}

/// Bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// `compose.yml:7: services.web Additional property x is not allowed`, with an excerpt under it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct ComposeError {
    text: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Report {
    message: String,
    help: Option<String>,
    code: NamedSource<String>,
    place: SourceSpan,
}

impl Diagnostic for Report {
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.code)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(Some("here".into()), self.place))))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }
}

impl Source {
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self { file: file.into(), text: text.into() }
    }

    pub(super) fn line(&self, place: Place) -> usize {
        self.text.as_bytes().iter().take(place.offset).filter(|b| **b == b'\n').count() + 1
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
        let message = format!("{}:{}: {}", self.file, self.line(place), message.into());
        let report = Report {
            code: NamedSource::new(&self.file, self.text.clone()),
            place: SourceSpan::from((place.offset.min(self.text.len()), place.len)),
            help: help.clone(),
            message: message.clone(),
        };
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::none()).with_width(10_000);
        if handler.render_report(&mut text, &report).is_err() {
            text = message;
        }
        ComposeError { text: text.trim_end().to_owned() }
    }
}
