//! The terminal: taken, given back whatever happens, and read.

use std::io::{self, BufWriter, Stdout};
use std::sync::Once;
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

/// A whole screen goes out in one write, so that nobody sees half of one.
const FRAME: usize = 256 * 1024;

/// Whether the terminal is in our modes.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The terminal, in raw mode and on its other screen, until this is dropped.
pub(super) struct Screen {
    pub(super) terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl Screen {
    pub(super) fn take() -> io::Result<Self> {
        // Also where a panic aborts, nobody is left with a terminal that shows nothing of what he types.
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                give_back();
                before(info);
            }));
        });
        let screen = Self {
            terminal: Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(
                FRAME,
                io::stdout(),
            )))?,
        };
        screen.enter()?;
        Ok(screen)
    }

    fn enter(&self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            EnableBracketedPaste,
            cursor::Hide
        )
    }

    /// Takes the terminal again, and knows nothing of what is on it.
    pub(super) fn take_again(&mut self) -> io::Result<()> {
        // Somebody else may have changed its modes, and crossterm holds them for what they were.
        let _ = disable_raw_mode();
        self.enter()?;
        self.clear()
    }

    /// What is on the screen is not known any more. (Terminal::clear would ask the terminal where its cursor is,
    /// and wait for the thread that reads keys.)
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }
}

impl Screen {
    /// Raw mode alone: what is on the screen stays.
    pub(super) fn pause(&self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        let _ = disable_raw_mode();
        enable_raw_mode()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// The terminal as it was. May be called at any time.
pub(super) fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(
            io::stdout(),
            DisableBracketedPaste,
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = disable_raw_mode();
    }
}

/// Keys, read in a thread of its own because a read blocks: one for each time that it is asked, so that whoever
/// has the terminal meanwhile has its keys too.
pub(super) struct Keys {
    ask: std::sync::mpsc::Sender<()>,
    events: mpsc::Receiver<io::Result<Event>>,
    asked: bool,
}

impl Keys {
    /// Starts the thread.
    pub(super) fn new() -> io::Result<Self> {
        let (ask, asked) = std::sync::mpsc::channel();
        let (sender, events) = mpsc::channel(1);
        let read = move || {
            while asked.recv().is_ok() {
                if sender.blocking_send(crossterm::event::read()).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(read)?;
        Ok(Self {
            ask,
            events,
            asked: false,
        })
    }

    /// The next event. Being given up costs none.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        if !self.asked {
            self.asked = true;
            let _ = self.ask.send(());
        }
        let event = self.events.recv().await;
        self.asked = false;
        event.unwrap_or_else(|| Err(io::Error::other("the thread that reads keys has ended")))
    }
}
