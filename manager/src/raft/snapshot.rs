//! Snapshots: the state as length-delimited frames, in files and between managers.
//!
//! In memory a snapshot is a clone of the state, which costs nothing; it is encoded when it is written or sent.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, Bytes, BytesMut};
use orch_manager_core::State;
use orch_model::{ClusterId, Object, Timestamp};
use orch_proto::{
    conv::{FromProto, ToProto},
    wire,
};
use prost::Message;

use super::{types::SnapshotMeta, wire as convert};
use crate::log::{Sealer, SnapshotFileError, SnapshotReader, SnapshotWriter, UNFINISHED_EXTENSION, keys_of_snapshot};

/// Raised when a snapshot's content changes so that older managers cannot read it.
const FORMAT: u32 = 1;
const FILE_EXTENSION: &str = "snapshot";
/// A frame holds one object; a config of 1 MB is the largest.
const FRAME_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// Why a snapshot was not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    File(#[from] SnapshotFileError),
    #[error("cannot {what} the snapshot folder {path}", path = path.display())]
    Folder {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the snapshot {0} has no content")]
    Empty(PathBuf),
    #[error("a snapshot cannot be decoded: {0}")]
    Decode(String),
    #[error("a snapshot of format {0} was made by a newer version of orch: upgrade this manager")]
    NewerFormat(u32),
    #[error("a snapshot belongs to cluster {0} and not to this one")]
    AnotherCluster(String),
}

/// The folder with this manager's snapshots.
#[derive(Clone)]
pub(crate) struct SnapshotFolder {
    dir: PathBuf,
    sealer: Arc<Sealer>,
    cluster: ClusterId,
}

impl SnapshotFolder {
    /// The folder, without what a process that was killed had begun to write.
    pub(crate) fn open(dir: &Path, sealer: Arc<Sealer>, cluster: ClusterId) -> Result<Self, SnapshotError> {
        fs::create_dir_all(dir).map_err(|source| SnapshotError::Folder { what: "create", path: dir.into(), source })?;
        let folder = Self { dir: dir.into(), sealer, cluster };
        for unfinished in folder.files_with(UNFINISHED_EXTENSION)? {
            if let Err(error) = fs::remove_file(&unfinished) {
                tracing::warn!(path = %unfinished.display(), %error, "cannot remove an unfinished snapshot");
            }
        }
        Ok(folder)
    }

