//! State that all connections share, and what changes it.

pub(crate) mod audit;
mod autostart;
pub(crate) mod config;
