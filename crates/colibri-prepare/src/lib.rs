#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod arguments;
mod cgroup;
mod check;
mod doctor;
mod elevated;
mod error;
mod filter;
mod git_config;
mod host;
mod jail_view;
mod kernel_support;
mod limits;
mod mountinfo;
mod mounts;
mod prepare;
mod program;
mod sandbox;
mod worktree;

pub use colibri_sys::known_daemons::KnownDaemons;

pub use cgroup::{Cgroups, Obstacle};
pub use doctor::{ConfinementOwner, Installation, KnownConfinement};
pub use elevated::ElevatedCommands;
pub use error::{PrepareError, is_resource_exhaustion};
pub use host::HostEnv;
pub use limits::LimitPlan;
pub use prepare::{Prepared, Preparer};
