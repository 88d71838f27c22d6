//! A secret is in the agent's environment and nowhere else: not in a file, an argument list, a log, an answer or an
//! error.

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

use colibri_tests::{Daemon, eventually, text};
use serde_json::json;

/// Prefix of every secret; the suffix names its source.
const MARK: &str = "hidden-value-4c1f";

fn secret(source: &str) -> String {
    format!("{MARK}-{source}")
}

/// A search for secrets.
#[derive(Default)]
struct Search {
    files: usize,
    processes: usize,
    answers: usize,
}

impl Search {
    fn text(&mut self, bytes: &[u8], path: &str) {
        let found = bytes
            .windows(MARK.len())
            .any(|window| window == MARK.as_bytes());
        assert!(!found, "a secret is in {path}:\n{}", text(bytes));
    }

    fn answer(&mut self, what: &str, output: &Output) {
        self.answers += 1;
        self.text(&output.stdout, &format!("stdout of {what}"));
        self.text(&output.stderr, &format!("stderr of {what}"));
    }

    /// Searches all files in a directory, except those that the test has written.
    fn files(&mut self, path: &Path, written: &[PathBuf]) {
        if written.iter().any(|file| file == path) {
            return;
        }
        self.text(path.display().to_string().as_bytes(), "a name");
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap().flatten() {
                self.files(&entry.path(), written);
            }
        } else {
            self.files += 1;
            // A socket cannot be read.
            self.text(
                &fs::read(path).unwrap_or_default(),
                &path.display().to_string(),
            );
        }
    }

    /// Searches the arguments of all processes, which every user can read.
    fn processes(&mut self) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if let Ok(argv) = fs::read(entry.path().join("cmdline")) {
                self.processes += 1;
                self.text(&argv, "a command line");
            }
        }
        let ps = Command::new("ps")
            .args(["axww", "-o", "args"])
            .output()
            .unwrap();
        assert!(ps.status.success(), "ps, of procps, is missing");
        self.text(&ps.stdout, "ps");
    }
}

