//! What backends are given: every operation in every shape, and agents with hostile words. The same each time.

use std::fmt::Write;

use colibri_jail_core::{
    Bubblewrap, CommandLine, Ip4Policy, JailEngine, JailOp, JailSetup, Mount, Pid, Signal,
};

/// Words that like to be mistaken for something else, from plain to odd.
const WORDS: &[&str] = &[
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
/// How many commands of random words each shape is tried with.
const RANDOM: usize = 40;
const MAX_RANDOM_WORDS: u64 = 7;
const SEED: u64 = 0x5eed_c011_b213;

/// Where nothing else is like it; the first agent of each shape is this program alone.
pub(super) const FIRST_AGENT: &str = "/colibri-conformance/agent";

/// Engines, also with directories to hide.
pub(super) fn engines() -> Vec<JailEngine> {
    let hiding = Bubblewrap {
        hidden: ["/run/user", "/var/lib/hidden"]
            .iter()
            .filter_map(|path| path.parse().ok())
            .collect(),
        ..Bubblewrap::default()
    };
    vec![
        JailEngine::FreebsdJail,
        JailEngine::Bubblewrap(Bubblewrap::default()),
        JailEngine::Bubblewrap(hiding),
    ]
}

/// An operation, but for its agent.
pub(super) struct Shape(JailOp);

impl Shape {
    /// The agents to try it with; one, that is not looked at, where it has none.
    pub(super) fn agents(&self) -> Vec<CommandLine> {
        let first = command(&[FIRST_AGENT.to_owned()]);
        match self.0 {
            JailOp::Attach { .. } | JailOp::Create { .. } => {
                first.into_iter().chain(agents()).collect()
            }
            _ => first.into_iter().collect(),
        }
    }

    /// The operation with this agent.
    pub(super) fn op(&self, agent: &CommandLine) -> JailOp {
        let mut op = self.0.clone();
        if let JailOp::Attach { command, .. } | JailOp::Create { command, .. } = &mut op {
            *command = agent.clone();
        }
        op
    }
}

/// Every operation, with and without what is optional in it.
pub(super) fn shapes() -> Vec<Shape> {
    let Some(agent) = command(&[FIRST_AGENT.to_owned()]) else {
        return Vec::new();
    };
    let mut shapes = Vec::new();
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
        shapes.extend("web".parse().ok().map(|name| JailOp::Attach {
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
                shapes.push(JailOp::Create {
                    name,
                    path,
                    ip4,
                    user: user(),
                    workdir: workdir(),
                    setup: JailSetup::default(),
                    command: agent.clone(),
                });
            }
        }
    }
    // With everything that a new jail can have.
    if let (Ok(name), Ok(path), Ok(source), Ok(target), Ok(hostname)) = (
        "colibri-k3x9".parse(),
        "/srv/jail".parse(),
        "/home/dev/project".parse(),
        "/work".parse(),
        "sandbox".parse(),
    ) {
        shapes.push(JailOp::Create {
            name,
            path,
            ip4: Ip4Policy::Inherit,
            user: None,
            workdir: None,
            setup: JailSetup {
                mounts: vec![Mount {
                    source,
                    target,
                    read_only: true,
                }],
                hostname: Some(hostname),
                allow: Vec::new(),
            },
            command: agent.clone(),
        });
    }
    let pids = |pids: &[u32]| pids.iter().filter_map(|pid| Pid::new(*pid).ok()).collect();
    for (jail, numbers, signal) in [
        (None, &[4711][..], Signal::TERM),
        (Some("web"), &[4711, 815, 2_147_483_647], Signal::KILL),
    ] {
        shapes.push(JailOp::Signal {
            jail: jail.and_then(|jail| jail.parse().ok()),
            pids: pids(numbers),
            signal,
        });
    }
    shapes.extend(
        "colibri-k3x9"
            .parse()
            .ok()
            .map(|name| JailOp::Remove { name }),
    );
    shapes.push(JailOp::List);
    shapes.into_iter().map(Shape).collect()
}

/// From the simplest to the oddest, so that the first that fails is easy to read.
fn agents() -> Vec<CommandLine> {
    let program = "/bin/agent".to_owned();
    let mut agents = vec![
        vec![program.clone(), "one".to_owned()],
        vec![program.clone(), "one".to_owned(), "two".to_owned()],
    ];
    agents.extend(
        WORDS
            .iter()
            .map(|word| vec![program.clone(), (*word).to_owned()]),
    );
    agents.extend(
        WORDS
            .iter()
            .filter(|word| !word.is_empty())
            .map(|word| vec![(*word).to_owned(), "one".to_owned(), "one".to_owned()]),
    );
    agents.push(WORDS.iter().map(|word| (*word).to_owned()).collect());
    let mut random = Random(SEED);
    for _ in 0..RANDOM {
        let count = 1 + random.below(MAX_RANDOM_WORDS);
        agents.push((0..count).map(|_| random.word()).collect());
    }
    agents.iter().filter_map(|words| command(words)).collect()
}

fn command(words: &[String]) -> Option<CommandLine> {
    let (program, args) = words.split_first()?;
    CommandLine::new(program, args).ok()
}

/// SplitMix64: enough to vary words, and the same on every host.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// One of the hostile words, or two run together.
    fn word(&mut self) -> String {
        let mut word = String::new();
        for _ in 0..1 + self.below(2) {
            let place = self.below(WORDS.len() as u64);
            word.push_str(WORDS.get(place as usize).copied().unwrap_or_default());
        }
        word
    }
}

/// An operation in one line.
pub(super) fn describe(op: &JailOp, engine: &JailEngine) -> String {
    let mut line = String::new();
    let (verb, agent) = match op {
        JailOp::Attach { command, .. } => ("attach", Some(command)),
        JailOp::Create { command, .. } => ("create", Some(command)),
        JailOp::Signal { .. } => ("signal", None),
        JailOp::Remove { .. } => ("remove", None),
        JailOp::Unmount { .. } => ("unmount", None),
        JailOp::Limit { .. } => ("limit", None),
        JailOp::Unlimit { .. } => ("unlimit", None),
        JailOp::List => ("list", None),
    };
    let _ = write!(line, "{verb} on {}", engine.name());
    for (name, value) in super::judge::values(op) {
        let _ = write!(line, ", {name} {value:?}");
    }
    if let Some(agent) = agent {
        let _ = write!(line, ", agent {:?}", super::judge::words(agent));
    }
    line
}
