#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cases;
mod environment;
mod judge;

pub use environment::check_in_two_environments;

use std::fmt;
use std::time::Duration;

use colibri_jail_core::JailEngine;
use colibri_priv::{BackendRegistry, Finding, FindingStatus, PrivBackend};

/// Timeout of a preflight.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(30);

/// The kind of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ViolationKind {
    /// [`PrivBackend::name`] cannot be used in a setting.
    InvalidName,
    /// The backend refuses an operation that the engine supports.
    RefusesOperation,
    /// The backend replaces the engine's error.
    HidesEngineError,
    /// The program has no absolute path.
    RelativeProgram,
    /// Two calls with the same operation return different commands.
    NotDeterministic,
    /// An argument of the agent is missing.
    DropsArgument,
    /// The agent's arguments are in another order.
    ReordersArguments,
    /// Several arguments of the agent became one.
    JoinsArguments,
    /// One argument of the agent became several.
    SplitsArgument,
    /// An argument of the agent is quoted.
    QuotesArgument,
    /// The command has arguments after the agent's.
    AppendsArgument,
    /// The agent's arguments are changed in another way.
    ChangesArgument,
    /// The arguments before the agent's depend on the agent.
    DependsOnAgent,
    /// A shell with a script precedes the agent.
    UsesShell,
    /// A value of the operation is missing.
    LosesValue,
    /// The command contains a value of the environment.
    LeaksEnvironment,
    /// The command depends on the environment.
    ReadsEnvironment,
    /// The second environment could not be tested.
    SecondRunFailed,
    /// A failed finding has no fix.
    FindingWithoutFix,
    /// The preflight does not end within its timeout.
    PreflightTimeout,
}

impl ViolationKind {
    /// Returns the effect of the violation, and how to fix it.
    fn effect(self) -> &'static str {
        match self {
            Self::InvalidName => {
                "the name cannot be selected in COLIBRI_JAIL_PRIV_MODE; use lower-case letters, digits and '-', at most 32"
            }
            Self::RefusesOperation => "such agents cannot be started, or cannot be killed",
            Self::HidesEngineError => {
                "the engine's error has a hint, which is lost; return the error with `?`"
            }
            Self::RelativeProgram => {
                "the program would be searched in PATH or in the agent's directory, where others may write; give its absolute path"
            }
            Self::NotDeterministic => {
                "`colibri explain` does not show the command that runs; make elevate depend on its arguments alone"
            }
            Self::DropsArgument => "the agent would run without an argument",
            Self::ReordersArguments => "the agent would get its arguments in another order",
            Self::JoinsArguments => {
                "the agent would get one argument instead of several; pass arguments, not a line"
            }
            Self::SplitsArgument => {
                "the agent would get several arguments instead of one; pass arguments, not a line"
            }
            Self::QuotesArgument => {
                "the agent would get the quotes, because no shell removes them; pass arguments unchanged"
            }
            Self::AppendsArgument => "the agent would get an argument that the caller did not give",
            Self::ChangesArgument => "the agent would get other arguments",
            Self::DependsOnAgent => {
                "the privileged program would parse arguments of the agent, perhaps as options"
            }
            Self::UsesShell => {
                "a privileged shell interprets its arguments as a script; execute the command itself"
            }
            Self::LosesValue => {
                "the agent would be confined less, or another process or jail be affected"
            }
            Self::LeaksEnvironment => {
                "every user can read argv, logs contain it, and the environment holds secrets; take no value from it"
            }
            Self::ReadsEnvironment => {
                "`colibri explain` does not show the command that the daemon runs; make elevate depend on its arguments alone"
            }
            Self::SecondRunFailed => {
                "the environment was not tested; call this from a test with the given name in the default harness, as conformance_test! does"
            }
            Self::FindingWithoutFix => "the user cannot fix the problem; give a hint",
            Self::PreflightTimeout => {
                "`colibri doctor` would report a timeout; give every wait a timeout"
            }
        }
    }
}

/// A violation, with the first case that shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  input:  {input}\n  output: {output}\n  effect: {}", .kind.effect())]
#[non_exhaustive]
pub struct Violation {
    /// The kind of the violation.
    pub kind: ViolationKind,
    /// The action of the backend that violates the rule.
    pub message: String,
    /// The operation of the first case.
    pub input: String,
    /// The command or error that the backend returned.
    pub output: String,
}

