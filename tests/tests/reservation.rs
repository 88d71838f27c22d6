//! Of concurrent spawns that reserve the same name or overlapping mounts, exactly one is accepted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::sync::Barrier;

use colibri_tests::Daemon;
use serde_json::{Value, json};

/// Number of concurrent spawns.
const SPAWNS: usize = 60;

/// Sends all spawns at the same time, each on a dedicated connection, and returns the answers.
fn spawn_concurrently(daemon: &Daemon, params: impl Fn(usize) -> Value + Sync) -> Vec<Value> {
    let ready = Barrier::new(SPAWNS);
    std::thread::scope(|scope| {
        let spawns: Vec<_> = (0..SPAWNS)
            .map(|number| {
                let (ready, params) = (&ready, &params);
                scope.spawn(move || {
                    let mut wire = daemon.connect();
                    let params = params(number);
                    ready.wait();
                    wire.call("spawn-agent", params)
                })
            })
            .collect();
        spawns
            .into_iter()
            .map(|spawn| spawn.join().unwrap())
            .collect()
    })
}

/// Returns the ids of accepted spawns. Checks that all others failed with an error of this kind that contains `message`.
fn accepted_ids(answers: &[Value], kind: &str, message: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for answer in answers {
        match answer["result"]["id"].as_str() {
            Some(id) => ids.push(id.to_owned()),
            None => {
                let error = &answer["error"];
                assert_eq!(error["data"]["kind"], kind, "{answer}");
                assert!(
                    error["message"].as_str().unwrap().contains(message),
                    "{answer}"
                );
            }
        }
    }
    ids
}

#[test]
fn overlapping_mounts_of_60_spawns_are_accepted_once() {
    let daemon = Daemon::start();
    // Each source is a subdirectory of the previous one, so that any two of them overlap.
    let mut sources = Vec::new();
    let mut source = daemon.directory().canonicalize().unwrap().join("w");
    for _ in 0..SPAWNS {
        fs::create_dir(&source).unwrap();
        sources.push(source.clone());
        source.push("d");
    }
    let answers = spawn_concurrently(&daemon, |number| {
        let mounts = json!([{"source": sources[number], "target": "/tmp/w"}]);
        json!({"program": "/bin/sleep", "args": ["1000"], "jail": {"path": "/", "mounts": mounts}})
    });
    let ids = accepted_ids(&answers, "path-not-found", "overlaps mount source");
    assert_eq!(ids.len(), 1, "{ids:?}");
    // The end of the agent releases its mounts.
    daemon.cli_ok(&["kill", &ids[0]]);
    let source = sources[7].display().to_string();
    daemon.spawn(&[
        "--jail-path",
        "/",
        "--mount",
        &format!("{source}:/tmp/w"),
        "--",
        "true",
    ]);
}

#[test]
fn one_name_of_60_spawns_is_accepted_once() {
    let daemon = Daemon::start();
    let spawn = |_| json!({"program": "/bin/sleep", "args": ["1000"], "name": "night shift"});
    let answers = spawn_concurrently(&daemon, spawn);
    let ids = accepted_ids(&answers, "name-in-use", "\"night shift\" is in use by");
    assert_eq!(ids.len(), 1, "{ids:?}");
    let refused = daemon.connect().call("spawn-agent", spawn(0));
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains(&ids[0]),
        "the agent with the name is named: {message}"
    );
    // The end of the agent releases its name, and so does a failed spawn.
    daemon.cli_ok(&["kill", &ids[0]]);
    let failed = json!({"program": "/absent", "name": "night shift"});
    let failed = daemon.connect().call("spawn-agent", failed);
    assert_eq!(failed["error"]["data"]["kind"], "program-not-found");
    let accepted = daemon.connect().call("spawn-agent", spawn(0));
    assert!(accepted["result"]["id"].is_string(), "{accepted}");
}

#[test]
fn unusable_name_is_refused() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    for (name, message) in [
        (String::new(), "empty or only whitespace"),
        (" \t".to_owned(), "empty or only whitespace"),
        ("a\u{1b}[2Jb".to_owned(), "control or invisible character"),
        ("a\u{e0041}".to_owned(), "control or invisible character"),
        ("x".repeat(65), "longer than 64"),
    ] {
        for method in ["spawn-agent", "explain-spawn"] {
            let answer = wire.call(method, json!({"program": "/bin/true", "name": name}));
            let error = &answer["error"];
            assert_eq!(
                error["data"]["kind"], "invalid-params",
                "{method} {name:?}: {answer}"
            );
            assert!(
                error["message"].as_str().unwrap().contains(message),
                "{answer}"
            );
        }
    }
}
