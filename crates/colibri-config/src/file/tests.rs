//! All mistakes are reported with their position and without secrets.

use super::*;
use crate::fields::fields_of;
use crate::settings::HookSettings;
use crate::validate::profile_keys;
use colibri_jail_core::{JailConfig, Limits};
use colibri_presets::{FixedFile, Key, Preset};
use std::collections::HashMap;

impl ConfigFile {
    /// Does the same as [`ConfigFile::read_settings`] with a text.
    pub(crate) fn parse_settings(path: &Path, text: &str) -> Result<PartialSettings, ConfigError> {
        validate(path, text, Scope::Settings).map(|file| file.settings)
    }
}

fn parse(text: &str) -> Result<ConfigFile, ConfigError> {
    ConfigFile::parse(Path::new("/etc/colibri.toml"), text)
}

fn diagnostics(text: &str) -> String {
    match parse(text) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mistakes_are_reported_with_position_and_allowed_values() {
    let mut shown = String::new();
    for text in [
        "stat_dir = \"/x\"\nfsink = \"never\"\ncolour = \"red\"\n",
        "socket = \n",
        "socket = \"/a\nstate_dir = \"/b\"\n",
        "socket = \"/a\"\nsocket = \"/b\"\n",
        "retain_bytes = \"1\"\n",
        "segment_bytes = 1\nprivilege = \"SUDO\"\nstate_dir = \"state\"\nhelper = \"helper\"\n",
        "segment_bytes = 8192\nretain_bytes = 8191\n",
        "fsync_interval_ms = 5\n",
        "fsync = \"sometimes\"\n",
        "profile = 5\n",
        "[profile]\nreview = 5\n\"a b\" = {}\n",
        "[profile.review]\nruntme = \"pi\"\nruntime = \"pie\"\ncwd = \"work\"\nrestart_delay = \"soon\"\nrestart = \"sometimes\"\nargs = \"x\"\n",
        "[profile.review]\nprogram = \"\"\nrestart_delay = \"1s\"\n",
        "[profile.review]\nenv_file = \"review.env\"\nsecrets = [\"A=B\"]\n",
        "[profile.review.jail]\npth = \"/srv\"\nname = \"-web\"\npath = \"srv\"\nip4 = \"none\"\nuser = 5\nallow = [\"x\"]\nmounts = [{ source = \"work\" }, { src = \"/a\" }]\n",
        "[profile.review.jail.limits]\nmemory = \"1\"\nmemry = \"1G\"\n[profile.other.jail]\nlimits = { wall_time = \"soon\" }\n",
        "[profile.review]\njail = { name = \"web\", ip4 = \"new\" }\n",
        "[profile.review]\njail = { path = \"/\" }\nenv = { LD_PRELOAD = \"x\" }\n",
        "autostart = \"review\"\n",
        "[[autostart]]\nprofile = \"reviw\"\n[[autostart]]\nprofile = 5\n[profile.review]\nprogram = \"pi\"\n",
        "[[autostart]]\nprogram = \"pi\"\n",
        "[[autostart]]\nname = \"night\"\ncolour = 1\n[profile.night]\nruntime = \"pi\"\n",
        "[[autostart]]\nname = \"night\"\n",
        "[[autostart]]\nname = \"a\"\nprogram = \"pi\"\n[[autostart]]\nname = \"a\"\nprogram = \"pi\"\n",
        "fsync = \"\\u001b[2J\"\n",
        "# grüße\n\tsocket = \"a\"\u{7f}\n",
    ] {
        shown.push_str(&format!("==== {text:?}\n{}\n\n", diagnostics(text)));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn diagnostic_contains_no_possible_secret() {
    for text in [
        "[profile.a]\nenv = \"TOKEN=s3cret\"\n",
        "[profile.a]\nenv = [\"TOKEN=s3cret\"]\n",
        "[profile.a.env]\nTOKEN = [\"s3cret\"]\n",
        "[profile.a]\nruntime = \"pie\"\n[profile.a.env]\nTOKEN = { x = \"s3cret\" }\n",
        "[profile.a]\nevn = { TOKEN = \"s3cret\" }\n",
        "[profile.a.evn]\nTOKEN = \"s3cret\"\n",
        "[profile.a]\nTOKEN = \"s3cret\"\n",
        "TOKEN = \"s3cret\"\n",
        "env.TOKEN = \"s3cret\"\n",
        "profile = { a = { env = { TOKEN = \"s3cret\" }, runtime = \"pie\" } }\n",
        "profile = [\"s3cret\"]\n",
        "autostart = { env = { TOKEN = \"s3cret\" } }\n",
        "[profile.a.env]\nTOKEN = \"s3cret\n",
        "[profile.a.env]\nTOKEN = s3cret\n",
        "[profile.a.env]\nTOKEN = \"\"\"x\ns3cret\\q\n\"\"\"\n",
        "[profile.a.env]\nTOKEN = \"1\"\nTOKEN = \"s3cret\"\n",
        "[profile.a]\nenv = { TOKEN = \"s3cret\", \"x }\n",
        "[profile.a.env]\nA = \"1\"\n[b]\nTOKEN = \"s3cret\n",
        "[profile.a.env]\n\"A=B\" = \"s3cret\"\n",
        "[profile.a]\njail = { path = \"/\" }\nenv = { LD_PRELOAD = \"s3cret\" }\n",
        "[[autostart]]\nname = \"a\"\nenv = { A = \"s3cret\" }\nruntime = \"x\"\n",
    ] {
        let shown = diagnostics(text);
        assert_ne!(shown, "accepted", "{text}");
        assert!(shown.starts_with("/etc/colibri.toml:"), "{shown}");
        assert!(!shown.contains("s3cret"), "{text}\n{shown}");
    }
    let whole = parse("[profile.a]\nprogram = \"p\"\nenv = { TOKEN = \"s3cret\" }\n").unwrap();
    assert!(!format!("{:?}", whole.profiles).contains("s3cret"));
}

#[test]
fn excerpt_is_bounded_and_free_of_control_characters() {
    let long = "x".repeat(10_000);
    for (text, marked) in [
        (format!("socket = \"{long}\"\n"), "xxx"),
        (format!("helper = \"h\" # {long}\n"), "\"h\""),
        ("privilege = \"\u{9b}31m日本\u{202e}\"\n".to_owned(), "?31m"),
    ] {
        let shown = diagnostics(&text);
        let excerpt = shown.split_once('\n').unwrap().1;
        assert!(excerpt.contains(marked), "{excerpt}");
        for line in excerpt.lines() {
            assert!(line.chars().count() < 200, "{}", line.chars().count());
            assert!(
                !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
                "{line:?}"
            );
        }
    }
}

#[test]
fn valid_file_is_read_completely() {
    let file = parse(
        r#"
        retain_bytes = 8192
        [profile.review]
        program = "pi"
        args = ["--mode", "json"]
        runtime = "pi"
        jail = { path = "/srv/agent" }
        env = { LANG = "C" }
        secrets = ["API_KEY"]
        restart = "on-failure"
        restart_delay = "2s"
        [profile.plain]
        [[autostart]]
        profile = "review"
        [[autostart]]
        profile = "review"
        name = "second"
        restart_limit = 3
        [[autostart]]
        name = "own"
        program = "sh"
        "#,
    )
    .unwrap();
    assert_eq!(file.settings.retain_bytes, Some(8192));
    assert_eq!(file.profiles["plain"], Profile::default());
    let keys: Vec<&str> = file
        .autostart
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(keys, ["review", "second", "own"]);
    let first = file.autostart[0].merged(&file.profiles).unwrap();
    assert_eq!(
        (
            first.request.name.as_deref(),
            first.request.program.as_deref()
        ),
        (Some("review"), Some("pi"))
    );
    let second = file.autostart[1].merged(&file.profiles).unwrap();
    assert_eq!(second.request.name.as_deref(), Some("second"));
    let restart = second.request.restart.unwrap();
    assert_eq!((restart.limit, restart.delay_ms), (Some(3), Some(2000)));
}

#[test]
fn settings_are_readable_despite_an_invalid_profile() {
    let path = Path::new("/etc/colibri.toml");
    let settings =
        ConfigFile::parse_settings(path, "socket = \"/s\"\n[profile.a]\nx = 1\n").unwrap();
    assert_eq!(settings.socket.as_deref(), Some(Path::new("/s")));
    for text in ["x = 1\n[profile.a]\n", "socket = 1\n", "[profile.a\n"] {
        assert!(ConfigFile::parse_settings(path, text).is_err(), "{text}");
    }
}

#[test]
fn unknown_engine_or_backend_in_the_file_has_a_position() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("colibri.toml");
    let load = |text: &str, overrides: PartialSettings| {
        std::fs::write(&path, text).unwrap();
        let lookup = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        let sources = ConfigSources {
            path: Some(path.clone()),
            overrides,
            ..ConfigSources::default()
        };
        sources
            .load(lookup)
            .map(|config| config.settings.engine.name().to_owned())
            .map_err(|error| error.to_string())
    };
    for (text, position, other) in [
        ("\nengine = \"docker\"\n", ":2:10: ", "bubblewrap, freebsd"),
        ("\nprivilege = \"sudo\"\n", ":2:13: ", "helper, mdo, none"),
        (
            "x = 1\nengine = \"docker\"\nretain_bytes = \"1\"\n",
            ":2:10: ",
            ":3:16: ",
        ),
    ] {
        let message = load(text, PartialSettings::default()).unwrap_err();
        let position = format!("{}{position}", path.display());
        assert!(
            message.contains(&position) && message.contains(other),
            "{message}"
        );
    }
    let overrides = PartialSettings {
        engine: Some("freebsd".to_owned()),
        ..PartialSettings::default()
    };
    assert_eq!(load("engine = \"docker\"\n", overrides).unwrap(), "freebsd");
}

#[test]
fn unusable_env_file_has_a_position() {
    let file = parse("\n\n[profile.a]\nenv_file = \"/no/such/file\"\n").unwrap();
    let unusable = file.unusable_env_files();
    assert_eq!(
        (unusable.len(), unusable[0].line, unusable[0].column),
        (1, 4, 12),
        "{unusable:?}"
    );
}

#[test]
fn named_file_wins_over_the_default_paths() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().display().to_string();
    let env = HashMap::from([("HOME", home.clone())]);
    let lookup = |name: &str| env.get(name).cloned();
    let path = dir.path().join(".config/colibri/colibri.toml");
    assert_eq!(default_paths(lookup).first(), Some(&path));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "retain_bytes = 8192\n").unwrap();
    let read = ConfigFile::read(None, lookup).unwrap();
    assert_eq!(
        (read.path(), read.settings.retain_bytes),
        (Some(path.as_path()), Some(8192))
    );
    let absent = dir.path().join("absent.toml");
    let message = ConfigFile::read(Some(&absent), lookup)
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("cannot read settings file"), "{message}");
}

