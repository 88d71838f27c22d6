//! The terminal: its modes, which are always restored, and its keys.

use std::io::{self, BufWriter, Stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste, Event};
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use ratatui::Terminal;
use ratatui::backend::{Backend, ClearType, CrosstermBackend, WindowSize};
use ratatui::buffer::Cell;
use ratatui::layout::{Position, Rect, Size};
use tokio::sync::mpsc;

use crate::error::CliError;
use crate::sink::start_thread;

/// Size of the output buffer in bytes: a frame is written at once, so that no partial one is visible.
const FRAME_BUFFER: usize = 256 * 1024;

/// Size of a terminal that does not know its own, in cells. A serial line reports 0 columns and 0 rows (tty(4), TIOCGWINSZ).
const DEFAULT_SIZE: Size = Size {
    width: 80,
    height: 24,
};

/// Whether the terminal is in raw mode and must be restored.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Replaces each dimension that the terminal does not know.
pub(super) fn usable_size(size: Size) -> Size {
    let or_default = |cells: u16, default| if cells == 0 { default } else { cells };
    Size {
        width: or_default(size.width, DEFAULT_SIZE.width),
        height: or_default(size.height, DEFAULT_SIZE.height),
    }
}

/// Writes to the terminal; its size is never 0.
pub(super) struct SizedBackend(CrosstermBackend<BufWriter<Stdout>>);

impl Backend for SizedBackend {
    type Error = io::Error;

    fn size(&self) -> io::Result<Size> {
        self.0.size().map(usable_size)
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        let size = self.0.window_size()?;
        Ok(WindowSize {
            columns_rows: usable_size(size.columns_rows),
            ..size
        })
    }

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        self.0.draw(content)
    }

    fn append_lines(&mut self, count: u16) -> io::Result<()> {
        self.0.append_lines(count)
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        self.0.hide_cursor()
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        self.0.show_cursor()
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        self.0.get_cursor_position()
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        self.0.set_cursor_position(position)
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.clear()
    }

    fn clear_region(&mut self, clear_type: ClearType) -> io::Result<()> {
        self.0.clear_region(clear_type)
    }

    fn flush(&mut self) -> io::Result<()> {
        Backend::flush(&mut self.0)
    }
}

/// The terminal in raw mode and on its alternate screen, until this is dropped.
pub(super) struct Screen {
    pub(super) terminal: Terminal<SizedBackend>,
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
            terminal: Terminal::new(SizedBackend(CrosstermBackend::new(
                BufWriter::with_capacity(FRAME_BUFFER, io::stdout()),
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
