//! Allowed requests to the setuid helper: agents are confined and start with a clean process state, a caller can signal
//! and remove only agents that it has started, and an unprivileged daemon runs agents through the helper.
#![cfg(target_os = "linux")]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::fs;
use std::process::{Child, Command, Stdio};

use colibri_tests::helper::{
    AGENT, CALLER, Helper, HelperCall, OTHER, PREFIX, SetuidRoot, as_user, create_request,
    install_program, install_setuid_program, processes_named, program, records_of,
    start_sleeping_agent, uid, unique_mark, wait_for_process,
};
use colibri_tests::{eventually, kill_9, processes_with, signal, test_directory, text, wait_until};
use rustix::process::Signal;

/// Prints the process state that an agent inherits.
const PRINT_STATE: &str = "id -u; id -g; id -G; pwd; umask; grep -E '^(Cap|NoNewPrivs|SigBlk|SigIgn|NSpid)' /proc/self/status | grep -v NSpid; \
    ulimit -n; ulimit -c; ulimit -f; env | sort; ls /proc/self/fd | tr '\\n' ' '; cat /proc/1/environ 2>&1 | tr '\\0' '\\n' | grep -c SECRET";

#[test]
fn agent_inherits_no_process_state_of_the_caller() {
    let helper = Helper::shared();
    // The caller chooses descriptors, ignored signals, limits, umask, working directory and variables.
    let caller_state = "exec 3</etc/passwd 7</ 9>/dev/null; trap '' TERM HUP USR1; ulimit -S -n 64; umask 0; cd /tmp; \
        export LD_PRELOAD=/tmp/x.so LD_LIBRARY_PATH=/tmp LD_AUDIT=/tmp/x.so GLIBC_TUNABLES=glibc.malloc.check=3 GCONV_PATH=/tmp \
        BASH_ENV=/tmp/x ENV=/tmp/x MALLOC_CHECK_=3 SECRET=x HOME=/root LC_ALL=C; ";
    let output = helper.sh(
        CALLER,
        &format!(
            "{caller_state} exec $H create --jail colibri-clean --path / --ip4 disable -- sh -c \"{}\"",
            PRINT_STATE.replace('$', "\\$")
        ),
    );
    // The exit code of the last grep, which must find nothing.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let gid = Command::new("id").args(["-g", AGENT]).output().unwrap();
    let answer = text(&output.stdout)
        .replace(&uid(AGENT).to_string(), "AGENT")
        .replace(text(&gid.stdout).trim(), "AGENT-GID");
    insta::assert_snapshot!(answer);
}

#[test]
fn exit_code_and_output_are_passed_through() {
    let helper = Helper::shared();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let script = format!("echo out; echo err >&2; {script}");
        let output = helper.call(CALLER, &create_request("colibri-code", &script));
        let answer = (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        );
        assert_eq!(
            answer,
            (Some(code), "out\n".into(), "err\n".into()),
            "{script}"
        );
    }
}

#[test]
fn hidden_directory_is_empty_for_the_agent() {
    let helper = Helper::shared();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("secret"), "x").unwrap();
    let hidden = state.to_str().unwrap();
    let arguments = [
        "create",
        "--jail",
        "colibri-hide",
        "--path",
        "/",
        "--ip4",
        "disable",
        "--hide",
        hidden,
        "--",
        "sh",
        "-c",
        "ls -A $0; echo done",
        hidden,
    ];
    // First the parent directory belongs to root and only root can enter it, then it belongs to the agent.
    let below_root = helper.call(CALLER, &arguments);
    assert_eq!(text(&below_root.stdout), "done\n", "{below_root:?}");
    std::os::unix::fs::chown(directory.path(), Some(uid(AGENT)), None).unwrap();
    let below_agent = helper.call(CALLER, &arguments);
    assert_eq!(
        (text(&below_agent.stdout), text(&below_agent.stderr)),
        ("done\n".into(), String::new())
    );
    // The mounts do not propagate to the host.
    assert_eq!(fs::read_to_string(state.join("secret")).unwrap(), "x");
    assert!(
        fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .lines()
            .all(|line| !line.contains(PREFIX))
    );
}

