//! JSON Schema of the protocol.

use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::rpc::{Call, Notification};
use crate::{RpcError, agents, config, wire};

/// All frames: requests, results by method, notifications and errors.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct WireSchema {
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
    list_agents: agents::ListResult,
    get_agent: agents::Agent,
    wait_agent: agents::Agent,
    list_runs: agents::RunsResult,
    get_usage: agents::UsageResult,
    remove_agent: wire::Empty,
    kill_agent: wire::KillResult,
    restart_agent: wire::RestartResult,
    send_input: wire::InputResult,
    close_input: wire::Empty,
    read_journal: wire::ReadResult,
    subscribe: wire::Subscription,
    resize_terminal: wire::Empty,
    unsubscribe: wire::Empty,
    doctor: wire::DoctorResult,
    list_profiles: config::ProfilesResult,
    reload_config: config::ReloadResult,
    shutdown: wire::Empty,
}

/// Returns the JSON Schema of all calls, results, notifications and errors, without the JSON-RPC envelope.
#[must_use]
pub fn wire_schema() -> Value {
    let mut schema = schemars::schema_for!(WireSchema).to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("title".to_owned(), json!("Colibri protocol 1"));
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_schema_is_current() {
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
            "docs/protocol.schema.json is out of date; run: UPDATE_SCHEMA=1 cargo test -p colibri-proto"
        );
    }
}
