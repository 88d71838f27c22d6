//! Property tests of the built-in backends: the command requests exactly the operation, and ends with the agent's
//! unchanged arguments. The tests model the option parser of mdo(1) and the protocol of the helper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::sync::Arc;

use colibri_jail_core::{
    Bubblewrap, CommandLine, CreatedJail, EphemeralJail, FreebsdJail, Ip4Policy, JailEngine,
    JailName, JailOp, JailPath, JailUser, Pid, Signal,
};
use colibri_priv::{BackendRegistry, Helper, PrivBackend, PrivError};
use proptest::prelude::*;

const HELPER: &str = "/usr/local/libexec/colibri-jail-helper";

fn elevate(mode: &str, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
    let backend = BackendRegistry::builtin(HELPER).get(mode).unwrap();
    backend.elevate(op, engine)
}

/// Models mdo(1): getopt_long(3) that stops before the first other word.
fn read_mdo(args: &[String]) -> (Vec<char>, CommandLine) {
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
        assert!(
            letters.chars().all(|letter| "hik".contains(letter)),
            "mdo would take a value or refuse {word:?}"
        );
        options.extend(letters.chars());
    }
    let (program, args) = remaining.split_first().expect("mdo without a command");
    (options, CommandLine::new(program, args).unwrap())
}

/// Models the helper, by the grammar in docs/helper-protocol.md.
fn read_helper(args: &[String]) -> JailOp {
    const ORDER: [&str; 8] = [
        "--jail",
        "--path",
        "--ip4",
        "--hide",
        "--user",
        "--workdir",
        "--signal",
        "--pid",
    ];
    let (verb, mut remaining) = args.split_first().expect("no verb");
    let mut options: Vec<(usize, &str)> = Vec::new();
    let mut command = None;
    while let Some((word, after)) = remaining.split_first() {
        if word == "--" {
            let (program, args) = after.split_first().expect("no program");
            command = Some(CommandLine::new(program, args).unwrap());
            break;
        }
        let position = ORDER.iter().position(|option| option == word).expect(word);
        let (value, after) = after.split_first().expect("an option without its value");
        let before = options.last().map(|(before, _)| *before);
        assert!(
            before < Some(position) || (before == Some(position) && [3, 7].contains(&position)),
            "{word} is out of order or given twice: {args:?}"
        );
        options.push((position, value));
        remaining = after;
    }
    let all = |option: &str| -> Vec<&str> {
        let position = ORDER.iter().position(|known| *known == option);
        let found = options.iter().filter(|(found, _)| Some(*found) == position);
        found.map(|(_, value)| *value).collect()
    };
    let one = |option: &str| all(option).first().copied();
    let must = |option: &str| one(option).unwrap_or_else(|| panic!("{verb} without {option}"));
    let user = one("--user").map(|user| user.parse().unwrap());
    let workdir = one("--workdir").map(|workdir| workdir.parse().unwrap());
    let masked = all("--hide")
        .iter()
        .map(|path| path.parse().unwrap())
        .collect();
    match verb.as_str() {
        "attach" => JailOp::Attach {
            name: must("--jail").parse().unwrap(),
            user,
            workdir,
            command: command.expect("no command"),
        },
        "create" => JailOp::Create {
            jail: EphemeralJail {
                ip4: must("--ip4").parse().unwrap(),
                user,
                masked,
                ..EphemeralJail::new(
                    must("--jail").parse().unwrap(),
                    must("--path").parse().unwrap(),
                )
            },
            workdir,
            command: command.expect("no command"),
        },
        "signal" => JailOp::Signal {
            jail: one("--jail").map(|jail| jail.parse().unwrap()),
            pids: all("--pid")
                .iter()
                .map(|pid| Pid::new(pid.parse().unwrap()).unwrap())
                .collect(),
            signal: must("--signal").parse().unwrap(),
        },
        "remove" => JailOp::Remove {
            name: must("--jail").parse().unwrap(),
        },
        other => panic!("verb {other:?}"),
    }
}

