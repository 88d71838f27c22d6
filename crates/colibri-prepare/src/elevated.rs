//! The commands of the privilege backend that a shim runs itself: a signal to processes of the agent, and the removal of
//! its jail. Pure.

use colibri_jail_core::{CommandLine, Confinement, JailEngine, JailName, JailOp, Pid, Signal};
use colibri_priv::PrivBackend;
use colibri_types::{PID_PLACEHOLDER, SIGNAL_PLACEHOLDER, SignalTemplate};

use crate::Preparer;

/// Pids whose decimal numbers occur in no other word of a command.
const SENTINELS: [u32; 3] = [1_999_999_973, 2_000_000_011, 2_000_000_033];

/// The commands of the privilege backend for one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ElevatedCommands {
    /// Signals processes. Absent if the backend adds no privilege or cannot signal.
    pub signal: Option<SignalTemplate>,
    /// Removes the jail that was created for the agent. Absent if there is none, or the backend cannot remove it.
    pub remove_jail: Option<CommandLine>,
}

impl Preparer {
    /// Returns the commands with which an agent in this confinement is ended with privilege.
    #[must_use]
    pub fn elevated_commands(&self, confinement: &Confinement) -> ElevatedCommands {
        let (backend, engine) = (&*self.backend, &*self.engine);
        let jail = match confinement {
            Confinement::Persistent { name, .. } => Some(name),
            Confinement::Ephemeral(_) | Confinement::None => None,
        };
        let signal = match backend.runs_as_caller() {
            true => None,
            false => signal_template(backend, engine, jail),
        };
        let remove_jail = match confinement {
            Confinement::Ephemeral(jail) => {
                let name = jail.name.clone();
                backend.elevate(&JailOp::Remove { name }, engine).ok()
            }
            Confinement::Persistent { .. } | Confinement::None => None,
        };
        ElevatedCommands {
            signal,
            remove_jail,
        }
    }
}

/// Derives the template from the backend's commands for different signals and pids. Returns `None` if the backend cannot
/// signal, or its command for one pid is not recognized.
fn signal_template(
    backend: &dyn PrivBackend,
    engine: &dyn JailEngine,
    jail: Option<&JailName>,
) -> Option<SignalTemplate> {
    let words = |signal: Signal, pids: &[u32]| -> Option<Vec<String>> {
        let pids: Result<Vec<Pid>, _> = pids.iter().copied().map(Pid::new).collect();
        let op = JailOp::Signal {
            jail: jail.cloned(),
            pids: pids.ok()?,
            signal,
        };
        let (program, args) = backend.elevate(&op, engine).ok()?.into_parts();
        Some(std::iter::once(program).chain(args).collect())
    };
    let [first, second, third] = SENTINELS;
    let one = words(Signal::TERM, &[first])?;
    let killing = words(Signal::KILL, &[first])?;
    let two = words(Signal::TERM, &[first, second]).unwrap_or_default();
    let matches = |template: &SignalTemplate, signal: Signal, pids: &[u32]| {
        let raw: Option<Vec<i32>> = pids.iter().map(|pid| i32::try_from(*pid).ok()).collect();
        raw.is_some_and(|raw| {
            words(signal, pids).is_some_and(|words| words == template.words(signal.name(), &raw))
        })
    };
    let single = SignalTemplate {
        per_pid: with_placeholders(&one, &killing, first)?,
        ..SignalTemplate::default()
    };
    let is_correct =
        matches(&single, Signal::TERM, &[first]) && matches(&single, Signal::KILL, &[second]);
    let several = repeated(&single.per_pid, two.len()).find(|template| {
        template.takes_several_pids()
            && matches(template, Signal::TERM, &[first, second])
            && matches(template, Signal::KILL, &[second, third, first])
    });
    is_correct.then(|| several.unwrap_or(single))
}

/// Replaces the signal and the pid in a command by placeholders. `one` is the command for TERM, `killing` the one for KILL,
/// both for the process `pid`.
fn with_placeholders(one: &[String], killing: &[String], pid: u32) -> Option<Vec<String>> {
    let pid = pid.to_string();
    let with_placeholder = |(term, kill): (&String, &String)| {
        let word = match term == kill {
            true => term.clone(),
            false => term.replace(Signal::TERM.name(), SIGNAL_PLACEHOLDER),
        };
        word.replace(&pid, PID_PLACEHOLDER)
    };
    (one.len() == killing.len()).then(|| one.iter().zip(killing).map(with_placeholder).collect())
}

