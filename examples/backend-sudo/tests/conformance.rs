//! The backend holds what every backend must, and one that is written as people like to write it at first does not.

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};
use colibri_priv::conformance::{Broken, check};
use colibri_priv::{Finding, PrivBackend, PrivError};

colibri_priv::conformance_test!(backend_sudo::Sudo);

/// Hands sudo a line for a shell instead of words.
struct SudoShell;

#[async_trait]
impl PrivBackend for SudoShell {
    fn name(&self) -> &str {
        "sudo-shell"
    }

    fn elevate(&self, op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError> {
        let (program, args) = engine.command_line(op)?.into_parts();
        let line = format!("{program} {}", args.join(" "));
        Ok(CommandLine::new(
            "/usr/bin/sudo",
            ["-n", "sh", "-c", &line],
        )?)
    }

    async fn preflight(&self) -> Vec<Finding> {
        Vec::new()
    }
}

#[test]
fn a_line_for_a_shell_does_not_conform() {
    let report = check(&SudoShell).unwrap_err();
    println!("{report}");
    let found: Vec<_> = report
        .complaints
        .iter()
        .map(|complaint| complaint.broken)
        .collect();
    assert!(
        found.contains(&Broken::Joins) && found.contains(&Broken::Shell),
        "{report}"
    );
}
