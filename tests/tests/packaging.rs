//! Checks of the files for FreeBSD and Debian that need neither system.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use colibri_tests::{read, repository, text};

const ACCEPTANCE: &str = "tests/freebsd/acceptance.sh";

/// Runs the acceptance script with these arguments.
fn run_acceptance_script(arguments: &[&str]) -> Output {
    Command::new("sh")
        .arg(repository().join(ACCEPTANCE))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "the message names the system")]
fn acceptance_script_refuses_hosts_other_than_freebsd_15() {
    for (arguments, expected) in [
        (
            &["target/debug"][..],
            "this is Linux; it runs on FreeBSD 15",
        ),
        (&[], "usage: "),
        (&["a", "b"], "usage: "),
    ] {
        let output = run_acceptance_script(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(
            message.starts_with("acceptance.sh: ") && message.contains(expected),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(output.stdout.is_empty(), "no TAP: {}", text(&output.stdout));
    }
}

#[test]
fn acceptance_script_plan_matches_its_checks() {
    let script = read(ACCEPTANCE);
    let plan: usize = script
        .lines()
        .find_map(|line| line.strip_prefix("PLAN="))
        .unwrap()
        .parse()
        .unwrap();
    // A check in a condition or a loop would be indented and might not run exactly once.
    let checks: Vec<_> = script
        .lines()
        .filter(|line| line.trim_start().starts_with("check '"))
        .collect();
    assert!(checks.iter().all(|line| line.starts_with("check '")));
    assert_eq!(checks.len(), plan);
    assert!(plan > 50);
    let descriptions: BTreeSet<_> = checks
        .iter()
        .map(|line| line.rsplit_once("' ").unwrap().0)
        .collect();
    assert_eq!(descriptions.len(), plan, "two checks have the same name");
}

#[test]
fn acceptance_script_calls_only_defined_functions() {
    let script = read(ACCEPTANCE);
    let defined: BTreeSet<_> = script
        .lines()
        .filter_map(|line| line.split_once("() {"))
        .map(|(name, _)| name)
        .collect();
    for line in script.lines().filter(|line| line.starts_with("check '")) {
        let call = line.rsplit_once("' ").unwrap().1;
        let function = call.split(' ').next().unwrap();
        assert!(
            defined.contains(function),
            "{function} is not a function: {line}"
        );
    }
}

#[test]
fn rc_script_uses_existing_options_and_variables() {
    let service = read("packaging/freebsd/rc.d/colibri");
    let help = Command::new(colibri_tests::program("colibri-daemon"))
        .arg("--help")
        .output()
        .unwrap();
    let help = text(&help.stdout);
    let options: BTreeSet<_> = service
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .collect();
    assert!(options.contains("--state-dir"), "{options:?}");
    for option in options {
        assert!(help.contains(option), "{option}");
    }
    // The header documents each variable of rc.conf with its default.
    for line in service.lines().filter(|line| line.starts_with(": \"${")) {
        let (name, value) = line[5..].split_once(":=").unwrap();
        let default = value.trim_end_matches("}\"");
        assert!(
            service.contains(&format!("# {name}={default}")),
            "{name} is not documented with its default {default}"
        );
    }
}

#[test]
fn freebsd_page_names_existing_files() {
    let page = read("docs/freebsd.md");
    let mut named = 0;
    for word in page.split(|c: char| c.is_whitespace() || "`()[],".contains(c)) {
        let path = word.trim_start_matches("../");
        let directories = ["packaging/", "crates/", "docs/", "tests/"];
        if path.contains('*') || !directories.iter().any(|start| path.starts_with(start)) {
            continue;
        }
        assert!(repository().join(path).exists(), "{path}");
        named += 1;
    }
    assert!(named > 5, "{named} files are named");
}

#[test]
fn debian_package_has_this_version_and_every_program() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read("packaging/debian/changelog");
    assert!(
        changelog.starts_with(&format!("colibri ({version}-1) ")),
        "{changelog}"
    );
    let package = read("crates/colibri-cli/Cargo.toml");
    let installed = read("scripts/install.sh");
    let mut programs = 0;
    for member in std::fs::read_dir(repository().join("crates")).unwrap() {
        let member = member.unwrap().path();
        if !member.join("src/main.rs").exists() {
            continue;
        }
        let name = member
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace("-cli", "");
        assert!(
            package.contains(&format!("[\"target/release/{name}\", ")),
            "{name}"
        );
        assert!(
            installed.contains(&format!("\"$programs/{name}\"")),
            "{name}"
        );
        programs += 1;
    }
    assert!(programs >= 5, "{programs} programs");
}
