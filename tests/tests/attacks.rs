//! Attempts of agents to leave their sandboxes, from the tables in `tests/attacks`: one by one, as an ordinary user, as root and
//! against two daemons of one user. `make attacks` prints them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use colibri_tests::helper::{create_user, uid};
use colibri_tests::{
    is_root_or_skipped, kill_9, kill_shims, processes_with, program, repository, rust_files,
    test_directory, text, wait_until,
};
use serde::Deserialize;

/// User of the daemons that are not root's.
const USER: &str = "colibri-attacked";
/// A user that is not the daemon's, for files and processes of others.
const OTHER_USER: &str = "colibri-bystander";
/// Minimum number of attempts, counted once for each identity.
const MIN_ATTEMPTS: usize = 120;
/// Number of attempts at the same time; most of them wait for processes.
const WORKERS: usize = 6;
/// Word that a script prints if its attempt succeeded; the functions `broken` of the prelude print it.
const SUCCESS: &str = "BROKEN";
/// Maximum time of each command, for timeout(1).
const COMMAND_TIMEOUT: &str = "40";
/// Variable that makes the test print the table; with the value `progress`, also each result at once.
const PRINT: &str = "COLIBRI_ATTACKS_TABLE";

/// A file of attempts of one class.
#[derive(Deserialize)]
struct Table {
    attempt: Vec<Attempt>,
}

/// One attempt.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Attempt {
    /// The subject and the attack.
    name: String,
    /// `user`, `root` and `two`: the daemon of an ordinary user, of root, and that of the user for attempts on the second daemon
    /// of the same user, which always runs.
    #[serde(default = "user_only")]
    who: Vec<String>,
    /// Options of `colibri run` for `script`.
    #[serde(default)]
    options: Vec<String>,
    /// Shell script that prepares the host as the daemon's user.
    #[serde(default)]
    setup: String,
    /// As `setup`, before it, as root.
    #[serde(default)]
    setup_root: String,
    /// Shell script of the agent.
    script: Option<String>,
    /// Shell script of the daemon's user, which starts agents itself with the function `agent`.
    outside: Option<String>,
    /// Shell script that examines the host afterwards, as root.
    #[serde(default)]
    check: String,
    /// Shell script that removes what remains, as root.
    #[serde(default)]
    cleanup: String,
    /// Texts that the output must contain; without any, the script must run to its end.
    #[serde(default)]
    expect: Vec<String>,
    /// Options with which the same attempt succeeds: `--no-jail` in place of all options, others in addition to them.
    control: Option<Vec<String>>,
    /// Shell condition of the control, for features that some kernels lack.
    #[serde(default)]
    control_if: String,
    /// Why there is no control.
    #[serde(default)]
    no_control: String,
    /// Words of docs/security.md about a limit of the sandbox, because of which the attempt is expected to succeed.
    #[serde(default)]
    limit: String,
    /// Runs alone, because it changes what others use.
    #[serde(default)]
    alone: bool,
}

fn user_only() -> Vec<String> {
    vec!["user".to_owned()]
}

/// An attempt for one identity.
struct Job {
    class: String,
    who: String,
    attempt: Attempt,
}

impl Job {
    /// Returns whether the control runs for this identity. An attempt without a sandbox as root could damage the host, and is
    /// proven by the one of the ordinary user, if there is one.
    fn has_control(&self) -> bool {
        let Some(control) = &self.attempt.control else {
            return false;
        };
        let has_jail = control.iter().all(|word| word != "--no-jail");
        has_jail || self.who != "root" || self.attempt.who == ["root"]
    }
}

/// The result of a job: its line of the table, and why it is open.
struct Line {
    title: String,
    is_limit: bool,
    open: Option<String>,
}

/// A daemon and its directory.
struct Host {
    dir: tempfile::TempDir,
    user: Option<u32>,
    child: Child,
}

impl Host {
    /// Starts a daemon of [`USER`], or of root.
    fn start(is_root: bool) -> Self {
        let dir = test_directory();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let user = (!is_root).then(|| uid(USER));
        chown(dir.path(), user, None).unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in [
            "colibri",
            "colibri-daemon",
            "colibri-shim",
            "colibri-sandbox",
            "colibri-proxy",
        ] {
            fs::copy(program(name), bin.join(name)).unwrap();
        }
        for name in ["home", "state", "t"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            chown(dir.path().join(name), user, user).unwrap();
        }
        // The socket is in a directory that the user owns, as in XDG_RUNTIME_DIR.
        fs::create_dir(dir.path().join("run")).unwrap();
        chown(dir.path().join("run"), user, user).unwrap();
        fs::set_permissions(dir.path().join("run"), fs::Permissions::from_mode(0o700)).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = command(
            user,
            dir.path(),
            &[bin.join("colibri-daemon").to_str().unwrap()],
        )
        .stderr(log)
        .spawn()
        .unwrap();
        let host = Self { dir, user, child };
        wait_until("the daemon listens", || host.socket().exists());
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/colibri.sock")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        kill_shims(&self.path("state"));
        for pid in processes_with(&self.dir.path().display().to_string()) {
            kill_9(pid);
        }
    }
}

