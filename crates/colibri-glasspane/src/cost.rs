//! Costs in US dollars, as agents report them.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Maximum cost, in US dollars. A sum stops here, so that it is always a JSON number.
const MAX_USD: f64 = 1e9;

/// A cost in US dollars: finite, not negative, and at most [`MAX_USD`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cost(f64);

impl Cost {
    /// Creates a cost. A negative, infinite or NaN value counts as 0, a value above the maximum as the maximum.
    pub(crate) fn new(usd: f64) -> Self {
        match usd.is_finite() {
            true => Self(usd.clamp(0.0, MAX_USD)),
            false => Self::default(),
        }
    }

    /// Returns the cost in a field of an event; 0 if the value is not a number.
    pub(crate) fn from_json(value: &Value) -> Self {
        value.as_f64().map_or_else(Self::default, Self::new)
    }

    /// Returns the cost in US dollars.
    pub(crate) fn usd(self) -> f64 {
        self.0
    }

    /// Returns the sum of two costs.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self::new(self.0 + other.0)
    }

    /// Returns what this total adds to an earlier one; 0 if it is smaller.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self::new(self.0 - earlier.0)
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Self::plus)
    }
}

/// Reads a cost in US dollars. Earlier versions wrote `null` for an infinite sum, which is read as 0.
///
/// # Errors
/// The value is neither a number nor `null`.
#[doc(hidden)]
pub fn deserialize_cost<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let usd = Option::<f64>::deserialize(deserializer)?;
    Ok(Cost::new(usd.unwrap_or_default()).usd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentRuntime, AgentView, Glasspane};

    #[test]
    fn number_of_an_agent_becomes_a_valid_cost() {
        for (number, expected) in [
            (0.25, 0.25),
            (-1.0, 0.0),
            (-0.0, 0.0),
            (f64::NAN, 0.0),
            (f64::INFINITY, 0.0),
            (f64::NEG_INFINITY, 0.0),
            (f64::MAX, MAX_USD),
        ] {
            assert_eq!(Cost::new(number).usd(), expected, "{number}");
        }
        let max = Cost::new(MAX_USD);
        assert_eq!([max, max].into_iter().sum::<Cost>(), max);
        assert_eq!(Cost::new(1.0).since(Cost::new(2.0)), Cost::default());
    }

    #[test]
    fn hostile_costs_of_each_runtime_stay_a_number() {
        let claude = r#"{"type":"result","model_usage_since_last_result":{"a":{"costUSD":1.7e308},"b":{"costUSD":1.7e308}},"usage":{}}"#;
        let pi = r#"{"type":"message_end","message":{"role":"assistant","usage":{"cost":{"total":1.7e308}}}}"#;
        let zot = r#"{"type":"usage","cost_usd":-1.7e308}"#;
        let acp = r#"{"jsonrpc":"2.0","method":"session/update","params":{"update":{"sessionUpdate":"usage_update","cost":{"amount":1.7e308}}}}"#;
        let opencode = r#"{"type":"step_finish","part":{"type":"step-finish","cost":1.7e308}}"#;
        for (runtime, line) in [
            (AgentRuntime::Claude, claude),
            (AgentRuntime::Qwen, claude),
            (AgentRuntime::Pi, pi),
            (AgentRuntime::Zot, zot),
            (AgentRuntime::Acp, acp),
            (AgentRuntime::Opencode, opencode),
        ] {
            let mut pane = Glasspane::new(runtime, 0);
            pane.push_output(format!("{line}\n{line}\n").as_bytes(), 0);
            let cost = pane.view().cost_usd;
            assert!((0.0..=MAX_USD).contains(&cost), "{runtime}: {cost}");
            let json = serde_json::to_string(pane.view()).unwrap();
            let view: AgentView = serde_json::from_str(&json).unwrap();
            assert_eq!(view.cost_usd, cost, "{runtime}");
        }
    }

    #[test]
    fn view_without_a_valid_cost_is_read() {
        let mut view = serde_json::to_value(AgentView::default()).unwrap();
        for (cost, expected) in [
            (Value::Null, 0.0),
            ((-1.0).into(), 0.0),
            (1e300.into(), MAX_USD),
            (1.5.into(), 1.5),
        ] {
            view["cost_usd"] = cost;
            let view: AgentView = serde_json::from_value(view.clone()).unwrap();
            assert_eq!(view.cost_usd, expected);
        }
        view.as_object_mut().unwrap().remove("cost_usd");
        assert!(serde_json::from_value::<AgentView>(view).is_ok());
    }
}
