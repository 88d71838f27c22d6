//! The size of an agent's terminal: the smallest of its subscribers' terminals, so that each of them shows all of it.
//!
//! A subscriber claims a size until it unsubscribes. Without a claim the size stays as it is.

use std::collections::HashMap;
use std::sync::Arc;

use colibri_proto::{ErrorKind, TerminalSize};
use parking_lot::Mutex;

use crate::agent::RegisteredAgent;
use crate::errors::CallError;

/// The sizes of an agent's subscribers.
#[derive(Default)]
pub(crate) struct TerminalSizes(Mutex<Sizes>);

#[derive(Default)]
struct Sizes {
    claimed: HashMap<u64, TerminalSize>,
    next_claim: u64,
    /// The size that was last sent to the shim.
    sent: Option<TerminalSize>,
    /// A task sends sizes to the shim.
    is_sending: bool,
}

impl Sizes {
    fn smallest(&self) -> Option<TerminalSize> {
        self.claimed
            .values()
            .copied()
            .reduce(TerminalSize::smallest)
    }

    /// Returns the size to send now, if there is one.
    fn unsent(&self) -> Option<TerminalSize> {
        self.smallest().filter(|size| self.sent != Some(*size))
    }
}

impl TerminalSizes {
    /// Returns the size that the terminal has, or is about to have; `None` if no subscriber of this daemon has sent one.
    pub(crate) fn current(&self) -> Option<TerminalSize> {
        let sizes = self.0.lock();
        sizes.smallest().or(sizes.sent)
    }

    /// Records that the shim did not get the last size.
    fn fail(&self) {
        let mut sizes = self.0.lock();
        sizes.sent = None;
        sizes.is_sending = false;
    }

    /// Returns the next size for the shim; `None` ends the task that sends them.
    fn next(&self) -> Option<TerminalSize> {
        let mut sizes = self.0.lock();
        let unsent = sizes.unsent();
        match unsent {
            Some(_) => sizes.sent = unsent,
            None => sizes.is_sending = false,
        }
        unsent
    }
}

/// The size of one subscriber, until this is dropped.
pub(crate) struct TerminalClaim {
    agent: Arc<RegisteredAgent>,
    number: u64,
}

impl TerminalClaim {
    /// Claims a size for an agent's terminal.
    ///
    /// # Errors
    /// The agent has no terminal.
    pub(crate) fn new(agent: &Arc<RegisteredAgent>, size: TerminalSize) -> Result<Self, CallError> {
        let mut sizes = sizes_of(agent)?.0.lock();
        let number = sizes.next_claim;
        sizes.next_claim += 1;
        sizes.claimed.insert(number, size);
        drop(sizes);
        send(agent);
        Ok(Self {
            agent: agent.clone(),
            number,
        })
    }

    /// Changes the claimed size.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(sizes) = &self.agent.terminal {
            sizes.0.lock().claimed.insert(self.number, size);
        }
        send(&self.agent);
    }
}

impl Drop for TerminalClaim {
    fn drop(&mut self) {
        if let Some(sizes) = &self.agent.terminal {
            sizes.0.lock().claimed.remove(&self.number);
        }
        send(&self.agent);
    }
}

/// Returns the sizes of an agent's subscribers.
///
/// # Errors
/// The agent has no terminal.
pub(crate) fn sizes_of(agent: &RegisteredAgent) -> Result<&TerminalSizes, CallError> {
    agent.terminal.as_deref().ok_or_else(|| {
        CallError::new(
            ErrorKind::NoTerminal,
            format!(
                "agent {} has no terminal; spawn it with one (colibri spawn -t)",
                agent.spec.id
            ),
        )
    })
}

/// Sends the smallest size to the shim of a running agent, unless a task already does.
fn send(agent: &Arc<RegisteredAgent>) {
    let (Some(sizes), Some(running)) = (&agent.terminal, agent.running()) else {
        return;
    };
    let mut locked = sizes.0.lock();
    // Without a runtime the daemon is shutting down.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    if locked.unsent().is_none() || std::mem::replace(&mut locked.is_sending, true) {
        return;
    }
    drop(locked);
    let (agent, shim) = (agent.clone(), running.shim.clone());
    runtime.spawn(async move {
        while let Some(size) = agent.terminal.as_ref().and_then(|sizes| sizes.next()) {
            if let Err(error) = shim.resize(size).await {
                tracing::warn!(id = %agent.spec.id, %error, "cannot resize a terminal; the next change of a size tries again");
                if let Some(sizes) = &agent.terminal {
                    sizes.fail();
                }
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_size_is_sent_once() {
        let size = |rows, cols| TerminalSize::new(rows, cols).unwrap();
        let sizes = TerminalSizes::default();
        assert_eq!(sizes.next(), None);
        sizes.0.lock().claimed.insert(0, size(50, 100));
        assert_eq!(sizes.next(), Some(size(50, 100)));
        sizes.0.lock().claimed.insert(1, size(24, 200));
        assert_eq!(sizes.next(), Some(size(24, 100)));
        assert_eq!(sizes.next(), None);
        sizes.0.lock().claimed.remove(&0);
        assert_eq!(sizes.next(), Some(size(24, 200)));
        sizes.0.lock().claimed.clear();
        assert_eq!(sizes.next(), None, "the size stays without a claim");
        assert_eq!(sizes.current(), Some(size(24, 200)));
    }
}
