//! The policy: which callers may do what. Read from a file that only root writes; what it does not say is not
//! allowed, and what it says in a way that is not understood makes all of it unusable.

mod values;

use std::fmt;

use colibri_jail_core::{JailPath, JailUser};
use serde::Deserialize;

pub(crate) use values::{
    Ip4, Pattern, Program, SignalName, Tree, User, Who, allows_ip4, from_text,
};

use crate::environment::Variable;
use crate::place::{self, PlaceError};
use crate::sys::Caller;
use crate::users;

/// Far more than a policy needs.
const LONGEST: u64 = 64 << 10;

/// Brackets in each other; `[[rule]]` is two.
const DEEPEST: usize = 8;

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{path}: {problem}")]
    Text { path: String, problem: String },
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// Whether a decision must reach syslogd(8).
    #[serde(default)]
    pub(crate) syslog: Syslog,
    #[serde(default, rename = "rule")]
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Syslog {
    #[default]
    Required,
    BestEffort,
}

/// What some callers may do. A request is allowed if one rule allows all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    callers: Vec<Who>,
    /// Jails to enter, and with `roots` to make, exact or as `prefix*`.
    #[serde(default)]
    pub(crate) jails: Vec<Pattern>,
    /// Root directories of jails that are made: exact, or as `/tree/*` all that is below.
    #[serde(default)]
    pub(crate) roots: Vec<Tree>,
    /// Users inside; the first one where a request names none.
    #[serde(default)]
    pub(crate) users: Vec<User>,
    /// Programs inside, by absolute path; `*` is any.
    #[serde(default)]
    pub(crate) programs: Vec<Program>,
    /// IPv4 of jails that are made.
    #[serde(default)]
    pub(crate) ip4: Vec<Ip4>,
    /// Variables that pass, exact or as `PREFIX*`.
    #[serde(default)]
    pub(crate) environment: Vec<Variable>,
    /// Signals to the caller's own agents.
    #[serde(default)]
    pub(crate) signals: Vec<SignalName>,
    #[serde(default)]
    pub(crate) limits: Limits,
}

/// As it could stand in the file, without the callers: whom else it is for is not this caller's to know.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(
            f: &mut fmt::Formatter<'_>,
            name: &str,
            values: &[T],
        ) -> fmt::Result {
            let values: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
            writeln!(f, "{name} = [{}]", values.join(", "))
        }
        list(f, "jails", &self.jails)?;
        list(f, "roots", &self.roots)?;
        list(f, "users", &self.users)?;
        list(f, "programs", &self.programs)?;
        list(f, "ip4", &self.ip4)?;
        list(f, "environment", &self.environment)?;
        list(f, "signals", &self.signals)?;
        let Limits {
            open_files,
            processes,
            memory,
            file_size,
            cpu_seconds,
        } = self.limits;
        write!(
            f,
            "limits = {{ open_files = {open_files}, processes = {processes}"
        )?;
        for (name, value) in [
            ("memory", memory),
            ("file_size", file_size),
            ("cpu_seconds", cpu_seconds),
        ] {
            if let Some(value) = value {
                write!(f, ", {name} = {value}")?;
            }
        }
        writeln!(f, " }}")
    }
}

/// Resource limits of an agent (setrlimit(2)); its core files are always off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Open files of one process.
    pub(crate) open_files: u64,
    /// Processes of its user, in all jails together.
    pub(crate) processes: u64,
    /// Address space of one process, in bytes.
    pub(crate) memory: Option<u64>,
    /// Size of a file that it writes, in bytes.
    pub(crate) file_size: Option<u64>,
    /// Processor time of one process, in seconds.
    pub(crate) cpu_seconds: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_files: 65_536,
            processes: 4_096,
            memory: None,
            file_size: None,
            cpu_seconds: None,
        }
    }
}

