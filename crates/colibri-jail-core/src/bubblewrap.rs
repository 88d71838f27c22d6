//! Command lines of bwrap(1): a read-only root, separate namespaces, private /proc, /dev and /tmp.
//!
//! colibri-sandbox completes the sandbox. Outside, its part `run` chooses the user and executes bwrap; inside, its part `enter`
//! is the init process, masks and protects paths, and starts the agent with a seccomp filter:
//!
//! ```text
//! [colibri-proxy run DESTINATION… --] colibri-sandbox run … -- bwrap … -- /dev/colibri-sandbox enter … -- AGENT ARG…
//! ```
//!
//! A sandbox with `allow` has no network except a proxy. colibri-proxy filters outside the sandbox; `enter` opens the port
//! where the agent finds it.

use std::collections::BTreeSet;

use crate::command::{CA_BUNDLE_DESCRIPTOR, CA_DESCRIPTOR};
use crate::{
    ArgumentLimit, CommandLine, Confinement, EngineProbe, EnginePrograms, EphemeralJail, HeldPath,
    HostSetting, HostUser, Ip4Policy, JailEngine, JailError, JailName, JailOp, JailPath, JailUser,
    LimitMechanism, Mount, NetworkRule, Protection, ProxyOptions, View,
};

const KILL: &str = "/bin/kill";
/// Path of the proxy program in a filtered sandbox: in the private /dev, over which nothing can be mounted.
const PROXY_INSIDE: &str = "/dev/colibri-proxy";
/// Path of colibri-sandbox in a sandbox, as [`PROXY_INSIDE`].
const SANDBOX_INSIDE: &str = "/dev/colibri-sandbox";
/// Path of colibri-adapter in a sandbox, as [`PROXY_INSIDE`].
const ADDED_PROGRAM_INSIDE: &str = "/dev/colibri-adapter";
/// Directory of the libraries of colibri-sandbox, for a root that may lack them.
const LIBRARIES_INSIDE: &str = "/dev/colibri-lib";
/// Capabilities that colibri-sandbox has in the namespace of bwrap, and drops: for mounts, to limit the number of user namespaces,
/// and to map the user of that namespace (user_namespaces(7)).
const CAPABILITIES: &[&str] = &["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_SETFCAP"];
/// As [`CAPABILITIES`], to open allowed loopback ports below 1024.
const BIND_CAPABILITY: &str = "CAP_NET_BIND_SERVICE";
/// Path of an empty directory in a sandbox, which covers masked directories.
pub const EMPTY_INSIDE: &str = "/dev/colibri-empty";
/// Path of the certificate of the proxy's authority in a sandbox whose TLS connections it terminates, in PEM.
pub const CA_INSIDE: &str = "/dev/colibri-ca.pem";
/// Path of the system's root certificates and that of the proxy's authority, as [`CA_INSIDE`].
pub const CA_BUNDLE_INSIDE: &str = "/dev/colibri-ca-bundle.pem";
/// Directories that are private to every sandbox.
const PRIVATE: &[&str] = &["/proc", "/dev", "/tmp"];
/// Directories of the host in the minimal view, if they exist: programs, libraries and settings.
pub const MINIMAL_VIEW: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/etc",
    "/nix/store",
    "/gnu/store",
    "/run/current-system",
    "/var/lib/ca-certificates",
];
/// Private directories of the minimal view, with their modes, besides the home directory.
const MINIMAL_PRIVATE: &[(&str, &str)] =
    &[("/tmp", "1777"), ("/var/tmp", "1777"), ("/run", "0755")];
/// Maximum size of a private directory in memory, in bytes.
const PRIVATE_SIZE: &str = "2147483648";
/// Maximum size of /dev/shm, in bytes.
const SHARED_MEMORY_SIZE: &str = "536870912";
/// Numbers of the descriptors from which bwrap reads user tables with the private user of an agent, and their paths.
const USER_TABLES: [(&str, &str); 2] = [("30", "/etc/passwd"), ("31", "/etc/group")];
/// Number of the descriptor from which bwrap mounts colibri-sandbox: the user of the agent may be unable to reach its path.
const PROGRAM_DESCRIPTOR: &str = "29";
/// Number of the first descriptor of a held path: above those that the shim and the standard library use.
const FIRST_HELD: i32 = 200;
/// Maximum number of arguments of bwrap(1), including those of the command (bubblewrap.c: MAX_ARGS).
const MAX_ARGS: usize = 9000;

