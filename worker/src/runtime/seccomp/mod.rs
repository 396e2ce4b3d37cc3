//! The system call filter of containers: which calls, compiled to the kernel's bytecode.
//!
//! The worker compiles a filter once per set of capabilities and keeps it in a file named by its hash; shims load that
//! file. Nothing here touches the calling process's own filter.

mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use sha2::{Digest, Sha256};

use super::caps::CapSet;

/// The kernel's limit (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// Size of one instruction in memory and in the file.
pub(crate) const INSTRUCTION_BYTES: usize = 8;

const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;

/// Building or storing a filter failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("cannot compile the system call filter")]
    Compile(#[from] seccompiler::BackendError),
    #[error("the system call filter has {0} instructions; the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    #[error("cannot store the system call filter in {path}")]
    Store { path: PathBuf, source: io::Error },
}

/// Compiles the filter for a container with these capabilities.
pub(crate) fn compile(caps: CapSet) -> Result<BpfProgram, SeccompError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules(caps)?, SeccompAction::Errno(EPERM), SeccompAction::Allow, arch)?;
    let allowed: BpfProgram = filter.try_into()?;
    let mut program = not_implemented(!caps.has("SYS_ADMIN"));
    program.extend(allowed);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

/// The filters' files.
#[derive(Debug)]
pub(crate) struct Filters {
    dir: PathBuf,
    /// Where this process has put them.
    known: Mutex<BTreeMap<CapSet, PathBuf>>,
}

impl Filters {
    pub(crate) fn in_dir(dir: PathBuf) -> Self {
        Self { dir, known: Mutex::default() }
    }

    /// Where the filter for `caps` is, which is compiled and written unless it is there.
    pub(crate) fn file(&self, caps: CapSet) -> Result<PathBuf, SeccompError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&caps) {
            Some(path) if path.exists() => Ok(path.clone()),
            _ => {
                let path = store(&self.dir, caps)?;
                known.insert(caps, path.clone());
                Ok(path)
            }
        }
    }
}

fn store(dir: &Path, caps: CapSet) -> Result<PathBuf, SeccompError> {
    let bytes = encode(&compile(caps)?);
    let path = dir.join(format!("{}.bpf", hex::encode(Sha256::digest(&bytes))));
    if path.exists() {
        return Ok(path);
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let file = tempfile::NamedTempFile::new_in(dir)?;
        fs::write(file.path(), &bytes)?;
        file.persist(&path)?;
        Ok(())
    };
    match write() {
        Ok(()) => Ok(path),
        Err(source) => Err(SeccompError::Store { path, source }),
    }
}

/// The instructions as the kernel's `struct sock_filter`, one after the other, in the machine's byte order.
pub(crate) fn encode(program: &[sock_filter]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * INSTRUCTION_BYTES);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    bytes
}

/// The reverse of [`encode`]; `None` when the file is cut off or empty.
pub(crate) fn decode(bytes: &[u8]) -> Option<BpfProgram> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(INSTRUCTION_BYTES) {
        return None;
    }
    let instruction = |at: &[u8]| sock_filter {
        code: u16::from_ne_bytes([at[0], at[1]]),
        jt: at[2],
        jf: at[3],
        k: u32::from_ne_bytes([at[4], at[5], at[6], at[7]]),
    };
    Some(bytes.chunks_exact(INSTRUCTION_BYTES).map(instruction).collect())
}

/// Which calls are allowed, and for some with which arguments (an empty list: with any).
fn rules(caps: CapSet) -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    let granted = table::WITH_CAPABILITY.iter().filter(|(name, _)| caps.has(name)).map(|(_, calls)| *calls);
    let free: BTreeSet<i64> = table::ALWAYS
        .iter()
        .copied()
        .chain([table::NATIVE, &[table::IO_PGETEVENTS]])
        .chain(granted)
        .flatten()
        .map(|c| c.1)
        .collect();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = free.into_iter().map(|call| (call, Vec::new())).collect();

    let argument = |op, value| -> Result<SeccompRule, SeccompError> {
        Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value)?])?)
    };
    rules.insert(libc::SYS_socket, vec![argument(SeccompCmpOp::Ne, libc::AF_VSOCK as u64)?]);
    let personalities = table::PERSONALITIES.iter().map(|&value| argument(SeccompCmpOp::Eq, value));
    rules.insert(libc::SYS_personality, personalities.collect::<Result<_, _>>()?);
    if !caps.has("SYS_ADMIN") {
        rules.insert(libc::SYS_clone, vec![argument(SeccompCmpOp::MaskedEq(table::NAMESPACE_FLAGS), 0)?]);
    }
    Ok(rules)
}

