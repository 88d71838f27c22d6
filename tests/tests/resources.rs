//! Without free descriptors or processes the daemon reports clear errors and recovers. A clock jump loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use colibri_tests::{
    Daemon, FORK_BOMB, Wire, eventually, is_root_or_skipped, kill_9, processes_with, program,
    run_checked, text, wait_until, write_file,
};
use serde_json::json;

/// Sets a soft limit of a running process by prlimit(1), with a command prefix that changes to its user.
fn prlimit(prefix: &[&str], pid: i32, limit: &str) {
    let pid = pid.to_string();
    let command = [prefix, &["prlimit", "--pid", &pid, limit]].concat();
    run_checked(Command::new(command[0]).args(&command[1..]));
}

/// Checks that a spawn fails with this cause and leaves nothing. The first of two spawns may succeed with the pooled
/// shim.
fn assert_exhausted(daemon: &Daemon, wire: &mut Wire, cause: &str) {
    let mut spawn = || wire.call("spawn-agent", json!({"program": "/bin/true"}));
    let answers = [spawn(), spawn()];
    let refused = &answers[1]["error"];
    assert_eq!(refused["data"]["kind"], "resource-exhausted", "{refused}");
    assert!(
        refused["message"].as_str().unwrap().contains(cause),
        "{refused}"
    );
    let accepted = answers.iter().filter(|answer| answer["error"].is_null());
    assert_eq!(
        daemon.agent_count(),
        1 + accepted.count(),
        "nothing is left of a refused spawn"
    );
}

#[test]
fn daemon_without_descriptors_reports_it_and_recovers() {
    let daemon = Daemon::start();
    let running = daemon.spawn(&["--", "sh", "-c", "read x; echo still here; exit 4"]);
    let mut wire = daemon.connect();
    let open = daemon.descriptors();
    prlimit(&[], daemon.pid(), &format!("--nofile={}:", open + 3));
    let connections: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(daemon.socket()).unwrap())
        .collect();
    wait_until("connections wait for descriptors", || {
        daemon.log().contains("Too many open files")
    });
    assert_exhausted(&daemon, &mut wire, "Too many open files");
    let answer = wire.call("send-input", json!({"id": running, "data": "go\n"}));
    assert_eq!(answer["result"]["written"], 3, "{answer}");
    drop(connections);
    assert_eq!(daemon.wait(&running), Some(4));
    assert_eq!(daemon.stdout(&running), b"still here\n");
    prlimit(&[], daemon.pid(), "--nofile=1024:");
    let after = daemon.spawn(&["--", "true"]);
    assert_eq!(daemon.wait(&after), Some(0));
}

#[test]
fn spawn_without_descriptors_leaves_nothing_at_any_step() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    eventually("a shim is in the pool", || daemon.pooled_shim());
    let open = daemon.descriptors();
    let (mut refused, mut started) = (0, 0);
    for spare in 0..40 {
        // A spawn with a pooled shim needs few descriptors. Kill the shim, so that the spawn starts one.
        if let Some(shim) = daemon.pooled_shim() {
            kill_9(shim.pid);
            wait_until("the pooled shim has ended", || {
                processes_with(&shim.id).is_empty()
            });
        }
        prlimit(
            &[],
            daemon.pid(),
            &format!("--nofile={}:", open + spare - 6),
        );
        let answer = wire.call("spawn-agent", json!({"program": "/bin/true"}));
        match answer["result"]["id"].as_str() {
            Some(id) => {
                started += 1;
                let ended = wire.call("wait-agent", json!({"id": id}));
                assert_eq!(
                    ended["result"]["exit"],
                    json!({"code": 0, "reason": "exited"}),
                    "{ended}"
                );
            }
            None => {
                refused += 1;
                assert_eq!(
                    answer["error"]["data"]["kind"], "resource-exhausted",
                    "{spare} spare descriptors: {answer}"
                );
            }
        }
        prlimit(&[], daemon.pid(), "--nofile=1024:");
        assert_eq!(
            daemon.agent_count(),
            started,
            "{spare} spare descriptors: {answer}"
        );
    }
    assert!(
        refused > 2 && started > 4,
        "{refused} refused, {started} started"
    );
}

