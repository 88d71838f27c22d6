//! Precedence of sources, defaults and refused values.

use super::*;
use crate::ConfigFile;
use std::collections::HashMap;

fn resolve(
    flags: PartialSettings,
    env: &[(&str, &str)],
    file: &str,
) -> Result<Settings, SettingsError> {
    let env: HashMap<_, _> = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let lookup = |name: &str| env.get(name).cloned();
    let file = ConfigFile::parse_settings(Path::new("colibri.toml"), file)?;
    let partial = flags.or(PartialSettings::from_env(lookup)).or(file);
    Settings::resolve(&partial, lookup, &Registries::default())
}

#[test]
fn flags_win_over_environment_file_and_defaults() {
    let file = "state_dir = \"/file\"\nengine = \"freebsd\"\n";
    let from_file = resolve(PartialSettings::default(), &[("HOME", "/h")], file).unwrap();
    assert_eq!(from_file.state_dir, Path::new("/file"));
    assert_eq!(from_file.engine.name(), FreebsdJail::NAME);
    assert_eq!(from_file.backend.name(), "mdo");
    let env = [
        ("COLIBRI_STATE_DIR", "/env"),
        ("COLIBRI_JAIL_ENGINE", "bubblewrap"),
    ];
    let from_env = resolve(PartialSettings::default(), &env, file).unwrap();
    assert_eq!(from_env.state_dir, Path::new("/env"));
    assert_eq!(from_env.backend.name(), "none");
    let flags = PartialSettings {
        state_dir: Some("/flag".into()),
        ..PartialSettings::default()
    };
    assert_eq!(
        resolve(flags, &env, file).unwrap().state_dir,
        Path::new("/flag")
    );
    let state = [("XDG_STATE_HOME", "/x")];
    assert_eq!(
        resolve(PartialSettings::default(), &state, "")
            .unwrap()
            .state_dir,
        Path::new("/x/colibri")
    );
}

#[test]
fn invalid_setting_is_reported_with_allowed_values() {
    for (env, file, expected) in [
        (
            ("COLIBRI_JAIL_ENGINE", "docker"),
            "",
            &["docker", "freebsd", "bubblewrap"][..],
        ),
        (
            ("COLIBRI_JAIL_PRIV_MODE", "sudo"),
            "",
            &["sudo", "mdo", "helper", "none"],
        ),
        (
            ("HOME", "/h"),
            "colour = 1\n",
            &["colibri.toml:1:1:", "colour"],
        ),
        (
            ("HOME", "/h"),
            "segment_bytes = 1\n",
            &["segment_bytes", "4096"],
        ),
        (
            ("HOME", "/h"),
            "segment_bytes = 8192\nretain_bytes = 8191\n",
            &["retain_bytes", "8191", "8192", "segment_bytes"],
        ),
        (
            ("HOME", "/h"),
            "retain_bytes = 4095\n",
            &["retain_bytes", "4095", "4096"],
        ),
        (
            ("HOME", "/h"),
            "\nfsync = \"sometimes\"\n",
            &[":2:9:", "sometimes", "never", "interval", "always"],
        ),
        (
            ("HOME", "/h"),
            "fsync_interval_ms = 5\n",
            &["fsync_interval_ms", "fsync = \"interval\""],
        ),
        (
            ("HOME", "/h"),
            "fsync = \"always\"\nfsync_interval_ms = 5\n",
            &["fsync_interval_ms", "fsync = \"interval\""],
        ),
        (
            ("HOME", "/h"),
            "fsync = \"interval\"\nfsync_interval_ms = 0\n",
            &["fsync_interval_ms", "1 to 3600000", "\"always\""],
        ),
        (
            ("COLIBRI_METRICS", "0.0.0.0:9464"),
            "",
            &["metrics", "0.0.0.0:9464", "loopback", "127.0.0.1:9464"],
        ),
        (
            ("HOME", "/h"),
            "[[hook]]\non = [\"done\"]\ncommand = [\"/x\"]\n[[hook]]\non = [\"asleep\"]\ncommand = [\"/x\"]\n",
            &["5:7", "asleep", "blocked"],
        ),
        (
            ("HOME", "/h"),
            "[[hook]]\non = [\"done\"]\ncommand = [\"/x\"]\nshell = true\n",
            &["4:1", "shell", "timeout_ms"],
        ),
        (
            ("HOME", "/h"),
            "fsync = \"interval\"\nfsync_interval_ms = 3600001\n",
            &["fsync_interval_ms", "3600001", "\"never\""],
        ),
    ] {
        let message = match resolve(
            PartialSettings::default(),
            &[env, ("XDG_STATE_HOME", "/x")],
            file,
        ) {
            Ok(_) => panic!("{env:?} {file} was accepted"),
            Err(error) => error.to_string(),
        };
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part}");
        }
    }
}

#[test]
fn journal_options_follow_the_settings() {
    let mib = 1 << 20;
    for (file, segment_bytes, retain_bytes, fsync) in [
        ("", 64 * mib, Some(512 * mib), Fsync::Never),
        ("fsync = \"never\"", 64 * mib, Some(512 * mib), Fsync::Never),
        (
            "fsync = \"always\"",
            64 * mib,
            Some(512 * mib),
            Fsync::Always,
        ),
        (
            "fsync = \"interval\"",
            64 * mib,
            Some(512 * mib),
            Fsync::Interval(Duration::from_secs(1)),
        ),
        (
            "fsync = \"interval\"\nfsync_interval_ms = 20",
            64 * mib,
            Some(512 * mib),
            Fsync::Interval(Duration::from_millis(20)),
        ),
        (
            "segment_bytes = 4096\nretain_bytes = 4096",
            4096,
            Some(4096),
            Fsync::Never,
        ),
        ("retain_bytes = 0", 64 * mib, None, Fsync::Never),
        ("retain_bytes = 4096", 4096, Some(4096), Fsync::Never),
        ("retain_bytes = 8388608", mib, Some(8 * mib), Fsync::Never),
        (
            "retain_bytes = 1099511627776",
            64 * mib,
            Some(1 << 40),
            Fsync::Never,
        ),
    ] {
        let settings = resolve(PartialSettings::default(), &[("HOME", "/h")], file).unwrap();
        let expected = JournalOptions {
            segment_bytes,
            retain_bytes,
            fsync,
            ..JournalOptions::default()
        };
        assert_eq!(settings.journal, expected, "{file}");
    }
}
