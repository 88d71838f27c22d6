//! The restrictions of the agent's process: seccomp(2) and landlock(7).

use std::io;
use std::path::{Path, PathBuf};

use colibri_jail_core::{BpfInstruction, Restriction, native_calls_only, without_set_id_files};
use landlock::{
    ABI, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope,
};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::options::Enter;
use crate::{SandboxError, cannot};

/// Private directories and files that every agent may write, besides its writable mounts.
const WRITABLE: &[&str] = &["/dev", "/proc", "/tmp"];
/// Bits of the second argument of socket(2) that are the type; others are flags.
const SOCKET_TYPES: u64 = 0xf;
/// First version of the Landlock ABI that controls connections to sockets in files.
const ABI_OF_UNIX_SOCKETS: u32 = 9;
/// First version of the Landlock ABI with scopes of abstract sockets and signals.
const ABI_OF_SCOPES: u32 = 6;

/// Number of open_tree_attr(2), since Linux 6.15; the same on all architectures of Rust with the number table of 5.1.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// Rules by the number of the system call; without rules, the call always matches.
type CallRules = Vec<(i64, Vec<SeccompRule>)>;

/// What an agent's process applies to itself before it executes the agent.
pub(crate) struct Confinement {
    filters: Vec<BpfProgram>,
    ruleset: Option<RulesetCreated>,
}

impl Confinement {
    /// Compiles the restrictions that are not lifted.
    pub(crate) fn prepare(options: &Enter) -> Result<Self, SandboxError> {
        let abi = match options.applies(Restriction::Landlock) {
            true => colibri_sys::kernel::landlock_abi(),
            false => 0,
        };
        let ruleset = (abi > 0)
            .then(|| ruleset(options, abi).map_err(cannot("prepare Landlock")))
            .transpose()?;
        let landlock_controls_sockets = abi >= ABI_OF_UNIX_SOCKETS;
        let filters = filters(options, landlock_controls_sockets)
            .map_err(cannot("compile the seccomp filter"))?;
        Ok(Self { filters, ruleset })
    }

