//! Files and tests that the pages of the documentation name exist.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use colibri_tests::{read, repository};

#[test]
fn reliability_page_names_existing_tests() {
    let text = read("docs/reliability.md");
    let mut named = 0;
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let mut source = String::new();
        // Every second part is in backquotes.
        for word in line.split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                source = read(word);
            } else if word.contains('_') {
                named += 1;
                let function = format!("fn {word}(");
                assert!(source.contains(&function), "no {word} in: {line}");
            }
        }
    }
    assert!(named > 20, "{named} tests are named");
}

/// Returns every page of the repository: at the top, below docs/ and in the crates.
fn pages() -> Vec<PathBuf> {
    let mut directories = ["", "docs", "docs/decisions"]
        .map(|folder| repository().join(folder))
        .to_vec();
    let crates = std::fs::read_dir(repository().join("crates")).unwrap();
    directories.extend(crates.map(|entry| entry.unwrap().path()));
    let entries = directories
        .iter()
        .flat_map(|directory| std::fs::read_dir(directory).unwrap());
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

#[test]
fn pages_name_existing_paths() {
    let folders = [
        "benches/",
        "crates/",
        "docs/",
        "examples/",
        "fuzz/",
        "packaging/",
        "scripts/",
        "tests/",
    ];
    let mut named = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = folders.iter().any(|folder| word.starts_with(folder));
            if is_path && !word.contains([' ', '*', '<', '{']) {
                named += 1;
                let exists = repository().join(word).exists();
                assert!(exists, "{} names {word}", page.display());
            }
        }
    }
    assert!(named > 60, "{named} paths are named");
}
