//! The real proxy between real clients and servers, without a sandbox: a process in place of one passes its sockets.

// The tests read /proc.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod addresses;
mod bridge;
mod commands;
mod credentials;
mod http;
mod servers;
mod streams;