/// Words that an option parser or a shell could misread.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "-", "--", "-i", "-k", "-u", "-uroot", "--euid", "--user", "--path", "--hide", "root",
            "command=", "", " ", "$(id)", "\n",
        ])
        .prop_map(str::to_owned),
        "[^\\x00]{0,12}",
    ]
}

fn parsed<T>(pattern: &'static str) -> impl Strategy<Value = T>
where
    T: std::str::FromStr + std::fmt::Debug,
{
    pattern.prop_filter_map("not valid", |text| text.parse().ok())
}

fn path() -> impl Strategy<Value = JailPath> {
    parsed("(/[^/\\x00-\\x1f\\x7f]{1,8}){1,4}|/")
}

fn op() -> impl Strategy<Value = JailOp> {
    let name = || parsed::<JailName>("[A-Za-z0-9_-]{1,20}");
    let user = || {
        prop::option::of(parsed::<JailUser>(
            "[a-z_.-]{1,10}|[0-9]{1,9}|[0-9]{1,9}:[0-9]{1,9}",
        ))
    };
    let ip4 = parsed::<Ip4Policy>("inherit|disable|new|(1[0-9]{1,2}\\.){3}[0-9]{1,2}");
    let command = || {
        (word(), prop::collection::vec(word(), 0..6))
            .prop_filter_map("not a command", |(program, args)| {
                CommandLine::new(program, args).ok()
            })
    };
    let workdir = || prop::option::of(path());
    let masked = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(path(), 1..3)];
    let pid = (2..i32::MAX as u32).prop_map(|pid| Pid::new(pid).unwrap());
    let signal = parsed::<Signal>("TERM|KILL|USR1|HUP");
    prop_oneof![
        (name(), user(), workdir(), command()).prop_map(|(name, user, workdir, command)| {
            JailOp::Attach {
                name,
                user,
                workdir,
                command,
            }
        }),
        (name(), path(), ip4, user(), workdir(), masked, command()).prop_map(
            |(name, path, ip4, user, workdir, masked, command)| {
                JailOp::Create {
                    jail: EphemeralJail {
                        ip4,
                        user,
                        masked,
                        ..EphemeralJail::new(name, path)
                    },
                    workdir,
                    command,
                }
            }
        ),
        (
            prop::option::of(name()),
            prop::collection::vec(pid, 1..4),
            signal
        )
            .prop_map(|(jail, pids, signal)| JailOp::Signal { jail, pids, signal }),
        name().prop_map(|name| JailOp::Remove { name }),
    ]
}

fn engine() -> impl Strategy<Value = Arc<dyn JailEngine>> {
    let engines: Vec<Arc<dyn JailEngine>> = vec![
        Arc::new(FreebsdJail::default()),
        Arc::new(Bubblewrap::default()),
    ];
    prop::sample::select(engines)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn elevated_command_requests_exactly_the_operation(op in op(), engine in engine()) {
        // The helper removes sandboxes itself; bubblewrap has no command for it.
        let helper_only = matches!(op, JailOp::Remove { .. }) && engine.check(&op).is_err();
        let plain = match engine.command_line(&op) {
            Ok(plain) => plain,
            Err(refusal) => {
                for mode in ["mdo", "helper", "none"] {
                    let elevated = elevate(mode, &op, &*engine);
                    if mode == "helper" && helper_only {
                        prop_assert_eq!(read_helper(elevated.unwrap().args()), op.clone());
                    } else {
                        prop_assert_eq!(elevated, Err(PrivError::Jail(refusal.clone())));
                    }
                }
                return Ok(());
            }
        };
        prop_assert_eq!(elevate("none", &op, &*engine), Ok(plain.clone()));

        let mdo = elevate("mdo", &op, &*engine).unwrap();
        prop_assert_eq!(mdo.program(), "/usr/bin/mdo");
        prop_assert_eq!(read_mdo(mdo.args()), (vec!['i'], plain));

        let helper = elevate("helper", &op, &*engine).unwrap();
        prop_assert_eq!(helper.program(), HELPER);
        prop_assert_eq!(read_helper(helper.args()), op);
    }
}

