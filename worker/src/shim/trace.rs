//! What libcontainer says about its errors. Its error values lose their causes on the way from the container's process
//! to the shim; the causes are only in its `tracing` events, so these are kept in the shim's message file.

use std::{
    fmt::{self, Write as _},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};

/// Writes error events as lines, from this process and from those that it forks until they execute something.
struct ErrorLines(File);

/// Starts keeping errors in the file at `path`, from now until the process ends.
pub(super) fn keep_errors(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    tracing::subscriber::set_global_default(ErrorLines(file)).map_err(io::Error::other)
}

/// A place in the file, to read what comes after it.
pub(super) struct Mark {
    path: PathBuf,
    len: u64,
}

impl Mark {
    pub(super) fn now(path: PathBuf) -> Self {
        let len = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { path, len }
    }

    /// The first error since: those that follow are what callers made of it.
    pub(super) fn first_error(&self) -> Option<String> {
        let text = fs::read(&self.path).ok()?;
        let new = text.get(usize::try_from(self.len).ok()?..)?;
        String::from_utf8_lossy(new).lines().find(|line| !line.is_empty()).map(str::to_owned)
    }
}

impl Subscriber for ErrorLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        // One write per line, so that processes do not mix theirs.
        let _ = (&self.0).write_all(format!("{}{}\n", line.message, line.fields).as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}: {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_cause() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "before\n").unwrap();
        let mark = Mark::now(file.path().to_owned());
        assert_eq!(mark.first_error(), None);
        let lines = ErrorLines(OpenOptions::new().append(true).open(file.path()).unwrap());
        tracing::subscriber::with_default(lines, || {
            tracing::info!("not this");
            tracing::error!(path = "/x", "cannot mount");
            tracing::error!("failed");
        });
        assert_eq!(mark.first_error().as_deref(), Some("cannot mount, path: \"/x\""));
    }
}
