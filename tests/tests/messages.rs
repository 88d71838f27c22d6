//! Output of `colibri explain` with every engine and backend, and error messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;

use colibri_tests::{Daemon, program, text};

/// Removes the words that depend on the host and on the user of the test: directories of programs and libraries, and masks.
fn without_host_words(out: &str, json: bool) -> String {
    let programs = program("colibri").with_file_name("").display().to_string();
    let keep = |words: Vec<String>| -> Vec<String> {
        let mut kept: Vec<String> = Vec::new();
        for word in words {
            let last = |back: usize| kept.len().checked_sub(back).map(|at| kept[at].as_str());
            if word.starts_with("/dev/colibri-lib/") && last(2) == Some("--ro-bind") {
                kept.truncate(kept.len() - 2);
            } else if last(1) == Some("--mask") || last(1) == Some("--held") {
                kept.pop();
            } else if word != "--private-user" {
                kept.push(word.replace(&programs, "/libexec/"));
            }
        }
        kept
    };
    let text = match json {
        false => {
            let words = out.split(' ').map(str::to_owned).collect();
            keep(words).join(" ")
        }
        true => match serde_json::from_str::<serde_json::Value>(out) {
            Err(_) => out.to_owned(),
            Ok(mut value) => {
                let args = value["args"].as_array().unwrap().iter();
                let args = args.map(|word| word.as_str().unwrap().to_owned()).collect();
                value["args"] = serde_json::Value::from(keep(args));
                value["program"] = value["program"]
                    .as_str()
                    .unwrap()
                    .replace(&programs, "/libexec/")
                    .into();
                value.to_string()
            }
        },
    };
    let linker = |word: &str| word.starts_with("/dev/colibri-lib/ld-");
    let words: Vec<&str> = text
        .split(' ')
        .map(|word| {
            if linker(word) {
                "/dev/colibri-lib/LINKER"
            } else {
                word
            }
        })
        .collect();
    words
        .join(" ")
        .replace("/usr/local/bin/bwrap", "/usr/bin/bwrap")
}

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
                    let out = without_host_words(&text(&output.stdout), json);
                    let err = text(&output.stderr);
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
    insta::assert_snapshot!(shown.replace(&daemon.directory().display().to_string(), "/home"));
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
