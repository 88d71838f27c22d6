//! A client connects only to a daemon of root, of its own user, or of the configured user.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use colibri_tests::helper::{CALLER, OTHER, as_user, make_user, uid};
use colibri_tests::{eventually, program, text};

/// Python program that listens as another user and records the bytes it receives.
const LISTENER: &str = r#"
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.settimeout(5)
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except TimeoutError:
        pass
    print(f"received {len(received)} bytes: {received!r}", flush=True)
    connection.close()
"#;

struct Stranger {
    dir: tempfile::TempDir,
    child: Child,
    said: PathBuf,
}

impl Stranger {
    /// Starts a listener of another user in a world-writable directory.
    fn listen() -> Self {
        make_user(CALLER);
        make_user(OTHER);
        let dir = tempfile::Builder::new()
            .prefix("colibri-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(program("colibri"), dir.path().join("colibri")).unwrap();
        let said = dir.path().join("said");
        let socket = dir.path().join("colibri.sock");
        let child = as_user(
            OTHER,
            &["python3", "-c", LISTENER, socket.to_str().unwrap()],
        )
        .stdout(fs::File::create(&said).unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
        let stranger = Self { dir, child, said };
        eventually("it listens", || {
            stranger.said().contains("ready").then_some(())
        });
        stranger
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Runs `colibri` with that socket.
    fn call(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let program = self.dir.path().join("colibri");
        let mut command: Command = as_user(CALLER, &[&[program.to_str().unwrap()], args].concat());
        command
            .env("COLIBRI_SOCKET", self.dir.path().join("colibri.sock"))
            .env("HOME", self.dir.path())
            .env("TOKEN", "very-secret");
        command.envs(variables.iter().copied()).output().unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn socket_of_another_user_gets_no_byte() {
    let stranger = Stranger::listen();
    let number = uid(OTHER).to_string();
    for args in [
        &["run", "--secret", "TOKEN", "--", "true"][..],
        &["spawn", "--secret", "TOKEN", "--", "true"],
        &["ps"],
        &["send", "some-agent", "very-secret"],
        &["events"],
        &["shutdown"],
    ] {
        let before = stranger.said().matches("received").count();
        let output = stranger.call(args, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {said}");
        for part in [
            "colibri.sock",
            &format!("uid {number}"),
            "COLIBRI_DAEMON_USER",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        eventually("the listener has seen the connection", || {
            (stranger.said().matches("received").count() > before).then_some(())
        });
    }
    for line in stranger.said().lines().skip(1) {
        assert_eq!(line, "received 0 bytes: b''");
    }
}

#[test]
fn configured_daemon_user_is_trusted() {
    let stranger = Stranger::listen();
    let config = stranger.dir.path().join(".config/colibri");
    fs::create_dir_all(&config).unwrap();
    let number = uid(OTHER).to_string();
    for (setting, variable) in [
        (None, Some(OTHER)),
        (None, Some(number.as_str())),
        (Some(OTHER), None),
        (Some(number.as_str()), None),
    ] {
        let file = config.join("colibri.toml");
        let text_of = setting.map_or(String::new(), |user| format!("daemon_user = \"{user}\"\n"));
        fs::write(&file, text_of).unwrap();
        let before = stranger.said().matches("received").count();
        let variables: Vec<(&str, &str)> = variable
            .iter()
            .map(|user| ("COLIBRI_DAEMON_USER", *user))
            .collect();
        // The answer is invalid, but the request was sent.
        let program = stranger.dir.path().join("colibri");
        let mut child = as_user(CALLER, &[program.to_str().unwrap(), "ps"])
            .env("COLIBRI_SOCKET", stranger.dir.path().join("colibri.sock"))
            .env("HOME", stranger.dir.path())
            .envs(variables)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it is asked", || {
            let said = stranger.said();
            (said.matches("received").count() > before && said.contains("version")).then_some(())
        });
        let _ = child.kill();
        let _ = child.wait();
    }
    let output = stranger.call(&["ps"], &[("COLIBRI_DAEMON_USER", "no-such-user-here")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        text(&output.stderr).contains("no-such-user-here"),
        "{output:?}"
    );
}
