//! The table `[defaults]` of a settings file.

use colibri_jail_core::JailConfig;
use serde::Deserialize;

/// Confinement of agents that the command line starts without an option for a jail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Start agents without a jail.
    pub no_jail: bool,
    /// The jail.
    pub jail: Option<JailConfig>,
}

impl Defaults {
    /// Returns why a value would have no effect.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        match (self.no_jail, &self.jail) {
            (true, Some(_)) => Some("jail has no effect beside no_jail = true; remove one of them"),
            (false, Some(jail)) if !jail.is_jail() => Some(
                "jail has no effect without a root; add name, path or template, for example path = \"/\" for a sandbox on Linux",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_effect_are_found() {
        let jail = |path: Option<&str>| {
            Some(JailConfig {
                path: path.map(str::to_owned),
                view: Some("host".to_owned()),
                ..JailConfig::default()
            })
        };
        for (no_jail, jail, expected) in [
            (false, None, None),
            (true, None, None),
            (false, jail(Some("/")), None),
            (false, jail(None), Some("without a root")),
            (true, jail(Some("/")), Some("beside no_jail")),
        ] {
            let found = Defaults { no_jail, jail }.problem();
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(
                found
                    .unwrap_or_default()
                    .contains(expected.unwrap_or_default())
            );
        }
    }
}
