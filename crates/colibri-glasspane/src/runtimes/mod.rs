//! The runtimes. Each has a file with its [`Dialect`]: how to recognize it, its events and its commands. [`DIALECTS`] lists
//! them all.

mod acp;
mod adapter;
mod claude;
mod codex;
mod copilot;
mod gemini;
mod opencode;
mod pi;
mod qwen;
mod reader;
mod stream_json;
mod zot;

use std::fmt::Debug;

use serde_json::Value;

use crate::event::Event;
use crate::{AgentCommand, AgentRuntime, CommandError, PromptDelivery};

use crate::command::unsupported;
pub(crate) use reader::{EventReader, Mismatch};

/// The dialects of all runtimes with events. A line or a program that fits several belongs to the first.
const DIALECTS: &[Dialect] = &[
    pi::DIALECT,
    zot::DIALECT,
    qwen::DIALECT,
    claude::DIALECT,
    codex::DIALECT,
    gemini::DIALECT,
    opencode::DIALECT,
    copilot::DIALECT,
    acp::DIALECT,
];

/// Interpreters, whose first argument without a dash is the program.
const INTERPRETERS: &[&str] = &[
    "node", "bun", "deno", "npx", "bunx", "python", "python3", "env", "uvx",
];

/// What Colibri knows of a runtime.
pub(crate) struct Dialect {
    pub(crate) runtime: AgentRuntime,
    /// Returns whether a program of this name, with these arguments, writes events of the runtime.
    pub(crate) is_program: fn(&str, &[&str]) -> bool,
    /// Returns whether a line of output can only be an event of the runtime.
    pub(crate) is_own_event: fn(&Value) -> bool,
    /// Creates the parser of one output stream.
    pub(crate) new_parser: fn() -> Box<dyn LineParser>,
    /// Encodes a command as one line, or as an array of lines; the response to it repeats the id.
    pub(crate) encode: fn(&str, &AgentCommand<'_>) -> Result<Value, CommandError>,
    /// Returns whether the agent responds to the command soon; the second argument is whether it is working.
    pub(crate) responds: fn(&AgentCommand<'_>, bool) -> bool,
    /// Returns why an agent that was started with these arguments reads no commands; `None` if it reads them.
    pub(crate) reads_no_commands: fn(&[&str]) -> Option<&'static str>,
    /// Returns whether colibri-adapter drives an agent with these arguments.
    pub(crate) needs_adapter: fn(&[&str]) -> bool,
    /// The earliest delivery of a prompt that a working agent accepts.
    pub(crate) earliest: PromptDelivery,
}

/// Parses the output of one agent, line by line.
pub(crate) trait LineParser: Debug + Send + Sync {
    /// Calls `emit` for each event of the line.
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind;
}

/// What a line of output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// Not an event of any kind.
    NotAnEvent,
    /// An event that the parser does not know, perhaps of a later release.
    Unknown,
    Event,
}

impl Dialect {
    /// Returns the dialect of a runtime; `None` for runtimes without events.
    pub(crate) fn of(runtime: AgentRuntime) -> Option<&'static Self> {
        DIALECTS.iter().find(|dialect| dialect.runtime == runtime)
    }
}

/// Returns the runtime of a program with these arguments. `None` if the program is unknown, or writes no events with these
/// arguments.
#[must_use]
pub fn recognize_program(program: &str, args: &[String]) -> Option<AgentRuntime> {
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut name = base_name(program);
    if INTERPRETERS.contains(&name) {
        let script = args.iter().position(|arg| !arg.starts_with('-'))?;
        name = base_name(args.get(script)?);
        args.drain(..=script);
    }
    let fits = |dialect: &&Dialect| (dialect.is_program)(name, &args);
    DIALECTS.iter().find(fits).map(|dialect| dialect.runtime)
}

/// Returns the runtime, which is also the name of its protocol, of an agent that colibri-adapter drives.
#[must_use]
pub fn adapted_runtime(
    runtime: AgentRuntime,
    program: &str,
    args: &[String],
) -> Option<AgentRuntime> {
    let runtime = match runtime {
        AgentRuntime::Auto => recognize_program(program, args)?,
        runtime => runtime,
    };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    (Dialect::of(runtime)?.needs_adapter)(&args).then_some(runtime)
}

