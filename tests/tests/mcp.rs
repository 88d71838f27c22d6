//! `colibri mcp` with the client of the protocol's official library, real agents and a scripted model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use colibri_tests::real_agent::{AgentSetup, CLAUDE, PI};
use colibri_tests::scripted_model::ANSWER;
use colibri_tests::text;
use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::service::{RoleClient, RunningService};
use rmcp::transport::TokioChildProcess;
use serde_json::{Value, json};

/// Maximum time of one test.
const TIMEOUT: Duration = Duration::from_secs(100);

/// The settings of a user whose agents use the scripted model. The tests of other commands have no jail by default.
const SETTINGS: &str = r#"
[agent.pi]
hosts = ["127.0.0.1:PORT"]

[agent.claude]
env = { CLAUDE_CODE_MAX_RETRIES = "0" }

[profile.shared]
jail = { path = "/", mounts = [{ source = "PROJECT/shared" }], limits = { open_files = 321 } }
"#;

/// A client of a server.
struct Leader {
    service: RunningService<RoleClient, ()>,
}

impl Leader {
    /// Calls a tool, and returns its result, or the text of its failure.
    async fn call(&self, tool: &'static str, arguments: Value) -> Result<Value, String> {
        let arguments = arguments.as_object().cloned().unwrap();
        let request = CallToolRequestParams::new(tool).with_arguments(arguments);
        let result = self.service.call_tool(request).await;
        let result = result.map_err(|error| error.to_string())?;
        match result.is_error {
            Some(true) => {
                let content = serde_json::to_value(&result.content).unwrap();
                Err(content[0]["text"].as_str().unwrap().to_owned())
            }
            _ => Ok(result.structured_content.unwrap()),
        }
    }

    async fn ok(&self, tool: &'static str, arguments: Value) -> Value {
        let result = self.call(tool, arguments.clone()).await;
        result.unwrap_or_else(|error| panic!("{tool} {arguments}: {error}"))
    }

    async fn refused(&self, tool: &'static str, arguments: Value) -> String {
        let result = self.call(tool, arguments.clone()).await;
        match result {
            Ok(result) => panic!("{tool} {arguments} was not refused: {result}"),
            Err(error) => error,
        }
    }

    async fn spawn(&self, arguments: Value) -> String {
        let spawned = self.ok("spawn_agent", arguments).await;
        spawned["id"].as_str().unwrap().to_owned()
    }
}

/// Runs `colibri mcp` with these options in the project, and `body` with its client. Closes the connection afterwards.
fn lead(setup: &AgentSetup, options: &[&str], body: impl AsyncFnOnce(&Leader)) {
    let settings = setup
        .fill(SETTINGS)
        .replace("PROJECT", setup.daemon.directory().to_str().unwrap());
    fs::create_dir_all(setup.daemon.path("shared/sub")).unwrap();
    fs::write(setup.daemon.path(".config/colibri/colibri.toml"), settings).unwrap();
    setup.cli(&["config", "reload"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let command = setup.command(&[&["mcp"], options].concat());
    let led = async {
        let process = TokioChildProcess::new(tokio::process::Command::from(command)).unwrap();
        let service = ().serve(process).await.unwrap();
        let leader = Leader { service };
        body(&leader).await;
        leader.service.cancel().await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, led).await.unwrap() });
}

fn is_running(setup: &AgentSetup, id: &str) -> bool {
    setup.daemon.agent(id)["exited_at"].is_null()
}

