//! The jail of an agent that is started without an option for one.

use colibri_client::JailConfig;
use colibri_config::{Defaults, PartialSettings};

use crate::error::CliError;

/// The jail of an agent without an option for one.
#[derive(Debug, Default)]
pub(crate) enum DefaultJail {
    /// The settings file names it; `None` for no jail.
    Configured(Option<Box<JailConfig>>),
    /// A sandbox of bubblewrap.
    Sandbox,
    /// There is none: the user must choose.
    #[default]
    Undecided,
}

impl DefaultJail {
    /// Returns the default of a client with these settings.
    pub(crate) fn of(settings: &PartialSettings) -> Self {
        let engine = settings.engine.as_deref();
        match &settings.defaults {
            Some(Defaults { no_jail: true, .. }) => Self::Configured(None),
            Some(Defaults {
                jail: Some(jail), ..
            }) if jail.is_jail() => Self::Configured(Some(Box::new(jail.clone()))),
            _ if cfg!(target_os = "linux") && engine.is_none_or(|name| name == "bubblewrap") => {
                Self::Sandbox
            }
            _ => Self::Undecided,
        }
    }

    /// Returns whether the settings file does not name it.
    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self, Self::Sandbox)
    }

    /// Returns the jail; `None` for no jail.
    pub(crate) fn jail(&self) -> Result<Option<JailConfig>, CliError> {
        match self {
            Self::Configured(jail) => Ok(jail.as_deref().cloned()),
            Self::Sandbox => Ok(Some(JailConfig {
                path: Some("/".to_owned()),
                ..JailConfig::default()
            })),
            Self::Undecided => Err(CliError::NoJail),
        }
    }
}
