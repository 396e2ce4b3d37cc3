//! The system call filter of containers: which calls, compiled to the kernel's bytecode.
//!
//! The worker compiles a filter once per set of capabilities and keeps it in a file named by its hash; shims load that
//! file. Nothing here touches the calling process's own filter.

mod bpf;
mod compat;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

pub(crate) use bpf::Instruction;
use bpf::Rule;
use compat::Compat;
use table::Call;

use super::caps::CapSet;

/// The kernel's limit (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// Size of one instruction in memory and in the file.
pub(crate) const INSTRUCTION_BYTES: usize = size_of::<Instruction>();

/// Building or storing a filter failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("the system call filter has {0} instructions; the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    #[error("cannot store the system call filter in {path}")]
    Store { path: PathBuf, source: io::Error },
}

/// Compiles the filter for a container with these capabilities.
///
/// One profile for all calls that the kernel takes: the machine's own and those of 32-bit programs, which have other
/// numbers. Where `socketcall` and `ipc` stand for many calls (i386), what they ask for is behind a pointer, where no
/// filter can look; Docker allows them as well.
pub(crate) fn compile(caps: CapSet) -> Result<Vec<Instruction>, SeccompError> {
    let program = assemble(caps, compat::HERE);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

fn assemble(caps: CapSet, other: &Compat) -> Vec<Instruction> {
    let calls = named(caps);
    let mut native = vec![bpf::number()];
    if cfg!(target_arch = "x86_64") {
        native.extend(bpf::x32());
    }
    native.extend(answers(&calls, caps));
    let mut second = vec![bpf::number()];
    second.extend(answers(&named_32(&calls, other, caps), caps));
    bpf::program((table::ARCH, native), (other.arch, second))
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
pub(crate) fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * INSTRUCTION_BYTES);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    bytes
}

/// The reverse of [`encode`]; `None` when the file is cut off or empty.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Instruction>> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(INSTRUCTION_BYTES) {
        return None;
    }
    let instruction = |at: &[u8]| Instruction {
        code: u16::from_ne_bytes([at[0], at[1]]),
        jt: at[2],
        jf: at[3],
        k: u32::from_ne_bytes([at[4], at[5], at[6], at[7]]),
    };
    Some(bytes.chunks_exact(INSTRUCTION_BYTES).map(instruction).collect())
}

/// The calls that the profile names for these capabilities, with the machine's own numbers.
fn named(caps: CapSet) -> Vec<Call> {
    let granted = table::WITH_CAPABILITY.iter().filter(|(name, _)| caps.has(name)).map(|(_, calls)| *calls);
    let always = table::ALWAYS.iter().copied().chain([table::NATIVE, table::CHECKED, &[table::IO_PGETEVENTS]]);
    always.chain(granted).flatten().map(|&(name, number)| (table::plain(name), number)).collect()
}

/// The same calls with the numbers of a 32-bit architecture, and those that only such have.
fn named_32(calls: &[Call], arch: &Compat, caps: CapSet) -> Vec<Call> {
    let granted = table::ONLY_32_WITH_CAPABILITY.iter().filter(|(name, _)| caps.has(name)).map(|(_, names)| *names);
    let only = [table::OLDER, table::ONLY_32].into_iter().chain(granted).flatten();
    let names: BTreeSet<&str> =
        calls.iter().map(|(name, _)| *name).chain(only.map(|name| table::plain(name))).collect();
    let same = calls.iter().filter(|(_, number)| *number >= compat::SAME_FROM);
    arch.calls.iter().filter(|(name, _)| names.contains(name)).chain(same).copied().collect()
}

fn answers(calls: &[Call], caps: CapSet) -> Vec<Instruction> {
    let rules = calls.iter().filter_map(|(name, number)| Some((u32::try_from(*number).ok()?, rule(name, caps))));
    bpf::answers(rules.collect::<BTreeMap<_, _>>(), table::NEWEST_KNOWN)
}