/// Settings of the kernel that deny user namespaces to ordinary users (user_namespaces(7); kernels of Debian and Ubuntu).
const USER_NAMESPACE_SETTINGS: &[HostSetting] = &[
    HostSetting {
        name: "user.max_user_namespaces",
        path: "/proc/sys/user/max_user_namespaces",
        denying_value: "0",
        hint: "as root: sysctl user.max_user_namespaces=15000, and the same in /etc/sysctl.d/",
    },
    HostSetting {
        name: "kernel.unprivileged_userns_clone",
        path: "/proc/sys/kernel/unprivileged_userns_clone",
        denying_value: "0",
        hint: "as root: sysctl kernel.unprivileged_userns_clone=1, and the same in /etc/sysctl.d/",
    },
    HostSetting {
        name: "kernel.apparmor_restrict_unprivileged_userns",
        path: "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        denying_value: "1",
        hint: "give bwrap an AppArmor profile that has userns, or as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    },
];

/// Options of sandboxes: separate namespaces, end with the parent, [`NEW_SESSION`], and no capabilities, which bwrap
/// otherwise leaves to a caller who is root.
const COMMON: &[&str] = &[
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup",
    "--die-with-parent",
    NEW_SESSION,
    "--cap-drop",
    "ALL",
];

/// Option of a sandbox without a terminal to push input into (TIOCSTI, CVE-2017-5226).
const NEW_SESSION: &str = "--new-session";

/// The engine of Linux: bwrap(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bubblewrap {
    program: JailPath,
    proxy: Option<JailPath>,
    sandbox: Option<SandboxProgram>,
    user_namespaces: bool,
}

/// The program colibri-sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SandboxProgram {
    program: JailPath,
    /// The dynamic linker and the libraries of the program.
    libraries: Vec<JailPath>,
}

impl Default for Bubblewrap {
    fn default() -> Self {
        Self::new(JailPath("/usr/bin/bwrap".to_owned()))
    }
}

impl Bubblewrap {
    /// The engine's name.
    pub const NAME: &str = "bubblewrap";

    /// Creates an engine that runs `program` as bwrap(1).
    #[must_use]
    pub fn new(program: JailPath) -> Self {
        Self {
            program,
            proxy: None,
            sandbox: None,
            user_namespaces: true,
        }
    }

    /// Sets the path of the `colibri-sandbox` program, and of the dynamic linker and the libraries that it uses, the linker
    /// first. Without it, the root `/` shows everything, and the options of a sandbox are refused.
    #[must_use]
    pub fn with_sandbox(mut self, program: JailPath, libraries: Vec<JailPath>) -> Self {
        self.sandbox = Some(SandboxProgram { program, libraries });
        self
    }

    /// Sets the path of the `colibri-proxy` program. Without it, jails with `allow` are refused.
    #[must_use]
    pub fn with_proxy(mut self, proxy: JailPath) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Prevents the agent from creating user namespaces, and with them from mounting (bwrap(1), since 0.8). Mounts can make the
    /// kernel set modes that a seccomp filter does not see, for example by a copy-up of overlayfs.
    #[must_use]
    pub fn without_user_namespaces(mut self) -> Self {
        self.user_namespaces = false;
        self
    }
}

