//! How many files a daemon may have open, and its table of them.

use std::{fs::File, io};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::close,
};

/// What a daemon of a busy node has open, at eight bytes each.
const SLOTS: i32 = 4096;

/// Lets this process have as many open files as it may allow itself; returns what its soft and hard limits were. Programs
/// that it starts inherit the new one.
///
/// # Errors
/// The kernel's.
pub fn raise_limit() -> io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((soft, hard))
}

/// Makes room for open files, as far as the process may have them; to be called while it has one thread.
///
/// The kernel doubles the table when it is full. In a process with threads, whoever opens something then waits for a grace
/// period: several times in a row, and for tens of milliseconds, when a node gets its first containers.
pub fn make_room() {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let highest = i32::try_from(soft).map_or(SLOTS, |soft| soft.min(SLOTS)) - 1;
    // Where it fails, the table grows as it is needed.
    let Ok(file) = File::open("/dev/null") else { return };
    if let Ok(high) = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(highest)) {
        let _ = close(high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_room_afterwards_and_nothing_more_is_open() {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        make_room();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().parse::<u64>().unwrap();
        assert!(size >= soft.min(4096), "{size} of {soft}");
        let highest = std::fs::read_dir("/proc/self/fd").unwrap();
        let highest = highest.filter_map(|fd| fd.unwrap().file_name().to_str()?.parse::<u64>().ok()).max().unwrap();
        assert!(highest < 900, "{highest} is open");
    }
}