#[test]
fn daemon_raises_nofile_limit_and_restores_it_for_agents() {
    const SOFT_LIMIT: usize = 64;
    let mut daemon = Daemon::prepare();
    let limits = format!("ulimit -Sn {SOFT_LIMIT}; ulimit -Hn 4096; exec \"$@\"");
    daemon.launch_with_prefix(&["sh", "-c", &limits, "sh"].map(str::to_owned));
    let ids: Vec<String> = (0..100).map(|_| daemon.spawn(&["--", "cat"])).collect();
    assert!(
        daemon.descriptors() > SOFT_LIMIT,
        "one descriptor per agent"
    );
    for id in &ids {
        daemon.cli_ok(&["send", id, "here"]);
    }
    for id in &ids {
        daemon.cli_ok(&["send", "--close", id]);
        assert_eq!(daemon.wait(id), Some(0));
        assert_eq!(daemon.stdout(id), b"here\n");
    }
    let print_limits = ["--", "sh", "-c", "ulimit -Sn; ulimit -Hn"];
    for (options, expected) in [
        (&[][..], "64\n4096\n"),
        (&["--open-files", "128"], "128\n128\n"),
        (&["--open-files", "32"], "32\n32\n"),
        (&["--jail-path", "/"], "64\n4096\n"),
    ] {
        let id = daemon.spawn(&[options, &print_limits[..]].concat());
        daemon.cli_ok(&["wait", &id]);
        assert_eq!(text(&daemon.stdout(&id)), expected, "{options:?}");
    }
}

/// The user of one test, or none if the test does not run as root. Process limits do not apply to root, and they count
/// all processes of a user, so each test has a dedicated one. Dropping it kills all processes of the user.
struct User(Option<u32>);

impl User {
    /// Returns the user with this uid, or the current one if the test does not run as root.
    fn new(uid: u32) -> Self {
        Self(rustix::process::geteuid().is_root().then_some(uid))
    }

    /// Returns the command-line prefix that runs a command as this user.
    fn prefix(&self) -> Vec<String> {
        let Some(uid) = self.0 else {
            return Vec::new();
        };
        let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
        vec![
            "setpriv".to_owned(),
            user,
            group,
            "--clear-groups".to_owned(),
        ]
    }

    /// Starts a copy of the daemon as this user, by the command prefix `limits`.
    fn launch(&self, daemon: &mut Daemon, limits: &[&str]) {
        for name in [
            "colibri-daemon",
            "colibri-shim",
            "colibri-proxy",
            "colibri-sandbox",
        ] {
            fs::copy(program(name), daemon.path(name)).unwrap();
        }
        self.take_ownership(daemon.directory());
        let exec_copy = format!("exec {}", daemon.path("colibri-daemon").display());
        let mut prefix = self.prefix();
        let shell = ["sh", "-c", &exec_copy];
        prefix.extend(limits.iter().chain(&shell).map(|word| (*word).to_owned()));
        daemon.launch_with_prefix(&prefix);
    }

    /// Changes the owner of a directory and all its files to this user.
    fn take_ownership(&self, directory: &Path) {
        if let Some(uid) = self.0 {
            let owner = format!("{uid}:{uid}");
            run_checked(Command::new("chown").args(["-R", &owner]).arg(directory));
        }
    }

