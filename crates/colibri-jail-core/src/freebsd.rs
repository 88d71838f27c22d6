//! Command lines of jexec(8), jail(8), jls(8), kill(1) and rctl(8), as FreeBSD 15 parses them, and of
//! colibri-jail-helper, which monitors the commands of jexec(8) and jail(8).
//!
//! jexec stops parsing options at the jail's name, which cannot begin with `-`. jail(8) takes all words after
//! `command=` as the command's when the jail is described on the command line; for a jail from jail.conf(5) it would
//! pass them to a shell. No IPv6 is requested, and a jail without a request has none (sys/kern/kern_jail.c), so
//! `ip4=disable` leaves it with Unix sockets only.

use crate::{
    CommandLine, Confinement, CreatedJail, CreatedRoot, EngineProbe, EnginePrograms, EphemeralJail,
    Ip4Policy, JailEngine, JailError, JailName, JailOp, JailPath, JailUser, KernelSupport,
    LimitMechanism, Limits,
};

const JEXEC: &str = "/usr/sbin/jexec";
const JAIL: &str = "/usr/sbin/jail";
const JLS: &str = "/usr/sbin/jls";
const KILL: &str = "/bin/kill";
const HELPER: &str = "/usr/local/libexec/colibri-jail-helper";
const RCTL: &str = "/usr/bin/rctl";

/// Accounting of resources, on which rctl(8) depends.
const RCTL_SUPPORT: KernelSupport = KernelSupport {
    name: "rctl(8)",
    program: "/sbin/sysctl",
    args: &["-n", "kern.racct.enable"],
    expected: "1",
    hint: "set kern.racct.enable=1 in /boot/loader.conf and reboot (rctl(8))",
};

/// Virtual network stacks, on which jails with `allow` depend.
const VNET_SUPPORT: KernelSupport = KernelSupport {
    name: "vnet(9)",
    program: "/sbin/sysctl",
    args: &["-n", "kern.features.vimage"],
    expected: "1",
    hint: "run a kernel with options VIMAGE, as GENERIC has, or remove `allow`",
};

/// Characters with a meaning in jail.conf(5) and in lists of values. On its command line jail(8) splits `path=` at the
/// first `=` only, but other programs parse the printed description of a jail again as such text (jls(8), `-J`, rc
/// scripts). An `=` after the first is plain.
const SYNTAX: &str = ",\"'`$\\;#{}";

/// Parameters of jail(8) that take rights from every new jail. They state some defaults too, so that a later default
/// changes nothing and `colibri explain` shows them.
pub const JAIL_RESTRICTIONS: &[&str] = &[
    "securelevel=3",
    "enforce_statfs=2",
    "children.max=0",
    "allow.noset_hostname",
];

/// The engine of FreeBSD: jail(8) and jexec(8), under the monitor of colibri-jail-helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreebsdJail {
    helper: String,
    proxy: Option<JailPath>,
}

impl Default for FreebsdJail {
    fn default() -> Self {
        Self::new(HELPER)
    }
}

impl FreebsdJail {
    /// The engine's name.
    pub const NAME: &str = "freebsd";

    /// Creates an engine whose monitor is the helper at this absolute path.
    #[must_use]
    pub fn new(helper: &str) -> Self {
        Self {
            helper: helper.to_owned(),
            proxy: None,
        }
    }

