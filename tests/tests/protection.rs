//! Workspaces in sandboxes of Linux: protected paths, git worktrees, homes, and the user of the agent.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use colibri_tests::{Daemon, run_checked, text, wait_until};

/// A repository of git with one commit, outside of the daemon's directory.
struct Repository {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Repository {
    fn create() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = directory.path().canonicalize().unwrap().join("repository");
        let repository = Self {
            _directory: directory,
            path,
        };
        run_checked(
            Command::new("git")
                .args(["init", "-q"])
                .arg(&repository.path),
        );
        for (name, value) in [("user.name", "n"), ("user.email", "e")] {
            repository.git(&["config", name, value]);
        }
        fs::write(repository.path.join("file"), "1\n").unwrap();
        repository.git(&["add", "."]);
        repository.git(&["commit", "-qm", "one"]);
        repository
    }

    fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command
            .args(["-c", "safe.directory=*", "-C"])
            .arg(&self.path);
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        text(&output.stdout)
    }

    fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Returns the names in the working tree.
    fn names(&self) -> Vec<String> {
        names(&self.path)
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs a script in a sandbox with this workspace.
fn run(daemon: &Daemon, workspace: &str, options: &[&str], script: &str) -> Output {
    let sandbox = ["run", "--jail-path", "/", "--workspace", workspace];
    daemon.cli(&[&sandbox, options, &["--", "sh", "-c", script]].concat())
}

/// Paths that an agent must not write, whether they exist or not.
const PROTECTED: [&str; 14] = [
    ".git/config",
    ".git/config.worktree",
    ".git/hooks/pre-commit",
    ".git/commondir",
    ".gitmodules",
    ".envrc",
    ".vscode/tasks.json",
    ".idea/x",
    ".claude/settings.json",
    ".pi/x",
    ".codex/config.toml",
    ".mcp.json",
    ".husky/pre-commit",
    ".bashrc",
];

#[test]
fn protected_paths_cannot_be_written_removed_or_moved() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    let config = fs::read(repository.path.join(".git/config")).unwrap();
    for path in PROTECTED {
        let top = path.split('/').next().unwrap();
        let script = format!(
            "(echo evil > {path}) 2>/dev/null && echo written; rm -rf {path} 2>/dev/null; mv {path} x 2>/dev/null && echo moved; \
             mv {top} y 2>/dev/null && echo moved; ln -f {path} hard 2>/dev/null && echo linked; \
             (mkdir -p {top} && echo evil > {path}) 2>/dev/null && echo written; rm -rf x; git status --short; echo end"
        );
        let output = run(&daemon, repository.text(), &[], &script);
        assert_eq!(
            text(&output.stdout),
            "end\n",
            "{path}: {}",
            text(&output.stderr)
        );
        assert_eq!(repository.names(), [".git", "file"], "{path}");
    }
    assert_eq!(
        fs::read(repository.path.join(".git/config")).unwrap(),
        config
    );
    // The rest of the repository works.
    let output = run(
        &daemon,
        repository.text(),
        &[],
        "echo 2 > file && git add -A && git commit -qm two && git checkout -qb branch && git stash list && git status --short",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "", "{output:?}");
    assert!(
        repository
            .git(&["log", "--stat"])
            .contains(" 1 file changed")
    );
    assert!(!repository.path.join(".git/commondir").exists());
}

#[test]
fn unprotected_path_is_writable_and_others_are_not() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    let hook = repository.path.join(".git/hooks/pre-commit");
    let hooks = hook.parent().unwrap().to_str().unwrap();
    let script =
        "echo x > .git/hooks/pre-commit && echo written; echo x >> .git/config && echo config";
    let output = run(&daemon, repository.text(), &["--unprotect", hooks], script);
    assert_eq!(text(&output.stdout), "written\n", "{output:?}");
    assert!(hook.exists());
    // One file in a protected directory.
    fs::create_dir(repository.path.join(".claude")).unwrap();
    let open = repository.path.join(".claude/notes");
    fs::write(&open, "").unwrap();
    let script =
        "echo x > .claude/notes && echo notes; echo x > .claude/settings.json && echo settings";
    let output = run(
        &daemon,
        repository.text(),
        &["--unprotect", open.to_str().unwrap()],
        script,
    );
    assert_eq!(text(&output.stdout), "notes\n", "{output:?}");
}

