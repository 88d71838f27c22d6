#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod control;
pub mod launch;
pub mod layout;
pub mod record;
pub mod restart;
