//! The built-in backends conform, and each defective backend gets the expected violation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};
use colibri_priv::{Finding, FindingStatus, Helper, Mdo, None, PrivBackend, PrivError};
use colibri_priv_conformance::{Report, ViolationKind, check, check_in_two_environments};

mod mdo {
    colibri_priv_conformance::conformance_test!(colibri_priv::Mdo);
}
mod helper {
    colibri_priv_conformance::conformance_test!(colibri_priv::Helper::new(
        "/usr/local/libexec/helper"
    ));
}
mod none {
    colibri_priv_conformance::conformance_test!(colibri_priv::None);
}

#[test]
fn helper_with_relative_path_does_not_conform() {
    let report = check(&Helper::new("bin/helper")).unwrap_err();
    assert!(report.contains(ViolationKind::RefusesOperation), "{report}");
}

type Elevate = fn(&JailOp, &dyn JailEngine) -> Result<CommandLine, PrivError>;

/// A backend with one defect.
struct Defective {
    name: &'static str,
    elevate: Elevate,
    findings: fn() -> Vec<Finding>,
}

#[async_trait]
impl PrivBackend for Defective {
    fn name(&self) -> &str {
        self.name
    }

    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
        (self.elevate)(op, engine)
    }

    async fn preflight(&self) -> Vec<Finding> {
        (self.findings)()
    }
}

const SUDO: &str = "/usr/bin/sudo";

fn sudo(op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
    Ok(engine.command_line(op)?.prefixed(SUDO, ["-n", "--"])?)
}

/// Returns the command of a correct backend with changed arguments.
fn sudo_with(
    op: &JailOp,
    engine: &dyn JailEngine,
    change: impl FnOnce(&mut Vec<String>),
) -> Result<CommandLine, PrivError> {
    let (program, mut args) = sudo(op, engine)?.into_parts();
    change(&mut args);
    Ok(CommandLine::new(program, args)?)
}

