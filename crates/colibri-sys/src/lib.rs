#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod daemon;
pub mod descriptors;
pub mod process;
pub mod regular_file;
pub mod signals;
