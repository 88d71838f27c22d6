//! What a caller writes ([`JailConfig`]) and what it means once it has been checked ([`Confinement`]).

use serde::{Deserialize, Serialize};

use crate::mount;
use crate::{
    CommandLine, Destination, Hostname, Ip4Policy, JailError, JailName, JailOp, JailPath, JailUser,
    Limits, Mount, MountConfig,
};

/// A confinement as it is written in a request or a file. An unknown field is an error: a mistyped
/// confinement must never mean less of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct JailConfig {
    /// Enter the persistent jail of this name. Takes precedence over `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Make a jail with this root directory, gone when the command ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `inherit` (default), `disable`, `new`, or addresses separated by `,`; with `path` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip4: Option<String>,
    /// The user inside the jail: a name, or with bubblewrap also `UID` or `UID:GID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directories and files of the host that the jail has too; with `path` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountConfig>,
    /// The directory in the jail in which the agent starts. Default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The host name that the agent sees; with `path` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The only places that it may connect to, each `HOST:PORT`, through a proxy; with `path` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// How much it may use of the host. These hold without a jail too.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Run it also where some of `limits` cannot be enforced.
    #[serde(skip_serializing_if = "is_default")]
    pub best_effort: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a new jail has besides its root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct JailSetup {
    /// Directories and files of the host, in the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Its host name.
    pub hostname: Option<Hostname>,
    /// The only places that can be connected to; where there are any, the jail has no network but a proxy.
    pub allow: Vec<Destination>,
}

/// A confinement that has been checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Confinement {
    /// No jail.
    None,
    /// A jail that exists, and stays.
    Persistent {
        /// The jail.
        name: JailName,
        /// The user inside it.
        user: Option<JailUser>,
    },
    /// A jail that is made for one command and goes with it.
    Ephemeral {
        /// Its name, unique on the host.
        name: JailName,
        /// Its root directory.
        path: JailPath,
        /// Its IPv4.
        ip4: Ip4Policy,
        /// The user inside it.
        user: Option<JailUser>,
        /// What it has besides its root.
        setup: JailSetup,
    },
}

impl JailConfig {
    /// Whether this asks for a jail; without one only its limits mean something.
    #[must_use]
    pub fn is_jail(&self) -> bool {
        self.name.is_some() || self.path.is_some()
    }

    /// Returns this configuration with its gaps filled from `weaker`, for example a profile's. `name` and `path` are one
    /// choice, and so are mounts with the same target: the weaker one is dropped. Lists are concatenated, weaker first.
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
                .any(|own| own.target_or_source() == mount.target_or_source())
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

    /// Checks every value, once. `ephemeral` is the name that a new jail gets, if this asks for one.
    ///
    /// # Errors
    /// The first value that is wrong, also one that another would overrule, or that applies to nothing.
    pub fn confinement(&self, ephemeral: &JailName) -> Result<Confinement, JailError> {
        let name = self
            .name
            .as_deref()
            .map(str::parse::<JailName>)
            .transpose()?;
        let path = self
            .path
            .as_deref()
            .map(str::parse::<JailPath>)
            .transpose()?;
        let ip4 = self
            .ip4
            .as_deref()
            .map(str::parse::<Ip4Policy>)
            .transpose()?;
        let user = self
            .user
            .as_deref()
            .map(str::parse::<JailUser>)
            .transpose()?;
        let setup = self.setup()?;
        self.workdir()?;
        self.limits.check()?;
        match (name, path, ip4, user) {
            (Some(name), _, Some(_), _) => Err(JailError::Ip4WithName(name)),
            (Some(name), _, None, user) => match self.first_of_setup() {
                Some(value) => Err(JailError::SetupWithName { value, name }),
                None => Ok(Confinement::Persistent { name, user }),
            },
            (None, Some(path), ip4, user) => {
                let ip4 = match (ip4, setup.allow.is_empty()) {
                    (ip4, true) => ip4.unwrap_or_default(),
                    // Whoever does not know of the proxy must not let everything through.
                    (None | Some(Ip4Policy::Disable), false) => Ip4Policy::Disable,
                    (Some(other), false) => return Err(JailError::AllowWithIp4(other.to_string())),
                };
                Ok(Confinement::Ephemeral {
                    name: ephemeral.clone(),
                    path,
                    ip4,
                    user,
                    setup,
                })
            }
            (None, None, Some(_), _) => Err(JailError::Ip4WithoutJail),
            (None, None, None, Some(_)) => Err(JailError::UserWithoutJail),
            (None, None, None, None) => {
                let workdir = self.workdir.as_ref().map(|_| "workdir");
                match self.first_of_setup().or(workdir) {
                    Some(value) => Err(JailError::SetupWithoutJail(value)),
                    None => Ok(Confinement::None),
                }
            }
        }
    }

    /// Where in the jail the agent starts.
    ///
    /// # Errors
    /// It is no path.
    pub fn workdir(&self) -> Result<Option<JailPath>, JailError> {
        self.workdir.as_deref().map(str::parse).transpose()
    }

