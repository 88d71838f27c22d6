#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod clean;
mod command;
mod events;
mod lines;
mod paint;
mod pane;
mod transcript;
mod view;

pub use colibri_types::{AgentRuntime, Exit, ExitReason, ExitStatus};
pub use command::{Command, CommandError, Delivery, Response, Responses, answers, encode};
pub use paint::Painter;
pub use pane::Glasspane;
pub use transcript::{Item, Question, Transcript};
pub use view::{Activity, AgentState, View};
