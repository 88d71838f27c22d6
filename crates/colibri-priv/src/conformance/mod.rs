//! What every privilege backend must hold, as a suite that its author runs: one line in a test, whatever the
//! backend puts in front. It is plain code of this crate, so that it knows each new operation when the boundary does.

mod cases;
mod environment;
mod judge;

pub use environment::check_in_two_environments;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use colibri_jail_core::JailEngine;

use crate::{Finding, FindingStatus, PrivBackend, PrivMode};

/// How long a preflight may take.
const PREFLIGHT: Duration = Duration::from_secs(30);

/// A promise that a backend breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Broken {
    /// [`PrivBackend::name`] does not do in a setting.
    Name,
    /// An operation that the engine can do is refused.
    Refuses,
    /// The engine's refusal comes out as another one.
    Reworded,
    /// The program would be searched.
    Relative,
    /// The same operation twice gives two commands.
    Impure,
    /// A word of the agent's is missing.
    Drops,
    /// The agent's words come in another order.
    Reorders,
    /// Words of the agent's have become one.
    Joins,
    /// A word of the agent's has become several.
    Splits,
    /// A word of the agent's has been quoted.
    Quotes,
    /// Words follow the agent's.
    Appends,
    /// The agent's words are changed in another way.
    Changes,
    /// What stands in front depends on the agent's words.
    Leaks,
    /// A shell stands in front.
    Shell,
    /// A part of the operation is lost.
    Loses,
    /// A value of the environment is in the command.
    LeaksEnvironment,
    /// Another environment gives another command.
    ReadsEnvironment,
    /// The second environment could not be tried.
    Untried,
    /// A finding fails and does not say what to do.
    NoMend,
    /// The preflight does not end.
    Hangs,
}

impl Broken {
    fn meaning(self) -> &'static str {
        match self {
            Self::Name => {
                "the name cannot be chosen in COLIBRI_JAIL_PRIV_MODE; use lower-case letters, digits and '-', at most 32"
            }
            Self::Refuses => "agents of this kind cannot be run, or not be ended",
            Self::Reworded => {
                "the engine says what to do instead, and this hides it; pass its error on with `?`"
            }
            Self::Relative => {
                "the program would be searched in PATH or in the agent's directory, and somebody else's found; give its absolute path"
            }
            Self::Impure => {
                "what `colibri explain` shows is not what runs; elevate must depend on its arguments alone"
            }
            Self::Drops => "the agent would run without a word that it was given",
            Self::Reorders => "the agent would read its words in another order",
            Self::Joins => {
                "the agent would get one word where it was given several; pass words, never a line"
            }
            Self::Splits => {
                "the agent would get several words where it was given one; pass words, never a line"
            }
            Self::Quotes => {
                "no shell is between, so the agent would get the quotes themselves; pass words as they are"
            }
            Self::Appends => "the agent would read words that nobody gave it",
            Self::Changes => "the agent would not get the words that it was given",
            Self::Leaks => {
                "words of the agent's would be read by the program in front, perhaps as options"
            }
            Self::Shell => {
                "a shell with privilege reads what it is given as a script; execute the command itself"
            }
            Self::Loses => "the agent would be confined less, or something else be hit",
            Self::LeaksEnvironment => {
                "argv is seen by every user and is logged, and the environment holds secrets; take no value from it"
            }
            Self::ReadsEnvironment => {
                "what `colibri explain` shows is not what the daemon runs; elevate must depend on its arguments alone"
            }
            Self::Untried => {
                "call this from a test of the default harness that has the name given, as conformance_test! does"
            }
            Self::NoMend => "whoever reads it is left alone; say what to do",
            Self::Hangs => "`colibri doctor` would hang; bound whatever it waits for",
        }
    }
}

/// One promise that is broken, with the first case that shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  given:    {given}\n  came out: {came}\n  so:       {}", .broken.meaning())]
pub struct Complaint {
    /// Which promise.
    pub broken: Broken,
    /// It in words.
    pub what: String,
    /// What the backend was given.
    pub given: String,
    /// What it made of it.
    pub came: String,
}

