//! The wire as JSON Schema. Types of crates that know no schemas are mirrored here, and a test holds the
//! mirror to the original.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::rpc::{Call, Notification};
use crate::{RpcError, wire};

/// Mirror of `JailConfig`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "JailConfig", deny_unknown_fields)]
pub(crate) struct JailSchema {
    /// Enter the persistent jail of this name. Takes precedence over `path`.
    name: Option<String>,
    /// Make a jail with this root directory, gone when the command ends.
    path: Option<String>,
    /// `inherit` (default), `disable`, `new`, or addresses separated by `,`; with `path` only.
    ip4: Option<String>,
    /// The user inside the jail.
    user: Option<String>,
}

/// Mirror of `AgentState`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "AgentState")]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateSchema {
    Starting,
    Idle,
    Working,
    Blocked,
    Stalled,
    Done,
    Error,
}

/// Mirror of `AgentRuntime`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "AgentRuntime")]
#[serde(rename_all = "lowercase")]
pub(crate) enum RuntimeSchema {
    Pi,
    Zot,
    Generic,
}

/// The whole wire: requests, results by method, notifications, errors.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct Wire {
    request: Call,
    notification: Notification,
    error: RpcError,
    results: Results,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[allow(dead_code)]
struct Results {
    version: wire::VersionResult,
    spawn_agent: wire::SpawnResult,
    explain_spawn: wire::ExplainResult,
    list_agents: wire::ListResult,
    get_agent: wire::Agent,
    wait_agent: wire::Agent,
    list_runs: wire::RunsResult,
    remove_agent: wire::Empty,
    kill_agent: wire::KillResult,
    send_input: wire::InputResult,
    close_input: wire::Empty,
    read_journal: wire::ReadResult,
    subscribe: wire::Subscription,
    unsubscribe: wire::Empty,
    doctor: wire::DoctorResult,
    shutdown: wire::Empty,
}

/// JSON Schema of all that goes over the socket, inside the JSON-RPC envelope.
#[must_use]
pub fn wire_schema() -> Value {
    let mut schema = schemars::schema_for!(Wire).to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("title".to_owned(), json!("Colibri protocol 1"));
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_glasspane::{AgentRuntime, AgentState};
    use colibri_jail_core::JailConfig;

    #[test]
    fn the_committed_schema_is_the_codes() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/protocol.schema.json"
        );
        let current = format!(
            "{}\n",
            serde_json::to_string_pretty(&wire_schema()).unwrap()
        );
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == current,
            "docs/protocol.schema.json is not current; run: UPDATE_SCHEMA=1 cargo test -p colibri-proto"
        );
    }

    #[test]
    fn mirrors_are_true() {
        let all = JailConfig {
            name: Some("a".into()),
            path: Some("b".into()),
            ip4: Some("c".into()),
            user: Some("d".into()),
        };
        let original = serde_json::to_value(&all).unwrap();
        let mirror: JailSchema = serde_json::from_value(original.clone()).unwrap();
        assert_eq!(serde_json::to_value(mirror).unwrap(), original);
        let schema = wire_schema();
        assert_eq!(
            schema["$defs"]["JailConfig"]["additionalProperties"],
            json!(false)
        );
        let words = |name: &str| schema["$defs"][name].to_string();
        use AgentState::{Blocked, Done, Error, Idle, Stalled, Starting, Working};
        for state in [Starting, Idle, Working, Blocked, Stalled, Done, Error] {
            let word = serde_json::to_value(state).unwrap();
            assert!(words("AgentState").contains(&word.to_string()), "{state}");
        }
        for runtime in [AgentRuntime::Pi, AgentRuntime::Zot, AgentRuntime::Generic] {
            let word = serde_json::to_value(runtime).unwrap();
            assert!(
                words("AgentRuntime").contains(&word.to_string()),
                "{runtime:?}"
            );
        }
    }
}
