//! Replaces request fields in error messages by command-line options.
//!
//! The libraries write the name of a request field in backquotes, because their messages also reach users of the
//! protocol and of the settings file.

use clap::CommandFactory;

use crate::args::CliArguments;

/// Fields of spawn requests and jails whose option of `run` has another name. A message with `name` is about the name of
/// a jail, because this program validates the name of an agent before it sends a request.
const OPTIONS: [(&str, &str); 11] = [
    ("name", "jail-name"),
    ("path", "jail-path"),
    ("template", "jail-template"),
    ("devfs", "jail-devfs"),
    ("fdescfs", "jail-fdescfs"),
    ("ip4", "jail-ip4"),
    ("user", "jail-user"),
    ("mounts", "mount or --workspace"),
    ("workdir", "workspace"),
    ("credentials", "credential"),
    ("home_files", "home-file"),
];

/// Returns the message with each field name in backquotes replaced by its option of `run`.
pub(crate) fn with_options(message: &str) -> String {
    // A path follows the option that takes it.
    let mut replaced = message.replace("`mounts` /", "--mount /");
    for (field, option) in OPTIONS {
        replaced = replaced.replace(&format!("`{field}`"), &format!("--{option}"));
    }
    let command = CliArguments::command();
    let run = command.find_subcommand("run");
    for option in run.iter().flat_map(|run| run.get_arguments()) {
        if let Some(option) = option.get_long() {
            let field = option.replace('-', "_");
            replaced = replaced.replace(&format!("`{field}`"), &format!("--{option}"));
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use colibri_client::SpawnRequest;
    use serde_json::json;

    #[test]
    fn each_request_field_has_an_option_of_run() {
        let request: SpawnRequest = serde_json::from_value(json!({
            "profile": "p", "program": "sh", "args": ["x"], "env": {"A": "1"}, "cwd": "/", "runtime": "pi", "name": "n",
            "no_input": true, "terminal": {}, "umask": "022", "restart": {"policy": "always"},
            "jail": {"name": "n", "path": "/", "template": "/", "devfs": true, "fdescfs": true, "ip4": "disable", "user": "u", "mounts": [{"source": "/s"}],
                "workdir": "/w", "hostname": "h", "allow": ["h:1"], "credentials": ["K@h"], "home_files": [{"target": "x"}], "best_effort": true,
                "limits": {"memory": "1G", "processes": 9, "cpu": 1, "open_files": 9, "wall_time": 9}},
        }))
        .unwrap();
        let request = serde_json::to_value(request).unwrap();
        let mut fields = Vec::new();
        for object in [&request, &request["jail"], &request["jail"]["limits"]] {
            fields.extend(object.as_object().unwrap().keys().cloned());
        }
        // These have no option, or options for their fields.
        fields.retain(|field| !["program", "args", "jail", "limits"].contains(&field.as_str()));
        assert!(fields.len() > 20, "{fields:?}");
        let mut command = crate::args::CliArguments::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let help = run.render_help().to_string();
        for field in fields {
            for option in with_options(&format!("`{field}`")).split(" or ") {
                assert!(
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                    "{option}"
                );
            }
        }
    }

    #[test]
    fn only_field_names_in_backquotes_are_replaced() {
        assert_eq!(
            with_options("mount it with `mounts` /tmp/x"),
            "mount it with --mount /tmp/x"
        );
        assert_eq!(
            with_options("`mounts` needs a jail; add `path`, or remove `mounts`; `made up` mounts"),
            "--mount or --workspace needs a jail; add --jail-path, or remove --mount or --workspace; `made up` mounts"
        );
    }
}
