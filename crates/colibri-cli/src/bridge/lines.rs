//! Lines of a client of bounded length.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Maximum length of a message of a client, in bytes.
const MAX_LINE: u64 = 8 << 20;

/// Returns the next line without its end; `None` at the end of the input.
pub(crate) async fn next_line(mut input: impl AsyncBufRead + Unpin) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let read = (&mut input)
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .await?;
    let invalid = |problem| io::Error::new(io::ErrorKind::InvalidData, problem);
    match line.pop() {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) if read as u64 == MAX_LINE => return Err(invalid("a message is too long")),
        Some(last) => line.push(last),
    }
    let line = String::from_utf8(line).map_err(|_| invalid("a message is not UTF-8"))?;
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_utf8() {
        let mut input = &b"a\n\nb"[..];
        for expected in [Some("a"), Some(""), Some("b"), None] {
            let line = next_line(&mut input).await.unwrap();
            assert_eq!(line.as_deref(), expected);
        }
        let long = vec![b'x'; 9 << 20];
        for refused in [&long[..], b"\xff\n"] {
            assert!(next_line(refused).await.is_err());
        }
    }
}
