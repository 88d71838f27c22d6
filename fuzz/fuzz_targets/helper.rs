//! Parses arbitrary bytes as each input of colibri-jail-helper. The first byte selects the reader; in the seeds it is a
//! digit. The helper is a program without a library, so this target compiles its modules.

#![no_main]
#![allow(dead_code, unused_imports)] // The modules contain more than the readers.

#[path = "../../crates/colibri-jail-helper/src"]
mod program {
    pub(crate) mod authorize;
    pub(crate) mod control;
    pub(crate) mod environment;
    pub(crate) mod error;
    pub(crate) mod escape;
    pub(crate) mod paths;
    pub(crate) mod policy;
    pub(crate) mod request;
    pub(crate) mod safe_open;
    pub(crate) mod sys;
    pub(crate) mod users;

    pub(crate) mod ops {
        mod records;

        /// Checks that a record which parses has exactly this text, and the name of a file in its directory.
        pub(crate) fn check_record(text: &str) {
            let Some(record) = records::Record::parse(text) else {
                return;
            };
            assert_eq!(record.to_text(), text);
            let name = record.file_name();
            assert!(!name.is_empty() && name.len() <= 255, "{name:?}");
            assert!(!name.starts_with('.') && !name.contains('/'), "{name:?}");
        }
    }
}

// The modules import each other from the root of their crate.
use program::{
    authorize, control, environment, error, escape, ops, paths, policy, request, safe_open, sys,
    users,
};

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use authorize::{Grant, Host, Refusal};
use colibri_jail_core::{Ip4Policy, JailPath, JailUser};
use control::ControlReader;
use libfuzzer_sys::fuzz_target;
use policy::{Policy, Rule};
use request::{HelperRequest, ProgramRun, RootBase, RootRequest};
use sys::Caller;
use users::{PasswdEntry, UserIds};

/// Maximum length of a request in the log, in bytes. A message has at most 2048.
const MAX_SHOWN: usize = 1900;

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the arguments that have this meaning, without the name of the program.
fn arguments(request: &HelperRequest) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: &str, values: &[&dyn ToString]| {
        words.push(word.to_owned());
        words.extend(values.iter().map(|value| (*value).to_string()));
    };
    match request {
        HelperRequest::Attach { jail, .. } => {
            add("attach", &[]);
            add("--jail", &[jail]);
        }
        HelperRequest::Create {
            jail, is_filtered, ..
        } => {
            add("create", &[]);
            add("--jail", &[&jail.name]);
            add("--path", &[&jail.path]);
            add("--ip4", &[&jail.ip4]);
            if *is_filtered {
                add("--network", &[&"filtered"]);
            }
            jail.masked.iter().for_each(|path| add("--hide", &[path]));
        }
        HelperRequest::Signal { jail, signal, pids } => {
            add("signal", &[]);
            jail.iter().for_each(|jail| add("--jail", &[jail]));
            add("--signal", &[signal]);
            pids.iter().for_each(|pid| add("--pid", &[pid]));
        }
        HelperRequest::Remove(jail) => add("remove", &[&"--jail", jail]),
        HelperRequest::Monitor { created, .. } => {
            add("monitor", &[]);
            if let Some(created) = created {
                add("--jail", &[&created.jail]);
                add("--setup-commands", &[&created.setup_commands]);
                if created.is_filtered {
                    add("--network", &[&"filtered"]);
                }
                created
                    .root
                    .iter()
                    .for_each(|root| add_root(root, &mut add));
                for mount in &created.mounts {
                    let option = if mount.read_only {
                        "--mount-ro"
                    } else {
                        "--mount"
                    };
                    add(option, &[&mount.source, &mount.target]);
                }
            }
        }
        HelperRequest::Clean { jail, root } => {
            add("clean", &[&"--jail", jail]);
            root.iter().for_each(|root| add_root(root, &mut add));
        }
        HelperRequest::AwaitProxy(jail) => add("await-proxy", &[&"--jail", jail]),
        HelperRequest::Check => add("check", &[]),
    }
    let command = match request {
        HelperRequest::Attach { run, .. } | HelperRequest::Create { run, .. } => {
            run.user.iter().for_each(|user| add("--user", &[user]));
            run.workdir
                .iter()
                .for_each(|path| add("--workdir", &[path]));
            Some(&run.command)
        }
        HelperRequest::Monitor { command, .. } => Some(command),
        _ => None,
    };
    if let Some(command) = command {
        add("--", &[&command.program()]);
        command
            .args()
            .iter()
            .for_each(|argument| add(argument, &[]));
    }
    words
}

