//! What an agent's terminal shows, and how to draw it on the user's.
//!
//! ```text
//! bytes of the agent ──> filter ──> model of the agent's terminal
//!                           │         │ whole screen: at first, and after each change of a size
//!                           v         v
//!                    same size: direct   other size: a frame of the model after each chunk
//!                           └────> user's terminal <────┘
//! ```

use std::fmt::Write as _;

use avt::{Color, Line, Pen, ScreenKind, Terminal};
use colibri_client::{MAX_CELLS, TerminalSize};

use super::filter::OutputFilter;

/// Saves and restores the title of the user's terminal (xterm, window operations).
const SAVE_TITLE: &str = "\x1b[22;0t";
const RESTORE_TITLE: &str = "\x1b[23;0t";
/// Starts and ends a synchronized update, which a terminal shows at once.
const BEGIN_UPDATE: &str = "\x1b[?2026h";
const END_UPDATE: &str = "\x1b[?2026l";

/// The screen of an agent on the user's terminal.
pub(super) struct AgentScreen {
    filter: OutputFilter,
    model: Terminal,
    /// The size of the agent's terminal.
    size: TerminalSize,
    /// The size of the user's terminal.
    host: TerminalSize,
    /// The user's terminal shows the screen, and gets its changes.
    is_shown: bool,
}

impl AgentScreen {
    /// Creates an empty screen of an agent. The sequences that it returns are for a terminal of the size `host`.
    pub(super) fn new(size: TerminalSize, host: TerminalSize) -> Result<Self, avt::InvalidSize> {
        let mut filter = OutputFilter::default();
        filter.set_columns(size.cols());
        Ok(Self {
            filter,
            model: Terminal::new(size.cols().into(), size.rows().into())?,
            size,
            host,
            is_shown: false,
        })
    }