    /// Returns the number of processes of this user.
    fn count_processes(&self) -> usize {
        let uid = self.0.unwrap_or(rustix::process::geteuid().as_raw());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let processes = entries.filter(|entry| {
            let name = entry.file_name().into_string().unwrap_or_default();
            let is_process = name.parse::<u32>().is_ok();
            // A process that has ended has no metadata.
            is_process && entry.metadata().is_ok_and(|data| data.uid() == uid)
        });
        processes.count()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut prefix = self.prefix();
        if prefix.is_empty() {
            return;
        }
        // kill(2) of pid -1 signals all processes of the user in one call, so that none can fork before its signal.
        prefix.extend(["kill", "-KILL", "--", "-1"].map(str::to_owned));
        let _ = Command::new(&prefix[0]).args(&prefix[1..]).status();
    }
}

#[test]
fn daemon_that_cannot_fork_reports_it_and_recovers() {
    let mut daemon = Daemon::prepare();
    let user = User::new(64917);
    user.launch(&mut daemon, &[]);
    let prefix = user.prefix();
    let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
    let mut wire = daemon.connect();
    let running = wire.call(
        "spawn-agent",
        json!({"program": "/bin/sh", "args": ["-c", "read x; exit 4"]}),
    )["result"]["id"]
        .clone();
    prlimit(&prefix, daemon.pid(), "--nproc=1:");
    assert_exhausted(&daemon, &mut wire, "Resource temporarily unavailable");
    wire.call("send-input", json!({"id": running, "data": "go\n"}));
    let ended = wire.call("wait-agent", json!({"id": running}));
    assert_eq!(
        ended["result"]["exit"],
        json!({"code": 4, "reason": "exited"}),
        "{ended}"
    );
    prlimit(&prefix, daemon.pid(), "--nproc=4096:");
    let answer = wire.call("spawn-agent", json!({"program": "/bin/true"}));
    let ended = wire.call("wait-agent", json!({"id": answer["result"]["id"]}));
    assert_eq!(
        ended["result"]["exit"],
        json!({"code": 0, "reason": "exited"}),
        "{answer}"
    );
}

/// Starts a fork bomb, and checks that the daemon answers and can kill it when its user has no free process slot.
fn assert_fork_bomb_is_ended(uid: u32, jail: serde_json::Value) {
    const LIMIT: usize = 300;
    let mut daemon = Daemon::prepare();
    let user = User::new(uid);
    if !is_root_or_skipped("a fork bomb needs a separate user") {
        return;
    }
    user.launch(
        &mut daemon,
        &["prlimit", &format!("--nproc={LIMIT}:{LIMIT}")],
    );
    let mut wire = daemon.connect();
    let answer = wire.call(
        "spawn-agent",
        json!({"program": "/usr/bin/perl", "args": ["-e", FORK_BOMB], "jail": jail}),
    );
    let id = answer["result"]["id"].clone();
    assert!(id.is_string(), "{answer}");
    wait_until("the bomb has used the process slots", || {
        user.count_processes() > LIMIT - 30
    });
    let listed = wire.call("list-agents", json!({}));
    assert_eq!(listed["result"]["agents"][0]["id"], id, "{listed}");
    let doctor = wire.call("doctor", json!({}));
    assert!(doctor["result"]["findings"].is_array(), "{doctor}");
    let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 0}));
    assert!(killed["result"]["outcome"].is_string(), "{killed}");
    let ended = wire.call("wait-agent", json!({"id": id}));
    assert!(ended["result"]["exit"].is_object(), "{ended}");
    wait_until("only the daemon and the pooled shim run", || {
        user.count_processes() <= 2
    });
    let next = wire.call("spawn-agent", json!({"program": "/bin/true"}));
    assert!(next["result"]["id"].is_string(), "{next}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn fork_bomb_without_a_jail_is_ended_and_the_daemon_lives() {
    assert_fork_bomb_is_ended(64918, json!(null));
}

#[test]
fn fork_bomb_in_a_sandbox_is_ended_and_the_daemon_lives() {
    assert_fork_bomb_is_ended(64919, json!({"path": "/"}));
}

