//! The modes that an agent has set in the user's terminal: to set them again after a detach, and to reset them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Maximum depth of a stack of keyboard flags, as in kitty.
const MAX_KEYBOARD: usize = 8;
/// The known flags of the kitty keyboard protocol.
const KEYBOARD_FLAGS: u16 = 0x1f;
/// The last resource of XTMODKEYS.
const MAX_KEY_RESOURCE: u16 = 7;
/// The resource modifyOtherKeys of XTMODKEYS.
const OTHER_KEYS: u16 = 4;
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
    /// Values of the resources that XTMODKEYS has set.
    modify_keys: BTreeMap<u16, u16>,
    main_keyboard: Keyboard,
    alternate_keyboard: Keyboard,
    /// Tab stops were set or cleared. A reset of the terminal does not change this.
    pub(super) tabs_changed: bool,
}

/// The state of the kitty keyboard protocol on one screen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Keyboard {
    /// The last flags apply.
    stack: Vec<u16>,
    /// The output has changed the flags. A reset of the terminal does not change this.
    is_used: bool,
}

impl Keyboard {
    fn flags(&self) -> u16 {
        self.stack.last().copied().unwrap_or_default()
    }
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

    /// Records the value of a resource of XTMODKEYS; without one, the initial value is restored, of all resources for 0. Returns
    /// `false` for an unknown resource.
    pub(super) fn modify_keys(&mut self, resource: u16, value: Option<u16>) -> bool {
        match (resource, value) {
            (0, None) => self.modify_keys.clear(),
            (OTHER_KEYS, Some(0)) | (_, None) => {
                self.modify_keys.remove(&resource);
            }
            (0..=MAX_KEY_RESOURCE, Some(value)) => {
                self.modify_keys.insert(resource, value);
            }
            _ => {}
        }
        resource <= MAX_KEY_RESOURCE
    }

    /// Returns the keyboard of the screen that is shown, which is about to change.
    fn change_keyboard(&mut self) -> &mut Vec<u16> {
        let keyboard = match self.alternate {
            true => &mut self.alternate_keyboard,
            false => &mut self.main_keyboard,
        };
        keyboard.is_used = true;
        &mut keyboard.stack
    }

    pub(super) fn push_keyboard(&mut self, flags: u16) {
        let stack = self.change_keyboard();
        if stack.len() == MAX_KEYBOARD {
            stack.remove(0);
        }
        stack.push(flags & KEYBOARD_FLAGS);
    }

    pub(super) fn pop_keyboard(&mut self, count: u16) {
        let stack = self.change_keyboard();
        let kept = stack.len().saturating_sub(count.max(1).into());
        stack.truncate(kept);
    }

    /// Changes the current flags: `how` is 1 to replace them, 2 to add, and 3 to remove.
    pub(super) fn set_keyboard(&mut self, flags: u16, how: u16) {
        let flags = flags & KEYBOARD_FLAGS;
        let stack = self.change_keyboard();
        let current = stack.pop().unwrap_or_default();
        stack.push(match how {
            2 => current | flags,
            3 => current & !flags,
            _ => flags,
        });
    }

    fn uses_keyboard(&self) -> bool {
        self.main_keyboard.is_used || self.alternate_keyboard.is_used
    }

    /// Returns what sets the keyboard flags of the agent's main screen.
    pub(super) fn main_keyboard(&self) -> String {
        match self.uses_keyboard() {
            true => format!("\x1b[={};1u", self.main_keyboard.flags()),
            false => String::new(),
        }
    }

    /// Returns what sets the current keyboard flags. The user's terminal has a stack for each of its screens, which nothing
    /// pushes to: only the flags on top are set.
    pub(super) fn keyboard(&self) -> String {
        match self.alternate && self.uses_keyboard() {
            true => format!("\x1b[={};1u", self.alternate_keyboard.flags()),
            false => self.main_keyboard(),
        }
    }

    /// Records a reset of the terminal. Returns what resets the modes in a terminal that is not reset itself.
    pub(super) fn reset(&mut self) -> String {
        let text = self.disable();
        let keyboard = |is_used| Keyboard {
            is_used,
            ..Keyboard::default()
        };
        *self = Self {
            main_keyboard: keyboard(self.main_keyboard.is_used),
            alternate_keyboard: keyboard(self.alternate_keyboard.is_used),
            tabs_changed: self.tabs_changed,
            ..Self::default()
        };
        text
    }

