//! The agent's stdin: a bounded queue of bytes that the agent has not read yet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use colibri_shim::control::{INPUT_BACKLOG, ShimReply};
use rustix::io::Errno;

pub(crate) struct Input {
    pipe: InputPipe,
    queue: VecDeque<u8>,
    /// The pipe is closed after the last queued byte.
    closing: bool,
}

enum InputPipe {
    /// No run of the agent has input.
    Disabled,
    Open(OwnedFd),
    /// The run closed its stdin, or a caller closed it.
    Closed,
    /// The run has ended; the next one will have a pipe.
    BetweenRuns,
}

impl Input {
    /// Creates the input of the first run. Without a pipe no later run has input either.
    pub(crate) fn new(pipe: Option<OwnedFd>) -> Self {
        Self {
            pipe: pipe.map_or(InputPipe::Disabled, InputPipe::Open),
            queue: VecDeque::new(),
            closing: false,
        }
    }

    /// Drops input that the ended run has not read, and accepts input for the next run.
    pub(crate) fn end_run(&mut self) {
        if !matches!(self.pipe, InputPipe::Disabled) {
            self.pipe = InputPipe::BetweenRuns;
        }
        self.queue.clear();
        self.closing = false;
    }

    /// Sets the pipe of a new run.
    pub(crate) fn connect(&mut self, pipe: Option<OwnedFd>) {
        self.pipe = pipe.map_or(InputPipe::Disabled, InputPipe::Open);
        self.write();
    }

    /// Returns the pipe if bytes are queued for it.
    pub(crate) fn writable(&self) -> Option<&OwnedFd> {
        match &self.pipe {
            InputPipe::Open(pipe) if !self.queue.is_empty() => Some(pipe),
            _ => None,
        }
    }

    /// Queues as many bytes as [`INPUT_BACKLOG`] allows.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> ShimReply {
        let accepts = matches!(self.pipe, InputPipe::Open(_) | InputPipe::BetweenRuns);
        if !accepts || self.closing {
            return ShimReply::InputClosed;
        }
        let room = INPUT_BACKLOG.saturating_sub(self.queue.len());
        let accepted = bytes.get(..room).unwrap_or(bytes);
        self.queue.extend(accepted);
        self.write();
        ShimReply::Written(accepted.len())
    }

    /// Closes the pipe after the last queued byte.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.write();
    }

    /// Writes queued bytes until a write would block. An agent that closed its stdin ends the input.
    pub(crate) fn write(&mut self) {
        while let Some(pipe) = self.writable() {
            match rustix::io::write(pipe, self.queue.as_slices().0) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.queue.clear();
                    self.pipe = InputPipe::Closed;
                }
            }
        }
        if self.closing && matches!(self.pipe, InputPipe::Open(_)) {
            self.pipe = InputPipe::Closed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::ioctl_fionbio;

    #[test]
    fn input_is_bounded_ordered_and_closed_after_the_last_byte() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        ioctl_fionbio(&write_end, true).unwrap();
        ioctl_fionbio(&read_end, true).unwrap();
        let mut input = Input::new(Some(write_end));
        let bytes: Vec<u8> = (0..2 * INPUT_BACKLOG).map(|i| (i % 251) as u8).collect();
        let ShimReply::Written(accepted) = input.push(&bytes) else {
            panic!("refused")
        };
        assert!(accepted < bytes.len());
        input.close();
        assert_eq!(input.push(b"late"), ShimReply::InputClosed);
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
        assert!(received == bytes[..accepted]);
    }
}
