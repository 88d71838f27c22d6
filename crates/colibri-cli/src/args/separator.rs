//! Explains a program without the `--` before it.

use clap::error::ErrorKind;
use clap::{Command, Error};
use colibri_jail_core::CommandLine;

/// The commands that take a program.
const TAKE_A_PROGRAM: &[&str] = &["run", "spawn", "explain"];

/// Returns the error to show for a command line that clap refused with `error`.
pub(super) fn explain(error: Error, mut command: Command, words: &[String]) -> Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    command.build();
    match correct(&command, words) {
        Some(message) => command.error(ErrorKind::UnknownArgument, message),
        None => error,
    }
}

/// Returns a message with the corrected command line if a program is in the position of an option.
fn correct(command: &Command, words: &[String]) -> Option<String> {
    let name = positional(command, words, 1)?;
    let sub = words
        .get(name)
        .filter(|sub| TAKE_A_PROGRAM.contains(&sub.as_str()))?;
    let index = positional(command.find_subcommand(sub)?, words, name + 1)?;
    let program = words.get(index)?;
    let (options, rest) = words.split_at_checked(index)?;
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

/// Returns the index of the first word from `start` on that is neither an option of `command` nor its value; `None`
/// if an unknown option or `--` precedes it.
fn positional(command: &Command, words: &[String], start: usize) -> Option<usize> {
    let takes_value = |known: &dyn Fn(&clap::Arg) -> bool| {
        let mut arguments = command.get_arguments();
        arguments
            .find(|argument| known(argument))
            .map(|argument| argument.get_action().takes_values())
    };
    let mut index = start;
    loop {
        let word = words.get(index)?;
        let value_follows = match word.strip_prefix("--") {
            Some("") => return None,
            Some(long) if long.contains('=') => false,
            Some(long) => takes_value(&|argument| argument.get_long() == Some(long))?,
            None => {
                let mut letters = word.strip_prefix('-').unwrap_or_default().chars();
                match (letters.next(), letters.next()) {
                    (None, _) => return Some(index),
                    (Some(letter), None) => {
                        takes_value(&|argument| argument.get_short() == Some(letter))?
                    }
                    (Some(_), Some(_)) => false,
                }
            }
        };
        index += if value_follows { 2 } else { 1 };
    }
}

#[cfg(test)]
mod tests {
    use crate::args::Arguments;
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
            "run --mode json -- pi",
            "run -- pi --mode",
            "ps pi",
            "kill a --mode",
        ] {
            let words = || std::iter::once("colibri").chain(line.split(' '));
            let parsed = Arguments::try_parse_from(words());
            let text = match parsed {
                Ok(_) => "ok".to_owned(),
                Err(error) => {
                    let words: Vec<String> = words().map(str::to_owned).collect();
                    let error = super::explain(error, Arguments::command(), &words);
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
