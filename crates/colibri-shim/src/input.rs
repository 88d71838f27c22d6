//! The agent's stdin: what was sent waits here, up to a bound, until the agent reads it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use colibri_shim::control::{INPUT_BACKLOG, Reply};
use rustix::io::Errno;

pub(crate) struct Input {
    none: bool,
    pipe: Option<OwnedFd>,
    queue: VecDeque<u8>,
    closing: bool,
    /// The run has ended and the next will have a pipe.
    between_runs: bool,
}

impl Input {
    /// Without a pipe there is no input, in no run.
    pub(crate) fn new(pipe: Option<OwnedFd>) -> Self {
        Self {
            none: pipe.is_none(),
            pipe,
            queue: VecDeque::new(),
            closing: false,
            between_runs: false,
        }
    }

    /// The run has ended: what it has not read is not the next one's, what comes from now on is.
    pub(crate) fn wait_for_next(&mut self) {
        self.pipe = None;
        self.queue.clear();
        self.closing = false;
        self.between_runs = !self.none;
    }

    /// The next run has begun.
    pub(crate) fn connect(&mut self, pipe: Option<OwnedFd>) {
        self.pipe = pipe;
        self.between_runs = false;
        self.write();
    }

    /// The pipe, if something waits to be written to it.
    pub(crate) fn writable(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref().filter(|_| !self.queue.is_empty())
    }

    /// Queues as much as there is room for.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Reply {
        if (self.pipe.is_none() && !self.between_runs) || self.closing {
            return Reply::InputClosed;
        }
        let room = INPUT_BACKLOG.saturating_sub(self.queue.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.queue.extend(taken);
        self.write();
        Reply::Written(taken.len())
    }

    /// Closes the pipe behind what is queued.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.write();
    }

    /// Writes what the pipe takes. An agent that closed its stdin ends the input.
    pub(crate) fn write(&mut self) {
        while let Some(pipe) = self.writable() {
            match rustix::io::write(pipe, self.queue.as_slices().0) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.queue.clear();
                    self.pipe = None;
                }
            }
        }
        if self.closing {
            self.pipe = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::ioctl_fionbio;

    #[test]
    fn input_is_bounded_kept_in_order_and_closed_behind_the_last_byte() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        ioctl_fionbio(&write_end, true).unwrap();
        ioctl_fionbio(&read_end, true).unwrap();
        let mut input = Input::new(Some(write_end));
        let bytes: Vec<u8> = (0..2 * INPUT_BACKLOG).map(|i| (i % 251) as u8).collect();
        let Reply::Written(taken) = input.push(&bytes) else {
            panic!("refused")
        };
        assert!(taken < bytes.len());
        input.close();
        assert_eq!(input.push(b"late"), Reply::InputClosed);
        let mut received = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match rustix::io::read(&read_end, &mut buffer) {
                Ok(0) => break,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(Errno::AGAIN) => input.write(),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(received == bytes[..taken]);
    }
}
