//! Removes from an agent's output what harms the user's terminal, and keeps what a full-screen program needs.
//!
//! Only listed sequences pass, each written anew from its parsed parts. Dropped are writes to the clipboard (OSC 52), files and
//! images (OSC 1337, DCS, APC), sequences for a multiplexer around (DCS), reports of titles, settings and window positions,
//! window operations, printing, and changes of the palette. See docs/security.md.

use colibri_client::MAX_CELLS;
use vte::{Params, Parser, Perform};

use super::modes::Modes;

/// Maximum length of a title, in characters.
const MAX_TITLE: usize = 256;
/// Maximum length of an operating system command, in bytes. The parser truncates longer ones, which are dropped.
const MAX_OSC: usize = 1000;

/// Filters the output of one agent.
#[derive(Default)]
pub(super) struct OutputFilter {
    parser: Parser,
    /// The first bytes of a UTF-8 sequence whose last bytes are in the next chunk.
    incomplete: Vec<u8>,
    sequences: Sequences,
}

/// The part of an output that passed the filter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filtered {
    /// Everything that passed.
    pub(super) all: String,
    /// The part of it that draws nothing: modes, titles, bells and queries.
    pub(super) control: String,
}

impl OutputFilter {
    /// Passes the queries that programs need: device attributes, cursor position, colours and modes. The terminal answers
    /// them as input.
    pub(super) fn pass_queries(&mut self, pass: bool) {
        self.sequences.passes_queries = pass;
    }

    /// Sets the number of columns, which limits the repeats of a character (REP).
    pub(super) fn set_columns(&mut self, columns: u16) {
        self.sequences.columns = Some(columns);
    }

    /// Returns the modes that the output has set so far.
    pub(super) fn modes(&self) -> &Modes {
        &self.sequences.modes
    }

    /// Returns the part of the next chunk that passes. The result does not depend on the chunk boundaries.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Filtered {
        self.incomplete.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.incomplete);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            // One character at a time: see the parser of colibri-glasspane.
            for c in chunk.valid().chars() {
                let mut buffer = [0; 4];
                let encoded = c.encode_utf8(&mut buffer).as_bytes();
                self.parser.advance(&mut self.sequences, encoded);
            }
            let invalid = chunk.invalid();
            let is_incomplete =
                std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_incomplete && chunks.peek().is_none() {
                self.incomplete = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.sequences.print(char::REPLACEMENT_CHARACTER);
            }
        }
        std::mem::take(&mut self.sequences.filtered)
    }
}

/// Writes the sequences that pass.
#[derive(Default)]
struct Sequences {
    filtered: Filtered,
    modes: Modes,
    passes_queries: bool,
    /// The columns of the agent's terminal, if they are known.
    columns: Option<u16>,
}

/// Whether a sequence draws.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Draws,
    Controls,
}

impl Sequences {
    fn emit(&mut self, text: &str, effect: Effect) {
        self.filtered.all.push_str(text);
        if effect == Effect::Controls {
            self.filtered.control.push_str(text);
        }
    }

    /// Writes a control sequence with these parameters.
    fn emit_csi(&mut self, prefix: &str, params: &str, suffix: &str, effect: Effect) {
        self.emit(&format!("\x1b[{prefix}{params}{suffix}"), effect);
    }

    /// Sets or resets the private modes that are known, one by one.
    fn private_modes(&mut self, params: &Params, last: char) {
        for param in params {
            let [mode] = param else { continue };
            if self.modes.set(*mode, last == 'h') {
                let effect = match Modes::is_drawing(*mode) {
                    true => Effect::Draws,
                    false => Effect::Controls,
                };
                self.emit_csi("?", &mode.to_string(), &last.to_string(), effect);
            }
        }
    }
}

/// Returns the parameters as text; nothing for a single 0, which is the default of all sequences.
fn text_of(params: &Params) -> String {
    let params: Vec<String> = params
        .iter()
        .map(|param| {
            let parts: Vec<String> = param.iter().map(ToString::to_string).collect();
            parts.join(":")
        })
        .collect();
    match params.as_slice() {
        [zero] if zero == "0" => String::new(),
        params => params.join(";"),
    }
}

