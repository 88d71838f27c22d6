//! The built-in backends hold what is promised, and each of a row of wrong ones is found out with the right words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};
use colibri_priv::conformance::{Broken, Report, check, check_in_two_environments};
use colibri_priv::{Finding, FindingStatus, Helper, Mdo, None, PrivBackend, PrivError};

mod mdo {
    colibri_priv::conformance_test!(colibri_priv::Mdo);
}
mod helper {
    colibri_priv::conformance_test!(colibri_priv::Helper::new("/usr/local/libexec/helper"));
}
mod none {
    colibri_priv::conformance_test!(colibri_priv::None);
}

#[test]
fn a_helper_that_would_be_searched_is_found_out() {
    let report = check(&Helper::new("bin/helper")).unwrap_err();
    assert_eq!(report.complaints[0].broken, Broken::Refuses, "{report}");
}

type Elevate = fn(&JailOp, &JailEngine) -> Result<CommandLine, PrivError>;

/// A backend that does one thing wrong.
struct Wrong {
    name: &'static str,
    elevate: Elevate,
    findings: fn() -> Vec<Finding>,
}

#[async_trait]
impl PrivBackend for Wrong {
    fn name(&self) -> &str {
        self.name
    }

    fn elevate(&self, op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError> {
        (self.elevate)(op, engine)
    }

    async fn preflight(&self) -> Vec<Finding> {
        (self.findings)()
    }
}

const SUDO: &str = "/usr/bin/sudo";

fn sudo(op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError> {
    Ok(engine.command_line(op)?.prefixed(SUDO, ["-n", "--"])?)
}

/// The words of a good backend, changed by `change`.
fn changed(
    op: &JailOp,
    engine: &JailEngine,
    change: impl FnOnce(&mut Vec<String>),
) -> Result<CommandLine, PrivError> {
    let (program, mut args) = sudo(op, engine)?.into_parts();
    change(&mut args);
    Ok(CommandLine::new(program, args)?)
}

/// How many words at the end are the agent's arguments.
fn arguments(op: &JailOp) -> usize {
    match op {
        JailOp::Attach { command, .. } | JailOp::Create { command, .. } => command.args().len(),
        _ => 0,
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Each wrong backend, and what must be found first.
const WRONG: &[(&str, Broken, Elevate)] = &[
    ("drops-the-last-word", Broken::Drops, |op, engine| {
        changed(op, engine, |args| {
            if arguments(op) > 0 {
                args.pop();
            }
        })
    }),
    ("drops-empty-words", Broken::Drops, |op, engine| {
        changed(op, engine, |args| args.retain(|arg| !arg.is_empty()))
    }),
    ("drops-a-second-separator", Broken::Drops, |op, engine| {
        changed(op, engine, |args| {
            let mut seen = 0;
            args.retain(|arg| {
                seen += usize::from(arg == "--");
                arg != "--" || seen <= 2
            });
        })
    }),
    ("reverses", Broken::Reorders, |op, engine| {
        changed(op, engine, |args| {
            let from = args.len() - arguments(op);
            args[from..].reverse();
        })
    }),
    ("sorts-options-first", Broken::Reorders, |op, engine| {
        changed(op, engine, |args| {
            let from = args.len() - arguments(op);
            args[from..].sort_by_key(|arg| !arg.starts_with('-'));
        })
    }),
    ("joins-to-a-line", Broken::Joins, |op, engine| {
        changed(op, engine, |args| {
            let from = args.len() - arguments(op);
            let line = args.split_off(from).join(" ");
            args.extend(Some(line).filter(|line| !line.is_empty()));
        })
    }),
    ("splits-at-blanks", Broken::Splits, |op, engine| {
        changed(op, engine, |args| {
            let from = args.len() - arguments(op);
            let tail = args.split_off(from);
            args.extend(tail.iter().flat_map(|arg| match arg.contains(' ') {
                true => arg.split_whitespace().map(str::to_owned).collect(),
                false => vec![arg.clone()],
            }));
        })
    }),
    ("quotes", Broken::Quotes, |op, engine| {
        changed(op, engine, |args| {
            let from = args.len() - arguments(op);
            for arg in &mut args[from..] {
                *arg = quoted(arg);
            }
        })
    }),
    ("quotes-the-program-too", Broken::Quotes, |op, engine| {
        changed(op, engine, |args| {
            if let JailOp::Attach { .. } | JailOp::Create { .. } = op {
                let from = args.len() - arguments(op) - 1;
                args[from] = quoted(&args[from]);
            }
        })
    }),
    ("appends", Broken::Appends, |op, engine| {
        changed(op, engine, |args| args.push("--log".to_owned()))
    }),
    ("trims", Broken::Changes, |op, engine| {
        changed(op, engine, |args| {
            for arg in args {
                *arg = arg.trim().to_lowercase();
            }
        })
    }),
    ("su-c", Broken::Joins, |op, engine| {
        let line = engine.command_line(op)?.to_string();
        Ok(CommandLine::new("/usr/bin/su", ["root", "-c", &line])?)
    }),
    ("a-shell-in-front", Broken::Shell, |op, engine| {
        let script = ["-c", "exec sudo -n \"$@\"", "sh"];
        Ok(engine.command_line(op)?.prefixed("/bin/sh", script)?)
    }),
    ("notes-the-agent-in-front", Broken::Leaks, |op, engine| {
        let reason = match op {
            JailOp::Attach { command, .. } | JailOp::Create { command, .. } => command.to_string(),
            _ => "teardown".to_owned(),
        };
        Ok(engine
            .command_line(op)?
            .prefixed(SUDO, ["-n", "-p", &reason, "--"])?)
    }),
    ("searches", Broken::Relative, |op, engine| {
        Ok(engine.command_line(op)?.prefixed("sudo", ["-n", "--"])?)
    }),
    ("counts-calls", Broken::Impure, |op, engine| {
        let serial = CALLS.fetch_add(1, Ordering::Relaxed) % 2;
        Ok(engine
            .command_line(op)?
            .prefixed(SUDO, ["-n", "-C", &format!("{}", serial + 3), "--"])?)
    }),
    ("forgets-the-jail", Broken::Loses, |op, _| match op {
        JailOp::Attach { command, .. } | JailOp::Create { command, .. } => {
            Ok(command.clone().prefixed(SUDO, ["-n", "--"])?)
        }
        _ => Ok(CommandLine::new(SUDO, ["-n", "--", "/usr/bin/true"])?),
    }),
    ("forgets-the-user", Broken::Loses, |op, engine| {
        let mut op = op.clone();
        if let JailOp::Attach { user, .. } | JailOp::Create { user, .. } = &mut op {
            *user = Option::None;
        }
        sudo(&op, engine)
    }),
    ("signals-only-the-first", Broken::Loses, |op, engine| {
        let mut op = op.clone();
        if let JailOp::Signal { pids, .. } = &mut op {
            pids.truncate(1);
        }
        sudo(&op, engine)
    }),
    ("cannot-remove", Broken::Refuses, |op, engine| match op {
        JailOp::Remove { .. } => Err(PrivError::NoVerb {
            doing: "remove jails",
            instead: "",
        }),
        _ => sudo(op, engine),
    }),
    ("hides-the-engines-words", Broken::Reworded, |op, engine| {
        sudo(op, engine).map_err(|_| PrivError::NoVerb {
            doing: "do that",
            instead: "",
        })
    }),
    ("unconfined-where-refused", Broken::Loses, |op, engine| {
        sudo(op, engine).or_else(|refusal| match op {
            JailOp::Attach { command, .. } => Ok(command.clone().prefixed(SUDO, ["--"])?),
            _ => Err(refusal),
        })
    }),
];

#[test]
fn every_wrong_backend_is_found_out_with_the_right_words() {
    let mut shown = String::new();
    for (name, broken, elevate) in WRONG {
        let wrong = Wrong {
            name,
            elevate: *elevate,
            findings: Vec::new,
        };
        let report = check(&wrong).expect_err(name);
        let found: Vec<_> = report.complaints.iter().map(|found| found.broken).collect();
        assert!(found.contains(broken), "{broken:?} is not in {report}");
        writeln!(shown, "{report}\n").unwrap();
    }
    let bad_name = Wrong {
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
    writeln!(shown, "{}", check(&bad_name).unwrap_err()).unwrap();
    insta::assert_snapshot!(shown);
}

#[test]
fn the_good_one_that_they_were_made_of_passes() {
    let good = Wrong {
        name: "sudo",
        elevate: sudo,
        findings: || vec![Finding::fail("sudo is missing", "install it")],
    };
    check(&good).unwrap();
}

fn in_two_environments(name: &'static str, test: &str, elevate: Elevate) -> Report {
    let wrong = Wrong {
        name,
        elevate,
        findings: Vec::new,
    };
    check_in_two_environments(&wrong, test).expect_err(name)
}

#[test]
fn a_value_of_the_environment_in_argv_is_found_out() {
    let test = concat!(
        module_path!(),
        "::a_value_of_the_environment_in_argv_is_found_out"
    );
    let report = in_two_environments("leaks", test, |op, engine| {
        let key = std::env::var("ANTHROPIC_API_KEY").unwrap_or_default();
        let key = format!("ANTHROPIC_API_KEY={key}");
        let plain = engine.command_line(op)?;
        Ok(plain.prefixed("/usr/bin/sudo", ["-n", &key, "--"])?)
    });
    insta::assert_snapshot!(report);
}

#[test]
fn a_backend_that_reads_the_environment_is_found_out() {
    let test = concat!(
        module_path!(),
        "::a_backend_that_reads_the_environment_is_found_out"
    );
    let report = in_two_environments("reads", test, |op, engine| {
        let quiet: &[&str] = match std::env::var("TERM") {
            Ok(term) if term.starts_with("colibri") => &["-n", "-b", "--"],
            _ => &["-n", "--"],
        };
        Ok(engine.command_line(op)?.prefixed(SUDO, quiet.to_vec())?)
    });
    insta::assert_snapshot!(report);
}

#[test]
fn a_test_of_another_name_is_told_so() {
    let report = check_in_two_environments(&None, "x::no_such_test").unwrap_err();
    assert_eq!(report.complaints[0].broken, Broken::Untried, "{report}");
    assert!(check(&Mdo).is_ok());
}
