//! The terminal: its modes, which are always restored, and its keys.

use std::io::{self, BufWriter, Stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste, Event};
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Position, Rect};
use tokio::sync::mpsc;

use crate::error::CliError;
use crate::sink::start_thread;

/// Size of the output buffer in bytes: a frame is written at once, so that no partial one is visible.
const FRAME_BUFFER: usize = 256 * 1024;

/// Whether the terminal is in raw mode and must be restored.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// The terminal in raw mode and on its alternate screen, until this is dropped.
pub(super) struct Screen {
    pub(super) terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        // A panic may abort without running `drop`.
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        let screen = Self {
            terminal: Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(
                FRAME_BUFFER,
                io::stdout(),
            )))?,
        };
        screen.set_modes()?;
        Ok(screen)
    }

    fn set_modes(&self) -> io::Result<()> {
        IS_RAW.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            EnableBracketedPaste,
            cursor::Hide
        )
    }

    /// Sets the modes again after another program used the terminal, and redraws everything with the next frame.
    pub(super) fn reenter(&mut self) -> io::Result<()> {
        // The other program may have changed the modes that crossterm remembers.
        let _ = disable_raw_mode();
        self.set_modes()?;
        self.clear()
    }

    /// Discards the known contents of the screen, so that the next frame redraws everything. Terminal::clear would request
    /// the position of the cursor, and wait for the thread that reads keys.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }

    /// Sets raw mode and keeps the contents of the screen.
    pub(super) fn set_raw_mode(&self) -> io::Result<()> {
        IS_RAW.store(true, Ordering::SeqCst);
        let _ = disable_raw_mode();
        enable_raw_mode()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal. May be called at any time.
pub(super) fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst) {
        let _ = execute!(
            io::stdout(),
            DisableBracketedPaste,
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = disable_raw_mode();
    }
}

/// Reads keys in a separate thread, because a read blocks. Each read is requested, so that no key is taken from another
/// program that has the terminal.
pub(super) struct Keys {
    requests: std::sync::mpsc::Sender<()>,
    events: mpsc::Receiver<io::Result<Event>>,
    is_requested: bool,
}

impl Keys {
    /// Starts the thread.
    pub(super) fn new() -> Result<Self, CliError> {
        let (requests, requested) = std::sync::mpsc::channel();
        let (sender, events) = mpsc::channel(1);
        start_thread("keys", move || {
            while requested.recv().is_ok() {
                if sender.blocking_send(crossterm::event::read()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            requests,
            events,
            is_requested: false,
        })
    }

    /// Returns the next event. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        if !self.is_requested {
            self.is_requested = true;
            let _ = self.requests.send(());
        }
        let event = self.events.recv().await;
        self.is_requested = false;
        event.unwrap_or_else(|| Err(io::Error::other("the thread that reads keys has ended")))
    }
}
