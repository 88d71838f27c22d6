//! The terminating signals that `run` forwards and that make `attach` detach.

use rustix::process;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::CliError;

/// A terminating signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ending {
    /// Its name, without `SIG`.
    pub(crate) name: &'static str,
    number: i32,
}

impl Ending {
    /// Returns the exit code that a shell reports for a program ended by this signal: 128+N.
    pub(crate) fn exit_code(self) -> u8 {
        u8::try_from(128 + self.number).unwrap_or(1)
    }
}

/// Stream of HUP, INT, QUIT and TERM.
pub(crate) struct Signals(Vec<(Ending, Signal)>);

impl Signals {
    /// Installs handlers, which replace the default actions.
    pub(crate) fn watch() -> Result<Self, CliError> {
        let wanted = [
            ("INT", process::Signal::INT),
            ("TERM", process::Signal::TERM),
            ("HUP", process::Signal::HUP),
            ("QUIT", process::Signal::QUIT),
        ];
        let mut signals = Vec::new();
        for (name, number) in wanted {
            let number = number.as_raw();
            let watched =
                signal(SignalKind::from_raw(number)).map_err(CliError::io("watching signals"))?;
            signals.push((Ending { name, number }, watched));
        }
        Ok(Self(signals))
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Ending {
        std::future::poll_fn(|context| {
            for (ending, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*ending);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