/// Returns a command of a user, or of root, with the environment of a client of the daemon in this directory.
fn command(user: Option<u32>, dir: &Path, words: &[&str]) -> Command {
    let mut all = Vec::new();
    if user.is_some() {
        all.extend([
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
            "--",
        ]);
    }
    all.extend(words);
    let mut command = Command::new(all[0]);
    command
        .args(&all[1..])
        .env_clear()
        .env(
            "PATH",
            format!("{}:/usr/local/bin:/usr/bin:/bin", dir.join("bin").display()),
        )
        .env("HOME", dir.join("home"))
        .env("COLIBRI_SOCKET", dir.join("run/colibri.sock"))
        .env("COLIBRI_STATE_DIR", dir.join("state"))
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// The daemons, and what all attempts share.
struct Hosts {
    user: Host,
    root: Host,
    second: Host,
    prelude: String,
}

/// One execution of an attempt: the attack itself or its control.
struct Execution<'a> {
    host: &'a Host,
    variables: Vec<(&'static str, String)>,
    prelude: &'a str,
    attempt: &'a Attempt,
    is_control: bool,
}

impl Execution<'_> {
    /// Replaces variables in a text, the longest names first.
    fn expand(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.variables {
            text = text.replace(&format!("${name}"), value);
        }
        text
    }

    /// Returns the words that start an agent.
    fn run_words(&self) -> Vec<String> {
        let control = self.attempt.control.as_deref().unwrap_or_default();
        let mut words: Vec<String> = ["colibri", "--no-autostart", "run"]
            .map(str::to_owned)
            .into();
        if self.is_control && control.iter().any(|word| word == "--no-jail") {
            words.extend(control.iter().map(|word| self.expand(word)));
            return words;
        }
        words.extend(["--jail-path".to_owned(), "/".to_owned()]);
        words.extend(self.attempt.options.iter().map(|word| self.expand(word)));
        if self.is_control {
            words.extend(control.iter().map(|word| self.expand(word)));
        }
        words
    }

    fn exports(&self) -> String {
        let mut exports = String::new();
        for (name, value) in &self.variables {
            let _ = writeln!(exports, "export {name}='{value}'");
        }
        exports
    }

    /// Runs a shell script on the host. Its output goes to a file, because servers that it leaves keep the descriptors.
    fn on_host(&self, user: Option<u32>, script: &str, log: &Path) -> (bool, String) {
        let script = format!("{}{}\n{script}\n", self.exports(), self.prelude);
        let words = [
            "timeout",
            COMMAND_TIMEOUT,
            "setsid",
            "--wait",
            "bash",
            "-c",
            &script,
        ];
        let output = fs::File::create(log).unwrap();
        let status = command(user, self.host.dir.path(), &words)
            .env("CONTROL", if self.is_control { "1" } else { "" })
            .env("TERM", "xterm")
            .env("LC_ALL", "C.UTF-8")
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .status()
            .unwrap();
        (status.success(), text(&fs::read(log).unwrap()))
    }

    fn agent(&self, script: &str) -> Output {
        let mut words = vec!["timeout".to_owned(), COMMAND_TIMEOUT.to_owned()];
        words.extend(self.run_words());
        let script = format!("{}{}\n{script}\necho DONE\n", self.exports(), self.prelude);
        words.extend(["--", "bash", "-c", &script].map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        command(self.host.user, self.host.dir.path(), &words)
            .output()
            .unwrap()
    }

    /// Runs the attempt and returns all output.
    fn run(&self, log: &Path) -> Result<String, String> {
        let attempt = self.attempt;
        for (user, script) in [
            (None, &attempt.setup_root),
            (self.host.user, &attempt.setup),
        ] {
            let (succeeded, output) = match script.is_empty() {
                true => continue,
                false => self.on_host(user, script, log),
            };
            if !succeeded {
                return Err(format!("the set-up failed: {output}"));
            }
        }
        let mut output = String::new();
        if let Some(script) = &attempt.script {
            let ran = self.agent(script);
            output = format!("{}{}", text(&ran.stdout), text(&ran.stderr));
        }
        if let Some(script) = &attempt.outside {
            let words: Vec<String> = self
                .run_words()
                .iter()
                .map(|word| format!("'{word}'"))
                .collect();
            let script = format!(
                "agent() {{ {} \"$@\"; }}\n{script}\necho DONE\n",
                words.join(" ")
            );
            output += &self.on_host(self.host.user, &script, log).1;
        }
        if !attempt.check.is_empty() {
            output += &self.on_host(None, &attempt.check, log).1;
        }
        Ok(output)
    }
}

/// Runs an attempt and its control; returns why the attempt is open.
fn run(hosts: &Hosts, number: usize, job: &Job) -> Option<String> {
    let host = match job.who.as_str() {
        "root" => &hosts.root,
        _ => &hosts.user,
    };
    let attempt = &job.attempt;
    let mut problems = Vec::new();
    for is_control in [false, true] {
        if is_control && !job.has_control() {
            continue;
        }
        let kind = if is_control { "c" } else { "a" };
        let directory = host.path(&format!("t/{number:03}{kind}"));
        fs::create_dir_all(directory.join("w")).unwrap();
        for path in [directory.clone(), directory.join("w")] {
            chown(path, host.user, host.user).unwrap();
        }
        let show = |path: &Path| path.display().to_string();
        let execution = Execution {
            host,
            // No name is the beginning of a later one.
            variables: vec![
                ("B_SOCKET", show(&hosts.second.socket())),
                ("B_STATE", show(&hosts.second.path("state"))),
                ("B_DIR", show(hosts.second.dir.path())),
                ("STATE", show(&host.path("state"))),
                ("SOCKET", show(&host.socket())),
                ("DAEMON", host.child.id().to_string()),
                ("OTHER", OTHER_USER.to_owned()),
                ("HOST_HOME", show(&host.path("home"))),
                ("HOST_UID", host.user.unwrap_or(0).to_string()),
                ("BIN", show(&host.path("bin"))),
                ("T", show(&directory)),
                ("W", show(&directory.join("w"))),
            ],
            prelude: &hosts.prelude,
            attempt,
            is_control,
        };
        let log = host.path(&format!("t/{number:03}{kind}.log"));
        if is_control
            && !attempt.control_if.is_empty()
            && !execution.on_host(None, &attempt.control_if, &log).0
        {
            continue;
        }
        let result = execution.run(&log);
        if !attempt.cleanup.is_empty() {
            execution.on_host(None, &attempt.cleanup, &log);
        }
        for pid in processes_with(&format!("T={}", directory.display())) {
            kill_9(pid);
        }
        let output = match result {
            Ok(output) => output,
            Err(error) => {
                problems.push(error);
                break;
            }
        };
        let succeeded = output.lines().any(|line| line.starts_with(SUCCESS));
        if is_control {
            if !succeeded {
                problems.push(format!("the control does not succeed:\n{output}"));
            }
            continue;
        }
        let mut expected = attempt.expect.iter().map(String::as_str);
        let missing = match attempt.expect.is_empty() {
            true => (!output.contains("DONE")).then_some("DONE"),
            false => expected.find(|text| !output.contains(text)),
        };
        if !attempt.limit.is_empty() {
            if !succeeded {
                problems.push(format!(
                    "the limit does not exist any more, remove `limit`:\n{output}"
                ));
            }
        } else if succeeded {
            problems.push(format!("it succeeded:\n{output}"));
        } else if let Some(missing) = missing {
            problems.push(format!("{missing:?} is missing in:\n{output}"));
        }
    }
    (!problems.is_empty()).then(|| problems.join("\n"))
}

/// Reads the tables, and checks what they must contain. The variable `COLIBRI_ATTACKS` selects attempts by a part of their title.
fn jobs() -> Vec<Job> {
    let directory = repository().join("tests/attacks");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    let selected = std::env::var("COLIBRI_ATTACKS").unwrap_or_default();
    let limits = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let mut jobs = Vec::new();
    for file in files {
        let table: Table = basic_toml::from_str(&fs::read_to_string(&file).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let class = file.file_stem().unwrap().to_str().unwrap().to_owned();
        for attempt in table.attempt {
            let name = &attempt.name;
            assert!(name.len() <= 60, "the name is too long: {name}");
            assert!(
                attempt.script.is_some() != attempt.outside.is_some(),
                "{name}: give script or outside"
            );
            assert!(
                attempt.control.is_none() != attempt.no_control.is_empty(),
                "{name}: give control, or no_control and the reason"
            );
            assert!(
                limits.contains(&attempt.limit),
                "{name}: docs/security.md does not name the limit"
            );
            for who in &attempt.who {
                assert!(
                    ["user", "root", "two"].contains(&who.as_str()),
                    "{name}: {who}"
                );
                let title = format!("{class}: {name} ({who})");
                if title.contains(&selected) {
                    jobs.push(Job {
                        class: class.clone(),
                        who: who.clone(),
                        attempt: attempt.clone(),
                    });
                }
            }
        }
    }
    assert!(
        !selected.is_empty() || jobs.len() >= MIN_ATTEMPTS,
        "{} attempts",
        jobs.len()
    );
    jobs
}

#[test]
fn every_attempt_is_refused() {
    if !is_root_or_skipped("it runs daemons of root and of another user") {
        return;
    }
    for user in [USER, OTHER_USER] {
        create_user(user);
    }
    let jobs = jobs();
    let hosts = Hosts {
        user: Host::start(false),
        root: Host::start(true),
        second: Host::start(false),
        prelude: fs::read_to_string(repository().join("tests/attacks/prelude.sh")).unwrap(),
    };
    let lines: Mutex<Vec<Option<Line>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let run_job = |number: usize| {
        let job = &jobs[number];
        let open = run(&hosts, number, job);
        let title = format!("{}: {} ({})", job.class, job.attempt.name, job.who);
        if std::env::var(PRINT).is_ok_and(|value| value == "progress") {
            let detail = open.as_deref().unwrap_or_default();
            let _ = writeln!(
                std::io::stderr(),
                "{title}: {}{detail}",
                if open.is_some() { "OPEN " } else { "ok" }
            );
        }
        lines.lock().unwrap()[number] = Some(Line {
            title,
            is_limit: !job.attempt.limit.is_empty(),
            open,
        });
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    match jobs.get(number) {
                        Some(job) if job.attempt.alone => {}
                        Some(_) => run_job(number),
                        None => return,
                    }
                }
            });
        }
    });
    for (number, job) in jobs.iter().enumerate() {
        if job.attempt.alone {
            run_job(number);
        }
    }
    let lines = lines.into_inner().unwrap();
    report(&lines.into_iter().map(Option::unwrap).collect::<Vec<_>>());
}

