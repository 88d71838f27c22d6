#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod plan;
mod preset;
mod program;

pub use plan::{AgentPlan, EndedAgent, Host, Mode, PlanError, Session};
pub use preset::{FixedFile, Key, Preset, UnknownPreset, builtin, find, with_builtin};
pub use program::InstalledProgram;