#[test]
fn working_directory_is_inside_the_jail() {
    let helper = Helper::shared();
    let arguments = [
        "create",
        "--jail",
        "colibri-dir",
        "--path",
        "/",
        "--ip4",
        "disable",
        "--workdir",
        "/usr/bin",
        "--",
        "pwd",
    ];
    assert_eq!(text(&helper.call(CALLER, &arguments).stdout), "/usr/bin\n");
    let missing_directory =
        arguments.map(|word| if word == "/usr/bin" { "/nothing" } else { word });
    let output = helper.call(CALLER, &missing_directory);
    assert_ne!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("/nothing"), "{output:?}");
}

#[test]
fn attach_on_linux_is_refused_with_hint() {
    let helper = Helper::shared();
    let output = helper.call(CALLER, &["attach", "--jail", "web", "--", "true"]);
    let answer = (output.status.code(), text(&output.stderr));
    let expected = "colibri-jail-helper: refused: cannot enter jail web: Linux has no persistent jails; use create\n";
    assert_eq!(answer, (Some(77), expected.to_owned()));
}

#[test]
fn jail_name_is_refused_while_its_agent_runs() {
    let helper = Helper::shared();
    let mark = &unique_mark("name");
    let mut first = start_sleeping_agent(CALLER, "colibri-name", mark);
    let create = |user| helper.call(user, &create_request("colibri-name", "echo ran"));
    let second = create(CALLER);
    let answer = (second.status.code(), text(&second.stdout));
    assert_eq!(answer, (Some(71), String::new()), "{second:?}");
    assert!(text(&second.stderr).contains("exists; give"));
    // Another caller learns nothing about it: the name is free.
    assert_eq!(text(&create(OTHER).stdout), "ran\n");
    let removed = helper.call(CALLER, &["remove", "--jail", "colibri-name"]);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(first.0.wait().unwrap().code(), Some(128 + 9));
    assert_eq!(text(&create(CALLER).stdout), "ran\n");
}

#[test]
fn signal_reaches_only_the_callers_processes() {
    let helper = Helper::shared();
    let signal = |user: &str, pids: &[i32]| {
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let mut arguments = vec!["signal", "--signal", "KILL"];
        arguments.extend(pids.iter().flat_map(|pid| ["--pid", pid.as_str()]));
        helper.call(user, &arguments)
    };
    // The first process is an orphan in a separate session.
    let script = "(setsid sh -c 'sleep 1000; :' &); sleep 1001; :";
    let mark = &unique_mark("signal");
    let mut agent = HelperCall::start(CALLER, &create_request("colibri-own", script), mark);
    wait_until("both processes sleep", || {
        processes_named(mark, "sleep").len() == 2
    });
    let sleeps = processes_named(mark, "sleep");
    // The agent runs as another user, so the kernel does not let the caller signal it.
    let direct = helper.sh(CALLER, &format!("kill -KILL {}", sleeps[0]));
    assert!(text(&direct.stderr).contains("not permitted"), "{direct:?}");
    let by_other = signal(OTHER, &sleeps);
    assert_eq!(by_other.status.code(), Some(77), "{by_other:?}");
    // One foreign process in the request prevents all signals.
    let mixed = signal(CALLER, &[sleeps[0], std::process::id() as i32]);
    assert_eq!(mixed.status.code(), Some(77), "{mixed:?}");
    assert_eq!(processes_named(mark, "sleep").len(), 2);
    let by_caller = signal(CALLER, &sleeps);
    assert!(by_caller.status.success(), "{by_caller:?}");
    wait_until("both processes have ended", || {
        processes_named(mark, "sleep").is_empty()
    });
    agent.0.wait().unwrap();
    assert_eq!(
        signal(CALLER, &sleeps).status.code(),
        Some(77),
        "they have ended"
    );
}

