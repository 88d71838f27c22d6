//! `colibri acp` with the client side of the protocol's official library, real agents and a scripted model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::future::Future;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent_client_protocol::schema::ProtocolVersion;
use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{
    CancelNotification, ContentBlock, ImageContent, InitializeRequest, NewSessionRequest,
    PermissionOptionKind, PromptRequest, RequestPermissionOutcome, RequestPermissionRequest,
    RequestPermissionResponse, SelectedPermissionOutcome, SessionId, SessionNotification,
    StopReason, TextContent,
};
use agent_client_protocol::{
    Agent, Client, Error, Lines, on_receive_notification, on_receive_request,
};
use colibri_tests::real_agent::{AgentSetup, CLAUDE, GEMINI, PI};
use colibri_tests::scripted_model::{ANNOUNCEMENT, ANSWER};
use colibri_tests::text;
use futures_channel::mpsc as lines;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{oneshot, watch};

/// Maximum time of one test.
const TIMEOUT: Duration = Duration::from_secs(100);

/// What the editor has received.
#[derive(Default, Clone)]
struct Received {
    updates: Vec<Value>,
    permissions: Vec<Value>,
}

impl Received {
    /// Returns the text of all messages of the agent.
    fn message(&self) -> String {
        let chunks = self.of_kind("agent_message_chunk");
        let texts = chunks.map(|update| update["content"]["text"].as_str().unwrap());
        texts.collect()
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let updates = self.updates.iter();
        updates.filter(move |update| update["sessionUpdate"] == kind)
    }
}

/// An editor with a connection to `colibri acp`.
struct Editor {
    agent: ConnectionTo<Agent>,
    capabilities: Value,
    received: watch::Receiver<Received>,
}

impl Editor {
    async fn open(&self, directory: &Path) -> Result<SessionId, Error> {
        let request = NewSessionRequest::new(directory);
        let opened = self.agent.send_request(request).block_task().await?;
        Ok(opened.session_id)
    }

    async fn prompt(&self, session: &SessionId, text: &str) -> Result<StopReason, Error> {
        let content = vec![ContentBlock::Text(TextContent::new(text))];
        let request = PromptRequest::new(session.clone(), content);
        let response = self.agent.send_request(request).block_task().await?;
        Ok(response.stop_reason)
    }

    fn cancel(&self, session: &SessionId) {
        let cancel = CancelNotification::new(session.clone());
        self.agent.send_notification(cancel).unwrap();
    }

    /// Waits until what was received fulfils the condition.
    async fn until(&self, condition: impl FnMut(&Received) -> bool) -> Received {
        let mut received = self.received.clone();
        received.wait_for(condition).await.unwrap().clone()
    }

    fn received(&self) -> Received {
        self.received.borrow().clone()
    }
}

/// Runs `colibri acp` by this command, and `body` with an editor that chooses permissions of this kind, or never answers.
/// Returns the exit status after the editor has closed the connection.
fn edit<F: Future<Output = ()>>(
    command: Command,
    choice: Option<PermissionOptionKind>,
    body: impl FnOnce(Editor) -> F,
) -> ExitStatus {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut command = tokio::process::Command::from(command);
    let served = async {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let (outgoing, mut messages) = lines::unbounded::<String>();
        let (incoming, stream) = lines::unbounded();
        let (closing, mut closed) = oneshot::channel::<()>();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok(line) = messages.recv() => {
                        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
                    }
                    _ = &mut closed => return,
                }
            }
        });
        tokio::spawn(async move {
            while let Some(line) = stdout.next_line().await.unwrap() {
                let message: Result<Value, _> = serde_json::from_str(&line);
                assert!(message.is_ok(), "standard output has {line:?}");
                let _ = incoming.unbounded_send(Ok(line));
            }
        });
        let (sender, received) = watch::channel(Received::default());
        let sender = Arc::new(sender);
        let permissions = sender.clone();
        Client
            .v1()
            .name("test")
            .on_receive_notification(
                async move |notification: SessionNotification, _| {
                    let update = serde_json::to_value(&notification.update).unwrap();
                    sender.send_modify(|received| received.updates.push(update));
                    Ok(())
                },
                on_receive_notification!(),
            )
            .on_receive_request(
                async move |request: RequestPermissionRequest, responder, _| {
                    let asked = serde_json::to_value(&request).unwrap();
                    permissions.send_modify(|received| received.permissions.push(asked));
                    let Some(choice) = choice else {
                        std::mem::forget(responder);
                        return Ok(());
                    };
                    let chosen = request.options.iter().find(|one| one.kind == choice);
                    let chosen = SelectedPermissionOutcome::new(chosen.unwrap().option_id.clone());
                    responder.respond(RequestPermissionResponse::new(
                        RequestPermissionOutcome::Selected(chosen),
                    ))
                },
                on_receive_request!(),
            )
            .connect_with(
                Lines::new(outgoing.sink_map_err(std::io::Error::other), stream),
                async move |agent: ConnectionTo<Agent>| {
                    let request = InitializeRequest::new(ProtocolVersion::V1);
                    let initialized = agent.send_request(request).block_task().await?;
                    let capabilities = serde_json::to_value(&initialized.agent_capabilities);
                    body(Editor {
                        agent,
                        capabilities: capabilities.unwrap(),
                        received,
                    })
                    .await;
                    Ok(())
                },
            )
            .await
            .unwrap();
        drop(closing);
        child.wait().await.unwrap()
    };
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, served).await.unwrap() })
}

