//! The wire as JSON Schema. Types of crates that know no schemas are mirrored here, and a test holds the
//! mirror to the original.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::rpc::{Call, Notification};
use crate::{RpcError, config, wire};

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
    /// Directories and files of the host that the jail has too; with `path` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<MountSchema>,
    /// The directory in the jail in which the agent starts. Default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    workdir: Option<String>,
    /// The host name that the agent sees; with `path` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    /// The only places that it may connect to, each `HOST:PORT`, through a proxy; with `path` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
    /// How much it may use of the host. These hold without a jail too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<LimitsSchema>,
    /// Run it also where some of `limits` cannot be enforced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    best_effort: bool,
}

/// Mirror of `MountConfig`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "MountConfig", deny_unknown_fields)]
pub(crate) struct MountSchema {
    /// The directory or file of the host.
    source: String,
    /// Where it is in the jail; absent: at the same path.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The agent cannot change it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
}

/// Mirror of `Limits`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "Limits", deny_unknown_fields)]
pub(crate) struct LimitsSchema {
    /// Memory of all its processes together: bytes, or a text like `512M` or `2G` (powers of 1024).
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Written>,
    /// How many processes and threads it may have at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<u32>,
    /// How many processors it may keep busy, like `1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
    /// How many files each of its processes may have open.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_files: Option<u32>,
    /// It is ended so long after its first start, whatever it does: seconds, or a text like `90s`, `30m` or `8h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    wall_time: Option<Written>,
}

/// A number, or a text with a unit.
#[derive(JsonSchema, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Written {
    Number(u64),
    Text(String),
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

/// Why an agent ended. Mirror of `colibri_glasspane::ExitReason`.
#[derive(JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "ExitReason")]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReasonSchema {
    Exited,
    Signalled,
    KilledByUser,
    WallTime,
    NotStarted,
    Lost,
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
    get_usage: wire::UsageResult,
    remove_agent: wire::Empty,
    kill_agent: wire::KillResult,
    restart_agent: wire::RestartResult,
    send_input: wire::InputResult,
    close_input: wire::Empty,
    read_journal: wire::ReadResult,
    subscribe: wire::Subscription,
    unsubscribe: wire::Empty,
    doctor: wire::DoctorResult,
    list_profiles: config::ProfilesResult,
    reload_config: config::ReloadResult,
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
    use colibri_jail_core::{Cpus, JailConfig, Limits, MountConfig, Size, WallTime};

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
            mounts: vec![MountConfig {
                source: "e".into(),
                target: Some("f".into()),
                read_only: true,
            }],
            workdir: Some("g".into()),
            hostname: Some("h".into()),
            allow: vec!["i".into()],
            limits: Limits {
                memory: Some(Size(1)),
                processes: Some(2),
                cpu: Some(Cpus(3500)),
                open_files: Some(4),
                wall_time: Some(WallTime(5)),
            },
            best_effort: true,
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