fn add_root(root: &RootRequest, add: &mut impl FnMut(&str, &[&dyn ToString])) {
    match &root.base {
        RootBase::Template(path) => add("--template", &[path]),
        RootBase::Existing(path) => add("--root", &[path]),
    }
    root.writable
        .iter()
        .for_each(|path| add("--writable", &[path]));
    root.mount_points
        .iter()
        .for_each(|path| add("--mount-point", &[path]));
    root.devfs.iter().for_each(|path| add("--devfs", &[path]));
    root.fdescfs
        .iter()
        .for_each(|path| add("--fdescfs", &[path]));
}

fn parse_request(words: &[Vec<u8>]) -> Option<HelperRequest> {
    let argv = [&[b"helper".to_vec()], words].concat();
    HelperRequest::parse(&argv).ok()
}

/// Checks that the meaning of a request has one form of arguments, and one line in the log.
fn check_request(words: &[Vec<u8>]) {
    let Some(request) = parse_request(words) else {
        return;
    };
    let shown = request.to_string();
    assert!(is_printable(&shown) && shown.len() <= MAX_SHOWN, "{shown}");
    let own = arguments(&request);
    let bytes: Vec<_> = own.iter().map(|word| word.clone().into_bytes()).collect();
    assert_eq!(parse_request(&bytes).as_ref(), Some(&request));
    assert_eq!(words.len(), own.len());
    for (word, own) in words.iter().zip(&own) {
        // The number of a user may have leading zeros.
        let user = |text: &str| text.parse::<JailUser>().ok();
        assert!(
            text(word) == *own || user(&text(word)).is_some_and(|word| Some(word) == user(own)),
            "{word:?} {own:?}"
        );
    }
    match &request {
        HelperRequest::Attach { jail, run } => {
            assert!(!jail.as_str().starts_with("colibri-"));
            check_candidates(run);
        }
        HelperRequest::Create { jail, run, .. } => {
            assert!(jail.name.as_str().starts_with("colibri-"));
            check_candidates(run);
        }
        HelperRequest::Signal { pids, .. } => {
            assert!(pids.iter().all(|pid| (2..=i32::MAX as u32).contains(pid)));
        }
        _ => {}
    }
}

/// Checks that a program is searched at absolute paths without `.` and `..`.
fn check_candidates(run: &ProgramRun) {
    let candidates = run.candidates();
    assert!(!candidates.is_empty());
    for path in candidates {
        let is_normal = |inside: &str| {
            !inside
                .split('/')
                .any(|part| ["", ".", ".."].contains(&part))
        };
        let inside = path.strip_prefix('/').expect("a relative path");
        assert!(inside.is_empty() || is_normal(inside), "{path:?}");
    }
}

fn caller(uid: u32) -> Caller {
    Caller {
        uid,
        groups: Vec::new(),
    }
}

