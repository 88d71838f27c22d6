//! The identity of the present boot.
#![cfg_attr(target_os = "freebsd", allow(unsafe_code))]

use std::sync::OnceLock;

/// Returns a text that is the same until the machine, or the container, is started again; `None` if the system has none.
///
/// Linux: the id of the boot (random(4)) and the start of process 1, which a container does not share with its host.
/// FreeBSD: `kern.boot_id` (sysctl(3)).
#[must_use]
pub fn identity() -> Option<String> {
    static IDENTITY: OnceLock<Option<String>> = OnceLock::new();
    IDENTITY.get_or_init(system::identity).clone()
}

#[cfg(target_os = "linux")]
mod system {
    pub(super) fn identity() -> Option<String> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        // Hidden from users where /proc is mounted with hidepid=.
        let first = crate::process::find(1).ok().flatten();
        let start = first.map_or(0, |process| process.start);
        Some(format!("{}.{start}", id.trim()))
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    pub(super) fn identity() -> Option<String> {
        let mut id = [0_u8; 16];
        let mut size = id.len();
        let (name, none) = (c"kern.boot_id", std::ptr::null());
        // SAFETY: a C string, and a buffer of `size` bytes; both live through the call, and nothing is set.
        let result = unsafe {
            libc::sysctlbyname(
                name.as_ptr(),
                id.as_mut_ptr().cast(),
                &raw mut size,
                none,
                0,
            )
        };
        (result == 0 && size == id.len())
            .then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn identity_does_not_change_within_a_boot() {
        let identity = super::identity();
        assert!(
            identity.as_ref().is_some_and(|id| id.len() >= 32),
            "{identity:?}"
        );
        assert_eq!(super::identity(), identity);
    }
}