/// The violations of a backend, one of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// The violations in the order of the cases.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Returns whether a violation has this kind.
    #[must_use]
    pub fn contains(&self, kind: ViolationKind) -> bool {
        self.violations
            .iter()
            .any(|violation| violation.kind == kind)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.violations.len();
        let rules = if count == 1 { "rule" } else { "rules" };
        write!(
            f,
            "backend {:?} violates {count} {rules} of PrivBackend",
            self.backend
        )?;
        for violation in &self.violations {
            write!(f, "\n- {violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Tests a backend with both engines: every operation, with arguments that an option parser or a shell could misread. The
/// test is deterministic. It runs the preflight in a new tokio runtime, so the caller must not be in a runtime; the
/// results of the findings depend on the host and are not judged. [`check_in_two_environments`] also tests another
/// environment.
///
/// # Errors
/// The violations, each with the first case that shows it.
pub fn check(backend: &dyn PrivBackend) -> Result<(), Report> {
    TestRun::of(backend).violations.report(backend)
}

/// A run of all cases.
struct TestRun {
    /// One line for each case: its input and output.
    transcript: Vec<String>,
    violations: Violations,
}

impl TestRun {
    fn of(backend: &dyn PrivBackend) -> Self {
        let mut run = Self {
            transcript: Vec::new(),
            violations: Violations::default(),
        };
        if let Err(error) = BackendRegistry::check_name(backend.name()) {
            let output = format!("{:?}", backend.name());
            run.violations.add(
                ViolationKind::InvalidName,
                error.to_string(),
                "name()",
                &output,
            );
        }
        for engine in cases::engines() {
            run.elevate(backend, &*engine);
        }
        run.preflight(backend);
        run
    }

    fn elevate(&mut self, backend: &dyn PrivBackend, engine: &dyn JailEngine) {
        for template in cases::templates() {
            let mut prefix = None;
            for agent in template.agents() {
                let op = template.op(&agent);
                let input = cases::describe(&op, engine);
                let result = backend.elevate(&op, engine);
                let output = match &result {
                    Ok(command) => format!("{:?}", judge::words(command)),
                    Err(error) => format!("error: {error}"),
                };
                if backend.elevate(&op, engine) != result {
                    let message = "returns another command for the same operation";
                    let kind = ViolationKind::NotDeterministic;
                    self.violations.add(kind, message, &input, &output);
                }
                self.transcript.push(format!("{input} => {output}"));
                let plain = engine.command_line(&op);
                let command = match judge::command_to_judge(&op, &plain, &result) {
                    Ok(Some(command)) => command,
                    Ok(None) => continue,
                    Err((kind, message)) => {
                        self.violations.add(kind, message, &input, &output);
                        continue;
                    }
                };
                let judgement = judge::judge(command, &op, plain.as_ref().ok(), prefix.take());
                for (kind, message) in judgement.violations {
                    self.violations.add(kind, message, &input, &output);
                }
                prefix = judgement.prefix;
            }
        }
    }

    fn preflight(&mut self, backend: &dyn PrivBackend) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let message = format!("no tokio runtime can be created: {error}");
                let kind = ViolationKind::PreflightTimeout;
                return self.violations.add(kind, message, "preflight()", "nothing");
            }
        };
        let preflight =
            async { tokio::time::timeout(PREFLIGHT_TIMEOUT, backend.preflight()).await };
        let findings = runtime.block_on(preflight);
        runtime.shutdown_background();
        match findings {
            Err(_) => {
                let message = format!("the preflight does not end within {PREFLIGHT_TIMEOUT:?}");
                let kind = ViolationKind::PreflightTimeout;
                self.violations.add(kind, message, "preflight()", "nothing");
            }
            Ok(findings) => {
                if let Some(finding) = findings.iter().find(|finding| has_no_fix(finding)) {
                    let output = format!("{finding:?}");
                    let message = "returns a failed finding without a fix";
                    let kind = ViolationKind::FindingWithoutFix;
                    self.violations.add(kind, message, "preflight()", &output);
                }
            }
        }
    }
}

/// The first violation of each kind.
#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, kind: ViolationKind, message: impl Into<String>, input: &str, output: &str) {
        if self.0.iter().all(|known| known.kind != kind) {
            self.0.push(Violation {
                kind,
                message: message.into(),
                input: input.to_owned(),
                output: output.to_owned(),
            });
        }
    }

    fn report(self, backend: &dyn PrivBackend) -> Result<(), Report> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Report {
            backend: backend.name().to_owned(),
            violations: self.0,
        })
    }
}

fn has_no_fix(finding: &Finding) -> bool {
    finding.status == FindingStatus::Fail
        && finding.fix.as_ref().is_none_or(|fix| fix.trim().is_empty())
}

/// Creates a test named `conforms` that checks a backend in two environments.
///
/// ```
/// colibri_priv_conformance::conformance_test!(colibri_priv::Mdo);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance_test {
    ($backend:expr) => {
        /// The backend fulfils the rules of `PrivBackend` in every environment.
        #[test]
        fn conforms() -> ::core::result::Result<(), $crate::Report> {
            let test = concat!(module_path!(), "::conforms");
            $crate::check_in_two_environments(&$backend, test)
        }
    };
}
