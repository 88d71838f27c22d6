#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod clean;
mod command;
mod events;
mod exit_reason;
mod lines;
mod paint;
mod pane;
mod transcript;
mod view;

pub use command::{Command, CommandError, Delivery, Response, Responses, answers, encode};
pub use exit_reason::ExitReason;
pub use paint::Painter;
pub use pane::{Glasspane, Outcome};
pub use transcript::{Item, Question, Transcript};
pub use view::{Activity, AgentRuntime, AgentState, View};
