//! FreeBSD: system calls on processes, jails, events, descriptors, mounts and sockets.

mod descriptor;
mod jail;
mod mount;
mod parameters;
mod process;
mod queue;
mod socket;

pub(crate) use descriptor::{
    change_directory, close_from, keep_one, keep_only, pipe, receive_now, send_now, take_socket,
};
pub(crate) use jail::{
    Jail, attach_jail, create_jail, end_with_processes, jail_id, own_jail, remove_jail,
    remove_limits,
};
pub(crate) use mount::{MountPoint, disks, mount, mounts, unmount, zfs_dataset};
pub(crate) use process::{
    become_reaper, boot_id, collect_child, descendants, die_with_parent, has_descendants,
    has_terminal, kill, kill_descendants, lead_process_group, new_session, prepare_monitor,
    process_group, process_info, reset_scheduling, restrict_process,
};
pub(crate) use queue::{Event, Queue};
pub(crate) use socket::{bound_socket, configure_loopback, send_descriptor};

use super::{SysError, c_string, cannot, check};