/// Parses a policy, then passwd(5), group(5) and a request, separated by NUL.
fn check_policy(input: &[u8]) {
    // Shorter than 64 KiB: each name of the policy is searched in the whole table.
    let mut parts = input[..input.len().min(16 << 10)].split(|byte| *byte == 0);
    let mut next = || text(parts.next().unwrap_or_default());
    let (policy, passwd, group) = (next(), next(), next());
    let Ok(policy) = Policy::parse(&policy) else {
        return;
    };
    // The callers that the rules can name: those of the table, and numbers.
    let mut uids = BTreeSet::from([0, 7, 1001, 1002]);
    for line in passwd.lines().take(8) {
        uids.extend(users::find_user(line, |_, _| true).map(|entry| entry.ids.uid));
    }
    let rules: BTreeMap<u32, Vec<&Rule>> = uids
        .iter()
        .map(|uid| (*uid, policy.rules_with(&caller(*uid), &passwd, &group)))
        .collect();
    let mut users: BTreeMap<*const Rule, BTreeSet<u32>> = BTreeMap::new();
    for rule in rules.values().flatten() {
        users.entry(*rule).or_insert_with(|| {
            check_shown_rule(rule);
            let users = rule.users.iter();
            let ids = users.filter_map(|user| users::ids(&passwd, &user.value));
            ids.map(|ids| ids.uid).collect()
        });
    }
    if policy.check_users(&passwd, &group).is_ok() {
        check_separation(&rules, &users);
    }
    let words: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    if let Some(request) = parse_request(&words) {
        check_authorization(&rules[&7], &request);
    }
}

/// Checks that a rule is shown as TOML with the same meaning.
fn check_shown_rule(rule: &Rule) {
    let shown = rule.to_string();
    let again = Policy::parse(&format!("[[rule]]\ncallers = [\"7\"]\n{shown}"))
        .unwrap_or_else(|error| panic!("{error}\n{shown}"));
    let again = again.rules_with(&caller(7), "", "");
    let [again] = again[..] else {
        panic!("not one rule: {shown}");
    };
    assert_eq!(again.to_string(), shown);
    assert_eq!((&again.users, &again.limits), (&rule.users, &rule.limits));
}

/// Checks that two callers share no user of a rule that lists one of them only, and that neither is such a user.
fn check_separation(
    rules: &BTreeMap<u32, Vec<&Rule>>,
    users: &BTreeMap<*const Rule, BTreeSet<u32>>,
) {
    let rules: BTreeMap<u32, BTreeSet<*const Rule>> = rules
        .iter()
        .map(|(uid, rules)| {
            (
                *uid,
                rules.iter().map(|rule| ptr::from_ref(*rule)).collect(),
            )
        })
        .collect();
    for (one, rules_of_one) in &rules {
        for (other, rules_of_other) in &rules {
            let users_of_one: BTreeSet<u32> = rules_of_one
                .difference(rules_of_other)
                .flat_map(|rule| users[rule].iter().copied())
                .collect();
            let mut rules_of_other = rules_of_other.difference(rules_of_one).peekable();
            assert!(
                rules_of_other.peek().is_none() || !users_of_one.contains(other),
                "{one} {other}"
            );
            for rule in rules_of_other {
                assert!(users_of_one.is_disjoint(&users[rule]), "{one} {other}");
            }
        }
    }
}

fn find_user(user: &JailUser) -> Option<UserIds> {
    let (uid, gid) = match user.to_string().as_str() {
        "agent" => (1001, 1002),
        "root" => (0, 0),
        _ => return UserIds::numeric(user),
    };
    Some(UserIds { uid, gid })
}

/// Checks that a request is granted exactly if one rule allows every part of it.
fn check_authorization(rules: &[&Rule], request: &HelperRequest) {
    for is_linux in [true, false] {
        let host = Host {
            is_linux,
            find_user,
        };
        match request {
            HelperRequest::Create { jail, run, .. } => {
                let has_ip4 =
                    !is_linux || matches!(jail.ip4, Ip4Policy::Inherit | Ip4Policy::Disable);
                let allows = |rule: &Rule| {
                    rule.allows_jail(&jail.name)
                        && rule.allows_root(&jail.path)
                        && has_ip4
                        && rule.allows_ip4(&jail.ip4)
                        && allows_run(rule, run, is_linux)
                };
                check_answer(
                    authorize::create(rules, jail, run, &host),
                    rules,
                    allows,
                    is_linux,
                );
            }
            HelperRequest::Attach { jail, run } => {
                let allows = |rule: &Rule| {
                    !is_linux && rule.allows_jail(jail) && allows_run(rule, run, is_linux)
                };
                check_answer(
                    authorize::attach(rules, jail, run, &host),
                    rules,
                    allows,
                    is_linux,
                );
            }
            HelperRequest::Signal { jail, signal, .. } => {
                let allows = |rule: &&Rule| {
                    rule.allows_signal(*signal)
                        && jail.as_ref().is_none_or(|jail| rule.allows_jail(jail))
                };
                let answer = authorize::signal(rules, jail.as_ref(), *signal);
                assert_eq!(answer.is_ok(), rules.iter().any(allows), "{answer:?}");
            }
            _ => {}
        }
    }
}