impl Bubblewrap {
    /// Returns the command that creates a sandbox.
    fn create(
        &self,
        jail: &EphemeralJail,
        workdir: Option<&JailPath>,
        command: &CommandLine,
    ) -> Result<CommandLine, JailError> {
        if let Some(field) = jail.first_root_field() {
            return Err(JailError::Unsupported(format!(
                "`{field}` is for FreeBSD jails; remove it, and give the root directory as `path`: a sandbox shows it read-only, with a private /dev and /tmp"
            )));
        }
        let proxy = self.proxy.as_ref().filter(|_| !jail.allow.is_empty());
        if proxy.is_none() && !jail.allow.is_empty() {
            return Err(JailError::no_proxy());
        }
        let completing = self.completing(jail);
        // The shim makes the agent's terminal that of the session, unless colibri-sandbox does that in a session inside.
        let keeps_session = jail.sandbox.terminal && completing.is_none();
        let mut args = Vec::with_capacity(COMMON.len());
        args.extend(
            COMMON
                .iter()
                .filter(|word| **word != NEW_SESSION || !keeps_session)
                .map(|word| (*word).to_owned()),
        );
        if !self.user_namespaces {
            args.push("--disable-userns".to_owned());
        }
        match &jail.ip4 {
            Ip4Policy::Inherit if proxy.is_none() => {}
            Ip4Policy::Inherit | Ip4Policy::Disable => args.push("--unshare-net".to_owned()),
            other => {
                return Err(JailError::Unsupported(format!(
                    "`ip4` {other} is not possible with bubblewrap; give disable for no network, or inherit for the host's network"
                )));
            }
        }
        let user = jail.user.as_ref().map(ids).transpose()?;
        let inside = match completing {
            Some(sandbox) => {
                self.add_sandbox(&mut args, jail, sandbox);
                Some(self.enter_command(jail, sandbox, workdir, user))
            }
            None => {
                if let Some(field) = jail.sandbox.first_requested() {
                    return Err(JailError::Unsupported(format!(
                        "`{field}` needs colibri-sandbox around the command of bubblewrap itself; remove `{field}`, or use the privilege backend none"
                    )));
                }
                if let Some(field) = jail.tls_field() {
                    return Err(JailError::Unsupported(format!(
                        "`{field}` makes the proxy terminate TLS, which needs colibri-sandbox around the command of bubblewrap itself; use the privilege backend none, or allow hosts without paths and credentials"
                    )));
                }
                add_plain(&mut args, jail);
                let mut enter = vec!["enter".to_owned()];
                add_loopback_ports(&mut enter, &jail.allow);
                proxy.map(|proxy| {
                    add(&mut args, &["--ro-bind", proxy.as_str(), PROXY_INSIDE]);
                    (PROXY_INSIDE.to_owned(), enter)
                })
            }
        };
        // colibri-sandbox needs the namespace in which bwrap mounts, which is its own only for this user.
        let (uid, gid) = match completing {
            Some(_) => (Some(0), Some(0)),
            None => user.unzip(),
        };
        for (option, id) in [("--uid", uid), ("--gid", gid)] {
            if let Some(id) = id {
                add(&mut args, &[option, &id.to_string()]);
            }
        }
        if let Some(hostname) = &jail.hostname {
            add(&mut args, &["--hostname", hostname.as_str()]);
        }
        // With colibri-sandbox, the working directory follows the masks.
        let workdir = workdir.filter(|_| completing.is_none());
        add(
            &mut args,
            &["--chdir", workdir.map_or("/", JailPath::as_str), "--"],
        );
        let mut command = command.clone();
        if let Some((program, words)) = inside {
            command = command.wrapped_by(&program, words);
        }
        command = command.wrapped_by(self.program.as_str(), args);
        let mut options = ProxyOptions::default();
        if let Some(sandbox) = completing {
            command = command.wrapped_by(sandbox.program.as_str(), self.run_words(jail));
            options = ProxyOptions::of(jail);
        }
        if let Some(proxy) = proxy {
            command = command.filtered_with(proxy, &jail.allow, &options);
        }
        Ok(command)
    }

    /// Returns the program that completes the sandbox of `jail`.
    fn completing(&self, jail: &EphemeralJail) -> Option<&SandboxProgram> {
        self.sandbox.as_ref().filter(|_| jail.sandbox.completed)
    }

    fn shows_minimal(&self, jail: &EphemeralJail) -> bool {
        self.completing(jail).is_some()
            && jail.path == JailPath::root()
            && jail.sandbox.view == View::Minimal
    }

