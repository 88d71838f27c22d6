//! Restarts and wall-clock limits, with and without a daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{
    Daemon, NO_JAIL_AND_SANDBOX, eventually, processes_with, text, wait_until, write_file,
};
use serde_json::{Value, json};

/// Returns a script that counts its runs in a file, prints the number `$n` of the run, and runs `then`.
fn counting_script(daemon: &Daemon, then: &str) -> String {
    let counter = daemon.path("counter");
    format!(
        "n=$(cat {0} 2>/dev/null || echo 0); n=$((n+1)); echo $n > {0}; echo run $n; {then}",
        counter.display()
    )
}

fn spawn(daemon: &Daemon, restart: Value, script: &str) -> String {
    let params = json!({"program": "sh", "args": ["-c", script], "env": {"SECRET": "s3cret-9d2e"}, "restart": restart});
    let answer = daemon.connect().call("spawn-agent", params);
    answer["result"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

#[test]
fn failing_agent_is_restarted_until_it_succeeds() {
    let daemon = Daemon::start();
    let script = counting_script(
        &daemon,
        "test $SECRET = s3cret-9d2e || exit 99; [ $n -lt 4 ] && exit $n; exit 0",
    );
    let id = spawn(
        &daemon,
        json!({"policy": "on-failure", "delay_ms": 1}),
        &script,
    );
    let mut events = daemon.connect();
    events.call("subscribe", json!({"id": id, "from_offset": 0}));
    assert_eq!(daemon.wait(&id), Some(0));
    assert_eq!(text(&daemon.stdout(&id)), "run 1\nrun 2\nrun 3\nrun 4\n");
    let agent = daemon.agent(&id);
    assert_eq!(
        (&agent["run"], &agent["state"]),
        (&json!(4), &json!("done")),
        "{agent}"
    );
    let runs = daemon.connect().call("list-runs", json!({"id": id}))["result"]["runs"].clone();
    for (number, run) in runs.as_array().unwrap().iter().enumerate() {
        let from = 6 * number;
        assert_eq!(
            (&run["run"], &run["exit"], &run["stdout"]),
            (
                &json!(number + 1),
                &json!({"code": (number + 1) % 4, "reason": "exited"}),
                &json!([from, from + 6])
            )
        );
    }
    assert_eq!(runs.as_array().unwrap().len(), 4);
    let table = daemon.cli_ok(&["runs", &id]);
    assert_eq!(table.lines().count(), 5, "{table}");
    // A subscriber receives the output of all runs and one exit.
    let mut received = 0;
    loop {
        let event = events.next_line().unwrap();
        match event["method"].as_str().unwrap() {
            "agent-output" => {
                assert_eq!(event["params"]["offset"], json!(received));
                received += event["params"]["data"].as_str().unwrap().len();
            }
            "agent-exit" => break,
            _ => {}
        }
    }
    assert_eq!(received, 24);
}

#[test]
fn restarts_continue_without_a_daemon_and_are_adopted() {
    let mut daemon = Daemon::start();
    let script = counting_script(
        &daemon,
        "[ $n -ge 3 ] && { read line; echo \"$line\"; exit 0; }; exit 1",
    );
    let go = daemon.path("go");
    let script = format!(
        "while ! [ -e {} ]; do sleep 0.01; done; {script}",
        go.display()
    );
    let id = spawn(&daemon, json!({"policy": "always", "delay_ms": 1}), &script);
    daemon.kill();
    std::fs::write(&go, "").unwrap();
    let runs = daemon.agent_dir(&id).join("runs.jsonl");
    wait_until("two runs have ended without a daemon", || {
        let text = std::fs::read_to_string(&runs).unwrap_or_default();
        text.lines().count() == 2
    });
    daemon.launch();
    wait_until("the third run is known", || {
        daemon.agent(&id)["run"] == json!(3)
    });
    daemon.cli_ok(&["send", &id, "hello"]);
    wait_until(
        "input reached the third run, and the fourth has begun",
        || text(&daemon.stdout(&id)).starts_with("run 1\nrun 2\nrun 3\nhello\nrun 4\n"),
    );
    let killed = daemon.connect().call("kill-agent", json!({"id": id}));
    assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
    assert_eq!(daemon.agent(&id)["run"], json!(4));
    assert_eq!(
        daemon.agent(&id)["exit"],
        json!({"signal": 15, "reason": "killed-by-user"})
    );
}

#[test]
fn restart_delay_is_shown_keeps_input_and_can_be_killed() {
    let daemon = Daemon::start();
    let restart = json!({"policy": "always", "delay_ms": 3_600_000, "max_delay_ms": 3_600_000});
    let id = spawn(&daemon, restart, &counting_script(&daemon, "exit 5"));
    let agent = eventually("the agent waits for its next run", || {
        let agent = daemon.agent(&id);
        agent["error"].is_string().then_some(agent)
    });
    assert_eq!(
        (&agent["state"], &agent["pid"]),
        (&json!("starting"), &Value::Null),
        "{agent}"
    );
    let error = agent["error"].as_str().unwrap();
    assert!(
        error.starts_with("run 1 ended with code 5; restarting in "),
        "{error}"
    );
    let sent = daemon
        .connect()
        .call("send-input", json!({"id": id, "data": "later\n"}));
    assert_eq!(sent["result"]["written"], 6, "{sent}");
    let killed = daemon.connect().call("kill-agent", json!({"id": id}));
    assert_eq!(killed["result"]["remaining_pids"], json!([]), "{killed}");
    let agent = daemon.agent(&id);
    assert_eq!(
        (&agent["state"], &agent["exit"], &agent["run"]),
        (
            &json!("error"),
            &json!({"code": 5, "reason": "exited"}),
            &json!(1)
        )
    );
    assert_eq!(text(&daemon.stdout(&id)), "run 1\n");
}

#[test]
fn restart_limit_gives_up_a_failing_agent() {
    let daemon = Daemon::start();
    let restart = json!({"policy": "always", "delay_ms": 1, "limit": 3});
    let id = spawn(&daemon, restart, &counting_script(&daemon, "exit 0"));
    assert_eq!(
        daemon.wait(&id),
        Some(0),
        "the exit code is that of the last run"
    );
    let agent = daemon.agent(&id);
    assert_eq!(
        (&agent["state"], &agent["run"]),
        (&json!("error"), &json!(4))
    );
    assert!(
        agent["error"]
            .as_str()
            .unwrap()
            .contains("given up after 3 restarts"),
        "{agent}"
    );
    assert_eq!(text(&daemon.stdout(&id)), "run 1\nrun 2\nrun 3\nrun 4\n");
}

#[test]
fn missing_program_is_a_failed_run_and_is_retried() {
    let daemon = Daemon::start();
    let program = daemon.path("agent");
    let install = |text: &str| {
        let new = daemon.path("agent.new");
        write_file(&new, text, 0o755);
        std::fs::rename(&new, &program).unwrap();
    };
    install(&format!("#!/bin/sh\nrm {}\nexit 1\n", program.display()));
    let params = json!({"program": program, "restart": {"policy": "on-failure", "delay_ms": 20, "max_delay_ms": 20, "limit": 100_000}});
    let answer = daemon.connect().call("spawn-agent", params);
    let id = answer["result"]["id"].as_str().unwrap().to_owned();
    wait_until("a run could not be started", || {
        let error = daemon.agent(&id)["error"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        error.contains("could not be started")
    });
    install("#!/bin/sh\necho back\n");
    assert_eq!(daemon.wait(&id), Some(0));
    assert_eq!(text(&daemon.stdout(&id)), "back\n");
}

#[test]
fn wall_time_ends_the_agent_without_a_restart() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        let id = daemon.spawn(
            &[
                jail,
                &[
                    "--wall-time",
                    "300ms",
                    "--restart",
                    "always",
                    "--restart-delay",
                    "1ms",
                    "--",
                ],
                &[
                    "sh",
                    "-c",
                    "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done",
                    "mark-wall-7f3a",
                ],
            ]
            .concat(),
        );
        let agent = daemon.connect().call("wait-agent", json!({"id": id}))["result"].clone();
        assert_eq!(
            (&agent["state"], &agent["exit"], &agent["run"]),
            (
                &json!("error"),
                &json!({"code": 0, "reason": "wall-time"}),
                &json!(1)
            ),
            "{agent}"
        );
        assert!(
            agent["error"]
                .as_str()
                .unwrap()
                .contains("wall-clock limit of 300ms"),
            "{agent}"
        );
        assert_eq!(processes_with("mark-wall-7f3a"), Vec::<i32>::new());
    }
}