/// Every promise that a backend breaks, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// In the order in which they were found.
    pub complaints: Vec<Complaint>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.complaints.len();
        let promises = if count == 1 { "promise" } else { "promises" };
        write!(
            f,
            "backend {:?} breaks {count} {promises} of PrivBackend",
            self.backend
        )?;
        for complaint in &self.complaints {
            write!(f, "\n- {complaint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Runs the suite over both engines: every operation, with agents whose words like to be mistaken for something
/// else. Deterministic. The preflight is run, and its findings about this host are not judged; one that needs a tokio
/// runtime gets it from the caller, who holds `runtime.enter()` meanwhile. What another environment would change,
/// [`check_in_two_environments`] looks at too.
///
/// # Errors
/// The promises that are broken, each with the first case that shows it.
pub fn check(backend: &dyn PrivBackend) -> Result<(), Report> {
    transcript(backend).1.report(backend)
}

/// The suite; every command that came out, a line each, and what is wrong with them.
fn transcript(backend: &dyn PrivBackend) -> (Vec<String>, Complaints) {
    let mut complaints = Complaints::default();
    name(backend, &mut complaints);
    let mut lines = Vec::new();
    for engine in cases::engines() {
        elevation(backend, &engine, &mut complaints, &mut lines);
    }
    preflight(backend, &mut complaints);
    (lines, complaints)
}

/// The first of each kind.
#[derive(Default)]
struct Complaints(Vec<Complaint>);

impl Complaints {
    fn add(&mut self, broken: Broken, what: impl Into<String>, given: &str, came: &str) {
        if self.0.iter().all(|known| known.broken != broken) {
            self.0.push(Complaint {
                broken,
                what: what.into(),
                given: given.to_owned(),
                came: came.to_owned(),
            });
        }
    }

    fn report(self, backend: &dyn PrivBackend) -> Result<(), Report> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Report {
            backend: backend.name().to_owned(),
            complaints: self.0,
        })
    }
}

fn name(backend: &dyn PrivBackend, complaints: &mut Complaints) {
    if let Err(error) = PrivMode::parse(backend.name()) {
        let came = format!("{:?}", backend.name());
        complaints.add(Broken::Name, error.to_string(), "name()", &came);
    }
}

fn elevation(
    backend: &dyn PrivBackend,
    engine: &JailEngine,
    complaints: &mut Complaints,
    lines: &mut Vec<String>,
) {
    for shape in cases::shapes() {
        let mut front = None;
        for agent in shape.agents() {
            let op = shape.op(&agent);
            let given = cases::describe(&op, engine);
            let came = backend.elevate(&op, engine);
            let shown = match &came {
                Ok(command) => format!("{:?}", judge::words(command)),
                Err(error) => format!("refused: {error}"),
            };
            if backend.elevate(&op, engine) != came {
                let what = "the same operation gives another command the second time";
                complaints.add(Broken::Impure, what, &given, &shown);
            }
            lines.push(format!("{given} => {shown}"));
            let plain = engine.command_line(&op);
            let command = match judge::outcome(&op, &plain, &came) {
                Ok(Some(command)) => command,
                Ok(None) => continue,
                Err((broken, what)) => {
                    complaints.add(broken, what, &given, &shown);
                    continue;
                }
            };
            let judged = judge::command(command, &op, engine, plain.as_ref().ok(), front.take());
            for (broken, what) in judged.broken {
                complaints.add(broken, what, &given, &shown);
            }
            front = judged.front;
        }
    }
}

fn preflight(backend: &dyn PrivBackend, complaints: &mut Complaints) {
    match wait(backend.preflight(), PREFLIGHT) {
        None => complaints.add(
            Broken::Hangs,
            format!("the preflight does not end within {PREFLIGHT:?}"),
            "preflight()",
            "nothing",
        ),
        Some(findings) => {
            if let Some(finding) = findings.iter().find(|finding| is_mute(finding)) {
                let came = format!("{finding:?}");
                let what = "a finding fails and does not say how to fix it";
                complaints.add(Broken::NoMend, what, "preflight()", &came);
            }
        }
    }
}

fn is_mute(finding: &Finding) -> bool {
    finding.status == FindingStatus::Fail
        && finding.fix.as_ref().is_none_or(|fix| fix.trim().is_empty())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread: a whole runtime would be a dependency of every backend's.
fn wait<T>(future: impl Future<Output = T>, limit: Duration) -> Option<T> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    let until = Instant::now() + limit;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = until.checked_duration_since(Instant::now())?;
        std::thread::park_timeout(left);
    }
}

/// A test named `conforms` that runs the suite for a backend, in two environments.
///
/// ```
/// colibri_priv::conformance_test!(colibri_priv::Mdo);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance_test {
    ($backend:expr) => {
        /// The backend holds what `PrivBackend` promises, in whatever environment.
        #[test]
        fn conforms() -> ::core::result::Result<(), $crate::conformance::Report> {
            let test = concat!(module_path!(), "::conforms");
            $crate::conformance::check_in_two_environments(&$backend, test)
        }
    };
}

/// For a word in front that is no part of the agent's.
fn is_shell(word: &str) -> bool {
    const SHELLS: &[&str] = &[
        "sh", "bash", "dash", "zsh", "ksh", "mksh", "csh", "tcsh", "fish", "ash", "busybox",
    ];
    SHELLS.contains(&word.rsplit('/').next().unwrap_or(word))
}

/// How often a shell is given a script.
fn scripts(words: &[String]) -> usize {
    let script = |word: &String| {
        word.strip_prefix('-')
            .is_some_and(|letters| !letters.starts_with('-') && letters.contains('c'))
    };
    words
        .iter()
        .enumerate()
        .filter(|(_, word)| is_shell(word.strip_prefix("command=").unwrap_or(word)))
        .filter(|(place, _)| words[place + 1..].iter().take(3).any(script))
        .count()
}
