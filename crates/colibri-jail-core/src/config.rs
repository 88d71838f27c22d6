//! Confinement as written by a caller ([`JailConfig`]) and after validation ([`Confinement`]).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::mount;
use crate::{
    CommandLine, Destination, Hostname, Ip4Policy, JailError, JailName, JailOp, JailPath, JailUser,
    Limits, Mount, MountConfig,
};

/// A confinement as written in a request or a file. An unknown field is an error, because a misspelled field must not
/// weaken the confinement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct JailConfig {
    /// Name of a persistent jail to enter. Takes precedence over `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Root directory of a new jail, which is removed when the command ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `inherit` (default), `disable`, `new`, or addresses separated by `,`; with `path` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip4: Option<String>,
    /// The user inside the jail: a name, or with bubblewrap also `UID` or `UID:GID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directories and files of the host to mount in the jail; with `path` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountConfig>,
    /// Working directory of the agent inside the jail. Default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Host name inside the jail; with `path` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The only destinations the agent may connect to, each `HOST:PORT`, through a proxy; with `path` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Resource limits. They apply without a jail too.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Start the agent even if some of `limits` cannot be enforced.
    #[serde(skip_serializing_if = "is_default")]
    pub best_effort: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn parse<T: FromStr<Err = JailError>>(text: &Option<String>) -> Result<Option<T>, JailError> {
    text.as_deref().map(str::parse).transpose()
}

/// A jail that is created for one command and removed with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EphemeralJail {
    /// Its name, unique on the host.
    pub name: JailName,
    /// Its root directory.
    pub path: JailPath,
    /// Its IPv4 policy.
    pub ip4: Ip4Policy,
    /// The user inside it.
    pub user: Option<JailUser>,
    /// Mounts of host directories and files, parents before children.
    pub mounts: Vec<Mount>,
    /// Host name.
    pub hostname: Option<Hostname>,
    /// The only destinations the jail may connect to; if not empty, the jail has no network except a proxy.
    pub allow: Vec<Destination>,
    /// Directories inside the jail that the agent sees empty, see [`crate::masked_paths`]. They must exist. The caller
    /// adds them after validation; an engine that cannot mask refuses them.
    pub masked: Vec<JailPath>,
}

impl EphemeralJail {
    /// Creates a jail with the default of every setting.
    #[must_use]
    pub fn new(name: JailName, path: JailPath) -> Self {
        Self {
            name,
            path,
            ip4: Ip4Policy::default(),
            user: None,
            mounts: Vec::new(),
            hostname: None,
            allow: Vec::new(),
            masked: Vec::new(),
        }
    }

    /// Returns whether there are mounts, a host name or a network filter, which a privilege backend may refuse.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        !self.mounts.is_empty() || self.hostname.is_some() || !self.allow.is_empty()
    }
}

/// A validated confinement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Confinement {
    /// No jail.
    None,
    /// A jail that exists before and after the command.
    Persistent {
        /// The jail.
        name: JailName,
        /// The user inside it.
        user: Option<JailUser>,
    },
    /// A jail that is created for one command and removed with it.
    Ephemeral(EphemeralJail),
}

impl JailConfig {
    /// Returns whether this requests a jail; without one only the limits apply.
    #[must_use]
    pub fn is_jail(&self) -> bool {
        self.name.is_some() || self.path.is_some()
    }

    /// Fills the gaps of this configuration from `weaker`, for example a profile's. `name` and `path` are alternatives, and
    /// so are mounts with the same target: the weaker one is dropped. Lists are concatenated, weaker first.
    #[must_use]
    pub fn or(self, mut weaker: Self) -> Self {
        if self.name.is_some() {
            weaker.path = None;
        } else if self.path.is_some() {
            weaker.name = None;
        }
        let is_replaced = |mount: &MountConfig| {
            self.mounts
                .iter()
                .any(|stronger| stronger.target_or_source() == mount.target_or_source())
        };
        weaker.mounts.retain(|mount| !is_replaced(mount));
        weaker.mounts.extend(self.mounts);
        weaker.allow.extend(self.allow);
        Self {
            name: self.name.or(weaker.name),
            path: self.path.or(weaker.path),
            ip4: self.ip4.or(weaker.ip4),
            user: self.user.or(weaker.user),
            mounts: weaker.mounts,
            workdir: self.workdir.or(weaker.workdir),
            hostname: self.hostname.or(weaker.hostname),
            allow: weaker.allow,
            limits: self.limits.or(weaker.limits),
            best_effort: self.best_effort || weaker.best_effort,
        }
    }