    /// Makes the snapshot durable, then removes all but the newest: a leader's may have come while this one was written,
    /// and the log no longer begins before that.
    pub(crate) fn save(&self, meta: &SnapshotMeta, state: &State) -> Result<(), SnapshotError> {
        let path = self.dir.join(file_name(meta));
        let mut writer = SnapshotWriter::create(&path, Arc::clone(&self.sealer))?;
        writer.write(&convert::snapshot_meta(meta).encode_length_delimited_to_vec())?;
        for frame in frames(&self.cluster, state) {
            writer.write(&frame)?;
        }
        writer.finish()?;
        let mut files = self.files()?;
        files.pop();
        for old in files {
            match fs::remove_file(&old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %old.display(), %error, "cannot remove an old snapshot");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The newest snapshot.
    pub(crate) fn load(&self) -> Result<Option<(SnapshotMeta, State)>, SnapshotError> {
        let Some(path) = self.files()?.pop() else { return Ok(None) };
        let mut reader = SnapshotReader::open(&path, Arc::clone(&self.sealer))?;
        let mut meta = None;
        let mut decoder = Decoder::new(self.cluster.clone());
        let mut frames = Frames::default();
        while let Some(chunk) = reader.next_chunk()? {
            frames.push(&chunk);
            while let Some(frame) = frames.next()? {
                match meta {
                    None => meta = Some(wire::SnapshotMeta::decode(frame).map_err(decode_error)?),
                    Some(_) => decoder.frame(frame)?,
                }
            }
        }
        let meta = meta.ok_or_else(|| SnapshotError::Empty(path.clone()))?;
        let meta = convert::snapshot_meta_from(meta).map_err(decode_error)?;
        Ok(Some((meta, decoder.finish()?)))
    }

    /// The keys that are needed to read what is here, or is being written.
    pub(crate) fn keys_in_use(&self) -> Result<BTreeSet<u32>, SnapshotError> {
        // The leases first: a file that gets its name meanwhile is seen after that.
        let mut keys = self.sealer.leased_keys();
        for path in self.files()? {
            match keys_of_snapshot(&path) {
                Ok(of_it) => keys.extend(of_it),
                // A newer one has taken its place.
                Err(SnapshotFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(keys)
    }

    /// Snapshot files, oldest first.
    fn files(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        self.files_with(FILE_EXTENSION)
    }

    fn files_with(&self, extension: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        let error = |source| SnapshotError::Folder { what: "list", path: self.dir.clone(), source };
        let entries = fs::read_dir(&self.dir).map_err(error)?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(error)?.path();
            if path.extension().is_some_and(|of_it| of_it == extension) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The state as frames: a header, then one object each.
pub(crate) fn frames<'a>(cluster: &'a ClusterId, state: &'a State) -> impl Iterator<Item = Bytes> + 'a {
    std::iter::once_with(|| header(cluster, state)).chain(state.objects().map(|object| frame(&object)))
}

fn header(cluster: &ClusterId, state: &State) -> Bytes {
    let header = wire::SnapshotHeader {
        format: FORMAT,
        cluster_id: cluster.to_string(),
        last_stamp_ms: state.last_stamp().unix_ms,
        objects: state.objects().map(|_| 1).sum(),
    };
    header.encode_length_delimited_to_vec().into()
}

fn frame(object: &Object) -> Bytes {
    object.to_proto().encode_length_delimited_to_vec().into()
}

/// Encodes a state piece by piece, so that nobody holds all of it in memory.
pub(crate) struct Encoder {
    state: State,
    /// Objects that are in the buffer or have left it.
    encoded: usize,
    buffer: BytesMut,
}

impl Encoder {
    pub(crate) fn new(cluster: &ClusterId, state: State) -> Self {
        let buffer = BytesMut::from(header(cluster, &state));
        Self { state, encoded: 0, buffer }
    }

    /// The next bytes: `size` of them, fewer at the end, then none.
    pub(crate) fn next_chunk(&mut self, size: usize) -> Option<Bytes> {
        for object in self.state.objects().skip(self.encoded) {
            if self.buffer.len() >= size {
                break;
            }
            self.buffer.extend_from_slice(&frame(&object));
            self.encoded += 1;
        }
        let length = self.buffer.len().min(size);
        (length > 0).then(|| self.buffer.split_to(length).freeze())
    }
}

/// Puts a state together from the bytes of its frames, cut anywhere.
pub(crate) struct Assembler {
    frames: Frames,
    decoder: Decoder,
}

impl Assembler {
    pub(crate) fn new(cluster: ClusterId) -> Self {
        Self { frames: Frames::default(), decoder: Decoder::new(cluster) }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.frames.push(bytes);
        while let Some(frame) = self.frames.next()? {
            self.decoder.frame(frame)?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<State, SnapshotError> {
        if !self.frames.buffer.is_empty() {
            return Err(SnapshotError::Decode("it ends in the middle of an object".to_owned()));
        }
        self.decoder.finish()
    }
}

/// Cuts bytes into length-delimited frames.
#[derive(Default)]
struct Frames {
    buffer: BytesMut,
}

impl Frames {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let mut look = &self.buffer[..];
        let length = match prost::decode_length_delimiter(&mut look) {
            Ok(length) => length,
            // Up to ten bytes make a length: fewer may be the start of one.
            Err(_) if self.buffer.len() < 10 => return Ok(None),
            Err(error) => return Err(decode_error(error)),
        };
        if length > FRAME_LIMIT_BYTES {
            return Err(SnapshotError::Decode(format!("an object of {length} bytes is too large")));
        }
        if look.len() < length {
            return Ok(None);
        }
        let header = self.buffer.len() - look.len();
        self.buffer.advance(header);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

struct Decoder {
    cluster: ClusterId,
    header: Option<wire::SnapshotHeader>,
    objects: Vec<Object>,
}

impl Decoder {
    fn new(cluster: ClusterId) -> Self {
        Self { cluster, header: None, objects: Vec::new() }
    }

    fn frame(&mut self, frame: Bytes) -> Result<(), SnapshotError> {
        if self.header.is_some() {
            let object = wire::Object::decode(frame).map_err(decode_error)?;
            self.objects.push(Object::from_proto(object).map_err(decode_error)?);
            return Ok(());
        }
        let header = wire::SnapshotHeader::decode(frame).map_err(decode_error)?;
        if header.format > FORMAT {
            return Err(SnapshotError::NewerFormat(header.format));
        }
        if header.cluster_id != self.cluster.as_str() {
            return Err(SnapshotError::AnotherCluster(header.cluster_id));
        }
        self.header = Some(header);
        Ok(())
    }

    fn finish(self) -> Result<State, SnapshotError> {
        let header = self.header.ok_or_else(|| SnapshotError::Decode("it has no header".to_owned()))?;
        let found = u64::try_from(self.objects.len()).unwrap_or(u64::MAX);
        if found != header.objects {
            return Err(SnapshotError::Decode(format!("{found} objects instead of {}", header.objects)));
        }
        Ok(State::from_objects(self.objects, Timestamp::from_unix_ms(header.last_stamp_ms)))
    }
}

fn decode_error(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Decode(error.to_string())
}

/// Sorts by log position.
fn file_name(meta: &SnapshotMeta) -> String {
    let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
    format!("{index:020}-{term:020}.{FILE_EXTENSION}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::Membership;
    use orch_manager_core::State;
    use orch_model::{
        Annotations, ConfigId, Meta, NodeId, Timestamp,
        change::{Change, Transaction},
        secret::Config,
    };

    use super::{
        super::types::{LeaderId, LogId, Member, StoredMembership},
        *,
    };
    use crate::log::KeyRing;

    /// A few megabytes, so that chunks cut objects.
    fn state() -> State {
        let mut state = State::empty();
        for number in 0..6 {
            let config = Config {
                id: ConfigId::from_random(number),
                meta: Meta::default(),
                annotations: Annotations { name: format!("c{number}"), ..Annotations::default() },
                data: vec![7; 700_000],
                template: None,
                removing: false,
            };
            let changes = vec![Change::Create(Object::Config(Arc::new(config)))];
            let at = Timestamp::from_unix_ms(1000 + u64::try_from(number).unwrap());
            state.apply(5, &Transaction { at, changes }).unwrap();
        }
        state
    }

    fn same(a: &State, b: &State) {
        assert!(a.objects().eq(b.objects()));
        assert_eq!((a.last_stamp(), a.objects().count()), (b.last_stamp(), 6));
    }

    #[test]
    fn a_snapshot_comes_back_from_its_file_and_replaces_older_ones() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterId::from_random(1);
        let ring = KeyRing::load_or_create(&dir.path().join("keys"), None).unwrap();
        let sealer = Arc::new(Sealer::new(ring, cluster.clone(), NodeId::from_random(2)));
        let path = dir.path().join("snapshots");
        let folder = SnapshotFolder::open(&path, Arc::clone(&sealer), cluster).unwrap();
        let member = Member { node_id: "n".to_owned(), addr: "a:1".to_owned() };
        let meta = |index| {
            let log_id = LogId { leader_id: LeaderId { term: 3, node_id: 9 }, index };
            let members = Membership::new(vec![[9].into()], std::collections::BTreeMap::from([(9, member.clone())]));
            let last_membership = StoredMembership::new(Some(log_id), members.unwrap());
            SnapshotMeta { last_log_id: Some(log_id), last_membership }
        };
        assert!(folder.load().unwrap().is_none());
        folder.save(&meta(99), &State::empty()).unwrap();
        folder.save(&meta(100), &state()).unwrap();
        // One that took long to write is not taken for newer.
        folder.save(&meta(98), &State::empty()).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        let (loaded_meta, loaded) = folder.load().unwrap().unwrap();
        assert_eq!(loaded_meta, meta(100));
        same(&loaded, &state());

        fs::write(path.join("00000000000000000101-00000000000000000003.new"), "a killed process left it").unwrap();
        let foreign = SnapshotFolder::open(&path, sealer, ClusterId::from_random(8)).unwrap();
        assert!(matches!(foreign.load(), Err(SnapshotError::AnotherCluster(_))));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn a_snapshot_is_put_together_from_bytes_cut_anywhere() {
        let cluster = ClusterId::from_random(1);
        let bytes: Vec<u8> = frames(&cluster, &state()).flatten().collect();
        for size in [1024 * 1024, 333_333] {
            let mut assembler = Assembler::new(cluster.clone());
            let mut encoder = Encoder::new(&cluster, state());
            for expected in bytes.chunks(size) {
                let chunk = encoder.next_chunk(size).unwrap();
                assert!(chunk == expected);
                assembler.push(&chunk).unwrap();
            }
            assert_eq!(encoder.next_chunk(size), None);
            same(&assembler.finish().unwrap(), &state());
        }
        let mut cut = Assembler::new(cluster.clone());
        cut.push(&bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(cut.finish(), Err(SnapshotError::Decode(_))));
        let mut short = Assembler::new(cluster.clone());
        let without_last: Vec<u8> = frames(&cluster, &state()).take(6).flatten().collect();
        short.push(&without_last).unwrap();
        assert!(matches!(short.finish(), Err(SnapshotError::Decode(_))));
    }
}
