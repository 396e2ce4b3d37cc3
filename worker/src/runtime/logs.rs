//! Reading container logs back, oldest file first, and following them as they grow and rotate.

#[cfg(test)]
mod fuzz;
mod journal;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    future::Future,
    io::{self, BufRead, BufReader, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::SystemTime,
};

use futures::Stream;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::mpsc, time::sleep};

use super::{container::io_error, error::RuntimeError, plan::LogFiles};
use crate::shim::log::numbered;

/// A longer line in a log's file is none of ours: a piece of 16 KiB, escaped, and its details are far shorter.
const MAX_OBJECT_BYTES: usize = 4 << 20;
/// Lines that wait for a slow reader; then reading waits.
const LINES_AHEAD: usize = 256;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Only the last so many of the lines that there are.
    pub tail: Option<usize>,
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSource {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub stream: LogSource,
    pub time: SystemTime,
    /// With its newline, unless the program's line goes on in the next one.
    pub line: String,
    /// What the log's options add.
    pub details: BTreeMap<String, String>,
}

/// A container's log, line by line. Dropping it ends the reading.
pub struct LogStream(mpsc::Receiver<Result<LogLine, RuntimeError>>);

impl LogStream {
    /// Reads `files`; when following, until `ended` (or the time that `options` name) and everything written before it
    /// has been read.
    pub(super) fn open(files: LogFiles, options: LogOptions, ended: impl Future<Output = ()> + Send + 'static) -> Self {
        let (lines, receiver) = mpsc::channel(LINES_AHEAD);
        tokio::spawn(async move {
            let ended = ended_or_past(ended, options.until);
            let copied = match &files.journal {
                Some(fields) => journal::copy(fields, &files.details, &options, ended, &lines).await,
                None => copy(&files, &options, ended, &lines).await,
            };
            if let Err(err) = copied {
                let _ = lines.send(Err(err)).await;
            }
        });
        Self(receiver)
    }
}

