//! Which devices a container may open, on version 2 of control groups: a BPF program per container, there being no file to
//! write the list into. Version 1 has one, and libcontainer writes it.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use super::spec::Device;

/// What every container may use besides what it is given, `(major, minor)`; `None`: all of them.
const USUAL: [(u32, Option<u32>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// An instruction, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    kind: i32,
    access: i32,
    major: Option<u32>,
    minor: Option<u32>,
}

/// Whether this kernel lets us.
pub(super) fn is_available() -> bool {
    load(&program(&[])).is_ok()
}

/// Confines what is in the cgroup's folder to the usual devices and `given`.
pub(super) fn confine(folder: &Path, given: &[Device]) -> io::Result<()> {
    let filter = load(&program(&rules(given)))?;
    attach(&File::open(folder)?, &filter)
}

fn rules(given: &[Device]) -> Vec<Rule> {
    // Any node may be made; opening it is another matter.
    let made = [BLOCK, CHARACTER].map(|kind| Rule { kind, access: MKNOD, major: None, minor: None });
    let usual = USUAL.map(|(major, minor)| {
        let access = MKNOD | READ | WRITE;
        Rule { kind: CHARACTER, access, major: Some(major), minor }
    });
    let given = given.iter().map(|device| Rule {
        kind: if device.kind == 'b' { BLOCK } else { CHARACTER },
        access: device.access.chars().fold(0, |access, letter| {
            access
                | match letter {
                    'r' => READ,
                    'w' => WRITE,
                    _ => MKNOD,
                }
        }),
        major: u32::try_from(device.major).ok(),
        minor: u32::try_from(device.minor).ok(),
    });
    made.into_iter().chain(usual).chain(given).collect()
}

/// Asks rule after rule; the first that fits allows, and nothing else does.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    // Registers: 1 the question, 2 type, 3 access, 4 major, 5 minor, 0 the answer.
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const MOVE: u8 = 0xb4;
    const MOVE_REGISTER: u8 = 0xbc;
    const UNLESS: u8 = 0x55;
    const UNLESS_REGISTER: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    let at =
        |code, to: u8, from: u8, offset, immediate| Instruction { code, registers: to | from << 4, offset, immediate };
    let mut all = vec![
        at(LOAD_WORD, 2, 1, 0, 0),
        at(MOVE_REGISTER, 3, 2, 0, 0),
        at(AND, 2, 0, 0, 0xffff),
        at(SHIFT_RIGHT, 3, 0, 0, 16),
        at(LOAD_WORD, 4, 1, 4, 0),
        at(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let numbers = [(4, rule.major), (5, rule.minor)];
        let numbers: Vec<(u8, u32)> =
            numbers.into_iter().filter_map(|(register, number)| Some((register, number?))).collect();
        // Instructions that are left when the type does not fit: three for the access, one per number, two for yes.
        let mut left = 3 + i16::try_from(numbers.len()).unwrap_or(0) + 2;
        all.push(at(UNLESS, 2, 0, left, rule.kind));
        // Nothing is asked for that the rule does not give.
        left -= 3;
        all.push(at(MOVE_REGISTER, 1, 3, 0, 0));
        all.push(at(AND, 1, 0, 0, rule.access));
        all.push(at(UNLESS_REGISTER, 1, 3, left, 0));
        for (register, number) in numbers {
            left -= 1;
            all.push(at(UNLESS, register, 0, left, number.cast_signed()));
        }
        all.push(at(MOVE, 0, 0, 0, 1));
        all.push(at(EXIT, 0, 0, 0, 0));
    }
    all.push(at(MOVE, 0, 0, 0, 0));
    all.push(at(EXIT, 0, 0, 0, 0));
    all
}

#[allow(unsafe_code)]
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const CGROUP_DEVICE_PROGRAM: u32 = 15;
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        rest: [u64; 4],
    }
    let load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 4],
    };
    // SAFETY: the kernel reads the structure, the instructions and the licence, which live until the call returns; the
    // descriptor that it returns is ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>());
        let fd = nix::errno::Errno::result(fd)?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?))
    }
}

#[allow(unsafe_code)]
fn attach(folder: &File, program: &OwnedFd) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    /// Beside what those above have attached: all must agree.
    const ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        replaced: u32,
    }
    let attach = Attach {
        target: folder.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    // SAFETY: the kernel reads the structure.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    nix::errno::Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers, by running it.
    fn ask(program: &[Instruction], kind: i32, access: i32, major: i64, minor: i64) -> i64 {
        let mut registers = [0_i64; 11];
        let question = [i64::from(access << 16 | kind), major, minor];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 0xf), usize::from(pair >> 4));
            let immediate = i64::from(immediate);
            let mut jump = 0;
            match code {
                0x61 => registers[to] = question[usize::try_from(offset / 4).unwrap()],
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0xb4 => registers[to] = immediate,
                0xbc => registers[to] = registers[from],
                0x55 if registers[to] != immediate => jump = offset,
                0x5d if registers[to] != registers[from] => jump = offset,
                0x55 | 0x5d => {}
                0x95 => return registers[0],
                other => panic!("instruction {other:#x}"),
            }
            at = at + 1 + usize::try_from(jump).unwrap();
        }
    }

    #[test]
    fn what_is_listed_may_be_opened() {
        let fuse = Device {
            host: "/dev/fuse".to_owned(),
            path: "/dev/fuse".to_owned(),
            kind: 'c',
            major: 10,
            minor: 229,
            mode: 0o666,
            access: "r".to_owned(),
        };
        let program = program(&rules(&[fuse]));
        for (kind, access, major, minor, want) in [
            (CHARACTER, READ | WRITE, 1, 3, 1),
            (CHARACTER, READ, 1, 1, 0),
            (CHARACTER, READ | WRITE, 136, 77, 1),
            (CHARACTER, READ, 10, 229, 1),
            (CHARACTER, READ | WRITE, 10, 229, 0),
            (CHARACTER, READ, 10, 230, 0),
            (BLOCK, MKNOD, 8, 0, 1),
            (BLOCK, READ, 8, 0, 0),
            (BLOCK, READ, 1, 3, 0),
        ] {
            assert_eq!(ask(&program, kind, access, major, minor), want, "{kind} {access} {major}:{minor}");
        }
    }

    /// Needs root. The kernel checks every path through the program.
    #[test]
    fn the_kernel_takes_the_program() {
        load(&program(&rules(&[]))).unwrap();
    }
}