    /// Sets the path of the `colibri-proxy` program. Without it, jails with `allow` are refused.
    #[must_use]
    pub fn with_proxy(mut self, proxy: JailPath) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Returns the arguments of jail(8) that create a jail for one agent, before its user and command.
    fn create_args(&self, jail: &EphemeralJail) -> Result<Vec<String>, JailError> {
        if let Some(field) = jail.sandbox.first_requested() {
            return Err(JailError::Unsupported(format!(
                "`{field}` is for sandboxes of bubblewrap; remove it, and prepare what the agent sees in the root directory of its jail"
            )));
        }
        // Without -q jail(8) may print "NAME: created" into the agent's output.
        let mut args = vec![
            "-q".to_owned(),
            "-c".to_owned(),
            format!("name={}", jail.name),
        ];
        // The monitor mounts a template there; its path has no meaning for jail(8).
        let root = jail.root();
        args.push(format!("path={}", checked(&root)?));
        match &jail.ip4 {
            // Its network contains lo0 only, on which the monitor opens the port of the proxy. jail(8) waits for
            // that before it starts the agent. Such a jail cannot have IP address parameters (jail_set(2)).
            _ if !jail.allow.is_empty() => {
                let helper = checked_word("COLIBRI_JAIL_HELPER", &self.helper)?;
                let hook = format!("{helper} await-proxy --jail {}", jail.name);
                args.extend(["vnet=new".to_owned(), format!("exec.created={hook}")]);
            }
            Ip4Policy::Addresses(_) => {
                args.extend(["ip4=new".to_owned(), format!("ip4.addr={}", jail.ip4)]);
            }
            word => args.push(format!("ip4={word}")),
        }
        if let Some(hostname) = &jail.hostname {
            args.push(format!("host.hostname={hostname}"));
        }
        args.extend(JAIL_RESTRICTIONS.iter().map(|word| (*word).to_owned()));
        Ok(args)
    }

    /// Returns the command of the helper for a verb, with the options for what an agent's jail leaves on the host.
    fn helper_command(
        &self,
        verb: &str,
        created: Option<&CreatedJail>,
        monitored: Option<&CommandLine>,
    ) -> CommandLine {
        let mut args = vec![verb.to_owned()];
        if let Some(created) = created {
            args.extend(["--jail".to_owned(), created.name.to_string()]);
            if monitored.is_some() {
                let count = created.setup_commands.to_string();
                args.extend(["--setup-commands".to_owned(), count]);
                if created.is_filtered {
                    args.extend(["--network", "filtered"].map(str::to_owned));
                }
            }
            if let Some(root) = &created.root {
                args.extend(root_options(root));
                if monitored.is_some() {
                    args.extend(mount_options(root));
                }
            }
        }
        match monitored {
            Some(command) => {
                args.push("--".to_owned());
                command.clone().wrapped_by(&self.helper, args)
            }
            None => CommandLine::unchecked(&self.helper, args),
        }
    }
}

/// Returns the helper's options for a root directory.
fn root_options(root: &CreatedRoot) -> Vec<String> {
    let option = if root.is_template {
        "--template"
    } else {
        "--root"
    };
    let mut args = vec![option.to_owned(), root.base.to_string()];
    for (option, paths) in [
        ("--writable", &root.writable),
        ("--mount-point", &root.mount_points),
    ] {
        args.extend(
            paths
                .iter()
                .flat_map(|path| [option.to_owned(), path.to_string()]),
        );
    }
    for (is_set, option, path) in [
        (root.devfs, "--devfs", "/dev"),
        (root.fdescfs, "--fdescfs", "/dev/fd"),
    ] {
        if is_set {
            args.extend([option, path].map(str::to_owned));
        }
    }
    args
}

/// Returns the helper's options for mounts.
fn mount_options(root: &CreatedRoot) -> impl Iterator<Item = String> {
    root.mounts.iter().flat_map(|mount| {
        let option = if mount.read_only {
            "--mount-ro"
        } else {
            "--mount"
        };
        [
            option.to_owned(),
            mount.source.to_string(),
            mount.target.to_string(),
        ]
    })
}

/// Returns what is created for a jail: `exec.created` is one command of jail(8). The monitor prepares the root and the mounts
/// by itself: jail(8) and nullfs follow links, which an agent with the same root could plant.
fn created(jail: &EphemeralJail) -> CreatedJail {
    let targets = jail.mounts.iter().map(|mount| &mount.target);
    let is_prepared = jail.first_root_field().is_some() || !jail.mounts.is_empty();
    CreatedJail {
        name: jail.name.clone(),
        setup_commands: usize::from(!jail.allow.is_empty()),
        is_filtered: !jail.allow.is_empty(),
        root: is_prepared.then(|| CreatedRoot {
            base: jail.path.clone(),
            is_template: jail.is_template,
            writable: jail.writable.clone(),
            mount_points: targets
                .filter(|target| jail.writable_parent(target).is_some())
                .cloned()
                .collect(),
            mounts: jail.mounts.clone(),
            devfs: jail.devfs,
            fdescfs: jail.fdescfs,
        }),
    }
}