/// Returns the last component of a path, without the extension of a script.
fn base_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extensions = [".js", ".mjs", ".cjs", ".exe", ".py"];
    extensions
        .iter()
        .find_map(|extension| name.strip_suffix(extension))
        .unwrap_or(name)
}

/// Returns the runtime whose event this line can only be.
fn recognize_line(line: &[u8]) -> Option<AgentRuntime> {
    let event: Value = parse_object(line)?;
    let fits = |dialect: &&Dialect| (dialect.is_own_event)(&event);
    DIALECTS.iter().find(fits).map(|dialect| dialect.runtime)
}

/// Parses a line as a JSON object. Rejects other lines cheaply, because parser errors are expensive.
fn parse_object<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Option<T> {
    if line.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(line).ok()
}

/// Returns whether the option occurs with one of these values, as `--option value` or `--option=value`.
fn has_option(args: &[&str], option: &str, values: &[&str]) -> bool {
    let is_value = |value: &str| values.contains(&value);
    args.windows(2)
        .any(|pair| matches!(pair, [name, value] if *name == option && is_value(value)))
        || args
            .iter()
            .filter_map(|arg| arg.strip_prefix(option)?.strip_prefix('='))
            .any(is_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runtime_has_one_dialect() {
        for &runtime in AgentRuntime::ALL {
            let count = DIALECTS
                .iter()
                .filter(|dialect| dialect.runtime == runtime)
                .count();
            let expected = usize::from(!matches!(
                runtime,
                AgentRuntime::Auto | AgentRuntime::Generic
            ));
            assert_eq!(count, expected, "{runtime}");
        }
    }

    #[test]
    fn program_and_mode_determine_the_runtime() {
        for (command, expected) in [
            ("pi --mode json x", Some(AgentRuntime::Pi)),
            ("/usr/bin/pi --mode=rpc", Some(AgentRuntime::Pi)),
            ("pi x", None),
            (
                "node --no-warnings /t/pi.js --mode rpc",
                Some(AgentRuntime::Pi),
            ),
            ("zot --json x", Some(AgentRuntime::Zot)),
            ("zot rpc", Some(AgentRuntime::Zot)),
            ("zot", None),
            (
                "claude -p --output-format stream-json --verbose x",
                Some(AgentRuntime::Claude),
            ),
            (
                "claude.exe --output-format=stream-json",
                Some(AgentRuntime::Claude),
            ),
            ("claude -p x", None),
            ("codex exec --json x", Some(AgentRuntime::Codex)),
            ("codex -c a=b app-server", Some(AgentRuntime::Codex)),
            ("codex", None),
            ("gemini -o stream-json -p x", Some(AgentRuntime::Gemini)),
            ("gemini --acp", Some(AgentRuntime::Acp)),
            ("gemini --experimental-acp", Some(AgentRuntime::Acp)),
            ("qwen -o stream-json x", Some(AgentRuntime::Qwen)),
            ("qwen --acp", Some(AgentRuntime::Acp)),
            ("opencode run --format json x", Some(AgentRuntime::Opencode)),
            ("opencode acp", Some(AgentRuntime::Acp)),
            (
                "copilot --output-format json -p x",
                Some(AgentRuntime::Copilot),
            ),
            ("copilot --acp", Some(AgentRuntime::Acp)),
            ("cline --acp", Some(AgentRuntime::Acp)),
            ("npx claude-agent-acp", Some(AgentRuntime::Acp)),
            ("codex-acp", Some(AgentRuntime::Acp)),
            ("sh -c pi", None),
            ("node", None),
            ("", None),
        ] {
            let mut words = command.split(' ').map(str::to_owned);
            let program = words.next().unwrap_or_default();
            let args: Vec<String> = words.collect();
            assert_eq!(recognize_program(&program, &args), expected, "{command}");
        }
    }
}
