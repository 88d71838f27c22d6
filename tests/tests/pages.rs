//! The files and tests that documentation pages name exist.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use colibri_tests::{backquoted, read, repository};

#[test]
fn reliability_page_names_existing_tests() {
    let text = read("docs/reliability.md");
    let mut count = 0;
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let mut source = String::new();
        for word in backquoted(line) {
            if word.ends_with(".rs") {
                source = read(word);
            } else if word.contains('_') {
                count += 1;
                let function = format!("fn {word}(");
                assert!(source.contains(&function), "no {word} in: {line}");
            }
        }
    }
    assert!(count > 20, "{count} tests are named");
}

/// Returns all Markdown pages in the root of the repository, in docs/ and docs/decisions/, and in the crates.
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
    let mut count = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for word in backquoted(&text) {
            let is_path = folders.iter().any(|folder| word.starts_with(folder));
            if is_path && !word.contains([' ', '*', '<', '{']) {
                count += 1;
                let exists = repository().join(word).exists();
                assert!(exists, "{} names {word}", page.display());
            }
        }
    }
    assert!(count > 60, "{count} paths are named");
}
