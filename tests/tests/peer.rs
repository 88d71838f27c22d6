//! A client connects only to a daemon of root, of the client's user, or of the configured user.

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

struct ForeignListener {
    dir: tempfile::TempDir,
    child: Child,
    log: PathBuf,
}

impl ForeignListener {
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
        let log = dir.path().join("said");
        let socket = dir.path().join("colibri.sock");
        let child = as_user(
            OTHER,
            &["python3", "-c", LISTENER, socket.to_str().unwrap()],
        )
        .stdout(fs::File::create(&log).unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
        let listener = Self { dir, child, log };
        eventually("it listens", || {
            listener.log().contains("ready").then_some(())
        });
        listener
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
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

impl Drop for ForeignListener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn socket_of_another_user_gets_no_byte() {
    let listener = ForeignListener::listen();
    let number = uid(OTHER).to_string();
    for args in [
        &["run", "--secret", "TOKEN", "--", "true"][..],
        &["spawn", "--secret", "TOKEN", "--", "true"],
        &["ps"],
        &["send", "some-agent", "very-secret"],
        &["events"],
        &["shutdown"],
    ] {
        let before = listener.log().matches("received").count();
        let output = listener.call(args, &[]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {message}");
        for part in [
            "colibri.sock",
            &format!("uid {number}"),
            "COLIBRI_DAEMON_USER",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        eventually("the listener has seen the connection", || {
            (listener.log().matches("received").count() > before).then_some(())
        });
    }
    for line in listener.log().lines().skip(1) {
        assert_eq!(line, "received 0 bytes: b''");
    }
}

#[test]
fn configured_daemon_user_is_trusted() {
    let listener = ForeignListener::listen();
    let config = listener.dir.path().join(".config/colibri");
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
        let before = listener.log().matches("received").count();
        let variables: Vec<(&str, &str)> = variable
            .iter()
            .map(|user| ("COLIBRI_DAEMON_USER", *user))
            .collect();
        // The answer is invalid, but the request was sent.
        let program = listener.dir.path().join("colibri");
        let mut child = as_user(CALLER, &[program.to_str().unwrap(), "ps"])
            .env("COLIBRI_SOCKET", listener.dir.path().join("colibri.sock"))
            .env("HOME", listener.dir.path())
            .envs(variables)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it is asked", || {
            let log = listener.log();
            (log.matches("received").count() > before && log.contains("version")).then_some(())
        });
        let _ = child.kill();
        let _ = child.wait();
    }
    let output = listener.call(&["ps"], &[("COLIBRI_DAEMON_USER", "no-such-user-here")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        text(&output.stderr).contains("no-such-user-here"),
        "{output:?}"
    );
}
