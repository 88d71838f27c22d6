//! The suite a second time, in a process whose environment is full of marks: whatever of it comes out in a
//! command is a leak, and any other difference shows that the environment was read. A process cannot safely change
//! its own environment, so the test's program is started again for the one test.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::{Broken, Report, transcript};
use crate::PrivBackend;

/// Set in the second process.
const SECOND: &str = "COLIBRI_CONFORMANCE_SECOND";
/// In each value of its environment.
const MARK: &str = "colibri-conformance-mark";
/// Before each line of the second process that is a line of its transcript.
const LINE: &str = "colibri-conformance: ";
/// What somebody may be tempted to use, set there even if it is not set here.
const TEMPTING: &[&str] = &[
    "ANTHROPIC_API_KEY",
    "API_KEY",
    "COLIBRI_SOCKET",
    "DISPLAY",
    "DOAS_USER",
    "HOME",
    "LANG",
    "LOGNAME",
    "OPENAI_API_KEY",
    "PASSWORD",
    "PWD",
    "SECRET",
    "SHELL",
    "SUDO",
    "SUDO_ASKPASS",
    "SUDO_USER",
    "TERM",
    "TMPDIR",
    "TOKEN",
    "USER",
    "USERNAME",
    "XDG_RUNTIME_DIR",
];
/// Read by the linker or the test's own harness, which must work: they keep their values.
const KEPT: &[&str] = &[
    "DYLD_",
    "LD_",
    "LLVM_",
    "NEXTEST",
    "RUST",
    "CARGO",
    "__RUST",
    "PROPTEST_",
    "SYSTEMROOT",
];

/// [`super::check`], and the same in another environment: no value of it may appear in a command, nor may anything
/// else change. `test` is the path of the test that calls this, as `module_path!()` and its name give it:
/// [`conformance_test!`](crate::conformance_test) writes such a test.
///
/// # Errors
/// The promises that are broken, each with the first case that shows it.
pub fn check_in_two_environments(backend: &dyn PrivBackend, test: &str) -> Result<(), Report> {
    if std::env::var_os(SECOND).is_some() {
        say(transcript(backend).0);
    }
    let (here, mut complaints) = transcript(backend);
    match second(test) {
        Err(why) => complaints.add(
            Broken::Untried,
            "cannot be looked at in another environment",
            test,
            &why,
        ),
        Ok(there) => {
            for (here, there) in here.iter().zip(&there) {
                let there = unescape(there);
                let (given, here) = here.split_once(" => ").unwrap_or(("", here));
                let there = there
                    .split_once(" => ")
                    .map_or(there.as_str(), |(_, came)| came);
                if let Some(place) = there.find(MARK) {
                    let variable: String = there[place + MARK.len()..]
                        .trim_start_matches('-')
                        .chars()
                        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                        .collect();
                    let what =
                        format!("puts the value of the variable {variable} into the command");
                    complaints.add(Broken::LeaksEnvironment, what, given, there);
                } else if here != there {
                    let what =
                        format!("gives another command in another environment; here it is {here}");
                    complaints.add(Broken::ReadsEnvironment, what, given, there);
                }
            }
        }
    }
    complaints.report(backend)
}

/// The transcript of the second process.
fn second(test: &str) -> Result<Vec<String>, String> {
    // The harness names tests without the crate.
    let name = test.split_once("::").map_or(test, |(_, name)| name);
    let program = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
    let mut command = Command::new(&program);
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let present = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for variable in present.chain(TEMPTING.iter().map(|name| (*name).to_owned())) {
        if !KEPT.iter().any(|prefix| variable.starts_with(prefix)) {
            command.env(&variable, format!("{MARK}-{variable}"));
        }
    }
    let output = command
        .env(SECOND, "1")
        .output()
        .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = said
        .lines()
        .filter_map(|line| line.split_once(LINE))
        .map(|(_, line)| line.to_owned())
        .collect();
    if lines.is_empty() {
        return Err(format!(
            "no test {name:?} called this in {}: {}",
            program.display(),
            output.status
        ));
    }
    Ok(lines)
}

/// Tells the first process, past the harness's own capture, and ends.
fn say(lines: Vec<String>) -> ! {
    let mut text = String::from("\n");
    for line in lines {
        text.push_str(LINE);
        text.push_str(&line.replace('\\', "\\\\").replace('\n', "\\n"));
        text.push('\n');
    }
    let written = io::stdout().write_all(text.as_bytes()).is_ok() && io::stdout().flush().is_ok();
    std::process::exit(i32::from(!written));
}

fn unescape(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => text.push(if chars.next() == Some('n') {
                '\n'
            } else {
                '\\'
            }),
            (c, false) => text.push(c),
        }
    }
    text
}
