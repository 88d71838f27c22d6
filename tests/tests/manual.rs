//! Each manual page lists exactly the commands, options and keys of its program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use colibri_tests::{program, read, repository, text};

type Options = BTreeSet<String>;

fn page(name: &str) -> String {
    read(&format!("docs/man/{name}"))
}

/// Returns the help of a program, or of one of its commands with all subcommands.
fn help(name: &str, command: &[&str]) -> String {
    let output = Command::new(program(name))
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} {command:?}: {output:?}");
    let mut text = text(&output.stdout);
    if !command.is_empty() {
        for subcommand in listed_commands(&text) {
            text += &help(name, &[command, &[subcommand.as_str()]].concat());
        }
    }
    text
}

/// Returns the short and long options that a help text lists.
fn listed_options(help: &str) -> Options {
    help.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .flat_map(|line| {
            line.split("  ")
                .next()
                .unwrap_or_default()
                .split([' ', ','])
        })
        .filter(|word| word.len() > 1 && word.starts_with('-'))
        .map(|word| word.trim_end_matches("...").to_owned())
        .collect()
}

/// Returns the commands that a help text lists, without `help`.
fn listed_commands(help: &str) -> BTreeSet<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// Returns the words after a macro (`Fl`, `Cm`, `Ev`) in a line, without punctuation.
fn macro_words(line: &str, macro_name: &str) -> Vec<String> {
    let mut current = "";
    let mut words = Vec::new();
    if !line.starts_with('.') {
        return words;
    }
    for word in line.trim_start_matches('.').split_whitespace() {
        match word {
            "Fl" | "Cm" | "Ev" | "Ar" | "It" | "Op" | "Pq" | "Ns" | "Xr" | "Nm" | "Pa" | "Ql" => {
                current = word;
            }
            _ if word.chars().all(|c| c.is_ascii_punctuation()) && word != "-" => {}
            _ if current == macro_name => words.push(word.to_owned()),
            _ => {}
        }
    }
    words
}

/// Returns the options in a line of a page, with their hyphens. `Fl -` is not an option but the end of options.
fn options(line: &str) -> Options {
    macro_words(line, "Fl")
        .iter()
        .filter(|name| *name != "-")
        .map(|name| format!("-{name}"))
        .collect()
}

/// Returns the lines of a section or subsection.
fn section<'a>(page: &'a str, title: &str) -> Vec<&'a str> {
    let heading = |line: &&str| line.starts_with(".Sh ") || line.starts_with(".Ss ");
    let mut lines = page
        .lines()
        .skip_while(|line| !heading(line) || line.get(4..) != Some(title));
    assert!(lines.next().is_some(), "no section {title}");
    lines.take_while(|line| !heading(line)).collect()
}

/// Adds the options that a section explains to the options of their commands. The line after an option names its
/// commands, as in `.Pq Cm a , b`; without such a line, they are `default_commands`.
fn collect_options(
    page: &str,
    title: &str,
    default_commands: &[&str],
    by_command: &mut BTreeMap<String, Options>,
) {
    let lines = section(page, title);
    for (at, line) in lines.iter().enumerate() {
        if !line.starts_with(".It Fl") {
            continue;
        }
        let named = lines
            .get(at + 1)
            .filter(|next| next.starts_with(".Pq Cm"))
            .map(|next| macro_words(next, "Cm"));
        let commands = named.unwrap_or_else(|| {
            let names = default_commands.iter();
            names.map(|name| (*name).to_owned()).collect()
        });
        assert!(!commands.is_empty(), "no command for {line}");
        for command in commands {
            by_command.entry(command).or_default().extend(options(line));
        }
    }
}

/// Returns all options on a page.
fn all_options(page: &str) -> Options {
    page.lines().flat_map(options).collect()
}

/// Returns the words after a macro in the items of a list.
fn items(lines: &[&str], macro_name: &str) -> BTreeSet<String> {
    lines
        .iter()
        .filter(|line| line.starts_with(".It "))
        .flat_map(|line| macro_words(line, macro_name))
        .collect()
}

