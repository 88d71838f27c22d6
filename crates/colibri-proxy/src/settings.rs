//! What `run` passes to `serve` over their connection: the rules, and secrets, which must not be in argv or the environment.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Maximum length of a message, in bytes: the settings, or a bundle of certificates.
const MAX_LENGTH: u32 = 4 * 1024 * 1024;

/// A credential, as `run` read it.
#[derive(Serialize, Deserialize)]
pub(crate) struct CredentialSetting {
    /// A [`colibri_jail_core::CredentialRule`].
    pub(crate) rule: String,
    pub(crate) placeholder: Option<String>,
    pub(crate) key: String,
}

/// The settings of `serve`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Settings {
    /// [`colibri_jail_core::NetworkRule`]s.
    pub(crate) rules: Vec<String>,
    pub(crate) credentials: Vec<CredentialSetting>,
    /// Private key of the authority, in PKCS #8, if TLS is terminated.
    pub(crate) authority_key: Option<Vec<u8>>,
    /// File with further root certificates.
    pub(crate) roots_file: Option<PathBuf>,
    /// `serve` answers by a message with all root certificates in PEM.
    pub(crate) wants_roots: bool,
    /// Refusals are written to standard output.
    pub(crate) events: bool,
}

impl Settings {
    /// Sends the settings.
    pub(crate) fn send(&self, connection: &UnixStream) -> io::Result<()> {
        send_message(connection, &serde_json::to_vec(self)?)
    }

    /// Receives the settings, and no byte after them.
    pub(crate) fn receive(connection: &UnixStream) -> io::Result<Self> {
        Ok(serde_json::from_slice(&receive_message(connection)?)?)
    }
}

/// Sends a message: its length as four bytes, and its bytes.
pub(crate) fn send_message(mut connection: &UnixStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len())
        .ok()
        .filter(|length| *length <= MAX_LENGTH)
        .ok_or_else(|| io::Error::other("the message is too long; give fewer rules"))?;
    connection.write_all(&length.to_be_bytes())?;
    connection.write_all(message)
}

/// Receives a message, and no byte after it.
pub(crate) fn receive_message(mut connection: &UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    connection.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_LENGTH {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = Vec::new();
    connection.take(length.into()).read_to_end(&mut message)?;
    match message.len() == length as usize {
        true => Ok(message),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn received_settings_are_the_sent_ones() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let settings = Settings {
            rules: vec!["a:1".repeat(100_000)],
            credentials: vec![CredentialSetting {
                rule: "K@a".into(),
                placeholder: None,
                key: "s".into(),
            }],
            authority_key: Some(vec![0, 255]),
            roots_file: Some("/x".into()),
            wants_roots: false,
            events: true,
        };
        let thread = std::thread::spawn(move || {
            settings.send(&sender).unwrap();
            (&sender).write_all(b"L").unwrap();
            settings.rules
        });
        let received = Settings::receive(&receiver).unwrap();
        assert_eq!(received.rules, thread.join().unwrap());
        assert_eq!(received.authority_key, Some(vec![0, 255]));
        assert_eq!(received.credentials[0].key, "s");
        let mut rest = Vec::new();
        (&receiver).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"L");
    }

    #[test]
    fn closed_connection_and_huge_length_are_errors() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        (&sender).write_all(&[255; 4]).unwrap();
        assert!(Settings::receive(&receiver).is_err());
        drop(sender);
        assert!(Settings::receive(&receiver).is_err());
    }
}
