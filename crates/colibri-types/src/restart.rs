//! When an agent is started again after its end.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use strum::{EnumString, VariantNames};

use crate::UnknownName;

/// Which ends of an agent are followed by a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[derive(EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[strum(parse_err_ty = UnknownName, parse_err_fn = unknown_policy)]
pub enum RestartWhen {
    /// None.
    #[default]
    Never,
    /// Every end but exit code 0.
    OnFailure,
    /// Every end, until the agent is killed. After a restart of the machine it is resumed.
    Always,
    /// None; after a restart of the machine, an agent that ran is resumed.
    OnReboot,
}

impl RestartWhen {
    /// Reports whether an agent that ran is resumed after a restart of the machine.
    #[must_use]
    pub fn resumes_after_reboot(self) -> bool {
        matches!(self, Self::Always | Self::OnReboot)
    }

    /// Names of all values, as in requests and settings.
    pub const NAMES: &'static [&'static str] = Self::VARIANTS;
}

fn unknown_policy(name: &str) -> UnknownName {
    UnknownName::new("restart policy", name, RestartWhen::NAMES)
}

/// A restart policy with exponential backoff. Absent fields have the default; times are in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RestartPolicy {
    /// Which ends are followed by a restart. Default: never.
    // Records of earlier releases call it `when`.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "when")]
    pub policy: Option<RestartWhen>,
    /// Backoff before the first restart; doubles with each further restart. Jitter shortens each delay to 50 to 100 %. Default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Maximum backoff before a restart. A run that lasts this long resets the backoff. Default 300000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_delay_ms: Option<u64>,
    /// Maximum number of restarts within the window; the next end after that is final. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Window of `limit`. Default 3600000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
}

impl RestartPolicy {
    /// Returns which ends are followed by a restart.
    #[must_use]
    pub fn when(&self) -> RestartWhen {
        self.policy.unwrap_or_default()
    }

    /// Returns the backoff before the first restart.
    #[must_use]
    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.unwrap_or(1_000))
    }

    /// Returns the maximum backoff before a restart.
    #[must_use]
    pub fn max_delay(&self) -> Duration {
        Duration::from_millis(self.max_delay_ms.unwrap_or(300_000))
    }

    /// Returns the maximum number of restarts within the window.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.unwrap_or(10)
    }

    /// Returns the window of the limit.
    #[must_use]
    pub fn window(&self) -> Duration {
        Duration::from_millis(self.window_ms.unwrap_or(3_600_000))
    }

    /// Returns this policy with its gaps filled from `weaker`.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            policy: self.policy.or(weaker.policy),
            delay_ms: self.delay_ms.or(weaker.delay_ms),
            max_delay_ms: self.max_delay_ms.or(weaker.max_delay_ms),
            limit: self.limit.or(weaker.limit),
            window_ms: self.window_ms.or(weaker.window_ms),
        }
    }

    /// Returns this policy with its gaps filled from the defaults.
    #[must_use]
    pub fn with_defaults(self) -> Self {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).ok();
        let default = Self::default();
        self.or(Self {
            policy: Some(default.when()),
            delay_ms: milliseconds(default.delay()),
            max_delay_ms: milliseconds(default.max_delay()),
            limit: Some(default.limit()),
            window_ms: milliseconds(default.window()),
        })
    }
}

/// Serializes the form of records and launches, which earlier releases read: all values, and `when` for `policy`.
pub(crate) fn serialize_record<S: Serializer>(
    policy: &Option<RestartPolicy>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let record = policy.clone().map(|policy| {
        let policy = policy.with_defaults();
        json!({
            "when": policy.policy, "delay_ms": policy.delay_ms, "max_delay_ms": policy.max_delay_ms,
            "limit": policy.limit, "window_ms": policy.window_ms,
        })
    });
    record.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_name_equals_its_serialized_form() {
        for name in RestartWhen::NAMES {
            let when: RestartWhen = name.parse().unwrap();
            assert_eq!(serde_json::to_value(when).unwrap(), *name);
        }
        assert!("sometimes".parse::<RestartWhen>().is_err());
    }

    #[test]
    fn gaps_are_filled_from_the_weaker_policy_then_defaults() {
        let own: RestartPolicy = serde_json::from_str(r#"{"policy":"always"}"#).unwrap();
        let weaker: RestartPolicy =
            serde_json::from_str(r#"{"when":"on-failure","limit":3}"#).unwrap();
        let merged = own.or(weaker).with_defaults();
        assert_eq!(
            serde_json::to_string(&merged).unwrap(),
            r#"{"policy":"always","delay_ms":1000,"max_delay_ms":300000,"limit":3,"window_ms":3600000}"#
        );
    }
}
