//! Every refusal, each with what to do instead. Values are shown escaped: they may come from anybody.

/// Why a program and its arguments cannot be a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// No program.
    #[error("the program is empty; name one to run")]
    EmptyProgram,
    /// A byte that ends strings in execve(2).
    #[error("{0} holds a NUL byte, which no command line can carry; remove it")]
    Nul(String),
}

/// Why a confinement, or one of its values, is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// The umask is not an octal permission mask.
    #[error("umask {0:?} is invalid: it is not an octal number up to 777; write it like 022")]
    Umask(String),
    /// Jail name: empty.
    #[error("jail name is empty; give a name of letters, digits, '-' and '_'")]
    NameEmpty,
    /// Jail name: jexec(8) would read it as an option.
    #[error(
        "jail name {0:?} begins with '-', so jexec would read it as an option; give a name that begins with a letter, a digit or '_'"
    )]
    NameLeadingDash(String),
    /// Jail name: jexec(8) would read it as a jail id.
    #[error(
        "jail name {0:?} is all digits, so jexec would read it as a jail id; give the jail's name"
    )]
    NameAllDigits(String),
    /// Jail name: a dot names a child jail.
    #[error(
        "jail name {0:?} holds '.', which names a child of another jail; give the name of a jail of this host's own"
    )]
    NameDot(String),
    /// Jail name: a comma separates values.
    #[error("jail name {0:?} holds ',', which separates values for jail(8); leave it out")]
    NameComma(String),
    /// Jail name: an equals sign separates a parameter from its value.
    #[error(
        "jail name {0:?} holds '=', which separates a parameter from its value for jail(8); leave it out"
    )]
    NameEquals(String),
    /// Jail name: a quote.
    #[error("jail name {0:?} holds a quote; leave it out")]
    NameQuote(String),
    /// Jail name: white space.
    #[error("jail name {0:?} holds white space; leave it out")]
    NameWhitespace(String),
    /// Jail name: NUL.
    #[error("jail name {0:?} holds a NUL byte; leave it out")]
    NameNul(String),
    /// Jail name: a control character.
    #[error("jail name {0:?} holds a control character; leave it out")]
    NameControl(String),
    /// Jail name: something else.
    #[error("jail name {name:?} holds {found:?}; use letters, digits, '-' and '_' only")]
    NameCharacter {
        /// The name.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// Jail name: longer than the kernel keeps.
    #[error("jail name of {length} bytes is too long; at most {max} are kept")]
    NameTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Path: empty.
    #[error("path is empty; give an absolute one")]
    PathEmpty,
    /// Path: relative.
    #[error("path {0:?} is relative; give it from the root, beginning with '/'")]
    PathRelative(String),
    /// Path: has other spellings.
    #[error("path {0:?} is not normal; write it without '.', '..', doubled or trailing '/'")]
    PathNotNormal(String),
    /// Path: NUL.
    #[error("path {0:?} holds a NUL byte; leave it out")]
    PathNul(String),
    /// Path: control characters.
    #[error("path {0:?} holds a control character; rename the directory")]
    PathControl(String),
    /// Path: longer than the kernel takes.
    #[error("path of {length} bytes is too long; at most {max} are possible")]
    PathTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Path: syntax for jail(8).
    #[error("path {path:?} holds {found:?}, which is syntax for jail(8); rename the directory")]
    PathSyntax {
        /// The path.
        path: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// ip4: empty.
    #[error("ip4 is empty; give inherit, disable, new, or addresses separated by ','")]
    Ip4Empty,
    /// ip4: an entry that is no address.
    #[error(
        "ip4 entry {0:?} is not an IPv4 address; give inherit, disable, new, or addresses like 192.0.2.7 separated by ','"
    )]
    Ip4Malformed(String),
    /// ip4: the same address twice.
    #[error("ip4 address {0} is given twice; give it once")]
    Ip4Duplicate(std::net::Ipv4Addr),
    /// ip4: no address of a host.
    #[error("ip4 address {0} cannot be a jail's own; give the address of an interface")]
    Ip4Unusable(std::net::Ipv4Addr),
    /// ip4 without a jail that is made.
    #[error(
        "ip4 is set when a jail is made, and jail {0} exists already: leave ip4 out, or give path without name to make one"
    )]
    Ip4WithName(crate::JailName),
    /// ip4 with nothing to apply to.
    #[error("ip4 needs a jail: give path too, or leave ip4 out")]
    Ip4WithoutJail,
    /// User: empty.
    #[error("user is empty; give a name, UID or UID:GID")]
    UserEmpty,
    /// User: reads as an option.
    #[error("user {0:?} begins with '-', which reads as an option; give a name, UID or UID:GID")]
    UserLeadingDash(String),
    /// User: longer than the system keeps.
    #[error("user name of {length} bytes is too long; at most {max} are kept")]
    UserTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// User: characters.
    #[error("user {user:?} holds {found:?}; use letters, digits, '-', '_' and '.' only")]
    UserCharacter {
        /// The user.
        user: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// User: a number that no user has.
    #[error("user id {0:?} is out of range; give 0 to 4294967294")]
    UserId(String),
    /// User with nothing to apply to.
    #[error("user needs a jail: give name or path too, or leave user out")]
    UserWithoutJail,
    /// FreeBSD looks users up by name.
    #[error(
        "user {0} is a number, and jexec and jail look users up by name; give the name of a user inside the jail"
    )]
    UserNumberOnFreebsd(String),
    /// bubblewrap maps numbers.
    #[error("user {0} is a name, and bubblewrap knows numbers only; give UID or UID:GID")]
    UserNameOnBubblewrap(String),
    /// There are no persistent jails with bubblewrap.
    #[error(
        "jail {0} cannot be entered with bubblewrap, which has no persistent jails: give path, the root directory of a sandbox, instead of name"
    )]
    NameOnBubblewrap(crate::JailName),
    /// bubblewrap's network is all or nothing.
    #[error(
        "ip4 {0} is not possible with bubblewrap: give disable for no network, or inherit for the host's"
    )]
    Ip4OnBubblewrap(String),
    /// Nothing to do with bubblewrap.
    #[error(
        "{0} does nothing with bubblewrap: a sandbox ends with its first process, and has no list"
    )]
    OpOnBubblewrap(&'static str),
    /// Mount: not in one of the written forms.
    #[error(
        "mount {0:?} is not understood; give SOURCE, SOURCE:TARGET, or either with :ro behind it"
    )]
    MountMalformed(String),
    /// Mount: over the jail's root.
    #[error(
        "a mount cannot lie over the jail's root; give the root itself as path, or another target"
    )]
    MountOnRoot,
    /// Mount: where the jail has something of its own.
    #[error(
        "mount target {target} lies in {taken}, which every jail has of its own; give another target"
    )]
    MountTaken {
        /// The target.
        target: crate::JailPath,
        /// What it lies in.
        taken: &'static str,
    },
    /// Mount: two on one target.
    #[error("mount target {0} is given twice; give each its own")]
    MountTwice(crate::JailPath),
    /// Mount: too many.
    #[error("{count} mounts are too many; at most {max} are possible")]
    MountTooMany {
        /// How many.
        count: usize,
        /// The most.
        max: usize,
    },
    /// Hostname: malformed.
    #[error("hostname {0:?} is not one; use letters, digits, '-' and '.', at most 64 in all")]
    Hostname(String),
    /// A destination that is none.
    #[error(
        "destination {0:?} is not understood; give HOST:PORT, like api.example.com:443 or [2001:db8::1]:443"
    )]
    Destination(String),
    /// Values of a new jail, with one that exists already.
    #[error(
        "{value} is set when a jail is made, and jail {name} exists already: leave it out, or give path without name to make one"
    )]
    SetupWithName {
        /// What was given.
        value: &'static str,
        /// The jail.
        name: crate::JailName,
    },
    /// Values of a jail, without one.
    #[error("{0} needs a jail: give path too, or leave {0} out")]
    SetupWithoutJail(&'static str),
    /// Network both filtered and of another kind.
    #[error("allow gives the jail a filtered network, and ip4 {0} another: leave one of them out")]
    AllowWithIp4(String),
    /// Filtering takes the proxy.
    #[error(
        "allow needs the program colibri-proxy, which was not found; install it beside colibri-daemon, or leave allow out"
    )]
    AllowWithoutProxy,
    /// No filter for jails of FreeBSD.
    #[error(
        "allow is not possible with jails of FreeBSD: give ip4 addresses and filter them with pf(4), or ip4 disable for no network"
    )]
    AllowOnFreebsd,
    /// Memory: malformed.
    #[error("memory {0:?} is not understood; give bytes, or a text like 512M or 2G")]
    SizeMalformed(String),
    /// Processors: malformed.
    #[error("cpu {0:?} is not understood; give a number of processors, like 2 or 0.5")]
    CpusMalformed(String),
    /// Wall time: malformed.
    #[error(
        "wall time {0:?} is not understood; give a time like 90s, 30m or 1h30m, or a whole number of seconds"
    )]
    WallTimeMalformed(String),
    /// A limit with which nothing runs.
    #[error("limit {name} is too small for anything to run; give at least {least}")]
    LimitTooSmall {
        /// Which.
        name: &'static str,
        /// The least.
        least: String,
    },
    /// A limit that this engine cannot hold an agent to.
    #[error(
        "limit {name} cannot be enforced here: {why}; leave it out, or let the agent run without it by best_effort (--best-effort)"
    )]
    LimitUnenforced {
        /// Which.
        name: &'static str,
        /// Why.
        why: String,
    },
    /// An engine that does not exist.
    #[error("engine {0:?} is unknown; known are freebsd and bubblewrap")]
    UnknownEngine(String),
    /// A signal that does not exist, or must not be sent.
    #[error(
        "signal {0:?} is unknown; give a name like TERM, INT, HUP, QUIT, KILL, USR1, USR2, CONT, STOP or a portable number"
    )]
    UnknownSignal(String),
    /// A process id that is none.
    #[error("process id {0} cannot be an agent's; give one from 2 up")]
    BadPid(u32),
}
