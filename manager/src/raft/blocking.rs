//! Work that takes a thread for a while: files, encoding.

use std::io;

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
