#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod command;
mod cost;
mod event;
mod formatter;
mod line_splitter;
mod question;
mod runtimes;
mod sanitize;
mod state_machine;
mod transcript;
mod view;

pub use colibri_types::{AgentRuntime, Exit, ExitReason, ExitStatus};
pub use command::{
    AgentCommand, CommandError, CommandResponse, PromptDelivery, ResponseParser, encode_command,
    reads_no_commands, sends_response,
};
// Only for colibri-proto; not part of the public API.
#[doc(hidden)]
pub use cost::deserialize_cost;
pub use formatter::TranscriptFormatter;
pub use question::{AnswerOption, Grant, Question};
pub use runtimes::{adapted_runtime, recognize_program};
pub use state_machine::Glasspane;
pub use transcript::{Transcript, TranscriptItem};
pub use view::{Activity, AgentState, AgentView};
