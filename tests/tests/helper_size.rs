//! Checks that docs/security.md states the current size of the helper (crates and lines) and names existing tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use colibri_tests::{backquoted, read, repository, rust_files, text};

/// Returns the number of lines of a file without blank lines, comments and tests.
fn lines_of_code(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(str::trim)
        .take_while(|line| *line != "#[cfg(test)]")
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

/// Returns the names of the helper's dependencies with these kinds of edges (`cargo tree -e`).
fn dependencies(edges: &str) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .current_dir(repository())
        .args([
            "tree",
            "--locked",
            "-p",
            "colibri-jail-helper",
            "-e",
            edges,
            "--prefix",
            "none",
            "--target",
            "all",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tree = text(&output.stdout);
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| !name.is_empty() && *name != "colibri-jail-helper")
        .map(str::to_owned)
        .collect()
}

#[test]
fn freebsd_classes_are_those_of_the_attempts() {
    let document = read("docs/security.md");
    let section = document.split("## Attempts on FreeBSD").nth(1).unwrap();
    let table = section.split("\n#").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let listed: BTreeSet<_> = rows
        .filter(|line| !line.starts_with("| class"))
        .flat_map(|row| backquoted(row.trim_end_matches(" |").rsplit(" | ").next().unwrap()))
        .collect();
    let scripts =
        ["attacks.sh", "mount-attacks.sh"].map(|name| read(&format!("tests/freebsd/{name}")));
    let attempts: Vec<_> = scripts
        .iter()
        .flat_map(|script| script.lines())
        .filter_map(|line| line.strip_prefix("attack '")?.split_once(": "))
        .collect();
    let classes: BTreeSet<_> = attempts.iter().map(|(class, _)| *class).collect();
    assert_eq!(listed, classes);
    assert!(attempts.len() >= 60, "{}", attempts.len());
}

#[test]
fn security_page_states_the_current_size() {
    let source = repository().join("crates/colibri-jail-helper/src");
    let (mut all_lines, mut sys_lines) = (0, 0);
    for path in rust_files(&source) {
        let lines = lines_of_code(&path);
        all_lines += lines;
        if path.starts_with(source.join("sys")) {
            sys_lines += lines;
        }
    }
    let linked = dependencies("normal,no-proc-macro");
    let built: BTreeSet<_> = dependencies("normal,build")
        .difference(&linked)
        .cloned()
        .collect();
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut expected = String::new();
    writeln!(expected, "- {all_lines} lines of code for both systems, {sys_lines} of them in `sys`, the only module with unsafe code.").unwrap();
    writeln!(
        expected,
        "- {} linked crates, besides the standard library: {}.",
        linked.len(),
        list(&linked)
    )
    .unwrap();
    writeln!(
        expected,
        "- {} crates that run at compile time only: {}.",
        built.len(),
        list(&built)
    )
    .unwrap();
    let document = read("docs/security.md");
    assert!(
        document.contains(&expected),
        "docs/security.md should contain:\n{expected}"
    );
    for path in rust_files(&source) {
        let text = fs::read_to_string(&path).unwrap();
        let unsafe_code = ["unsafe {", "unsafe fn", "unsafe extern"]
            .iter()
            .any(|word| text.contains(word));
        assert!(
            path.starts_with(source.join("sys")) || !unsafe_code,
            "{}",
            path.display()
        );
    }
}

#[test]
fn tests_named_in_security_page_exist() {
    let document = read("docs/security.md");
    let table = document
        .split("## Known bug classes")
        .nth(1)
        .unwrap()
        .split("## ")
        .next()
        .unwrap();
    let mut tests = String::new();
    for path in [
        rust_files(&repository().join("tests/tests")),
        rust_files(&repository().join("crates/colibri-jail-helper/src")),
    ]
    .concat()
    {
        tests.push_str(&fs::read_to_string(path).unwrap());
    }
    let mut named = 0;
    for row in table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| class"))
    {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for name in backquoted(cell) {
            assert!(tests.contains(&format!("fn {name}(")), "no test {name}");
            named += 1;
        }
    }
    assert!(named >= 20, "{named}");
}
