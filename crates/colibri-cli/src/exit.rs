//! Exit codes of `run`, `wait` and `attach`, which are those of an agent.

use colibri_client::{Exit, ExitEvent, ExitReason};

use crate::output;

/// Exit code of a program that wrote to a closed pipe, as a shell reports SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;
/// Exit code for a failure of Colibri itself.
pub(crate) const OWN_FAILURE: u8 = 125;

/// Returns an agent's exit code as a shell reports it; 125 if its exit status is unknown.
pub(crate) fn code(exit: Option<Exit>) -> u8 {
    match exit.filter(|exit| exit.status.is_some()) {
        Some(exit) => u8::try_from(exit.shell_code() & 0xff).unwrap_or(1),
        None => OWN_FAILURE,
    }
}

/// Returns the exit code for an agent's end, and prints to stderr the details that the code does not contain.
pub(crate) fn explained_code(exit: &ExitEvent) -> u8 {
    explain(&exit.id, exit.exit, exit.error.as_deref());
    code(exit.exit)
}

/// Prints to stderr why an agent ended, if the exit code does not contain it.
pub(crate) fn explain(id: &str, exit: Option<Exit>, note: Option<&str>) {
    let reason = exit.map_or(ExitReason::Lost, |exit| exit.reason);
    let text = match (note, reason) {
        (Some(note), _) => note.to_owned(),
        (None, ExitReason::Exited | ExitReason::Signalled) => return,
        (None, ExitReason::KilledByUser) => format!("agent {id} was killed by a user"),
        (None, ExitReason::WallTime) => format!("agent {id} reached its wall-time limit"),
        (None, _) => format!("agent {id} has no exit status ({reason}); see colibri status {id}"),
    };
    output::message(&text);
}
