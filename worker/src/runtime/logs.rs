//! Reading container logs back, oldest file first, and following them as they grow and rotate.

#[cfg(test)]
mod fuzz;
mod journal;
mod reader;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures::Stream;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{Semaphore, SemaphorePermit, mpsc},
    time::sleep,
};

use self::reader::{Reader, Step};
use super::{
    container::{blocking, io_error},
    error::RuntimeError,
    plan::LogFiles,
};

/// Lines that wait for a slow reader; then reading waits.
const LINES_AHEAD: usize = 256;
/// The kernel gives all of a user's programs 128 such descriptors, and root has others that need some.
static WATCHES: Semaphore = Semaphore::const_new(64);
/// How often who has none looks whether there is more.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looked at before somebody may have gone who does not want what is in there.
const BATCH_BYTES: u64 = 8 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Only the last so many of the lines that there are.
    pub tail: Option<usize>,
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
}

impl LogOptions {
    fn wants(&self, line: &LogLine) -> bool {
        self.since.is_none_or(|since| line.time >= since) && self.until.is_none_or(|until| line.time <= until)
    }
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
    let mut watch = options.follow.then(|| Watch::new(&files.path)).transpose()?;
    let (mut reader, last) = {
        let (files, options, lines) = (files.clone(), options.clone(), lines.clone());
        blocking(move || begin(&files, &options, &lines)).await?
    };
    if !send(last.into(), lines).await {
        return Ok(());
    }
    tokio::pin!(ended);
    let mut over = false;
    loop {
        let wanted = options.clone();
        let (back, batch, is_end) = blocking(move || read_batch(reader, &wanted)).await?;
        reader = back;
        if !send(batch, lines).await {
            return Ok(());
        }
        if !is_end {
            continue;
        }
        let Some(watch) = watch.as_mut().filter(|_| !over) else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => changed?,
            () = &mut ended => over = true,
            () = lines.closed() => return Ok(()),
        }
    }
}

/// `false` when nobody listens any more.
async fn send(batch: Vec<LogLine>, lines: &Lines) -> bool {
    for line in batch {
        if lines.send(Ok(line)).await.is_err() {
            return false;
        }
    }
    true
}

/// Where reading begins, and the last lines before, when only those are wanted.
fn begin(files: &LogFiles, options: &LogOptions, lines: &Lines) -> Result<(Reader, VecDeque<LogLine>), RuntimeError> {
    let Some(tail) = options.tail else {
        let mut reader = Reader::open(files)?;
        if !options.follow {
            reader.stop_at_present()?;
        }
        return Ok((reader, VecDeque::new()));
    };
    let mut lines_back = tail;
    loop {
        let (mut reader, is_all) = Reader::open_before(files, lines_back)?;
        reader.stop_at_present()?;
        let mut last: VecDeque<LogLine> = VecDeque::new();
        loop {
            match reader.next()? {
                Step::Line(line) if options.wants(&line) => last.push_back(line),
                Step::Line(_) | Step::Skipped => {}
                Step::End => break,
            }
            if last.len() > tail {
                last.pop_front();
            }
            if lines.is_closed() {
                return Ok((reader, VecDeque::new()));
            }
        }
        if is_all || last.len() >= tail {
            if options.follow {
                reader.go_on();
            }
            return Ok((reader, last));
        }
        // Some were damaged, or not of the time that is asked for.
        lines_back = lines_back.saturating_mul(8).saturating_add(LINES_AHEAD);
    }
}

/// Some lines, and whether there is nothing more for now.
fn read_batch(mut reader: Reader, options: &LogOptions) -> Result<(Reader, Vec<LogLine>, bool), RuntimeError> {
    let mut batch = Vec::new();
    let enough = reader.read_bytes() + BATCH_BYTES;
    while batch.len() < LINES_AHEAD && reader.read_bytes() < enough {
        match reader.next()? {
            Step::Line(line) if options.wants(&line) => batch.push(line),
            Step::Line(_) | Step::Skipped => {}
            Step::End => return Ok((reader, batch, true)),
        }
    }
    Ok((reader, batch, false))
}