#[test]
fn leader_spawns_prompts_reads_and_kills_agents() {
    for case in [PI, CLAUDE] {
        let setup = AgentSetup::new(case);
        let name = setup.case.name;
        fs::create_dir(setup.project.join("part")).unwrap();
        let mut left = String::new();
        lead(&setup, &[], async |leader| {
            let tools = leader.service.list_all_tools().await.unwrap();
            let mut names: Vec<&str> = tools.iter().map(|tool| tool.name.as_ref()).collect();
            names.sort_unstable();
            let expected = [
                "answer_agent",
                "kill_agent",
                "list_agents",
                "prompt_agent",
                "read_agent",
                "spawn_agent",
            ];
            assert_eq!(names, expected);
            let id = leader
                .spawn(json!({"agent": name, "workspace": "part", "name": "worker"}))
                .await;
            let answered = leader
                .ok(
                    "prompt_agent",
                    json!({"id": id, "text": "do [cmd=echo made > made.txt]"}),
                )
                .await;
            assert_eq!(answered["state"], "idle", "{answered}");
            assert_eq!(answered["answer"], ANSWER, "{answered}");
            assert!(setup.project.join("part/made.txt").exists());
            let read = leader.ok("read_agent", json!({"id": id})).await;
            assert_eq!(read["answer"], ANSWER, "{read}");
            let transcript = read["transcript"].as_str().unwrap();
            assert!(transcript.contains("echo made > made.txt"), "{read}");
            let read = leader
                .ok("read_agent", json!({"id": id, "max_chars": 5}))
                .await;
            assert_eq!(read["transcript"].as_str().unwrap().chars().count(), 5);

            // A turn that is longer than the wait.
            let working = leader
                .ok(
                    "prompt_agent",
                    json!({"id": id, "text": "long [cmd=touch started; sleep 1000]", "wait_seconds": 1}),
                )
                .await;
            assert_eq!(working["state"], "working", "{working}");
            let listed = leader.ok("list_agents", json!({})).await;
            assert_eq!(listed["agents"][0]["name"], "worker", "{listed}");
            assert_eq!(listed["agents"][0]["state"], "working", "{listed}");
            leader.ok("kill_agent", json!({"id": id})).await;
            assert!(!is_running(&setup, &id));

            let failed = leader.spawn(json!({"agent": name})).await;
            let failed = leader
                .ok("prompt_agent", json!({"id": failed, "text": "x [http401]"}))
                .await;
            let error = failed["error"].as_str().unwrap_or_default();
            assert!(
                error.contains("api-key") || error.contains("API key"),
                "{failed}"
            );
            left = leader
                .spawn(json!({"agent": name, "prompt": "long [cmd=touch started; sleep 1000]"}))
                .await;
        });
        assert!(!left.is_empty() && !is_running(&setup, &left));
    }
}

#[test]
fn question_is_answered_by_the_leader() {
    let setup = AgentSetup::new(CLAUDE);
    lead(&setup, &["--keep"], async |leader| {
        let id = leader.spawn(json!({"agent": "claude", "ask": true})).await;
        for (answer, is_made) in [("deny", false), ("allow", true)] {
            let prompt = json!({"id": id, "text": "ask [cmd=touch asked.txt]"});
            let asked = leader.ok("prompt_agent", prompt.clone()).await;
            assert_eq!(asked["state"], "blocked", "{asked}");
            let question = asked["question"]["text"].as_str().unwrap();
            assert!(question.contains("touch asked.txt"), "{asked}");
            let refused = leader.refused("prompt_agent", prompt).await;
            assert!(refused.contains("answer_agent"), "{refused}");
            let read = leader.ok("read_agent", json!({"id": id})).await;
            assert_eq!(read["question"], asked["question"]);
            let options = asked["question"]["options"].as_array().unwrap();
            let option = options.iter().find(|option| option["label"] == answer);
            let number = asked["question"]["number"].as_u64().unwrap();
            let other = json!({"id": id, "question": number - 1, "answer": "1"});
            let refused = leader.refused("answer_agent", other).await;
            assert!(refused.contains("another question"), "{refused}");
            let invalid = json!({"id": id, "question": number, "answer": "perhaps"});
            let refused = leader.refused("answer_agent", invalid).await;
            assert!(refused.contains("invalid answer"), "{refused}");
            let answer = json!({"id": id, "question": number, "answer": option.unwrap()["answer"]});
            let answered = leader.ok("answer_agent", answer).await;
            assert_eq!(answered["state"], "idle", "{answered}");
            assert_eq!(setup.project.join("asked.txt").exists(), is_made);
        }
        let refused = leader
            .refused(
                "answer_agent",
                json!({"id": id, "question": 2, "answer": "1"}),
            )
            .await;
        assert!(refused.contains("no open question"), "{refused}");
    });
    let agent = setup.last_agent();
    assert!(agent["exited_at"].is_null(), "--keep keeps it: {agent}");
    setup.cli(&["kill", agent["id"].as_str().unwrap()]);
}