fn allows_run(rule: &Rule, run: &ProgramRun, is_linux: bool) -> bool {
    let ids = |user: &JailUser| match is_linux {
        true => find_user(user),
        false => UserIds::numeric(user),
    };
    let Some(user) = run
        .user
        .as_ref()
        .or(rule.users.first().map(|user| &user.value))
    else {
        return false;
    };
    let is_listed = rule.users.iter().any(|listed| {
        listed.value == *user || ids(user).is_some() && ids(&listed.value) == ids(user)
    });
    let is_root =
        user.to_string() == "root" || ids(user).is_some_and(|ids| ids.uid == 0 || ids.gid == 0);
    let is_known = !is_linux || ids(user).is_some();
    let has_program = run
        .candidates()
        .iter()
        .any(|path| rule.allows_program(path));
    is_listed && is_known && !is_root && has_program
}

fn check_answer(
    answer: Result<Grant<'_>, Refusal>,
    rules: &[&Rule],
    allows: impl Fn(&Rule) -> bool,
    is_linux: bool,
) {
    assert_eq!(
        answer.is_ok(),
        rules.iter().any(|rule| allows(rule)),
        "{answer:?}"
    );
    match answer {
        Ok(grant) => {
            assert!(allows(grant.rule));
            assert!(
                grant
                    .run
                    .user
                    .as_ref()
                    .is_none_or(|user| *user == grant.user)
            );
            assert!(
                grant
                    .ids
                    .map_or(!is_linux, |ids| ids.uid != 0 && ids.gid != 0)
            );
            assert!(!grant.programs.is_empty());
            assert!(
                grant
                    .programs
                    .iter()
                    .all(|path| grant.rule.allows_program(path))
            );
        }
        Err(refusal) => assert!(is_printable(&refusal.to_string()), "{refusal}"),
    }
}

/// Looks up a name in passwd(5) and group(5): name, NUL, table.
fn check_tables(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let mut next = || text(parts.next().unwrap_or_default());
    let (name, table) = (next(), next());
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split(':').collect())
        .collect();
    let id = |text: &str| text.parse::<u32>().ok();
    let entry = users::find_user(&table, |found, _| found == name);
    let expected = lines.iter().find_map(|fields| {
        let [found, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let (uid, gid) = (id(uid)?, id(gid)?);
        let is_id = uid != u32::MAX && gid != u32::MAX;
        (found == name && is_id).then(|| PasswdEntry {
            name: name.clone(),
            ids: UserIds { uid, gid },
            home: home.to_owned(),
            shell: shell.to_owned(),
        })
    });
    assert_eq!(entry, expected);
    if let Ok(user) = name.parse::<JailUser>() {
        let by_table = expected.as_ref().map(|entry| entry.ids);
        assert_eq!(
            users::ids(&table, &user),
            UserIds::numeric(&user).or(by_table)
        );
    }
    if let Some(gid) = users::find_group(&table, &name) {
        let has_gid = |fields: &Vec<&str>| fields.get(2).and_then(|text| id(text)) == Some(gid);
        assert!(
            lines
                .iter()
                .any(|fields| fields[0] == name && has_gid(fields))
        );
    }
}

