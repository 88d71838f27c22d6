//! Events of processes and descriptors: kqueue(2).

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;
use super::descriptor::close_on_exec;

/// An event that a [`Queue`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A child has ended.
    ChildEnded,
    /// The watched descriptor has input, or its other end is closed.
    Readable,
    /// A followed process has started a child.
    Forked { parent: u32, child: u32 },
    /// A watched process has executed a program.
    Executed { pid: u32 },
    /// A watched process has ended, with this status of wait(2).
    Ended { pid: u32, status: c_int },
}

/// A kernel event queue (kqueue(2)).
pub(crate) struct Queue(OwnedFd);

impl Queue {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no arguments; the new descriptor has no other owner.
        let queue = unsafe { OwnedFd::from_raw_fd(check(libc::kqueue())?) };
        close_on_exec(&queue)?;
        Ok(Self(queue))
    }

    /// Reports [`Event::ChildEnded`], also while the signal is blocked.
    pub(crate) fn watch_children(&self) -> io::Result<()> {
        let signal = libc::SIGCHLD as usize;
        self.add(signal, libc::EVFILT_SIGNAL, libc::EV_CLEAR, 0)
    }

    /// Reports [`Event::Readable`] for a descriptor.
    pub(crate) fn watch_input(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fd = fd.as_raw_fd().unsigned_abs() as usize;
        self.add(fd, libc::EVFILT_READ, 0, 0)
    }

    /// Reports the next execve(2) and the end of a process; with `follow`, also its children, and the same of them. A second
    /// call replaces the first.
    ///
    /// # Errors
    /// The process does not exist (`ESRCH`).
    pub(crate) fn watch_process(&self, pid: u32, follow: bool) -> io::Result<()> {
        let follow = if follow { libc::NOTE_TRACK } else { 0 };
        let events = libc::NOTE_EXIT | libc::NOTE_EXEC | follow;
        self.add(pid as usize, libc::EVFILT_PROC, libc::EV_CLEAR, events)
    }

    fn add(&self, ident: usize, filter: i16, flags: u16, events: u32) -> io::Result<()> {
        // SAFETY: all bytes zero is a valid kevent.
        let mut change: libc::kevent = unsafe { std::mem::zeroed() };
        change.ident = ident;
        change.filter = filter;
        change.flags = libc::EV_ADD | flags;
        change.fflags = events;
        let (queue, none) = (self.0.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: one change that lives through the call, and no room for events.
        check(unsafe { libc::kevent(queue, &raw const change, 1, none, 0, std::ptr::null()) })
            .map(drop)
    }

    /// Waits for events, at most `timeout`. No event is a timeout.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        const MAX_EVENTS: usize = 32;
        // SAFETY: all bytes zero is a valid kevent.
        let mut events: [libc::kevent; MAX_EVENTS] = unsafe { std::mem::zeroed() };
        let limit = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let (queue, none) = (self.0.as_raw_fd(), std::ptr::null());
        let (room, size) = (events.as_mut_ptr(), MAX_EVENTS as c_int);
        // SAFETY: no change; room for MAX_EVENTS events, which live through the call, as does the timeout.
        let count = check(unsafe { libc::kevent(queue, none, 0, room, size, limit) });
        let count = match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?.unsigned_abs() as usize,
        };
        let mut found = Vec::new();
        for event in events.iter().take(count) {
            let pid = event.ident as u32;
            let has = |flag| event.fflags & flag != 0;
            match event.filter {
                libc::EVFILT_SIGNAL => found.push(Event::ChildEnded),
                libc::EVFILT_READ => found.push(Event::Readable),
                _ if has(libc::NOTE_CHILD) => {
                    let parent = event.data as u32;
                    found.push(Event::Forked { parent, child: pid });
                }
                _ => {
                    let status = event.data as c_int;
                    found.extend(has(libc::NOTE_EXEC).then_some(Event::Executed { pid }));
                    found.extend(has(libc::NOTE_EXIT).then_some(Event::Ended { pid, status }));
                }
            }
        }
        Ok(found)
    }
}
