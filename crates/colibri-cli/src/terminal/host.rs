//! The user's terminal: its size, and its raw mode, which is always restored.

use std::io::{self, IsTerminal, stdin, stdout};
use std::sync::Mutex;

use colibri_client::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The modes to restore while the terminal is in raw mode.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Returns whether both standard input and output are a terminal.
pub(crate) fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Returns the size of the terminal of standard output; the default if there is none.
pub(crate) fn size() -> TerminalSize {
    let size = tcgetwinsize(stdout()).map(|size| (size.ws_row, size.ws_col));
    let (rows, cols) = size.unwrap_or_default();
    TerminalSize::of_terminal(rows, cols)
}

/// The terminal in raw mode, until this is dropped: it passes each key on at once, and shows nothing by itself.
pub(super) struct RawMode(());

impl RawMode {
    pub(super) fn enter() -> io::Result<Self> {
        let original = tcgetattr(stdin())?;
        let mut raw = original.clone();
        raw.make_raw();
        if let Ok(mut saved) = ORIGINAL.lock() {
            *saved = Some(original);
        }
        // A panic may abort without running `drop`.
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        let mode = Self(());
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let original = ORIGINAL.lock().ok().and_then(|mut saved| saved.take());
    if let Some(original) = original {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &original);
    }
}