    /// Adds the root, the private directories and the mounts of a sandbox that colibri-sandbox completes.
    fn add_sandbox(&self, args: &mut Vec<String>, jail: &EphemeralJail, sandbox: &SandboxProgram) {
        add(args, &["--as-pid-1"]);
        let binds = jail
            .allow
            .iter()
            .any(|rule| !rule.loopback_ports().is_empty());
        for capability in CAPABILITIES.iter().chain(binds.then_some(&BIND_CAPABILITY)) {
            add(args, &["--cap-add", capability]);
        }
        let options = &jail.sandbox;
        let minimal = self.shows_minimal(jail);
        let mut held = self.held_paths(jail).into_iter();
        let mut next_held = || {
            held.next()
                .map_or(String::new(), |held| held.descriptor.to_string())
        };
        if minimal {
            // What the host has in /run follows the private one.
            for (path, mode) in MINIMAL_PRIVATE {
                add_private(args, mode, PRIVATE_SIZE, path);
            }
            let shown = options.shown.iter().map(JailPath::as_str);
            for path in MINIMAL_VIEW.iter().copied().chain(shown) {
                add(args, &["--ro-bind-try", path, path]);
            }
        } else if jail.path == JailPath::root() {
            add(args, &["--ro-bind", "/", "/"]);
        } else {
            add(args, &["--ro-bind-fd", &next_held(), "/"]);
        }
        add(args, &["--proc", "/proc", "--dev", "/dev"]);
        if jail.path == JailPath::root() && options.host_user == HostUser::Private {
            for (descriptor, path) in USER_TABLES {
                add(
                    args,
                    &["--perms", "0444", "--ro-bind-data", descriptor, path],
                );
            }
        }
        add_private(args, "1777", SHARED_MEMORY_SIZE, "/dev/shm");
        if !minimal {
            add_private(args, "1777", PRIVATE_SIZE, "/tmp");
        }
        if let (true, None, Some(home)) = (minimal, &options.home, &options.home_path) {
            add_private(args, "0700", PRIVATE_SIZE, home.as_str());
        }
        let mounts: Vec<(String, &Mount)> = jail
            .mounts
            .iter()
            .map(|mount| (next_held(), mount))
            .collect();
        if let (Some(_), Some(home)) = (&options.home, &options.home_path) {
            add(args, &["--bind-fd", &next_held(), home.as_str()]);
        }
        for (number, (descriptor, mount)) in mounts.into_iter().enumerate() {
            let target = match self.is_staged(jail, mount) {
                true => staged_path(number),
                false => mount.target.to_string(),
            };
            let bind = if mount.read_only {
                "--ro-bind-fd"
            } else {
                "--bind-fd"
            };
            add(args, &[bind, &descriptor, &target]);
        }
        add(args, &["--ro-bind-fd", PROGRAM_DESCRIPTOR, SANDBOX_INSIDE]);
        if jail.path != JailPath::root() {
            for library in &sandbox.libraries {
                let inside = library_inside(library);
                add(args, &["--ro-bind", library.as_str(), &inside]);
            }
        }
        if jail.tls_field().is_some() {
            for (descriptor, path) in [
                (CA_DESCRIPTOR, CA_INSIDE),
                (CA_BUNDLE_DESCRIPTOR, CA_BUNDLE_INSIDE),
            ] {
                let descriptor = descriptor.to_string();
                add(
                    args,
                    &["--perms", "0444", "--ro-bind-data", &descriptor, path],
                );
            }
        }
        add(
            args,
            &[
                "--perms",
                "0555",
                "--dir",
                EMPTY_INSIDE,
                "--remount-ro",
                "/dev",
            ],
        );
        if minimal {
            add(args, &["--remount-ro", "/"]);
        }
    }

    /// Returns whether colibri-sandbox moves a mount to its target. bwrap would follow a link there, which an agent that may
    /// write the directory of the target can create.
    fn is_staged(&self, jail: &EphemeralJail, mount: &Mount) -> bool {
        let contains = |outer: &Mount| {
            outer.target != mount.target && mount.target.is_in(outer.target.as_str())
        };
        let private = ["/tmp", "/dev"];
        let is_private =
            self.shows_minimal(jail) || private.iter().any(|private| mount.target.is_in(private));
        !is_private || jail.mounts.iter().any(contains)
    }

