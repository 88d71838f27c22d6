//! No descriptors, no processes, a clock jump: clear errors, and recovery afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use colibri_tests::{
    Daemon, Wire, eventually, is_root_or_skipped, kill_9, processes_with, program, text,
};
use serde_json::json;

/// Sets the soft limit of a running process, with a command prefix that changes to its user.
fn prlimit(prefix: &[&str], pid: i32, limit: &str) {
    let prefix = [prefix, &["prlimit"]].concat();
    let output = Command::new(prefix[0])
        .args(&prefix[1..])
        .args(["--pid", &pid.to_string(), limit])
        .output()
        .expect("prlimit(1) is missing; install util-linux");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Checks that a spawn fails for lack of a resource and leaves nothing. The first of two spawns may succeed with the
/// pooled shim.
fn assert_exhausted(daemon: &Daemon, wire: &mut Wire, of: &str) {
    let mut spawn = || wire.call("spawn-agent", json!({"program": "/bin/true"}));
    let answers = [spawn(), spawn()];
    let refused = &answers[1]["error"];
    assert_eq!(refused["data"]["kind"], "resource-exhausted", "{refused}");
    assert!(
        refused["message"].as_str().unwrap().contains(of),
        "{refused}"
    );
    let started = answers.iter().filter(|answer| answer["error"].is_null());
    assert_eq!(
        daemon.agent_count(),
        1 + started.count(),
        "nothing is left of a refused spawn"
    );
}

#[test]
fn daemon_without_descriptors_reports_it_and_recovers() {
    let daemon = Daemon::start();
    let running = daemon.spawn(&["--", "sh", "-c", "read x; echo still here; exit 4"]);
    let mut wire = daemon.connect();
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count();
    prlimit(&[], daemon.pid(), &format!("--nofile={}:", open + 3));
    let held: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(daemon.socket()).unwrap())
        .collect();
    eventually("connections wait for descriptors", || {
        daemon.log().contains("Too many open files").then_some(())
    });
    assert_exhausted(&daemon, &mut wire, "Too many open files");
    let answer = wire.call("send-input", json!({"id": running, "data": "go\n"}));
    assert_eq!(answer["result"]["written"], 3, "{answer}");
    drop(held);
    assert_eq!(daemon.cli(&["wait", &running]).status.code(), Some(4));
    assert_eq!(daemon.stdout(&running), b"still here\n");
    prlimit(&[], daemon.pid(), "--nofile=1024:");
    let after = daemon.spawn(&["--", "true"]);
    assert_eq!(daemon.cli(&["wait", &after]).status.code(), Some(0));
}

#[test]
fn spawn_without_descriptors_leaves_nothing_at_any_step() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    eventually("a shim is in the pool", || daemon.pooled_shim());
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count();
    let (mut refused, mut started) = (0, 0);
    for spare in 0..40 {
        // A pooled shim needs few descriptors; kill it, so that the spawn starts a shim.
        if let Some((id, shim)) = daemon.pooled_shim() {
            kill_9(shim);
            eventually("the pooled shim has ended", || {
                processes_with(&id).is_empty().then_some(())
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
                    "with {spare} to spare: {answer}"
                );
            }
        }
        prlimit(&[], daemon.pid(), "--nofile=1024:");
        assert_eq!(
            daemon.agent_count(),
            started,
            "with {spare} to spare: {answer}"
        );
    }
    assert!(
        refused > 2 && started > 4,
        "{refused} refused, {started} started"
    );
}

#[test]
fn daemon_raises_nofile_limit_and_restores_it_for_agents() {
    const FOUND: usize = 64;
    let mut daemon = Daemon::prepare();
    let limits = format!("ulimit -Sn {FOUND}; ulimit -Hn 4096; exec \"$@\"");
    daemon.launch_with_prefix(&["sh", "-c", &limits, "sh"].map(str::to_owned));
    let ids: Vec<String> = (0..100).map(|_| daemon.spawn(&["--", "cat"])).collect();
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    assert!(open.count() > FOUND, "a descriptor an agent");
    // Concurrent connections.
    for id in &ids {
        daemon.ok(&["send", id, "here"]);
    }
    for id in &ids {
        daemon.ok(&["send", "--close", id]);
        assert_eq!(daemon.cli(&["wait", id]).status.code(), Some(0));
        assert_eq!(daemon.stdout(id), b"here\n");
    }
    let show = ["--", "sh", "-c", "ulimit -Sn; ulimit -Hn"];
    for (limit, shown) in [
        (&[][..], "64\n4096\n"),
        (&["--open-files", "128"], "128\n128\n"),
        (&["--open-files", "32"], "32\n32\n"),
        (&["--jail-path", "/"], "64\n4096\n"),
    ] {
        let id = daemon.spawn(&[limit, &show[..]].concat());
        daemon.ok(&["wait", &id]);
        assert_eq!(text(&daemon.stdout(&id)), shown, "{limit:?}");
    }
}

