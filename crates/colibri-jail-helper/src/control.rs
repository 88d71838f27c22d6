//! The control socket between the requester of an agent and the agent's monitor (FreeBSD). docs/helper-protocol.md specifies
//! its lines.

use colibri_jail_core::{Signal, SignalScope};

/// Maximum length of a line, in bytes.
const MAX_LINE: usize = 64;

/// A line of the requester: `signal NAME group|all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ControlRequest {
    pub(crate) signal: Signal,
    pub(crate) scope: SignalScope,
}

impl ControlRequest {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let ["signal", name, scope] = words[..] else {
            return None;
        };
        let signal: Signal = name.parse().ok()?;
        let scope = SignalScope::of_name(scope)?;
        (signal.name() == name).then_some(Self { signal, scope })
    }
}

/// Splits a byte stream into requests.
#[derive(Debug, Default)]
pub(crate) struct ControlReader(Vec<u8>);

impl ControlReader {
    /// Returns the requests that these bytes complete; `None` if a line is not a request. The stream cannot be used then.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<Vec<ControlRequest>> {
        self.0.extend_from_slice(bytes);
        let mut requests = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let line = std::str::from_utf8(&line).ok()?;
            requests.push(ControlRequest::parse(line.trim_end_matches('\n'))?);
        }
        (self.0.len() <= MAX_LINE).then_some(requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(name: &str, scope: SignalScope) -> ControlRequest {
        let signal = name.parse().unwrap();
        ControlRequest { signal, scope }
    }

    #[test]
    fn requests_are_read_in_any_portions() {
        let mut reader = ControlReader::default();
        assert_eq!(reader.push(b"signal TE"), Some(vec![]));
        assert_eq!(
            reader.push(b"RM group\nsignal KILL all\nsig"),
            Some(vec![
                request("TERM", SignalScope::Group),
                request("KILL", SignalScope::All)
            ])
        );
        for invalid in [
            "signal TERM",
            "signal TERM all x",
            "signal  TERM all",
            "signal SIGTERM all",
            "signal term all",
            "signal 9 all",
            "remove x y",
            "",
        ] {
            let line = format!("{invalid}\n");
            assert_eq!(
                ControlReader::default().push(line.as_bytes()),
                None,
                "{invalid}"
            );
        }
        assert_eq!(ControlReader::default().push(&[b'x'; 65]), None);
        assert_eq!(ControlReader::default().push(b"signal \xff all\n"), None);
    }

    proptest! {
        #[test]
        fn random_bytes_are_bounded_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = ControlReader::default();
            for portion in bytes.chunks(7) {
                if reader.push(portion).is_none() {
                    break;
                }
                prop_assert!(reader.0.len() <= MAX_LINE);
            }
        }
    }
}
