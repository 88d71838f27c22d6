//! The keys that detach from an agent's terminal.

use std::str::FromStr;

/// Maximum number of keys in a sequence.
const MAX_KEYS: usize = 8;
/// Maximum length of one encoded key, in bytes.
const MAX_ENCODED: usize = 32;
/// Flag of the key Ctrl in a modifier parameter (xterm, kitty keyboard protocol).
const CTRL: u32 = 4;
/// Flags of Caps Lock and Num Lock, which do not matter.
const LOCKS: u32 = 64 | 128;
/// Codes of the modifier keys themselves (kitty keyboard protocol).
const MODIFIER_KEYS: std::ops::RangeInclusive<u32> = 57441..=57454;

/// A sequence of keys in the form of docker(1): `ctrl-p,ctrl-q`, with letters, `@[\]^_` and plain characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// The default, as of docker(1).
    pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys: Option<Vec<u8>> = text.split(',').map(parse_key).collect();
        match keys {
            Some(keys) if keys.len() <= MAX_KEYS => Ok(Self(keys)),
            _ => Err(format!(
                "give 1 to {MAX_KEYS} keys separated by commas, each a character or ctrl- with a letter or one of @[\\]^_"
            )),
        }
    }
}

fn parse_key(text: &str) -> Option<u8> {
    let (control, key) = match text.strip_prefix("ctrl-") {
        Some(key) => (true, key),
        None => (false, text),
    };
    match (control, key.as_bytes()) {
        (true, [key @ (b'a'..=b'z' | b'@' | b'['..=b'_')]) => Some(key & 0x1f),
        (false, [key @ b'!'..=b'~']) => Some(*key),
        _ => None,
    }
}

/// What typed bytes contain.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// Bytes for the agent.
    pub(super) forwarded: Vec<u8>,
    /// The user pressed the keys that detach.
    pub(super) detach: bool,
}

/// Finds the keys in typed bytes. Holds the bytes of a part of the sequence back until it is complete or broken.
pub(super) struct DetachMatcher {
    keys: DetachKeys,
    /// Number of keys that were pressed.
    matched: usize,
    held: Vec<u8>,
    /// The first bytes of an encoded key whose last bytes are in the next chunk.
    partial: Vec<u8>,
}

impl DetachMatcher {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self {
            keys,
            matched: 0,
            held: Vec::new(),
            partial: Vec::new(),
        }
    }

    /// Takes typed bytes. Bytes after the keys are dropped.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Typed {
        let mut input = std::mem::take(&mut self.partial);
        input.extend(bytes);
        let mut typed = Typed::default();
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            let (length, event) = next_key(rest);
            if length == 0 {
                self.partial = rest.to_vec();
                break;
            }
            let (key, after) = rest.split_at(length);
            rest = after;
            self.step(key, event, &mut typed);
            if typed.detach {
                return typed;
            }
        }
        // A lone escape may be a whole key, for which the agent waits.
        if self.partial == b"\x1b" {
            self.partial.clear();
            self.step(b"\x1b", KeyEvent::Press(0x1b), &mut typed);
        }
        typed
    }

    fn step(&mut self, key: &[u8], event: KeyEvent, typed: &mut Typed) {
        let KeyEvent::Press(pressed) = event else {
            // An ignored event neither continues nor breaks the sequence.
            match self.matched {
                0 => typed.forwarded.extend(key),
                _ => self.held.extend(key),
            }
            return;
        };
        if self.keys.0.get(self.matched) != Some(&pressed) && self.matched > 0 {
            typed.forwarded.append(&mut self.held);
            self.matched = 0;
        }
        if self.keys.0.get(self.matched) != Some(&pressed) {
            typed.forwarded.extend(key);
            return;
        }
        self.matched += 1;
        self.held.extend(key);
        if self.matched == self.keys.0.len() {
            self.matched = 0;
            self.held.clear();
            typed.detach = true;
        }
    }
}

/// A key in typed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyEvent {
    /// The key, as the byte that a terminal without a keyboard protocol sends.
    Press(u8),
    /// The release of a key, or an event of a modifier key.
    Ignored,
}

/// A byte that no key of a sequence has.
const OTHER: u8 = 0xff;

/// Returns the length of the first key and what it is; a length of 0 if more bytes are needed.
fn next_key(input: &[u8]) -> (usize, KeyEvent) {
    let Some(parameters) = input.strip_prefix(b"\x1b[") else {
        let first = input.first().copied().unwrap_or(OTHER);
        let length = usize::from(input != b"\x1b");
        return (length, KeyEvent::Press(first));
    };
    let end = parameters
        .iter()
        .position(|byte| !(0x20..=0x3f).contains(byte));
    match end {
        Some(end) => {
            let event = encoded_key(parameters.get(..end).unwrap_or_default(), parameters[end]);
            (end + 3, event)
        }
        None if input.len() < MAX_ENCODED => (0, KeyEvent::Ignored),
        None => (input.len(), KeyEvent::Press(OTHER)),
    }
}

