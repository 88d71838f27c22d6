#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod atomic_file;
pub mod boot;
pub mod daemon;
pub mod descriptors;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod known_daemons;
#[cfg(target_os = "linux")]
pub mod mounts;
pub mod ownership;
pub mod passwd;
pub mod process;
pub mod regular_file;
pub mod signals;
pub mod socket_passing;