/// Reads control lines. Requests must not depend on portions, and have one form.
fn check_control(input: &[u8]) {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    let whole = ControlReader::default().push(bytes);
    let mut reader = ControlReader::default();
    let portions = bytes.chunks(usize::from(*first).max(1));
    let portions: Option<Vec<_>> = portions.map(|portion| reader.push(portion)).collect();
    assert_eq!(whole, portions.map(|requests| requests.concat()));
    let Some(requests) = whole else {
        return;
    };
    let lines: String = requests
        .iter()
        .map(|request| format!("signal {} {}\n", request.signal, request.scope))
        .collect();
    assert!(bytes.starts_with(lines.as_bytes()));
    let rest = &bytes[lines.len()..];
    assert!(rest.len() <= 64 && !rest.contains(&b'\n'));
}

fn check_escape(input: &[u8]) {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    let (text, limit) = (text(bytes), usize::from(*first));
    let shown = escape::printable(&text);
    assert!(is_printable(&shown), "{shown:?}");
    assert_eq!(escape::printable(&shown), shown);
    assert_eq!(shown == text, is_printable(&text));
    let short = escape::shortened(&text, limit);
    match short.strip_suffix("...") {
        Some(cut) if shown.len() > limit => assert_eq!(cut, &shown[..limit]),
        _ => assert_eq!(short, shown),
    }
}

/// Filters an environment: a prefix of allowed names, then `NAME=value`, separated by NUL.
fn check_environment(input: &[u8]) {
    let mut parts = input.split(|byte| *byte == 0);
    let prefix = text(parts.next().unwrap_or_default());
    let variables: Vec<(OsString, OsString)> = parts
        .map(|part| {
            let end = part.iter().position(|byte| *byte == b'=');
            let (name, value) = part.split_at(end.unwrap_or(part.len()));
            let value = value.get(1..).unwrap_or_default();
            (
                OsString::from_vec(name.to_vec()),
                OsString::from_vec(value.to_vec()),
            )
        })
        .collect();
    let user = PasswdEntry {
        name: "agent".to_owned(),
        ids: UserIds { uid: 1, gid: 1 },
        home: "/home/agent".to_owned(),
        shell: "/bin/sh".to_owned(),
    };
    let is_allowed = |name: &str| name.starts_with(&prefix);
    let alone = environment::filter(variables.clone(), is_allowed, None);
    let mut names = BTreeSet::new();
    for variable in &alone {
        let end = variable
            .iter()
            .position(|byte| *byte == b'=')
            .expect("no name");
        let (name, value) = (text(&variable[..end]), &variable[end + 1..]);
        assert!(
            environment::is_name(&name) && !environment::is_forbidden(&name),
            "{name}"
        );
        assert!(is_allowed(&name) && !["USER", "LOGNAME", "HOME", "SHELL"].contains(&&*name));
        assert!(!value.starts_with(b"()") && !value.contains(&0));
        assert!(names.insert(name), "a name is there twice");
    }
    let with_user = environment::filter(variables, is_allowed, Some(&user));
    let of_user = [
        "USER=agent",
        "LOGNAME=agent",
        "HOME=/home/agent",
        "SHELL=/bin/sh",
    ];
    let of_user = of_user.map(|variable| variable.as_bytes().to_vec());
    assert_eq!(with_user, [&alone[..], &of_user].concat());
}

/// Parses `/proc/PID/stat`, also with the input as the command name, which must not change the other fields.
#[cfg(target_os = "linux")]
fn check_stat(input: &[u8]) {
    let input = text(input);
    let _ = sys::parse_stat(&input);
    let tail = "7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
    let info = sys::parse_stat(&format!("12 ({input}) S {tail}")).expect("no process");
    assert_eq!((info.parent, info.start), (7, 4711));
    assert_eq!(sys::parse_stat(&format!("12 ({input}) Z {tail}")), None);
}

fuzz_target!(|input: &[u8]| {
    let Some((first, input)) = input.split_first() else {
        return;
    };
    match first & 7 {
        0 => check_request(
            &input
                .split(|byte| *byte == 0)
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>(),
        ),
        1 => check_policy(input),
        2 => ops::check_record(&text(input)),
        3 => check_tables(input),
        4 => check_control(input),
        5 => check_escape(input),
        6 => check_environment(input),
        #[cfg(target_os = "linux")]
        _ => check_stat(input),
        #[cfg(not(target_os = "linux"))]
        _ => {}
    }
});
