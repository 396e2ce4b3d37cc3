//! Systemd's journal as a log: one datagram per line, in its native protocol, with the fields that Docker's driver gives.
//!
//! The journal drops what it cannot take; a program never waits for it.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Where the journal listens.
pub(crate) const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
/// syslog's `info`, and `err` for standard error.
const PRIORITY_OUT: &str = "6";
const PRIORITY_ERR: &str = "3";

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Encoded; the same in every entry.
    fields: Vec<u8>,
}

/// The part of a log object that an entry needs.
#[derive(Deserialize)]
struct Object {
    log: String,
    stream: String,
}

impl Journal {
    pub(crate) fn open(fields: &BTreeMap<String, String>) -> io::Result<Self> {
        Self::at(Path::new(JOURNAL_SOCKET), fields)
    }

    fn at(path: &Path, fields: &BTreeMap<String, String>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        let mut encoded = Vec::new();
        for (name, value) in fields {
            field(&mut encoded, name, value.as_bytes());
        }
        Ok(Self { socket, path: path.to_owned(), fields: encoded })
    }

    /// Writes log objects, one per line.
    pub(crate) fn write(&mut self, objects: &[u8]) -> io::Result<()> {
        for line in objects.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(object) = serde_json::from_slice::<Object>(line) else { continue };
            let mut entry = self.fields.clone();
            let text = object.log.strip_suffix('\n');
            if text.is_none() {
                field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
            }
            let priority = if object.stream == "stderr" { PRIORITY_ERR } else { PRIORITY_OUT };
            field(&mut entry, "PRIORITY", priority.as_bytes());
            field(&mut entry, "MESSAGE", text.unwrap_or(&object.log).as_bytes());
            match self.socket.send(&entry) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Another journal listens there by now, or will.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotConnected) => {
                    self.socket.connect(&self.path)?;
                    self.socket.send(&entry)?;
                }
                sent => drop(sent?),
            }
        }
        Ok(())
    }
}

/// `NAME=value`, or the name, the length and the bytes where the value has line ends.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let fields = BTreeMap::from([("CONTAINER_NAME".to_owned(), "web.1".to_owned())]);
        let mut journal = Journal::at(&path, &fields).unwrap();
        journal
            .write(
                b"{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"x\"}\n{\"log\":\"b\\nc\",\"stream\":\"stderr\"}\n",
            )
            .unwrap();
        let mut buffer = [0; 1000];
        let mut next = || {
            let len = server.recv(&mut buffer).unwrap();
            buffer[..len].to_vec()
        };
        assert_eq!(next(), b"CONTAINER_NAME=web.1\nPRIORITY=6\nMESSAGE=a\n");
        let second = [
            &b"CONTAINER_NAME=web.1\nCONTAINER_PARTIAL_MESSAGE=true\nPRIORITY=3\nMESSAGE\n"[..],
            &3_u64.to_le_bytes(),
            b"b\nc\n",
        ];
        assert_eq!(next(), second.concat());
    }

    #[test]
    fn a_journal_that_comes_back_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let line = |text: &str| format!("{{\"log\":\"{text}\\n\",\"stream\":\"stdout\"}}\n").into_bytes();
        let first = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path, &BTreeMap::new()).unwrap();
        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert!(journal.write(&line("lost")).is_err());
        let second = UnixDatagram::bind(&path).unwrap();
        journal.write(&line("found")).unwrap();
        let mut buffer = [0; 100];
        let len = second.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"PRIORITY=6\nMESSAGE=found\n");
    }
}
