//! The test cases: every operation, and agents with arguments that are easily misread. They are deterministic.

use std::fmt::Write;

use std::sync::Arc;

use colibri_jail_core::{
    CommandLine, Confinement, EngineRegistry, EphemeralJail, JailConfig, JailEngine, JailOp,
    MountConfig, Pid, Signal,
};

/// Arguments that an option parser or a shell could misread, from plain to unusual.
const ARGUMENTS: &[&str] = &[
    "one",
    "two",
    "two words",
    "it's",
    "\"quoted\"",
    "$HOME",
    "$(id)",
    "`id`",
    "",
    " ",
    "-",
    "--",
    "-n",
    "-u",
    "root",
    "-uroot",
    "-c",
    "--user=root",
    "name=web",
    "command=",
    "command=/bin/sh",
    "A=B",
    "a;b",
    "a|b",
    "a&&b",
    ">x",
    "*",
    "~",
    "\\",
    "\\n",
    "%s",
    "!",
    "#",
    "tab\there",
    "line\nbreak",
    "\u{1b}[2J",
    "\u{e4}\u{1f426}",
    "/usr/bin/sudo",
    "sh",
];
/// Number of commands with random arguments for each template.
const RANDOM_COMMANDS: usize = 40;
/// Maximum number of words of a random command.
const MAX_RANDOM_WORDS: u64 = 7;
/// Seed of the random arguments.
const SEED: u64 = 0x5eed_c011_b213;

/// A program that resembles no other argument. The first agent of each template is this program without arguments.
pub(super) const FIRST_AGENT: &str = "/colibri-conformance/agent";

/// Returns the built-in engines.
pub(super) fn engines() -> Vec<Arc<dyn JailEngine>> {
    let engines = EngineRegistry::builtin();
    ["freebsd", "bubblewrap"]
        .iter()
        .filter_map(|name| engines.get(name).ok())
        .collect()
}

/// An operation whose agent is replaced in each case.
pub(super) struct Template(JailOp);

impl Template {
    /// Returns the agents of the cases. For an operation without an agent there is one, which is not used.
    pub(super) fn agents(&self) -> Vec<CommandLine> {
        let first = command(&[FIRST_AGENT.to_owned()]);
        let others = self.0.agent().map(|_| agents()).unwrap_or_default();
        first.into_iter().chain(others).collect()
    }

    /// Returns the operation with this agent.
    pub(super) fn op(&self, agent: &CommandLine) -> JailOp {
        let mut op = self.0.clone();
        if let JailOp::Attach { command, .. } | JailOp::Create { command, .. } = &mut op {
            *command = agent.clone();
        }
        op
    }
}

/// Returns every operation, with and without its optional values.
pub(super) fn templates() -> Vec<Template> {
    let Some(agent) = command(&[FIRST_AGENT.to_owned()]) else {
        return Vec::new();
    };
    let mut ops = Vec::new();
    for (user, workdir) in [
        (None, None),
        (Some("agent"), None),
        (Some("1001:1002"), None),
        (None, Some("/work here")),
        (Some("agent"), Some("/work")),
        (Some("root"), Some("/work")),
    ] {
        let user = || user.and_then(|user| user.parse().ok());
        let workdir = || workdir.and_then(|workdir| workdir.parse().ok());
        ops.extend("web".parse().ok().map(|name| JailOp::Attach {
            name,
            user: user(),
            workdir: workdir(),
            command: agent.clone(),
        }));
        for (path, ip4) in [
            ("/srv/jail", "inherit"),
            ("/", "disable"),
            ("/srv/a=b", "new"),
            ("/srv/a b", "192.0.2.7,192.0.2.8"),
        ] {
            if let (Ok(name), Ok(path), Ok(ip4)) =
                ("colibri-k3x9".parse(), path.parse(), ip4.parse())
            {
                ops.push(JailOp::Create {
                    jail: EphemeralJail {
                        ip4,
                        user: user(),
                        ..EphemeralJail::new(name, path)
                    },
                    workdir: workdir(),
                    command: agent.clone(),
                });
            }
        }
    }
    ops.extend(extended_jails().into_iter().map(|jail| JailOp::Create {
        jail,
        workdir: None,
        command: agent.clone(),
    }));
    let pids = |pids: &[u32]| pids.iter().filter_map(|pid| Pid::new(*pid).ok()).collect();
    for (jail, numbers, signal) in [
        (None, &[4711][..], Signal::TERM),
        (Some("web"), &[4711, 815, 2_147_483_647], Signal::KILL),
    ] {
        ops.push(JailOp::Signal {
            jail: jail.and_then(|jail| jail.parse().ok()),
            pids: pids(numbers),
            signal,
        });
    }
    ops.extend(
        "colibri-k3x9"
            .parse()
            .ok()
            .map(|name| JailOp::Remove { name }),
    );
    ops.push(JailOp::List);
    if let Ok(command) = CommandLine::new("/usr/bin/rctl", ["-r", "jail:colibri-k3x9"]) {
        ops.push(JailOp::HostCommand {
            purpose: "remove limits",
            command,
        });
    }
    ops.into_iter().map(Template).collect()
}

