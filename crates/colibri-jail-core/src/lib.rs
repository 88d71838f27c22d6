#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bubblewrap;
mod command;
mod config;
mod engine;
mod error;
mod freebsd;
mod ip4;
mod name;
mod op;
mod path;
mod signal;
mod user;

pub use bubblewrap::Bubblewrap;
pub use command::CommandLine;
pub use config::{Confinement, JailConfig};
pub use engine::{ExitFidelity, JailEngine, jail_wrap};
pub use error::{CommandLineError, JailError};
pub use ip4::Ip4Policy;
pub use name::JailName;
pub use op::JailOp;
pub use path::JailPath;
pub use signal::{Pid, Signal};
pub use user::JailUser;
