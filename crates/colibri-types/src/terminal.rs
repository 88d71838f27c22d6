//! The size of an agent's terminal.

use serde::{Deserialize, Serialize};

/// Maximum number of rows and of columns of a terminal. It bounds the memory of a terminal model.
pub const MAX_CELLS: u16 = 1000;

/// The size of a terminal: 1 to [`MAX_CELLS`] rows and columns. An absent field has its default, as in 24 by 80.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "RawSize")]
pub struct TerminalSize {
    rows: u16,
    cols: u16,
}

/// The size of a terminal.
// As it is read, not yet validated.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "TerminalSize"))]
#[serde(default)]
struct RawSize {
    /// Number of rows.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1000)))]
    rows: u64,
    /// Number of columns.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1000)))]
    cols: u64,
}

impl Default for RawSize {
    fn default() -> Self {
        let TerminalSize { rows, cols } = TerminalSize::default();
        Self {
            rows: rows.into(),
            cols: cols.into(),
        }
    }
}

/// The size of a terminal is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a terminal of {rows} rows and {cols} columns is not possible; give 1 to {MAX_CELLS} of each"
)]
pub struct TerminalSizeError {
    rows: u64,
    cols: u64,
}

impl TerminalSize {
    /// Creates a size.
    ///
    /// # Errors
    /// A number is 0 or more than [`MAX_CELLS`].
    pub fn new(rows: u16, cols: u16) -> Result<Self, TerminalSizeError> {
        RawSize {
            rows: rows.into(),
            cols: cols.into(),
        }
        .try_into()
    }

    /// Returns the size that a terminal reports, with the default for a number that it does not know (0), and at most
    /// [`MAX_CELLS`].
    #[must_use]
    pub fn of_terminal(rows: u16, cols: u16) -> Self {
        let known = |cells: u16, default| match cells {
            0 => default,
            cells => cells.min(MAX_CELLS),
        };
        let default = Self::default();
        Self {
            rows: known(rows, default.rows),
            cols: known(cols, default.cols),
        }
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn rows(self) -> u16 {
        self.rows
    }

    /// Returns the number of columns.
    #[must_use]
    pub fn cols(self) -> u16 {
        self.cols
    }

    /// Returns the largest size that fits into both.
    #[must_use]
    pub fn smallest(self, other: Self) -> Self {
        Self {
            rows: self.rows.min(other.rows),
            cols: self.cols.min(other.cols),
        }
    }
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

impl TryFrom<RawSize> for TerminalSize {
    type Error = TerminalSizeError;

    fn try_from(RawSize { rows, cols }: RawSize) -> Result<Self, TerminalSizeError> {
        let valid = |cells: u64| {
            u16::try_from(cells)
                .ok()
                .filter(|cells| (1..=MAX_CELLS).contains(cells))
                .ok_or(TerminalSizeError { rows, cols })
        };
        Ok(Self {
            rows: valid(rows)?,
            cols: valid(cols)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_are_refused() {
        let parse = |text: &str| serde_json::from_str::<TerminalSize>(text);
        assert_eq!(parse("{}").unwrap(), TerminalSize::default());
        let wide = parse(r#"{"cols":1000}"#).unwrap();
        assert_eq!((wide.rows(), wide.cols()), (24, 1000));
        for bad in [
            r#"{"rows":0}"#,
            r#"{"cols":1001}"#,
            r#"{"rows":65537}"#,
            r#"{"rows":-1}"#,
            r#"{"rows":"24"}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let error = TerminalSize::new(0, 80).unwrap_err().to_string();
        assert_eq!(
            error,
            "a terminal of 0 rows and 80 columns is not possible; give 1 to 1000 of each"
        );
    }

    #[test]
    fn unknown_dimension_of_a_terminal_has_its_default() {
        let size = |rows, cols| {
            let size = TerminalSize::of_terminal(rows, cols);
            (size.rows(), size.cols())
        };
        assert_eq!(size(0, 0), (24, 80));
        assert_eq!(size(50, 0), (50, 80));
        assert_eq!(size(u16::MAX, 132), (1000, 132));
    }

    #[test]
    fn smallest_size_fits_into_both() {
        let (wide, tall) = (
            TerminalSize::new(10, 200).unwrap(),
            TerminalSize::new(60, 70).unwrap(),
        );
        let both = wide.smallest(tall);
        assert_eq!((both.rows(), both.cols()), (10, 70));
    }
}
