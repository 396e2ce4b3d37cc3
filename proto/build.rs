//! Generates the wire types from `orch/v1/*.proto` with protox, so that building needs no `protoc`.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=orch");
    let mut files: Vec<PathBuf> =
        fs::read_dir("orch/v1")?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".")
        // Sorted, so that equal objects have equal bytes on every manager.
        .btree_map(".")
        // `wire` writes these without what must not reach a log.
        .skip_debug(["orch.v1.RootCa", "orch.v1.JoinTokens", "orch.v1.Secret", "orch.v1.GossipKey"])
        .compile_fds(descriptors)?;
    Ok(())
}