    /// Takes output of the agent. Returns what to write to the user's terminal, once it shows the screen.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let filtered = self.filter.push(bytes);
        self.model.feed(filtered.all.as_str());
        match (self.is_shown, self.is_direct()) {
            (false, _) => String::new(),
            (true, true) => filtered.all,
            // The agent's change of its screen, which has its own keyboard flags, does not reach the user's terminal.
            (true, false) => filtered.control + &self.filter.modes().keyboard() + &self.frame(),
        }
    }

    /// Returns what shows the screen on the user's terminal. From now on the terminal gets queries of the agent if
    /// `answers` is set, which is for a terminal whose input reaches the agent.
    pub(super) fn show(&mut self, answers: bool) -> String {
        self.is_shown = true;
        self.filter.pass_queries(answers);
        // What the terminal shows moves to its scrollback.
        let rows = self.host.rows();
        let mut text = format!("{SAVE_TITLE}\x1b[{rows};1H");
        text.extend(std::iter::repeat_n('\n', rows.into()));
        text.push_str(&self.filter.modes().enable());
        text.push_str(&self.redraw());
        text
    }

    /// Sets the size of the agent's terminal. Returns what to write to the user's.
    pub(super) fn resize(&mut self, size: TerminalSize) -> String {
        if size == self.size {
            return String::new();
        }
        let was_direct = self.is_direct();
        self.size = size;
        self.filter.set_columns(size.cols());
        self.model.resize(size.cols().into(), size.rows().into());
        self.redraw_after(was_direct)
    }

    /// Sets the size of the user's terminal. Returns what to write to it.
    pub(super) fn resize_host(&mut self, host: TerminalSize) -> String {
        let was_direct = self.is_direct();
        self.host = host;
        self.redraw_after(was_direct)
    }

    /// Returns what removes the screen from the user's terminal; the cursor is on an empty line then. The screen of an
    /// agent that has ended remains above it.
    pub(super) fn hide(&mut self, ended: bool) -> String {
        let modes = self.filter.modes();
        let mut text = modes.disable();
        text.push_str(&modes.leave_screens(self.is_direct() && modes.alternate));
        text.push_str(
            "\x1b[?6l\x1b[r\x1b[4l\x1b[?1l\x1b[?7h\x1b[?25h\x1b[m\x1b(B\x1b)B\x0f\x1b]8;;\x1b\\",
        );
        text.push_str(&self.default_tabs());
        text.push_str(END_UPDATE);
        text.push_str(RESTORE_TITLE);
        let row = match ended && self.model.active_screen_kind() == ScreenKind::Primary {
            true => self.last_row(),
            false => self.host.rows().into(),
        };
        let _ = write!(text, "\x1b[{row};1H\r\n");
        self.is_shown = false;
        text
    }

    /// Returns what draws the whole screen again.
    pub(super) fn refresh(&self) -> String {
        self.redraw_after(self.is_direct())
    }

    /// Returns what shows a message over the last line, until the next change there.
    pub(super) fn notice(&self, message: &str) -> String {
        let (rows, cols) = (self.host.rows(), self.host.cols());
        let message: String = message.chars().take(cols.into()).collect();
        let cursor = self.model.cursor();
        let (row, col) = (cursor.row + 1, cursor.col + 1);
        format!("\x1b[{rows};1H\x1b[0;7m{message}\x1b[m\x1b[K\x1b[{row};{col}H")
    }

    /// Returns the lines of the screen without colours, and without empty lines at the end.
    pub(super) fn text(&self) -> String {
        let lines = self.model.primary_screen().text();
        let mut text = String::new();
        for line in lines {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// Returns the number of the last row that is not empty, from 1.
    fn last_row(&self) -> usize {
        let lines = self.model.screen().visible_lines();
        let used = lines
            .enumerate()
            .filter(|(_, line)| !line.text().trim_end().is_empty())
            .map(|(index, _)| index + 1);
        used.last().unwrap_or(1)
    }

    /// Returns whether the output of the agent draws the same on the user's terminal.
    fn is_direct(&self) -> bool {
        self.size == self.host
    }

    fn redraw_after(&self, was_direct: bool) -> String {
        if !self.is_shown {
            return String::new();
        }
        let mut text = String::new();
        if was_direct && self.filter.modes().alternate {
            text.push_str("\x1b[?1047l");
        }
        text.push_str(&self.redraw());
        text
    }

    /// Returns what draws the whole screen on a terminal that shows its primary screen.
    fn redraw(&self) -> String {
        let modes = self.filter.modes();
        let mut text = format!(
            "{BEGIN_UPDATE}\x1b[m\x1b[?6l\x1b[r\x1b[?7h\x1b[4l\x1b(B\x1b)B\x0f\x1b[H\x1b[2J{}{}",
            self.default_tabs(),
            modes.main_keyboard()
        );
        match self.is_direct() {
            true => text.push_str(&without_repeats(&self.model.dump())),
            false => text.push_str(&self.frame()),
        }
        text.push_str(&modes.keyboard());
        text.push_str(END_UPDATE);
        text
    }

    /// Returns what restores the default tab stops of the user's terminal, every 8 columns, if the agent has changed its own.
    fn default_tabs(&self) -> String {
        if !self.filter.modes().tabs_changed {
            return String::new();
        }
        let mut text = "\x1b[3g".to_owned();
        for column in (9..=self.host.cols()).step_by(8) {
            let _ = write!(text, "\x1b[{column}G\x1bH");
        }
        text.push('\r');
        text
    }

    /// Returns what draws the part of the screen that fits, and the cursor.
    fn frame(&self) -> String {
        let mut text = format!("{BEGIN_UPDATE}\x1b[?25l");
        let lines = self.model.screen().visible_lines();
        for (row, line) in lines.take(self.host.rows().into()).enumerate() {
            let _ = write!(text, "\x1b[{};1H", row + 1);
            draw_line(line, self.host.cols().into(), &mut text);
            text.push_str("\x1b[m\x1b[K");
        }
        let cursor = self.model.cursor();
        let _ = write!(text, "\x1b[{};{}H", cursor.row + 1, cursor.col + 1);
        if cursor.visible {
            text.push_str("\x1b[?25h");
        }
        text.push_str(END_UPDATE);
        text
    }
}

/// Replaces each repeat of a character (REP) by the characters: some terminals repeat ASCII only.
fn without_repeats(dump: &str) -> String {
    let mut text = String::with_capacity(dump.len());
    let mut parts = dump.split("\x1b[");
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit());
        let count = end
            .filter(|end| part.get(*end..).is_some_and(|rest| rest.starts_with('b')))
            .and_then(|end| part.get(..end)?.parse::<usize>().ok());
        match (count, text.chars().last()) {
            (Some(count), Some(last)) => {
                text.extend(std::iter::repeat_n(last, count.min(MAX_CELLS.into())));
                text.push_str(part.split_once('b').map_or("", |(_, rest)| rest));
            }
            _ => {
                text.push_str("\x1b[");
                text.push_str(part);
            }
        }
    }
    text
}

