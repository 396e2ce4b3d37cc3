//! Whether this node can encrypt: the namespace with the WireGuard device is made, or found, when the daemon starts.

use std::{io, path::PathBuf};

use nix::errno::Errno;
use orch_model::node::TunnelKey;
use orch_netd_core::names::WIREGUARD;

use crate::{
    netlink,
    netns::{self, NetNs},
    wireguard::Device,
};

/// The namespace and the public half of the device's key. What an earlier daemon made stays as it is: connections go on.
pub(super) async fn open(path: PathBuf) -> io::Result<(NetNs, TunnelKey)> {
    let found = match NetNs::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        found => found?,
    };
    let (ns, is_new) = match found {
        Some(ns) => (ns, false),
        None => (NetNs::create(&path).await?, true),
    };
    let inside = ns.clone();
    let key = netns::aside(move || {
        netlink::make_wireguard(&inside, WIREGUARD)?;
        inside.enter()?;
        let device = Device::open(WIREGUARD)?;
        if device.read()?.key.is_none() {
            device.make_key()?;
        }
        device.read()?.key.ok_or_else(|| io::Error::other("the device has no key after it was given one"))
    });
    match key.await {
        Ok(key) => Ok((ns, key)),
        Err(error) => {
            // Of one that was in use before, networks may still have their tunnels there.
            if is_new {
                netns::remove(&path)?;
            }
            Err(error)
        }
    }
}

/// Whether trying again is of no use: the kernel has no WireGuard.
pub(super) fn is_for_good(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32)
}

/// For the operator: why there are no encrypted networks here.
pub(super) fn explain(error: &io::Error) -> String {
    match is_for_good(error) {
        true => "the kernel has no WireGuard (in Linux since 5.6, as a module named wireguard)".to_owned(),
        false => format!("making a WireGuard device: {error}"),
    }
}