#[test]
fn sample_file_is_valid_and_contains_every_key() {
    let sample = include_str!("../../../../docs/colibri.toml");
    let settings: String = sample
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with('[') || line.contains(" = "))
        .flat_map(|line| [line, "\n"])
        .collect();
    // The interval is valid only with fsync = "interval".
    let settings = settings.replace("fsync = \"never\"", "fsync = \"interval\"");
    // A terminal has no empty input.
    let settings = settings.replace("no_input = true", "no_input = false");
    let file = parse(&settings).unwrap();
    assert_eq!(file.settings.fsync_interval_ms, Some(1000));
    for field in fields_of::<PartialSettings>()
        .iter()
        .chain(&profile_keys())
        .chain(fields_of::<JailConfig>())
        .chain(fields_of::<Limits>())
        .chain(fields_of::<HookSettings>())
        .chain(fields_of::<Preset>())
        .chain(fields_of::<Key>())
        .chain(fields_of::<FixedFile>())
    {
        assert!(
            settings.contains(&format!("\n{field} = "))
                || settings.contains(&format!(".{field}]"))
                || settings.contains(&format!("[[{field}]]\n"))
                || settings.starts_with("socket = ") && *field == "socket",
            "{field} is not in the sample"
        );
    }
    assert_eq!((file.profiles.len(), file.autostart.len()), (1, 1));
}