#[test]
fn links_at_protected_paths_are_refused() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    std::os::unix::fs::symlink("/etc", repository.path.join(".vscode")).unwrap();
    let refused = |message: &str| {
        let output = run(&daemon, repository.text(), &[], "echo ran");
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains(message) && stderr.contains("--unprotect"),
            "{stderr}"
        );
    };
    refused("symbolic link");
    fs::remove_file(repository.path.join(".vscode")).unwrap();
    fs::hard_link(repository.path.join("file"), repository.path.join(".envrc")).unwrap();
    refused("hard link");
}

#[test]
fn placeholders_remain_until_the_last_agent_ends() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    let sandbox = ["--jail-path", "/", "--workspace", repository.text()];
    let script = "echo up; read line; (echo evil > .envrc) 2>/dev/null && echo written; ls -a | grep -c envrc";
    let spawn = || daemon.spawn(&[&sandbox[..], &["--", "sh", "-c", script]].concat());
    let (first, second) = (spawn(), spawn());
    for id in [&first, &second] {
        wait_until("the agent runs", || daemon.stdout(id) == b"up\n");
    }
    daemon.cli_ok(&["send", &first, ""]);
    daemon.wait(&first);
    assert!(repository.names().contains(&".envrc".to_owned()));
    daemon.cli_ok(&["send", &second, ""]);
    daemon.wait(&second);
    for id in [&first, &second] {
        assert_eq!(text(&daemon.stdout(id)), "up\n1\n");
    }
    wait_until("the placeholders are removed", || {
        repository.names() == [".git", "file"]
    });
}

#[test]
fn replaced_protected_file_ends_the_sandbox() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    fs::write(repository.path.join(".envrc"), "").unwrap();
    let sandbox = ["--jail-path", "/", "--workspace", repository.text()];
    let id = daemon.spawn(&[&sandbox[..], &["--", "sh", "-c", "echo up; sleep 1000; :"]].concat());
    wait_until("the agent runs", || daemon.stdout(&id) == b"up\n");
    // git cannot replace its configuration meanwhile.
    let mut git = Command::new("git");
    let git = git
        .args(["-c", "safe.directory=*", "-C", repository.text()])
        .args(["config", "user.name", "other"]);
    assert!(!git.output().unwrap().status.success());
    fs::write(repository.path.join("new"), "").unwrap();
    fs::rename(repository.path.join("new"), repository.path.join(".envrc")).unwrap();
    assert_eq!(daemon.wait(&id), Some(125));
    let message = daemon.cli_ok(&["logs", "--stream", "stderr", &id]);
    assert!(
        message.contains(".envrc was replaced outside of the sandbox"),
        "{message}"
    );
    repository.git(&["config", "user.name", "other"]);
}

#[test]
fn worktree_commits_without_hooks_and_configuration() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    let worktree = repository.path.with_file_name("worktree");
    let path = worktree.to_str().unwrap();
    repository.git(&["worktree", "add", "-q", "-b", "branch", path]);
    let main = repository.text();
    let script = format!(
        "echo 2 > file && git commit -qam two && git log --format=%s | head -1; cd {main}/.git && \
         for path in config hooks/pre-commit HEAD worktrees/worktree/commondir worktrees/worktree/gitdir worktrees/worktree/config.worktree; do \
         (echo evil >> $path) 2>/dev/null && echo $path; done; echo end"
    );
    let output = run(&daemon, path, &[], &script);
    assert_eq!(text(&output.stdout), "two\nend\n", "{output:?}");
    assert_eq!(
        repository.git(&["log", "-1", "--format=%s", "branch"]),
        "two\n"
    );
    assert_eq!(names(&worktree), [".git", "file"]);
    // A repository that does not name the worktree is not shown.
    let other = repository.path.with_file_name("other");
    fs::create_dir(&other).unwrap();
    fs::copy(worktree.join(".git"), other.join(".git")).unwrap();
    let output = run(&daemon, other.to_str().unwrap(), &[], &format!("ls {main}"));
    assert!(text(&output.stderr).contains("No such file"), "{output:?}");
}

#[test]
fn read_only_mount_in_a_workspace_has_precedence() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    let git = format!("{}/.git:ro", repository.text());
    let script = "touch .git/x 2>/dev/null && echo git; touch new && echo new; git log --format=%s";
    let output = run(&daemon, repository.text(), &["--mount", &git], script);
    assert_eq!(text(&output.stdout), "new\none\n", "{output:?}");
}

