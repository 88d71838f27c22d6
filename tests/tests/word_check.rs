//! `scripts/words.py`, the language check of CI, in a temporary repository.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::fs;
use std::path::Path;
use std::process::Command;

use colibri_tests::{repository, text};

fn git(directory: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
    let output = Command::new("git")
        .current_dir(directory)
        .args(identity)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Creates a repository with one file and one commit after the base. Returns the exit code and output of the check.
fn check(name: &str, content: &str, subject: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    git(root, &["init", "--quiet"]);
    git(
        root,
        &["commit", "--quiet", "--allow-empty", "--message=base"],
    );
    git(root, &["tag", "base"]);
    fs::write(root.join(name), content).unwrap();
    git(root, &["add", "--all"]);
    git(root, &["commit", "--quiet", "--message", subject]);
    let output = Command::new("python3")
        .arg(repository().join("scripts/words.py"))
        .args(["--base", "base", "--root"])
        .arg(root)
        .output()
        .unwrap();
    (output.status.code(), text(&output.stdout))
}

#[test]
fn plain_text_passes() {
    let clean = "The daemon reports the state.\nThere is no agent; nothing is no longer kept.\n";
    let (code, output) = check("page.md", clean, "docs: describe states");
    assert_eq!((code, output.as_str()), (Some(0), ""));
}

#[test]
fn listed_words_are_reported_with_a_replacement() {
    for (content, line, finding) in [
        (
            "fine\nThe caller is told.\n",
            2,
            "\"told\": name the mechanism",
        ),
        ("Whoever asks.\n", 1, "\"Whoever\": name the component"),
        ("// a session of its\n// own\n", 1, "own\": own, dedicated"),
        ("fn daemon_mends_it() {}\n", 1, "\"mends\": fix"),
        ("This is no file.\n", 1, "\"is no\": is not"),
        ("It does whatever.\n", 1, "\"whatever\": name the thing"),
        ("However it ends.\n", 1, "\"However\": but"),
    ] {
        let (code, output) = check("code.rs", content, "docs: describe states");
        assert_eq!(code, Some(1), "{content}");
        assert!(output.starts_with(&format!("code.rs:{line}: ")), "{output}");
        assert!(output.contains(finding), "{output}");
    }
}

#[test]
fn quoted_words_pass_as_literals() {
    let literal = "let user = \"nobody\";\nThe user `nobody` owns nothing.\n";
    let (code, output) = check("code.rs", literal, "docs: add a literal");
    assert_eq!((code, output.as_str()), (Some(0), ""));
}

#[test]
fn marked_lines_pass() {
    let marked = "| told | reported | <!-- words:allow -->\n";
    let (code, output) = check("style.md", marked, "docs: add a style table");
    assert_eq!((code, output.as_str()), (Some(0), ""));
}

#[test]
fn long_test_names_are_reported() {
    for (length, code) in [(60, Some(0)), (61, Some(1))] {
        let name = "x".repeat(length);
        let test = format!("#[tokio::test(flavor = \"current_thread\")]\nasync fn {name}() {{}}\n");
        let (exit, output) = check("code.rs", &test, "tests: add a test");
        assert_eq!(exit, code, "{output}");
        assert_eq!(output.contains("code.rs:2: "), length > 60, "{output}");
    }
}

#[test]
fn bad_commit_subjects_are_reported() {
    let long = format!("docs: {}", "x".repeat(67));
    for subject in [
        "describe states",
        "Docs: describe states",
        "docs: end.",
        &long,
    ] {
        let (code, output) = check("page.md", "", subject);
        assert_eq!(code, Some(1), "{subject}");
        assert!(output.starts_with("commit "), "{output}");
        assert!(output.contains(subject), "{output}");
    }
}
