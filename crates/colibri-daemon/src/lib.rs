#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod connection;
mod daemon;
mod handlers;
mod hooks;
mod metrics;
mod pool;
mod registry;
mod rotation;
mod socket;
mod start;
mod supervision;
mod times;

pub use start::{Arguments, main};
