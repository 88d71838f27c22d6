#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod audit;
mod autostart;
mod calls;
mod configuration;
mod connection;
mod cursor;
mod hook;
mod metrics;
mod parser;
mod pool;
mod registry;
mod retention;
mod rotation;
mod server;
mod socket;
mod start;
mod subscription;
mod supervision;
mod times;
mod usage;

pub use start::{Arguments, main};
