//! Scenarios: each starts dedicated agents, injects one fault, checks the guarantee, and removes the agents.

use std::process::{Child, Stdio};
use std::time::Instant;

use colibri_tests::{
    Daemon, FORK_BOMB, RESTARTING_SLEEP, SOON, Wire, eventually, is_root_or_skipped, signal,
    wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::table::Fault;

/// Uid without a passwd entry and without processes, for the fork bomb.
const BOMBER: u32 = 64921;
/// Option of prlimit(1) that limits the number of processes of the user.
const PROCESS_LIMIT: &str = "--nproc=200:200";
/// Number of concurrent spawns, of which one may be accepted.
const SPAWNS: usize = 8;

type Outcome = Result<(), String>;

/// Runs a scenario; an error describes the violated guarantee.
pub(crate) type Scenario = fn(&Daemon) -> Outcome;

/// All scenarios, which run in turn, and their rows in the table.
pub(crate) const ALL: &[(Fault, Scenario)] = &[
    (Fault::TermAtSpawn, term_at_spawn),
    (Fault::RunInterrupted, run_interrupted),
    (Fault::Flood, flood),
    (Fault::OverlappingSpawns, overlapping_spawns),
    (Fault::ForkBomb, fork_bomb),
    (Fault::DirectoryRemoved, directory_removed),
];

/// Fails with the details if the condition does not hold.
fn ensure(condition: bool, details: &Value) -> Outcome {
    if condition {
        Ok(())
    } else {
        Err(details.to_string())
    }
}

fn spawn(wire: &mut Wire, params: Value) -> Result<String, String> {
    let answer = wire.call("spawn-agent", params);
    let id = answer["result"]["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| answer.to_string())
}

fn remove(wire: &mut Wire, id: &str) -> Outcome {
    let removed = wire.call("remove-agent", json!({"id": id}));
    ensure(removed.get("result").is_some(), &removed)
}

/// TERM to a sandbox that has just been spawned reaches its program.
fn term_at_spawn(daemon: &Daemon) -> Outcome {
    let mut wire = daemon.connect();
    let script = "trap 'exit 0' TERM; while :; do sleep 0.02; done";
    let params = json!({"program": "sh", "args": ["-c", script], "jail": {"path": "/"}});
    let id = spawn(&mut wire, params)?;
    let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 15_000}));
    ensure(killed["result"]["outcome"] == "terminated", &killed)?;
    remove(&mut wire, &id)
}

/// INT to `colibri run` ends an agent with restart policy `always` without a restart.
fn run_interrupted(daemon: &Daemon) -> Outcome {
    let mut wire = daemon.connect();
    let mut child: Child = daemon
        .command("colibri")
        .args(["--no-autostart", "run", "--name", "interrupted"])
        .args(RESTARTING_SLEEP)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let id = eventually("the agent is listed", || {
        let listed = wire.call("list-agents", json!({"running": true}));
        let agents = listed["result"]["agents"].as_array()?;
        let agent = agents.iter().find(|agent| agent["name"] == "interrupted")?;
        Some(agent["id"].as_str()?.to_owned())
    });
    signal(child.id() as i32, Signal::INT);
    let status = eventually("run has ended", || child.try_wait().unwrap());
    ensure(status.code() == Some(130), &json!(status.to_string()))?;
    let agent = daemon.agent(&id);
    ensure(
        agent["run"] == 1 && agent["exit"]["reason"] == "killed-by-user",
        &agent,
    )?;
    remove(&mut wire, &id)
}

/// Agents that flood their output with events do not delay other calls.
fn flood(daemon: &Daemon) -> Outcome {
    let mut wire = daemon.connect();
    let params = json!({"program": "yes", "runtime": "pi"});
    let ids = [spawn(&mut wire, params.clone())?, spawn(&mut wire, params)?];
    let started = Instant::now();
    let listed = wire.call("list-agents", json!({}));
    ensure(listed.get("result").is_some(), &listed)?;
    for id in &ids {
        let killed = wire.call("kill-agent", json!({"id": id}));
        ensure(killed.get("result").is_some(), &killed)?;
        wire.call("wait-agent", json!({"id": id}));
        remove(&mut wire, id)?;
    }
    ensure(started.elapsed() < SOON, &json!("the daemon was delayed"))
}

/// Of concurrent spawns with nested mounts, exactly one is accepted.
fn overlapping_spawns(daemon: &Daemon) -> Outcome {
    let nested: Vec<_> = (1..=SPAWNS)
        .map(|depth| daemon.path(&format!("nested{}", "/in".repeat(depth))))
        .collect();
    std::fs::create_dir_all(&nested[SPAWNS - 1]).unwrap();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let spawns: Vec<_> = nested
            .iter()
            .map(|source| {
                let mounts = json!([{"source": source, "target": "/tmp/nested"}]);
                let params = json!({
                    "program": "sleep", "args": ["1000"], "jail": {"path": "/", "mounts": mounts},
                });
                scope.spawn(move || daemon.connect().call("spawn-agent", params))
            })
            .collect();
        spawns
            .into_iter()
            .map(|spawn| spawn.join().unwrap())
            .collect()
    });
    let accepted: Vec<&str> = answers
        .iter()
        .filter_map(|answer| answer["result"]["id"].as_str())
        .collect();
    let mut wire = daemon.connect();
    for id in &accepted {
        wire.call("kill-agent", json!({"id": id, "grace_ms": 0}));
        remove(&mut wire, id)?;
    }
    ensure(accepted.len() == 1, &json!(answers))
}

/// A fork bomb that exhausts the processes of its user is ended. Needs root, to run it as a separate user.
fn fork_bomb(daemon: &Daemon) -> Outcome {
    if !is_root_or_skipped("a fork bomb needs a separate user") {
        return Ok(());
    }
    let mut wire = daemon.connect();
    let user = BOMBER.to_string();
    let args = [
        PROCESS_LIMIT,
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "perl",
        "-e",
        FORK_BOMB,
    ];
    let id = spawn(&mut wire, json!({"program": "prlimit", "args": args}))?;
    wait_until("the bomb has exhausted its limit", || {
        let usage = wire.call("get-usage", json!({"ids": [id]}));
        let processes = usage["result"]["agents"][0]["processes"].as_u64();
        processes >= Some(150)
    });
    let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 0}));
    ensure(killed["result"]["outcome"] == "killed", &killed)?;
    remove(&mut wire, &id)
}

/// An agent whose directory was removed reports its exit code.
fn directory_removed(daemon: &Daemon) -> Outcome {
    let mut wire = daemon.connect();
    let params = json!({"program": "sh", "args": ["-c", "read line; exit 7"]});
    let id = spawn(&mut wire, params)?;
    std::fs::remove_dir_all(daemon.agent_dir(&id)).unwrap();
    let sent = wire.call("send-input", json!({"id": id, "data": "go\n"}));
    ensure(sent["result"]["written"] == 3, &sent)?;
    let ended = wire.call("wait-agent", json!({"id": id}));
    ensure(ended["result"]["exit"]["code"] == 7, &ended)?;
    remove(&mut wire, &id)
}
