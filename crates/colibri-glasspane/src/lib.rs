#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod command;
mod events;
mod formatter;
mod line_splitter;
mod question;
mod sanitize;
mod state_machine;
mod transcript;
mod view;

pub use colibri_types::{AgentRuntime, Exit, ExitReason, ExitStatus};
pub use command::{
    AgentCommand, CommandError, CommandResponse, PromptDelivery, ResponseParser, encode_command,
    sends_responses,
};
pub use formatter::TranscriptFormatter;
pub use question::Question;
pub use state_machine::Glasspane;
pub use transcript::{Transcript, TranscriptItem};
pub use view::{Activity, AgentState, AgentView};