#[test]
fn table_of_protections_names_existing_tests() {
    let page = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let section = page.split("### Protections beside those of others").nth(1);
    let section = section.unwrap().split("\n#").next().unwrap();
    let sources: String = ["tests/tests", "crates"]
        .iter()
        .flat_map(|directory| rust_files(&repository().join(directory)))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let mut names = 0;
    for row in section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2)
    {
        let tested_by = row.rsplit('|').nth(1).unwrap();
        for name in tested_by.split('`').skip(1).step_by(2) {
            let exists = match name.contains('/') {
                true => repository().join(name).exists(),
                false => {
                    let class = format!("tests/attacks/{name}.toml");
                    repository().join(class).exists() || sources.contains(&format!("fn {name}("))
                }
            };
            assert!(exists, "{name} in {row}");
            names += 1;
        }
    }
    assert!(names > 30, "{names} names");
}

/// Prints the table if that is requested, and panics if an attempt is open.
fn report(lines: &[Line]) {
    let open: Vec<&Line> = lines.iter().filter(|line| line.open.is_some()).collect();
    let limits = lines.iter().filter(|line| line.is_limit).count();
    let summary = format!(
        "{} attempts, {} open, {limits} at limits that docs/security.md names",
        lines.len(),
        open.len()
    );
    if std::env::var_os(PRINT).is_some() {
        let mut table = String::new();
        for line in lines {
            let state = match (&line.open, line.is_limit) {
                (Some(_), _) => "OPEN ",
                (None, true) => "limit",
                (None, false) => "ok   ",
            };
            let _ = writeln!(table, "{state} {}", line.title);
        }
        let _ = writeln!(table, "{summary}");
        std::io::stdout().write_all(table.as_bytes()).unwrap();
    }
    let details: Vec<String> = open
        .iter()
        .map(|line| {
            format!(
                "OPEN {}: {}",
                line.title,
                line.open.as_deref().unwrap_or_default()
            )
        })
        .collect();
    assert!(open.is_empty(), "{summary}\n{}", details.join("\n"));
}