#[test]
fn cli_matches_its_manual_page() {
    let page = page("colibri.1");
    let overview = help("colibri", &[]);
    let actual = listed_commands(&overview);
    assert!(actual.len() > 10, "{overview}");
    let mut described = items(&section(&page, "DESCRIPTION"), "Cm");
    assert!(described.remove("help"), "{described:?}");
    assert_eq!(described, actual);
    let in_synopsis: BTreeSet<String> = section(&page, "SYNOPSIS")
        .iter()
        .filter(|line| line.starts_with(".Cm"))
        .flat_map(|line| macro_words(line, "Cm"))
        .collect();
    assert_eq!(in_synopsis, actual, "synopsis");

    let common = listed_options(&overview);
    let mut on_page = BTreeMap::new();
    collect_options(&page, "Options of all commands", &[""], &mut on_page);
    assert_eq!(on_page.remove("").unwrap(), common);
    let spawning = ["run", "spawn", "explain", "acp"];
    collect_options(
        &page,
        "Options of run, spawn, explain and acp",
        &spawning,
        &mut on_page,
    );
    collect_options(&page, "Options of the other commands", &[], &mut on_page);

    let mut all = common.clone();
    for command in &actual {
        let options_of_command: Options = listed_options(&help("colibri", &[command]))
            .difference(&common)
            .cloned()
            .collect();
        all.extend(options_of_command.clone());
        assert_eq!(
            on_page.remove(command).unwrap_or_default(),
            options_of_command,
            "{command}"
        );
    }
    assert!(on_page.is_empty(), "unknown commands: {on_page:?}");
    assert_eq!(all_options(&page), all, "options in the page");
}

#[test]
fn daemon_matches_its_manual_page() {
    let page = page("colibri-daemon.8");
    let actual = listed_options(&help("colibri-daemon", &[]));
    assert!(actual.contains("--state-dir"), "{actual:?}");
    let in_description = section(&page, "DESCRIPTION");
    let in_description: Options = in_description
        .iter()
        .flat_map(|line| options(line))
        .collect();
    assert_eq!(in_description, actual);
    assert_eq!(all_options(&page), actual);

    let sample = read("docs/colibri.toml");
    // The page names the sample for the keys of presets.
    let (settings, rest) = sample.split_once("# [agent.").unwrap();
    let (_, profiles) = rest.split_once("# [profile.").unwrap();
    let keys = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# "));
        // The last part of the header of a table is a key.
        let key = |line: &str| match line.strip_prefix('[') {
            Some(header) => header
                .trim_matches(['[', ']'])
                .rsplit('.')
                .next()
                .map(str::to_owned),
            None => line.split_once(" = ").map(|(key, _)| key.to_owned()),
        };
        lines
            .filter_map(key)
            .filter(|key| {
                key.chars()
                    .all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
            })
            .collect()
    };
    assert!(keys(settings).contains("retain_bytes"));
    assert_eq!(items(&section(&page, "Settings"), "Cm"), keys(settings));
    assert!(keys(profiles).contains("limits"));
    assert_eq!(items(&section(&page, "Profiles"), "Cm"), keys(profiles));

    let sources =
        read("crates/colibri-config/src/settings.rs") + &read("crates/colibri-daemon/src/start.rs");
    let read_variables: BTreeSet<String> = sources
        .split('"')
        .filter(|word| {
            word.starts_with("COLIBRI_") && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        })
        .map(str::to_owned)
        .collect();
    let mut on_page = items(&section(&page, "ENVIRONMENT"), "Ev");
    on_page.retain(|name| name.starts_with("COLIBRI_"));
    assert_eq!(on_page, read_variables);
}

