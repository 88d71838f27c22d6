//! A secret is only in the environment of its agent, and not in a file, an argument list, a log, an answer or an error.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use colibri_tests::{Daemon, NO_JAIL_AND_SANDBOX, eventually, text, wait_until, write_file};
use serde_json::json;

/// Prefix of every secret.
const MARK: &str = "hidden-value-4c1f";

/// Returns the secret from a source: a profile, a file, an option, or the input of the agent.
fn secret(source: &str) -> String {
    format!("{MARK}-{source}")
}

/// A search for secrets, with the numbers of searched items.
#[derive(Default)]
struct Search {
    files: usize,
    command_lines: usize,
    answers: usize,
}

impl Search {
    /// Fails if there is a secret in a text.
    fn check_text(&mut self, bytes: &[u8], source: &str) {
        let has_secret = bytes
            .windows(MARK.len())
            .any(|window| window == MARK.as_bytes());
        assert!(!has_secret, "a secret is in {source}:\n{}", text(bytes));
    }

    /// Searches the output of a command.
    fn check_answer(&mut self, command: &str, output: &Output) {
        self.answers += 1;
        self.check_text(&output.stdout, &format!("stdout of {command}"));
        self.check_text(&output.stderr, &format!("stderr of {command}"));
    }

    /// Searches names and contents of all files in a directory, except those that the test has written.
    fn check_files(&mut self, path: &Path, written: &[PathBuf]) {
        if written.iter().any(|file| file == path) {
            return;
        }
        self.check_text(path.display().to_string().as_bytes(), "a name");
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap().flatten() {
                self.check_files(&entry.path(), written);
            }
        } else {
            self.files += 1;
            // The content of a socket cannot be read.
            self.check_text(
                &fs::read(path).unwrap_or_default(),
                &path.display().to_string(),
            );
        }
    }

    /// Searches the arguments of all processes, which every user can read.
    fn check_processes(&mut self) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if let Ok(argv) = fs::read(entry.path().join("cmdline")) {
                self.command_lines += 1;
                self.check_text(&argv, "a command line");
            }
        }
        let ps = Command::new("ps")
            .args(["axww", "-o", "args"])
            .output()
            .unwrap();
        assert!(ps.status.success(), "ps, of procps, is missing");
        self.check_text(&ps.stdout, "ps");
    }
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_file(path, text, 0o600);
}

/// Returns a script that waits for a line, and exits with 7 if its environment has the secrets of these sources.
fn agent_script(sources: &[&str]) -> String {
    let tests: Vec<String> = sources
        .iter()
        .map(|source| {
            format!(
                "test \"${}\" = \"$(printf %s%s hidden-value -4c1f)-{source}\"",
                variable(source)
            )
        })
        .collect();
    format!("read line; {} && exit 7; exit 1", tests.join(" && "))
}

/// Returns the name of the variable for a secret.
fn variable(source: &str) -> String {
    format!("TOKEN_{}", source.to_uppercase().replace('-', "_"))
}

