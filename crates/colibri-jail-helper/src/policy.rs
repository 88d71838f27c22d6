//! The policy: which callers may do what. Its file is writable by root only. Everything that it does not allow is
//! refused; a file with an error is not used at all.

mod values;

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::io::ErrorKind;

use colibri_jail_core::{Ip4Policy, JailName, JailPath, JailUser, Signal};
use serde::Deserialize;

use crate::error::HelperError;
use crate::safe_open::{self, OpenError};
use crate::sys::Caller;
use crate::users;
use values::{AllowedCaller, AllowedProgram, AllowedRoot, JailPattern, Value, VariablePattern};

/// Maximum size of a policy, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// Maximum depth of nested brackets and dotted keys; `[[rule]]` and `[rule.limits]` have two.
const MAX_DEPTH: usize = 8;

/// The content of helper.toml.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// Whether an allowed request must be logged by syslogd(8).
    #[serde(default)]
    pub(crate) syslog: Syslog,
    #[serde(default, rename = "rule")]
    rules: Vec<Rule>,
    /// passwd(5) of the host.
    #[serde(skip)]
    passwd: String,
    /// group(5) of the host.
    #[serde(skip)]
    group: String,
}

/// What happens to a request whose decision cannot be logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Syslog {
    /// The request is refused.
    #[default]
    Required,
    /// The request is performed.
    BestEffort,
}

/// What some callers may do. A request is allowed if one rule allows all parts of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    callers: Vec<Value<AllowedCaller>>,
    /// Jails to enter, and with `roots` to create: exact names or `prefix*`.
    #[serde(default)]
    jails: Vec<Value<JailPattern>>,
    /// Root directories of created jails: exact paths, or `/tree/*` for everything below.
    #[serde(default)]
    roots: Vec<Value<AllowedRoot>>,
    /// Users inside; the first one is the default.
    #[serde(default)]
    pub(crate) users: Vec<Value<JailUser>>,
    /// Programs inside, by absolute path; `*` is any.
    #[serde(default)]
    programs: Vec<Value<AllowedProgram>>,
    /// IPv4 modes and addresses of created jails.
    #[serde(default)]
    ip4: Vec<Value<Ip4Policy>>,
    /// Variables that pass: exact names or `PREFIX*`.
    #[serde(default)]
    environment: Vec<Value<VariablePattern>>,
    /// Signals to the caller's own agents.
    #[serde(default)]
    signals: Vec<Value<Signal>>,
    #[serde(default)]
    pub(crate) limits: HelperLimits,
}

impl Rule {
    pub(crate) fn allows_jail(&self, jail: &JailName) -> bool {
        let matches = |jails: &Value<JailPattern>| jails.value.0.matches(jail.as_str());
        self.jails.iter().any(matches)
    }

    pub(crate) fn allows_root(&self, path: &JailPath) -> bool {
        self.roots.iter().any(|root| root.value.contains(path))
    }

    pub(crate) fn allows_program(&self, path: &str) -> bool {
        let allows = |program: &Value<AllowedProgram>| program.value.allows(path);
        self.programs.iter().any(allows)
    }

    pub(crate) fn allows_variable(&self, name: &str) -> bool {
        let matches = |names: &Value<VariablePattern>| names.value.0.matches(name);
        self.environment.iter().any(matches)
    }

    pub(crate) fn allows_signal(&self, signal: Signal) -> bool {
        self.signals.iter().any(|allowed| allowed.value == signal)
    }

    /// Reports whether the rule allows the mode, or every single address.
    pub(crate) fn allows_ip4(&self, ip4: &Ip4Policy) -> bool {
        let is_listed = |one: &Ip4Policy| self.ip4.iter().any(|allowed| allowed.value == *one);
        match ip4 {
            Ip4Policy::Addresses(list) => {
                let each = |address: &_| is_listed(&Ip4Policy::Addresses(vec![*address]));
                !list.is_empty() && list.iter().all(each)
            }
            mode => is_listed(mode),
        }
    }
}