#[test]
fn exposing_workspaces_are_refused() {
    let daemon = Daemon::start();
    let home = daemon.directory().canonicalize().unwrap();
    let state = daemon.state().canonicalize().unwrap();
    for workspace in [
        Path::new("/"),
        Path::new("/var"),
        &home,
        &state,
        &state.join("agents"),
    ] {
        let output = run(&daemon, workspace.to_str().unwrap(), &[], "echo ran");
        assert_eq!(output.status.code(), Some(125), "{workspace:?}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{workspace:?}");
    }
}

#[test]
fn agent_is_never_root_and_owns_its_workspace() {
    let daemon = Daemon::start();
    let repository = Repository::create();
    let owner = fs::metadata(&repository.path).unwrap().uid();
    let script = "cat /proc/self/uid_map; id -un >/dev/null && touch new && stat -c %u new && id -u; \
        chmod 4755 new 2>/dev/null && echo set-user-id; echo $$";
    for options in [
        &[][..],
        &["--jail-user", "0:0"],
        &["--jail-user", "1234:1234"],
    ] {
        let output = run(&daemon, repository.text(), options, script);
        let stdout = text(&output.stdout);
        let lines: Vec<&str> = stdout.lines().collect();
        let fields: Vec<&str> = lines[0].split_whitespace().collect();
        // The namespace of the agent maps one id to uid 0 of bwrap's, which is not root's of the host.
        assert_eq!(fields[1..], ["0", "1"], "{output:?}");
        if options.is_empty() {
            assert_eq!(lines[1], lines[2], "{output:?}");
            assert_ne!(lines[1], "0");
        }
        assert!(!stdout.contains("set-user-id"), "{output:?}");
        let new = repository.path.join("new");
        if let Ok(data) = fs::metadata(&new) {
            assert_eq!(data.uid(), owner, "{options:?}");
            fs::remove_file(new).unwrap();
        }
    }
    // The process on the host.
    let id = daemon.spawn(&[
        "--jail-path",
        "/",
        "--",
        "sh",
        "-c",
        "echo up; sleep 1000; :",
    ]);
    wait_until("the agent runs", || daemon.stdout(&id) == b"up\n");
    let pids = colibri_tests::processes_with(&format!("COLIBRI_AGENT_ID={id}"));
    let shells = pids.iter().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sh\n")
    });
    let mut found = 0;
    for pid in shells {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uids = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap();
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
        found += 1;
    }
    assert_eq!(found, 1, "{pids:?}");
}

#[test]
fn home_option_keeps_files_and_the_default_does_not() {
    let daemon = Daemon::start();
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = home.path().canonicalize().unwrap();
    let script = "ls -A ~; echo x > ~/.profile && echo kept";
    for (options, expected) in [
        (&[][..], "kept\n"),
        (&["--home", path.to_str().unwrap()], "kept\n"),
        (&["--home", path.to_str().unwrap()], ".profile\nkept\n"),
        (&[], "kept\n"),
    ] {
        let sandbox = ["run", "--jail-path", "/"];
        let output = daemon.cli(&[&sandbox, options, &["--", "sh", "-c", script]].concat());
        assert_eq!(text(&output.stdout), expected, "{options:?} {output:?}");
    }
}

#[test]
fn lifted_restrictions_are_shown_and_denied_paths_hidden() {
    let daemon = Daemon::start();
    let sandbox = [
        "--jail-path",
        "/",
        "--lift",
        "unix-sockets",
        "--nested-sandbox",
        "--deny",
        "/etc/hostname",
    ];
    let script = "test -s /etc/hostname && echo seen; python3 -c 'import socket; socket.socket(socket.AF_UNIX)' && unshare -Ur true && echo lifted";
    let id = daemon.spawn(&[&sandbox[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(daemon.wait(&id), Some(0));
    assert_eq!(text(&daemon.stdout(&id)), "lifted\n");
    let status = daemon.cli_ok(&["status", &id]);
    for name in ["unix-sockets", "user-namespaces", "landlock"] {
        assert!(
            status.contains(&format!("the restriction {name} is lifted")),
            "{status}"
        );
    }
    let explained = daemon.cli(&[&["explain"], &sandbox[..], &["--", "true"]].concat());
    assert!(
        text(&explained.stdout).contains("--lift user-namespaces"),
        "{explained:?}"
    );
    assert!(
        text(&explained.stdout).contains("--mask /etc/hostname"),
        "{explained:?}"
    );
}
