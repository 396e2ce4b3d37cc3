//! What gossip needs, kept from one supervisor to the next: in memory only, because after a power cut this node has nothing of
//! what others would send it. It joins in again then when a manager has heard of that.
//!
//! The keys in it are for this node's eyes only.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use orch_proto::wire::GossipConfig;
use prost::Message as _;

use super::super::files;

/// What was kept; nothing when a manager has not spoken since the machine started.
pub(super) fn load(run: &Path) -> Result<GossipConfig> {
    let path = file(run);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(GossipConfig::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    GossipConfig::decode(&bytes[..]).with_context(|| format!("{} is damaged", path.display()))
}

pub(super) fn save(run: &Path, config: &GossipConfig) -> Result<()> {
    files::private_dir(&folder(run))?;
    files::write_atomically(&file(run), &config.encode_to_vec(), 0o600)
}

/// For a node that is in no cluster any more.
pub(super) fn forget(run: &Path) -> Result<()> {
    files::remove_file(&file(run))
}

/// Of the supervisor alone: others may make files beside it.
fn folder(run: &Path) -> PathBuf {
    run.join("node")
}

fn file(run: &Path) -> PathBuf {
    folder(run).join("gossip.pb")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_there_again_until_it_is_forgotten() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        assert_eq!(load(run).unwrap(), GossipConfig::default());
        let config = GossipConfig { watchers: 3, ..GossipConfig::default() };
        save(run, &config).unwrap();
        assert_eq!(load(run).unwrap(), config);
        assert_eq!(fs::metadata(file(run)).unwrap().permissions().mode() & 0o777, 0o600);
        forget(run).unwrap();
        forget(run).unwrap();
        assert_eq!(load(run).unwrap(), GossipConfig::default());
        fs::write(file(run), [0xff]).unwrap();
        assert!(load(run).unwrap_err().to_string().ends_with("is damaged"));
    }
}