/// Writes a file that only its owner can read.
fn private(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Returns a script that waits for a line and exits with 7 if it has every secret.
fn agent(sources: &[&str]) -> String {
    let tests: Vec<String> = sources
        .iter()
        .map(|source| {
            format!(
                "test \"${}\" = \"$(printf %s%s hidden-value -4c1f)-{source}\"",
                name(source)
            )
        })
        .collect();
    format!("read line; {} && exit 7; exit 1", tests.join(" && "))
}

/// Returns the name of the variable for a secret.
fn name(source: &str) -> String {
    format!("TOKEN_{}", source.to_uppercase().replace('-', "_"))
}

#[test]
fn secrets_appear_only_in_the_agents_environment() {
    let mut daemon = Daemon::prepare();
    let config = daemon.path(".config/colibri/colibri.toml");
    let profile_file = daemon.path("profile.env");
    let flag_file = daemon.path("flag.env");
    private(
        &profile_file,
        &format!(
            "# of the profile\n{}='{}'\n",
            name("profile-file"),
            secret("profile-file")
        ),
    );
    private(
        &flag_file,
        &format!(
            "export {}=\"{}\"  # comment\n",
            name("flag-file"),
            secret("flag-file")
        ),
    );
    let words = |script: &str| format!("program = \"sh\"\nargs = [\"-c\", '''{script}''']\n");
    let of_profile = ["profile", "profile-file", "asked"];
    let of_entry = ["profile", "profile-file", "daemon", "entry"];
    let text_of_config = format!(
        "[profile.secret]\nenv = {{ {} = \"{}\" }}\nenv_file = \"{}\"\nsecrets = [\"{}\"]\n{}\
         [profile.started]\nenv = {{ {} = \"{}\" }}\nenv_file = \"{}\"\nsecrets = [\"{}\"]\n{}\
         [[autostart]]\nprofile = \"started\"\nname = \"free\"\nenv = {{ {} = \"{}\" }}\n\
         [[autostart]]\nprofile = \"started\"\nname = \"jailed\"\njail = {{ path = \"/\" }}\nenv = {{ {} = \"{}\" }}\n\
         [[autostart]]\nprofile = \"started\"\nname = \"failing\"\nprogram = \"/no/such/program\"\nenv = {{ {} = \"{}\" }}\n",
        name("profile"),
        secret("profile"),
        profile_file.display(),
        name("asked"),
        words(&agent(&of_profile)),
        name("profile"),
        secret("profile"),
        profile_file.display(),
        name("daemon"),
        words(&agent(&of_entry)),
        name("entry"),
        secret("entry"),
        name("entry"),
        secret("entry"),
        name("entry"),
        secret("entry"),
    );
    private(&config, &text_of_config);
    let written = [config.clone(), profile_file.clone(), flag_file.clone()];
    let mut search = Search::default();

    let mut command = daemon.command("colibri-daemon");
    command
        .env(name("daemon"), secret("daemon"))
        .env("COLIBRI_LOG", "trace");
    daemon.launch_as(command);
    let mut events = daemon.connect();
    events.call("subscribe", json!({}));

    // Every source except the command line, which other users can read.
    let cli = |args: &[&str]| {
        let mut command = daemon.command("colibri");
        command
            .arg("--no-autostart")
            .args(args)
            .env(name("asked"), secret("asked"))
            .env(name("flag"), secret("flag"));
        command
    };
    let flag_env = format!("{}={}", name("env"), secret("env"));
    let (flag_name, flag_path) = (name("flag"), flag_file.display().to_string());
    let by_flags = ["--secret", &flag_name, "--env-file", &flag_path];
    let script = agent(&["flag", "flag-file"]);
    let script_env = agent(&["env"]);
    let looped = format!(
        "{}; test $? = 7",
        agent(&["flag", "flag-file"])
            .replace("exit", "return")
            .replace("read line;", "f() { read line;")
            + "; }; f"
    );
    let mut started = Vec::new();
    for jail in [&[][..], &["--jail-path", "/"]] {
        let sources: [Vec<&str>; 4] = [
            [&by_flags[..], &["--", "sh", "-c", &script]].concat(),
            vec!["--env", &flag_env, "--", "sh", "-c", &script_env],
            vec!["--profile", "secret"],
            // Three runs, each of which must have the secret.
            [
                &by_flags[..],
                &[
                    "--restart",
                    "always",
                    "--restart-delay",
                    "1ms",
                    "--restart-limit",
                    "2",
                ],
                &["--", "sh", "-c", &looped],
            ]
            .concat(),
        ];
        for words in &sources {
            let args = [&["spawn"], jail, &words[..]].concat();
            let output = cli(&args).output().unwrap();
            assert!(
                output.status.success(),
                "{args:?}: {}",
                text(&output.stderr)
            );
            let id = text(&output.stdout).trim().to_owned();
            search.answer("spawn", &output);
            started.push((id, words.contains(&"--restart")));
        }
    }
    for entry in ["free", "jailed"] {
        let id = eventually("it was started with the daemon", || {
            let agents = daemon.agents();
            let found = agents.iter().find(|agent| agent["name"] == entry)?;
            found["id"].as_str().map(str::to_owned)
        });
        started.push((id, false));
    }
    search.processes();
    search.files(&daemon.path(""), &written);

    // In the foreground; its arguments are in the process list while it runs.
    let mut run = cli(&[&["run"], &by_flags[..], &["--", "sh", "-c", &script]].concat())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it runs", || {
        (daemon.agents().len() == started.len() + 1).then_some(())
    });
    search.processes();
    std::io::Write::write_all(&mut run.stdin.take().unwrap(), b"go\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    search.answer("run", &output);

    // The exit code shows that each run had its secrets.
    for (id, restarts) in &started {
        for run in 1..=if *restarts { 3 } else { 1 } {
            eventually("its run has begun", || {
                (daemon.agent(id)["run"] == json!(run)).then_some(())
            });
            // Input may be a secret, too.
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

    // Error messages do not contain it.
    let broken = daemon.path("broken.env");
    private(&broken, &format!("A=1\n{}\n", secret("line")));
    let unclosed = daemon.path("unclosed.env");
    private(&unclosed, &format!("A=\"{}\n", secret("line")));
    let (broken, unclosed) = (broken.display().to_string(), unclosed.display().to_string());
    let nul = daemon.path("nul.env");
    private(&nul, &format!("A=\"{}\0\"\n", secret("nul")));
    let nul = nul.display().to_string();
    for (args, part) in [
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
            [&by_flags[..], &["--", "/no/such/program"]].concat(),
            "/no/such/program",
        ),
        (
            [
                &by_flags[..],
                &["--jail-path", "/no/such/root", "--", "true"],
            ]
            .concat(),
            "/no/such/root",
        ),
        (
            [
                &by_flags[..],
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
                text(&output.stderr).contains(part),
                "{verb} {args:?}: {}",
                text(&output.stderr)
            );
            search.answer(verb, &output);
        }
    }
    // The caller must provide the secrets that a profile lists.
    let asked = daemon
        .connect()
        .call("spawn-agent", json!({"profile": "secret"}));
    assert!(
        asked["error"]["message"]
            .as_str()
            .unwrap()
            .contains("TOKEN_ASKED"),
        "{asked}"
    );
    // The daemon's environment is not available to callers.
    let asked = daemon
        .connect()
        .call("spawn-agent", json!({"profile": "started"}));
    assert!(
        asked["error"]["message"]
            .as_str()
            .unwrap()
            .contains("TOKEN_DAEMON"),
        "{asked}"
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
    search.answer("spawn", &output);
    search.answer("config check", &cli(&["config", "check"]).output().unwrap());
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
            &flag_name,
            "--env-file",
            &flag_path,
            "--",
            "true",
        ],
    ] {
        let output = cli(args).output().unwrap();
        search.answer(&args.join(" "), &output);
    }
    for (id, _) in &started {
        for args in [&["logs"][..], &["events"], &["runs"]] {
            search.answer(
                &args.join(" "),
                &cli(&[args, &[id.as_str()]].concat()).output().unwrap(),
            );
        }
        let answers = daemon.agent(id).to_string();
        search.text(answers.as_bytes(), "get-agent");
    }
    let asked = daemon
        .connect()
        .call("list-profiles", json!({}))
        .to_string();
    search.text(asked.as_bytes(), "list-profiles");
    let asked = daemon
        .connect()
        .call("explain-spawn", json!({"profile": "secret"}))
        .to_string();
    search.text(asked.as_bytes(), "explain-spawn");

    // Diagnostics do not contain secrets. The search of files below includes the log.
    for mistake in [
        text_of_config.replace("[profile.started]\nenv", "[profile.started]\nenvironment"),
        text_of_config.replace(
            "[profile.started]\n",
            "[profile.started]\nruntime = \"x\"\n",
        ),
        text_of_config.replace("env = {", "env = { X = 5, "),
        text_of_config.replace("\" }", "}"),
    ] {
        assert_ne!(mistake, text_of_config);
        private(&config, &mistake);
        for args in [["config", "check"], ["config", "reload"]] {
            let output = cli(&args).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(
                text(&output.stderr).contains("colibri.toml:"),
                "{}",
                text(&output.stderr)
            );
            search.answer("config", &output);
        }
        let refused = daemon
            .command("colibri-daemon")
            .arg("--state-dir")
            .arg(daemon.path("other"))
            .output()
            .unwrap();
        search.answer("colibri-daemon", &refused);
    }
    private(&config, &text_of_config);

    // Events of subscribers, up to the last exit.
    let mut ended = 0;
    while ended < started.len() + 1 {
        let event = events.line().unwrap();
        ended += usize::from(event["method"] == "agent-exit");
        search.text(event.to_string().as_bytes(), "an event");
    }
    search.processes();
    let broken: Vec<PathBuf> = [broken, unclosed, nul].iter().map(PathBuf::from).collect();
    search.files(&daemon.path(""), &[&written[..], &broken].concat());
    let log = daemon.log();
    assert!(
        log.contains("could not") || log.contains("cannot start [[autostart]] agent"),
        "{log}"
    );
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
        let known = format!("\"{}\":\"<redacted>\"", name(source));
        let in_spec = started.iter().any(|(id, _)| {
            let spec = daemon.agent_dir(id).join("spec.json");
            fs::read_to_string(spec).unwrap().contains(&known)
        });
        assert!(in_spec, "{source} is known by its name");
    }
    assert!(audit.contains("<redacted>"), "{audit}");
    eprintln!(
        "searched {} files, {} command lines, {} outputs",
        search.files, search.processes, search.answers
    );
    assert!(
        search.files > 100 && search.processes > 30 && search.answers > 60,
        "{} {} {}",
        search.files,
        search.processes,
        search.answers
    );
}