/// What a call that is named is answered. `clone3` hides its flags behind a pointer; without it the C library uses
/// `clone`.
fn rule(name: &str, caps: CapSet) -> Rule {
    let makes_namespaces = caps.has("SYS_ADMIN");
    match name {
        "socket" => Rule::Not(table::VSOCK),
        "personality" => Rule::OneOf(&table::PERSONALITIES),
        "clone" if !makes_namespaces => Rule::Without(table::NAMESPACE_FLAGS),
        "clone3" if !makes_namespaces => Rule::Missing,
        _ => Rule::Allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn run(program: &[Instruction], call: libc::c_long, argument: u64) -> u32 {
        bpf::run(program, table::ARCH, u32::try_from(call).unwrap(), [argument, 0, 0, 0, 0, 0])
    }

    fn errno(number: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | u32::try_from(number).unwrap()
    }

    #[test]
    fn what_a_default_container_may_call() {
        let filter = compile(CapSet::default()).unwrap();
        let check = |call, arg, want| assert_eq!(run(&filter, call, arg), want, "call {call} ({arg:#x})");
        check(libc::SYS_read, 0, ALLOW);
        check(libc::SYS_chroot, 0, ALLOW);
        check(libc::SYS_mount, 0, errno(libc::EPERM));
        check(libc::SYS_unshare, 0, errno(libc::EPERM));
        check(libc::SYS_io_uring_setup, 0, errno(libc::EPERM));
        check(libc::SYS_keyctl, 0, errno(libc::EPERM));
        check(libc::SYS_clone3, 0, errno(libc::ENOSYS));
        check(467, 0, errno(libc::ENOSYS));
        check(libc::SYS_clone, libc::SIGCHLD as u64, ALLOW);
        check(libc::SYS_clone, libc::CLONE_NEWUSER as u64, errno(libc::EPERM));
        check(libc::SYS_socket, libc::AF_INET as u64, ALLOW);
        check(libc::SYS_socket, libc::AF_VSOCK as u64, errno(libc::EPERM));
        check(libc::SYS_personality, 0xffff_ffff, ALLOW);
        check(libc::SYS_personality, 0x40000, errno(libc::EPERM));
    }

    #[test]
    fn capabilities_open_calls() {
        let filter = compile(CapSet::default().with(&["SYS_ADMIN", "SYS_TIME"])).unwrap();
        for call in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_unshare, libc::SYS_clock_settime] {
            assert_eq!(run(&filter, call, 0), ALLOW, "call {call}");
        }
        assert_eq!(run(&filter, libc::SYS_clone, libc::CLONE_NEWUSER as u64), ALLOW);
        assert_eq!(run(&filter, libc::SYS_reboot, 0), errno(libc::EPERM));
    }

    /// What a 32-bit program's call is answered, by name.
    fn run_32(program: &[Instruction], arch: &Compat, name: &str, argument: u64) -> u32 {
        let (_, number) = arch.calls.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}"));
        bpf::run(program, arch.arch, u32::try_from(*number).unwrap(), [argument, 0, 0, 0, 0, 0])
    }

    #[test]
    fn programs_of_32_bits_may_call_the_same() {
        let plain = CapSet::default();
        for (arch, caps) in [&compat::I386, &compat::ARM].iter().flat_map(|arch| [(arch, plain), (arch, CapSet::ALL)]) {
            let filter = assemble(caps, arch);
            let native: BTreeMap<&str, libc::c_long> = named(CapSet::ALL).into_iter().collect();
            let mut seen = 0;
            for (name, _) in arch.calls {
                let Some(&call) = native.get(name) else { continue };
                for arg in [0, libc::AF_VSOCK as u64, libc::CLONE_NEWUSER as u64, 0x2_0008] {
                    let (theirs, ours) = (run_32(&filter, arch, name, arg), run(&filter, call, arg));
                    assert_eq!(theirs, ours, "{name} ({arg:#x}) of {:#x}", arch.arch);
                }
                seen += 1;
            }
            assert!(seen > 250, "{seen} of {:#x}", arch.arch);
            for number in [435, 451, 466, 467, u32::MAX] {
                let theirs = bpf::run(&filter, arch.arch, number, [0; 6]);
                assert_eq!(theirs, bpf::run(&filter, table::ARCH, number, [0; 6]), "{number} of {:#x}", arch.arch);
            }
        }
    }

    #[test]
    fn programs_of_32_bits_have_calls_of_their_own() {
        let (i386, arm) = (&compat::I386, &compat::ARM);
        let filters = |caps| [(i386, assemble(caps, i386)), (arm, assemble(caps, arm))];
        for (arch, filter) in filters(CapSet::default()) {
            let check = |name, want| assert_eq!(run_32(&filter, arch, name, 0), want, "{name} of {:#x}", arch.arch);
            for allowed in [
                "open",
                "fork",
                "stat64",
                "mmap2",
                "_llseek",
                "fcntl64",
                "getuid32",
                "clock_gettime64",
                "futex_time64",
                "_newselect",
                "ugetrlimit",
                "sigreturn",
                "io_pgetevents",
            ] {
                check(allowed, ALLOW);
            }
            for denied in ["mount", "clock_settime64", "kexec_load", "nice", "keyctl", "swapon", "uselib"] {
                check(denied, errno(libc::EPERM));
            }
        }
        let [(_, filter), (_, arm_filter)] = filters(CapSet::default());
        for (name, want) in [("socketcall", ALLOW), ("ipc", ALLOW), ("waitpid", ALLOW), ("umount", errno(libc::EPERM))]
        {
            assert_eq!(run_32(&filter, i386, name, 0), want, "{name}");
        }
        for (name, want) in [("cacheflush", ALLOW), ("set_tls", ALLOW), ("recv", ALLOW), ("usr26", errno(libc::ENOSYS))]
        {
            assert_eq!(run_32(&arm_filter, arm, name, 0), want, "{name}");
        }
        let [(_, filter), (_, arm_filter)] = filters(CapSet::default().with(&["SYS_TIME", "SYS_ADMIN"]));
        for name in ["stime", "umount"] {
            assert_eq!(run_32(&filter, i386, name, 0), ALLOW, "{name}");
        }
        assert_eq!(run_32(&arm_filter, arm, "clock_settime64", 0), ALLOW);
    }

    #[test]
    fn names_of_calls_that_only_32_bits_have_are_known() {
        let known: BTreeSet<&str> = [compat::I386, compat::ARM].iter().flat_map(|a| a.calls).map(|(n, _)| *n).collect();
        let named = table::ONLY_32_WITH_CAPABILITY.iter().flat_map(|(_, names)| *names).chain(table::ONLY_32);
        assert_eq!(named.filter(|name| !known.contains(*name)).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_is_answered_as_x86_64() {
        const X32_BIT: u32 = 0x4000_0000;
        let filter = compile(CapSet::default()).unwrap();
        let check = |number: u32, arg, want| {
            let got = bpf::run(&filter, table::ARCH, number | X32_BIT, [arg, 0, 0, 0, 0, 0]);
            assert_eq!(got, want, "{number} ({arg:#x})");
        };
        for number in 0..512 {
            check(number, 0, run(&filter, number.into(), 0));
        }
        let clone = u32::try_from(libc::SYS_clone).unwrap();
        check(clone, libc::CLONE_NEWUSER as u64, errno(libc::EPERM));
        for (number, want) in [(512, ALLOW), (520, ALLOW), (547, ALLOW)] {
            check(number, 0, want);
            assert_eq!(run(&filter, number.into(), 0), errno(libc::ENOSYS), "{number} without the bit");
        }
        for (number, want) in [(528, libc::EPERM), (533, libc::EPERM), (548, libc::ENOSYS), (1 << 31, libc::ENOSYS)] {
            check(number, 0, errno(want));
        }
    }

    #[test]
    fn filters_are_short_and_kill_what_no_kernel_asks() {
        for arch in [&compat::I386, &compat::ARM] {
            let program = assemble(CapSet::ALL, arch);
            assert!(program.len() < MAX_INSTRUCTIONS / 2, "{} instructions", program.len());
            assert_eq!(bpf::run(&program, 0xc000_00f3, 0, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        }
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
