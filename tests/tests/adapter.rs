//! The requests of agents of the Agent Client Protocol, which colibri-adapter answers in the agent's sandbox.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::{Daemon, program, text};
use serde_json::{Value, json};

struct Setup {
    daemon: Daemon,
    id: String,
}

impl Setup {
    fn start() -> Self {
        let daemon = Daemon::start();
        let project = daemon.path("project");
        fs::create_dir(&project).unwrap();
        fs::write(daemon.path("secret"), "s3cret\n").unwrap();
        let agent = program("acp_agent");
        let mount = format!("{}:/tmp/acp-agent:ro", agent.display());
        let project = project.to_str().unwrap();
        let id = daemon.spawn(&[
            "--jail-path",
            "/",
            "--workspace",
            project,
            "--mount",
            &mount,
            "--runtime",
            "acp",
            "--",
            "/tmp/acp-agent",
        ]);
        Self { daemon, id }
    }

    /// Lets the agent send requests, and returns the results.
    fn requests(&self, requests: &Value) -> Vec<Value> {
        let prompt = requests.to_string();
        let answer =
            self.daemon
                .cli_ok(&["prompt", "--wait", "--timeout", "60s", &self.id, &prompt]);
        serde_json::from_str(answer.trim()).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.daemon.path(name).display().to_string()
    }
}

#[test]
fn files_are_read_and_written_in_the_sandbox_only() {
    let setup = Setup::start();
    let file = setup.path("project/new.txt");
    let read = |path: &str| json!(["fs/read_text_file", {"path": path, "line": 2, "limit": 1}]);
    let write =
        |path: &str| json!(["fs/write_text_file", {"path": path, "content": "one\ntwo\nthree\n"}]);
    let (secret, state) = (setup.path("secret"), setup.path("state"));
    let hooks = setup.path("project/.git/hooks/pre-commit");
    let results = setup.requests(&json!([
        write(&file),
        read(&file),
        read(&secret),
        write(&secret),
        write(&format!("{state}/x")),
        write("/etc/colibri-test"),
        write(&hooks),
        read("/dev/zero"),
        ["terminal/create", {"command": "mkfifo", "args": ["fifo"], "cwd": setup.path("project")}],
        ["terminal/wait_for_exit", {"terminalId": "$T"}],
        read(&setup.path("project/fifo")),
        write(&setup.path("project/fifo")),
    ]));
    assert_eq!(results[1]["content"], "two\n", "{results:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\nthree\n");
    for (number, reason) in [
        (2, "No such file"),
        (4, ""),
        (5, ""),
        (6, ""),
        (7, "not a regular file"),
        (10, "not a regular file"),
        (11, ""),
    ] {
        let error = &results[number];
        assert!(
            error["code"].is_i64() && error.to_string().contains(reason),
            "{number}: {error}"
        );
    }
    // The directory in the sandbox is another one.
    assert_eq!(fs::read_to_string(&secret).unwrap(), "s3cret\n");
}

#[test]
fn terminals_run_in_the_sandbox_and_are_bounded() {
    let setup = Setup::start();
    let create = |script: &str| json!(["terminal/create", {"command": "sh", "args": ["-c", script], "cwd": setup.path("project"), "outputByteLimit": 1000}]);
    let on = |method: &str| json!([format!("terminal/{method}"), {"terminalId": "$T"}]);
    let results = setup.requests(&json!([
        create("pwd; cat ../secret; exit 3"),
        on("wait_for_exit"),
        on("output"),
        on("release"),
        on("output"),
        create("yes"),
        on("kill"),
        on("wait_for_exit"),
        on("output"),
        on("release"),
    ]));
    assert_eq!(results[1]["exitCode"], 3, "{results:?}");
    let output = results[2]["output"].as_str().unwrap();
    assert!(
        output.starts_with(&setup.path("project")) && output.contains("No such file"),
        "{output}"
    );
    assert!(results[4]["code"].is_i64(), "{}", results[4]);
    assert!(results[7]["signal"].is_string(), "{}", results[7]);
    assert!(
        results[8]["output"].as_str().unwrap().len() <= 1000,
        "{}",
        results[8]
    );
    // Not more than 64 at once.
    let many: Vec<Value> = (0..70).map(|_| create("sleep 1000")).collect();
    let results = setup.requests(&json!(many));
    let created = results
        .iter()
        .filter(|result| result["terminalId"].is_string());
    assert_eq!(created.count(), 64);
    assert!(
        results[69].to_string().contains("release one"),
        "{}",
        results[69]
    );
    // Their processes end with the agent.
    setup.daemon.cli_ok(&["kill", &setup.id]);
    let output = setup.daemon.cli(&["status", &setup.id]);
    assert!(
        text(&output.stdout).contains("done"),
        "{}",
        text(&output.stdout)
    );
}
