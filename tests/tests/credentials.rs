//! Credentials: an agent uses a key over TLS that it does not have.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::fs;
use std::path::Path;
use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use colibri_tests::tls::{Received, Response, TlsServer};
use colibri_tests::{Daemon, test_directory, text, wait_until, write_file};
use serde_json::json;
use tempfile::TempDir;

/// Prefix of what the agent has instead.
const PLACEHOLDER: &str = "colibri-placeholder-";

/// A daemon whose proxies trust a server.
struct Setup {
    daemon: Daemon,
    server: TlsServer,
    /// Different in each test, because other tests have theirs in environments of clients. In no argument of a command.
    key: String,
    _directory: TempDir,
}

impl Setup {
    fn new() -> Self {
        let directory = test_directory();
        let echo = |received: &Received| Response {
            content_type: "text/plain",
            body: format!("{}\n", received.path()),
        };
        let server = TlsServer::start(directory.path(), echo);
        let mut daemon = Daemon::prepare();
        let mut command = daemon.command("colibri-daemon");
        command
            .env("SSL_CERT_FILE", &server.authority)
            .env("COLIBRI_LOG", "trace");
        daemon.launch_command(command);
        Self {
            daemon,
            server,
            key: format!("hidden-key-9d2e-{}", std::process::id()),
            _directory: directory,
        }
    }

    /// Runs `colibri` with the key in the variable TOKEN.
    fn cli(&self, words: &[&str]) -> Output {
        self.daemon
            .command("colibri")
            .arg("--no-autostart")
            .args(words)
            .env("TOKEN", &self.key)
            .output()
            .unwrap()
    }

    /// Runs a script in a sandbox, with options.
    fn run(&self, options: &[&str], script: &str) -> Output {
        let words = [
            &["run", "--jail-path", "/"],
            options,
            &["--", "bash", "-c", script],
        ];
        self.cli(&words.concat())
    }

    /// Returns the credential of TOKEN for the server, with a suffix.
    fn credential(&self, suffix: &str) -> String {
        format!("TOKEN@localhost:{}{suffix}", self.server.port)
    }

    /// Returns the values of a header field that the server has received.
    fn received(&self, header: &str) -> Vec<String> {
        let requests = self.server.requests();
        let values = requests.iter().filter_map(|request| request.header(header));
        values.map(str::to_owned).collect()
    }

    fn assert_without_key(&self, bytes: &[u8], source: &str) {
        let key = self.key.as_bytes();
        let has_key = bytes.windows(key.len()).any(|window| window == key);
        assert!(!has_key, "the key is in {source}");
    }

    /// Searches all files of a directory for the key; returns their number.
    fn search(&self, directory: &Path) -> usize {
        let mut files = 0;
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                files += self.search(&path);
            } else {
                files += 1;
                let content = fs::read(&path).unwrap_or_default();
                self.assert_without_key(&content, &path.display().to_string());
            }
        }
        files
    }
}

