//! Jails: jail_set(2), jail_get(2), jail_attach(2), jail_remove(2) and rctl(4).

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{FromRawFd, OwnedFd};

use colibri_jail_core::{Ip4Policy, JAIL_RESTRICTIONS, JailName};

use super::descriptor::close_on_exec;
use super::parameters::{Parameter, with_parameters};
use super::{c_string, check};

/// jail_set(2) or jail_get(2).
type JailCall = unsafe extern "C" fn(*mut libc::iovec, c_uint, c_int) -> c_int;

/// Calls jail_set(2) or jail_get(2). Returns the jail's id, and leaves the values that the kernel returns in the parameters.
fn call_jail(call: JailCall, parameters: &mut [Parameter], flags: c_int) -> io::Result<i32> {
    with_parameters(parameters, |vector, count| {
        // SAFETY: `count` elements that are valid for the call; the kernel writes to values only.
        unsafe { call(vector, count, flags) }
    })
}

/// Returns the id of a jail, if it exists.
pub(crate) fn jail_id(name: &JailName) -> Option<i32> {
    let mut parameters = [Parameter::text("name", name.as_str())];
    call_jail(libc::jail_get, &mut parameters, 0).ok()
}

/// Flag: return an owning descriptor (jail_set(2), 15.0; libc lacks it).
const JAIL_OWN_DESC: c_int = 0x80;

/// A jail that this process created or found, with an owning descriptor if the kernel has them (jail_set(2), 15.0): the
/// kernel removes the jail when the descriptor is closed, also if this process is killed. The descriptor never leaves
/// this process: its holder may enter the jail without privilege (sys/kern/kern_jail.c, `sys_jail_attach_jd`).
pub(crate) struct Jail {
    pub(crate) jid: i32,
    _owner: Option<OwnedFd>,
}

/// Calls jail_set(2) or jail_get(2) with a request for an owning descriptor, and without it on a kernel that has none.
fn jail_with_owner(
    call: JailCall,
    mut parameters: Vec<Parameter>,
    flags: c_int,
) -> io::Result<Jail> {
    parameters.push(Parameter::number("desc", -1));
    let called = call_jail(call, &mut parameters, flags | JAIL_OWN_DESC);
    let descriptor = parameters.pop().map(|descriptor| descriptor.value);
    match called {
        Ok(jid) => {
            let bytes = descriptor.and_then(|value| value.try_into().ok());
            let descriptor = bytes.map_or(-1, c_int::from_ne_bytes);
            // SAFETY: the kernel has just opened the descriptor; it has no other owner.
            let owner = (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) });
            if let Some(owner) = &owner {
                close_on_exec(owner)?;
            }
            Ok(Jail { jid, _owner: owner })
        }
        // Without a message: a flag that the kernel does not know.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Jail {
            jid: call_jail(call, &mut parameters, flags)?,
            _owner: None,
        }),
        Err(error) => Err(error),
    }
}

/// Creates a jail whose root is the working directory (jail_set(2)). It is persistent until [`end_with_processes`]. Its network is
/// that of the host, with this IPv4 policy and without IPv6, or without a policy a network stack that contains an unconfigured
/// loopback interface (vnet(9)).
pub(crate) fn create_jail(name: &JailName, ip4: Option<&Ip4Policy>) -> io::Result<Jail> {
    let mut parameters = vec![
        Parameter::text("name", name.as_str()),
        // Relative to the working directory, whose descriptor was checked; its path may have changed since.
        Parameter::text("path", "."),
        Parameter::new("persist", Vec::new()),
    ];
    for restriction in JAIL_RESTRICTIONS {
        parameters.push(match restriction.split_once('=') {
            Some((name, value)) => {
                Parameter::number(name, value.parse().map_err(io::Error::other)?)
            }
            None => Parameter::new(restriction, Vec::new()),
        });
    }
    if has_parameter(c"security.jail.param.mac.do.") {
        parameters.push(Parameter::number("mac.do", libc::JAIL_SYS_DISABLE));
    }
    match ip4 {
        // Such a jail cannot have IP address parameters (jail_set(2)).
        None => parameters.push(Parameter::number("vnet", libc::JAIL_SYS_NEW)),
        Some(ip4) => {
            parameters.push(Parameter::number("ip6", libc::JAIL_SYS_DISABLE));
            let (mode, addresses): (c_int, &[Ipv4Addr]) = match ip4 {
                Ip4Policy::Inherit => (libc::JAIL_SYS_INHERIT, &[]),
                Ip4Policy::Disable => (libc::JAIL_SYS_DISABLE, &[]),
                Ip4Policy::New => (libc::JAIL_SYS_NEW, &[]),
                Ip4Policy::Addresses(list) => (libc::JAIL_SYS_NEW, list),
            };
            parameters.push(Parameter::number("ip4", mode));
            if !addresses.is_empty() {
                // struct in_addr, in network byte order.
                let bytes = addresses.iter().flat_map(Ipv4Addr::octets).collect();
                parameters.push(Parameter::new("ip4.addr", bytes));
            }
        }
    }
    jail_with_owner(libc::jail_set, parameters, libc::JAIL_CREATE)
}

/// Reports whether the kernel knows a jail parameter, by its sysctl(3) name.
fn has_parameter(name: &CStr) -> bool {
    let mut size = 0;
    let (name, none) = (name.as_ptr(), std::ptr::null_mut());
    // SAFETY: a C string, no buffer, and the size lives through the call.
    unsafe { libc::sysctlbyname(name, none, &raw mut size, std::ptr::null(), 0) == 0 }
}

/// Returns a jail of another process with an owning descriptor of it.
pub(crate) fn own_jail(name: &JailName) -> io::Result<Jail> {
    let parameters = vec![Parameter::text("name", name.as_str())];
    jail_with_owner(libc::jail_get, parameters, 0)
}

/// Makes the kernel remove a jail with its last process (jail_set(2), `nopersist`).
pub(crate) fn end_with_processes(jid: i32) -> io::Result<()> {
    let mut parameters = [
        Parameter::number("jid", jid),
        Parameter::new("nopersist", Vec::new()),
    ];
    call_jail(libc::jail_set, &mut parameters, libc::JAIL_UPDATE).map(drop)
}

/// Enters a jail (jail_attach(2)); its root becomes the root and the working directory.
pub(crate) fn attach_jail(jid: i32) -> io::Result<()> {
    // SAFETY: a number only.
    check(unsafe { libc::jail_attach(jid) }).map(drop)
}

/// Removes a jail and kills its processes (jail_remove(2)).
pub(crate) fn remove_jail(jid: i32) -> io::Result<()> {
    // SAFETY: a number only.
    check(unsafe { libc::jail_remove(jid) }).map(drop)
}

/// Removes all resource limits of a jail (rctl_remove_rule(2)). No limit, and a kernel without rctl(4), are not errors.
pub(crate) fn remove_limits(jail: &JailName) -> io::Result<()> {
    /// The system call's number (sys/syscall.h).
    const REMOVE_RULE: c_int = 529;
    let rule = c_string(format!("jail:{jail}"))?;
    let bytes = rule.as_bytes_with_nul();
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: the rule lives through the call, which writes nothing without room for output.
    let result = unsafe { libc::syscall(REMOVE_RULE, bytes.as_ptr(), bytes.len(), none, 0_usize) };
    let error = io::Error::last_os_error();
    let is_harmless = matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOSYS));
    match result {
        ..0 if !is_harmless => Err(error),
        _ => Ok(()),
    }
}