/// Formats a rule as TOML without its callers, which a caller may not learn.
impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        fn list<T: Display>(f: &mut Formatter<'_>, key: &str, values: &[T]) -> fmt::Result {
            // A path may contain these two; no value contains a control character.
            let escaped = |value: &T| value.to_string().replace('\\', r"\\").replace('"', "\\\"");
            let quoted = values.iter().map(|value| format!("\"{}\"", escaped(value)));
            let values: Vec<_> = quoted.collect();
            writeln!(f, "{key} = [{}]", values.join(", "))
        }
        list(f, "jails", &self.jails)?;
        list(f, "roots", &self.roots)?;
        list(f, "users", &self.users)?;
        list(f, "programs", &self.programs)?;
        list(f, "ip4", &self.ip4)?;
        list(f, "environment", &self.environment)?;
        list(f, "signals", &self.signals)?;
        writeln!(f, "limits = {{ {} }}", self.limits)
    }
}

/// Resource limits of an agent (setrlimit(2)). Core files are always disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HelperLimits {
    /// Running agents of the caller, by all rules together.
    pub(crate) agents: u64,
    /// Open files of one process.
    pub(crate) open_files: u64,
    /// Processes of the user, in all jails together.
    pub(crate) processes: u64,
    /// Address space of one process, in bytes.
    pub(crate) memory: Option<u64>,
    /// Size of a file that the agent writes, in bytes.
    pub(crate) file_size: Option<u64>,
    /// CPU time of one process, in seconds.
    pub(crate) cpu_seconds: Option<u64>,
}

impl Default for HelperLimits {
    fn default() -> Self {
        Self {
            agents: 256,
            open_files: 65_536,
            processes: 4_096,
            memory: None,
            file_size: None,
            cpu_seconds: None,
        }
    }
}

impl Display for HelperLimits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let limits = [
            ("agents", Some(self.agents)),
            ("open_files", Some(self.open_files)),
            ("processes", Some(self.processes)),
            ("memory", self.memory),
            ("file_size", self.file_size),
            ("cpu_seconds", self.cpu_seconds),
        ];
        let set = limits
            .iter()
            .filter_map(|(key, value)| Some(format!("{key} = {}", (*value)?)));
        f.write_str(&set.collect::<Vec<_>>().join(", "))
    }
}

impl Policy {
    /// Reads and parses the file, which only root may be able to write.
    pub(crate) fn load(path: &str) -> Result<Self, HelperError> {
        let text = safe_open::read_root_owned(path, MAX_BYTES)
            .map_err(|error| HelperError::Policy(error.to_string()))?;
        let mut policy = Self::parse(&text)
            .map_err(|problem| HelperError::Policy(format!("cannot parse {path}: {problem}")))?;
        // Without the tables two names of one user would look different.
        let table = |path| match users::host_table(path) {
            Err(OpenError::Io(_, error)) if error.kind() == ErrorKind::NotFound => {
                Ok(String::new())
            }
            table => table.map_err(|error| HelperError::Policy(error.to_string())),
        };
        policy.passwd = table("/etc/passwd")?;
        policy.group = table("/etc/group")?;
        policy
            .check_users(&policy.passwd, &policy.group)
            .map_err(|problem| HelperError::Policy(format!("{path}: {problem}")))?;
        Ok(policy)
    }

