//! The network of a filtered jail: a loopback interface, on which only a proxy outside of the jail listens.
//!
//! A socket belongs to the network stack (vnet(9)) in which it was created, whichever process holds it. A short-lived child
//! of this program enters the jail, opens the port of the proxy, and passes the socket to the proxy outside.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use colibri_jail_core::{JailName, PROXY_PORT};

use crate::error::HelperError;
use crate::sys::{self, Fork, ProcessEnd, SysError, cannot};

/// Maximum time for the proxy to take its socket, and to listen.
pub(super) const PROXY_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two connections to a proxy that does not listen yet.
const PROXY_INTERVAL: Duration = Duration::from_millis(5);
/// uid and gid of the process that creates the socket: those of the user without rights in FreeBSD's passwd(5).
const NO_RIGHTS: u32 = 65_534;
/// Maximum length of a message of the child, in bytes.
const MAX_MESSAGE: u64 = 1024;

/// The connection to the proxy of a filtered jail. The proxy ends with it.
#[derive(Debug)]
pub(crate) enum ProxyLink {
    /// The jail does not exist yet.
    Waiting(OwnedFd),
    /// The proxy has its socket.
    Open(#[allow(dead_code)] OwnedFd),
}

/// Configures the loopback interface of a jail, opens the port of the proxy on it, and passes the socket to the proxy. Returns
/// when the proxy listens.
pub(crate) fn open_port(name: &JailName, jid: i32, proxy: &OwnedFd) -> Result<(), HelperError> {
    let failed = |problem: String| HelperError::ProxyPort {
        jail: name.to_string(),
        problem,
    };
    let (messages, message) = sys::pipe().map_err(cannot("create a pipe"))?;
    let pid = match sys::fork().map_err(cannot("fork"))? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let opened = run_child(jid, proxy, message).unwrap_or(false);
            sys::exit(i32::from(!opened))
        }
    };
    // Otherwise the pipe would not end with the child.
    drop(message);
    let mut problem = String::new();
    // Every step of the child has a timeout.
    let read = File::from(messages)
        .take(MAX_MESSAGE)
        .read_to_string(&mut problem);
    match (
        sys::wait_for(pid).map_err(cannot("wait for a child"))?,
        read,
    ) {
        (ProcessEnd::Code(0), _) => Ok(()),
        (_, Ok(length)) if length > 0 => Err(failed(problem)),
        (end, _) => Err(failed(format!(
            "the child that opens it ended with {end:?}"
        ))),
    }
}

/// Runs in the child: opens the port, and writes the message of a failure. Returns whether the port is open.
fn run_child(jid: i32, proxy: &OwnedFd, message: OwnedFd) -> io::Result<bool> {
    // The kernel refuses a process with an open directory (jail_attach(2)); this closes those of the parent.
    let kept = sys::keep_only([Some(proxy.try_clone()?), Some(message)])?;
    let [Some(proxy), Some(message)] = kept else {
        return Ok(false);
    };
    let result = sys::die_with_parent().and_then(|()| open_inside(jid, &proxy));
    if let Err(error) = &result {
        File::from(message).write_all(error.to_string().as_bytes())?;
    }
    Ok(result.is_ok())
}

fn open_inside(jid: i32, proxy: &OwnedFd) -> Result<(), SysError> {
    sys::attach_jail(jid).map_err(cannot("enter the jail"))?;
    sys::configure_loopback().map_err(cannot("configure lo0"))?;
    // The credentials of a socket are those of its creator (socket(9)).
    sys::become_user(NO_RIGHTS, NO_RIGHTS)?;
    let socket =
        sys::bound_socket(PROXY_PORT).map_err(cannot(format!("bind port {PROXY_PORT}")))?;
    sys::send_descriptor(proxy, b'H', socket.as_fd(), PROXY_TIMEOUT)
        .map_err(cannot("pass the socket to the proxy"))
}

/// Enters the jail, and waits until its proxy listens.
pub(crate) fn await_proxy(name: &JailName) -> Result<(), HelperError> {
    let jid = sys::jail_id(name).ok_or_else(|| HelperError::NoJail(name.to_string()))?;
    sys::attach_jail(jid).map_err(cannot(format!("enter jail {name}")))?;
    let deadline = Instant::now() + PROXY_TIMEOUT;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT));
    while let Some(left) = deadline.checked_duration_since(Instant::now())
        && !left.is_zero()
    {
        if TcpStream::connect_timeout(&address, left).is_ok() {
            return Ok(());
        }
        std::thread::sleep(PROXY_INTERVAL);
    }
    Err(HelperError::ProxyTimeout {
        jail: name.to_string(),
        seconds: PROXY_TIMEOUT.as_secs(),
    })
}
