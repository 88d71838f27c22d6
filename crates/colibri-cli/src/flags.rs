//! Replaces request fields in error messages of the libraries by command-line flags.

/// Fields of a jail, of its limits and of a request, and their flags. Libraries write field names in backquotes.
const FLAGS: &[(&str, &str)] = &[
    ("name", "--jail-name"),
    ("path", "--jail-path"),
    ("ip4", "--jail-ip4"),
    ("user", "--jail-user"),
    ("mounts", "--mount"),
    ("workdir", "--workspace"),
    ("hostname", "--hostname"),
    ("allow", "--allow"),
    ("best_effort", "--best-effort"),
    ("memory", "--memory"),
    ("processes", "--processes"),
    ("cpu", "--cpu"),
    ("open_files", "--open-files"),
    ("wall_time", "--wall-time"),
    ("env", "--env"),
    ("cwd", "--cwd"),
    ("restart", "--restart"),
];

/// Returns the message with each field name in backquotes replaced by its flag.
pub(crate) fn shown(message: &str) -> String {
    let mut shown = message.to_owned();
    for (field, flag) in FLAGS {
        shown = shown.replace(&format!("`{field}`"), flag);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use colibri_client::{JailConfig, Limits};

    const SOURCES: &[&str] = &[
        "colibri-jail-core/src/error.rs",
        "colibri-jail-core/src/config.rs",
        "colibri-jail-core/src/limits.rs",
        "colibri-priv/src/lib.rs",
        "colibri-types/src/spawn.rs",
        "colibri-config/src/profile.rs",
        "colibri-prepare/src/error.rs",
        "colibri-prepare/src/limits.rs",
        "colibri-prepare/src/mounts.rs",
        "colibri-prepare/src/prepare.rs",
        "colibri-prepare/src/program.rs",
    ];

    fn flag(field: &str) -> Option<&'static str> {
        let found = FLAGS.iter().find(|(known, _)| *known == field);
        found.map(|(_, flag)| *flag)
    }

    #[test]
    fn every_field_that_a_message_names_has_a_flag() {
        let mut named = 0;
        for source in SOURCES {
            let path = format!("{}/../{source}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).expect(source);
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let lines = code.lines().map(str::trim);
            for line in lines.filter(|line| !line.starts_with("//")) {
                let words = line.split('`').skip(1).step_by(2);
                // A placeholder stands for a field of JailConfig or Limits: see below.
                for word in words.filter(|word| !word.starts_with('{')) {
                    assert!(
                        flag(word).is_some(),
                        "{word} has no flag, in {source}: {line}"
                    );
                    named += 1;
                }
            }
        }
        assert!(named > 20, "{named} fields are named");
    }

    #[test]
    fn every_field_of_a_jail_has_a_flag_that_exists() {
        let limits: Limits = serde_json::from_str(
            r#"{"memory":"1G","processes":9,"cpu":1,"open_files":9,"wall_time":9}"#,
        )
        .unwrap();
        let some = || Some("x".to_owned());
        let jail = JailConfig {
            name: some(),
            path: some(),
            ip4: some(),
            user: some(),
            mounts: vec![Default::default()],
            workdir: some(),
            hostname: some(),
            allow: vec![String::new()],
            limits: limits.clone(),
            best_effort: true,
        };
        let fields = |value: serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let mut names = fields(serde_json::to_value(jail).unwrap());
        names.retain(|name| name != "limits");
        names.extend(fields(serde_json::to_value(limits).unwrap()));
        for name in names {
            assert!(flag(&name).is_some(), "{name} has no flag");
        }
        let mut command = crate::args::Arguments::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let help = run.render_help().to_string();
        for (_, flag) in FLAGS {
            assert!(
                help.contains(&format!("{flag} ")),
                "{flag} is no flag of run"
            );
        }
    }

    #[test]
    fn fields_become_flags_and_other_words_stay() {
        assert_eq!(
            shown("`mounts` needs a jail; add `path`, or remove `mounts`; `made up` mounts"),
            "--mount needs a jail; add --jail-path, or remove --mount; `made up` mounts"
        );
    }
}
