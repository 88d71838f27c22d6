//! Parameters of jail_set(2), jail_get(2) and nmount(2): names and values in a vector, and the kernel's message.

use std::ffi::{c_int, c_uint};
use std::io;

use super::check;

/// Maximum length of the kernel's message, in bytes, with the final NUL.
const MAX_MESSAGE: usize = 256;

/// A parameter: its name, and the bytes of its value, each with a final NUL if it is a text.
pub(super) struct Parameter {
    name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Parameter {
    /// A parameter with these bytes; empty for a parameter without a value.
    pub(super) fn new(name: &str, value: Vec<u8>) -> Self {
        let name = text(name);
        Self { name, value }
    }

    pub(super) fn text(name: &str, value: &str) -> Self {
        Self::new(name, text(value))
    }

    /// A number in the host's order.
    pub(super) fn number(name: &str, value: c_int) -> Self {
        Self::new(name, value.to_ne_bytes().to_vec())
    }
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), b"\0"].concat()
}

/// Passes the parameters to a system call, which may change the values, and returns its result. An error contains the
/// message that the kernel wrote into `errmsg`.
pub(super) fn with_parameters(
    parameters: &mut [Parameter],
    call: impl FnOnce(*mut libc::iovec, c_uint) -> c_int,
) -> io::Result<c_int> {
    let mut message = Parameter::new("errmsg", vec![0; MAX_MESSAGE]);
    let mut vector: Vec<libc::iovec> = parameters
        .iter_mut()
        .chain([&mut message])
        .flat_map(|parameter| [&mut parameter.name, &mut parameter.value])
        .map(|bytes| libc::iovec {
            iov_base: match bytes.is_empty() {
                true => std::ptr::null_mut(),
                false => bytes.as_mut_ptr().cast(),
            },
            iov_len: bytes.len(),
        })
        .collect();
    let count = c_uint::try_from(vector.len()).map_err(io::Error::other)?;
    // Every element points to `iov_len` bytes, or is null and empty; the bytes live through the call.
    check(call(vector.as_mut_ptr(), count)).map_err(|error| {
        let reason = message.value.split(|byte| *byte == 0).next();
        match reason.unwrap_or_default() {
            [] => error,
            reason => io::Error::new(
                error.kind(),
                format!("{} ({error})", String::from_utf8_lossy(reason)),
            ),
        }
    })
}
