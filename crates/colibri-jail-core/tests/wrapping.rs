//! Property tests of the argv: the agent's arguments are an unchanged suffix, and every program before it parses exactly
//! the intended values. The tests model the option parsers of these programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use colibri_jail_core::{
    Bubblewrap, CommandLine, Confinement, EphemeralJail, FreebsdJail, Ip4Policy, JailConfig,
    JailEngine, JailName, JailOp, JailPath, JailUser, MountConfig, NetworkRule, Pid, Signal,
    jail_wrap,
};
use proptest::prelude::*;

/// Models getopt(3) of FreeBSD: options end before the first other word, or after `--`.
fn getopt<'a>(
    args: &'a [String],
    with_value: &str,
) -> (Vec<(char, Option<&'a str>)>, &'a [String]) {
    let mut options = Vec::new();
    let mut remaining = args;
    while let Some((word, after)) = remaining.split_first() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            break;
        };
        remaining = after;
        if letters == "-" {
            break;
        }
        for (position, letter) in letters.char_indices() {
            if !with_value.contains(letter) {
                options.push((letter, None));
                continue;
            }
            let attached = &letters[position + letter.len_utf8()..];
            if attached.is_empty() {
                let (value, after) = remaining
                    .split_first()
                    .expect("an option without its value");
                options.push((letter, Some(value.as_str())));
                remaining = after;
            } else {
                options.push((letter, Some(attached)));
            }
            break;
        }
    }
    (options, remaining)
}

/// Models jexec(8).
fn read_jexec(args: &[String]) -> (Option<&str>, Option<&str>, &str, &[String]) {
    let (options, operands) = getopt(args, "dUu");
    let value = |letter| {
        options
            .iter()
            .find(|(found, _)| *found == letter)
            .and_then(|(_, value)| *value)
    };
    assert!(
        options.iter().all(|(letter, _)| "dU".contains(*letter)),
        "{options:?}"
    );
    let (jail, command) = operands.split_first().expect("jexec without a jail");
    (value('d'), value('U'), jail, command)
}

/// Models jail(8): parameters, then the command from `command=` on.
fn read_jail(args: &[String]) -> (Vec<(&str, &str)>, Vec<&str>) {
    let (options, operands) = getopt(args, "Jefnpsu");
    assert_eq!(options, [('q', None), ('c', None)]);
    let position = operands
        .iter()
        .position(|word| word.starts_with("command"))
        .expect("no command");
    let parameters = operands[..position]
        .iter()
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .collect();
    let first = operands[position]
        .strip_prefix("command=")
        .expect("command without a program");
    assert!(!first.is_empty(), "jail(8) skips an empty command");
    let command = std::iter::once(first)
        .chain(operands[position + 1..].iter().map(String::as_str))
        .collect();
    (parameters, command)
}

/// Models bwrap(1): options with a fixed number of values, up to `--`.
fn read_bwrap(args: &[String]) -> (Vec<(&str, Vec<&str>)>, &[String]) {
    let mut options = Vec::new();
    let mut remaining = args;
    loop {
        let (option, after) = remaining.split_first().expect("bwrap without a command");
        if option == "--" {
            return (options, after);
        }
        let values = match option.as_str() {
            "--ro-bind" | "--bind" => 2,
            "--hostname" => 1,
            "--proc" | "--dev" | "--tmpfs" | "--uid" | "--gid" | "--chdir" | "--cap-drop" => 1,
            word if word.starts_with("--unshare-")
                || word == "--die-with-parent"
                || word == "--new-session" =>
            {
                0
            }
            other => panic!("bwrap would not know {other:?}"),
        };
        let (taken, after) = after.split_at(values);
        options.push((option.as_str(), taken.iter().map(String::as_str).collect()));
        remaining = after;
    }
}

/// Words that an option parser or a shell could misread.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "-",
            "--",
            "-c",
            "-u",
            "-l",
            "--unshare-net",
            "--bind",
            "--args",
            "command=",
            "command=/bin/sh",
            "name=other",
            "path=/",
            "persist",
            "",
            " ",
            "a b",
            "'",
            "\"",
            "$(id)",
            "`id`",
            ";",
            "&",
            "\n",
            "-9",
            "=",
        ])
        .prop_map(str::to_owned),
        "[^\\x00]{0,12}",
    ]
}