#[test]
fn helper_matches_its_manual_page() {
    let page = page("colibri-jail-helper.8");
    let source = read("crates/colibri-jail-helper/src/request.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let words = || source.split('"').skip(1).step_by(2);
    let actual: Options = words()
        .filter(|word| {
            word.len() > 2
                && word.starts_with("--")
                && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        })
        .map(str::to_owned)
        .collect();
    assert!(actual.contains("--workdir"), "{actual:?}");
    assert_eq!(all_options(&page), actual);

    let verbs = words()
        .find_map(|word| word.strip_prefix("no verb; give "))
        .unwrap();
    let verbs: BTreeSet<String> = verbs
        .replace(" or ", ", ")
        .split(", ")
        .map(str::to_owned)
        .collect();
    assert_eq!(items(&section(&page, "DESCRIPTION"), "Cm"), verbs);

    let errors = ["error.rs", "sys/mod.rs"]
        .map(|file| read(&format!("crates/colibri-jail-helper/src/{file}")))
        .concat();
    for code in ["64", "71", "77"] {
        let is_stated = |form: &str| errors.contains(&form.replace("CODE", code));
        assert!(
            is_stated("=> CODE,") || is_stated("EXIT_FAILED: c_int = CODE;"),
            "{code}"
        );
        assert!(section(&page, "EXIT STATUS").contains(&format!(".It {code}").as_str()));
    }
}

#[test]
fn policy_keys_match_their_manual_page() {
    // A field that is not read from the file is a comment here.
    let source = read("crates/colibri-jail-helper/src/policy.rs");
    let source = source.replace("#[serde(skip)]\n    ", "#");
    let mut keys = BTreeSet::new();
    for name in ["Policy", "Rule", "HelperLimits"] {
        let body = source
            .split(&format!("struct {name} {{\n"))
            .nth(1)
            .expect(name);
        for line in body.lines().take_while(|line| *line != "}") {
            let field = line.trim().trim_start_matches("pub(crate) ");
            match field.split_once(": ") {
                Some((key, _)) if !field.starts_with(['/', '#']) => keys.insert(key.to_owned()),
                _ => false,
            };
        }
    }
    // The key of `[[rule]]` is `rule`.
    assert!(keys.remove("rules"), "{keys:?}");
    let page = page("helper.toml.5");
    assert_eq!(items(&section(&page, "DESCRIPTION"), "Cm"), keys);
    assert!(page.contains("\n.Cm [[rule]]\n"));

    for text in [
        page.as_str(),
        &read("crates/colibri-jail-helper/helper.toml.freebsd"),
        &read("crates/colibri-jail-helper/helper.toml.linux"),
    ] {
        let used: BTreeSet<_> = text
            .lines()
            .filter(|line| !line.starts_with('.'))
            .filter_map(|line| line.trim_start_matches("# ").split_once(" = "))
            .map(|(key, _)| key.to_owned())
            .collect();
        assert!(used.len() > 7 && used.is_subset(&keys), "{used:?}");
    }
}

#[test]
fn examples_use_existing_options() {
    let mut actual = listed_options(&help("colibri-daemon", &[]));
    let overview = help("colibri", &[]);
    for command in listed_commands(&overview) {
        actual.extend(listed_options(&help("colibri", &[&command])));
    }
    actual.extend(all_options(&page("colibri-jail-helper.8")));
    let mut count = 0;
    for name in [
        "colibri.1",
        "colibri-daemon.8",
        "colibri-jail-helper.8",
        "helper.toml.5",
    ] {
        let page = page(name);
        // Options after `--` belong to the agent.
        let words = page
            .lines()
            .flat_map(|line| line.split_whitespace().take_while(|word| *word != "--"))
            .filter(|word| word.starts_with("--"));
        for word in words {
            assert!(actual.contains(word), "{name}: {word}");
            count += 1;
        }
    }
    assert!(count > 10, "{count} options in examples");
}

#[test]
fn cross_references_name_existing_pages() {
    let names: BTreeSet<String> = fs::read_dir(repository().join("docs/man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    for name in &names {
        let page = page(name);
        let (title, chapter) = name.rsplit_once('.').unwrap();
        assert!(
            page.contains(&format!("\n.Dt {} {chapter}\n", title.to_uppercase())),
            "{name}"
        );
        for (at, line) in page.lines().enumerate() {
            let mut words = line.split_whitespace();
            let (".Xr", Some(other), Some(chapter)) =
                (words.next().unwrap_or_default(), words.next(), words.next())
            else {
                continue;
            };
            if other.starts_with("colibri") || other.starts_with("helper") {
                let referenced = format!("{other}.{chapter}");
                assert!(
                    names.contains(&referenced),
                    "{name}:{}: {referenced}",
                    at + 1
                );
            }
        }
    }
}
