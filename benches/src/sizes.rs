//! Sizes of Colibri's programs and of the alternatives.

use std::path::{Path, PathBuf};

use crate::report::{Row, Table, Unit};
use crate::stats::Samples;

/// Colibri's programs.
const PROGRAMS: &[&str] = &[
    "colibri-shim",
    "colibri-jail-helper",
    "colibri-proxy",
    "colibri-sandbox",
    "colibri",
    "colibri-daemon",
];
/// Programs of the alternatives.
const ALTERNATIVES: &[&str] = &[
    "/usr/bin/bwrap",
    "/usr/bin/crun",
    "/usr/bin/runc",
    "/usr/bin/conmon",
];

pub(crate) fn measure(programs: &Path) -> Table {
    let mut table = Table::plain("Installed programs");
    let paths = PROGRAMS.iter().map(|name| programs.join(name));
    for path in paths.chain(ALTERNATIVES.iter().map(PathBuf::from)) {
        let size = std::fs::metadata(&path).map(|file| file.len() as f64);
        let name = path.file_name().unwrap_or_default();
        table.rows.push(Row {
            subject: name.to_string_lossy().into_owned(),
            unit: Unit::Bytes,
            note: size.as_ref().err().map(ToString::to_string),
            samples: Samples(size.into_iter().collect()),
        });
    }
    table
}