/// Returns the number of arguments of the agent.
fn agent_arguments(op: &JailOp) -> usize {
    op.agent().map_or(0, |agent| agent.args().len())
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Number of calls of the backend `counts-calls`.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Defective backends, each with its expected violation.
const DEFECTIVE: &[(&str, ViolationKind, Elevate)] = &[
    ("drops-last", ViolationKind::DropsArgument, |op, engine| {
        sudo_with(op, engine, |args| {
            if agent_arguments(op) > 0 {
                args.pop();
            }
        })
    }),
    ("drops-empty", ViolationKind::DropsArgument, |op, engine| {
        sudo_with(op, engine, |args| args.retain(|arg| !arg.is_empty()))
    }),
    (
        "drops-second-separator",
        ViolationKind::DropsArgument,
        |op, engine| {
            sudo_with(op, engine, |args| {
                let mut separators = 0;
                args.retain(|arg| {
                    separators += usize::from(arg == "--");
                    arg != "--" || separators <= 2
                });
            })
        },
    ),
    (
        "reverses",
        ViolationKind::ReordersArguments,
        |op, engine| {
            sudo_with(op, engine, |args| {
                let from = args.len() - agent_arguments(op);
                args[from..].reverse();
            })
        },
    ),
    (
        "sorts-options-first",
        ViolationKind::ReordersArguments,
        |op, engine| {
            sudo_with(op, engine, |args| {
                let from = args.len() - agent_arguments(op);
                args[from..].sort_by_key(|arg| !arg.starts_with('-'));
            })
        },
    ),
    (
        "joins-to-line",
        ViolationKind::JoinsArguments,
        |op, engine| {
            sudo_with(op, engine, |args| {
                let from = args.len() - agent_arguments(op);
                let line = args.split_off(from).join(" ");
                args.extend(Some(line).filter(|line| !line.is_empty()));
            })
        },
    ),
    (
        "splits-at-blanks",
        ViolationKind::SplitsArgument,
        |op, engine| {
            sudo_with(op, engine, |args| {
                let from = args.len() - agent_arguments(op);
                let tail = args.split_off(from);
                args.extend(tail.iter().flat_map(|arg| match arg.contains(' ') {
                    true => arg.split_whitespace().map(str::to_owned).collect(),
                    false => vec![arg.clone()],
                }));
            })
        },
    ),
    ("quotes", ViolationKind::QuotesArgument, |op, engine| {
        sudo_with(op, engine, |args| {
            let from = args.len() - agent_arguments(op);
            for arg in &mut args[from..] {
                *arg = quoted(arg);
            }
        })
    }),
    (
        "quotes-program-too",
        ViolationKind::QuotesArgument,
        |op, engine| {
            sudo_with(op, engine, |args| {
                if op.agent().is_some() {
                    let from = args.len() - agent_arguments(op) - 1;
                    args[from] = quoted(&args[from]);
                }
            })
        },
    ),
    ("appends", ViolationKind::AppendsArgument, |op, engine| {
        sudo_with(op, engine, |args| args.push("--log".to_owned()))
    }),
    ("trims", ViolationKind::ChangesArgument, |op, engine| {
        sudo_with(op, engine, |args| {
            for arg in args {
                *arg = arg.trim().to_lowercase();
            }
        })
    }),
    ("su-c", ViolationKind::JoinsArguments, |op, engine| {
        let line = engine.command_line(op)?.to_string();
        Ok(CommandLine::new("/usr/bin/su", ["root", "-c", &line])?)
    }),
    ("uses-shell", ViolationKind::UsesShell, |op, engine| {
        let script = ["-c", "exec sudo -n \"$@\"", "sh"];
        Ok(engine.command_line(op)?.prefixed("/bin/sh", script)?)
    }),
    (
        "repeats-agent",
        ViolationKind::DependsOnAgent,
        |op, engine| {
            let reason = op
                .agent()
                .map_or("teardown".to_owned(), ToString::to_string);
            Ok(engine
                .command_line(op)?
                .prefixed(SUDO, ["-n", "-p", &reason, "--"])?)
        },
    ),
    (
        "relative-program",
        ViolationKind::RelativeProgram,
        |op, engine| Ok(engine.command_line(op)?.prefixed("sudo", ["-n", "--"])?),
    ),
    (
        "counts-calls",
        ViolationKind::NotDeterministic,
        |op, engine| {
            let serial = CALLS.fetch_add(1, Ordering::Relaxed) % 2;
            Ok(engine
                .command_line(op)?
                .prefixed(SUDO, ["-n", "-C", &format!("{}", serial + 3), "--"])?)
        },
    ),
    (
        "forgets-jail",
        ViolationKind::LosesValue,
        |op, _| match op.agent() {
            Some(agent) => Ok(agent.clone().prefixed(SUDO, ["-n", "--"])?),
            _ => Ok(CommandLine::new(SUDO, ["-n", "--", "/usr/bin/true"])?),
        },
    ),
    ("forgets-user", ViolationKind::LosesValue, |op, engine| {
        let mut op = op.clone();
        match &mut op {
            JailOp::Attach { user, .. } => *user = Option::None,
            JailOp::Create { jail, .. } => jail.user = Option::None,
            _ => {}
        }
        sudo(&op, engine)
    }),
    (
        "signals-first-only",
        ViolationKind::LosesValue,
        |op, engine| {
            let mut op = op.clone();
            if let JailOp::Signal { pids, .. } = &mut op {
                pids.truncate(1);
            }
            sudo(&op, engine)
        },
    ),
    (
        "cannot-remove",
        ViolationKind::RefusesOperation,
        |op, engine| match op {
            JailOp::Remove { .. } => Err(PrivError::unsupported("sudo", "remove jails", "give up")),
            _ => sudo(op, engine),
        },
    ),
    (
        "hides-engine-error",
        ViolationKind::HidesEngineError,
        |op, engine| {
            sudo(op, engine).map_err(|_| PrivError::unsupported("sudo", "do that", "give up"))
        },
    ),
    (
        "unconfined-if-refused",
        ViolationKind::LosesValue,
        |op, engine| {
            sudo(op, engine).or_else(|refusal| match op {
                JailOp::Attach { command, .. } => Ok(command.clone().prefixed(SUDO, ["--"])?),
                _ => Err(refusal),
            })
        },
    ),
];

#[test]
fn defective_backend_gets_expected_violation() {
    let mut reports = String::new();
    for (name, kind, elevate) in DEFECTIVE {
        let backend = Defective {
            name,
            elevate: *elevate,
            findings: Vec::new,
        };
        let report = check(&backend).expect_err(name);
        assert!(report.contains(*kind), "{kind:?} is not in {report}");
        writeln!(reports, "{report}\n").unwrap();
    }
    let invalid_name = Defective {
        name: "My Sudo",
        elevate: sudo,
        findings: || {
            vec![
                Finding::fail("sudo is missing", "install it"),
                Finding {
                    status: FindingStatus::Fail,
                    what: "sudo is missing".to_owned(),
                    fix: Option::None,
                },
            ]
        },
    };
    writeln!(reports, "{}", check(&invalid_name).unwrap_err()).unwrap();
    insta::assert_snapshot!(reports);
}

#[test]
fn correct_backend_conforms() {
    let correct = Defective {
        name: "sudo",
        elevate: sudo,
        findings: || vec![Finding::fail("sudo is missing", "install it")],
    };
    check(&correct).unwrap();
}

/// Checks a backend with this defect in two environments, and returns the report.
fn report_of_two_environments(name: &'static str, test: &str, elevate: Elevate) -> Report {
    let backend = Defective {
        name,
        elevate,
        findings: Vec::new,
    };
    check_in_two_environments(&backend, test).expect_err(name)
}

#[test]
fn environment_value_in_argv_is_a_leak() {
    let test = concat!(module_path!(), "::environment_value_in_argv_is_a_leak");
    let report = report_of_two_environments("leaks", test, |op, engine| {
        let key = std::env::var("ANTHROPIC_API_KEY").unwrap_or_default();
        let key = format!("ANTHROPIC_API_KEY={key}");
        let plain = engine.command_line(op)?;
        Ok(plain.prefixed(SUDO, ["-n", &key, "--"])?)
    });
    insta::assert_snapshot!(report);
}

#[test]
fn environment_dependent_command_is_reported() {
    let test = concat!(
        module_path!(),
        "::environment_dependent_command_is_reported"
    );
    let report = report_of_two_environments("reads", test, |op, engine| {
        let options: &[&str] = match std::env::var("TERM") {
            Ok(term) if term.starts_with("colibri") => &["-n", "-b", "--"],
            _ => &["-n", "--"],
        };
        Ok(engine.command_line(op)?.prefixed(SUDO, options.to_vec())?)
    });
    insta::assert_snapshot!(report);
}

#[test]
fn wrong_test_name_is_reported() {
    let report = check_in_two_environments(&None, "x::no_such_test").unwrap_err();
    assert!(report.contains(ViolationKind::SecondRunFailed), "{report}");
    assert!(check(&Mdo).is_ok());
}
