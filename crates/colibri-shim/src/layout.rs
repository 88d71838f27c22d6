//! Names of the files in an agent's directory.

/// The spawn request with redacted values of `env`; written before the shim starts.
pub const SPEC: &str = "spec.json";
/// [`ShimRecord`](crate::record::ShimRecord): the processes of the shim and the agent. The shim writes it at the start of
/// each run.
pub const SHIM: &str = "shim.json";
/// [`ExitRecord`](crate::record::ExitRecord): how the agent ended. The shim writes it atomically when the agent and all
/// its descendants have ended. If the shim ended first, the daemon writes it, with the reason `lost`.
pub const EXIT: &str = "exit.json";
/// One [`RunRecord`](crate::record::RunRecord) per line for each ended run of an agent with restarts.
pub const RUNS: &str = "runs.jsonl";
/// One [`NetworkRecord`](colibri_types::NetworkRecord) per line for each refusal of the agent's proxy, up to 1 MiB.
pub const NETWORK: &str = "network.jsonl";
/// The shim's listening socket, removed when the shim exits.
pub const CONTROL: &str = "control.sock";
/// The shim's messages, and the lock that proves that the shim runs. The spawner takes an exclusive flock(2) on this file
/// and passes the open file as the shim's stderr. The lock is therefore held without a gap until the shim has ended, and
/// no pid needs to be trusted.
pub const LOG: &str = "shim.log";
/// Journal directory of the agent's standard output.
pub const STDOUT: &str = "stdout";
/// Journal directory of the agent's standard error.
pub const STDERR: &str = "stderr";
