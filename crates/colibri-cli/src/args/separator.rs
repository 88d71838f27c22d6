//! Explains a program without the `--` before it.

use clap::error::ErrorKind;
use clap::{Arg, Command, Error};
use colibri_jail_core::CommandLine;

/// The commands that take a program.
const TAKE_A_PROGRAM: &[&str] = &["run", "spawn", "explain"];

/// Returns the error to show for a command line that clap refused with `error`.
pub(super) fn explain(error: Error, mut command: Command, words: &[String]) -> Error {
    // The second kind: a program is in the position of a prompt, which needs --agent.
    let kinds = [
        ErrorKind::UnknownArgument,
        ErrorKind::MissingRequiredArgument,
    ];
    if !kinds.contains(&error.kind()) {
        return error;
    }
    match correct(command.clone(), words) {
        Some(message) => {
            command.build();
            command.error(ErrorKind::UnknownArgument, message)
        }
        None => error,
    }
}

/// Returns a message with the corrected command line if a program is in the position of an option.
fn correct(mut command: Command, words: &[String]) -> Option<String> {
    for sub in TAKE_A_PROGRAM {
        // Parses the command line as if the program needed no `--`.
        let without_separator = |program: Arg| {
            let program = program.last(false).trailing_var_arg(true);
            program.allow_hyphen_values(true)
        };
        command = command.mut_subcommand(sub, |sub| {
            // Not a prompt.
            let sub = sub.mut_arg("task", |task| task.long("task"));
            sub.mut_arg("command", without_separator)
        });
    }
    let matches = command.try_get_matches_from(words).ok()?;
    let (_, matches) = matches.subcommand()?;
    if matches.try_contains_id("agent").unwrap_or_default() {
        return None;
    }
    let program_words = matches.try_get_many::<String>("command").ok()??;
    let (options, rest) = words.split_at_checked(words.len() - program_words.len())?;
    let program = rest.first().filter(|program| !program.starts_with('-'))?;
    let mut line: Vec<&str> = options.iter().skip(1).map(String::as_str).collect();
    line.push("--");
    // Without a misplaced `--` after the program.
    let parts = rest.splitn(2, |word| word == "--");
    line.extend(parts.flatten().map(String::as_str));
    let line = CommandLine::new("colibri", line).ok()?;
    Some(format!(
        "the program '{program}' needs '--' before it; run: {line}"
    ))
}

#[cfg(test)]
mod tests {
    use crate::args::CliArguments;
    use clap::{CommandFactory, Parser};

    #[test]
    fn program_without_separator_is_explained() {
        let mut shown = String::new();
        for line in [
            "run pi --mode json hi",
            "spawn --name pi --env A=1 pi --mode rpc",
            "--socket /s run --no-input pi -x",
            "explain --json pi",
            "run --jail-path / pi -- --mode json",
            "run --profile review hi",
            "run --name=run run --run run",
            // Other errors are not corrected.
            "run --agent pi hi --mode json",
            "run --mode json -- pi",
            "run -- pi --mode",
            "ps pi",
            "kill a --mode",
        ] {
            let words = || std::iter::once("colibri").chain(line.split(' '));
            let parsed = CliArguments::try_parse_from(words());
            let text = match parsed {
                Ok(_) => "ok".to_owned(),
                Err(error) => {
                    let words: Vec<String> = words().map(str::to_owned).collect();
                    let error = super::explain(error, CliArguments::command(), &words);
                    assert_eq!(error.exit_code(), 2, "{line}");
                    let text = error.to_string();
                    text.lines().next().unwrap_or_default().to_owned()
                }
            };
            shown.push_str(&format!("$ colibri {line}\n{text}\n"));
        }
        insta::assert_snapshot!(shown);
    }
}
