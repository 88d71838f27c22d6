//! The backend conforms. A backend that passes a command line to a shell does not.

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};
use colibri_priv::{Finding, PrivBackend, PrivError};
use colibri_priv_conformance::{ViolationKind, check};

colibri_priv_conformance::conformance_test!(backend_sudo::Sudo);

/// A backend that passes a command line to a shell.
struct SudoShell;

#[async_trait]
impl PrivBackend for SudoShell {
    fn name(&self) -> &str {
        "sudo-shell"
    }

    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
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
fn shell_line_does_not_conform() {
    let report = check(&SudoShell).unwrap_err();
    println!("{report}");
    assert!(report.contains(ViolationKind::JoinsArguments), "{report}");
    assert!(report.contains(ViolationKind::UsesShell), "{report}");
}