/// A record identifies a process by pid and start time.
#[test]
fn reused_pid_is_not_signalled() {
    let helper = Helper::shared();
    let mark = &unique_mark("reused");
    let agent = start_sleeping_agent(CALLER, "colibri-reused", mark);
    let path = records_of(CALLER).join("colibri-reused");
    let record = fs::read_to_string(&path).unwrap();
    assert!(
        record.contains(&format!("\nparent={}\n", agent.pid())),
        "{record}"
    );
    let kill = || {
        helper.call(
            CALLER,
            &[
                "signal",
                "--signal",
                "KILL",
                "--pid",
                &agent.pid().to_string(),
            ],
        )
    };
    // Each changed record describes another process than the running one.
    let start = record
        .lines()
        .find_map(|line| line.strip_prefix("start="))
        .unwrap();
    let other_start: u64 = start.parse::<u64>().unwrap() - 1;
    for (change, changed) in [
        (
            "another start",
            record.replace(
                &format!("\nstart={start}\n"),
                &format!("\nstart={other_start}\n"),
            ),
        ),
        ("another boot", record.replace("boot=", "boot=x")),
        (
            "another caller",
            record.replace(
                &format!("uid={}\n", uid(CALLER)),
                &format!("uid={}\n", uid(OTHER)),
            ),
        ),
        ("a truncated record", record[..record.len() - 2].to_owned()),
    ] {
        assert_ne!(changed, record, "{change}");
        fs::write(&path, changed).unwrap();
        assert_eq!(kill().status.code(), Some(77), "{change}");
        let removed = helper.call(CALLER, &["remove", "--jail", "colibri-reused"]);
        assert!(
            change == "another start" || removed.status.code() == Some(77),
            "{change}: {removed:?}"
        );
        assert_eq!(processes_named(mark, "sleep").len(), 1, "{change}");
        fs::write(&path, &record).unwrap();
    }
    assert!(kill().status.success());
    wait_until("the agent has ended", || processes_with(mark).is_empty());
}

#[test]
fn remove_kills_only_the_callers_jail() {
    let helper = Helper::shared();
    let mark = &unique_mark("remove");
    let script = "trap '' TERM; (setsid sh -c 'sleep 1000; :' &); sleep 1001; :";
    let mut agent = HelperCall::start(CALLER, &create_request("colibri-remove", script), mark);
    wait_until("both processes sleep", || {
        processes_named(mark, "sleep").len() == 2
    });
    let remove = |user: &str| helper.call(user, &["remove", "--jail", "colibri-remove"]);
    assert_eq!(remove(OTHER).status.code(), Some(77));
    assert_eq!(processes_named(mark, "sleep").len(), 2);
    let removed = remove(CALLER);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(
        processes_with(mark),
        Vec::<i32>::new(),
        "no process is left when the request returns"
    );
    assert_eq!(agent.0.wait().unwrap().code(), Some(128 + 9));
    assert_eq!(
        remove(CALLER).status.code(),
        Some(77),
        "the record is deleted"
    );
}

#[test]
fn sandbox_ends_with_the_requesting_process() {
    let _helper = Helper::shared();
    let mark = &unique_mark("parent");
    let script = "(setsid sh -c \"sleep 1000; :\" &); sleep 1001; :";
    let command = format!(
        "MARK={mark} $H create --jail colibri-parent --path / --ip4 disable -- sh -c '{script}' & wait"
    );
    let mut shell = as_user(CALLER, &["sh", "-c", &command]).spawn().unwrap();
    wait_until("both processes sleep", || {
        processes_named(mark, "sleep").len() == 2
    });
    shell.kill().unwrap();
    shell.wait().unwrap();
    wait_until("the sandbox has ended", || processes_with(mark).is_empty());
}

/// After its first steps the helper has no uid of the caller, so the caller cannot signal it.
#[test]
fn caller_cannot_interrupt_the_helper() {
    let helper = Helper::shared();
    assert!(
        helper
            .call(CALLER, &create_request("colibri-race", "exit 0"))
            .status
            .success()
    );
    // Signals while the helper waits for the lock of the records.
    let path = records_of(CALLER).join("lock");
    let lock = fs::File::options().write(true).open(&path).unwrap();
    lock.lock().unwrap();
    let mut call = HelperCall::start(
        CALLER,
        &create_request("colibri-race", "exit 9"),
        &unique_mark("race"),
    );
    let fds = format!("/proc/{}/fd", call.pid());
    eventually("the helper waits for the lock", || {
        let mut links = fs::read_dir(&fds)
            .ok()?
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|link| link == path).then_some(())
    });
    for signal in ["KILL", "STOP", "TERM"] {
        let kill = helper.sh(CALLER, &format!("kill -{signal} {}", call.pid()));
        assert!(
            text(&kill.stderr).contains("not permitted"),
            "{signal}: {kill:?}"
        );
    }
    drop(lock);
    assert_eq!(call.0.wait().unwrap().code(), Some(9));

    // Signals at various times of a call.
    for round in 0..60 {
        let signal = ["KILL", "TERM"][round % 2];
        let script = format!(
            "$H create --jail colibri-race --path / --ip4 disable -- true & pid=$!; i=0; while [ $i -lt $(({round} * 20)) ]; do i=$((i+1)); done; \
            for signal in STOP CONT {signal}; do kill -$signal $pid 2>/dev/null; done; wait $pid"
        );
        let status = helper.sh(CALLER, &script).status;
        // The signal arrives before the helper changes its uids, or has no effect.
        assert!(
            [0, 143, 137].contains(&status.code().unwrap()),
            "{round}: {status}"
        );
    }
    // The lock is free, and no temporary record is left.
    assert!(
        helper
            .call(CALLER, &create_request("colibri-race", "exit 0"))
            .status
            .success()
    );
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let temporary: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .flatten()
        .map(name)
        .filter(|name| name == ".new")
        .collect();
    assert!(temporary.is_empty(), "{temporary:?}");
}