impl JailEngine for FreebsdJail {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError> {
        match op {
            JailOp::Attach {
                name,
                user,
                workdir,
                command,
            } => {
                let mut args = Vec::new();
                if let Some(workdir) = workdir {
                    args.extend(["-d".to_owned(), workdir.to_string()]);
                }
                if let Some(user) = user {
                    args.extend(["-U".to_owned(), user_name(user)?]);
                }
                // Without -l, which would clear the environment.
                args.push(name.to_string());
                Ok(command.clone().wrapped_by(JEXEC, args))
            }
            JailOp::Create {
                jail,
                workdir,
                command,
            } => {
                if !jail.allow.is_empty() && self.proxy.is_none() {
                    return Err(JailError::no_proxy());
                }
                if let Some(field) = jail.tls_field() {
                    return Err(JailError::Unsupported(format!(
                        "`{field}` makes the proxy terminate TLS, which works in sandboxes of bubblewrap only; allow hosts without paths, and pass keys as variables"
                    )));
                }
                if let Some(masked) = jail.masked.first() {
                    return Err(JailError::Unsupported(format!(
                        "path {masked} cannot be masked in a FreeBSD jail; give a root without it as `path`"
                    )));
                }
                let mut args = self.create_args(jail)?;
                if let Some(user) = &jail.user {
                    args.push(format!("exec.jail_user={}", user_name(user)?));
                }
                let (program, agent_args) = command.clone().into_parts();
                match workdir {
                    None => args.push(format!("command={program}")),
                    // jail(8) starts the command in the jail's root and has no parameter for another directory. The
                    // shell gets the directory as an argument, never as part of its script.
                    Some(workdir) => {
                        args.push("command=/bin/sh".to_owned());
                        args.extend(["-c", "cd -- \"$0\" && exec \"$@\""].map(str::to_owned));
                        args.extend([workdir.to_string(), program]);
                    }
                }
                args.extend(agent_args);
                Ok(CommandLine::unchecked(JAIL, args))
            }
            JailOp::Signal { pids, signal, .. } => Ok(CommandLine::kill(KILL, *signal, pids)),
            // -R and not -r: this jail has no configuration with stop actions (jail(8)). jail(8) may send TERM first
            // and wait up to stop.timeout, 10 s by default, before the kernel kills the remaining processes.
            JailOp::Remove { name } => Ok(CommandLine::unchecked(
                JAIL,
                vec!["-R".to_owned(), name.to_string()],
            )),
            JailOp::Monitor { created, command } => {
                Ok(self.helper_command("monitor", created.as_ref(), Some(command)))
            }
            JailOp::Clean(created) => Ok(self.helper_command("clean", Some(created), None)),
            JailOp::List => Ok(CommandLine::unchecked(JLS, vec!["name".to_owned()])),
            JailOp::HostCommand { command, .. } => Ok(command.clone()),
        }
    }

    fn programs(&self) -> EnginePrograms {
        EnginePrograms::new(
            [JEXEC, JAIL, JLS, KILL, self.helper.as_str()],
            "install it: Colibri contains colibri-jail-helper (COLIBRI_JAIL_HELPER sets its path), FreeBSD's base system the other programs",
        )
    }

    fn pre_run(&self, op: &JailOp, limits: &Limits) -> Result<Vec<JailOp>, JailError> {
        let JailOp::Create { jail, .. } = op else {
            return Ok(Vec::new());
        };
        if !limits.has_jail_limits() {
            return Ok(Vec::new());
        }
        let mut args = vec!["-a".to_owned()];
        args.extend(rctl_rules(limits).map(|rule| format!("jail:{}:{rule}", jail.name)));
        Ok(vec![host_command("set limits", RCTL, args)])
    }

    /// Removes what a monitor that was killed left. After a run with a monitor it verifies that nothing is left.
    fn post_run(&self, op: &JailOp, _limits: &Limits) -> Result<Vec<JailOp>, JailError> {
        match op {
            JailOp::Create { jail, .. } => Ok(vec![JailOp::Clean(created(jail))]),
            _ => Ok(Vec::new()),
        }
    }

