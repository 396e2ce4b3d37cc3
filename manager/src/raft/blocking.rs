//! Work that takes a thread for a while: files, encoding.

use std::{io, thread};

use tokio::sync::oneshot;

/// What is done in the background gets a tenth of a processor that others want.
const BACKGROUND_NICE: i32 = 10;

/// Runs `work` where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    #[cfg(test)]
    if let Some(pause) = crate::simulation::disk_pause() {
        // A thread of its own would make a simulation depend on the machine that it runs on.
        pause.await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// As [`blocking`], for work that can wait whenever somebody else has something to do.
pub(super) async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    #[cfg(test)]
    if let Some(pause) = crate::simulation::disk_pause() {
        pause.await;
        return Ok(work());
    }
    let (sender, done) = oneshot::channel();
    // A thread of its own: one that has stepped back may not step forward again.
    thread::Builder::new().name("background".to_owned()).spawn(move || {
        step_back();
        // Nobody waits any more when raft is stopping.
        let _ = sender.send(work());
    })?;
    done.await.map_err(io::Error::other)
}

/// Lowers the priority of this thread.
fn step_back() {
    // SAFETY: it takes numbers; on Linux, 0 is the calling thread.
    #[allow(unsafe_code)]
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICE) } != 0;
    if refused {
        tracing::debug!(error = %io::Error::last_os_error(), "cannot lower a thread's priority");
    }
}
