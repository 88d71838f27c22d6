#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod agents;
mod codec;
mod config;
mod data;
mod error;
mod events;
mod id;
mod request;
mod rpc;
mod schema;
mod wire;

pub use agents::{Agent, ListParams, ListResult, Run, RunsResult, Usage, UsageParams, UsageResult};
pub use codec::{FrameDecoder, FrameError, MAX_FRAME};
pub use colibri_glasspane::{AgentState, AgentView};
pub use colibri_jail_core::{Cpus, JailConfig, Limits, MountConfig, Size, Umask, WallTime};
pub use colibri_types::{
    AgentRuntime, Env, Exit, ExitReason, ExitStatus, Finding, FindingStatus, KillOutcome,
    MAX_CELLS, NetworkAction, NetworkRecord, NetworkSummary, RestartPolicy, RestartWhen,
    SpawnRequest, TerminalSize, TerminalSizeError,
};
pub use config::{
    AutostartFailure, AutostartedAgent, ChangedNames, ProfileInfo, ProfilesResult, ReloadResult,
};
pub use data::{DataError, Encoding, OutputData, text_boundary};
pub use error::{ErrorData, ErrorKind, RpcError};
pub use events::*;
pub use id::{MAX_ID, RequestId};
pub use request::{Request, RequestRefusal};
pub use rpc::{Call, Notification, RawResult, Response, ServerMessage};
pub use schema::wire_schema;
pub use wire::*;