#[test]
fn daemon_without_threads_reports_it_and_exits() {
    let daemon = Daemon::prepare();
    let user = User::new(64920);
    if !is_root_or_skipped("a process limit needs a separate user") {
        return;
    }
    let mut prefix = user.prefix();
    fs::copy(program("colibri-daemon"), daemon.path("colibri-daemon")).unwrap();
    user.take_ownership(daemon.directory());
    let copy = daemon.path("colibri-daemon").display().to_string();
    prefix.extend(["prlimit", "--nproc=3:3", &copy].map(str::to_owned));
    let output = daemon
        .external_command(&prefix[0])
        .args(&prefix[1..])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = text(&output.stderr);
    assert!(message.contains("cannot start threads"), "{message}");
}

/// Returns the path of the library of the package libfaketime.
fn faketime_library() -> String {
    let files = Command::new("dpkg")
        .args(["-L", "libfaketime"])
        .stdin(Stdio::null())
        .output()
        .map(|output| text(&output.stdout))
        .unwrap_or_default();
    let mut libraries = files.lines().chain(["/usr/lib/faketime/libfaketime.so.1"]);
    libraries
        .find(|line| line.ends_with("libfaketime.so.1") && Path::new(line).exists())
        .expect("libfaketime is missing; install the package libfaketime")
        .to_owned()
}

#[test]
fn clock_jump_loses_nothing_and_times_stay_ordered() {
    let mut daemon = Daemon::prepare();
    let clock = daemon.path("clock");
    let set_clock = |offset: &str| fs::write(&clock, offset).unwrap();
    set_clock("+0");
    let shim = daemon.path("shim");
    let preload = format!(
        "LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1",
        faketime_library(),
        clock.display()
    );
    let shim_program = program("colibri-shim");
    let script = format!(
        "#!/bin/sh\nexec env {preload} {} \"$@\"\n",
        shim_program.display()
    );
    write_file(&shim, &script, 0o700);
    let prefix: Vec<String> = std::iter::once("env".to_owned())
        .chain(preload.split(' ').map(str::to_owned))
        .chain([format!("COLIBRI_SHIM={}", shim.display())])
        .collect();
    daemon.launch_with_prefix(&prefix);
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "while read line; do echo \"$line\"; done; exit 2",
    ]);
    let mut expected = String::new();
    let mut times = Vec::new();
    for (step, offset) in ["+0", "+2d", "-3d", "-1y", "+5y"].iter().enumerate() {
        set_clock(offset);
        let line = format!("step {step} at {offset}\n");
        let offset_of_line = expected.len();
        expected.push_str(&line);
        daemon
            .connect()
            .call("send-input", json!({"id": id, "data": line}));
        wait_until("the line is stored", || {
            daemon.stdout(&id) == expected.as_bytes()
        });
        let read = daemon.connect().call(
            "read-journal",
            json!({"id": id, "stream": "stdout", "offset": offset_of_line, "limit": 100}),
        );
        assert_eq!(read["result"]["data"], line, "{read}");
        times.push(read["result"]["time"].as_str().unwrap().to_owned());
    }
    assert!(
        times[1] > times[0] && times[3] < times[0] && times[4] > times[1],
        "the clock jumped: {times:?}"
    );
    daemon.connect().call("close-input", json!({"id": id}));
    assert_eq!(daemon.wait(&id), Some(2));
    let journal = daemon.agent_dir(&id).join("stdout");
    let mut segments = 0;
    for entry in fs::read_dir(&journal).unwrap().flatten() {
        if entry.path().extension().is_some_and(|kind| kind == "idx") {
            segments += 1;
            let index = fs::read(entry.path()).unwrap();
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let records: Vec<(u64, u64)> = index
                .chunks(16)
                .map(|record| (number(&record[..8]), number(&record[8..])))
                .collect();
            assert!(
                records.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
                "{records:?}"
            );
        }
    }
    assert!(
        segments > 1,
        "a clock that is set back starts a new segment"
    );
}