/// Draws the cells of a line that fit, with their attributes, from the first column on.
fn draw_line(line: &Line, width: usize, text: &mut String) {
    let mut pen: Option<&Pen> = None;
    let mut column = 0;
    for cell in line.cells() {
        column += usize::from(cell.width());
        if column > width {
            return;
        }
        // The second half of a wide character.
        if cell.width() == 0 {
            continue;
        }
        if pen != Some(cell.pen()) {
            pen = Some(cell.pen());
            draw_pen(cell.pen(), text);
        }
        text.push(cell.char());
    }
}

fn draw_pen(pen: &Pen, text: &mut String) {
    text.push_str("\x1b[0");
    for (set, code) in [
        (pen.is_bold(), 1),
        (pen.is_faint(), 2),
        (pen.is_italic(), 3),
        (pen.is_underline(), 4),
        (pen.is_blink(), 5),
        (pen.is_inverse(), 7),
        (pen.is_strikethrough(), 9),
    ] {
        if set {
            let _ = write!(text, ";{code}");
        }
    }
    for (color, code) in [(pen.foreground(), 38_u16), (pen.background(), 48)] {
        match color {
            Some(Color::Indexed(index @ 0..=7)) => {
                let _ = write!(text, ";{}", code - 8 + u16::from(index));
            }
            Some(Color::Indexed(index)) => {
                let _ = write!(text, ";{code};5;{index}");
            }
            Some(Color::RGB(rgb)) => {
                let _ = write!(text, ";{code};2;{};{};{}", rgb.r, rgb.g, rgb.b);
            }
            None => {}
        }
    }
    text.push('m');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(rows: u16, cols: u16) -> TerminalSize {
        TerminalSize::new(rows, cols).unwrap()
    }

    fn screen(size: TerminalSize, host: TerminalSize, output: &[u8]) -> AgentScreen {
        let mut screen = AgentScreen::new(size, host).unwrap();
        assert_eq!(screen.push(output), "");
        screen
    }

    /// The user's terminal, as a model.
    fn terminal(size: TerminalSize) -> Terminal {
        let mut terminal = Terminal::new(size.cols().into(), size.rows().into()).unwrap();
        terminal.feed("$ colibri attach\r\n");
        terminal
    }

    fn lines(terminal: &Terminal) -> Vec<String> {
        let lines = terminal.screen().visible_lines();
        lines
            .map(|line| line.text().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn screen_is_drawn_again_and_followed() {
        let small = size(4, 10);
        for (output, more, expected) in [
            ("one\r\ntwo", " three", ["one", "two three", "", ""]),
            (
                "\x1b[?1049h\x1b[Hfull",
                "\x1b[2;2Hx",
                ["full", " x", "", ""],
            ),
            (
                "shell\x1b[?1049hfull",
                "\x1b[?1049lback",
                ["shellback", "", "", ""],
            ),
            ("1\r\n2\r\n3\r\n4\r\n5", "\r\n6", ["3", "4", "5", "6"]),
            ("\x1b[2;3rabc", "\r\nd\r\ne\r\nf", ["abc", "e", "f", ""]),
            ("0123456789", "ab", ["0123456789", "ab", "", ""]),
        ] {
            let mut screen = screen(small, small, output.as_bytes());
            let mut terminal = terminal(small);
            terminal.feed(screen.show(false).as_str());
            terminal.feed(screen.push(more.as_bytes()).as_str());
            assert_eq!(lines(&terminal), expected, "{output:?}");
        }
    }

    #[test]
    fn other_size_shows_frames_of_the_screen() {
        let (agent, host) = (size(3, 10), size(5, 20));
        let mut screen = screen(agent, host, b"1\r\n2\r\n\x1b[31m3");
        let mut terminal = terminal(host);
        terminal.feed(screen.show(false).as_str());
        // The line feed at the bottom of the agent's terminal scrolls it, but not the user's.
        terminal.feed(screen.push(b"\r\n4\x1b[?1049hwide\xe2\x82\xac").as_str());
        assert_eq!(lines(&terminal), ["", "", " wide€", "", ""]);
        assert_eq!(terminal.active_screen_kind(), ScreenKind::Primary);
        terminal.feed(screen.push(b"\x1b[?1049l").as_str());
        assert_eq!(lines(&terminal), ["2", "3", "4", "", ""]);
        // When the sizes agree, the output is passed on.
        terminal.feed(screen.resize(host).as_str());
        assert_eq!(screen.push(b"!"), "!");
        terminal.resize(8, 2);
        terminal.feed(screen.resize_host(size(2, 8)).as_str());
        assert_eq!(lines(&terminal), ["2", "3"], "the part that fits");
    }

    #[test]
    fn hidden_screen_leaves_no_modes() {
        let small = size(4, 10);
        let output =
            b"\x1b[?1049h\x1b[?1000;1006;2004h\x1b[?25l\x1b[?1h\x1b[2;3r\x1b[31mx\x1b[?6h\x1b[>1u";
        let mut screen = screen(small, small, output);
        let mut terminal = terminal(small);
        terminal.feed(screen.show(true).as_str());
        assert_eq!(terminal.active_screen_kind(), ScreenKind::Alternate);
        let hidden = screen.hide(false);
        for mode in ["?1000l", "?1006l", "?2004l", "=0;1u", "?25h"] {
            assert!(hidden.contains(&format!("\x1b[{mode}")), "{mode}");
        }
        terminal.feed(hidden.as_str());
        assert_eq!(terminal.active_screen_kind(), ScreenKind::Primary);
        assert!(terminal.cursor().visible && !terminal.cursor_key_app_mode());
        assert_eq!(terminal.cursor().col, 0);
        terminal.feed("1\r\n2\r\n3\r\n4\r\n5");
        assert_eq!(
            lines(&terminal),
            ["2", "3", "4", "5"],
            "the region is reset"
        );
    }

    #[test]
    fn hidden_screen_leaves_default_tab_stops() {
        let small = size(4, 20);
        for output in ["\x1b[3g", "\x1b[9G\x1b[g\r", "\x1b[5G\x1bH\r"] {
            let mut screen = screen(small, small, output.as_bytes());
            let mut terminal = terminal(small);
            terminal.feed(screen.show(false).as_str());
            terminal.feed(screen.hide(false).as_str());
            terminal.feed("\ta\tb");
            assert_eq!(lines(&terminal)[3], "        a       b", "{output:?}");
        }
    }

    #[test]
    fn keyboard_flags_follow_the_screen_of_an_agent() {
        let (agent, host) = (size(4, 10), size(5, 20));
        let mut screen = screen(agent, host, b"\x1b[>1u");
        assert!(screen.show(true).contains("\x1b[=1;1u"));
        let chunks: [(&[u8], &str); 3] = [
            (b"\x1b[?1049h\x1b[>5u", "\x1b[=5;1u"),
            (b"\x1b[?1049l", "\x1b[=1;1u"),
            (b"\x1bc", "\x1b[=0;1u"),
        ];
        for (chunk, flags) in chunks {
            let shown = screen.push(chunk);
            assert!(shown.contains(flags), "{chunk:?} {shown:?}");
        }
    }

    #[test]
    fn ended_screen_remains_above_the_cursor() {
        let small = size(4, 10);
        for (output, row) in [("one\r\ntwo", 2), ("one\r\n\r\ntwo\x1b[H", 3)] {
            let mut screen = screen(small, small, output.as_bytes());
            let mut terminal = terminal(small);
            terminal.feed(screen.show(false).as_str());
            let shown = lines(&terminal);
            terminal.feed(screen.hide(true).as_str());
            assert_eq!(lines(&terminal), shown);
            assert_eq!((terminal.cursor().row, terminal.cursor().col), (row, 0));
        }
    }

    #[test]
    fn repeats_become_characters() {
        for (dump, expected) in [
            ("─\x1b[3bx", "────x"),
            ("a\x1b[2b\x1b[31mb\x1b[1b", "aaa\x1b[31mbb"),
            ("\x1b[4;2H", "\x1b[4;2H"),
            (
                "a\x1b[9999999999999999999999b",
                "a\x1b[9999999999999999999999b",
            ),
        ] {
            assert_eq!(without_repeats(dump), expected);
        }
    }

    #[test]
    fn queries_of_the_past_are_not_repeated() {
        let small = size(4, 10);
        let mut screen = screen(small, small, b"\x1b[6n\x1b[c\x1b]11;?\x07");
        let shown = screen.show(true);
        assert!(!shown.contains("\x1b[6n") && !shown.contains("\x1b[c") && !shown.contains("11;?"));
        assert_eq!(screen.push(b"\x1b[6n"), "\x1b[6n");
    }

    #[test]
    fn text_of_an_ended_agent_has_no_sequences() {
        let screen = screen(size(3, 10), size(3, 10), b"\x1b[31mred\x1b[m\r\nlast\r\n");
        assert_eq!(screen.text(), "red\nlast");
    }

    proptest! {
        #[test]
        fn replayed_screen_equals_that_of_a_direct_feed(
            parts in proptest::collection::vec(
                prop_oneof![
                    "[a-z ]{0,30}",
                    "\x1b\\[[0-9]{1,2};[0-9]{1,2}H",
                    "\x1b\\[[0-9]{1,2}[ABCDJKLMPXm@]",
                    Just("\r\n".to_owned()),
                    Just("界".to_owned()),
                    Just("\x1b[?1049h".to_owned()),
                    Just("\x1b[?1049l".to_owned()),
                    Just("\x1b[2;5r".to_owned()),
                    Just("\x1b7".to_owned()),
                    Just("\x1b8".to_owned()),
                ],
                0..60,
            ),
            at in any::<prop::sample::Index>(),
        ) {
            let small = size(6, 20);
            let output = parts.concat();
            let bytes = output.as_bytes();
            let (before, after) = bytes.split_at(at.index(bytes.len() + 1));
            let mut direct = Terminal::new(20, 6).unwrap();
            direct.feed(output.as_str());
            let mut screen = AgentScreen::new(small, small).unwrap();
            screen.push(before);
            let mut replayed = terminal(small);
            replayed.feed(screen.show(false).as_str());
            replayed.feed(screen.push(after).as_str());
            prop_assert_eq!(lines(&replayed), lines(&direct));
            prop_assert_eq!(replayed.cursor(), direct.cursor());
        }

        #[test]
        fn any_bytes_and_sizes_are_accepted(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10),
            rows in 1_u16..60,
            cols in 1_u16..60,
        ) {
            let mut screen = AgentScreen::new(size(rows, cols), size(24, 80)).unwrap();
            screen.show(true);
            for chunk in &chunks {
                screen.push(chunk);
                screen.resize(size(cols, rows));
                screen.resize_host(size(rows, cols));
            }
            screen.hide(true);
        }
    }
}
