//! Seccomp filters of Linux, as data: one denies set-user-ID and set-group-ID modes and device nodes.

/// One instruction of classic BPF, `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison is true.
    pub if_true: u8,
    /// Instructions to skip if a comparison is false.
    pub if_false: u8,
    /// Operand.
    pub value: u32,
}

/// `BPF_LD | BPF_W | BPF_ABS`: loads four bytes of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_IF_AT_LEAST: u16 = 0x35;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const JUMP_IF_ANY_BIT: u16 = 0x45;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offset of the number of the system call in `struct seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of the architecture.
const ARCHITECTURE: u32 = 4;
/// Offset of the first argument's low half on a little-endian processor; each has eight bytes.
const ARGUMENTS: u32 = 16;

/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO` with EPERM.
const DENY: u32 = 0x0005_0001;
/// `SECCOMP_RET_ERRNO` with ENOSYS.
const NOT_IMPLEMENTED: u32 = 0x0005_0026;

/// S_ISUID and S_ISGID (inode(7)).
const SET_ID: u32 = 0o6000;
/// S_IFMT (inode(7)).
const FILE_TYPE: u32 = 0o170_000;
/// S_IFCHR (inode(7)).
const CHARACTER_DEVICE: u32 = 0o020_000;
/// S_IFBLK (inode(7)).
const BLOCK_DEVICE: u32 = 0o060_000;
/// O_CREAT, and the bit that only O_TMPFILE has, on all architectures of this module (open(2)).
const CREATES: u32 = 0o100 | 0o20_000_000;
/// `__X32_SYSCALL_BIT`: calls of the x32 ABI have the architecture of x86-64.
const X32: u32 = 0x4000_0000;

/// A kind of processor, whose system calls have these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Architecture {
    /// `AUDIT_ARCH_…` of linux/audit.h.
    id: u32,
    /// System calls with a mode and its position: chmod(2), fchmod(2), fchmodat(2), creat(2).
    modes: &'static [(u32, u32)],
    /// System calls with flags of open(2), whose mode is the next argument, and the position of the flags; mq_open(3) too.
    opens: &'static [(u32, u32)],
    /// mknod(2) and mknodat(2), with the position of the mode.
    nodes: &'static [(u32, u32)],
    /// System calls that get their mode from memory, which a filter cannot read: openat2(2) and io_uring_setup(2),
    /// io_uring_enter(2), io_uring_register(2).
    opaque: &'static [u32],
}

/// The numbers of `opaque`, which are the same on all architectures.
const OPAQUE: &[u32] = &[425, 426, 427, 437];

const X86_64: Architecture = Architecture {
    id: 0xc000_003e,
    modes: &[(90, 1), (91, 1), (268, 2), (452, 2), (85, 1)],
    opens: &[(2, 1), (257, 2), (240, 1)],
    nodes: &[(133, 1), (259, 2)],
    opaque: OPAQUE,
};

const AARCH64: Architecture = Architecture {
    id: 0xc000_00b7,
    modes: &[(52, 1), (53, 2), (452, 2)],
    opens: &[(56, 2), (180, 1)],
    nodes: &[(33, 2)],
    opaque: OPAQUE,
};

/// Returns a filter that denies set-user-ID and set-group-ID modes and device nodes, for the processor of this program; `None`
/// for processors other than x86-64 and aarch64. Such a file would let other users of the host become the user who made it.
///
/// - A mode with such a bit, and the type of a device, fail with EPERM: chmod(2) and its variants, open(2) and openat(2) of a new
///   file, creat(2), mknod(2) and mknodat(2).
/// - openat2(2) and io_uring(7), whose modes a filter cannot read, fail with ENOSYS; programs then use openat(2) and read(2).
/// - A system call of another architecture, such as i386, kills the process: its numbers differ.
#[must_use]
pub fn without_set_id_files() -> Option<Vec<BpfInstruction>> {
    architecture().map(filter)
}

/// Returns a filter that kills a process for a system call of another architecture, as [`without_set_id_files`] does, and allows
/// all other calls.
#[must_use]
pub fn native_calls_only() -> Option<Vec<BpfInstruction>> {
    let mut program = native_calls(architecture()?);
    program.push(instruction(RETURN, ALLOW, 0, 0));
    Some(program)
}

fn architecture() -> Option<&'static Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Some(&X86_64),
        "aarch64" => Some(&AARCH64),
        _ => None,
    }
}

fn instruction(code: u16, value: u32, if_true: u8, if_false: u8) -> BpfInstruction {
    BpfInstruction {
        code,
        if_true,
        if_false,
        value,
    }
}

/// Returns the beginning of a filter: it kills for calls of another architecture, and loads the number of the call.
fn native_calls(architecture: &Architecture) -> Vec<BpfInstruction> {
    vec![
        instruction(LOAD, ARCHITECTURE, 0, 0),
        instruction(JUMP_IF_EQUAL, architecture.id, 1, 0),
        instruction(RETURN, KILL, 0, 0),
        instruction(LOAD, NUMBER, 0, 0),
        instruction(JUMP_IF_AT_LEAST, X32, 0, 1),
        instruction(RETURN, KILL, 0, 0),
    ]
}

fn filter(architecture: &Architecture) -> Vec<BpfInstruction> {
    let load = |offset| instruction(LOAD, offset, 0, 0);
    let argument = |position: u32| load(ARGUMENTS + 8 * position);
    let answer = |value| instruction(RETURN, value, 0, 0);
    let mut program = native_calls(architecture);
    // Each block ends with an answer, and follows a jump that skips it for other system calls.
    let mut block = |number: u32, length: u8, body: &[BpfInstruction]| {
        program.push(instruction(JUMP_IF_EQUAL, number, 0, length));
        program.extend_from_slice(body);
    };
    for &number in architecture.opaque {
        block(number, 1, &[answer(NOT_IMPLEMENTED)]);
    }
    for &(number, position) in architecture.modes {
        block(
            number,
            4,
            &[
                argument(position),
                instruction(JUMP_IF_ANY_BIT, SET_ID, 0, 1),
                answer(DENY),
                answer(ALLOW),
            ],
        );
    }
    for &(number, position) in architecture.opens {
        block(
            number,
            6,
            &[
                argument(position),
                instruction(JUMP_IF_ANY_BIT, CREATES, 0, 3),
                argument(position + 1),
                instruction(JUMP_IF_ANY_BIT, SET_ID, 0, 1),
                answer(DENY),
                answer(ALLOW),
            ],
        );
    }
    for &(number, position) in architecture.nodes {
        block(
            number,
            7,
            &[
                argument(position),
                instruction(JUMP_IF_ANY_BIT, SET_ID, 3, 0),
                instruction(AND, FILE_TYPE, 0, 0),
                instruction(JUMP_IF_EQUAL, CHARACTER_DEVICE, 1, 0),
                instruction(JUMP_IF_EQUAL, BLOCK_DEVICE, 0, 1),
                answer(DENY),
                answer(ALLOW),
            ],
        );
    }
    program.push(answer(ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Executes a filter as the kernel does (bpf(4) of FreeBSD describes the instructions).
    fn run(program: &[BpfInstruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend([0; 8]);
        for argument in arguments {
            data.extend(argument.to_le_bytes());
        }
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let BpfInstruction {
                code,
                if_true,
                if_false,
                value,
            } = program[at];
            let is_true = match code {
                LOAD => {
                    let bytes = &data[value as usize..][..4];
                    accumulator = u32::from_le_bytes(bytes.try_into().unwrap());
                    at += 1;
                    continue;
                }
                AND => {
                    accumulator &= value;
                    at += 1;
                    continue;
                }
                RETURN => return value,
                JUMP_IF_EQUAL => accumulator == value,
                JUMP_IF_AT_LEAST => accumulator >= value,
                JUMP_IF_ANY_BIT => accumulator & value != 0,
                other => panic!("code {other:#x}"),
            };
            at += 1 + usize::from(if is_true { if_true } else { if_false });
        }
    }

    fn answer(number: u32, arguments: [u64; 6]) -> u32 {
        run(&filter(&X86_64), X86_64.id, number, arguments)
    }

    #[test]
    fn modes_with_set_id_bits_are_denied() {
        let (at, path, flags) = (0xffff_ff9c_u64, 0x7fff_1234_5678, 0o101_u64);
        for (name, number, arguments, denied) in [
            ("chmod", 90, [path, 0o4755, 0, 0, 0, 0], true),
            ("chmod", 90, [path, 0o755, 0, 0, 0, 0], false),
            ("chmod, sticky", 90, [path, 0o1777, 0, 0, 0, 0], false),
            ("fchmod", 91, [3, 0o2755, 0, 0, 0, 0], true),
            ("fchmodat", 268, [at, path, 0o6755, 0, 0, 0], true),
            ("fchmodat2", 452, [at, path, 0o4000, 0, 0, 0], true),
            ("creat", 85, [path, 0o4755, 0, 0, 0, 0], true),
            ("open, new", 2, [path, flags, 0o4755, 0, 0, 0], true),
            ("open, new", 2, [path, flags, 0o644, 0, 0, 0], false),
            ("open, existing", 2, [path, 0, 0o4755, 0, 0, 0], false),
            ("openat, new", 257, [at, path, flags, 0o2755, 0, 0], true),
            (
                "O_TMPFILE",
                257,
                [at, path, 0o20_200_002, 0o4755, 0, 0],
                true,
            ),
            ("mknod, file", 133, [path, 0o104_755, 0, 0, 0, 0], true),
            ("mknod, FIFO", 133, [path, 0o010_644, 0, 0, 0, 0], false),
            ("mknod, socket", 133, [path, 0o140_644, 0, 0, 0, 0], false),
            ("mknod, disk", 133, [path, 0o060_644, 0, 0, 0, 0], true),
            ("mknodat, tty", 259, [at, path, 0o020_644, 0, 0, 0], true),
            ("mq_open", 240, [path, 0o102, 0o4600, 0, 0, 0], true),
            ("read", 0, [0, 0o4755, 0o4755, 0o4755, 0, 0], false),
            ("mkdir", 83, [path, 0o4755, 0, 0, 0, 0], false),
        ] {
            let expected = if denied { DENY } else { ALLOW };
            assert_eq!(answer(number, arguments), expected, "{name} {arguments:x?}");
        }
    }

    #[test]
    fn other_abis_and_opaque_calls_are_not_available() {
        let program = filter(&X86_64);
        let i386 = 0x4000_0003;
        assert_eq!(run(&program, i386, 15, [0; 6]), KILL);
        assert_eq!(answer(90 | X32, [0, 0o4755, 0, 0, 0, 0]), KILL);
        for number in [425, 426, 427, 437] {
            assert_eq!(answer(number, [0; 6]), NOT_IMPLEMENTED);
        }
        let arm = filter(&AARCH64);
        let answer = |number, arguments| run(&arm, AARCH64.id, number, arguments);
        assert_eq!(answer(53, [0, 0, 0o4755, 0, 0, 0]), DENY);
        assert_eq!(answer(52, [3, 0o4755, 0, 0, 0, 0]), DENY);
        assert_eq!(answer(56, [0, 0, 0o100, 0o4755, 0, 0]), DENY);
        assert_eq!(answer(33, [0, 0, 0o020_600, 0, 0, 0]), DENY);
        assert_eq!(answer(33, [0, 0, 0o010_600, 0, 0, 0]), ALLOW);
        assert_eq!(run(&arm, 0x4000_0028, 15, [0; 6]), KILL);
    }

    proptest! {
        /// The filter ends for every call, and high halves of arguments change nothing.
        #[test]
        fn random_calls_get_one_of_the_answers(
            number in 0..500_u32, low in any::<[u32; 6]>(), high in any::<[u32; 6]>(), id in prop_oneof![Just(X86_64.id), any::<u32>()],
        ) {
            let program = filter(&X86_64);
            let arguments: [u64; 6] = std::array::from_fn(|i| u64::from(high[i]) << 32 | u64::from(low[i]));
            let given = run(&program, id, number, arguments);
            prop_assert!([ALLOW, DENY, NOT_IMPLEMENTED, KILL].contains(&given));
            prop_assert_eq!(given == KILL, id != X86_64.id);
            prop_assert_eq!(given, run(&program, id, number, low.map(u64::from)));
        }
    }
}