    /// Checks that callers of different rules share no user: one caller could read, signal and imitate the agents of the other.
    /// No user of a rule may be a caller of a rule for others either. Users are compared by these passwd(5) and group(5)
    /// tables; unknown names by their text. Members of a group are not compared.
    pub(crate) fn check_users(&self, passwd: &str, group: &str) -> Result<(), String> {
        let keys: Vec<[BTreeSet<String>; 2]> = (self.rules.iter())
            .map(|rule| {
                let callers = rule.callers.iter();
                let users = rule.users.iter();
                [
                    callers
                        .flat_map(|one| one.value.keys(passwd, group))
                        .collect(),
                    users
                        .flat_map(|one| users::keys(passwd, &one.value))
                        .collect(),
                ]
            })
            .collect();
        for (number, [callers, users]) in (1..).zip(&keys) {
            for (other, [other_callers, other_users]) in (1..).zip(&keys) {
                let is_shared = |key| other_users.contains(key) || other_callers.contains(key);
                if callers != other_callers
                    && let Some(shared) = users.iter().find(|key| is_shared(*key))
                {
                    return Err(format!(
                        "rules {number} and {other} have different callers, but {shared} of rule {number} is also a user, a caller or their group in rule {other}; give each rule separate users and groups"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Parses the text of a policy.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // basic-toml recurses without a limit.
        if nesting_depth(text).is_none_or(|depth| depth > MAX_DEPTH) {
            return Err(format!(
                "unsupported multi-line string, or brackets or dotted keys nested more than {MAX_DEPTH} deep"
            ));
        }
        basic_toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Returns the rules that list this caller.
    pub(crate) fn rules_for(&self, caller: &Caller) -> Vec<&Rule> {
        self.rules_with(caller, &self.passwd, &self.group)
    }

    /// Returns the rules that list this caller by these passwd(5) and group(5) tables.
    pub(crate) fn rules_with(&self, caller: &Caller, passwd: &str, group: &str) -> Vec<&Rule> {
        let lists = |rule: &&Rule| {
            let mut callers = rule.callers.iter();
            callers.any(|allowed| allowed.value.matches(caller, passwd, group))
        };
        self.rules.iter().filter(lists).collect()
    }
}

/// Returns how deep brackets and the dotted keys of a line are nested outside of strings and comments, or none for a text with
/// a multi-line string.
fn nesting_depth(text: &str) -> Option<usize> {
    if text.contains("\"\"\"") || text.contains("'''") {
        return None;
    }
    let (mut deepest, mut depth, mut dots) = (0_usize, 0_usize, 0_usize);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            '.' => dots += 1,
            '\n' => dots = 0,
            '#' => {
                dots = 0;
                let _ = chars.by_ref().find(|c| *c == '\n');
            }
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
        deepest = deepest.max(depth + dots);
    }
    Some(deepest)
}

#[cfg(test)]
mod tests {
    use super::values::ParseValue;
    use super::*;
    use proptest::prelude::*;

    fn caller(uid: u32, groups: &[u32]) -> Caller {
        Caller {
            uid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn sample_policies_parse() {
        for sample in [
            include_str!("../helper.toml.freebsd"),
            include_str!("../helper.toml.linux"),
        ] {
            let policy = Policy::parse(sample).unwrap();
            assert_eq!(policy.syslog, Syslog::Required);
            assert!(!policy.rules.is_empty());
            assert_eq!(policy.check_users("", ""), Ok(()));
        }
    }

    #[test]
    fn different_callers_cannot_share_a_user() {
        let passwd = "c:x:1003:50::/:/bin/sh\na:x:1001:1001::/:/bin/sh\nb:x:1002:1002::/:/bin/sh\nagent:x:2001:2001::/:/bin/sh\n";
        let group = "ops:x:60:\n";
        for (first, second, accepted) in [
            (("a", "agent"), ("a", "agent"), true),
            (("a", "agent"), ("1001", "2001"), true),
            (("%ops", "agent"), ("%60", "agent"), true),
            (("a", "agent"), ("b", "2002"), true),
            (("a", "a"), ("b", "b"), true),
            (("a", "agent"), ("b", "agent"), false),
            (("a", "agent"), ("b", "2001"), false),
            (("a", "2001:7"), ("b", "2001:8"), false),
            (("a", "2001:7"), ("b", "2002:7"), false),
            (("a", "2001:1002"), ("b", "2002"), false),
            (("a", "2001:60"), ("%ops", "2002"), false),
            (("c", "2001"), ("b", "2002:50"), false),
            (("1003", "2001"), ("b", "2002:50"), false),
            (("1003", "2001"), ("b", "2002:1003"), true),
            (("a", "agent"), ("%ops", "agent"), false),
            (("a", "unknown"), ("b", "unknown"), false),
            (("a", "b"), ("b", "agent"), false),
            (("a", "agent"), ("b", "1001"), false),
        ] {
            let own = |(caller, user)| {
                format!("[[rule]]\ncallers = [\"{caller}\"]\nusers = [\"{user}\"]\n")
            };
            let policy = Policy::parse(&[own(first), own(second)].concat()).unwrap();
            let checked = policy.check_users(passwd, group);
            assert_eq!(
                checked.is_ok(),
                accepted,
                "{first:?} {second:?} {checked:?}"
            );
        }
    }

    #[test]
    fn policy_with_any_error_is_refused() {
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
    fn shown_rule_is_toml_with_the_same_values() {
        let policy = Policy::parse(
            r#"
                [[rule]]
                callers = ["7"]
                jails = ["web", "agent-*"]
                roots = ['/srv/"a"', '/srv/b\c/*']
                users = ["agent", "1001:1002"]
                programs = ["*", '/bin/\"']
                ip4 = ["disable", "192.0.2.7"]
                environment = ["LC_*"]
                signals = ["TERM"]
                limits = { agents = 1, memory = 8_000 }
            "#,
        )
        .unwrap();
        let shown = format!("[[rule]]\ncallers = [\"7\"]\n{}", policy.rules[0]);
        assert_eq!(Policy::parse(&shown), Ok(policy), "{shown}");
    }

    #[test]
    fn dots_of_separate_lines_are_not_nested() {
        let rule = "[[rule]]\ncallers = [\"a\"]\nlimits.agents = 1 # one\nlimits.memory = 2\n";
        let policy = Policy::parse(&rule.repeat(20)).unwrap();
        assert_eq!(policy.rules.len(), 20);
    }

    #[test]
    fn rule_applies_to_listed_users_and_groups() {
        let policy =
            Policy::parse("[[rule]]\ncallers = [\"colibri\", \"1002\", \"%agents\", \"%70\"]")
                .unwrap();
        let passwd = "colibri:x:1001:1001::/:/bin/sh\n";
        let group = "agents:x:60:\n";
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
                !policy.rules_with(&who, passwd, group).is_empty(),
                listed,
                "{who:?}"
            );
        }
    }

    #[test]
    fn patterns_match_exact_names_or_prefixes() {
        for (root, path, contained) in [
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
                AllowedRoot::parse_value(root)
                    .unwrap()
                    .contains(&path.parse().unwrap()),
                contained,
                "{root} {path}"
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
                JailPattern::parse_value(pattern).unwrap().0.matches(name),
                matched,
                "{pattern} {name}"
            );
        }
        for (pattern, name, matched) in [
            ("PATH", "PATH", true),
            ("PATH", "PATH2", false),
            ("LC_*", "LC_ALL", true),
            ("LC_*", "LANG", false),
            ("*", "ANY", true),
        ] {
            let parsed = VariablePattern::parse_value(pattern).unwrap();
            assert_eq!(parsed.0.matches(name), matched, "{pattern} {name}");
        }
    }

    #[test]
    fn forbidden_variable_patterns_are_refused() {
        for bad in [
            "LD_*",
            "LD_PRELOAD",
            "MALLOC_*",
            "ENV",
            "A=B",
            "a b",
            "",
            "*A",
            "A*B*",
        ] {
            assert!(VariablePattern::parse_value(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn random_policies_do_not_break_the_parser(text in prop_oneof![
            ".{0,200}",
            "(\\[\\[?rule\\]?\\]|callers|jails|limits| = |\\[|\\]|\"|a|1|\n|,|#|\\\\|'){0,40}",
        ]) {
            let _ = Policy::parse(&text);
        }

        #[test]
        fn deep_nesting_is_an_error(
            depth in 0..20_000_usize,
            before in prop::sample::select(vec!["", "'\\'\nb = ", "\"\\\"\"\nb = ", "# [\"\nb = "]),
            open in prop::sample::select(vec!["[", "[\n", "[#]\n", "[']',", "{a="]),
        ) {
            let text = format!("a = {before}{}", open.repeat(depth));
            prop_assert!(Policy::parse(&text).is_err());
        }

        #[test]
        fn long_dotted_key_is_refused_before_parsing(
            depth in 9..20_000_usize,
            key in prop::sample::select(vec!["[rule", "[[rule", "limits = {a", "limits", "[\"#\"", "\"#\"", "'\"'"]),
            part in prop::sample::select(vec![".a", " . a", ".\"[\"", ".''"]),
        ) {
            let text = format!("a = 1 # '\n{key}{}", part.repeat(depth));
            prop_assert!(nesting_depth(&text).is_some_and(|found| found > MAX_DEPTH));
            prop_assert!(Policy::parse(&text).is_err());
        }
    }
}