    /// Validates every value. `ephemeral` is the name of the new jail, if this requests one.
    ///
    /// # Errors
    /// The first value that is invalid, conflicts with another, or applies to nothing.
    pub fn confinement(&self, ephemeral: &JailName) -> Result<Confinement, JailError> {
        let name: Option<JailName> = parse(&self.name)?;
        let path: Option<JailPath> = parse(&self.path)?;
        let ip4: Option<Ip4Policy> = parse(&self.ip4)?;
        let user: Option<JailUser> = parse(&self.user)?;
        let allow = self.allow.iter().map(|text| text.parse());
        let mut allow: Vec<Destination> = allow.collect::<Result<_, _>>()?;
        allow.sort();
        allow.dedup();
        let mounts = mount::validate(&self.mounts)?;
        let hostname = parse(&self.hostname)?;
        self.workdir()?;
        self.limits.check()?;
        match (name, path) {
            (Some(name), _) => match self.first_setup_field() {
                Some(field) => Err(JailError::Conflict(format!(
                    "`{field}` applies to a new jail, and jail {name} exists already; remove `{field}`, or replace `name` by `path` to create a jail"
                ))),
                None => Ok(Confinement::Persistent { name, user }),
            },
            (None, Some(path)) => {
                let ip4 = match (ip4, allow.is_empty()) {
                    (ip4, true) => ip4.unwrap_or_default(),
                    // An engine or backend that does not support the proxy must not open the network.
                    (None | Some(Ip4Policy::Disable), false) => Ip4Policy::Disable,
                    (Some(other), false) => {
                        return Err(JailError::Conflict(format!(
                            "`allow` filters the jail's network and conflicts with `ip4` {other}; remove one of them"
                        )));
                    }
                };
                Ok(Confinement::Ephemeral(EphemeralJail {
                    ip4,
                    user,
                    mounts,
                    hostname,
                    allow,
                    ..EphemeralJail::new(ephemeral.clone(), path)
                }))
            }
            (None, None) => {
                let user = self.user.as_ref().map(|_| "user");
                let workdir = self.workdir.as_ref().map(|_| "workdir");
                match workdir.or(self.first_setup_field()).or(user) {
                    Some(field) => Err(JailError::Conflict(format!(
                        "`{field}` needs a jail; add `path`, or remove `{field}`"
                    ))),
                    None => Ok(Confinement::None),
                }
            }
        }
    }

    /// Returns the agent's working directory inside the jail.
    ///
    /// # Errors
    /// The path is invalid.
    pub fn workdir(&self) -> Result<Option<JailPath>, JailError> {
        parse(&self.workdir)
    }

    /// Returns the first field that applies to a new jail only.
    fn first_setup_field(&self) -> Option<&'static str> {
        [
            (self.ip4.is_some(), "ip4"),
            (!self.mounts.is_empty(), "mounts"),
            (self.hostname.is_some(), "hostname"),
            (!self.allow.is_empty(), "allow"),
        ]
        .into_iter()
        .find_map(|(is_set, name)| is_set.then_some(name))
    }
}