/// Decodes a key of the kitty keyboard protocol (`CSI code:… ; modifiers:event ; … u`) or of xterm's modifyOtherKeys
/// (`CSI 27 ; modifiers ; code ~`).
fn encoded_key(parameters: &[u8], last: u8) -> KeyEvent {
    let other = KeyEvent::Press(OTHER);
    let Ok(text) = std::str::from_utf8(parameters) else {
        return other;
    };
    let fields: Vec<&str> = text.split(';').collect();
    // The event type of every key is in the same place: CSI 1;1:3 A is the release of an arrow.
    let event = fields.get(1).and_then(|field| field.split(':').nth(1));
    if event == Some("3") {
        return KeyEvent::Ignored;
    }
    let (code, modifiers) = match (last, fields.as_slice()) {
        (b'u', [code]) => (*code, "1"),
        (b'u', [code, modifiers, ..]) => (*code, *modifiers),
        (b'~', ["27", modifiers, code]) => (*code, *modifiers),
        _ => return other,
    };
    let number = |text: &str| -> Option<u32> { text.split(':').next()?.parse().ok() };
    let (Some(code), Some(modifiers)) = (number(code), number(modifiers)) else {
        return other;
    };
    if MODIFIER_KEYS.contains(&code) {
        return KeyEvent::Ignored;
    }
    let flags = modifiers.saturating_sub(1) & !LOCKS;
    match u8::try_from(code) {
        Ok(code @ b'@'..=b'~') if flags == CTRL => KeyEvent::Press(code & 0x1f),
        Ok(code @ 0x20..=b'~') if flags == 0 => KeyEvent::Press(code),
        _ => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(keys: &str, chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut matcher = DetachMatcher::new(keys.parse().unwrap());
        let mut all = (Vec::new(), false);
        for chunk in chunks {
            let typed = matcher.push(chunk);
            all.0.extend(typed.forwarded);
            all.1 |= typed.detach;
        }
        all
    }

    #[test]
    fn keys_are_parsed_or_refused() {
        let parse = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(parse("ctrl-p,ctrl-q"), Ok(vec![0x10, 0x11]));
        assert_eq!(parse("ctrl-],~,d"), Ok(vec![0x1d, b'~', b'd']));
        assert_eq!(parse("ctrl-@"), Ok(vec![0]));
        for bad in [
            "",
            "ctrl-",
            "ctrl-1",
            "ab",
            "a,",
            "ä",
            "ctrl-P",
            "a,a,a,a,a,a,a,a,a",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_detach_in_every_encoding_and_chunking() {
        let table: &[&[u8]] = &[
            b"\x10\x11",
            b"\x1b[112;5u\x1b[113;5u",
            b"\x1b[112;5u\x1b[112;5:3u\x1b[113;133u",
            b"\x1b[112:80;69:1;112u\x11",
            b"\x1b[27;5;112~\x1b[27;5;113~",
            // All flags: Ctrl is released and pressed between the keys, and an arrow was pressed before.
            b"\x1b[112;5u\x1b[1;1:3A\x1b[112;5:3u\x1b[57442;5:3u\x1b[57442;5u\x1b[57442;5:2u\x1b[113;5u",
            b"\x1b[112;5u\x1b[3;5:3~\x1b[57448;5u\x1b[57454;5u\x1b[113;5u",
        ];
        for bytes in table {
            for split in 0..=bytes.len() {
                let (before, after) = bytes.split_at(split);
                // A lone escape is forwarded at once.
                if before.last() == Some(&0x1b) {
                    continue;
                }
                let typed = pushed("ctrl-p,ctrl-q", &[b"ls\r", before, after]);
                assert_eq!(typed, (b"ls\r".to_vec(), true), "{bytes:?} {split}");
            }
        }
    }

    #[test]
    fn other_input_is_forwarded_unchanged() {
        let table: &[&[u8]] = &[
            b"\x10x",
            b"\x10\x10x",
            b"\x1b[A\x1b[112;5ux",
            b"\x1b\x1b[200~pasted\x1b[201~",
            b"\x1b[112;5:3u\xc3\xa4",
            b"\x1bOP\x1b[1;5P",
            b"\x1b[57442;5u\x1b[112;5u\x1b[57442;5:3u\x1b[57442;5ux",
            // An arrow, a key next to the modifier keys, and a repeat break the sequence.
            b"\x1b[112;5u\x1b[1;1A\x1b[113;5u",
            b"\x1b[112;5u\x1b[57440;5u\x1b[113;5u",
            b"\x1b[112;5u\x1b[57455;5u\x1b[113;5u",
            b"\x1b[112;5u\x1b[3;1:2~\x1b[113;5u",
        ];
        for bytes in table {
            assert_eq!(pushed("ctrl-p,ctrl-q", &[bytes]), (bytes.to_vec(), false));
        }
        // The first key is held back until the next one.
        assert_eq!(pushed("ctrl-p,ctrl-q", &[b"a\x10"]), (b"a".to_vec(), false));
        assert_eq!(
            pushed("ctrl-p,ctrl-q", &[b"a\x10", b"\x10", b"b"]),
            (b"a\x10\x10b".to_vec(), false)
        );
    }

    #[test]
    fn endless_sequence_is_bounded() {
        let mut matcher = DetachMatcher::new("ctrl-p".parse().unwrap());
        let mut forwarded = matcher.push(b"\x1b[").forwarded.len();
        for _ in 0..1000 {
            forwarded += matcher.push(b"1").forwarded.len();
            assert!(matcher.partial.len() < MAX_ENCODED);
        }
        assert!(forwarded > 900);
    }
}
