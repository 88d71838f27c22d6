//! Statistics: medians, quartiles, and ratios of pairs that were measured in the same round.

use serde::{Deserialize, Serialize};

/// Samples of one subject in the order of measurement.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

impl Samples {
    /// Returns a quantile by linear interpolation; NaN without samples.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        let position = share.clamp(0.0, 1.0) * last as f64;
        let at = |position: f64| sorted.get(position as usize).copied().unwrap_or(f64::NAN);
        let (low, high) = (at(position.floor()), at(position.ceil()));
        low + (high - low) * position.fract()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Divides each sample by that of `base` in the same round: noise that lasts longer than a round affects both.
    pub(crate) fn over(&self, base: &Self) -> Self {
        let pairs = self.0.iter().zip(&base.0);
        Self(pairs.map(|(numerator, base)| numerator / base).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_lies_between_samples() {
        let samples = Samples(vec![4.0, 1.0, 3.0, 2.0]);
        for (share, expected) in [(0.0, 1.0), (0.25, 1.75), (0.5, 2.5), (1.0, 4.0)] {
            assert_eq!(samples.quantile(share), expected, "{share}");
        }
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn ratio_is_computed_per_round() {
        let numerator = Samples(vec![2.0, 40.0, 6.0]);
        let base = Samples(vec![1.0, 20.0, 2.0]);
        assert_eq!(numerator.over(&base).0, [2.0, 2.0, 3.0]);
    }
}