impl Confinement {
    /// Returns the operation that runs `command` confined, in `workdir` inside the jail; `None` without a jail.
    #[must_use]
    pub fn into_op(self, workdir: Option<JailPath>, command: CommandLine) -> Option<JailOp> {
        match self {
            Self::None => None,
            Self::Persistent { name, user } => Some(JailOp::Attach {
                name,
                user,
                workdir,
                command,
            }),
            Self::Ephemeral(jail) => Some(JailOp::Create {
                jail,
                workdir,
                command,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jail_name_takes_precedence_over_path() {
        let config = |name: &str, path: &str, ip4: &str, user: &str| {
            let value = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            JailConfig {
                name: value(name),
                path: value(path),
                ip4: value(ip4),
                user: value(user),
                ..JailConfig::default()
            }
        };
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let persistent = Ok(Confinement::Persistent {
            name: "web".parse().unwrap(),
            user: None,
        });
        for (config, expected) in [
            (config("", "", "", ""), Ok(Confinement::None)),
            (config("web", "", "", ""), persistent.clone()),
            (config("web", "/srv", "", ""), persistent),
            (
                config("web", "/srv", "inherit", ""),
                Err("`ip4` applies to a new jail"),
            ),
            (
                config("web", "srv", "", ""),
                Err("path \"srv\" is relative"),
            ),
            (config("", "", "new", ""), Err("`ip4` needs a jail")),
            (config("", "", "", "root"), Err("`user` needs a jail")),
            (
                config("", "/srv", "", ""),
                Ok(Confinement::Ephemeral(EphemeralJail::new(
                    ephemeral.clone(),
                    "/srv".parse().unwrap(),
                ))),
            ),
        ] {
            match (config.confinement(&ephemeral), expected) {
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().starts_with(expected), "{error}");
                }
                (confinement, expected) => {
                    assert_eq!(confinement.ok(), expected.ok(), "{config:?}");
                }
            }
        }
    }

    #[test]
    fn setup_without_new_jail_is_refused() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        for (field, value) in [
            ("mounts", r#"[{"source":"/w"}]"#),
            ("hostname", r#""h""#),
            ("allow", r#"["a:1"]"#),
            ("workdir", r#""/w""#),
        ] {
            let with = |jail: &str| {
                let text = format!("{{{jail}\"{field}\":{value}}}");
                let config: JailConfig = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    serde_json::from_str::<JailConfig>(&serde_json::to_string(&config).unwrap())
                        .unwrap(),
                    config
                );
                config.confinement(&ephemeral)
            };
            let error = with("").unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{field}` needs a jail")),
                "{error}"
            );
            assert!(with(r#""path":"/","#).is_ok());
            let name = with(r#""name":"web","#);
            if field == "workdir" {
                assert!(name.is_ok());
            } else {
                let error = name.unwrap_err().to_string();
                let expected = format!("`{field}` applies to a new jail, and jail web exists");
                assert!(error.starts_with(&expected), "{error}");
            }
        }
    }

    #[test]
    fn filtered_network_disables_ip4() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let ip4 = |text: &str| {
            let config: JailConfig = serde_json::from_str(text).unwrap();
            config
                .confinement(&ephemeral)
                .map(|confinement| match confinement {
                    Confinement::Ephemeral(jail) => (jail.ip4, jail.allow.len()),
                    other => panic!("{other:?}"),
                })
        };
        assert_eq!(
            ip4(r#"{"path":"/","allow":["a:1","A:1","b:1"]}"#),
            Ok((Ip4Policy::Disable, 2))
        );
        assert_eq!(
            ip4(r#"{"path":"/","allow":["a:1"],"ip4":"disable"}"#),
            Ok((Ip4Policy::Disable, 1))
        );
        for other in ["inherit", "new", "192.0.2.7"] {
            let text = format!(r#"{{"path":"/","allow":["a:1"],"ip4":"{other}"}}"#);
            let error = ip4(&text).unwrap_err().to_string();
            assert!(
                error.contains(&format!("conflicts with `ip4` {other}")),
                "{error}"
            );
        }
    }

    #[test]
    fn limits_apply_without_jail() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let config: JailConfig = serde_json::from_str(r#"{"limits":{"open_files":64}}"#).unwrap();
        assert!(!config.is_jail());
        assert_eq!(config.confinement(&ephemeral), Ok(Confinement::None));
        let config: JailConfig = serde_json::from_str(r#"{"limits":{"open_files":1}}"#).unwrap();
        assert!(config.confinement(&ephemeral).is_err());
    }

    #[test]
    fn unknown_field_is_refused_and_missing_is_default() {
        let parse = serde_json::from_str::<JailConfig>;
        assert_eq!(parse("{}").unwrap(), JailConfig::default());
        let message = parse(r#"{"pth":"/srv"}"#).unwrap_err().to_string();
        assert!(message.contains("unknown field `pth`"), "{message}");
    }
}