mod any {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_has_a_printable_result(
            text in "(\\[\\[?[a-z.]{0,9}\\]\\]?\n|(profile|env|jail|socket|autostart|name)( = |[.])|[\"'{}\\[\\],=\n\t a-z1é]{0,8}){0,24}",
        ) {
            let shown = diagnostics(&text);
            prop_assert!(!shown.is_empty());
        }
    }
}

#[test]
fn jails_of_profiles_and_autostart_entries_are_listed() {
    let file = parse(
        "[profile.web]\nprogram = \"pi\"\njail = { name = \"web\" }\n[profile.limits]\njail = { limits = { cpu = 1 } }\n[profile.none]\nprogram = \"pi\"\n[[autostart]]\nname = \"night\"\nprogram = \"pi\"\njail = { path = \"/j\" }\n[[autostart]]\nprofile = \"web\"\n",
    );
    let file = file.unwrap();
    let profiles: Vec<_> = file.profile_jails().collect();
    assert_eq!(profiles.len(), 1);
    assert_eq!(profiles[0].0, "web");
    assert_eq!(profiles[0].1.name.as_deref(), Some("web"));
    let entries: Vec<_> = file.autostart_jails().collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].0, "night");
    assert_eq!(entries[0].1.path.as_deref(), Some("/j"));
}