/// Polls until a file exists.
async fn exists(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Checks that all agents of a daemon have ended.
fn assert_all_ended(setup: &AgentSetup) {
    let agents = setup.daemon.agents();
    assert!(!agents.is_empty());
    for agent in agents {
        assert!(agent["exited_at"].is_string(), "{agent}");
    }
}

#[test]
fn prompt_of_an_editor_runs_in_the_workspace() {
    for case in [PI, CLAUDE] {
        let setup = AgentSetup::new(case);
        let allow = Some(PermissionOptionKind::AllowOnce);
        let status = edit(setup.agent(&["acp"]), allow, async |editor| {
            let capabilities = &editor.capabilities;
            assert_eq!(capabilities["loadSession"], json!(false));
            assert_eq!(capabilities["promptCapabilities"]["embeddedContext"], true);
            let session = editor.open(&setup.project).await.unwrap();
            let agent = setup.last_agent();
            assert_eq!(agent["name"], session.0.as_ref(), "{agent}");
            assert_eq!(
                agent["jail"]["workdir"],
                setup.project.to_str().unwrap(),
                "{agent}"
            );
            for (prompt, file) in [("one", "one.txt"), ("two", "two.txt")] {
                let prompt = format!("{prompt} [cmd=echo made; echo made > {file}]");
                let reason = editor.prompt(&session, &prompt).await.unwrap();
                assert_eq!(reason, StopReason::EndTurn);
                let made = std::fs::read_to_string(setup.project.join(file)).unwrap();
                assert_eq!(made, "made\n");
            }
            let received = editor.received();
            let message = received.message();
            assert!(message.contains(ANNOUNCEMENT), "{message}");
            assert_eq!(message.matches(ANSWER).count(), 2, "{message}");
            let calls: Vec<&Value> = received.of_kind("tool_call").collect();
            assert_eq!(calls.len(), 2, "{calls:?}");
            for call in calls {
                assert_eq!(call["kind"], "execute", "{call}");
                assert_eq!(call["status"], "in_progress", "{call}");
                let title = call["title"].as_str().unwrap();
                assert!(title.contains("echo made"), "{call}");
                let mut ends = received.of_kind("tool_call_update");
                let end = ends.find(|end| end["toolCallId"] == call["toolCallId"]);
                let end = end.unwrap();
                assert_eq!(end["status"], "completed", "{end}");
                let content = &end["content"][0]["content"]["text"];
                assert!(content.as_str().unwrap().contains("made"), "{end}");
            }
        });
        assert!(status.success(), "{status}");
        assert_all_ended(&setup);
    }
}

#[test]
fn permission_request_is_answered_by_the_editor() {
    for (choice, is_made) in [
        (PermissionOptionKind::AllowOnce, true),
        (PermissionOptionKind::RejectOnce, false),
    ] {
        let setup = AgentSetup::new(CLAUDE);
        edit(setup.agent(&["acp"]), Some(choice), async |editor| {
            let session = editor.open(&setup.project).await.unwrap();
            let prompt = "ask [cmd=touch asked.txt]";
            let reason = editor.prompt(&session, prompt).await.unwrap();
            assert_eq!(reason, StopReason::EndTurn);
            let received = editor.received();
            let [asked] = &received.permissions[..] else {
                panic!("{:?}", received.permissions)
            };
            let title = asked["toolCall"]["title"].as_str().unwrap();
            assert!(title.contains("touch asked.txt"), "{asked}");
            let call = received.of_kind("tool_call").next().unwrap();
            assert_eq!(asked["toolCall"]["toolCallId"], call["toolCallId"]);
            assert_eq!(setup.project.join("asked.txt").exists(), is_made);
        });
    }
}

#[test]
fn cancelled_turn_ends_and_the_session_continues() {
    for case in [PI, CLAUDE] {
        let setup = AgentSetup::new(case);
        let allow = Some(PermissionOptionKind::AllowOnce);
        edit(setup.agent(&["acp"]), allow, async |editor| {
            let session = editor.open(&setup.project).await.unwrap();
            let cancelling = async {
                exists(&setup.project.join("started")).await;
                editor.cancel(&session);
            };
            let prompt = editor.prompt(&session, "long [cmd=touch started; sleep 1000]");
            let (reason, ()) = tokio::join!(prompt, cancelling);
            assert_eq!(reason.unwrap(), StopReason::Cancelled);
            let ended = setup.last_agent();
            assert_eq!(ended["exited_at"], Value::Null, "the agent was killed");
            let reason = editor.prompt(&session, "next [cmd=touch next.txt]").await;
            assert_eq!(reason.unwrap(), StopReason::EndTurn);
            assert!(setup.project.join("next.txt").exists());
        });
    }
}

#[test]
fn cancellation_answers_an_open_question() {
    let setup = AgentSetup::new(CLAUDE);
    edit(setup.agent(&["acp"]), None, async |editor| {
        let session = editor.open(&setup.project).await.unwrap();
        let cancelling = async {
            editor
                .until(|received| !received.permissions.is_empty())
                .await;
            editor.cancel(&session);
        };
        let prompt = editor.prompt(&session, "ask [cmd=touch asked.txt]");
        let (reason, ()) = tokio::join!(prompt, cancelling);
        assert_eq!(reason.unwrap(), StopReason::Cancelled);
        assert!(!setup.project.join("asked.txt").exists());
    });
}

#[test]
fn failures_are_errors_of_the_request() {
    let setup = AgentSetup::new(PI);
    edit(setup.agent(&["acp"]), None, async |editor| {
        let absent = SessionId::new("absent");
        let error = editor.prompt(&absent, "x").await.unwrap_err();
        assert!(format!("{error:?}").contains("no session"), "{error:?}");
        for directory in ["/", "/etc", "/nowhere"] {
            let error = editor.open(Path::new(directory)).await.unwrap_err();
            assert!(error.message.contains(directory), "{error:?}");
        }
        let session = editor.open(&setup.project).await.unwrap();
        let image = ContentBlock::Image(ImageContent::new("", "image/png"));
        let request = PromptRequest::new(session.clone(), vec![image]);
        let error = editor.agent.send_request(request).block_task().await;
        assert!(format!("{error:?}").contains("images"), "{error:?}");

        let error = editor.prompt(&session, "x [http401]").await.unwrap_err();
        assert!(error.message.contains("x-api-key"), "{error:?}");
        let reason = editor.prompt(&session, "again").await.unwrap();
        assert_eq!(reason, StopReason::EndTurn);

        // An agent that ends during a turn, and the next prompt.
        let id = setup.last_agent()["id"].as_str().unwrap().to_owned();
        let killing = async {
            exists(&setup.project.join("started")).await;
            setup.cli(&["kill", &id]);
        };
        let prompt = editor.prompt(&session, "long [cmd=touch started; sleep 1000]");
        let (result, ()) = tokio::join!(prompt, killing);
        let error = result.unwrap_err();
        assert!(error.message.contains("the agent has ended"), "{error:?}");
        let reason = editor.prompt(&session, "again [cmd=touch again.txt]").await;
        assert_eq!(reason.unwrap(), StopReason::EndTurn);
        assert!(setup.project.join("again.txt").exists());
        let message = editor.received().message();
        assert!(message.contains("was started again"), "{message}");
    });
    assert_all_ended(&setup);
}

#[test]
fn agent_of_the_protocol_runs_without_translation() {
    let setup = AgentSetup::new(GEMINI);
    let words = ["run", "--ask", "--runtime", "generic", "--raw"];
    let allow = Some(PermissionOptionKind::AllowOnce);
    let status = edit(setup.agent(&words), allow, async |editor| {
        let session = editor.open(&setup.project).await.unwrap();
        let reason = editor.prompt(&session, "make it [cmd=echo made > made.txt]");
        assert_eq!(reason.await.unwrap(), StopReason::EndTurn);
        let message = editor.received().message();
        assert!(message.contains(ANSWER), "{message}");
        assert!(setup.project.join("made.txt").exists());
    });
    assert!(status.success(), "{status}");
    assert_all_ended(&setup);
}

#[test]
fn turn_survives_a_restart_of_the_daemon() {
    let mut setup = AgentSetup::new(PI);
    edit(setup.agent(&["acp"]), None, async |editor| {
        let session = editor.open(&setup.project).await.unwrap();
        let started = setup.project.join("started");
        let go = setup.project.join("go");
        let restarting = async {
            exists(&started).await;
            setup.daemon.kill();
            setup.daemon.launch();
            std::fs::write(&go, "").unwrap();
        };
        let text = "wait [cmd=touch started; until test -e go; do sleep 0.01; done; echo gone]";
        let (reason, ()) = tokio::join!(editor.prompt(&session, text), restarting);
        assert_eq!(reason.unwrap(), StopReason::EndTurn);
        let message = editor.received().message();
        assert!(message.contains(ANSWER), "{message}");
        let reason = editor.prompt(&session, "next [cmd=touch next.txt]").await;
        assert_eq!(reason.unwrap(), StopReason::EndTurn);
    });
    assert_all_ended(&setup);
}

#[test]
fn unusable_options_are_refused_at_the_start() {
    let setup = AgentSetup::new(PI);
    for (words, code, expected) in [
        (&["acp"][..], 2, "--agent <NAME>"),
        (&["acp", "--agent", "no-such-agent"], 1, "no preset"),
        (
            &["acp", "--agent", "pi", "--workspace", "/tmp"],
            2,
            "--workspace",
        ),
        (&["acp", "--agent", "pi", "a prompt"], 2, "[PROMPT]"),
    ] {
        let output = setup.command(words).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {err}");
        assert!(err.contains(expected), "{words:?}: {err}");
        assert_eq!(text(&output.stdout), "");
    }
}
