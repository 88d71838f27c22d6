//! Signals to this process, as an async stream.

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::error::CliError;

/// The signals that `run` forwards, and that make `attach` detach.
pub(crate) const TERMINATING: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];

/// Returns the name of one of the terminating signals, without `SIG`.
pub(crate) fn name(signal: Signal) -> &'static str {
    match signal {
        Signal::INT => "INT",
        Signal::HUP => "HUP",
        Signal::QUIT => "QUIT",
        _ => "TERM",
    }
}

/// Returns the exit code that a shell reports for a program ended by this signal: 128+N.
pub(crate) fn exit_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(1)
}

/// A stream of signals.
pub(crate) struct SignalStream(Vec<(Signal, unix::Signal)>);

impl SignalStream {
    /// Installs handlers, which replace the default actions.
    pub(crate) fn install(signals: &[Signal]) -> Result<Self, CliError> {
        let mut installed = Vec::new();
        for signal in signals {
            let kind = SignalKind::from_raw(signal.as_raw());
            let stream =
                unix::signal(kind).map_err(CliError::io("cannot install a signal handler"))?;
            installed.push((*signal, stream));
        }
        Ok(Self(installed))
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (signal, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
