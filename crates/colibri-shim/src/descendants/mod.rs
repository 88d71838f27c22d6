//! The descendants of the shim: lists and signals them. One module per platform.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::{
    become_reaper, has_sandboxed_program, list, running, sandboxed, signal_all, signal_group,
    stop_running, stopped,
};
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    become_reaper, has_sandboxed_program, list, running, sandboxed, signal_all, signal_group,
    stop_running, stopped,
};
