//! Command lines of bwrap(1): a read-only root, separate namespaces, private /proc, /dev and /tmp.
//!
//! A sandbox with `allow` has no network except a proxy. colibri-proxy runs bwrap and filters outside the sandbox;
//! inside, a second instance starts the agent and listens on the port where the agent finds the proxy.

use std::collections::BTreeSet;

use crate::{
    ArgumentLimit, CommandLine, Confinement, EngineProbe, EnginePrograms, EphemeralJail,
    HostSetting, Ip4Policy, JailEngine, JailError, JailName, JailOp, JailPath, JailUser,
    LimitMechanism, NetworkRule,
};

const KILL: &str = "/bin/kill";
/// Path of the proxy program in a filtered sandbox: in the private /dev, over which nothing can be mounted.
const PROXY_INSIDE: &str = "/dev/colibri-proxy";
/// Directories that are private to every sandbox.
const PRIVATE: &[&str] = &["/proc", "/dev", "/tmp"];
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

/// Options of every sandbox: separate namespaces, end with the parent, no terminal to push input into (TIOCSTI,
/// CVE-2017-5226), and no capabilities, which bwrap otherwise leaves to a caller who is root.
const COMMON: &[&str] = &[
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
];

/// The engine of Linux: bwrap(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bubblewrap {
    program: JailPath,
    proxy: Option<JailPath>,
    user_namespaces: bool,
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
            user_namespaces: true,
        }
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
            } => {
                if let Some(field) = jail.first_root_field() {
                    return Err(JailError::Unsupported(format!(
                        "`{field}` is for FreeBSD jails; remove it, and give the root directory as `path`: a sandbox shows it read-only, with a private /dev and /tmp"
                    )));
                }
                let proxy = self.proxy.as_ref().filter(|_| !jail.allow.is_empty());
                if proxy.is_none() && !jail.allow.is_empty() {
                    return Err(JailError::no_proxy());
                }
                let mut args: Vec<String> = COMMON.iter().map(|word| (*word).to_owned()).collect();
                if !self.user_namespaces {
                    args.push("--disable-userns".to_owned());
                }
                match &jail.ip4 {
                    Ip4Policy::Inherit if proxy.is_none() => {}
                    Ip4Policy::Inherit | Ip4Policy::Disable => {
                        args.push("--unshare-net".to_owned());
                    }
                    other => {
                        return Err(JailError::Unsupported(format!(
                            "`ip4` {other} is not possible with bubblewrap; give disable for no network, or inherit for the host's network"
                        )));
                    }
                }
                let mut options = |words: &[&str]| {
                    args.extend(words.iter().map(|word| (*word).to_owned()));
                };
                options(&["--ro-bind", jail.path.as_str(), "/"]);
                options(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
                for mount in &jail.mounts {
                    let bind = if mount.read_only {
                        "--ro-bind"
                    } else {
                        "--bind"
                    };
                    options(&[bind, mount.source.as_str(), mount.target.as_str()]);
                }
                if let Some(proxy) = proxy {
                    options(&["--ro-bind", proxy.as_str(), PROXY_INSIDE]);
                }
                for masked in &jail.masked {
                    options(&["--tmpfs", masked.as_str()]);
                }
                if let Some((uid, gid)) = jail.user.as_ref().map(ids).transpose()? {
                    options(&["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
                }
                if let Some(hostname) = &jail.hostname {
                    options(&["--hostname", hostname.as_str()]);
                }
                let workdir = workdir.as_ref().map_or("/", JailPath::as_str);
                options(&["--chdir", workdir, "--"]);
                let mut command = command.clone();
                if proxy.is_some() {
                    command = command.wrapped_by(PROXY_INSIDE, enter_arguments(&jail.allow));
                }
                command = command.wrapped_by(self.program.as_str(), args);
                if let Some(proxy) = proxy {
                    command = command.filtered(proxy, &jail.allow);
                }
                Ok(command)
            }
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
        EnginePrograms::new(
            [self.program.as_str()],
            "install bubblewrap (Debian and Ubuntu: apt install bubblewrap)",
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

    /// bwrap(1) creates mount points in the private /tmp.
    fn creates_mount_point(&self, target: &JailPath) -> bool {
        target.is_in("/tmp")
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

/// Returns the arguments of the proxy inside of a sandbox: each allowed loopback port of the host is open there too.
fn enter_arguments(allow: &[NetworkRule]) -> Vec<String> {
    let ports: BTreeSet<u16> = allow.iter().flat_map(NetworkRule::loopback_ports).collect();
    let mut args = vec!["enter".to_owned()];
    for port in ports {
        args.extend(["--listen".to_owned(), port.to_string()]);
    }
    args
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
