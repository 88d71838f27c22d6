#![doc = include_str!("../README.md")]
//!
//! # Layers
//!
//! A module uses modules below it and never one above it.
//!
//! ```text
//! start          arguments, settings, locks, signals, shutdown
//!   │
//! connection     accept, frames, calls, subscriptions
//!   │
//! handlers       what each method does, one file for each group of methods
//!   │
//! daemon         shared state: settings file, autostart, audit log
//!   │
//! registry       agents by id, reservations, removal, retention
//!   │
//! supervision    one task for each running agent: shim status and journal become a snapshot
//!   │
//! hooks          commands that run when an agent enters a state
//!   │
//! metrics        counters and their HTTP server (cargo feature `metrics`)
//!   │
//! terminal       the size of an agent's terminal
//!   │
//! agent          one agent: specification, snapshot, journals
//!   │
//! errors, pool, rotation, socket, times
//! ```
#![forbid(unsafe_code)]

mod agent;
mod connection;
mod daemon;
mod errors;
mod handlers;
mod hooks;
mod metrics;
mod pool;
mod registry;
mod rotation;
mod socket;
mod start;
mod supervision;
mod terminal;
mod times;

pub use start::{DaemonArguments, main};