/// The beginning of the program: calls that answer "not implemented" rather than "not permitted", because programs then
/// take an older way. `clone3` hides its flags behind a pointer, where no filter can look; without it the C library
/// uses `clone`. Numbers of another architecture fall through to the check that follows.
fn not_implemented(clone3: bool) -> BpfProgram {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    const NUMBER_OFFSET: u32 = 0;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    // A number that no call has stands for "none" when clone3 is allowed.
    let clone3 = if clone3 { u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX) } else { u32::MAX };
    vec![
        op(LOAD, 0, 0, NUMBER_OFFSET),
        op(JUMP_EQUAL, 1, 0, clone3),
        op(JUMP_GREATER, 0, 1, table::NEWEST_KNOWN),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | ENOSYS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would; only the instructions that filters use.
    fn run(program: &[sock_filter], number: i64, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(u32::try_from(number).unwrap().to_ne_bytes());
        data.extend(if cfg!(target_arch = "x86_64") { 0xc000_003e_u32 } else { 0xc000_00b7 }.to_ne_bytes());
        data.extend(0_u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let (mut at, mut a) = (0_usize, 0_u32);
        loop {
            let op = &program[at];
            let jump = |taken: bool| usize::from(if taken { op.jt } else { op.jf });
            at += 1;
            match op.code {
                0x20 => a = u32::from_ne_bytes(data[op.k as usize..op.k as usize + 4].try_into().unwrap()),
                0x54 => a &= op.k,
                0x05 => at += op.k as usize,
                0x15 => at += jump(a == op.k),
                0x25 => at += jump(a > op.k),
                0x35 => at += jump(a >= op.k),
                0x06 => return op.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn errno(number: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | u32::try_from(number).unwrap()
    }

    #[test]
    fn what_a_default_container_may_call() {
        let filter = compile(CapSet::default()).unwrap();
        let check =
            |call, arg, want| assert_eq!(run(&filter, call, [arg, 0, 0, 0, 0, 0]), want, "call {call} ({arg:#x})");
        let allow = libc::SECCOMP_RET_ALLOW;
        check(libc::SYS_read, 0, allow);
        check(libc::SYS_chroot, 0, allow);
        check(libc::SYS_mount, 0, errno(libc::EPERM));
        check(libc::SYS_unshare, 0, errno(libc::EPERM));
        check(libc::SYS_io_uring_setup, 0, errno(libc::EPERM));
        check(libc::SYS_keyctl, 0, errno(libc::EPERM));
        check(libc::SYS_clone3, 0, errno(libc::ENOSYS));
        check(467, 0, errno(libc::ENOSYS));
        check(libc::SYS_clone, libc::SIGCHLD as u64, allow);
        check(libc::SYS_clone, libc::CLONE_NEWUSER as u64, errno(libc::EPERM));
        check(libc::SYS_socket, libc::AF_INET as u64, allow);
        check(libc::SYS_socket, libc::AF_VSOCK as u64, errno(libc::EPERM));
        check(libc::SYS_personality, 0xffff_ffff, allow);
        check(libc::SYS_personality, 0x40000, errno(libc::EPERM));
    }

    #[test]
    fn capabilities_open_calls() {
        let filter = compile(CapSet::default().with(&["SYS_ADMIN", "SYS_TIME"])).unwrap();
        let allow = libc::SECCOMP_RET_ALLOW;
        for call in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_unshare, libc::SYS_clock_settime] {
            assert_eq!(run(&filter, call, [0; 6]), allow, "call {call}");
        }
        assert_eq!(run(&filter, libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), allow);
        assert_eq!(run(&filter, libc::SYS_reboot, [0; 6]), errno(libc::EPERM));
    }

    #[test]
    fn a_stored_filter_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let filters = Filters::in_dir(dir.path().join("filters"));
        let path = filters.file(CapSet::default()).unwrap();
        let compiled = Some(compile(CapSet::default()).unwrap());
        assert_eq!(decode(&fs::read(&path).unwrap()), compiled);
        assert_ne!(filters.file(CapSet::ALL).unwrap(), path);
        fs::remove_file(&path).unwrap();
        assert_eq!(filters.file(CapSet::default()).unwrap(), path);
        assert_eq!(decode(&fs::read(&path).unwrap()), compiled, "what somebody removed is written again");
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"cut off"), None);
    }
}
