#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bubblewrap;
mod command;
mod config;
mod destination;
mod engine;
mod error;
mod freebsd;
mod hostname;
mod ip4;
mod limits;
mod mount;
mod name;
mod op;
mod path;
mod signal;
mod umask;
mod user;

pub use bubblewrap::Bubblewrap;
pub use command::CommandLine;
pub use config::{Confinement, JailConfig, JailSetup};
pub use destination::Destination;
pub use engine::{ExitFidelity, JailEngine, jail_wrap};
pub use error::{CommandLineError, JailError};
pub use hostname::Hostname;
pub use ip4::Ip4Policy;
pub use limits::{Cpus, Limits, Size, WallTime};
pub use mount::{Mount, MountConfig};
pub use name::JailName;
pub use op::JailOp;
pub use path::JailPath;
pub use signal::{Pid, Signal};
pub use umask::Umask;
pub use user::JailUser;
