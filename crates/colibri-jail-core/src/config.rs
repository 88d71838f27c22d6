//! What a caller writes ([`JailConfig`]) and what it means once it has been checked ([`Confinement`]).

use serde::{Deserialize, Serialize};

use crate::{CommandLine, Ip4Policy, JailError, JailName, JailOp, JailPath, JailUser};

/// A confinement as it is written in a request or a file. An unknown field is an error: a mistyped
/// confinement must never mean less of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    },
}

impl JailConfig {
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
        match (name, path, ip4, user) {
            (Some(name), _, Some(_), _) => Err(JailError::Ip4WithName(name)),
            (Some(name), _, None, user) => Ok(Confinement::Persistent { name, user }),
            (None, Some(path), ip4, user) => Ok(Confinement::Ephemeral {
                name: ephemeral.clone(),
                path,
                ip4: ip4.unwrap_or_default(),
                user,
            }),
            (None, None, Some(_), _) => Err(JailError::Ip4WithoutJail),
            (None, None, None, Some(_)) => Err(JailError::UserWithoutJail),
            (None, None, None, None) => Ok(Confinement::None),
        }
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
            } => Some(JailOp::Create {
                name,
                path,
                ip4,
                user,
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
    fn precedence_and_values_that_apply_to_nothing() {
        let config = |name: &str, path: &str, ip4: &str, user: &str| {
            let value = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            JailConfig {
                name: value(name),
                path: value(path),
                ip4: value(ip4),
                user: value(user),
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
                }),
            ),
        ] {
            assert_eq!(config.confinement(&own), expected, "{config:?}");
        }
    }

    #[test]
    fn every_field_may_be_missing_and_none_may_be_unknown() {
        let parse = serde_json::from_str::<JailConfig>;
        assert_eq!(parse("{}").unwrap(), JailConfig::default());
        let message = parse(r#"{"pth":"/srv"}"#).unwrap_err().to_string();
        assert!(message.contains("unknown field `pth`"), "{message}");
    }
}
