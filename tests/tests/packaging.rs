//! Checks of the files for FreeBSD and Debian that need neither system.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use colibri_tests::{program, read, repository, run_checked, test_directory, text, write_file};
use tempfile::TempDir;

const ACCEPTANCE: &str = "tests/freebsd/acceptance.sh";
/// The programs that the FreeBSD package contains.
const PROGRAMS: [&str; 6] = [
    "bin/colibri",
    "bin/colibri-daemon",
    "libexec/colibri-adapter",
    "libexec/colibri-jail-helper",
    "libexec/colibri-proxy",
    "libexec/colibri-shim",
];

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
    // A check in a condition or a loop would be indented and might not run exactly once. The checks of the table run
    // once for each kind of confinement.
    let lines = |start: &str| -> Vec<&str> {
        script
            .lines()
            .filter(|line| line.starts_with(start))
            .collect()
    };
    let checks = lines("check '");
    let table = lines("    check \"$title: ");
    let kinds = lines("checks_of ");
    let all = script
        .lines()
        .filter(|line| line.trim_start().starts_with("check "));
    assert_eq!(all.count(), checks.len() + table.len());
    assert_eq!(checks.len() + table.len() * kinds.len(), plan);
    assert!(plan > 100);
    let of_quoted = |lines: &[&str], quote: &str| -> BTreeSet<String> {
        let descriptions = lines.iter().filter_map(|line| line.rsplit_once(quote));
        descriptions
            .map(|(description, _)| description.to_owned())
            .collect()
    };
    assert_eq!(
        of_quoted(&checks, "' ").len() + of_quoted(&table, "\" ").len(),
        checks.len() + table.len(),
        "two checks have the same name"
    );
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
fn rc_script_uses_existing_options() {
    let service = read("packaging/freebsd/rc.d/colibri");
    let mut help = String::new();
    for arguments in [&["colibri-daemon"][..], &["colibri", "prune"]] {
        let output = Command::new(program(arguments[0]))
            .args(&arguments[1..])
            .arg("--help")
            .output()
            .unwrap();
        help.push_str(&text(&output.stdout));
    }
    let options: BTreeSet<_> = service
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .collect();
    assert!(options.contains("--state-dir"), "{options:?}");
    for option in options {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn service_and_periodic_headers_document_all_variables() {
    let directory = "packaging/freebsd";
    for (script, expected) in [("rc.d/colibri", 8), ("periodic/daily/490.colibri", 3)] {
        let script = read(&format!("{directory}/{script}"));
        let assigned: BTreeSet<_> = script
            .lines()
            .filter_map(|line| line.strip_prefix(": \"${")?.strip_suffix("}\""))
            .map(|line| line.replacen(":=", "=", 1))
            .collect();
        let documented: BTreeSet<_> = script
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.starts_with("colibri_") || line.starts_with("daily_"))
            .map(|line| {
                let end = line[..].match_indices('"').nth(1).unwrap().0;
                line[..=end].to_owned()
            })
            .collect();
        assert_eq!(assigned, documented);
        assert_eq!(assigned.len(), expected);
    }
}

/// Runs the installation for FreeBSD with empty programs, into a new directory.
fn install_for_freebsd(prefix: &str) -> TempDir {
    let directory = test_directory();
    let programs = directory.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    for program in PROGRAMS {
        write_file(
            &programs.join(program.rsplit_once('/').unwrap().1),
            "",
            0o755,
        );
    }
    run_checked(
        Command::new("sh")
            .arg(repository().join("packaging/freebsd/install.sh"))
            .arg(&programs)
            .env("DESTDIR", directory.path().join("stage"))
            .env("PREFIX", prefix)
            .env("COLIBRI", program("colibri")),
    );
    directory
}

/// Adds the paths of all files below the directory, relative to the root.
fn add_files(root: &Path, directory: &Path, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_files(root, &path, files);
        } else {
            let path = path.strip_prefix(root).unwrap();
            files.insert(path.to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn freebsd_plist_lists_exactly_the_installed_files() {
    let directory = install_for_freebsd("/usr/local");
    let root = directory.path().join("stage/usr/local");
    let mut installed = BTreeSet::new();
    add_files(&root, &root, &mut installed);
    let plist = read("packaging/freebsd/port/pkg-plist")
        .replace("%%EXAMPLESDIR%%", "share/examples/colibri");
    let listed: BTreeSet<_> = plist
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(listed, installed);
    assert_eq!(
        listed.len(),
        plist.lines().count(),
        "a file is listed twice"
    );

    for line in plist.lines() {
        let (keyword, file) = line.rsplit_once(' ').unwrap_or(("", line));
        let expected = match file {
            // pkg(8) copies a sample to the file that the administrator edits.
            _ if file.ends_with(".sample") => "@sample",
            "libexec/colibri-jail-helper" => "@(root,wheel,4755)",
            _ => "",
        };
        assert_eq!(keyword, expected, "{file}");
        let mode = root.join(file).metadata().unwrap().permissions().mode() & 0o7777;
        let executable = PROGRAMS.contains(&file) || file.ends_with("/rc.d/colibri");
        let executable = executable || file.starts_with("etc/periodic/");
        assert_eq!(mode, if executable { 0o755 } else { 0o644 }, "{file}");
    }
}

#[test]
fn freebsd_files_contain_the_given_prefix() {
    let directory = install_for_freebsd("/opt/colibri");
    let root = directory.path().join("stage/opt/colibri");
    let mut installed = BTreeSet::new();
    add_files(&root, &root, &mut installed);
    let mut named = 0;
    for file in installed.iter().filter(|file| !file.ends_with(".gz")) {
        let content = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(!content.contains("/usr/local"), "{file}");
        named += usize::from(content.contains("/opt/colibri/"));
    }
    assert!(named >= 5, "{named} files contain the prefix");
}

#[test]
fn installed_policy_has_the_rules_of_the_example_disabled() {
    let directory = install_for_freebsd("/usr/local");
    let root = directory.path().join("stage/usr/local");
    let policy = std::fs::read_to_string(root.join("etc/colibri/helper.toml.sample")).unwrap();
    let active: Vec<_> = policy
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert_eq!(active, ["syslog = \"required\""]);
    let example = std::fs::read_to_string(root.join("share/examples/colibri/helper.toml")).unwrap();
    let enabled: Vec<_> = policy
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
            _ => line,
        })
        .collect();
    assert_eq!(enabled, example.lines().collect::<Vec<_>>());
}

#[test]
fn newsyslog_rotates_the_file_that_syslogd_writes() {
    let fields = |path: &str| -> Vec<String> {
        let text = read(path);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let written = fields("packaging/freebsd/syslog.d/colibri.conf");
    assert_eq!(written, ["!colibri", "*.*", "/var/log/colibri.log", "!*"]);
    let rotated = fields("packaging/freebsd/newsyslog.conf.d/colibri.conf");
    assert_eq!(rotated[0], written[2]);
    // Without C, newsyslog(8) does not create the file, and syslogd(8) does not write it.
    assert!(rotated.last().unwrap().contains('C'), "{rotated:?}");
    let service = read("packaging/freebsd/rc.d/colibri");
    assert!(service.contains("-T \"$name\"") && service.contains("name=\"colibri\""));
}

#[test]
fn freebsd_port_has_this_version_and_every_program() {
    let port = read("packaging/freebsd/port/Makefile");
    let version = env!("CARGO_PKG_VERSION");
    assert!(port.contains(&format!("\nDISTVERSION=\t{version}\n")));
    assert!(read("packaging/freebsd/README.md").contains(&format!("colibri-{version}.pkg")));
    let words: BTreeSet<_> = port.split_whitespace().collect();
    let built = port.matches("--package").count();
    for program in PROGRAMS {
        assert!(words.contains(program), "{program} is not stripped");
        let package = match program.rsplit_once('/').unwrap().1 {
            "colibri" => "colibri-cli",
            name => name,
        };
        assert!(words.contains(package), "{package} is not built");
    }
    assert_eq!(built, PROGRAMS.len());
    // The ports tree finds the ids of the port's user and group in these lines.
    for (file, variable) in [("UIDs", "USERS"), ("GIDs", "GROUPS")] {
        let line = read(&format!("packaging/freebsd/{file}"));
        let name = line.split(':').next().unwrap();
        assert!(
            port.contains(&format!("\n{variable}=\t\t{name}\n")),
            "{file}"
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
        assert!(
            // For Linux only.
            name == "colibri-sandbox"
                || PROGRAMS
                    .iter()
                    .any(|path| path.ends_with(&format!("/{name}"))),
            "{name}"
        );
        programs += 1;
    }
    assert!(programs >= 5, "{programs} programs");
}
