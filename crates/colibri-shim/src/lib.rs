//! What a supervisor needs to know about `colibri-shim`, the process that owns one agent.
//!
//! The shim is a program; this library holds what it shares with whoever starts it: the files of an
//! agent's directory ([`layout`], [`record`]), what it is started with and answers ([`launch`]), and the
//! requests and events of its control socket ([`control`]). See the crate's README for the life of a shim.

#![forbid(unsafe_code)]

pub mod control;
pub mod launch;
pub mod layout;
pub mod record;