fn command() -> impl Strategy<Value = CommandLine> {
    (word(), prop::collection::vec(word(), 0..6))
        .prop_filter_map("an empty program", |(program, args)| {
            CommandLine::new(program, args).ok()
        })
}

fn name() -> impl Strategy<Value = JailName> {
    "[A-Za-z0-9_-]{1,20}".prop_filter_map("a name", |text| text.parse().ok())
}

fn path() -> impl Strategy<Value = JailPath> {
    "(/[^/\\x00-\\x1f\\x7f]{1,8}){1,4}|/".prop_filter_map("a path", |text| text.parse().ok())
}

fn user() -> impl Strategy<Value = JailUser> {
    prop_oneof!["[a-z_.-]{1,10}", "[0-9]{1,9}", "[0-9]{1,9}:[0-9]{1,9}"]
        .prop_filter_map("a user", |text| text.parse().ok())
}

fn ip4() -> impl Strategy<Value = Ip4Policy> {
    prop_oneof![
        Just("inherit".to_owned()),
        Just("disable".to_owned()),
        Just("new".to_owned()),
        prop::collection::vec("(1[0-9]{1,2}\\.){3}[0-9]{1,2}", 1..3)
            .prop_map(|list| list.join(",")),
    ]
    .prop_filter_map("a policy", |text| text.parse().ok())
}

fn confinement() -> impl Strategy<Value = Confinement> {
    prop_oneof![
        Just(Confinement::None),
        (name(), prop::option::of(user()))
            .prop_map(|(name, user)| Confinement::Persistent { name, user }),
        (name(), path(), ip4(), prop::option::of(user()), setup()).prop_map(
            |(name, path, ip4, user, setup)| {
                Confinement::Ephemeral(EphemeralJail {
                    name,
                    path,
                    ip4,
                    user,
                    ..setup
                })
            }
        ),
    ]
}

/// Returns jails with settings that `JailConfig` accepts.
fn setup() -> impl Strategy<Value = EphemeralJail> {
    let mounts = prop::collection::vec((path(), prop::option::of(path()), any::<bool>()), 0..4);
    let destination = prop::sample::select(vec![
        "api.example.com:443",
        "[::1]:8080",
        "192.0.2.7:1",
        "localhost:8080,80",
        "GET https://a/x/*",
    ]);
    let allow = prop::collection::vec(destination, 0..3);
    let hostname = prop::option::of(prop::sample::select(vec!["agent", "a.b"]));
    let masked = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(path(), 1..3)];
    (mounts, hostname, allow, masked).prop_filter_map(
        "a setup",
        |(mounts, hostname, allow, masked)| {
            let config = JailConfig {
                path: Some("/".to_owned()),
                mounts: mounts
                    .iter()
                    .map(|(source, target, read_only)| MountConfig {
                        source: source.to_string(),
                        target: target.as_ref().map(ToString::to_string),
                        read_only: *read_only,
                    })
                    .collect(),
                hostname: hostname.map(str::to_owned),
                allow: allow.into_iter().map(str::to_owned).collect(),
                ..JailConfig::default()
            };
            match config.confinement(&"x".parse().ok()?) {
                Ok(Confinement::Ephemeral(mut jail)) => {
                    jail.masked = masked;
                    Some(jail)
                }
                _ => None,
            }
        },
    )
}

/// An engine, with the path of its proxy.
#[derive(Debug, Clone)]
struct TestEngine {
    engine: Arc<dyn JailEngine>,
    proxy: Option<JailPath>,
}

fn engine() -> impl Strategy<Value = TestEngine> {
    prop_oneof![
        engines(FreebsdJail::with_proxy),
        engines(Bubblewrap::with_proxy)
    ]
}

/// Returns a strategy for an engine with or without a proxy.
fn engines<E: JailEngine + Default + 'static>(
    with_proxy: fn(E, JailPath) -> E,
) -> impl Strategy<Value = TestEngine> {
    prop::option::of(path()).prop_map(move |proxy| TestEngine {
        engine: match &proxy {
            Some(proxy) => Arc::new(with_proxy(E::default(), proxy.clone())),
            None => Arc::new(E::default()),
        },
        proxy,
    })
}