#[test]
fn helper_protocol_examples_match_the_backend() {
    let agent = CommandLine::new("/usr/local/bin/pi", ["--mode", "json", "fix it"]).unwrap();
    let attach = JailOp::Attach {
        name: "web".parse().unwrap(),
        user: Some("agent".parse().unwrap()),
        workdir: Some("/work".parse().unwrap()),
        command: agent.clone(),
    };
    let create = |ip4: &str, user: &str, masked: Vec<JailPath>| JailOp::Create {
        jail: EphemeralJail {
            ip4: ip4.parse().unwrap(),
            user: Some(user.parse().unwrap()),
            masked,
            ..EphemeralJail::new(
                "colibri-k3x9".parse().unwrap(),
                "/srv/agent".parse().unwrap(),
            )
        },
        workdir: None,
        command: agent.clone(),
    };
    let signal = JailOp::Signal {
        jail: Some("web".parse().unwrap()),
        pids: [4711, 4712].map(|pid| Pid::new(pid).unwrap()).to_vec(),
        signal: Signal::TERM,
    };
    let remove = JailOp::Remove {
        name: "colibri-k3x9".parse().unwrap(),
    };
    let masked = vec!["/run/user".parse().unwrap()];
    let freebsd: &dyn JailEngine = &FreebsdJail::default();
    let attach_user = JailOp::Attach {
        name: "web".parse().unwrap(),
        user: Some("agent".parse().unwrap()),
        workdir: None,
        command: agent.clone(),
    };
    let monitored = freebsd.command_line(&attach_user).unwrap();
    let monitor = freebsd.monitor(&attach_user, &monitored).unwrap();
    let clean = JailOp::Clean(CreatedJail {
        name: "colibri-k3x9".parse().unwrap(),
        setup_commands: 0,
        root: None,
        is_filtered: false,
    });
    let mut filtered = create("disable", "agent", Vec::new());
    if let JailOp::Create { jail, .. } = &mut filtered {
        jail.allow = vec!["api.example.com:443".parse().unwrap()];
    }
    let proxy = "/usr/local/libexec/colibri-proxy".parse().unwrap();
    let helper = Helper::new("/colibri-jail-helper");
    let mut shown = String::new();
    for (op, engine) in [
        (&attach, freebsd),
        (&create("192.0.2.7,192.0.2.8", "agent", Vec::new()), freebsd),
        (
            &create("disable", "1001:1002", masked),
            &Bubblewrap::default(),
        ),
        (&filtered, &FreebsdJail::default().with_proxy(proxy)),
        (&signal, freebsd),
        (&remove, freebsd),
    ] {
        let command = helper.elevate(op, engine).unwrap().to_string();
        writeln!(shown, "{}", command.trim_start_matches('/')).unwrap();
    }
    // The engine writes these two; other backends elevate them.
    let engine = FreebsdJail::new("/colibri-jail-helper");
    for op in [&monitor, &clean] {
        let command = engine.command_line(op).unwrap().to_string();
        writeln!(shown, "{}", command.trim_start_matches('/')).unwrap();
    }
    let document = include_str!("../../../docs/helper-protocol.md");
    assert!(
        document.contains(&format!("```sh\n{shown}```")),
        "the examples should be:\n{shown}"
    );
}

#[test]
fn every_error_message_has_a_hint() {
    let remove = JailOp::Remove {
        name: "web".parse().unwrap(),
    };
    let mut registry = BackendRegistry::builtin(HELPER);
    let errors = [
        Helper::new("bin/helper")
            .elevate(&remove, &FreebsdJail::default())
            .err(),
        elevate("helper", &JailOp::List, &FreebsdJail::default()).err(),
        elevate("none", &remove, &Bubblewrap::default()).err(),
        registry.get("doas").err(),
        registry
            .register(std::sync::Arc::new(colibri_priv::Mdo))
            .err(),
        BackendRegistry::check_name("My Sudo").err(),
    ];
    let lines: Vec<_> = errors
        .into_iter()
        .map(|error| error.unwrap().to_string())
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}