/// A daemon of an unprivileged user with the helper as its privilege backend.
struct UnprivilegedDaemon {
    directory: tempfile::TempDir,
    child: Child,
}

impl UnprivilegedDaemon {
    fn start() -> Self {
        for name in ["colibri", "colibri-daemon", "colibri-shim"] {
            install_program(name);
        }
        let directory = test_directory();
        std::os::unix::fs::chown(directory.path(), Some(uid(CALLER)), None).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = Self::command(&directory, "colibri-daemon", &[])
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Self { directory, child };
        wait_until("the daemon listens", || {
            daemon.directory.path().join("run/colibri.sock").exists()
        });
        daemon
    }

    fn command(directory: &tempfile::TempDir, name: &str, arguments: &[&str]) -> Command {
        let path = program(name);
        let mut command = as_user(CALLER, &[&[path.to_str().unwrap()], arguments].concat());
        command
            .env("HOME", directory.path())
            .env("COLIBRI_SOCKET", directory.path().join("run/colibri.sock"))
            .env("COLIBRI_STATE_DIR", directory.path().join("state"))
            .env("COLIBRI_JAIL_PRIV_MODE", "helper")
            .env("COLIBRI_JAIL_HELPER", program("colibri-jail-helper"));
        command
    }

    fn cli(&self, arguments: &[&str]) -> std::process::Output {
        Self::command(
            &self.directory,
            "colibri",
            &[&["--no-autostart"], arguments].concat(),
        )
        .output()
        .unwrap()
    }
}

impl Drop for UnprivilegedDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes_with(self.directory.path().to_str().unwrap()) {
            kill_9(pid);
        }
        if std::thread::panicking() {
            eprintln!(
                "{}",
                fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
            );
        }
    }
}