fn words(command: &CommandLine) -> Vec<&str> {
    std::iter::once(command.program())
        .chain(command.args().iter().map(String::as_str))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn agent_arguments_are_an_unchanged_suffix(
        engine in engine(),
        confinement in confinement(),
        workdir in prop::option::of(path()),
        agent in command(),
    ) {
        let TestEngine { engine, proxy } = engine;
        let Ok(wrapped) = jail_wrap(&*engine, &confinement, workdir.as_ref(), agent.clone()) else {
            // The test of the messages covers the errors.
            return Ok(());
        };
        let expected = words(&agent);
        match (&confinement, wrapped.program()) {
            (Confinement::None, _) => prop_assert_eq!(&wrapped, &agent),
            (Confinement::Persistent { name, user }, "/usr/sbin/jexec") => {
                let (read_dir, read_user, read_name, read_command) = read_jexec(wrapped.args());
                prop_assert_eq!(read_dir, workdir.as_ref().map(JailPath::as_str));
                prop_assert_eq!(read_user.map(str::to_owned), user.as_ref().map(ToString::to_string));
                prop_assert_eq!(read_name, name.as_str());
                prop_assert_eq!(read_command, &expected[..]);
            }
            (Confinement::Ephemeral(setup @ EphemeralJail { name, path, ip4, user, .. }), "/usr/sbin/jail") => {
                let (parameters, read_command) = read_jail(wrapped.args());
                let mut intended = vec![("name", name.to_string()), ("path", path.to_string())];
                match ip4 {
                    // The caller runs the proxy around it.
                    _ if !setup.allow.is_empty() => {
                        prop_assert!(engine.outer_proxy().is_some());
                        let hook = format!("/usr/local/libexec/colibri-jail-helper await-proxy --jail {name}");
                        intended.extend([("vnet", "new".to_owned()), ("exec.created", hook)]);
                    }
                    Ip4Policy::Addresses(_) => {
                        intended.extend([("ip4", "new".to_owned()), ("ip4.addr", ip4.to_string())]);
                    }
                    word => intended.push(("ip4", word.to_string())),
                }
                intended.extend(setup.hostname.iter().map(|hostname| ("host.hostname", hostname.to_string())));
                // The monitor mounts.
                let op = confinement.clone().into_op(workdir.clone(), agent.clone()).unwrap();
                let monitor = engine.command_line(&engine.monitor(&op, &wrapped).unwrap()).unwrap();
                let monitor = words(&monitor);
                let (options, monitored) = monitor.split_at(monitor.len() - wrapped.args().len() - 2);
                prop_assert_eq!(monitored, [&["--"][..], &words(&wrapped)].concat());
                let mounts: Vec<_> = setup.mounts.iter().flat_map(|mount| {
                    let option = if mount.read_only { "--mount-ro" } else { "--mount" };
                    [option, mount.source.as_str(), mount.target.as_str()]
                }).collect();
                prop_assert_eq!(&options[options.len() - mounts.len()..], mounts);
                prop_assert_eq!(options.iter().filter(|word| word.starts_with("--mount") && **word != "--mount-point").count(), setup.mounts.len());
                intended.extend([("securelevel", "3"), ("enforce_statfs", "2"), ("children.max", "0"), ("allow.noset_hostname", "")]
                    .map(|(key, value)| (key, value.to_owned())));
                intended.extend(user.iter().map(|user| ("exec.jail_user", user.to_string())));
                let parameters: Vec<_> = parameters.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
                prop_assert_eq!(parameters, intended);
                match &workdir {
                    None => prop_assert_eq!(read_command, expected),
                    Some(workdir) => {
                        let shell = ["/bin/sh", "-c", "cd -- \"$0\" && exec \"$@\"", workdir.as_str()];
                        let (front, suffix) = read_command.split_at(shell.len());
                        prop_assert_eq!(front, shell);
                        prop_assert_eq!(suffix, &expected[..]);
                    }
                }
            }
            (Confinement::Ephemeral(setup @ EphemeralJail { path, ip4, user, .. }), program) => {
                let mut expected = expected;
                let mut wrapped = wrapped.args();
                let ports: std::collections::BTreeSet<u16> =
                    setup.allow.iter().flat_map(NetworkRule::loopback_ports).collect();
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                if setup.allow.is_empty() {
                    prop_assert_eq!(program, "/usr/bin/bwrap");
                } else {
                    // colibri-proxy run DESTINATION… -- bwrap … -- colibri-proxy enter AGENT…
                    let proxy = proxy.as_ref().unwrap();
                    prop_assert_eq!(program, proxy.as_str());
                    let (allow, after) = wrapped.split_at(setup.allow.len() + 1);
                    let mut intended = vec!["run".to_owned()];
                    intended.extend(setup.allow.iter().map(ToString::to_string));
                    prop_assert_eq!(allow, intended);
                    prop_assert_eq!(&after[..2], ["--", "/usr/bin/bwrap"]);
                    wrapped = &after[2..];
                    expected.splice(0..0, ports.iter().flat_map(|port| ["--listen", port.as_str()]));
                    expected.splice(0..0, ["/dev/colibri-proxy", "enter"]);
                }
                let (options, read_command) = read_bwrap(wrapped);
                prop_assert_eq!(read_command, &expected[..]);
                let values = |option: &str| -> Vec<Vec<&str>> {
                    options.iter().filter(|(found, _)| *found == option).map(|(_, values)| values.clone()).collect()
                };
                let mut read_only = vec![vec![path.as_str(), "/"]];
                let mut writable = Vec::new();
                for mount in &setup.mounts {
                    let list = if mount.read_only { &mut read_only } else { &mut writable };
                    list.push(vec![mount.source.as_str(), mount.target.as_str()]);
                }
                if !setup.allow.is_empty() {
                    read_only.push(vec![proxy.as_ref().unwrap().as_str(), "/dev/colibri-proxy"]);
                }
                prop_assert_eq!(values("--ro-bind"), read_only);
                prop_assert_eq!(values("--bind"), writable);
                prop_assert_eq!(values("--hostname").len(), usize::from(setup.hostname.is_some()));
                prop_assert_eq!(values("--chdir"), vec![vec![workdir.as_ref().map_or("/", JailPath::as_str)]]);
                prop_assert_eq!(values("--unshare-net").len(), usize::from(*ip4 == Ip4Policy::Disable || !setup.allow.is_empty()));
                prop_assert_eq!(values("--uid").len(), usize::from(user.is_some()));
                for namespace in ["user", "pid", "ipc", "uts", "cgroup"] {
                    prop_assert_eq!(values(&format!("--unshare-{namespace}")).len(), 1);
                }
                let masked: Vec<_> = std::iter::once("/tmp").chain(setup.masked.iter().map(JailPath::as_str)).collect();
                prop_assert_eq!(values("--tmpfs").concat(), masked);
            }
            other => prop_assert!(false, "unexpected {other:?}"),
        }
    }

    #[test]
    fn signal_and_remove_name_exactly_their_targets(
        engine in engine(), name in name(), pids in prop::collection::vec(2..i32::MAX as u32, 1..5),
    ) {
        let typed = pids.iter().map(|pid| Pid::new(*pid).unwrap()).collect();
        let engine = engine.engine;
        let kill = engine.command_line(&JailOp::Signal { jail: None, pids: typed, signal: Signal::TERM }).unwrap();
        let (options, rest) = getopt(kill.args(), "s");
        prop_assert_eq!((kill.program(), options), ("/bin/kill", vec![('s', Some("TERM"))]));
        prop_assert_eq!(rest, pids.iter().map(ToString::to_string).collect::<Vec<_>>());
        if engine.name() == FreebsdJail::NAME {
            let remove = engine.command_line(&JailOp::Remove { name: name.clone() }).unwrap();
            prop_assert_eq!(remove.to_string(), format!("/usr/sbin/jail -R {name}"));
        }
    }

    #[test]
    fn parsers_never_panic(text in "\\PC{0,40}|[ -~]{0,40}") {
        let _ = text.parse::<JailName>();
        let _ = JailName::hierarchical(&text);
        let _ = text.parse::<JailPath>();
        let _ = text.parse::<Ip4Policy>();
        let _ = text.parse::<JailUser>();
        let _ = text.parse::<Signal>();
        let _ = colibri_jail_core::EngineRegistry::builtin().get(&text);
        let _ = text.parse::<MountConfig>();
        let _ = text.parse::<colibri_jail_core::Hostname>();
        let _ = text.parse::<colibri_jail_core::Destination>();
        let _ = text.parse::<colibri_jail_core::NetworkRule>();
        let _ = text.parse::<colibri_jail_core::CredentialRule>();
        let _ = text.parse::<colibri_jail_core::Size>();
        let _ = text.parse::<colibri_jail_core::Cpus>();
        let _ = text.parse::<colibri_jail_core::WallTime>();
    }
}
