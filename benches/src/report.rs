//! Results: saved as JSON with every sample, and printed as tables.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::stats::Samples;

/// One measurement of one subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) subject: String,
    pub(crate) unit: Unit,
    pub(crate) samples: Samples,
    /// Reason for missing samples, or a remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

/// Unit of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Printed in milliseconds.
    Seconds,
    /// Printed in MiB/s.
    BytesPerSecond,
    /// Printed in kB.
    Bytes,
    Count,
}

impl Unit {
    /// Formats a value with its unit.
    fn format(self, value: f64) -> String {
        let (value, unit) = match self {
            Self::Seconds if value < 0.001 => (value * 1e6, "µs"),
            Self::Seconds => (value * 1e3, "ms"),
            Self::BytesPerSecond => (value / f64::from(1 << 20), "MiB/s"),
            Self::Bytes => (value / 1e3, "kB"),
            Self::Count => (value, ""),
        };
        let digits = match value {
            _ if !value.is_finite() => return "–".to_owned(),
            v if v < 10.0 => 2,
            v if v < 100.0 => 1,
            _ => 0,
        };
        format!("{value:.digits$} {unit}").trim_end().to_owned()
    }
}

/// A table whose ratios are relative to the first row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// Whether rows measure different things, so that the table has no ratios.
    #[serde(default)]
    pub(crate) plain: bool,
    pub(crate) rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            plain: false,
            rows: Vec::new(),
        }
    }

    /// Creates a table without ratios.
    pub(crate) fn plain(title: &str) -> Self {
        Self {
            plain: true,
            ..Self::new(title)
        }
    }

    /// Adds a row and returns its median.
    pub(crate) fn add_row(
        &mut self,
        subject: &str,
        unit: Unit,
        samples: Vec<f64>,
        note: Option<String>,
    ) -> f64 {
        let samples = Samples(samples);
        let median = samples.median();
        self.rows.push(Row {
            subject: subject.to_owned(),
            unit,
            samples,
            note,
        });
        median
    }

    /// Formats the table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        let last_column = match self.plain {
            true => "note",
            false => "ratio to the first (quartiles)",
        };
        let _ = writeln!(
            text,
            "| | median | quartiles | 99 % | samples | {last_column} |\n|---|---|---|---|---|---|"
        );
        let base = self.rows.first().filter(|_| !self.plain);
        for row in &self.rows {
            let quantile = |share| row.unit.format(row.samples.quantile(share));
            if row.samples.0.is_empty() {
                let reason = row.note.as_deref().unwrap_or("nothing measured");
                let _ = writeln!(text, "| {} | | | | | {reason} |", row.subject);
                continue;
            }
            let ratio = match base {
                Some(base) if base.unit == row.unit && base.subject != row.subject => {
                    let ratio = row.samples.over(&base.samples);
                    let quantile = |share| Unit::Count.format(ratio.quantile(share));
                    let note = row.note.iter().map(|note| format!("; {note}"));
                    format!(
                        "{} ({} to {}){}",
                        quantile(0.5),
                        quantile(0.25),
                        quantile(0.75),
                        note.collect::<String>()
                    )
                }
                _ => row.note.clone().unwrap_or_default(),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} to {} | {} | {} | {ratio} |",
                row.subject,
                quantile(0.5),
                quantile(0.25),
                quantile(0.75),
                quantile(0.99),
                row.samples.0.len()
            );
        }
        text
    }
}

/// Prints tables, and saves them in `directory` as Markdown and, with every sample, as JSON.
pub(crate) fn save(directory: &Path, name: &str, tables: &[Table]) -> Result<()> {
    std::fs::create_dir_all(directory).context("creating the directory for results")?;
    let write = |extension: &str, text: String| {
        let path = directory.join(name).with_extension(extension);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("json", serde_json::to_string(tables)?)?;
    let markdown: Vec<String> = tables.iter().map(Table::markdown).collect();
    let markdown = markdown.join("\n");
    println!("{markdown}");
    write("md", markdown)
}