#[test]
fn secrets_appear_only_in_the_agents_environment() {
    let mut daemon = Daemon::prepare();
    let config = daemon.path(".config/colibri/colibri.toml");
    let profile_file = daemon.path("profile.env");
    let flag_file = daemon.path("flag.env");
    write_private(
        &profile_file,
        &format!(
            "# of the profile\n{}='{}'\n",
            variable("profile-file"),
            secret("profile-file")
        ),
    );
    write_private(
        &flag_file,
        &format!(
            "export {}=\"{}\"  # comment\n",
            variable("flag-file"),
            secret("flag-file")
        ),
    );
    let program = |script: &str| format!("program = \"sh\"\nargs = [\"-c\", '''{script}''']\n");
    let profile_sources = ["profile", "profile-file", "asked"];
    let entry_sources = ["profile", "profile-file", "daemon", "entry"];
    let settings = format!(
        "[profile.secret]\nenv = {{ {} = \"{}\" }}\nenv_file = \"{}\"\nsecrets = [\"{}\"]\n{}\
         [profile.started]\nenv = {{ {} = \"{}\" }}\nenv_file = \"{}\"\nsecrets = [\"{}\"]\n{}\
         [[autostart]]\nprofile = \"started\"\nname = \"free\"\nenv = {{ {} = \"{}\" }}\n\
         [[autostart]]\nprofile = \"started\"\nname = \"jailed\"\njail = {{ path = \"/\" }}\nenv = {{ {} = \"{}\" }}\n\
         [[autostart]]\nprofile = \"started\"\nname = \"failing\"\nprogram = \"/no/such/program\"\nenv = {{ {} = \"{}\" }}\n",
        variable("profile"),
        secret("profile"),
        profile_file.display(),
        variable("asked"),
        program(&agent_script(&profile_sources)),
        variable("profile"),
        secret("profile"),
        profile_file.display(),
        variable("daemon"),
        program(&agent_script(&entry_sources)),
        variable("entry"),
        secret("entry"),
        variable("entry"),
        secret("entry"),
        variable("entry"),
        secret("entry"),
    );
    write_private(&config, &settings);
    let written = [config.clone(), profile_file.clone(), flag_file.clone()];
    let mut search = Search::default();

    let mut command = daemon.command("colibri-daemon");
    command
        .env(variable("daemon"), secret("daemon"))
        .env("COLIBRI_LOG", "trace");
    daemon.launch_command(command);
    let mut events = daemon.connect();
    events.call("subscribe", json!({}));

    // Secrets from every source except an option of the command line, which other users can read.
    let cli = |args: &[&str]| {
        let mut command = daemon.command("colibri");
        command
            .arg("--no-autostart")
            .args(args)
            .env(variable("asked"), secret("asked"))
            .env(variable("flag"), secret("flag"));
        command
    };
    let flag_env = format!("{}={}", variable("env"), secret("env"));
    let (flag_variable, flag_path) = (variable("flag"), flag_file.display().to_string());
    let secret_options = ["--secret", &flag_variable, "--env-file", &flag_path];
    let script = agent_script(&["flag", "flag-file"]);
    let script_env = agent_script(&["env"]);
    let restarted_script = format!("({script}); test $? = 7");
    let mut started = Vec::new();
    for jail in NO_JAIL_AND_SANDBOX {
        let sources: [Vec<&str>; 4] = [
            [&secret_options[..], &["--", "sh", "-c", &script]].concat(),
            vec!["--env", &flag_env, "--", "sh", "-c", &script_env],
            vec!["--profile", "secret"],
            // Three runs, each of which must have the secret.
            [
                &secret_options[..],
                &[
                    "--restart",
                    "always",
                    "--restart-delay",
                    "1ms",
                    "--restart-limit",
                    "2",
                ],
                &["--", "sh", "-c", &restarted_script],
            ]
            .concat(),
        ];
        for options in &sources {
            let args = [&["spawn"], jail, &options[..]].concat();
            let output = cli(&args).output().unwrap();
            assert!(
                output.status.success(),
                "{args:?}: {}",
                text(&output.stderr)
            );
            let id = text(&output.stdout).trim().to_owned();
            search.check_answer("spawn", &output);
            started.push((id, options.contains(&"--restart")));
        }
    }
    for entry in ["free", "jailed"] {
        let id = eventually("the agent was started with the daemon", || {
            let agents = daemon.agents();
            let agent = agents.iter().find(|agent| agent["name"] == entry)?;
            agent["id"].as_str().map(str::to_owned)
        });
        started.push((id, false));
    }
    search.check_processes();
    search.check_files(daemon.directory(), &written);

    // `run` in the foreground: the process list shows its arguments.
    let mut run = cli(&[&["run"], &secret_options[..], &["--", "sh", "-c", &script]].concat())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the agent of run has started", || {
        daemon.agents().len() == started.len() + 1
    });
    search.check_processes();
    std::io::Write::write_all(&mut run.stdin.take().unwrap(), b"go\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    search.check_answer("run", &output);

    // The exit code shows that each run had its secrets.
    for (id, restarts) in &started {
        for run in 1..=if *restarts { 3 } else { 1 } {
            wait_until("the run has started", || {
                daemon.agent(id)["run"] == json!(run)
            });
            // The input contains a secret, too.
            let input = json!({"id": id, "data": format!("{}\n", secret("input"))});
            daemon.connect().call("send-input", input);
        }
        let agent = daemon.connect().call("wait-agent", json!({"id": id}))["result"].clone();
        let (code, runs) = if *restarts { (0, 3) } else { (7, 1) };
        assert_eq!(
            (&agent["exit"], &agent["run"]),
            (&json!({"code": code, "reason": "exited"}), &json!(runs)),
            "{agent}"
        );
    }

    // Error messages do not contain secrets.
    let broken = daemon.path("broken.env");
    write_private(&broken, &format!("A=1\n{}\n", secret("line")));
    let unclosed = daemon.path("unclosed.env");
    write_private(&unclosed, &format!("A=\"{}\n", secret("line")));
    let (broken, unclosed) = (broken.display().to_string(), unclosed.display().to_string());
    let nul = daemon.path("nul.env");
    write_private(&nul, &format!("A=\"{}\0\"\n", secret("nul")));
    let nul = nul.display().to_string();
    for (args, expected) in [
        (
            vec!["--env-file", &broken, "--", "true"],
            "broken.env:2: the line has no '='",
        ),
        (
            vec!["--env-file", &unclosed, "--", "true"],
            "unclosed.env:1: the quote",
        ),
        (
            vec!["--env-file", &nul, "--", "true"],
            "nul.env:1: the value contains a NUL",
        ),
        (
            vec!["--env-file", "/no/such/file", "--", "true"],
            "cannot read environment file /no/such/file",
        ),
        (
            vec!["--secret", "NOT_SET_HERE", "--", "true"],
            "cannot pass secret NOT_SET_HERE",
        ),
        (
            [&secret_options[..], &["--", "/no/such/program"]].concat(),
            "/no/such/program",
        ),
        (
            [
                &secret_options[..],
                &["--jail-path", "/no/such/root", "--", "true"],
            ]
            .concat(),
            "/no/such/root",
        ),
        (
            [
                &secret_options[..],
                &["--jail-path", "/", "--", "/no/such/program"],
            ]
            .concat(),
            "/no/such/program",
        ),
        (
            vec!["--profile", "secret", "--", "/no/such/program"],
            "/no/such/program",
        ),
    ] {
        for verb in ["run", "spawn"] {
            let output = cli(&[&[verb], &args[..]].concat()).output().unwrap();
            let code = output.status.code().unwrap();
            assert!(
                matches!((verb, code), ("run", 125..=127) | ("spawn", 1)),
                "{verb} {args:?}: {code}"
            );
            assert!(
                text(&output.stderr).contains(expected),
                "{verb} {args:?}: {}",
                text(&output.stderr)
            );
            search.check_answer(verb, &output);
        }
    }
    // The caller must provide the secrets that a profile lists.
    let refused = daemon
        .connect()
        .call("spawn-agent", json!({"profile": "secret"}));
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("TOKEN_ASKED"),
        "{refused}"
    );
    // The daemon's environment is not available to callers.
    let refused = daemon
        .connect()
        .call("spawn-agent", json!({"profile": "started"}));
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("TOKEN_DAEMON"),
        "{refused}"
    );
    let output = daemon.cli(&["spawn", "--profile", "secret"]);
    assert_eq!(output.status.code(), Some(1), "the secret is not set");

    // A file that others can read is refused.
    fs::set_permissions(&profile_file, fs::Permissions::from_mode(0o644)).unwrap();
    let output = cli(&["spawn", "--profile", "secret"]).output().unwrap();
    assert!(
        text(&output.stderr).contains("chmod 600"),
        "{}",
        text(&output.stderr)
    );
    search.check_answer("spawn", &output);
    search.check_answer("config check", &cli(&["config", "check"]).output().unwrap());
    fs::set_permissions(&profile_file, fs::Permissions::from_mode(0o600)).unwrap();

    // All outputs that a client can request.
    for args in [
        &["ps"][..],
        &["ps", "--json"],
        &["profiles"],
        &["profiles", "--json"],
        &["doctor"],
        &["config", "check"],
        &["config", "reload", "--json"],
        &["explain", "--profile", "secret"],
        &[
            "explain",
            "--json",
            "--jail-path",
            "/",
            "--secret",
            &flag_variable,
            "--env-file",
            &flag_path,
            "--",
            "true",
        ],
    ] {
        let output = cli(args).output().unwrap();
        search.check_answer(&args.join(" "), &output);
    }
    for (id, _) in &started {
        for args in [&["logs"][..], &["events"], &["runs"]] {
            search.check_answer(
                &args.join(" "),
                &cli(&[args, &[id.as_str()]].concat()).output().unwrap(),
            );
        }
        let answer = daemon.agent(id).to_string();
        search.check_text(answer.as_bytes(), "get-agent");
    }
    for (method, params) in [
        ("list-profiles", json!({})),
        ("explain-spawn", json!({"profile": "secret"})),
    ] {
        let answer = daemon.connect().call(method, params).to_string();
        search.check_text(answer.as_bytes(), method);
    }

    // Diagnostics of settings do not contain secrets. The search of files below includes the log.
    for mistake in [
        settings.replace("[profile.started]\nenv", "[profile.started]\nenvironment"),
        settings.replace(
            "[profile.started]\n",
            "[profile.started]\nruntime = \"x\"\n",
        ),
        settings.replace("env = {", "env = { X = 5, "),
        settings.replace("\" }", "}"),
    ] {
        assert_ne!(mistake, settings);
        write_private(&config, &mistake);
        for args in [["config", "check"], ["config", "reload"]] {
            let output = cli(&args).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(
                text(&output.stderr).contains("colibri.toml:"),
                "{}",
                text(&output.stderr)
            );
            search.check_answer("config", &output);
        }
        let refused = daemon
            .command("colibri-daemon")
            .arg("--state-dir")
            .arg(daemon.path("other"))
            .output()
            .unwrap();
        search.check_answer("colibri-daemon", &refused);
    }
    write_private(&config, &settings);

    // Events of subscribers, up to the last exit.
    let mut ended = 0;
    while ended < started.len() + 1 {
        let event = events.next_line().unwrap();
        ended += usize::from(event["method"] == "agent-exit");
        search.check_text(event.to_string().as_bytes(), "an event");
    }
    search.check_processes();
    let broken: Vec<PathBuf> = [broken, unclosed, nul].iter().map(PathBuf::from).collect();
    search.check_files(daemon.directory(), &[&written[..], &broken].concat());
    let log = daemon.log();
    assert!(log.contains("cannot start [[autostart]] agent"), "{log}");
    let audit = fs::read_to_string(daemon.state().join("audit.jsonl")).unwrap();
    for source in [
        "flag",
        "flag-file",
        "env",
        "profile",
        "profile-file",
        "asked",
        "daemon",
        "entry",
    ] {
        let redacted = format!("\"{}\":\"<redacted>\"", variable(source));
        let in_spec = started.iter().any(|(id, _)| {
            let spec = daemon.agent_dir(id).join("spec.json");
            fs::read_to_string(spec).unwrap().contains(&redacted)
        });
        assert!(in_spec, "no specification names the variable of {source}");
    }
    assert!(audit.contains("<redacted>"), "{audit}");
    eprintln!(
        "searched {} files, {} command lines, {} outputs",
        search.files, search.command_lines, search.answers
    );
    assert!(
        search.files > 100 && search.command_lines > 30 && search.answers > 60,
        "{} {} {}",
        search.files,
        search.command_lines,
        search.answers
    );
}