/// Returns the templates in which the words around the pid are repeated such that a command for two pids has `length`
/// words.
fn repeated(words: &[String], length: usize) -> impl Iterator<Item = SignalTemplate> {
    let chunk = length.saturating_sub(words.len());
    let position = words.iter().position(|word| word.contains(PID_PLACEHOLDER));
    let position = position.unwrap_or_default();
    (0..chunk).filter_map(move |offset| {
        let start = position.checked_sub(offset)?;
        let (before, rest) = words.split_at_checked(start)?;
        let (per_pid, after) = rest.split_at_checked(chunk)?;
        Some(SignalTemplate {
            before: before.to_vec(),
            per_pid: per_pid.to_vec(),
            after: after.to_vec(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::{Bubblewrap, FreebsdJail};
    use colibri_priv::{Finding, Helper, Mdo, PrivError};

    /// A backend whose commands are made from a signal and pids by a function.
    struct Custom(fn(&str, &[String]) -> Vec<String>);

    #[async_trait::async_trait]
    impl PrivBackend for Custom {
        fn name(&self) -> &str {
            "custom"
        }

        fn elevate(&self, op: &JailOp, _: &dyn JailEngine) -> Result<CommandLine, PrivError> {
            let JailOp::Signal { pids, signal, .. } = op else {
                return Err(PrivError::unsupported("custom", op.kind(), "use another"));
            };
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            Ok(CommandLine::new("/bin/x", (self.0)(signal.name(), &pids))?)
        }

        async fn preflight(&self) -> Vec<Finding> {
            Vec::new()
        }
    }

    /// Returns the command of the template for two pids, as one line; commands for one pid each are separated by `;`.
    fn shown(template: &SignalTemplate) -> String {
        match template.takes_several_pids() {
            true => template.words("HUP", &[7, 8]).join(" "),
            false => [7, 8]
                .map(|pid| template.words("HUP", &[pid]).join(" "))
                .join("; "),
        }
    }

    #[test]
    fn template_reproduces_the_commands_of_each_backend() {
        let web: JailName = "web".parse().unwrap();
        let helper = Helper::new("/opt/helper");
        let derived = [
            signal_template(&Mdo, &FreebsdJail::default(), Some(&web)),
            signal_template(&helper, &FreebsdJail::default(), Some(&web)),
            signal_template(&helper, &Bubblewrap::default(), None),
        ];
        let shown = derived.map(|template| shown(&template.unwrap()));
        assert_eq!(
            shown,
            [
                "/usr/bin/mdo -i -- /bin/kill -s HUP 7 8",
                "/opt/helper signal --jail web --signal HUP --pid 7 --pid 8",
                "/opt/helper signal --signal HUP --pid 7 --pid 8",
            ]
        );
    }

    #[test]
    fn unusual_command_of_a_backend_is_recognized_or_refused() {
        let table: [(Custom, Option<&str>); 6] = [
            (
                Custom(|signal, pids| {
                    let pids = pids.iter().map(|pid| format!("--pid={pid}"));
                    let end = ["--".to_owned(), format!("-{signal}")];
                    pids.chain(end).collect()
                }),
                Some("/bin/x --pid=7 --pid=8 -- -HUP"),
            ),
            // A list in one word cannot be repeated.
            (
                Custom(|signal, pids| vec![signal.to_owned(), pids.join(",")]),
                Some("/bin/x HUP 7; /bin/x HUP 8"),
            ),
            // A command that takes only one pid.
            (
                Custom(|signal, pids| match pids {
                    [pid] => vec![signal.to_owned(), pid.clone()],
                    _ => vec!["refused".to_owned()],
                }),
                Some("/bin/x HUP 7; /bin/x HUP 8"),
            ),
            // Numbers of signals.
            (
                Custom(|signal, pids| {
                    let number = if signal == "TERM" { "15" } else { "9" };
                    [&[number.to_owned()], pids].concat()
                }),
                None,
            ),
            // A placeholder as a literal word.
            (
                Custom(|signal, pids| {
                    let words = ["{pid}".to_owned(), signal.to_owned()];
                    [&words, pids].concat()
                }),
                None,
            ),
            // The number of the pids.
            (
                Custom(|signal, pids| {
                    let words = [signal.to_owned(), pids.len().to_string()];
                    [&words, pids].concat()
                }),
                Some("/bin/x HUP 1 7; /bin/x HUP 1 8"),
            ),
        ];
        for (backend, expected) in table {
            let template = signal_template(&backend, &FreebsdJail::default(), None);
            assert_eq!(template.as_ref().map(shown).as_deref(), expected);
        }
    }
}
