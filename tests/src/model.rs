//! A scripted model server on loopback, which imitates POST /v1/chat/completions of an OpenAI-compatible provider,
//! event by event. Dropping it stops it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// The answer to one request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Text in these chunks.
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
    /// Number of answers that wait for `release`, and of calls of it.
    stalled: usize,
    go_on: usize,
    ends: bool,
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

pub struct Model {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Model {
    /// Starts a model with these answers, one per request.
    pub fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::answering(answers, |_| {
            Answer::Fail(400, "the script has no more answers")
        })
    }

    /// Starts a model that calls `further` when no scripted answer is left.
    pub fn answering(
        answers: impl IntoIterator<Item = Answer>,
        further: fn(&Value) -> Answer,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        shared.state().answers = answers.into_iter().collect();
        let served = shared.clone();
        let listener = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.state().ends {
                    return;
                }
                let shared = served.clone();
                // Errors of a disconnected client are ignored.
                std::thread::spawn(move || {
                    stream.and_then(|stream| serve(stream, &shared, further))
                });
            }
        });
        Self {
            address,
            shared,
            listener: Some(listener),
        }
    }

    /// Appends answers.
    pub fn then(&self, answers: impl IntoIterator<Item = Answer>) {
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
    pub fn go_on(&self) {
        self.shared.state().go_on += 1;
        self.shared.changed.notify_all();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.shared.state().ends = true;
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(stream: TcpStream, shared: &Shared, further: fn(&Value) -> Answer) -> io::Result<()> {
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
    let to = reader.get_mut();
    match answer.unwrap_or_else(|| further(&request)) {
        Answer::Fail(status, message) => {
            let body = json!({"error": {"message": message}}).to_string();
            write!(
                to,
                "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Answer::Text(pieces) => {
            begin(to)?;
            for piece in pieces {
                chunk(to, &json!({"content": piece}), None)?;
            }
            end(to, "stop")
        }
        Answer::Tools(calls) => {
            begin(to)?;
            for (index, (name, arguments)) in calls.iter().enumerate() {
                let function = json!({"name": name, "arguments": arguments.to_string()});
                let call = json!({"index": index, "id": format!("call-{index}"), "type": "function", "function": function});
                chunk(to, &json!({"tool_calls": [call]}), None)?;
            }
            end(to, "tool_calls")
        }
        Answer::Stall => {
            begin(to)?;
            let mut state = shared.state();
            state.stalled += 1;
            let mut state = shared
                .changed
                .wait_while(state, |state| state.go_on == 0 && !state.ends)
                .unwrap();
            state.stalled -= 1;
            state.go_on = state.go_on.saturating_sub(1);
            drop(state);
            chunk(to, &json!({"content": "Here at last."}), None)?;
            end(to, "stop")
        }
    }
}

fn begin(to: &mut TcpStream) -> io::Result<()> {
    write!(
        to,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    )?;
    chunk(to, &json!({"role": "assistant", "content": ""}), None)
}

fn chunk(to: &mut TcpStream, delta: &Value, finish: Option<&str>) -> io::Result<()> {
    let mut event = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    if finish.is_some() {
        event["usage"] =
            json!({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120});
    }
    write!(to, "data: {event}\n\n")
}

fn end(to: &mut TcpStream, finish: &str) -> io::Result<()> {
    chunk(to, &json!({}), Some(finish))?;
    write!(to, "data: [DONE]\n\n")
}
