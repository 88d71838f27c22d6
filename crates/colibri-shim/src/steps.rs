//! Commands around each run, as limits and mounts of jails on FreeBSD need them.

use std::io;
use std::process::{Command, Stdio};

use colibri_shim::launch::Step;

/// Runs one to its end.
///
/// # Errors
/// It cannot be run, or it failed: what it said.
pub(crate) fn run(step: &Step) -> io::Result<()> {
    let output = Command::new(&step.program)
        .args(&step.args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{} {} failed ({}): {}",
        step.program,
        step.args.join(" "),
        output.status,
        said.trim_end()
    )))
}

/// Runs them all, whatever becomes of the others; returns what went wrong.
pub(crate) fn run_all(steps: &[Step]) -> Option<String> {
    let wrong: Vec<String> = steps
        .iter()
        .filter_map(|step| run(step).err())
        .map(|error| error.to_string())
        .collect();
    (!wrong.is_empty()).then(|| format!("{}; undo it by hand", wrong.join("; ")))
}
