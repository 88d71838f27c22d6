//! The commands and the picture of the README.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, read, tested_commands};

#[test]
fn readme_commands_work() {
    let script = tested_commands(&read("README.md"));
    assert!(!script.is_empty(), "no block is marked as tested");
    let daemon = Daemon::prepare();
    std::fs::remove_file(daemon.path(".config/colibri/colibri.toml")).unwrap();
    daemon.run_documented(
        &script,
        &[],
        &[
            "hi\nexit code 7\n",
            "go on\n",
            "--ro-bind-fd 200 /",
            "/usr/sbin/jexec -U agent web pi",
        ],
    );
}

#[test]
fn picture_matches_the_current_table() {
    let readme = read("README.md");
    let before = readme.split("(docs/picture.svg)").next().unwrap();
    assert!(before.len() < readme.len(), "no picture");
    assert!(before.lines().count() < 9, "the picture is at the top");
    let picture = read("docs/picture.svg");
    assert!(picture.len() < 40_000, "{} bytes", picture.len());
    let without_namespace = picture.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !without_namespace.contains("://"),
        "the picture references external resources"
    );
    // The picture contains non-breaking spaces.
    let shown = picture.replace("&#160;", " ");
    let titles = read("crates/colibri-cli/src/top/columns.rs");
    for title in [
        "NAME", "STATE", "SINCE", "TOOL", "CPU", "MEM", "AGE", "OUTPUT", "RUNTIME", "JAIL",
    ] {
        assert!(
            titles.contains(&format!("=> (\"{title}\",")),
            "{title} is not a column"
        );
        assert!(shown.contains(title), "{title}: run make picture");
    }
    for state in ["working", "blocked", "idle", "error", "done"] {
        assert!(shown.contains(state), "{state}: run make picture");
    }
}