/// Returns the first parameter, 0 by default.
fn first(params: &Params) -> u16 {
    let first = params.iter().next().and_then(|param| param.first());
    first.copied().unwrap_or_default()
}

impl Perform for Sequences {
    fn print(&mut self, c: char) {
        if !c.is_control() {
            self.filtered.all.push(c);
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            7 => self.emit("\x07", Effect::Controls),
            // Backspace, tab, line feeds, carriage return, and shifts of the character set.
            8..=15 => self.filtered.all.push(char::from(byte)),
            // ENQ requests an answer; the rest does nothing, or obeys another protocol.
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, last: char) {
        if ignore {
            return;
        }
        let text = text_of(params);
        let first = first(params);
        let second = params.iter().nth(1).and_then(|param| param.first());
        let second = second.copied();
        let queries = self.passes_queries;
        let (prefix, suffix, effect) = match (intermediates, last) {
            ([], 'T') if params.len() > 1 => return,
            // Programs repeat a character within a line. The work grows with the count, also in the user's terminal.
            ([], 'b') => {
                let count = first.clamp(1, self.columns.unwrap_or(MAX_CELLS));
                return self.emit_csi("", &count.to_string(), "b", Effect::Draws);
            }
            (
                [],
                '@'
                | 'A'..='M'
                | 'P'
                | 'S'
                | 'T'
                | 'X'
                | 'Z'
                | '`'
                | 'a'
                | 'd'
                | 'e'
                | 'f'
                | 'm'
                | 'r'
                | 's'
                | 'u',
            ) => ("", last.to_string(), Effect::Draws),
            ([], 'g') => {
                self.modes.tabs_changed = true;
                ("", "g".to_owned(), Effect::Draws)
            }
            ([], 'h' | 'l') if text == "4" => ("", last.to_string(), Effect::Draws),
            ([], 'c') if queries => ("", "c".to_owned(), Effect::Controls),
            ([], 'n') if queries && matches!(first, 5 | 6) => {
                ("", "n".to_owned(), Effect::Controls)
            }
            ([b'?'], 'h' | 'l') => return self.private_modes(params, last),
            ([b'?'], 'J' | 'K') => ("?", last.to_string(), Effect::Draws),
            ([b'?'], 'n') if queries && matches!(first, 6 | 996) => {
                ("?", "n".to_owned(), Effect::Controls)
            }
            ([b'?'], 'u') if queries => ("?", "u".to_owned(), Effect::Controls),
            ([b'?', b'$'], 'p') if queries => ("?", "$p".to_owned(), Effect::Controls),
            ([b'>'], 'm') => {
                if !self.modes.modify_keys(first, second) {
                    return;
                }
                let params = match second {
                    Some(value) => format!("{first};{value}"),
                    None => text,
                };
                return self.emit_csi(">", &params, "m", Effect::Controls);
            }
            ([b'>' | b'<' | b'='], 'u') => {
                match intermediates {
                    [b'>'] => self.modes.push_keyboard(first),
                    [b'<'] => self.modes.pop_keyboard(first),
                    _ => self.modes.set_keyboard(first, second.unwrap_or(1)),
                }
                let flags = self.modes.keyboard();
                return self.emit(&flags, Effect::Controls);
            }
            ([b' '], 'q') => {
                self.modes.cursor_style = first;
                ("", " q".to_owned(), Effect::Controls)
            }
            ([b' '], '@' | 'A') => ("", format!(" {last}"), Effect::Draws),
            ([b'!'], 'p') => ("", "!p".to_owned(), Effect::Draws),
            _ => return,
        };
        self.emit_csi(prefix, &text, &suffix, effect);
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        if ignore {
            return;
        }
        let effect = match (intermediates, byte) {
            ([], b'H') => {
                self.modes.tabs_changed = true;
                Effect::Draws
            }
            ([], b'7' | b'8' | b'D' | b'E' | b'M') | ([b'#'], b'8') => Effect::Draws,
            ([b'(' | b')'], b'0' | b'A' | b'B') => Effect::Draws,
            ([], b'=' | b'>') => {
                self.modes.keypad = byte == b'=';
                Effect::Controls
            }
            ([], b'c') => {
                // The model resets its screen. A terminal of another size does not get the sequence.
                let modes = self.modes.reset();
                self.emit(&modes, Effect::Controls);
                Effect::Draws
            }
            _ => return,
        };
        let intermediate = intermediates.first().map(|byte| char::from(*byte));
        let text: String = ['\x1b']
            .into_iter()
            .chain(intermediate)
            .chain([char::from(byte)])
            .collect();
        self.emit(&text, effect);
    }

    fn osc_dispatch(&mut self, params: &[&[u8]], _bell_terminated: bool) {
        let length: usize = params.iter().map(|param| param.len() + 1).sum();
        if length > MAX_OSC {
            return;
        }
        let Some((command, rest)) = params.split_first() else {
            return;
        };
        // Decoded without control characters, so that no part of it ends the command early.
        let text: String = String::from_utf8_lossy(&rest.join(&b';'))
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        let text = match *command {
            b"0" | b"1" | b"2" => {
                let title: String = text.chars().take(MAX_TITLE).collect();
                self.modes.title = Some(title.clone());
                title
            }
            b"8" => text,
            b"10" | b"11" if text == "?" && self.passes_queries => text,
            _ => return,
        };
        let command = String::from_utf8_lossy(command);
        let effect = match &*command {
            "8" => Effect::Draws,
            _ => Effect::Controls,
        };
        self.emit(&format!("\x1b]{command};{text}\x1b\\"), effect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(bytes: &[u8], queries: bool) -> String {
        let mut filter = OutputFilter::default();
        filter.pass_queries(queries);
        filter.push(bytes).all
    }

    #[test]
    fn drawing_passes_unchanged() {
        for text in [
            "plain ä € 🦜\r\n\t\x08",
            "\x1b[31;1mred\x1b[m\x1b[38:2:1:2:3mrgb\x1b[4:3mcurly",
            "\x1b[2J\x1b[H\x1b[3;4H\x1b[K\x1b[1;20r\x1b[5A\x1b[10b\x1b[2 q",
            "\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?1006h\x1b[?2026h",
            "\x1b7\x1b8\x1bM\x1b(0lqk\x1b(B\x1b=\x1b>",
            "\x1b[=5;1u\x1b[>4;2m\x1b[>1m\x1b[3g\x1bH",
            "\x1b]0;title\x1b\\\x1b]8;id=1;https://example.org\x1b\\link\x1b]8;;\x1b\\",
            "\x07",
        ] {
            assert_eq!(filtered(text.as_bytes(), false), text, "{text:?}");
        }
        assert_eq!(filtered(b"\x1b[0m\x1b[;5H", false), "\x1b[m\x1b[0;5H");
        assert_eq!(filtered(b"\x1b]2;x\x07", false), "\x1b]2;x\x1b\\");
        assert_eq!(filtered(b"\xffa", false), "\u{fffd}a");
        // Pushes and pops of keyboard flags become the flags that apply.
        assert_eq!(
            filtered(b"\x1b[>1u\x1b[>5u\x1b[<u", false),
            "\x1b[=1;1u\x1b[=5;1u\x1b[=1;1u"
        );
    }

    #[test]
    fn dangerous_sequences_are_dropped() {
        for text in [
            "\x1b]52;c;cm0gLXJm\x07",
            "\x1b]52;c;?\x1b\\",
            "\x1b]1337;File=name=eA==;inline=0:eA==\x07",
            "\x1b]9;notification\x07",
            "\x1b]777;notify;a;b\x07",
            "\x1b]7;file://host/etc\x07",
            "\x1b]4;1;?\x07\x1b]4;1;red\x07",
            "\x1b]10;red\x07\x1b]11;#000000\x07\x1b]12;?\x07",
            "\x1b]50;font\x07",
            "\x1bPtmux;\x1b\x1b]52;c;eA==\x07\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1bPq#0;2;0;0;0\x1b\\",
            "\x1b_Gf=32;AAAA\x1b\\",
            "\x1b^private\x1b\\\x1bXstring\x1b\\",
            "\x1b[21t\x1b[20t\x1b[14t\x1b[8;50;100t\x1b[3;0;0t",
            "\x1b[5i\x1b[4i\x1b[?5i",
            "\x1b[>c\x1b[=c\x1b[>q\x1b[x\x1b[1;1;1;1;1*y",
            "\x1b[?3h\x1b[?40h\x1b[?1001h\x1b[?2048h\x1b[?69h",
            "\x1b[?15n\x1b[?26n\x1b[?63n",
            "\x1b[>8;1m\x1b[>65535m",
            "\x1b[1;2;3;4;5T",
            "\x1b[62\"p\x1b[1$}\x1b[1;2;3$w",
            "\x1bZ\x1b[20h\x1b[2h\x1b%@\x1b G\x1b[?1r\x1b[?1s",
            "\x05\x11\x13\x00\x7f\u{85}\u{9b}21t\u{9d}52;c;eA==\u{9c}",
        ] {
            let out = filtered(text.as_bytes(), true);
            let printable = out.chars().all(|c| !c.is_control());
            assert!(printable && !out.contains('\x1b'), "{text:?} -> {out:?}");
        }
    }

    #[test]
    fn queries_pass_only_if_input_reaches_the_agent() {
        for text in [
            "\x1b[c",
            "\x1b[6n",
            "\x1b[5n",
            "\x1b[?6n",
            "\x1b[?996n",
            "\x1b[?u",
            "\x1b[?2026$p",
            "\x1b]10;?\x1b\\",
            "\x1b]11;?\x1b\\",
        ] {
            assert_eq!(filtered(text.as_bytes(), true), text, "{text:?}");
            assert_eq!(filtered(text.as_bytes(), false), "", "{text:?}");
        }
    }

    #[test]
    fn long_command_is_dropped_and_bounded() {
        let mut filter = OutputFilter::default();
        filter.push(b"\x1b]8;;");
        for _ in 0..100 {
            filter.push(&[b'x'; 1000]);
        }
        assert_eq!(filter.push(b"\x07after").all, "after");
        let title = format!("\x1b]0;{}\x07", "x".repeat(900));
        assert!(filter.push(title.as_bytes()).all.len() < 300);
    }

    #[test]
    fn control_is_separate_from_drawing() {
        let mut filter = OutputFilter::default();
        filter.pass_queries(true);
        let filtered = filter.push(b"a\x1b[31m\x1b[?1049h\x1b[?2004h\x07\x1b[6n\x1b]0;t\x07");
        assert_eq!(filtered.control, "\x1b[?2004h\x07\x1b[6n\x1b]0;t\x1b\\");
    }

    #[test]
    fn repeats_are_limited_to_the_columns() {
        for (columns, output, expected) in [
            (Some(80), "x\x1b[65535b", "x\x1b[80b"),
            (Some(80), "x\x1b[79b", "x\x1b[79b"),
            (Some(80), "x\x1b[b\x1b[0b", "x\x1b[1b\x1b[1b"),
            (None, "x\x1b[65535b", "x\x1b[1000b"),
        ] {
            let mut filter = OutputFilter::default();
            if let Some(columns) = columns {
                filter.set_columns(columns);
            }
            assert_eq!(filter.push(output.as_bytes()).all, expected);
        }
    }

    #[test]
    fn reset_resets_the_modes_of_a_terminal_of_another_size() {
        let mut filter = OutputFilter::default();
        filter.push(b"\x1b[?1000h\x1b[>4;2m");
        let filtered = filter.push(b"\x1bc");
        assert_eq!(filtered.control, "\x1b[?1000l\x1b[>4;0m");
        assert_eq!(filtered.all, "\x1b[?1000l\x1b[>4;0m\x1bc");
    }

    proptest! {
        #[test]
        fn result_is_independent_of_chunks(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b']'), Just(b';'), Just(b'?'), Just(0xc3)],
                0..200,
            ),
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(bytes.len() + 1);
            let mut filter = OutputFilter::default();
            let mut split = filter.push(&bytes[..at]).all;
            split.push_str(&filter.push(&bytes[at..]).all);
            let whole = filtered(&bytes, false);
            prop_assert_eq!(&split, &whole);
            // What passed passes again, and nothing in it is an 8-bit control.
            prop_assert_eq!(filtered(whole.as_bytes(), true), whole.clone());
            let has_8_bit_control = whole.chars().any(|c| ('\u{7f}'..='\u{9f}').contains(&c));
            prop_assert!(!has_8_bit_control);
        }
    }
}
