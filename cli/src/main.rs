//! The `orch` program: the commands that people use, and (hidden) the daemons of a node.
//!
//! One binary, several processes: `orch node` supervises `orch manager`, `orch worker` and `orch netd`; each container
//! has an `orch shim`. This crate is the only place that knows all of them. The shim must start before any thread does,
//! so it is looked for before the command line is parsed.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// It panics where what it prints to is on a disk that is full, and takes the exit code along.
#![deny(clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::print_stderr))]

/// `eprintln!` that is lost where standard error cannot be written.
macro_rules! remark {
    ($($words:tt)*) => {
        // Nobody is left to be told of it.
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($words)*))))
    };
}

mod api;
mod cli;
mod commands;
mod compose;
mod daemons;
mod flags;
mod inspect;
mod node;
mod progress;
mod render;
mod watching;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = daemons::shim() {
        return code;
    }
    cli::main()
}