#[test]
fn only_the_server_gets_the_key() {
    let setup = Setup::new();
    let workspace = setup.daemon.path("work");
    fs::create_dir(&workspace).unwrap();
    let port = setup.server.port;
    let script = format!(
        "curl -sS -H \"Authorization: Bearer $TOKEN\" https://localhost:{port}/direct; \
         curl -sS --noproxy '' -u \"user:$TOKEN\" https://localhost:{port}/proxied; \
         curl -sS -H \"X-Other: $TOKEN\" https://127.0.0.1:{port}/address 2>&1 || true; \
         env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; \
         ulimit -c unlimited; sleep 1000 & kill -ABRT $!; wait $!; ls -l core* 2>&1; \
         touch done; read line; exit 7"
    );
    let workspace_text = workspace.display().to_string();
    let credential = setup.credential("");
    let options = [
        "--jail-path",
        "/",
        "--workspace",
        &workspace_text,
        "--credential",
        &credential,
    ];
    let explained = setup.cli(&[&["explain"], &options[..], &["--", "true"]].concat());
    assert!(explained.status.success(), "{explained:?}");
    setup.assert_without_key(&explained.stdout, "explain");
    assert!(
        text(&explained.stdout).contains(&format!("--credential {credential}")),
        "{explained:?}"
    );
    let spawned = setup.cli(&[&["spawn"], &options[..], &["--", "bash", "-c", &script]].concat());
    assert!(spawned.status.success(), "{spawned:?}");
    let id = text(&spawned.stdout).trim().to_owned();
    wait_until("the agent has used the key", || {
        workspace.join("done").exists()
    });

    let output = setup.daemon.stdout(&id);
    let shown = text(&output);
    assert!(shown.starts_with("/direct\n/proxied\n"), "{shown}");
    let authorizations = setup.received("authorization");
    assert_eq!(authorizations[0], format!("Bearer {}", setup.key));
    let user = STANDARD.encode(format!("user:{}", setup.key));
    assert_eq!(authorizations[1], format!("Basic {user}"));
    // A name for which there is no credential gets the placeholder at most.
    assert!(
        setup
            .received("x-other")
            .iter()
            .all(|value| value.starts_with(PLACEHOLDER)),
        "{:?}",
        setup.server.requests()
    );
    assert!(shown.contains(&format!("\nTOKEN={PLACEHOLDER}")), "{shown}");
    assert!(
        !shown.contains("COLIBRI_CREDENTIAL_") && !shown.contains("COLIBRI_PROXY_ROOTS"),
        "{shown}"
    );
    setup.assert_without_key(&output, "the output, with environments and arguments");
    let cores = fs::read_dir(&workspace)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("core"));
    match cores.count() {
        0 => eprintln!("no core was written; see core_pattern in core(5)"),
        _ => assert!(
            fs::read_dir(&workspace).unwrap().flatten().any(|entry| {
                text(&fs::read(entry.path()).unwrap_or_default()).contains(PLACEHOLDER)
            }),
            "a core contains the placeholder"
        ),
    }

    // Outside, while the agent runs.
    let mut processes = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            if let Ok(content) = fs::read(entry.path().join(file)) {
                processes += 1;
                setup.assert_without_key(&content, &entry.path().join(file).display().to_string());
            }
        }
    }
    assert!(processes > 10, "{processes}");
    setup
        .daemon
        .connect()
        .call("send-input", json!({"id": id, "data": "go\n"}));
    assert_eq!(setup.daemon.wait(&id), Some(7));
    for words in [
        &["ps", "--json"][..],
        &["status", &id, "--json"],
        &["logs", &id],
        &["profiles"],
        &[
            "explain",
            "--json",
            "--jail-path",
            "/",
            "--credential",
            &credential,
            "--",
            "true",
        ],
    ] {
        let output = setup.cli(words);
        assert!(output.status.success(), "{output:?}");
        setup.assert_without_key(&output.stdout, &words.join(" "));
        setup.assert_without_key(&output.stderr, &words.join(" "));
    }
    let files = setup.search(setup.daemon.directory());
    assert!(files > 10, "{files}");
    let spec = fs::read_to_string(setup.daemon.agent_dir(&id).join("spec.json")).unwrap();
    assert!(
        spec.contains(&format!("\"credentials\":[\"{credential}\"]")),
        "{spec}"
    );
}

#[test]
fn template_sets_a_header_on_each_run() {
    let setup = Setup::new();
    let port = setup.server.port;
    let script = format!("curl -sS https://localhost:{port}/; exit 1");
    let credential = setup.credential("=X-Api-Key: key {}");
    let restart = [
        "--restart",
        "on-failure",
        "--restart-delay",
        "1ms",
        "--restart-limit",
        "1",
    ];
    let words = [
        &["spawn", "--jail-path", "/", "--credential", &credential],
        &restart[..],
        &["--", "bash", "-c", &script],
    ];
    let spawned = setup.cli(&words.concat());
    assert!(spawned.status.success(), "{spawned:?}");
    let id = text(&spawned.stdout).trim().to_owned();
    assert_eq!(setup.daemon.wait(&id), Some(1));
    assert_eq!(text(&setup.daemon.stdout(&id)), "/\n/\n");
    assert_eq!(
        setup.received("x-api-key"),
        [format!("key {}", setup.key), format!("key {}", setup.key)]
    );
}

