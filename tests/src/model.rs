//! A scripted model server on loopback. It imitates POST /v1/chat/completions of an OpenAI-compatible provider with
//! streamed answers.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// The answer to one request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Text that is streamed in these chunks.
    Text(&'static [&'static str]),
    /// Parallel calls of these tools.
    Tools(Vec<(&'static str, Value)>),
    /// An HTTP error.
    Fail(u16, &'static str),
    /// No output until [`Model::release`]; then a text.
    Stall,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    requests: Vec<Value>,
    /// Number of answers that wait for [`Model::release`].
    stalled: usize,
    /// Number of calls of `release` that no answer has used.
    released: usize,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The running server. Dropping it stops it.
pub struct Model {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Model {
    /// Starts a model with these answers, one per request.
    pub fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::start_with_fallback(answers, |_| {
            Answer::Fail(400, "the script has no more answers")
        })
    }

    /// Starts a model that answers by `fallback` when no scripted answer is left.
    pub fn start_with_fallback(
        answers: impl IntoIterator<Item = Answer>,
        fallback: fn(&Value) -> Answer,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        shared.state().answers = answers.into_iter().collect();
        let server = shared.clone();
        let listener = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if server.state().stopped {
                    return;
                }
                let shared = server.clone();
                // Errors of a disconnected client are ignored.
                std::thread::spawn(move || {
                    stream.and_then(|stream| serve(stream, &shared, fallback))
                });
            }
        });
        Self {
            address,
            shared,
            listener: Some(listener),
        }
    }

    /// Appends answers to the script.
    pub fn push_answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.state().answers.extend(answers);
    }

    /// Returns the address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns pi's `models.json` with this model as `scripted/m`.
    pub fn models_json(&self) -> String {
        let model =
            json!({"id": "m", "cost": {"input": 3, "output": 15, "cacheRead": 0, "cacheWrite": 0}});
        json!({"providers": {"scripted": {
            "baseUrl": format!("http://{}/v1", self.address),
            "api": "openai-completions",
            "apiKey": "x",
            "models": [model],
        }}})
        .to_string()
    }

    /// Returns the received requests in order.
    pub fn requests(&self) -> Vec<Value> {
        self.shared.state().requests.clone()
    }

    /// Returns the number of stalled answers.
    pub fn stalled(&self) -> usize {
        self.shared.state().stalled
    }

    /// Releases one stalled answer.
    pub fn release(&self) {
        self.shared.state().released += 1;
        self.shared.changed.notify_all();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(stream: TcpStream, shared: &Shared, fallback: fn(&Value) -> Answer) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request: Value = serde_json::from_slice(&body)?;
    let answer = {
        let mut state = shared.state();
        state.requests.push(request.clone());
        state.answers.pop_front()
    };
    let stream = reader.get_mut();
    match answer.unwrap_or_else(|| fallback(&request)) {
        Answer::Fail(status, message) => {
            let body = json!({"error": {"message": message}}).to_string();
            write!(
                stream,
                "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Answer::Text(chunks) => {
            start_stream(stream)?;
            for chunk in chunks {
                write_event(stream, &json!({"content": chunk}), None)?;
            }
            end_stream(stream, "stop")
        }
        Answer::Tools(calls) => {
            start_stream(stream)?;
            for (index, (name, arguments)) in calls.iter().enumerate() {
                let function = json!({"name": name, "arguments": arguments.to_string()});
                let call = json!({"index": index, "id": format!("call-{index}"), "type": "function", "function": function});
                write_event(stream, &json!({"tool_calls": [call]}), None)?;
            }
            end_stream(stream, "tool_calls")
        }
        Answer::Stall => {
            start_stream(stream)?;
            let mut state = shared.state();
            state.stalled += 1;
            let mut state = shared
                .changed
                .wait_while(state, |state| state.released == 0 && !state.stopped)
                .unwrap();
            state.stalled -= 1;
            state.released = state.released.saturating_sub(1);
            drop(state);
            write_event(stream, &json!({"content": "Here at last."}), None)?;
            end_stream(stream, "stop")
        }
    }
}

fn start_stream(stream: &mut TcpStream) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    )?;
    write_event(stream, &json!({"role": "assistant", "content": ""}), None)
}

/// Writes one event of a stream; the last one has the reason of the end and the usage.
fn write_event(
    stream: &mut TcpStream,
    delta: &Value,
    finish_reason: Option<&str>,
) -> io::Result<()> {
    let mut event = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]});
    if finish_reason.is_some() {
        event["usage"] =
            json!({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120});
    }
    write!(stream, "data: {event}\n\n")
}

fn end_stream(stream: &mut TcpStream, finish_reason: &str) -> io::Result<()> {
    write_event(stream, &json!({}), Some(finish_reason))?;
    write!(stream, "data: [DONE]\n\n")
}
