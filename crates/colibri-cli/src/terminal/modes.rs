//! The modes that an agent has set in the user's terminal: to set them again after a detach, and to reset them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Maximum depth of the stack of keyboard flags, as in kitty.
const MAX_KEYBOARD: usize = 8;
/// Private mode of cursor keys. The terminal model restores it, although it does not draw.
const CURSOR_KEYS: u16 = 1;
/// Private modes that the terminal model restores, because they change how output is drawn: origin, autowrap, cursor, and the
/// alternate screen.
const DRAWING: &[u16] = &[6, 7, 25, 47, 1047, 1048, 1049];
/// Private modes of the alternate screen.
const ALTERNATE: &[u16] = &[47, 1047, 1049];
/// Private modes that the terminal model does not restore: reverse video, mouse, blinking cursor, keypad, focus, paste,
/// grapheme clusters, and reports of the colour scheme.
const REMEMBERED: &[u16] = &[
    5, 9, 12, 66, 1000, 1002, 1003, 1004, 1005, 1006, 1007, 1015, 1016, 2004, 2027, 2031,
];
/// Private mode of synchronized updates.
const SYNCHRONIZED: u16 = 2026;

/// The modes that differ from those of a terminal without a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Modes {
    private: BTreeSet<u16>,
    /// The alternate screen is shown.
    pub(super) alternate: bool,
    pub(super) keypad: bool,
    /// The last title.
    pub(super) title: Option<String>,
    /// Parameter of DECSCUSR; 0 is the user's style.
    pub(super) cursor_style: u16,
    /// Parameters of modifyOtherKeys; empty without.
    modify_keys: String,
    /// Flags of the kitty keyboard protocol; the last ones apply.
    keyboard: Vec<u16>,
}

impl Modes {
    /// Records a private mode. Returns `false` for one that must not reach the user's terminal.
    pub(super) fn set(&mut self, mode: u16, on: bool) -> bool {
        if ALTERNATE.contains(&mode) {
            self.alternate = on;
        }
        if REMEMBERED.contains(&mode) {
            match on {
                true => self.private.insert(mode),
                false => self.private.remove(&mode),
            };
            return true;
        }
        mode == CURSOR_KEYS || Self::is_drawing(mode)
    }

    /// Returns whether a private mode changes how output is drawn.
    pub(super) fn is_drawing(mode: u16) -> bool {
        DRAWING.contains(&mode) || mode == SYNCHRONIZED
    }

    pub(super) fn modify_keys(&mut self, parameters: &str) {
        let resets = !parameters.contains(';') || parameters.ends_with(";0");
        self.modify_keys = match resets {
            true => String::new(),
            false => parameters.to_owned(),
        };
    }

    pub(super) fn push_keyboard(&mut self, flags: u16) {
        if self.keyboard.len() == MAX_KEYBOARD {
            self.keyboard.remove(0);
        }
        self.keyboard.push(flags);
    }

    pub(super) fn pop_keyboard(&mut self, count: u16) {
        let kept = self.keyboard.len().saturating_sub(count.max(1).into());
        self.keyboard.truncate(kept);
    }

    /// Changes the current flags: `how` is 1 to replace them, 2 to add, and 3 to remove.
    pub(super) fn set_keyboard(&mut self, flags: u16, how: u16) {
        if self.keyboard.is_empty() {
            self.keyboard.push(0);
        }
        if let Some(current) = self.keyboard.last_mut() {
            *current = match how {
                2 => *current | flags,
                3 => *current & !flags,
                _ => flags,
            };
        }
    }

    /// Returns the sequences that set these modes in a terminal without them.
    pub(super) fn enable(&self) -> String {
        let mut text = String::new();
        if let Some(title) = &self.title {
            let _ = write!(text, "\x1b]2;{title}\x1b\\");
        }
        for mode in &self.private {
            let _ = write!(text, "\x1b[?{mode}h");
        }
        if self.keypad {
            text.push_str("\x1b=");
        }
        if self.cursor_style != 0 {
            let _ = write!(text, "\x1b[{} q", self.cursor_style);
        }
        if !self.modify_keys.is_empty() {
            let _ = write!(text, "\x1b[>{}m", self.modify_keys);
        }
        for flags in &self.keyboard {
            let _ = write!(text, "\x1b[>{flags}u");
        }
        text
    }

    /// Returns the sequences that reset these modes.
    pub(super) fn disable(&self) -> String {
        let mut text = String::new();
        for mode in &self.private {
            let _ = write!(text, "\x1b[?{mode}l");
        }
        if self.keypad {
            text.push_str("\x1b>");
        }
        if self.cursor_style != 0 {
            text.push_str("\x1b[0 q");
        }
        if !self.modify_keys.is_empty() {
            text.push_str("\x1b[>4;0m");
        }
        if !self.keyboard.is_empty() {
            let _ = write!(text, "\x1b[<{}u", self.keyboard.len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::filter::OutputFilter;
    use super::*;

    fn modes(text: &str) -> Modes {
        let mut filter = OutputFilter::default();
        filter.push(text.as_bytes());
        filter.modes().clone()
    }

    #[test]
    fn modes_are_set_again_and_reset() {
        for (output, enable, disable) in [
            ("", "", ""),
            (
                "\x1b[?2004;1006h",
                "\x1b[?1006h\x1b[?2004h",
                "\x1b[?1006l\x1b[?2004l",
            ),
            ("\x1b[?2004h\x1b[?2004l", "", ""),
            ("\x1b]0;t\x07", "\x1b]2;t\x1b\\", ""),
            ("\x1b=\x1b[6 q", "\x1b=\x1b[6 q", "\x1b>\x1b[0 q"),
            ("\x1b[>4;2m", "\x1b[>4;2m", "\x1b[>4;0m"),
            ("\x1b[>4;2m\x1b[>4m", "", ""),
            ("\x1b[>1u\x1b[>5u", "\x1b[>1u\x1b[>5u", "\x1b[<2u"),
            ("\x1b[>1u\x1b[>5u\x1b[<u", "\x1b[>1u", "\x1b[<1u"),
            ("\x1b[>1u\x1b[=2;2u", "\x1b[>3u", "\x1b[<1u"),
            ("\x1b[?1000h\x1bc", "", ""),
        ] {
            let modes = modes(output);
            assert_eq!(
                (modes.enable().as_str(), modes.disable().as_str()),
                (enable, disable),
                "{output:?}"
            );
        }
        assert!(modes("\x1b[?1049h").alternate && !modes("\x1b[?1049h\x1b[?1049l").alternate);
    }

    #[test]
    fn keyboard_stack_is_bounded() {
        let modes = modes(&"\x1b[>1u".repeat(1000));
        assert_eq!(modes.keyboard.len(), MAX_KEYBOARD);
    }
}
