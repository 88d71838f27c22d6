//! A second run in a process whose environment variables contain a marker. A marker in a command is a leak; any other
//! difference shows that the backend has read the environment. A process cannot safely change its environment, so the
//! program of the test is started again with this test.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use colibri_priv::PrivBackend;

use crate::{Report, TestRun, ViolationKind};

/// Variable that is set in the second process.
const SECOND_PROCESS: &str = "COLIBRI_CONFORMANCE_SECOND";
/// Prefix of each value of the second process's environment.
const MARKER: &str = "colibri-conformance-mark";
/// Prefix of the transcript lines that the second process prints.
const LINE_PREFIX: &str = "colibri-conformance: ";
/// Variables that a backend might use. They are always set in the second process.
const ALWAYS_SET: &[&str] = &[
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
/// Prefixes of variables for the linker and the test harness, which keep their values.
const UNCHANGED: &[&str] = &[
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

/// Runs [`crate::check`], and compares it with a second run in another environment: the commands must not differ. `test`
/// is the path of the calling test, `module_path!()` and its name; [`crate::conformance_test!`] creates such a test.
///
/// # Errors
/// The violations, each with the first case that shows it.
pub fn check_in_two_environments(backend: &dyn PrivBackend, test: &str) -> Result<(), Report> {
    if std::env::var_os(SECOND_PROCESS).is_some() {
        print_and_exit(TestRun::of(backend).transcript);
    }
    let TestRun {
        transcript,
        mut violations,
    } = TestRun::of(backend);
    match second_run(test) {
        Err(cause) => violations.add(
            ViolationKind::SecondRunFailed,
            "cannot be tested in another environment",
            test,
            &cause,
        ),
        Ok(second) if second.len() != transcript.len() => {
            let output = format!("{} of {} cases", second.len(), transcript.len());
            violations.add(
                ViolationKind::SecondRunFailed,
                "does not run all cases in another environment",
                test,
                &output,
            );
        }
        Ok(second) => {
            for (first, second) in transcript.iter().zip(&second) {
                let second = unescape(second);
                let (input, first) = first.split_once(" => ").unwrap_or(("", first));
                let second = second
                    .split_once(" => ")
                    .map_or(second.as_str(), |(_, output)| output);
                if let Some(position) = second.find(MARKER) {
                    let variable: String = second[position + MARKER.len()..]
                        .trim_start_matches('-')
                        .chars()
                        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                        .collect();
                    let message =
                        format!("puts the value of the variable {variable} into the command");
                    violations.add(ViolationKind::LeaksEnvironment, message, input, second);
                } else if first != second {
                    let message =
                        format!("returns another command in another environment; first: {first}");
                    violations.add(ViolationKind::ReadsEnvironment, message, input, second);
                }
            }
        }
    }
    violations.report(backend)
}

/// Runs the test in a second process, and returns its transcript.
fn second_run(test: &str) -> Result<Vec<String>, String> {
    // The harness omits the crate from test names.
    let name = test.split_once("::").map_or(test, |(_, name)| name);
    let program = std::env::current_exe().map_err(|error| format!("current_exe: {error}"))?;
    let mut command = Command::new(&program);
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let present = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for variable in present.chain(ALWAYS_SET.iter().map(|name| (*name).to_owned())) {
        if !UNCHANGED.iter().any(|prefix| variable.starts_with(prefix)) {
            command.env(&variable, format!("{MARKER}-{variable}"));
        }
    }
    let output = command
        .env(SECOND_PROCESS, "1")
        .output()
        .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = stdout
        .lines()
        .filter_map(|line| line.split_once(LINE_PREFIX))
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

/// Prints the transcript for the first process and exits. The harness does not capture output that bypasses `print!`.
fn print_and_exit(lines: Vec<String>) -> ! {
    let mut text = String::from("\n");
    for line in lines {
        text.push_str(LINE_PREFIX);
        text.push_str(&line.replace('\\', "\\\\").replace('\n', "\\n"));
        text.push('\n');
    }
    let written = io::stdout().write_all(text.as_bytes()).is_ok() && io::stdout().flush().is_ok();
    std::process::exit(i32::from(!written));
}

/// Reverts the escapes of [`print_and_exit`].
fn unescape(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' if chars.next() == Some('n') => '\n',
            c => c,
        });
    }
    text
}