    /// Returns the program and the arguments of colibri-sandbox's part `enter`, before the agent's command.
    fn enter_command(
        &self,
        jail: &EphemeralJail,
        sandbox: &SandboxProgram,
        workdir: Option<&JailPath>,
        user: Option<(u32, u32)>,
    ) -> (String, Vec<String>) {
        let options = &jail.sandbox;
        let mut words = Vec::new();
        let mut program = SANDBOX_INSIDE.to_owned();
        if jail.path != JailPath::root()
            && let Some(linker) = sandbox.libraries.first()
        {
            program = library_inside(linker);
            add(
                &mut words,
                &["--library-path", LIBRARIES_INSIDE, SANDBOX_INSIDE],
            );
        }
        add(&mut words, &["enter"]);
        if !jail.allow.is_empty() {
            add(&mut words, &["--proxy"]);
            add_loopback_ports(&mut words, &jail.allow);
        }
        if let Some((uid, gid)) = user {
            add(&mut words, &["--user", &format!("{uid}:{gid}")]);
        }
        if options.terminal {
            add(&mut words, &["--terminal"]);
        }
        if let Some(files) = options.open_files {
            add(&mut words, &["--open-files", &files.to_string()]);
        }
        if let Some(processes) = options.processes {
            add(&mut words, &["--processes", &processes.to_string()]);
        }
        for (number, mount) in jail.mounts.iter().enumerate() {
            if self.is_staged(jail, mount) {
                let staged = staged_path(number);
                add(&mut words, &["--move", &staged, mount.target.as_str()]);
            }
        }
        let mut all = |option: &str, values: &mut dyn Iterator<Item = &str>| {
            for value in values {
                add(&mut words, &[option, value]);
            }
        };
        let text = JailPath::as_str;
        all("--lift", &mut options.lifted.iter().map(|one| one.name()));
        all(
            "--mask",
            &mut jail.masked.iter().chain(&options.denied).map(text),
        );
        for (option, protection) in [
            ("--protect", Protection::Project),
            ("--protect-git", Protection::GitDirectory),
            ("--writable", Protection::Nothing),
        ] {
            let mounts = jail.mounts.iter();
            let selected =
                mounts.filter(|mount| !mount.read_only && mount.protection == protection);
            all(option, &mut selected.map(|mount| mount.target.as_str()));
        }
        all(
            "--protect-git",
            &mut options.git_directories.iter().map(text),
        );
        let private = MINIMAL_PRIVATE.iter().filter(|_| self.shows_minimal(jail));
        all("--writable", &mut private.map(|(path, _)| *path));
        all("--hide", &mut options.hidden.iter().map(text));
        all("--read-only", &mut options.read_only.iter().map(text));
        all("--unprotect", &mut options.unprotected.iter().map(text));
        all("--home", &mut options.home_path.iter().map(text));
        all("--workdir", &mut workdir.into_iter().map(text));
        add(&mut words, &["--"]);
        (program, words)
    }

    /// Returns the directories of the host in which there may be placeholders: workspaces, and the working trees of repositories in them.
    fn locked(jail: &EphemeralJail) -> BTreeSet<String> {
        let mounts = jail.mounts.iter();
        let writable = mounts
            .filter(|mount| !mount.read_only && mount.protection != Protection::Nothing)
            .map(|mount| mount.source.to_string());
        let nested = jail.sandbox.git_directories.iter().filter_map(|git| {
            let on_host = crate::host_path(&jail.mounts, std::path::Path::new(git.as_str()))?;
            let tree = match on_host.ends_with(crate::GIT_DIRECTORY) {
                true => on_host.parent()?,
                false => &on_host,
            };
            tree.to_str().map(str::to_owned)
        });
        writable.chain(nested).collect()
    }

    /// Returns the arguments of colibri-sandbox's part `run`.
    fn run_words(&self, jail: &EphemeralJail) -> Vec<String> {
        let mut words = vec!["run".to_owned()];
        match jail.sandbox.host_user {
            HostUser::Caller => {}
            HostUser::Ids { uid, gid } => add(&mut words, &["--user", &format!("{uid}:{gid}")]),
            HostUser::Private if jail.path == JailPath::root() => {
                let [(passwd, _), (group, _)] = USER_TABLES;
                add(
                    &mut words,
                    &[
                        "--private-user",
                        "--user-tables",
                        &format!("{passwd}:{group}"),
                    ],
                );
            }
            HostUser::Private => add(&mut words, &["--private-user"]),
        }
        add(&mut words, &["--program", PROGRAM_DESCRIPTOR]);
        for directory in Self::locked(jail) {
            add(&mut words, &["--lock", &directory]);
        }
        if jail.sandbox.host_user != HostUser::Caller {
            for held in self.held_paths(jail) {
                add(&mut words, &["--held", &held.descriptor.to_string()]);
            }
        }
        add(&mut words, &["--"]);
        words
    }
}

