//! Compiles `init/init.rs`, the first process of containers with `--init`: a static program without any library, which
//! the worker carries.

use std::{env, error::Error, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=init/init.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?).join("init");
    let status = Command::new(env::var("RUSTC")?)
        .args(["--edition", "2024", "--crate-type", "bin", "--target", &env::var("TARGET")?])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "relocation-model=static", "-C", "strip=symbols"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .args(["-C", "link-arg=-Wl,--build-id=none", "-C", "link-arg=-Wl,-z,noseparate-code"])
        .arg("-o")
        .arg(&out)
        .arg("init/init.rs")
        .status()?;
    if status.success() { Ok(()) } else { Err("the init process of containers does not compile".into()) }
}
