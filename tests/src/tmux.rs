//! A real terminal: a separate tmux(1) server with an interactive shell, key input and screen output.

use std::path::PathBuf;
use std::process::Command;

use crate::{Daemon, eventually, program, text};

/// A terminal with a shell.
pub struct Terminal {
    directory: PathBuf,
    environment: Vec<(String, String)>,
}

impl Terminal {
    /// Opens a terminal of this size, with a daemon's environment and additional variables.
    pub fn open(daemon: &Daemon, width: u16, height: u16, variables: &[(&str, &str)]) -> Self {
        let programs = program("colibri").parent().unwrap().display().to_string();
        let command = daemon.command("colibri");
        let mut environment: Vec<(String, String)> = command
            .get_envs()
            .filter_map(|(name, value)| {
                let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
                Some((text(name), text(value?)))
            })
            .filter(|(name, _)| name != "PATH")
            .collect();
        environment.push(("PATH".into(), format!("{programs}:/usr/bin:/bin")));
        // The socket of the tmux server is in the test's directory.
        let directory = daemon.path("tmux");
        std::fs::create_dir_all(&directory).unwrap();
        environment.push(("TMUX_TMPDIR".into(), directory.display().to_string()));
        let defaults = [
            ("LANG", "C.UTF-8"),
            ("TERM", "xterm-256color"),
            ("PS1", "$ "),
        ];
        for (name, value) in defaults.iter().chain(variables) {
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let terminal = Self {
            directory,
            environment,
        };
        let (width, height) = (width.to_string(), height.to_string());
        let new = [
            "new-session",
            "-d",
            "-s",
            "test",
            "-x",
            &width,
            "-y",
            &height,
        ];
        terminal.tmux(&[&new[..], &["sh", "-i"]].concat());
        terminal.tmux(&["set-option", "-g", "window-size", "manual"]);
        terminal.tmux(&["resize-window", "-x", &width, "-y", &height]);
        terminal.wait("a prompt", |screen| screen.starts_with("$"));
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command
            .args(["-u", "-L", "test", "-f", "/dev/null"])
            .args(args)
            .output()
            .expect("tmux is missing; install the package tmux");
        assert!(
            output.status.success(),
            "tmux {args:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Presses keys by tmux's names; types any other text.
    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "test"], keys].concat());
    }

    /// Types text literally.
    pub fn types(&self, text: &str) {
        self.tmux(&["send-keys", "-t", "test", "-l", text]);
    }

    /// Pastes text, with bracketed paste if the program enables it.
    pub fn pastes(&self, text: &str) {
        self.tmux(&["set-buffer", text]);
        self.tmux(&["paste-buffer", "-p", "-t", "test"]);
    }

    pub fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-t", "test", "-x", &width, "-y", &height]);
    }

    /// Returns the content of the screen.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "test"])
    }

    /// Returns the content of the screen with escape sequences for colours.
    pub fn coloured(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e", "-t", "test"])
    }

    /// Returns the value of a tmux format.
    pub fn value(&self, name: &str) -> String {
        let format = format!("#{{{name}}}");
        let value = self.tmux(&["display-message", "-p", "-t", "test", &format]);
        value.trim_end().to_owned()
    }

    /// Polls the screen until it matches.
    pub fn wait(&self, what: &str, expected: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                last = self.screen();
                expected(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("{what} never came on the screen:\n{last}"))
    }

    /// Waits for a text on the screen.
    pub fn wait_for(&self, expected: &str) -> String {
        self.wait(expected, |screen| screen.contains(expected))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let _ = command.args(["-L", "test", "kill-server"]).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