fn add(args: &mut Vec<String>, words: &[&str]) {
    args.extend(words.iter().map(|word| (*word).to_owned()));
}

/// Adds a private directory in memory.
fn add_private(args: &mut Vec<String>, mode: &str, size: &str, path: &str) {
    add(args, &["--perms", mode, "--size", size, "--tmpfs", path]);
}

/// Adds the root and the mounts of a sandbox without colibri-sandbox.
fn add_plain(args: &mut Vec<String>, jail: &EphemeralJail) {
    add(args, &["--ro-bind", jail.path.as_str(), "/"]);
    add(
        args,
        &["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"],
    );
    for mount in &jail.mounts {
        let bind = if mount.read_only {
            "--ro-bind"
        } else {
            "--bind"
        };
        add(args, &[bind, mount.source.as_str(), mount.target.as_str()]);
    }
    for masked in &jail.masked {
        add(args, &["--tmpfs", masked.as_str()]);
    }
}

/// Returns where bwrap mounts what colibri-sandbox moves to its target.
fn staged_path(number: usize) -> String {
    format!("/dev/colibri-mount-{number}")
}

/// Returns the path of a library in the sandbox.
fn library_inside(library: &JailPath) -> String {
    let name = library.as_str().rsplit('/').next().unwrap_or_default();
    format!("{LIBRARIES_INSIDE}/{name}")
}

impl JailEngine for Bubblewrap {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError> {
        match op {
            JailOp::Attach { name, .. } => Err(JailError::Unsupported(format!(
                "jail {name} cannot be entered: bubblewrap has no persistent jails; replace `name` by `path`, the root directory of a sandbox"
            ))),
            JailOp::Create {
                jail,
                workdir,
                command,
            } => self.create(jail, workdir.as_ref(), command),
            JailOp::Signal { pids, signal, .. } => Ok(CommandLine::kill(KILL, *signal, pids)),
            JailOp::Remove { .. }
            | JailOp::List
            | JailOp::HostCommand { .. }
            | JailOp::Monitor { .. }
            | JailOp::Clean(_) => Err(JailError::Unsupported(format!(
                "engine {} does not support the operation {}; use the freebsd engine, because a sandbox ends with its first process and is not listed",
                Self::NAME,
                op.kind()
            ))),
        }
    }

    fn programs(&self) -> EnginePrograms {
        let sandbox = self
            .sandbox
            .as_ref()
            .map(|sandbox| sandbox.program.as_str());
        EnginePrograms::new(
            std::iter::once(self.program.as_str()).chain(sandbox),
            "install bubblewrap (Debian and Ubuntu: apt install bubblewrap), and colibri-sandbox beside colibri-daemon",
        )
    }

    fn needs_root(&self) -> bool {
        false
    }

    fn limit_mechanism(&self, _confinement: &Confinement) -> LimitMechanism {
        LimitMechanism::Cgroup
    }

    fn masks_paths(&self) -> bool {
        true
    }