    /// Applies all restrictions to this thread. They hold for every program that it executes.
    pub(crate) fn apply(&mut self) -> io::Result<()> {
        if let Some(ruleset) = self.ruleset.take() {
            ruleset.restrict_self().map_err(io::Error::other)?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter(filter).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Returns a ruleset that denies writes outside of the writable directories.
fn ruleset(options: &Enter, abi: u32) -> Result<RulesetCreated, Box<dyn std::error::Error>> {
    let writes = AccessFs::from_write(ABI::V3);
    let mut handled: BitFlags<AccessFs> = writes;
    let sockets = options.applies(Restriction::UnixSockets);
    if sockets && abi >= ABI_OF_UNIX_SOCKETS {
        handled |= AccessFs::ResolveUnix;
    }
    let mut ruleset = Ruleset::default().handle_access(handled)?;
    if abi >= ABI_OF_SCOPES {
        ruleset = ruleset.scope(Scope::Signal)?;
        if sockets {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
        }
    }
    let mut ruleset = ruleset.create()?;
    let fixed = WRITABLE.iter().map(Path::new);
    let given = options
        .protected
        .iter()
        .chain(&options.protected_git)
        .chain(&options.writable)
        .chain(&options.home)
        .map(PathBuf::as_path);
    for path in fixed.chain(given) {
        // A missing one needs no rule.
        let Ok(file) = PathFd::new(path) else {
            continue;
        };
        let allowed = if path.is_dir() {
            writes
        } else {
            writes & AccessFs::from_file(ABI::V3)
        };
        ruleset = ruleset.add_rule(PathBeneath::new(file, allowed))?;
    }
    Ok(ruleset)
}

/// Returns the filters for all restrictions that are not lifted.
fn filters(
    options: &Enter,
    landlock_controls_sockets: bool,
) -> Result<Vec<BpfProgram>, Box<dyn std::error::Error>> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let compile = |rules: CallRules, errno: Errno| {
        let errno = u32::try_from(errno.raw_os_error()).unwrap_or_default();
        let (mismatch, matching) = (SeccompAction::Allow, SeccompAction::Errno(errno));
        SeccompFilter::new(
            rules.into_iter().collect(),
            mismatch,
            matching,
            architecture,
        )
        .and_then(BpfProgram::try_from)
    };
    let always = |numbers: &[libc::c_long]| -> CallRules {
        numbers.iter().map(|number| (*number, Vec::new())).collect()
    };
    let mut denied = Vec::new();
    let mut missing = Vec::new();
    // Calls whose arguments are in memory, which a filter cannot read, look missing, so that programs use older ones.
    if options.applies(Restriction::IoUring) {
        missing.extend(always(&[
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ]));
    }
    if options.applies(Restriction::Keyrings) {
        denied.extend(always(&[
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_keyctl,
        ]));
    }
    if options.applies(Restriction::KernelInterfaces) {
        denied.extend(always(&[
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_bpf,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_reboot,
            libc::SYS_syslog,
            libc::SYS_open_by_handle_at,
            libc::SYS_fanotify_init,
            libc::SYS_vhangup,
        ]));
    }
    if options.applies(Restriction::UserNamespaces) {
        denied.extend(always(&[
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
        ]));
        missing.extend(always(&[
            libc::SYS_clone3,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            OPEN_TREE_ATTR,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_fsmount,
            libc::SYS_fsconfig,
        ]));
        let new_user = u64::try_from(libc::CLONE_NEWUSER)?;
        // The flags are the first argument on all architectures but s390 and CRIS, which seccompiler lacks.
        for number in [libc::SYS_clone, libc::SYS_unshare] {
            denied.push((
                number,
                vec![rule(&[masked(0, new_user, libc::CLONE_NEWUSER)?])?],
            ));
        }
    }
    // The init process has the user of the agent, and a lease delays the writes of others (fcntl(2)).
    denied.push((libc::SYS_prlimit64, vec![rule(&[equal(0, 1)?])?]));
    denied.push((libc::SYS_fcntl, vec![rule(&[equal(1, libc::F_SETLEASE)?])?]));
    if options.applies(Restriction::TerminalInput) {
        let requests = [libc::TIOCSTI, libc::TIOCLINUX];
        let rules = requests.iter().map(|request| rule(&[equal(1, *request)?]));
        denied.push((libc::SYS_ioctl, rules.collect::<Result<_, _>>()?));
    }
    denied.extend(socket_rules(options, landlock_controls_sockets)?);
    let mut filters = vec![
        compile(denied, Errno::PERM)?,
        compile(missing, Errno::NOSYS)?,
    ];
    let own = match options.applies(Restriction::SetIdFiles) {
        true => without_set_id_files(),
        false => native_calls_only(),
    };
    let own = own.ok_or("no filter for this processor")?;
    filters.push(own.iter().map(instruction).collect());
    Ok(filters)
}

/// Returns the rules for socket(2) and socketpair(2).
fn socket_rules(
    options: &Enter,
    landlock_controls_sockets: bool,
) -> Result<CallRules, Box<dyn std::error::Error>> {
    let (mut refused, mut pairs) = (Vec::new(), Vec::new());
    if options.applies(Restriction::UnixSockets) && !landlock_controls_sockets {
        // Pairs of streams remain: they cannot be connected to an address, which one of datagrams can.
        refused.push(rule(&[equal(0, libc::AF_UNIX)?])?);
        for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
            pairs.push(rule(&[masked(1, SOCKET_TYPES, kind)?])?);
        }
    }
    if options.applies(Restriction::SocketFamilies) {
        let allowed = [
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
        ];
        let others: Vec<_> = allowed
            .iter()
            .map(|family| different(0, *family))
            .collect::<Result<_, _>>()?;
        refused.push(rule(&others)?);
        refused.push(rule(&[
            equal(0, libc::AF_NETLINK)?,
            different(2, libc::NETLINK_ROUTE)?,
        ])?);
        pairs.push(rule(&[different(0, libc::AF_UNIX)?])?);
    }
    let calls = [(libc::SYS_socket, refused), (libc::SYS_socketpair, pairs)];
    Ok(calls
        .into_iter()
        .filter(|(_, rules)| !rules.is_empty())
        .collect())
}

type ConditionResult = Result<SeccompCondition, Box<dyn std::error::Error>>;

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, Box<dyn std::error::Error>> {
    Ok(SeccompRule::new(conditions.to_vec())?)
}

/// The kernel reads these arguments as 32-bit numbers.
fn equal(position: u8, value: impl TryInto<i64>) -> ConditionResult {
    condition(position, SeccompCmpOp::Eq, value)
}

fn different(position: u8, value: impl TryInto<i64>) -> ConditionResult {
    condition(position, SeccompCmpOp::Ne, value)
}

fn condition(position: u8, operator: SeccompCmpOp, value: impl TryInto<i64>) -> ConditionResult {
    let value = value.try_into().map_err(|_| "a number is out of range")?;
    let value = u64::from(u32::try_from(value)?);
    Ok(SeccompCondition::new(
        position,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}

fn masked(position: u8, mask: u64, value: impl TryInto<i64>) -> ConditionResult {
    condition(position, SeccompCmpOp::MaskedEq(mask), value)
}

fn instruction(instruction: &BpfInstruction) -> sock_filter {
    sock_filter {
        code: instruction.code,
        jt: instruction.if_true,
        jf: instruction.if_false,
        k: instruction.value,
    }
}
