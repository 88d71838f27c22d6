//! Output of `colibri explain` with every engine and backend, and error messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;

use colibri_tests::{Daemon, text};

#[test]
fn explain_prints_argv_of_every_engine_and_backend() {
    let daemon = Daemon::prepare();
    let mut shown = String::new();
    for engine in ["freebsd", "bubblewrap"] {
        for mode in ["mdo", "helper", "none"] {
            for options in [
                &[][..],
                &["--jail-name", "web"],
                &["--jail-path", "/srv/agent", "--cwd", "/work"],
                &["--jail-template", "/srv/template", "--jail-fdescfs"],
            ] {
                for json in [false, true] {
                    let mut command = daemon.command("colibri");
                    command
                        .env("COLIBRI_JAIL_ENGINE", engine)
                        .env("COLIBRI_JAIL_PRIV_MODE", mode)
                        .arg("explain");
                    if json {
                        command.arg("--json");
                    }
                    let output = command
                        .args(options)
                        .args(["--", "pi", "--mode", "json", "it's"])
                        .output()
                        .unwrap();
                    let (out, err) = (text(&output.stdout), text(&output.stderr));
                    writeln!(shown, "{engine} {mode} {}", options.join(" ")).unwrap();
                    writeln!(
                        shown,
                        "  {} {}",
                        output.status.code().unwrap(),
                        format!("{out}{err}").trim_end()
                    )
                    .unwrap();
                }
            }
        }
    }
    insta::assert_snapshot!(shown.replace("/usr/local/bin/bwrap", "/usr/bin/bwrap"));
}

#[test]
fn errors_name_the_cause_and_a_hint() {
    let daemon = Daemon::start();
    let spawn_twin = |code: &str| {
        let id = daemon.spawn(&["--name", "twin", "--", "sh", "-c", &format!("exit {code}")]);
        // The end of the agent releases its name.
        daemon.wait(&id);
        id
    };
    let (first, second) = (spawn_twin("1"), spawn_twin("2"));
    let asleep = daemon.spawn(&["--name", "asleep", "--", "sleep", "1000"]);
    let mut shown = String::new();
    for args in [
        &["wait", "missing"][..],
        &["wait", "twin"],
        &["rm", "asleep"],
        &["kill", "asleep", "--signal", "WRONG"],
        &["kill", "asleep", "--grace", "soon"],
        &["send", "missing", "hi"],
        &["logs", "asleep", "--stream", "stdout", "--from", "5"],
        &["run", "--", "no-such-program"],
        &["run", "--env", "novalue", "--", "true"],
        &["run", "--jail-name", "web", "--", "true"],
        &["fly"],
        &["kill", "asleep", "--grace", "0s"],
        &["kill", "asleep"],
    ] {
        let output = daemon.cli(args);
        writeln!(shown, "$ colibri {}", args.join(" ")).unwrap();
        writeln!(
            shown,
            "{}exit code {}\n",
            text(&output.stderr),
            output.status.code().unwrap()
        )
        .unwrap();
    }
    let mut ids = [first, second];
    ids.sort();
    for (id, placeholder) in [(&ids[0], "ID1"), (&ids[1], "ID2"), (&asleep, "ID3")] {
        shown = shown.replace(id.as_str(), placeholder);
    }
    let no_daemon = Daemon::prepare();
    let output = no_daemon.cli(&["ps"]);
    writeln!(
        shown,
        "{}",
        text(&output.stderr).replace(no_daemon.socket().to_str().unwrap(), "SOCKET")
    )
    .unwrap();
    insta::assert_snapshot!(shown);
}
