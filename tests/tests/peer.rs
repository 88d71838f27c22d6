//! A client connects only to a daemon of root, of the client's user, or of the configured user.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use colibri_tests::helper::{CALLER, OTHER, as_user, create_user, uid};
use colibri_tests::{program, test_directory, text, wait_until, write_file};

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

/// A running [`LISTENER`] of user [`OTHER`].
struct ForeignListener {
    dir: tempfile::TempDir,
    child: Child,
    log: PathBuf,
}

impl ForeignListener {
    /// Starts a listener of another user in a world-writable directory.
    fn listen() -> Self {
        create_user(CALLER);
        create_user(OTHER);
        let dir = test_directory();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(program("colibri"), dir.path().join("colibri")).unwrap();
        let log = dir.path().join("log");
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
        wait_until("the listener is ready", || listener.log().contains("ready"));
        listener
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Returns a `colibri` command of user [`CALLER`] that connects to the listener.
    fn client(&self, args: &[&str]) -> Command {
        let program = self.dir.path().join("colibri");
        let mut command = as_user(CALLER, &[&[program.to_str().unwrap()], args].concat());
        command
            .env("COLIBRI_SOCKET", self.dir.path().join("colibri.sock"))
            .env("HOME", self.dir.path())
            .env("TOKEN", "very-secret");
        command
    }

    /// Returns the number of closed connections.
    fn connections(&self) -> usize {
        self.log().matches("received").count()
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
    let uid = uid(OTHER).to_string();
    for args in [
        &["run", "--secret", "TOKEN", "--", "true"][..],
        &["spawn", "--secret", "TOKEN", "--", "true"],
        &["ps"],
        &["send", "some-agent", "very-secret"],
        &["events"],
        &["shutdown"],
    ] {
        let before = listener.connections();
        let output = listener.client(args).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {message}");
        for part in ["colibri.sock", &format!("uid {uid}"), "COLIBRI_DAEMON_USER"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        wait_until("the listener has logged the connection", || {
            listener.connections() > before
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
    let uid = uid(OTHER).to_string();
    for (setting, variable) in [
        (None, Some(OTHER)),
        (None, Some(uid.as_str())),
        (Some(OTHER), None),
        (Some(uid.as_str()), None),
    ] {
        let file = config.join("colibri.toml");
        let settings = setting.map_or(String::new(), |user| format!("daemon_user = \"{user}\"\n"));
        fs::write(&file, settings).unwrap();
        let before = listener.connections();
        // The client waits for an answer, which the listener does not send.
        let mut child = listener
            .client(&["ps"])
            .envs(variable.map(|user| ("COLIBRI_DAEMON_USER", user)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("the client has sent a request", || {
            let log = listener.log();
            listener.connections() > before && log.lines().last().unwrap().contains("version")
        });
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut unknown_user = listener.client(&["ps"]);
    unknown_user.env("COLIBRI_DAEMON_USER", "no-such-user-here");
    let output = unknown_user.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        text(&output.stderr).contains("no-such-user-here"),
        "{output:?}"
    );
}

#[test]
fn daemon_of_another_user_is_not_started() {
    let listener = ForeignListener::listen();
    let absent = listener.dir.path().join("absent.sock");
    write_file(
        &listener.dir.path().join("colibri-daemon"),
        "#!/bin/sh\necho attempted >&2\nexit 1\n",
        0o755,
    );
    let uid = uid(OTHER).to_string();
    for args in [&["run", "--", "true"][..], &["ps"], &["events"]] {
        let error = |user: &str| {
            let mut client = listener.client(args);
            client.env("COLIBRI_SOCKET", &absent);
            client.env("COLIBRI_DAEMON_USER", user);
            let output = client.output().unwrap();
            assert_eq!(output.status.code(), Some(3), "{args:?}: {output:?}");
            text(&output.stderr)
        };
        let own = error(CALLER);
        assert!(own.contains("attempted"), "{args:?}: {own}");
        let other = error(OTHER);
        assert!(!other.contains("attempted"), "{args:?}: {other}");
        for part in ["absent.sock", &format!("uid {uid}"), "run as root: "] {
            assert!(other.contains(part), "{args:?}: {part}: {other}");
        }
    }
}