    fn monitor(&self, op: &JailOp, command: &CommandLine) -> Option<JailOp> {
        let created = match op {
            JailOp::Attach { .. } => None,
            JailOp::Create { jail, .. } => Some(created(jail)),
            _ => return None,
        };
        Some(JailOp::Monitor {
            created,
            command: command.clone(),
        })
    }

    fn outer_proxy(&self) -> Option<&JailPath> {
        self.proxy.as_ref()
    }

    fn filter_support(&self) -> Option<KernelSupport> {
        Some(VNET_SUPPORT)
    }

    fn limit_mechanism(&self, confinement: &Confinement) -> LimitMechanism {
        match confinement {
            Confinement::Ephemeral(_) => LimitMechanism::PreRun(RCTL_SUPPORT),
            _ => LimitMechanism::Unavailable {
                cause: "rctl(8) limits jails, and this agent has no dedicated jail",
                hint: "create one with `path`",
            },
        }
    }

    fn open_files_override(&self, confinement: &Confinement) -> Option<&'static str> {
        matches!(confinement, Confinement::Ephemeral(jail) if jail.user.is_some())
            .then_some("jail(8) sets it from the user's class; set it in login.conf(5)")
    }

    fn mounts_on_host(&self) -> bool {
        true
    }

    fn probe(&self, name: JailName) -> Option<EngineProbe> {
        Some(EngineProbe {
            op: JailOp::Create {
                jail: EphemeralJail::new(name, JailPath::root()),
                workdir: None,
                command: CommandLine::unchecked("/usr/bin/true", Vec::new()),
            },
            success: "a jail can be created and removed",
            failure: "a jail cannot be created",
            hint: "read the message of jail(8); if the daemon runs in a jail itself, set children.max of that jail (jail(8))",
            settings: &[],
        })
    }
}

/// Returns the rules of rctl(8): bytes of memory, number of processes, percent of one processor.
fn rctl_rules(limits: &Limits) -> impl Iterator<Item = String> {
    let memory = limits
        .memory
        .map(|memory| format!("memoryuse:deny={}", memory.0));
    let processes = limits
        .processes
        .map(|count| format!("maxproc:deny={count}"));
    let cpu = limits
        .cpu
        .map(|cpu| format!("pcpu:deny={}", cpu.0.div_ceil(10)));
    [memory, processes, cpu].into_iter().flatten()
}

fn host_command(purpose: &'static str, program: &str, args: Vec<String>) -> JailOp {
    JailOp::HostCommand {
        purpose,
        command: CommandLine::unchecked(program, args),
    }
}

/// Returns the user's name: jexec -U and exec.jail_user look names up in the jail's user table.
fn user_name(user: &JailUser) -> Result<String, JailError> {
    match user {
        JailUser::Name(name) => Ok(name.as_ref().to_owned()),
        JailUser::Id { .. } => Err(JailError::Unsupported(format!(
            "`user` {user} is a number, and jexec(8) and jail(8) take names; give the name of a user inside the jail"
        ))),
    }
}

/// Returns the path as text, if it contains no syntax of jail(8).
fn checked(path: &JailPath) -> Result<&str, JailError> {
    let text = path.as_str();
    match text
        .chars()
        .find(|c| c.is_whitespace() || SYNTAX.contains(*c))
    {
        Some(found) => {
            let problem =
                format!("contains {found:?}, which is syntax for jail(8); rename the directory");
            Err(JailError::invalid("path", text, problem))
        }
        None => Ok(text),
    }
}

/// Returns the text, if jail(8) takes it as one word of a command without a shell.
fn checked_word<'a>(what: &'static str, text: &'a str) -> Result<&'a str, JailError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    match text.chars().find(|c| !is_plain(*c)) {
        Some(found) => {
            let problem = format!(
                "contains {found:?}, which jail(8) may interpret; install the program in another directory"
            );
            Err(JailError::invalid(what, text, problem))
        }
        None => Ok(text),
    }
}
