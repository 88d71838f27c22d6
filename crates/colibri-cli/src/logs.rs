//! `colibri logs`: what an agent has written, from a byte or a time on, with times if wanted.

use std::io::{self, Write};

use colibri_client::{
    Client, ClientError, Endpoint, ErrorKind, Follow, Followed, MAX_READ, OutputData, ReadParams,
    Stream, StreamChoice,
};
use jiff::{SignedDuration, Timestamp};

use crate::args::{Global, LogStream, Logs};
use crate::connect::{endpoint, find};
use crate::error::CliError;
use crate::output;
use crate::sink::until_unread;

/// One of the outputs that are shown.
struct Shown {
    stream: Stream,
    offset: u64,
    printer: Printer,
}

/// Prints the whole of it, or follows it to the agent's end.
pub(crate) async fn logs(global: &Global, logs: Logs) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let client = endpoint.connect_or_start(output::link).await?;
    let agent = find(&client, &logs.id).await?;
    let streams: &[Stream] = match logs.stream {
        None => &[Stream::Stdout, Stream::Stderr],
        Some(LogStream::Stdout) => &[Stream::Stdout],
        Some(LogStream::Stderr) => &[Stream::Stderr],
    };
    let tail = match logs.tail {
        Some(count) => crate::tail::starts(&client, &agent, streams, count).await?,
        None => Vec::new(),
    };
    let mut shown = Vec::new();
    for (place, stream) in streams.iter().enumerate() {
        shown.push(Shown {
            stream: *stream,
            offset: match tail.get(place) {
                Some(offset) => *offset,
                None => start(&client, &agent.id, *stream, &logs).await?,
            },
            printer: Printer {
                // An agent's stderr is data where it was asked for alone.
                to_stdout: logs.stream.is_some() || *stream == Stream::Stdout,
                timestamps: logs.timestamps,
                within_line: false,
            },
        });
    }
    if logs.follow {
        follow(&endpoint, client, &agent.id, shown, logs.timestamps).await?;
    } else {
        all(&client, &agent.id, shown, logs.timestamps).await?;
    }
    Ok(0)
}

/// Where to begin. What was not asked for by its offset begins at the oldest byte that is kept.
async fn start(client: &Client, id: &str, stream: Stream, logs: &Logs) -> Result<u64, CliError> {
    let mut probe = ReadParams {
        id: id.to_owned(),
        stream,
        offset: logs.from.unwrap_or(0),
        limit: 0,
        since: logs.since.map(|since| since.to_string()),
        timed: false,
    };
    match client.read_journal(probe.clone()).await {
        Ok(read) => Ok(read.offset),
        Err(ClientError::Rpc(error)) if logs.from.is_none() => match error.data.oldest_offset {
            Some(oldest) => {
                output::note(&format!("the first {oldest} bytes are no longer kept"));
                Ok(oldest)
            }
            None => Err(ClientError::Rpc(error).into()),
        },
        // One of two outputs may well be shorter than the other: it is shown from its end on.
        Err(ClientError::Rpc(error))
            if logs.stream.is_none() && error.data.kind == ErrorKind::OffsetBeyondEnd =>
        {
            probe.since = Some(Timestamp::MAX.to_string());
            Ok(client.read_journal(probe).await?.offset)
        }
        Err(error) => Err(error.into()),
    }
}

/// A piece of output that waits to be printed.
struct Piece {
    bytes: Vec<u8>,
    time: Option<String>,
}

/// Prints the kept output: both streams merged by the times of their chunks.
async fn all(
    client: &Client,
    id: &str,
    mut shown: Vec<Shown>,
    timestamps: bool,
) -> Result<(), CliError> {
    let mut next: Vec<Option<Piece>> = Vec::new();
    for shown in &mut shown {
        next.push(read(client, id, shown, true).await?);
    }
    loop {
        let with_more = next.iter().enumerate().filter_map(|(place, piece)| {
            let piece = piece.as_ref()?;
            Some((place, piece.time.clone()))
        });
        // RFC 3339 in UTC sorts as text; at equal times the first stream comes first.
        let Some((place, _)) = with_more.min_by_key(|(_, time)| time.clone()) else {
            return Ok(());
        };
        // If only one stream has more data, there is nothing to merge, and reads may be long.
        let timed = timestamps || next.iter().flatten().count() > 1;
        if let (Some(shown), Some(slot)) = (shown.get_mut(place), next.get_mut(place)) {
            if let Some(piece) = slot.take()
                && !shown.printer.print(&piece.bytes, piece.time.as_deref())?
            {
                return Ok(());
            }
            *slot = read(client, id, shown, timed).await?;
        }
    }
}

