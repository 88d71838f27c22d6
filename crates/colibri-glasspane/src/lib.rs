#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod events;
mod lines;
mod pane;
mod view;

pub use pane::{Glasspane, Outcome};
pub use view::{AgentRuntime, AgentState, View};
