#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

/// Implements access to the text of a newtype of a validated text.
macro_rules! text_access {
    ($type:ident) => {
        impl $type {
            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

mod bubblewrap;
mod command;
mod config;
mod control;
mod credential;
mod destination;
mod engine;
mod error;
mod freebsd;
mod home_file;
mod hostname;
mod ip4;
mod isolation;
mod limits;
mod mount;
mod name;
mod network_rule;
mod op;
mod path;
mod sandbox;
mod seccomp;
mod signal;
mod special_address;
mod text;
mod umask;
mod url_path;
mod user;

pub use bubblewrap::{Bubblewrap, CA_BUNDLE_INSIDE, CA_INSIDE, EMPTY_INSIDE, MINIMAL_VIEW};
pub use command::{CommandLine, PROXY_EVENTS, ProxyOptions};
pub use config::{
    Confinement, EphemeralJail, JAIL_ROOTS, JailConfig, SandboxOptions, root_of_jail,
};
pub use control::{CONTROL_VARIABLE, PROXY_VARIABLE, ROOTS_VARIABLE, SignalScope, USER_VARIABLE};
pub use credential::{
    CREDENTIAL_PREFIX, CredentialRule, HeaderTemplate, PLACEHOLDER_PREFIX, is_credential_key,
};
pub use destination::{Destination, Host, PROXY_PORT};
pub use engine::{
    ArgumentLimit, EngineProbe, EnginePrograms, EngineRegistry, HostSetting, JailEngine,
    KernelSupport, LimitMechanism, jail_wrap,
};
pub use error::{CommandLineError, JailError};
pub use freebsd::{FreebsdJail, JAIL_RESTRICTIONS};
pub use home_file::HomeFile;
pub use hostname::Hostname;
pub use ip4::Ip4Policy;
pub use isolation::{OtherJail, PathError, masked_paths, reject_overlaps};
pub use limits::{Cpus, Limits, Size, WallTime};
pub use mount::{Mount, MountConfig, Protection, host_path};
pub use name::JailName;
pub use network_rule::{HttpScheme, NetworkRule};
pub use op::{CreatedJail, CreatedRoot, JailOp};
pub use path::JailPath;
pub use sandbox::{
    GIT_DIRECTORY, HeldPath, HostUser, Network, PROTECTED_IN_GIT, PROTECTED_PATHS, Placeholder,
    Restriction, View,
};
pub use seccomp::{BpfInstruction, native_calls_only, without_set_id_files};
pub use signal::{Pid, Signal};
pub use special_address::special_address_kind;
pub use text::{is_unprintable, printable_ascii};
pub use umask::Umask;
pub use url_path::{AmbiguousPath, UrlPath};
pub use user::{JailUser, UserName};
