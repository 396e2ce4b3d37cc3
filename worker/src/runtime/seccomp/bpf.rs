//! The kernel's bytecode, as far as filters need it: what a call is answered, as instructions. Pure.

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has what filters look at; of the first argument the lower half.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENT: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// One instruction: the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(super) code: u16,
    /// How many instructions a condition skips when it is true, and when it is not.
    pub(super) jt: u8,
    pub(super) jf: u8,
    pub(super) k: u32,
}

/// What a call that the profile names is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Allowed,
    /// "Not implemented" rather than "not permitted": programs then take an older way.
    Missing,
    /// Allowed unless the first argument is this.
    Not(u32),
    /// Allowed if the first argument is one of these.
    OneOf(&'static [u32]),
    /// Allowed if the first argument has none of these bits.
    Without(u32),
}

impl Rule {
    fn verdict(self) -> Vec<Instruction> {
        let argument = load(ARGUMENT);
        match self {
            Self::Allowed => vec![answer(ALLOW)],
            Self::Missing => vec![answer(ENOSYS)],
            Self::Not(value) => vec![argument, when(EQUAL, value, 0, 1), answer(EPERM), answer(ALLOW)],
            Self::Without(bits) => vec![argument, when(ANY_BIT, bits, 0, 1), answer(EPERM), answer(ALLOW)],
            Self::OneOf(values) => {
                let allowed = values.iter().flat_map(|&value| [when(EQUAL, value, 0, 1), answer(ALLOW)]);
                [argument].into_iter().chain(allowed).chain([answer(EPERM)]).collect()
            }
        }
    }
}

/// The whole filter: `native` for calls by the architecture `arch`, `second` for those by another one that its kernel
/// takes too. No kernel calls a filter by a third; if one did, its numbers would mean something else.
///
/// The native calls are looked at first, so that the second costs them nothing.
pub(super) fn program(
    (arch, native): (u32, Vec<Instruction>),
    (other, second): (u32, Vec<Instruction>),
) -> Vec<Instruction> {
    let mut program = vec![load(ARCH), when(EQUAL, arch, 1, 0), skip(native.len())];
    program.extend(native);
    program.extend([when(EQUAL, other, 1, 0), answer(libc::SECCOMP_RET_KILL_PROCESS)]);
    program.extend(second);
    program
}

/// Fetches the call's number, for what follows.
pub(super) fn number() -> Instruction {
    load(NUMBER)
}

/// Calls of x32, which are x86_64's numbers and a bit, are left to what follows as if they came without it: they are the
/// same calls with the same first arguments. Those of which x32 has a form of its own (512 to 547) are answered here:
/// the profile allows all but two of the calls, and their numbers mean nothing without the bit.
pub(super) fn x32() -> [Instruction; 8] {
    const BIT: u32 = 0x4000_0000;
    const OWN: [u32; 2] = [512, 547];
    const KEXEC_LOAD: u32 = 528;
    const MOVE_PAGES: u32 = 533;
    [
        when(AT_LEAST, BIT, 0, 7),
        Instruction { code: AND, jt: 0, jf: 0, k: !BIT },
        when(AT_LEAST, OWN[0], 0, 5),
        when(GREATER, OWN[1], 4, 0),
        when(EQUAL, KEXEC_LOAD, 2, 0),
        when(EQUAL, MOVE_PAGES, 1, 0),
        answer(ALLOW),
        answer(EPERM),
    ]
}

/// The answers to the calls of one architecture; those past `newest` are "not implemented", others "not permitted".
pub(super) fn answers(rules: impl IntoIterator<Item = (u32, Rule)>, newest: u32) -> Vec<Instruction> {
    let mut answers = Vec::new();
    for (number, rule) in rules {
        let verdict = rule.verdict();
        let past = u8::try_from(verdict.len()).expect("a rule has a handful of values");
        answers.push(when(EQUAL, number, 0, past));
        answers.extend(verdict);
    }
    answers.extend([when(GREATER, newest, 0, 1), answer(ENOSYS), answer(EPERM)]);
    answers
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn when(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn skip(instructions: usize) -> Instruction {
    let k = u32::try_from(instructions).expect("the kernel takes 4096");
    Instruction { code: JUMP, jt: 0, jf: 0, k }
}

fn answer(k: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k }
}

/// Runs a program as the kernel would; only the instructions that filters use.
#[cfg(test)]
pub(super) fn run(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let (mut at, mut a) = (0_usize, 0_u32);
    loop {
        let op = &program[at];
        let jump = |taken: bool| usize::from(if taken { op.jt } else { op.jf });
        at += 1;
        match op.code {
            LOAD => a = u32::from_ne_bytes(data[op.k as usize..op.k as usize + 4].try_into().unwrap()),
            AND => a &= op.k,
            JUMP => at += op.k as usize,
            EQUAL => at += jump(a == op.k),
            GREATER => at += jump(a > op.k),
            AT_LEAST => at += jump(a >= op.k),
            ANY_BIT => at += jump(a & op.k != 0),
            RETURN => return op.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}