/// A user for one test, because process limits do not apply to root. Dropping it ends all processes of the user.
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

    /// Starts the daemon as this user, with `before` in front of its command line.
    fn launch(&self, daemon: &mut Daemon, before: &[&str]) {
        for name in ["colibri-daemon", "colibri-shim", "colibri-proxy"] {
            fs::copy(program(name), daemon.path(name)).unwrap();
        }
        if let Some(uid) = self.0 {
            let owned = Command::new("chown")
                .args(["-R", &format!("{uid}:{uid}")])
                .arg(daemon.path(""))
                .status()
                .unwrap();
            assert!(owned.success());
        }
        let own_copy = format!("exec {}", daemon.path("colibri-daemon").display());
        let mut prefix = self.prefix();
        let shell = ["sh", "-c", &own_copy];
        prefix.extend(before.iter().chain(&shell).map(|word| (*word).to_owned()));
        daemon.launch_with_prefix(&prefix);
    }

    /// Returns the number of processes of this user.
    fn processes(&self) -> usize {
        let uid = self.0.unwrap_or(rustix::process::geteuid().as_raw());
        let all = fs::read_dir("/proc").unwrap().flatten();
        let of_user = all.filter(|entry| {
            let is_process = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok());
            is_process
                && std::os::unix::fs::MetadataExt::uid(&match entry.metadata() {
                    Ok(data) => data,
                    Err(_) => return false,
                }) == uid
        });
        of_user.count()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut prefix = self.prefix();
        if prefix.is_empty() {
            return;
        }
        // kill(-1) signals all processes of the user in one call, so that none can fork meanwhile.
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

/// Runs a fork bomb until its user has no free process slot, and ends it.
fn fork_bomb_is_ended(uid: u32, jail: serde_json::Value) {
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
    // Each of its processes forks as soon as a process slot is free.
    let bomb = "while (1) { fork; select(undef, undef, undef, 0.005) }";
    let answer = wire.call(
        "spawn-agent",
        json!({"program": "/usr/bin/perl", "args": ["-e", bomb], "jail": jail}),
    );
    let id = answer["result"]["id"].clone();
    assert!(id.is_string(), "{answer}");
    eventually("no process is left", || {
        (user.processes() > LIMIT - 30).then_some(())
    });
    let listed = wire.call("list-agents", json!({}));
    assert_eq!(listed["result"]["agents"][0]["id"], id, "{listed}");
    let doctor = wire.call("doctor", json!({}));
    assert!(doctor["result"]["findings"].is_array(), "{doctor}");
    let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 0}));
    assert!(killed["result"]["outcome"].is_string(), "{killed}");
    let ended = wire.call("wait-agent", json!({"id": id}));
    assert!(ended["result"]["exit"].is_object(), "{ended}");
    // The daemon and the pre-started shim.
    eventually("no process or directory is left", || {
        (user.processes() <= 2).then_some(())
    });
    let again = wire.call("spawn-agent", json!({"program": "/bin/true"}));
    assert!(again["result"]["id"].is_string(), "{again}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn fork_bomb_without_a_jail_is_ended_and_the_daemon_lives() {
    fork_bomb_is_ended(64918, json!(null));
}

#[test]
fn fork_bomb_in_a_sandbox_is_ended_and_the_daemon_lives() {
    fork_bomb_is_ended(64919, json!({"path": "/"}));
}

/// A daemon that cannot create its threads reports it and exits.
#[test]
fn daemon_without_threads_reports_it_and_exits() {
    let daemon = Daemon::prepare();
    let user = User::new(64920);
    if !is_root_or_skipped("a process limit needs a separate user") {
        return;
    }
    let mut prefix = user.prefix();
    fs::copy(program("colibri-daemon"), daemon.path("colibri-daemon")).unwrap();
    let owned = Command::new("chown")
        .args(["-R", "64920:64920"])
        .arg(daemon.path(""))
        .status()
        .unwrap();
    assert!(owned.success());
    let own_copy = daemon.path("colibri-daemon").display().to_string();
    prefix.extend(["prlimit", "--nproc=3:3", &own_copy].map(str::to_owned));
    let output = daemon
        .external(&prefix[0])
        .args(&prefix[1..])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = text(&output.stderr);
    assert!(message.contains("cannot start threads"), "{message}");
}

/// Returns the path of the library of the package libfaketime.
fn faketime() -> String {
    let found = Command::new("dpkg")
        .args(["-L", "libfaketime"])
        .stdin(Stdio::null())
        .output()
        .map(|output| text(&output.stdout))
        .unwrap_or_default();
    let mut libraries = found.lines().chain(["/usr/lib/faketime/libfaketime.so.1"]);
    libraries
        .find(|line| line.ends_with("libfaketime.so.1") && Path::new(line).exists())
        .expect("libfaketime is missing; install the package libfaketime")
        .to_owned()
}

#[test]
fn clock_jump_loses_nothing_and_times_stay_ordered() {
    let mut daemon = Daemon::prepare();
    let clock = daemon.path("clock");
    let set = |offset: &str| fs::write(&clock, offset).unwrap();
    set("+0");
    let shim = daemon.path("shim");
    let preload = format!(
        "LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1",
        faketime(),
        clock.display()
    );
    fs::write(
        &shim,
        format!(
            "#!/bin/sh\nexec env {preload} {} \"$@\"\n",
            program("colibri-shim").display()
        ),
    )
    .unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o700)).unwrap();
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
        set(offset);
        let line = format!("step {step} at {offset}\n");
        let at = expected.len();
        expected.push_str(&line);
        daemon
            .connect()
            .call("send-input", json!({"id": id, "data": line}));
        eventually("the line is stored", || {
            (daemon.stdout(&id) == expected.as_bytes()).then_some(())
        });
        let read = daemon.connect().call(
            "read-journal",
            json!({"id": id, "stream": "stdout", "offset": at, "limit": 100}),
        );
        assert_eq!(read["result"]["data"], line, "{read}");
        times.push(read["result"]["time"].as_str().unwrap().to_owned());
    }
    assert!(
        times[1] > times[0] && times[3] < times[0] && times[4] > times[1],
        "the clock jumped: {times:?}"
    );
    daemon.connect().call("close-input", json!({"id": id}));
    assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(2));
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
