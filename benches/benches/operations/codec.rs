//! Encoding and decoding of frames by the daemon and its clients.

use std::collections::BTreeMap;

use colibri_proto::{
    Agent, AgentRuntime, AgentState, Call, Env, FrameDecoder, JailConfig, ListResult, MountConfig,
    Notification, OutputData, OutputEvent, ReadResult, Request, Response, ServerMessage,
    SpawnRequest, Stream,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Operation;

pub(crate) fn all() -> Vec<Operation> {
    let mut all = Vec::new();
    for (name, bytes) in outputs() {
        let length = bytes.len();
        let frame = encode_output(&bytes);
        all.push(
            Operation::new(format!("encode output of {name}"), move || {
                encode_output(&bytes)
            })
            .with_bytes(length),
        );
        all.push(
            Operation::new(format!("decode output of {name}"), move || {
                decode_output(&frame)
            })
            .with_bytes(length),
        );
    }

    let call = Call::SpawnAgent(spawn_request());
    let frame = call.encode(7).unwrap();
    let length = frame.len();
    all.push(Operation::new("encode a spawn", move || call.encode(7).unwrap()).with_bytes(length));
    let decode = move || Request::read(&frame).unwrap().call().unwrap();
    all.push(Operation::new("decode a spawn", decode).with_bytes(length));

    let list = ListResult {
        agents: (0..100).map(agent).collect(),
        next: None,
    };
    let frame = encode_answer(&list);
    let length = frame.len();
    all.push(
        Operation::new("encode a list of 100 agents", move || encode_answer(&list))
            .with_bytes(length),
    );
    let decode = move || decode_answer::<ListResult>(&frame);
    all.push(Operation::new("decode a list of 100 agents", decode).with_bytes(length));

    let result = ReadResult {
        offset: 0,
        next_offset: 65_536,
        data: OutputData::from(text(65_536)),
        end: false,
        time: None,
    };
    let frame = encode_answer(&result);
    all.push(
        Operation::new("encode a read of 64 KiB", move || encode_answer(&result))
            .with_bytes(65_536),
    );
    let decode = move || decode_answer::<ReadResult>(&frame);
    all.push(Operation::new("decode a read of 64 KiB", decode).with_bytes(65_536));

    let frames = encode_output(&text(64)).repeat(1000);
    let length = frames.len();
    let split = move || {
        let mut decoder = FrameDecoder::default();
        let mut count = 0;
        // One read(2) of a connection returns 64 KiB.
        for chunk in frames.chunks(65_536) {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame() {
                count += frame.unwrap().len();
            }
        }
        count
    };
    all.push(Operation::new("split 1000 frames", split).with_bytes(length));
    all
}

/// Returns outputs and their names: texts of several lengths, a text of which every fourth byte needs an escape, and
/// binary data.
fn outputs() -> Vec<(&'static str, Vec<u8>)> {
    let mut with_escapes = text(65_536);
    let escaped_bytes = b"\"\n\x1b\\".iter().cycle();
    for (byte, escaped) in with_escapes.iter_mut().step_by(4).zip(escaped_bytes) {
        *byte = *escaped;
    }
    let binary = (0..65_536_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
    vec![
        ("64 B", text(64)),
        ("4 KiB", text(4096)),
        ("64 KiB", text(65_536)),
        ("64 KiB with many escapes", with_escapes),
        ("64 KiB of binary data", binary.collect()),
    ]
}

/// Returns lines of 64 bytes.
fn text(length: usize) -> Vec<u8> {
    let line = b"test result: ok. 27 passed; 0 failed; finished in 0.04 seconds.\n";
    line.iter().copied().cycle().take(length).collect()
}

/// Encodes an output notification, as the daemon does.
fn encode_output(bytes: &[u8]) -> Vec<u8> {
    Notification::AgentOutput(OutputEvent {
        subscription: 1,
        id: "a1b2c3d4e5f6".to_owned(),
        stream: Stream::Stdout,
        offset: 123_456_789,
        data: OutputData::from(bytes.to_vec()),
        time: None,
    })
    .encode()
    .unwrap()
}

/// Decodes an output notification, as a client does.
fn decode_output(frame: &[u8]) -> Vec<u8> {
    match ServerMessage::parse(frame).unwrap() {
        ServerMessage::Notification(Notification::AgentOutput(event)) => {
            event.data.into_bytes().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// Encodes the answer to a call, as the daemon does.
fn encode_answer<T: Serialize>(result: &T) -> Vec<u8> {
    let result = serde_json::value::to_raw_value(result).unwrap();
    Response::new(7, Ok(result)).encode().unwrap()
}

/// Decodes the answer to a call, as a client does.
fn decode_answer<T: DeserializeOwned>(frame: &[u8]) -> T {
    match ServerMessage::parse(frame).unwrap() {
        ServerMessage::Response(response) => {
            serde_json::from_str(response.into_result().unwrap().get()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn spawn_request() -> SpawnRequest {
    SpawnRequest {
        program: Some("pi".to_owned()),
        args: Some(
            ["--mode", "rpc", "--model", "a-model"]
                .map(str::to_owned)
                .into(),
        ),
        env: Env(BTreeMap::from(
            [("API_KEY", "k-0123456789"), ("LANG", "C.UTF-8")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )),
        cwd: Some("/work".to_owned()),
        jail: Some(jail()),
        runtime: Some(AgentRuntime::Pi),
        name: Some("night shift".to_owned()),
        ..SpawnRequest::default()
    }
}

fn jail() -> JailConfig {
    JailConfig {
        path: Some("/".to_owned()),
        mounts: vec![MountConfig {
            source: "/work".to_owned(),
            ..MountConfig::default()
        }],
        allow: vec!["api.example.org:443".to_owned()],
        ..JailConfig::default()
    }
}

fn agent(number: u32) -> Agent {
    Agent {
        id: format!("a1b2c3d4{number:04}"),
        name: Some(format!("worker {number}")),
        state: AgentState::Working,
        pid: Some(1000 + number.cast_signed()),
        program: "pi".to_owned(),
        args: ["--mode", "rpc"].map(str::to_owned).into(),
        cwd: Some("/work".to_owned()),
        jail: Some(jail()),
        warnings: Vec::new(),
        runtime: AgentRuntime::Pi,
        terminal: None,
        guessed: false,
        preset: None,
        added_args: Vec::new(),
        variables: Vec::new(),
        asks: false,
        resumes: None,
        restart: None,
        run: 1,
        started_at: "2026-01-01T00:00:00.123Z".to_owned(),
        exited_at: None,
        exit: None,
        error: None,
        stdout_bytes: 123_456,
        stderr_bytes: 0,
        network: None,
        last_event_at: Some("2026-01-01T01:02:03.456Z".to_owned()),
        view: None,
    }
}