async fn read(
    client: &Client,
    id: &str,
    shown: &mut Shown,
    timed: bool,
) -> Result<Option<Piece>, CliError> {
    loop {
        let params = ReadParams {
            id: id.to_owned(),
            stream: shown.stream,
            offset: shown.offset,
            limit: MAX_READ,
            since: None,
            timed,
        };
        let read = match client.read_journal(params).await {
            // It was dropped while the rest was printed.
            Err(ClientError::Rpc(error)) if error.data.oldest_offset > Some(shown.offset) => {
                let oldest = error.data.oldest_offset.unwrap_or(shown.offset);
                output::note(&format!(
                    "{} bytes are no longer kept",
                    oldest - shown.offset
                ));
                shown.offset = oldest;
                continue;
            }
            other => other?,
        };
        shown.offset = read.next_offset;
        let bytes = decode(read.data)?;
        return Ok(Some(Piece {
            bytes,
            time: read.time,
        })
        .filter(|piece| !piece.bytes.is_empty()));
    }
}

fn decode(data: OutputData) -> Result<Vec<u8>, CliError> {
    data.into_bytes()
        .map_err(|error| CliError::io("reading what the daemon sent")(io::Error::other(error)))
}

/// Prints kept and new output until the agent has ended or the reader has closed stdout.
async fn follow(
    endpoint: &Endpoint,
    client: Client,
    id: &str,
    mut shown: Vec<Shown>,
    timed: bool,
) -> Result<(), CliError> {
    let offset = |stream| {
        let shown = shown.iter().find(|shown| shown.stream == stream);
        shown.map_or(0, |shown| shown.offset)
    };
    let wanted = Follow {
        id: id.to_owned(),
        stream: match shown.as_slice() {
            [only] => Some(match only.stream {
                Stream::Stdout => StreamChoice::Stdout,
                Stream::Stderr => StreamChoice::Stderr,
            }),
            _ => None,
        },
        stdout: offset(Stream::Stdout),
        stderr: offset(Stream::Stderr),
        timed,
    };
    let mut following = endpoint.follow(client, wanted);
    let mut unread = until_unread()?;
    loop {
        let followed = tokio::select! {
            followed = following.next() => followed,
            // Without this branch a closed stdout would be noticed only with the next output.
            _ = &mut unread => return Ok(()),
        };
        match followed {
            None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Followed::Exit(_))) => return Ok(()),
            Some(Ok(Followed::Link(note))) => output::link(note),
            Some(Ok(Followed::Output(output))) => {
                let to = shown.iter_mut().find(|shown| shown.stream == output.stream);
                let Some(shown) = to else { continue };
                if output.gap > 0 {
                    output::note(&format!("{} bytes are no longer kept", output.gap));
                }
                if !shown.printer.print(&output.bytes, output.time.as_deref())? {
                    return Ok(());
                }
            }
            Some(Ok(_)) => {}
        }
    }
}

/// Writes bytes as they are, or with the time in front of each line.
struct Printer {
    to_stdout: bool,
    timestamps: bool,
    within_line: bool,
}

impl Printer {
    /// Prints bytes; returns `false` if the reader has closed stdout.
    fn print(&mut self, bytes: &[u8], time: Option<&str>) -> Result<bool, CliError> {
        let stamped;
        let bytes = if self.timestamps {
            stamped = self.stamp(bytes, time.unwrap_or("-"));
            &stamped
        } else {
            bytes
        };
        if self.to_stdout {
            return output::print_while_read(bytes);
        }
        match io::stderr().write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(CliError::io("writing to stderr")(error)),
        }
    }

    /// A line that began in an earlier piece has the time of that one.
    fn stamp(&mut self, bytes: &[u8], time: &str) -> Vec<u8> {
        let mut stamped = Vec::with_capacity(bytes.len() + 32);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.within_line {
                stamped.extend_from_slice(time.as_bytes());
                stamped.push(b' ');
            }
            stamped.extend_from_slice(line);
            self.within_line = !line.ends_with(b"\n");
        }
        stamped
    }
}

/// `10m` ago, or a time in RFC 3339.
pub(crate) fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|ago| now.checked_sub(ago.abs()).ok())
        .ok_or_else(|| {
            "give a time before now like 10m or 2h, or one like 2026-01-31T12:00:00Z".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_time_of_its_first_byte() {
        let mut printer = Printer {
            to_stdout: true,
            timestamps: true,
            within_line: false,
        };
        let mut shown = Vec::new();
        for (bytes, time) in [
            (&b"one\ntw"[..], "T1"),
            (b"o", "T2"),
            (b"\n\nthree", "T3"),
            (b"\n", "T4"),
            (b"\xff\n", "T5"),
        ] {
            shown.extend(printer.stamp(bytes, time));
        }
        assert_eq!(shown, b"T1 one\nT1 two\nT3 \nT3 three\nT5 \xff\n");
    }

    #[test]
    fn a_time_is_given_from_now_or_as_it_is() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("10m", Some("2026-01-01T23:50:00Z")),
            ("-10m", Some("2026-01-01T23:50:00Z")),
            ("1h 30m", Some("2026-01-01T22:30:00Z")),
            ("2026-01-01T12:00:00+01:00", Some("2026-01-01T11:00:00Z")),
            ("yesterday", None),
            ("", None),
        ] {
            let found = since(text, now).ok().map(|time| time.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
