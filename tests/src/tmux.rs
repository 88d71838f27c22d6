//! A real terminal: a dedicated tmux(1) server that runs an interactive shell. A test presses keys and reads the screen.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Daemon, eventually, program, text};

/// Number of terminals that this process has opened.
static TERMINALS: AtomicU32 = AtomicU32::new(0);

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
        let number = TERMINALS.fetch_add(1, Ordering::Relaxed);
        let directory = daemon.path(&format!("tmux{number}"));
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
        let new_session = ["new-session", "-d", "-s", "test", "-x", &width];
        terminal.tmux(&[&new_session[..], &["-y", &height, "sh", "-i"]].concat());
        terminal.tmux(&["set-option", "-g", "window-size", "manual"]);
        terminal.tmux(&["resize-window", "-x", &width, "-y", &height]);
        terminal.wait_until("a prompt", |screen| screen.starts_with("$"));
        terminal
    }

    /// Returns a command of tmux for this server.
    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command.env_clear().args(["-u", "-L", "test"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = self
            .command()
            .args(["-f", "/dev/null"])
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

    /// Presses keys by their names in tmux (tmux(1), KEY BINDINGS), and types each text that does not name a key.
    pub fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "test"], keys].concat());
    }

    /// Types text literally.
    pub fn type_text(&self, text: &str) {
        self.tmux(&["send-keys", "-t", "test", "-l", text]);
    }

    /// Pastes text, with bracketed paste if the program enables it.
    pub fn paste(&self, text: &str) {
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
    pub fn screen_with_colours(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e", "-t", "test"])
    }

    /// Returns the value of a variable of tmux (tmux(1), FORMATS).
    pub fn format_value(&self, name: &str) -> String {
        let format = format!("#{{{name}}}");
        let value = self.tmux(&["display-message", "-p", "-t", "test", &format]);
        value.trim_end().to_owned()
    }

    /// Polls the screen until it matches, and returns its content.
    pub fn wait_until(&self, description: &str, expected: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(description, || {
                last = self.screen();
                expected(&last).then(|| last.clone())
            })
        }));
        result.unwrap_or_else(|_| panic!("{description} did not appear on the screen:\n{last}"))
    }

    /// Polls the screen until it contains a text, and returns its content.
    pub fn wait_for_text(&self, expected: &str) -> String {
        self.wait_until(expected, |screen| screen.contains(expected))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.command().arg("kill-server").output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