impl Policy {
    /// Reads the file, which must be root's alone.
    pub(crate) fn load(path: &str) -> Result<Self, PolicyError> {
        let problem = |problem: String| PolicyError::Text {
            path: path.to_owned(),
            problem,
        };
        let place: JailPath = path
            .parse()
            .map_err(|error: colibri_jail_core::JailError| problem(error.to_string()))?;
        let text = place::read_of_root(&place, LONGEST)?;
        Self::parse(&text).map_err(problem)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // The parser goes as deep as the text does; a policy has lists in tables, and no list of lists.
        if depth(text).is_none_or(|depth| depth > DEEPEST) {
            return Err(format!(
                "has a string of many lines, or brackets more than {DEEPEST} deep"
            ));
        }
        basic_toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The rules for this caller.
    pub(crate) fn of(&self, caller: &Caller) -> Vec<&Rule> {
        let groups = users::host_table("/etc/group").unwrap_or_default();
        self.of_with(caller, &|name| users::group(&groups, name), &users::resolve)
    }

    fn of_with(
        &self,
        caller: &Caller,
        group: &impl Fn(&str) -> Option<u32>,
        user: &impl Fn(&JailUser) -> Option<(u32, u32)>,
    ) -> Vec<&Rule> {
        self.rules
            .iter()
            .filter(|rule| rule.callers.iter().any(|who| who.is(caller, group, user)))
            .collect()
    }
}

/// How many brackets are open at once, outside of strings and comments; none where a string has many lines.
fn depth(text: &str) -> Option<usize> {
    if text.contains("\"\"\"") || text.contains("'''") {
        return None;
    }
    let (mut deepest, mut depth) = (0_usize, 0_usize);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            '#' => drop(chars.by_ref().find(|c| *c == '\n')),
            '"' | '\'' => {
                while let Some(inside) = chars.next() {
                    match inside {
                        '\\' if c == '"' => drop(chars.next()),
                        end if end == c || end == '\n' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    Some(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller(uid: u32, groups: &[u32]) -> Caller {
        Caller {
            uid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn the_samples_are_policies() {
        for sample in [
            include_str!("../helper.toml.freebsd"),
            include_str!("../helper.toml.linux"),
        ] {
            let policy = Policy::parse(sample).unwrap();
            assert_eq!(policy.syslog, Syslog::Required);
            assert!(!policy.rules.is_empty());
        }
    }

    #[test]
    fn what_is_not_understood_makes_all_of_it_unusable() {
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
        for bad in [
            "colour = 1",
            "syslog = \"off\"",
            "[rule]\ncallers = [\"a\"]",
            "[[rule]]\njails = [\"web\"]",
            "[[rule]]\ncallers = [\"a\"]\njail = [\"web\"]",
            "[[rule]]\ncallers = \"a\"",
            "[[rule]]\ncallers = [1001]",
            "[[rule]]\ncallers = [\"-1\"]",
            "[[rule]]\ncallers = [\"4294967295\"]",
            "[[rule]]\ncallers = [\"1:1\"]",
            "[[rule]]\ncallers = [\"%\"]",
            "[[rule]]\ncallers = [\"a\"]\njails = [\"a*b\"]",
            "[[rule]]\ncallers = [\"a\"]\njails = [\"-*\"]",
            "[[rule]]\ncallers = [\"a\"]\nroots = [\"srv\"]",
            "[[rule]]\ncallers = [\"a\"]\nroots = [\"/srv/../etc\"]",
            "[[rule]]\ncallers = [\"a\"]\nroots = [\"/srv/*/x\"]",
            "[[rule]]\ncallers = [\"a\"]\nroots = [\"/srv/a*\"]",
            "[[rule]]\ncallers = [\"a\"]\nprograms = [\"sh\"]",
            "[[rule]]\ncallers = [\"a\"]\nip4 = [\"192.0.2.1,192.0.2.2\"]",
            "[[rule]]\ncallers = [\"a\"]\nenvironment = [\"LD_*\"]",
            "[[rule]]\ncallers = [\"a\"]\nenvironment = [\"A=B\"]",
            "[[rule]]\ncallers = [\"a\"]\nsignals = [\"SIGTERM\"]",
            "[[rule]]\ncallers = [\"a\"]\nsignals = [\"9\"]",
            "[[rule]]\ncallers = [\"a\"]\n[rule.limits]\nstack = 1",
            "[[rule]]\ncallers = [\"a\"]\n[rule.limits]\nmemory = -1",
            "[[rule]]\ncallers = [\"a\"]\ncallers = [\"b\"]",
        ] {
            assert!(Policy::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_is_for_those_that_it_names() {
        let policy =
            Policy::parse("[[rule]]\ncallers = [\"colibri\", \"1002\", \"%agents\", \"%70\"]")
                .unwrap();
        let group = |name: &str| (name == "agents").then_some(60);
        let user = |user: &JailUser| match user {
            JailUser::Name(name) => (name.as_ref() == "colibri").then_some((1001, 1001)),
            JailUser::Id { uid, .. } => Some((*uid, *uid)),
        };
        for (who, listed) in [
            (caller(1001, &[5]), true),
            (caller(1002, &[5]), true),
            (caller(1003, &[5]), false),
            (caller(1003, &[5, 60]), true),
            (caller(1003, &[70]), true),
            (caller(60, &[5]), false),
            (caller(0, &[0]), false),
        ] {
            assert_eq!(
                !policy.of_with(&who, &group, &user).is_empty(),
                listed,
                "{who:?}"
            );
        }
    }

    #[test]
    fn trees_hold_what_is_below_them_and_nothing_beside() {
        for (tree, path, held) in [
            ("/srv/a", "/srv/a", true),
            ("/srv/a", "/srv/a/b", false),
            ("/srv/a", "/srv", false),
            ("/srv/*", "/srv/a", true),
            ("/srv/*", "/srv/a/b", true),
            ("/srv/*", "/srv", false),
            ("/srv/*", "/srv2/a", false),
            ("/srv/*", "/", false),
            ("/*", "/srv", true),
            ("/*", "/", false),
            ("/", "/", true),
            ("/", "/srv", false),
        ] {
            assert_eq!(
                Tree::new(tree).unwrap().holds(&path.parse().unwrap()),
                held,
                "{tree} {path}"
            );
        }
        for (pattern, name, matched) in [
            ("web", "web", true),
            ("web", "web2", false),
            ("agent-*", "agent-", true),
            ("agent-*", "agent-7", true),
            ("agent-*", "agent", false),
            ("*", "anything", true),
        ] {
            assert_eq!(
                Pattern::new(pattern)
                    .unwrap()
                    .matches(&name.parse().unwrap()),
                matched,
                "{pattern} {name}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_file_breaks_the_reader(text in prop_oneof![
            ".{0,200}",
            "(\\[\\[?rule\\]?\\]|callers|jails|limits| = |\\[|\\]|\"|a|1|\n|,|#|\\\\|'){0,40}",
        ]) {
            let _ = Policy::parse(&text);
        }

        #[test]
        fn deep_nesting_is_an_answer(
            depth in 0..20_000_usize,
            before in prop::sample::select(vec!["", "'\\'\nb = ", "\"\\\"\"\nb = ", "# [\"\nb = "]),
            open in prop::sample::select(vec!["[", "[\n", "[#]\n", "[']',", "{a="]),
        ) {
            let text = format!("a = {before}{}", open.repeat(depth));
            prop_assert!(Policy::parse(&text).is_err());
        }
    }
}