#[test]
fn profile_has_credentials_with_a_key_in_its_file() {
    let mut setup = Setup::new();
    let file = setup.daemon.path("keys.env");
    write_file(&file, &format!("FILE_TOKEN={}\n", setup.key), 0o600);
    let port = setup.server.port;
    let settings = format!(
        "[defaults]\nno_jail = true\n[profile.api]\nenv_file = \"{}\"\nprogram = \"bash\"\n\
         args = [\"-c\", 'curl -sS -H \"X-Key: $FILE_TOKEN\" https://localhost:{port}/profile']\n\
         jail = {{ path = \"/\", credentials = [\"FILE_TOKEN@localhost:{port}\"] }}\n",
        file.display()
    );
    write_file(
        &setup.daemon.path(".config/colibri/colibri.toml"),
        &settings,
        0o600,
    );
    assert!(setup.daemon.cli(&["config", "reload"]).status.success());
    let output = setup.daemon.cli(&["run", "--profile", "api"]);
    assert_eq!(text(&output.stdout), "/profile\n", "{output:?}");
    assert_eq!(setup.received("x-key"), [setup.key.clone()]);
    setup.daemon.kill();
}

#[test]
fn rule_by_path_is_checked_in_tls() {
    let setup = Setup::new();
    let port = setup.server.port;
    let rule = format!("GET https://localhost:{port}/read/*");
    let script = format!(
        "for path in read/1 write/1; do curl -sS --noproxy '' https://localhost:{port}/$path; done; \
         curl -sS --noproxy '' -X POST https://localhost:{port}/read/2; \
         head -1 /dev/colibri-ca.pem; test -w /dev/colibri-ca.pem || echo read-only; \
         grep -c BEGIN /dev/colibri-ca.pem; echo $NODE_EXTRA_CA_CERTS $SSL_CERT_FILE"
    );
    let output = setup.run(&["--allow", &rule], &script);
    let shown = text(&output.stdout);
    assert!(shown.starts_with("/read/1\n"), "{output:?}");
    assert_eq!(
        shown.matches("the allow list does not have").count(),
        2,
        "{output:?}"
    );
    assert!(
        shown.ends_with("-----BEGIN CERTIFICATE-----\nread-only\n1\n/dev/colibri-ca.pem /dev/colibri-ca-bundle.pem\n"),
        "{output:?}"
    );
    assert_eq!(setup.server.requests().len(), 1);
}

#[test]
fn credential_without_key_or_jail_is_refused() {
    let setup = Setup::new();
    let credential = setup.credential("");
    let option = ["--credential", credential.as_str()];
    let run = |words: &[&str]| {
        let output = setup.daemon.cli(words);
        (output.status.code(), text(&output.stderr))
    };
    for (options, expected) in [
        (&["--jail-path", "/"][..], "credential TOKEN has no key"),
        (
            &["--jail-path", "/", "--env", "TOKEN="],
            "credential TOKEN is empty",
        ),
        (
            &["--jail-path", "/", "--env", "TOKEN=k", "--network", "none"],
            "conflicts with --credential",
        ),
        (&["--env", "TOKEN=k"], "--credential needs a jail"),
        (
            &["--jail-path", "/", "--credential", "TOKEN"],
            "write NAME@HOST",
        ),
    ] {
        let words = [&["run"], options, &option, &["--", "true"]].concat();
        let (code, message) = run(&words);
        assert_ne!(code, Some(0), "{words:?}");
        assert!(message.contains(expected), "{words:?}: {message}");
    }
}