/// Returns a jail with mounts and a host name, and one with masked paths.
fn extended_jails() -> Vec<EphemeralJail> {
    let config = JailConfig {
        path: Some("/srv/jail".to_owned()),
        mounts: vec![MountConfig {
            source: "/home/dev/project".to_owned(),
            target: Some("/work".to_owned()),
            read_only: true,
        }],
        hostname: Some("sandbox".to_owned()),
        ..JailConfig::default()
    };
    let confinement = "colibri-k3x9"
        .parse()
        .and_then(|name| config.confinement(&name));
    let Ok(Confinement::Ephemeral(jail)) = confinement else {
        return Vec::new();
    };
    let masked = ["/run/user", "/var/lib/hidden"];
    let masking = EphemeralJail {
        masked: masked.iter().filter_map(|path| path.parse().ok()).collect(),
        ..EphemeralJail::new(jail.name.clone(), jail.path.clone())
    };
    vec![jail, masking]
}

/// Returns agents, from simple to unusual ones, so that the first failed case is a simple one.
fn agents() -> Vec<CommandLine> {
    let program = "/bin/agent".to_owned();
    let mut agents = vec![
        vec![program.clone(), "one".to_owned()],
        vec![program.clone(), "one".to_owned(), "two".to_owned()],
    ];
    agents.extend(
        ARGUMENTS
            .iter()
            .map(|word| vec![program.clone(), (*word).to_owned()]),
    );
    agents.extend(
        ARGUMENTS
            .iter()
            .filter(|word| !word.is_empty())
            .map(|word| vec![(*word).to_owned(), "one".to_owned(), "one".to_owned()]),
    );
    agents.push(ARGUMENTS.iter().map(|word| (*word).to_owned()).collect());
    let mut random = Random(SEED);
    for _ in 0..RANDOM_COMMANDS {
        let count = 1 + random.below(MAX_RANDOM_WORDS);
        agents.push((0..count).map(|_| random.word()).collect());
    }
    agents.iter().filter_map(|words| command(words)).collect()
}

fn command(words: &[String]) -> Option<CommandLine> {
    let (program, args) = words.split_first()?;
    CommandLine::new(program, args).ok()
}

/// The SplitMix64 generator, which returns the same numbers on every host.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Returns one of the arguments, or two concatenated.
    fn word(&mut self) -> String {
        let mut word = String::new();
        for _ in 0..1 + self.below(2) {
            let index = self.below(ARGUMENTS.len() as u64);
            word.push_str(ARGUMENTS.get(index as usize).copied().unwrap_or_default());
        }
        word
    }
}

/// Returns the operation in one line.
pub(super) fn describe(op: &JailOp, engine: &dyn JailEngine) -> String {
    let mut line = format!("{} on {}", op.kind(), engine.name());
    for (name, value) in super::judge::values(op) {
        let _ = write!(line, ", {name} {value:?}");
    }
    if let Some(agent) = op.agent() {
        let _ = write!(line, ", agent {:?}", super::judge::words(agent));
    }
    line
}
