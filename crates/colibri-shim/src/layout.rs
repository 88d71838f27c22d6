//! Names of the files in an agent's directory, so that every program spells them alike.

/// What was asked for; written before the shim starts, with the values of `env` redacted.
pub const SPEC: &str = "spec.json";
/// Who the shim and the agent are; written by the shim when the agent runs.
pub const SHIM: &str = "shim.json";
/// How it ended; written atomically when the agent and all its descendants are gone.
pub const EXIT: &str = "exit.json";
/// One line for each run that has ended, of an agent that may be started again.
pub const RUNS: &str = "runs.jsonl";
/// The shim's listening socket; gone when the shim is.
pub const CONTROL: &str = "control.sock";
/// The shim's own messages, and the lock that tells whether it lives: whoever starts the shim takes an
/// exclusive flock(2) on this file and hands the open file over as the shim's stderr, so that the lock is
/// held without a gap from before the shim exists until it is gone, and no pid needs to be trusted.
pub const LOG: &str = "shim.log";
/// Journal directory of the agent's standard output.
pub const STDOUT: &str = "stdout";
/// Journal directory of the agent's standard error.
pub const STDERR: &str = "stderr";