/// Nothing that is written after `until` is wanted, so there is nothing to follow then.
async fn ended_or_past(ended: impl Future<Output = ()>, until: Option<SystemTime>) {
    let past = async {
        match until {
            Some(until) => sleep(until.duration_since(SystemTime::now()).unwrap_or_default()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ended => {}
        () = past => {}
    }
}

impl Stream for LogStream {
    type Item = Result<LogLine, RuntimeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

pub(super) type Lines = mpsc::Sender<Result<LogLine, RuntimeError>>;

async fn copy(
    files: &LogFiles,
    options: &LogOptions,
    ended: impl Future<Output = ()>,
    lines: &Lines,
) -> Result<(), RuntimeError> {
    // Watching begins before reading, so that nothing falls between.
    let watch = options.follow.then(|| Watch::new(&files.path)).transpose()?;
    let mut reader = Reader::open(files)?;
    let mut last: VecDeque<LogLine> = VecDeque::new();
    while let Some(line) = reader.next()?.filter_by(options) {
        match (line, options.tail) {
            (Step::Line(line), Some(tail)) => {
                last.push_back(line);
                if last.len() > tail {
                    last.pop_front();
                }
            }
            (Step::Line(line), None) => {
                if lines.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
            (Step::Skipped | Step::End, _) => {}
        }
    }
    for line in last {
        if lines.send(Ok(line)).await.is_err() {
            return Ok(());
        }
    }
    let Some(watch) = watch else { return Ok(()) };
    follow(reader, options, watch, ended, lines).await
}

async fn follow(
    mut reader: Reader,
    options: &LogOptions,
    mut watch: Watch,
    ended: impl Future<Output = ()>,
    lines: &Lines,
) -> Result<(), RuntimeError> {
    tokio::pin!(ended);
    let mut over = false;
    loop {
        while let Some(step) = reader.next()?.filter_by(options) {
            if let Step::Line(line) = step
                && lines.send(Ok(line)).await.is_err()
            {
                return Ok(());
            }
        }
        if over {
            return Ok(());
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            () = &mut ended => over = true,
            () = lines.closed() => return Ok(()),
        }
    }
}

/// What reading once gave.
enum Step {
    Line(LogLine),
    /// A line that is no log line, or not asked for.
    Skipped,
    /// For now there is nothing more.
    End,
}

impl Step {
    /// `None` at the end.
    fn filter_by(self, options: &LogOptions) -> Option<Self> {
        match self {
            Self::End => None,
            Self::Line(line)
                if options.since.is_some_and(|since| line.time < since)
                    || options.until.is_some_and(|until| line.time > until) =>
            {
                Some(Self::Skipped)
            }
            step => Some(step),
        }
    }
}

/// Reads the files in order of age and goes on where it stopped, also after rotations.
struct Reader {
    files: LogFiles,
    current: Option<BufReader<File>>,
    partial: Vec<u8>,
    /// The beginning of this line was thrown away.
    is_too_long: bool,
}

impl Reader {
    fn open(files: &LogFiles) -> Result<Self, RuntimeError> {
        let mut reader = Self { files: files.clone(), current: None, partial: Vec::new(), is_too_long: false };
        let oldest = (0..files.max_files.max(1)).rev().map(|n| reader.path(n)).find(|path| path.exists());
        reader.current = oldest.map(|path| open(&path)).transpose()?.flatten();
        Ok(reader)
    }

    fn next(&mut self) -> Result<Step, RuntimeError> {
        loop {
            let Some(file) = &mut self.current else {
                self.current = open(&self.files.path)?;
                if self.current.is_none() {
                    return Ok(Step::End);
                }
                continue;
            };
            let room = (MAX_OBJECT_BYTES - self.partial.len()) as u64;
            file.take(room)
                .read_until(b'\n', &mut self.partial)
                .map_err(|err| io_error("cannot read the log", &self.files.path, err))?;
            if self.partial.ends_with(b"\n") {
                let line = parse(&self.partial).filter(|_| !self.is_too_long);
                self.partial.clear();
                self.is_too_long = false;
                return Ok(line.map_or(Step::Skipped, Step::Line));
            }
            if self.partial.len() == MAX_OBJECT_BYTES {
                self.partial.clear();
                self.is_too_long = true;
                continue;
            }
            match self.newer()? {
                Some(newer) => self.current = Some(newer),
                None => return Ok(Step::End),
            }
        }
    }

    /// The file that followed the current one, if the current one is no longer the newest.
    fn newer(&mut self) -> Result<Option<BufReader<File>>, RuntimeError> {
        let Some(current) = &self.current else { return Ok(None) };
        let id = |meta: &fs::Metadata| (meta.dev(), meta.ino());
        let own = current.get_ref().metadata().map(|meta| id(&meta)).ok();
        let is_own = |path: &Path| fs::metadata(path).ok().map(|meta| id(&meta)) == own;
        let position = (0..self.files.max_files.max(1)).find(|&n| is_own(&self.path(n)));
        match position {
            Some(0) => Ok(None),
            Some(n) => open(&self.path(n - 1)),
            // Deleted by rotation while we read: the oldest that is left comes next.
            None => {
                let oldest = (0..self.files.max_files.max(1)).rev().map(|n| self.path(n)).find(|path| path.exists());
                oldest.map(|path| open(&path)).transpose().map(Option::flatten)
            }
        }
    }

    fn path(&self, n: u32) -> PathBuf {
        if n == 0 { self.files.path.clone() } else { numbered(&self.files.path, n) }
    }
}

fn open(path: &Path) -> Result<Option<BufReader<File>>, RuntimeError> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(io_error("cannot open the log", path, err)),
    }
}

/// One object of Docker's json-file.
fn parse(line: &[u8]) -> Option<LogLine> {
    #[derive(Deserialize)]
    struct Object {
        log: String,
        stream: String,
        time: String,
        #[serde(default)]
        attrs: BTreeMap<String, String>,
    }
    let object: Object = serde_json::from_slice(line).ok()?;
    let time: Timestamp = object.time.parse().ok()?;
    let stream = if object.stream == "stderr" { LogSource::Stderr } else { LogSource::Stdout };
    Some(LogLine { stream, time: time.into(), line: object.log, details: object.attrs })
}

/// Tells when something happens in a log's folder: an inotify descriptor, which is read like a pipe.
struct Watch(pipe::Receiver);

impl Watch {
    fn new(log: &Path) -> Result<Self, RuntimeError> {
        let folder = log.parent().unwrap_or(log);
        inotify(folder)
            .and_then(pipe::Receiver::from_owned_fd_unchecked)
            .map(Self)
            .map_err(|err| io_error("cannot watch", folder, err))
    }

    async fn changed(&mut self) -> Result<(), RuntimeError> {
        // What happened does not matter, only that something did.
        let mut events = [0_u8; 4096];
        let read = self.0.read(&mut events).await;
        read.map(drop).map_err(|err| io_error("cannot watch the log in", "inotify", err))
    }
}

#[allow(unsafe_code)]
fn inotify(folder: &Path) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let events = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: the descriptor is new and ours; the name outlives the call that reads it.
    unsafe {
        let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        if libc::inotify_add_watch(fd.as_raw_fd(), name.as_ptr(), events) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt as _;
    use tokio::time::timeout;

    use super::*;
    use crate::shim::log::{Lines as Writing, LogWriter, Source};

    /// Of a container that runs on and on, and says nothing more.
    #[tokio::test]
    async fn following_ends_when_nothing_later_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::at(dir.path().join("log"));
        let mut log = LogWriter::open((&files).into()).unwrap();
        let (mut lines, mut out) = (Writing::new(Source::Stdout, &log), Vec::new());
        lines.push(b"said\n", Timestamp::now(), &mut out);
        log.write(&out).unwrap();
        let soon = SystemTime::now() + Duration::from_millis(100);
        for (until, count) in [(soon, 1), (SystemTime::UNIX_EPOCH, 0)] {
            let options = LogOptions { follow: true, until: Some(until), ..Default::default() };
            let read = LogStream::open(files.clone(), options, std::future::pending()).collect::<Vec<_>>();
            assert_eq!(timeout(Duration::from_secs(20), read).await.unwrap().len(), count, "{until:?}");
        }
    }
}
