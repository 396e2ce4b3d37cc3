//! Holds the sockets that a daemon serves while it is gone, for the next one: the network daemon's for names, so that
//! questions of containers wait for it instead of being refused.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::resource::{Resource, setrlimit};
use orch_proto::{
    files,
    keeper::{self, Line, Word},
};

/// More tasks than any node has.
const MAX_NAMES: usize = 16_384;

/// What is held, by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<BTreeMap<String, Vec<OwnedFd>>>>);

impl Kept {
    /// Hands everything over to a daemon that begins, then does what it says until it ends.
    pub(super) async fn serve(self, end: OwnedFd) {
        // A daemon that ended in the middle of a word, or never listened, is no news.
        if let Err(error) = self.talk(end).await {
            tracing::debug!(%error, "the line to the network daemon is broken");
        }
    }

    async fn talk(&self, end: OwnedFd) -> io::Result<()> {
        let line = Line::of(end)?;
        for (name, sockets) in self.copies()? {
            line.hold(&name, &keeper::numbers(&sockets)).await?;
        }
        line.all().await?;
        while let Some(word) = line.hear().await? {
            self.note(word);
        }
        Ok(())
    }

    fn copies(&self) -> io::Result<Vec<(String, Vec<OwnedFd>)>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = |sockets: &Vec<OwnedFd>| sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>();
        kept.iter().map(|(name, sockets)| Ok((name.clone(), copy(sockets)?))).collect()
    }

    fn note(&self, word: Word) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match word {
            Word::Hold(name, sockets) if kept.len() < MAX_NAMES => drop(kept.insert(name, sockets)),
            Word::LetGo(name) => drop(kept.remove(&name)),
            Word::Hold(..) | Word::All => {}
        }
    }
}

/// Limits of open files: two sockets are held for each task, and 1024 are too few for 500 tasks.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileLimit {
    soft: u64,
    hard: u64,
}

impl FileLimit {
    /// Raises this process's; returns what it was, which is what containers inherit.
    pub(super) fn raise() -> io::Result<Self> {
        let (soft, hard) = files::raise_limit()?;
        Ok(Self { soft, hard })
    }

    /// In a child: sets the limit as it was.
    pub(super) fn restore(self) -> io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)?)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsRawFd as _};

    use super::*;

    async fn begin(kept: &Kept) -> (Line, Vec<(String, u16)>) {
        let (ours, theirs) = keeper::pair().unwrap();
        tokio::spawn(kept.clone().serve(ours));
        let line = Line::of(theirs).unwrap();
        let mut found = Vec::new();
        loop {
            match line.hear().await.unwrap().unwrap() {
                Word::Hold(name, mut sockets) => {
                    let socket = UdpSocket::from(sockets.pop().unwrap());
                    found.push((name, socket.local_addr().unwrap().port()));
                }
                Word::All => return (line, found),
                Word::LetGo(name) => panic!("{name} was never held"),
            }
        }
    }

    #[tokio::test]
    async fn the_next_daemon_gets_what_the_last_one_served() {
        let kept = Kept::default();
        let (line, found) = begin(&kept).await;
        assert_eq!(found, []);
        let sockets: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for (name, socket) in ["a", "b", "c"].iter().zip(&sockets) {
            line.hold(name, &[socket.as_raw_fd()]).await.unwrap();
        }
        line.let_go("b").await.unwrap();
        let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        drop((line, sockets));
        // The words of the one that ended may still be on their way.
        let wanted = vec![("a".to_owned(), ports[0]), ("c".to_owned(), ports[2])];
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while begin(&kept).await.1 != wanted {
            assert!(tokio::time::Instant::now() < deadline, "not held: {:?}", kept.copies());
            tokio::task::yield_now().await;
        }
        assert!(UdpSocket::bind(("127.0.0.1", ports[1])).is_ok(), "b is still open");
    }
}