    /// Returns what shows the main screen, and resets the keyboard flags of both screens. `is_alternate` is whether the user's
    /// terminal shows the alternate screen.
    pub(super) fn leave_screens(&self, is_alternate: bool) -> String {
        const RESET: &str = "\x1b[=0;1u";
        let mut text = String::new();
        match (is_alternate, self.alternate_keyboard.is_used) {
            (true, true) => text.push_str(&format!("{RESET}\x1b[?1049l")),
            (true, false) => text.push_str("\x1b[?1049l"),
            (false, true) => text.push_str(&format!("\x1b[?1047h{RESET}\x1b[?1047l")),
            (false, false) => {}
        }
        if self.uses_keyboard() {
            text.push_str(RESET);
        }
        text
    }

    /// Returns the sequences that set these modes in a terminal without them. The keyboard flags depend on the screen: see
    /// [`Modes::keyboard`].
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
        for (resource, value) in &self.modify_keys {
            let _ = write!(text, "\x1b[>{resource};{value}m");
        }
        text
    }

    /// Returns the sequences that reset these modes, without the keyboard flags: see [`Modes::leave_screens`].
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
        for resource in self.modify_keys.keys() {
            match *resource {
                // Some terminals know only this form.
                OTHER_KEYS => text.push_str("\x1b[>4;0m"),
                resource => {
                    let _ = write!(text, "\x1b[>{resource}m");
                }
            }
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
            ("\x1b[>4;2m\x1b[>1m", "\x1b[>4;2m", "\x1b[>4;0m"),
            (
                "\x1b[>1;0m\x1b[>4;2m",
                "\x1b[>1;0m\x1b[>4;2m",
                "\x1b[>1m\x1b[>4;0m",
            ),
            ("\x1b[>1;3m\x1b[>4;2m\x1b[>m", "", ""),
            ("\x1b[>9;3m", "", ""),
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
    fn keyboard_flags_are_kept_and_reset_for_each_screen() {
        let reset = "\x1b[=0;1u";
        let both = format!("\x1b[?1047h{reset}\x1b[?1047l{reset}");
        for (output, main, current, leave) in [
            ("", "", "", String::new()),
            ("\x1b[?1049h", "", "", "\x1b[?1049l".to_owned()),
            (
                "\x1b[>1u\x1b[>5u",
                "\x1b[=5;1u",
                "\x1b[=5;1u",
                reset.to_owned(),
            ),
            (
                "\x1b[>1u\x1b[>5u\x1b[<u",
                "\x1b[=1;1u",
                "\x1b[=1;1u",
                reset.to_owned(),
            ),
            (
                "\x1b[>1u\x1b[=2;2u",
                "\x1b[=3;1u",
                "\x1b[=3;1u",
                reset.to_owned(),
            ),
            ("\x1b[>1u\x1b[<9u", reset, reset, reset.to_owned()),
            (
                "\x1b[>1u\x1b[?1049h",
                "\x1b[=1;1u",
                reset,
                format!("\x1b[?1049l{reset}"),
            ),
            (
                "\x1b[>1u\x1b[?1049h\x1b[>31u",
                "\x1b[=1;1u",
                "\x1b[=31;1u",
                format!("{reset}\x1b[?1049l{reset}"),
            ),
            (
                "\x1b[?1049h\x1b[>31u\x1b[?1049l",
                reset,
                reset,
                both.clone(),
            ),
            ("\x1b[?1049h\x1b[>31u\x1bc", reset, reset, both.clone()),
        ] {
            let modes = modes(output);
            assert_eq!(modes.main_keyboard(), main, "{output:?}");
            assert_eq!(modes.keyboard(), current, "{output:?}");
            assert_eq!(modes.leave_screens(modes.alternate), leave, "{output:?}");
        }
    }

    #[test]
    fn keyboard_stack_is_bounded() {
        let modes = modes(&"\x1b[>1u".repeat(1000));
        assert_eq!(modes.main_keyboard.stack.len(), MAX_KEYBOARD);
    }
}
