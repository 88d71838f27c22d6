//! The dialects that agents speak.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantArray, VariantNames};

/// The dialect in which an agent reports events and reads commands. Exhaustive on purpose: each runtime needs its own code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[derive(Display, EnumString, IntoStaticStr, VariantArray, VariantNames)]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = UnknownName, parse_err_fn = unknown_runtime)]
pub enum AgentRuntime {
    /// Recognized from the program, its arguments and the first lines of its output.
    #[default]
    Auto,
    /// `pi --mode json` or `--mode rpc`.
    Pi,
    /// `zot --json` or `zot rpc`.
    Zot,
    /// Any agent that speaks the Agent Client Protocol on its standard input and output.
    Acp,
    /// Claude Code: `claude --output-format stream-json`.
    Claude,
    /// Codex CLI: `codex exec --json` or `codex app-server`.
    Codex,
    /// Gemini CLI: `gemini --output-format stream-json`.
    Gemini,
    /// Qwen Code: `qwen --output-format stream-json`.
    Qwen,
    /// `opencode run --format json`.
    Opencode,
    /// Copilot CLI: `copilot --output-format json`.
    Copilot,
    /// Any other program: its state is a guess from its activity.
    Generic,
}

/// A name is not one of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {name:?}; give one of: {}", known.join(", "))]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: &'static [&'static str],
}

impl UnknownName {
    /// Returns the error for a name, of which it shows the first 60 characters. `what` is what the name denotes.
    pub(crate) fn new(what: &'static str, name: &str, known: &'static [&'static str]) -> Self {
        Self {
            what,
            name: name.chars().take(60).collect(),
            known,
        }
    }
}

fn unknown_runtime(name: &str) -> UnknownName {
    UnknownName::new("runtime", name, AgentRuntime::NAMES)
}

impl AgentRuntime {
    /// All runtimes.
    pub const ALL: &'static [Self] = <Self as VariantArray>::VARIANTS;
    /// Names of all runtimes, in the order of [`AgentRuntime::ALL`].
    pub const NAMES: &'static [&'static str] = <Self as VariantNames>::VARIANTS;

    /// Returns the name, as in requests and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_name_equals_its_serialized_form() {
        assert_eq!(AgentRuntime::ALL.len(), AgentRuntime::NAMES.len());
        for (runtime, name) in AgentRuntime::ALL.iter().zip(AgentRuntime::NAMES) {
            assert_eq!(serde_json::to_value(runtime).unwrap(), *name);
            assert_eq!(name.parse(), Ok(*runtime));
            assert_eq!(runtime.to_string(), *name);
        }
        assert_eq!(
            "aider".parse::<AgentRuntime>().unwrap_err().to_string(),
            "unknown runtime \"aider\"; give one of: auto, pi, zot, acp, claude, codex, gemini, qwen, opencode, copilot, generic"
        );
    }
}