    fn private_directories(&self) -> &'static [&'static str] {
        PRIVATE
    }

    /// bwrap(1) creates mount points in private directories, and with the minimal view in the private root.
    fn creates_mount_point(&self, jail: &EphemeralJail, target: &JailPath) -> bool {
        target.is_in("/tmp")
            || self.shows_minimal(jail) && !MINIMAL_VIEW.iter().any(|shown| target.is_in(shown))
    }

    fn completes_sandbox(&self) -> bool {
        self.sandbox.is_some()
    }

    fn hidden_by_view(&self, jail: &EphemeralJail, path: &JailPath) -> bool {
        if !self.shows_minimal(jail) {
            return false;
        }
        let private = MINIMAL_PRIVATE.iter().map(|(path, _)| *path);
        let targets = jail.mounts.iter().map(|mount| &mount.target);
        let own = targets
            .chain(&jail.sandbox.shown)
            .chain(&jail.sandbox.home_path);
        let mut present = MINIMAL_VIEW
            .iter()
            .copied()
            .chain(private)
            .chain(own.map(JailPath::as_str));
        // The directories above a mount point exist too.
        let is_above = |present: &str| {
            let rest = present.strip_prefix(path.as_str().trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !MINIMAL_VIEW.iter().any(|shown| path.is_in(shown)) && !present.any(is_above)
    }

    fn cleaning_program(&self, jail: &EphemeralJail) -> Option<&JailPath> {
        self.completing(jail).map(|sandbox| &sandbox.program)
    }

    fn add_program(&self, jail: &mut EphemeralJail, program: &JailPath) -> Option<CommandLine> {
        let sandbox = self.completing(jail)?;
        let linker = sandbox.libraries.first();
        let linker = linker.filter(|_| jail.path != JailPath::root());
        let command = match linker {
            None => CommandLine::unchecked(ADDED_PROGRAM_INSIDE, Vec::new()),
            Some(linker) => {
                let words = ["--library-path", LIBRARIES_INSIDE, ADDED_PROGRAM_INSIDE];
                CommandLine::unchecked(&library_inside(linker), words.map(str::to_owned).to_vec())
            }
        };
        jail.mounts.push(Mount {
            source: program.clone(),
            target: JailPath(ADDED_PROGRAM_INSIDE.to_owned()),
            read_only: true,
            protection: Protection::Nothing,
        });
        Some(command)
    }

    fn held_paths(&self, jail: &EphemeralJail) -> Vec<HeldPath> {
        if self.completing(jail).is_none() {
            return Vec::new();
        }
        let root = (jail.path != JailPath::root()).then_some(&jail.path);
        let mounts = jail.mounts.iter().map(|mount| &mount.source);
        root.into_iter()
            .chain(mounts)
            .chain(&jail.sandbox.home)
            .zip(FIRST_HELD..)
            .map(|(path, descriptor)| HeldPath {
                descriptor,
                path: path.clone(),
            })
            .collect()
    }

    fn users_by_number(&self) -> bool {
        true
    }

    fn has_wrapper_process(&self) -> bool {
        true
    }

    fn argument_limit(&self) -> Option<ArgumentLimit> {
        Some(ArgumentLimit {
            program: "bwrap(1)",
            max: MAX_ARGS,
        })
    }

    /// Returns a probe that creates an empty sandbox: it shows whether user namespaces work.
    fn probe(&self, name: JailName) -> Option<EngineProbe> {
        Some(EngineProbe {
            op: JailOp::Create {
                jail: EphemeralJail::new(name, JailPath::root()),
                workdir: None,
                command: CommandLine::unchecked("/bin/sh", vec!["-c".to_owned(), ":".to_owned()]),
            },
            success: "a sandbox can be created: user namespaces work",
            failure: "a sandbox cannot be created",
            hint: "allow user namespaces; in a container start it with: docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined",
            settings: USER_NAMESPACE_SETTINGS,
        })
    }
}

/// Adds the option for each allowed loopback port of the host, which is open in the sandbox too.
fn add_loopback_ports(args: &mut Vec<String>, allow: &[NetworkRule]) {
    let ports: BTreeSet<u16> = allow.iter().flat_map(NetworkRule::loopback_ports).collect();
    for port in ports {
        add(args, &["--listen", &port.to_string()]);
    }
}

/// Returns the user's and the group's number. Of the names only root has the same number on every host.
fn ids(user: &JailUser) -> Result<(u32, u32), JailError> {
    match user {
        JailUser::Id { uid, gid } => Ok((*uid, gid.unwrap_or(*uid))),
        JailUser::Name(name) if name.as_ref() == "root" => Ok((0, 0)),
        JailUser::Name(_) => Err(JailError::Unsupported(format!(
            "`user` {user} is a name, and bubblewrap takes numbers; give UID or UID:GID"
        ))),
    }
}