#[test]
fn unprivileged_daemon_runs_agents_as_another_user() {
    let _helper = Helper::shared();
    let daemon = UnprivilegedDaemon::start();
    let jail = ["run", "--jail-path", "/", "--jail-user"];
    let script = "id -un; echo $MARK$OTHER; cat; exit 7";
    let arguments = [
        &jail[..],
        &[
            AGENT, "--env", "MARK=m", "--env", "OTHER=o", "--", "sh", "-c", script,
        ],
    ]
    .concat();
    let mut child = UnprivilegedDaemon::command(&daemon.directory, "colibri", &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let answer = (output.status.code(), text(&output.stdout));
    assert_eq!(
        answer,
        (Some(7), format!("{AGENT}\nm\nthrough\n")),
        "{output:?}"
    );
    // The client shows the refusal of the helper.
    let refused = daemon.cli(&[&jail[..], &["daemon", "--", "true"]].concat());
    assert!(text(&refused.stderr).contains("users = ["), "{refused:?}");
}

#[test]
fn helper_that_cannot_be_killed_is_a_finding() {
    let _helper = Helper::shared();
    let directory = test_directory();
    std::os::unix::fs::chown(directory.path(), Some(uid(CALLER)), None).unwrap();
    install_program("colibri");
    let (_programs, sleeper) = install_setuid_program("setuid_sleeper");
    let output = UnprivilegedDaemon::command(&directory, "colibri", &["--no-autostart", "doctor"])
        .env("COLIBRI_JAIL_HELPER", sleeper)
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    let (_, rest) = shown
        .split_once("the helper's check failed: it did not end in time; pid ")
        .unwrap_or_else(|| panic!("{output:?}"));
    assert!(rest.contains("fix: find out what it waits for"), "{shown}");
    let pid: i32 = rest.split_whitespace().next().unwrap().parse().unwrap();
    // The caller's KILL failed, so this test kills the process as root.
    signal(pid, Signal::KILL);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn kill_ends_agents_of_another_user() {
    let _helper = Helper::shared();
    let daemon = UnprivilegedDaemon::start();
    let polite = "trap 'echo tidied; exit 3' TERM; echo ready; while :; do sleep 0.02; done";
    let stubborn = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 1000; :' \"$0\" &); echo ready; sleep 1001; :";
    for (script, mark, outcome) in [
        (polite, unique_mark("polite"), "ended at TERM"),
        (stubborn, unique_mark("stubborn"), "needed KILL"),
    ] {
        let arguments = [
            "spawn",
            "--jail-path",
            "/",
            "--jail-user",
            AGENT,
            "--",
            "sh",
            "-c",
            script,
            &mark,
        ];
        let spawned = daemon.cli(&arguments);
        assert!(spawned.status.success(), "{spawned:?}");
        let id = text(&spawned.stdout).trim().to_owned();
        wait_until("the agent is ready", || {
            text(&daemon.cli(&["logs", &id]).stdout).starts_with("ready")
        });
        assert!(!processes_with(&mark).is_empty());
        let grace = if outcome == "needed KILL" {
            "300ms"
        } else {
            "20s"
        };
        let killed = daemon.cli(&["kill", "--grace", grace, &id]);
        assert!(
            killed.status.success() && text(&killed.stderr).contains(outcome),
            "{killed:?} {outcome}"
        );
        assert_eq!(processes_with(&mark), Vec::<i32>::new());
        if outcome == "ended at TERM" {
            assert_eq!(text(&daemon.cli(&["logs", &id]).stdout), "ready\ntidied\n");
        }
    }
}

impl UnprivilegedDaemon {
    /// Spawns an agent as another user in a jail and waits until it has written `ready`. Returns its id.
    fn spawn_ready(&self, options: &[&str], script: &str, mark: &str) -> String {
        let jail = ["spawn", "--jail-path", "/", "--jail-user", AGENT];
        let arguments = [&jail, options, &["--", "sh", "-c", script, mark]].concat();
        let spawned = self.cli(&arguments);
        assert!(spawned.status.success(), "{spawned:?}");
        let id = text(&spawned.stdout).trim().to_owned();
        wait_until("the agent is ready", || {
            text(&self.cli(&["logs", &id]).stdout).starts_with("ready")
        });
        id
    }

    fn agent_dir(&self, id: &str) -> std::path::PathBuf {
        self.directory.path().join("state/agents").join(id)
    }

    fn record(&self, id: &str, name: &str) -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(self.agent_dir(id).join(name)).ok()?).ok()
    }

    /// Kills the daemon with KILL.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A script that ignores TERM, with a descendant in a separate session that ignores it too.
const STUBBORN: &str = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 1000; :' \"$0\" &); echo ready; sleep 1001; :";

/// The shim runs the command of the privilege backend itself.
#[test]
fn shim_ends_agent_of_another_user_without_a_daemon() {
    let _helper = Helper::shared();
    let mut daemon = UnprivilegedDaemon::start();
    let polite = "trap 'echo tidied; exit 3' TERM; echo ready; while :; do sleep 0.02; done";
    let agents = [
        ("wall-time", STUBBORN, Some("wall-time")),
        ("terminated", STUBBORN, None),
        ("tidied", polite, None),
    ]
    .map(|(name, script, reason)| {
        let mark = unique_mark(name);
        let options: &[&str] = match reason {
            Some(_) => &["--wall-time", "2s"],
            None => &[],
        };
        (daemon.spawn_ready(options, script, &mark), mark, reason)
    });
    daemon.kill();
    for (id, mark, reason) in &agents {
        assert!(!processes_with(mark).is_empty(), "{mark}");
        if reason.is_none() {
            let shim = daemon.record(id, "shim.json").unwrap();
            signal(shim["shim_pid"].as_i64().unwrap() as i32, Signal::TERM);
        }
    }
    for (id, mark, reason) in &agents {
        let exit = eventually("the agent has ended", || daemon.record(id, "exit.json"));
        assert_eq!(processes_with(mark), Vec::<i32>::new(), "{exit}");
        if let Some(reason) = reason {
            assert_eq!(exit["reason"], *reason, "{exit}");
        }
    }
    let (tidied, ..) = &agents[2];
    let exit = daemon.record(tidied, "exit.json").unwrap();
    assert_eq!(exit["exit"]["code"], 3, "{exit}");
}

#[test]
fn restart_ends_a_run_of_another_user() {
    let _helper = Helper::shared();
    let daemon = UnprivilegedDaemon::start();
    let mark = unique_mark("again");
    let id = daemon.spawn_ready(&[], STUBBORN, &mark);
    let before = processes_with(&mark);
    let restarted = daemon.cli(&["restart", "--grace", "100ms", &id]);
    assert!(restarted.status.success(), "{restarted:?}");
    wait_until("the next run is ready", || {
        text(&daemon.cli(&["logs", &id]).stdout) == "ready\nready\n"
    });
    let now = processes_with(&mark);
    assert!(
        before.iter().all(|pid| !now.contains(pid)),
        "{before:?} {now:?}"
    );
    let killed = daemon.cli(&["kill", "--grace", "0s", &id]);
    assert!(killed.status.success(), "{killed:?}");
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
}

/// The kernel does not let the daemon signal an agent that has become root by a setuid program.
#[test]
fn unverified_kill_reports_remaining_pids() {
    let _helper = Helper::shared();
    let daemon = UnprivilegedDaemon::start();
    let setuid_root = SetuidRoot::install();
    let script = format!(
        "trap '' TERM; {} --reuid=0 --regid=0 --clear-groups sleep 1003; :",
        setuid_root.path().display()
    );
    let mark = unique_mark("root");
    let spawned = daemon.cli(&[
        "spawn",
        "--no-jail",
        "--env",
        &format!("MARK={mark}"),
        "--",
        "sh",
        "-c",
        &script,
    ]);
    let id = text(&spawned.stdout).trim().to_owned();
    let remaining = wait_for_process(&mark, "sleep");
    let killed = daemon.cli(&["kill", "--grace", "0s", &id]);
    let message = text(&killed.stderr);
    assert_eq!(killed.status.code(), Some(1), "{message}");
    assert!(
        message.contains(&format!("still running: pid {remaining}\n")),
        "{message}"
    );
    // The agent ends with its last process.
    kill_9(remaining);
    let waited = daemon.cli(&["wait", &id]);
    assert_eq!(waited.status.code(), Some(128 + 9), "{waited:?}");
}

#[test]
fn wait_reports_pids_left_by_a_killed_shim() {
    let _helper = Helper::shared();
    let daemon = UnprivilegedDaemon::start();
    let setuid_root = SetuidRoot::install();
    let script = format!(
        "{} --reuid=0 --regid=0 --clear-groups sleep 1004 & echo up; sleep 1005; :",
        setuid_root.path().display()
    );
    let mark = unique_mark("left");
    let arguments = [
        "spawn",
        "--no-jail",
        "--env",
        &format!("MARK={mark}"),
        "--",
        "sh",
        "-c",
        &script,
    ];
    let id = text(&daemon.cli(&arguments).stdout).trim().to_owned();
    let runs_as_root = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| status.contains("Uid:\t0\t0"))
    };
    let remaining = eventually("root's sleep runs", || {
        processes_named(&mark, "sleep")
            .into_iter()
            .find(runs_as_root)
    });
    let shim = daemon
        .directory
        .path()
        .join("state/agents")
        .join(&id)
        .join("shim.json");
    let shim = fs::read_to_string(shim).unwrap();
    let shim: serde_json::Value = serde_json::from_str(&shim).unwrap();
    kill_9(shim["shim_pid"].as_i64().unwrap() as i32);
    let waited = daemon.cli(&["wait", &id]);
    let message = text(&waited.stderr);
    assert!(
        message.contains(&format!("still running: pid {remaining};")),
        "{message}"
    );
    kill_9(remaining);
}

/// A controlling terminal would allow the agent to inject input for the caller's shell (TIOCSTI).
#[test]
fn agent_has_no_controlling_terminal() {
    let helper = Helper::shared();
    let terminal = helper.sh(
        CALLER,
        "script -qec 'sh -c \": </dev/tty && echo opened\"' /dev/null",
    );
    assert!(text(&terminal.stdout).contains("opened"), "{terminal:?}");
    let check = "sh -c \\\"(: </dev/tty) && echo opened; test -t 0 && echo stdin is a tty\\\"";
    let output = helper.sh(
        CALLER,
        &format!("script -qec \"$H create --jail colibri-tty --path / --ip4 disable -- {check}\" /dev/null"),
    );
    let message = text(&output.stdout);
    assert!(
        message.contains("stdin is a tty") && !message.contains("opened"),
        "{message}"
    );
}