#[test]
fn client_that_exceeds_its_rights_is_refused() {
    let setup = AgentSetup::new(PI);
    let foreign = setup
        .daemon
        .spawn(&["--name", "foreign", "--", "sleep", "1000"]);
    let project = &setup.project;
    fs::create_dir_all(project.join("sub/.git/hooks")).unwrap();
    fs::create_dir(project.join("sub/checks")).unwrap();
    fs::write(
        project.join("sub/.git/config"),
        "[core]\nhooksPath = checks\n",
    )
    .unwrap();
    fs::create_dir(setup.daemon.path("outside")).unwrap();
    symlink(setup.daemon.path("outside"), project.join("link")).unwrap();
    lead(&setup, &["--max-agents", "2"], async |leader| {
        // Agents of other users of the daemon.
        for id in [foreign.as_str(), "foreign", &foreign[..6], "", "absent"] {
            for (tool, arguments) in [
                ("read_agent", json!({"id": id})),
                ("prompt_agent", json!({"id": id, "text": "x"})),
                (
                    "answer_agent",
                    json!({"id": id, "question": 1, "answer": "x"}),
                ),
                ("kill_agent", json!({"id": id})),
            ] {
                let error = leader.refused(tool, arguments).await;
                assert!(error.contains("is not an agent of this server"), "{error}");
            }
        }
        let listed = leader.ok("list_agents", json!({})).await;
        assert_eq!(listed, json!({"agents": []}));
        // Other directories.
        let outside = setup.daemon.path("outside").display().to_string();
        for workspace in [
            "..",
            "sub/../../outside",
            "link",
            "link/",
            "/",
            "/etc",
            "~",
            &outside,
            setup.daemon.directory().to_str().unwrap(),
            "sub/.git",
            "sub/.git/hooks",
            "absent",
        ] {
            let arguments = json!({"agent": "pi", "workspace": workspace});
            let error = leader.refused("spawn_agent", arguments).await;
            assert!(error.starts_with("refused workspace"), "{error}");
        }
        let hooks = json!({"agent": "pi", "workspace": "sub/checks"});
        let error = leader.refused("spawn_agent", hooks).await;
        assert!(error.contains("git finds hooks"), "{error}");
        // Other agents and options.
        for agent in ["sh", "/bin/sh", "", "../pi"] {
            let error = leader.refused("spawn_agent", json!({"agent": agent})).await;
            assert!(error.contains("no preset"), "{error}");
        }
        for (field, value) in [
            ("mounts", json!([{"source": "/etc"}])),
            ("allow", json!(["example.com:443"])),
            ("env", json!({"A": "1"})),
            ("profile", json!("shared")),
            ("args", json!(["--x"])),
        ] {
            let mut arguments = json!({"agent": "pi"});
            arguments[field] = value;
            let error = leader.refused("spawn_agent", arguments).await;
            assert!(error.contains(field), "{error}");
        }
        let ask = json!({"agent": "pi", "ask": true});
        let error = leader.refused("spawn_agent", ask).await;
        assert!(error.contains("cannot ask"), "{error}");
        assert_eq!(setup.daemon.agents().len(), 1, "only the foreign one");
        // Too many agents, also at the same time.
        let spawns: [_; 5] =
            std::array::from_fn(|_| leader.call("spawn_agent", json!({"agent": "pi"})));
        let [a, b, c, d, e] = spawns;
        let (a, b, c, d, e) = tokio::join!(a, b, c, d, e);
        let (started, refused): (Vec<_>, Vec<_>) =
            [a, b, c, d, e].into_iter().partition(Result::is_ok);
        assert_eq!((started.len(), refused.len()), (2, 3), "{refused:?}");
        for error in refused {
            assert!(error.unwrap_err().contains("the maximum"));
        }
        let id = started[0].as_ref().unwrap()["id"].clone();
        leader.ok("kill_agent", json!({"id": id})).await;
        leader.spawn(json!({"agent": "pi"})).await;
    });
    assert!(is_running(&setup, &foreign), "the foreign agent was killed");
    let running = setup.cli(&["ps", "--running", "-q"]);
    assert_eq!(running.trim(), foreign);
}

#[test]
fn profile_determines_the_sandbox_of_agents() {
    let setup = AgentSetup::new(PI);
    // The settings of the other tests have no jail.
    let output = setup.command(&["mcp"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("would have no jail"));
    let shared = setup.daemon.path("shared");
    lead(&setup, &["--profile", "shared"], async |leader| {
        let sub = shared.join("sub");
        let arguments = json!({"agent": "pi", "workspace": sub});
        let id = leader.spawn(arguments).await;
        let agent = setup.daemon.agent(&id);
        assert_eq!(agent["jail"]["limits"]["open_files"], 321, "{agent}");
        let answered = leader
            .ok(
                "prompt_agent",
                json!({"id": id, "text": "do [cmd=pwd > here; ulimit -n >> here]"}),
            )
            .await;
        assert_eq!(answered["state"], "idle", "{answered}");
        let here = fs::read_to_string(sub.join("here")).unwrap();
        assert_eq!(here, format!("{}\n321\n", sub.display()));
        // The workspace of the server too.
        let id = leader.spawn(json!({"agent": "pi"})).await;
        let agent = setup.daemon.agent(&id);
        assert_eq!(agent["jail"]["limits"]["open_files"], 321, "{agent}");
    });
    let output = setup
        .command(&["mcp", "--profile", "absent"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no profile \"absent\""));
    let output = setup.command(&["mcp"]).current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("give --workspace"));
}