/// Tells when something happens in a log's folder: an inotify descriptor, which is read like a pipe. Without one, the folder
/// is looked at now and then.
struct Watch(Option<(pipe::Receiver, SemaphorePermit<'static>)>);

impl Watch {
    fn new(log: &Path) -> Result<Self, RuntimeError> {
        let folder = log.parent().unwrap_or(log);
        let Ok(turn) = WATCHES.try_acquire() else { return Ok(Self(None)) };
        match inotify(folder).and_then(pipe::Receiver::from_owned_fd_unchecked) {
            Ok(events) => Ok(Self(Some((events, turn)))),
            // Others have them all.
            Err(err) if matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENOSPC)) => Ok(Self(None)),
            Err(err) => Err(io_error("cannot watch", folder, err)),
        }
    }

    async fn changed(&mut self) -> Result<(), RuntimeError> {
        let Some((events, _)) = &mut self.0 else {
            sleep(LOOK_INTERVAL).await;
            return Ok(());
        };
        // What happened does not matter, only that something did.
        let mut buffer = [0_u8; 4096];
        let read = events.read(&mut buffer).await;
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
    use futures::StreamExt as _;
    use tokio::time::timeout;

    use jiff::Timestamp;

    use super::*;
    use crate::shim::log::{Lines as Writing, LogWriter, Source};

    /// Writes numbered lines, one at a time.
    fn write(log: &mut LogWriter, numbers: std::ops::Range<usize>) {
        let mut lines = Writing::new(Source::Stdout, log);
        for number in numbers {
            let mut out = Vec::new();
            lines.push(format!("{number}\n").as_bytes(), Timestamp::now(), &mut out);
            log.write(&out).unwrap();
        }
    }

    async fn read(files: &LogFiles, options: LogOptions) -> Vec<usize> {
        let lines: Vec<_> = LogStream::open(files.clone(), options, std::future::pending()).collect().await;
        lines.into_iter().map(|line| line.unwrap().line.trim().parse().unwrap()).collect()
    }

    /// No file goes in this log, so that whoever follows it sees every line, wherever the files turn.
    #[tokio::test]
    async fn nothing_is_left_out_while_files_turn() {
        for round in 0..15 {
            let dir = tempfile::tempdir().unwrap();
            let mut files = LogFiles::at(dir.path().join("log"));
            (files.max_size_bytes, files.max_files) = (300, 500);
            let mut log = LogWriter::open((&files).into()).unwrap();
            let count = 800;
            let writing = std::thread::spawn(move || write(&mut log, 0..count));
            let follow = LogOptions { follow: true, ..Default::default() };
            let lines = LogStream::open(files, follow, std::future::pending()).take(count).collect::<Vec<_>>();
            let lines = timeout(Duration::from_secs(60), lines).await.expect("all lines come");
            let numbers = lines.into_iter().map(|line| line.unwrap().line.trim().parse::<usize>().unwrap());
            assert_eq!(numbers.collect::<Vec<_>>(), (0..count).collect::<Vec<_>>(), "round {round}");
            writing.join().unwrap();
        }
    }

    #[tokio::test]
    async fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = LogFiles::at(dir.path().join("log"));
        (files.max_size_bytes, files.max_files) = (2000, 4);
        let mut log = LogWriter::open((&files).into()).unwrap();
        write(&mut log, 0..50);
        let after = SystemTime::now();
        write(&mut log, 50..70);
        // Damage counts as no line.
        std::fs::write(dir.path().join("log"), [&std::fs::read(&files.path).unwrap()[..], b"\n\nx\n"].concat())
            .unwrap();
        let all = read(&files, LogOptions::default()).await;
        assert!(all.len() > 60, "{all:?}");
        for tail in [0, 1, 2, 7, 19, 20, 21, 45, 60, 69, 70, 71, usize::MAX] {
            let last = |all: &[usize]| all[all.len().saturating_sub(tail)..].to_vec();
            let of = |since, until| LogOptions { tail: Some(tail), since, until, ..Default::default() };
            assert_eq!(read(&files, of(None, None)).await, last(&all), "{tail}");
            let before: Vec<usize> = all.iter().copied().filter(|n| *n < 50).collect();
            assert_eq!(read(&files, of(None, Some(after))).await, last(&before), "{tail} before");
            assert_eq!(read(&files, of(Some(after), None)).await, last(&all[before.len()..]), "{tail} after");
        }
    }

    /// Whoever does not follow a log sees what was in it at first, however it goes on meanwhile.
    #[test]
    fn what_comes_later_is_for_those_who_follow() {
        // In the same file, in later ones, and when the files that were there are gone.
        for (later, max_files, least) in [(3, 500, 50), (100, 500, 50), (100, 3, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let mut files = LogFiles::at(dir.path().join("log"));
            (files.max_size_bytes, files.max_files) = (2000, max_files);
            let mut log = LogWriter::open((&files).into()).unwrap();
            write(&mut log, 0..50);
            let mut reader = Reader::open(&files).unwrap();
            reader.stop_at_present().unwrap();
            write(&mut log, 50..50 + later);
            let rest = |reader: Reader| {
                let (reader, lines, is_end) = read_batch(reader, &LogOptions::default()).unwrap();
                assert!(is_end);
                (reader, lines.iter().map(|line| line.line.trim().parse().unwrap()).collect::<Vec<usize>>())
            };
            let (mut reader, numbers) = rest(reader);
            assert!(numbers.len() >= least && numbers.iter().copied().eq(0..numbers.len()), "{later}: {numbers:?}");
            assert!(numbers.len() <= 50, "{later}: {numbers:?}");
            reader.go_on();
            let (_, numbers) = rest(reader);
            assert_eq!(numbers.last(), Some(&(49 + later)));
        }
    }

    #[tokio::test]
    async fn more_may_follow_than_there_are_watches() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::at(dir.path().join("log"));
        let mut log = LogWriter::open((&files).into()).unwrap();
        write(&mut log, 0..1);
        let follow = || LogOptions { follow: true, ..Default::default() };
        let mut all: Vec<_> =
            (0..140).map(|_| LogStream::open(files.clone(), follow(), std::future::pending())).collect();
        for number in 0..2 {
            for lines in &mut all {
                let next = timeout(Duration::from_secs(20), lines.next()).await.expect("it goes on");
                assert_eq!(next.unwrap().unwrap().line, format!("{number}\n"));
            }
            write(&mut log, number + 1..number + 2);
        }
    }

    #[tokio::test]
    async fn a_log_that_somebody_empties_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::at(dir.path().join("log"));
        let mut log = LogWriter::open((&files).into()).unwrap();
        write(&mut log, 0..50);
        let follow = LogOptions { follow: true, ..Default::default() };
        let mut lines = LogStream::open(files.clone(), follow, std::future::pending());
        for number in 0..50 {
            assert_eq!(lines.next().await.unwrap().unwrap().line, format!("{number}\n"));
        }
        std::fs::File::options().write(true).open(&files.path).unwrap().set_len(0).unwrap();
        write(&mut log, 50..51);
        let next = timeout(Duration::from_secs(20), lines.next()).await.expect("it goes on");
        assert_eq!(next.unwrap().unwrap().line, "50\n");
    }

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