    fn setup(&self) -> Result<JailSetup, JailError> {
        let mut allow = self
            .allow
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Destination>, _>>()?;
        allow.sort();
        allow.dedup();
        Ok(JailSetup {
            mounts: mount::check(&self.mounts)?,
            hostname: self.hostname.as_deref().map(str::parse).transpose()?,
            allow,
        })
    }

    fn first_of_setup(&self) -> Option<&'static str> {
        [
            (!self.mounts.is_empty(), "mounts"),
            (self.hostname.is_some(), "hostname"),
            (!self.allow.is_empty(), "allow"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }
}

impl Confinement {
    /// The operation that runs `command` so confined, in `workdir` inside; `None` where there is no jail.
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
            Self::Ephemeral {
                name,
                path,
                ip4,
                user,
                setup,
            } => Some(JailOp::Create {
                name,
                path,
                ip4,
                user,
                workdir,
                setup,
                command,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_and_values_that_apply_to_nothing() {
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
        let web: JailName = "web".parse().unwrap();
        let own: JailName = "colibri-x".parse().unwrap();
        let persistent = Ok(Confinement::Persistent {
            name: web.clone(),
            user: None,
        });
        for (config, expected) in [
            (config("", "", "", ""), Ok(Confinement::None)),
            (config("web", "", "", ""), persistent.clone()),
            (config("web", "/srv", "", ""), persistent),
            (
                config("web", "/srv", "inherit", ""),
                Err(JailError::Ip4WithName(web.clone())),
            ),
            (
                config("web", "srv", "", ""),
                Err(JailError::PathRelative("srv".into())),
            ),
            (config("", "", "new", ""), Err(JailError::Ip4WithoutJail)),
            (config("", "", "", "root"), Err(JailError::UserWithoutJail)),
            (
                config("", "/srv", "", ""),
                Ok(Confinement::Ephemeral {
                    name: own.clone(),
                    path: "/srv".parse().unwrap(),
                    ip4: Ip4Policy::Inherit,
                    user: None,
                    setup: JailSetup::default(),
                }),
            ),
        ] {
            assert_eq!(config.confinement(&own), expected, "{config:?}");
        }
    }

    #[test]
    fn what_a_new_jail_has_is_refused_where_none_is_made() {
        let own: JailName = "colibri-x".parse().unwrap();
        let web: JailName = "web".parse().unwrap();
        for (field, value) in [
            ("mounts", r#"[{"source":"/w"}]"#),
            ("hostname", r#""h""#),
            ("allow", r#"["a:1"]"#),
            ("workdir", r#""/w""#),
        ] {
            let with = |place: &str| {
                let text = format!("{{{place}\"{field}\":{value}}}");
                let config: JailConfig = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    serde_json::from_str::<JailConfig>(&serde_json::to_string(&config).unwrap())
                        .unwrap(),
                    config
                );
                config.confinement(&own)
            };
            assert_eq!(with(""), Err(JailError::SetupWithoutJail(field)));
            assert!(with(r#""path":"/","#).is_ok());
            let name = with(r#""name":"web","#);
            if field == "workdir" {
                assert!(name.is_ok());
            } else {
                assert_eq!(
                    name,
                    Err(JailError::SetupWithName {
                        value: field,
                        name: web.clone()
                    })
                );
            }
        }
    }

    #[test]
    fn a_filtered_network_is_no_other_and_closed_to_whoever_does_not_know_the_filter() {
        let own: JailName = "colibri-x".parse().unwrap();
        let ip4 = |text: &str| {
            let config: JailConfig = serde_json::from_str(text).unwrap();
            config
                .confinement(&own)
                .map(|confinement| match confinement {
                    Confinement::Ephemeral { ip4, setup, .. } => (ip4, setup.allow.len()),
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
            assert_eq!(
                ip4(&format!(
                    r#"{{"path":"/","allow":["a:1"],"ip4":"{other}"}}"#
                )),
                Err(JailError::AllowWithIp4(other.into()))
            );
        }
    }

    #[test]
    fn limits_need_no_jail() {
        let own: JailName = "colibri-x".parse().unwrap();
        let config: JailConfig = serde_json::from_str(r#"{"limits":{"open_files":64}}"#).unwrap();
        assert!(!config.is_jail());
        assert_eq!(config.confinement(&own), Ok(Confinement::None));
        let config: JailConfig = serde_json::from_str(r#"{"limits":{"open_files":1}}"#).unwrap();
        assert!(config.confinement(&own).is_err());
    }

    #[test]
    fn every_field_may_be_missing_and_none_may_be_unknown() {
        let parse = serde_json::from_str::<JailConfig>;
        assert_eq!(parse("{}").unwrap(), JailConfig::default());
        let message = parse(r#"{"pth":"/srv"}"#).unwrap_err().to_string();
        assert!(message.contains("unknown field `pth`"), "{message}");
    }
}
