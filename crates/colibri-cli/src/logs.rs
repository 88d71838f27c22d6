//! `colibri logs`: what an agent has written, from a byte or a time on, with times if wanted.

use std::io::{self, Write};

use colibri_client::{
    Client, ClientError, ErrorKind, Events, MAX_READ, Notification, OutputData, ReadParams, Stream,
    StreamChoice, SubscribeParams,
};
use jiff::{SignedDuration, Timestamp};

use crate::args::{Global, LogStream, Logs};
use crate::connect::{connect, find};
use crate::error::CliError;
use crate::output;

/// One of the outputs that are shown.
struct Shown {
    stream: Stream,
    offset: u64,
    printer: Printer,
}

/// Prints the whole of it, or follows it to the agent's end.
pub(crate) async fn logs(global: &Global, logs: Logs) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, &logs.id).await?;
    let streams: &[Stream] = match logs.stream {
        None => &[Stream::Stdout, Stream::Stderr],
        Some(LogStream::Stdout) => &[Stream::Stdout],
        Some(LogStream::Stderr) => &[Stream::Stderr],
    };
    let mut shown = Vec::new();
    for stream in streams {
        shown.push(Shown {
            stream: *stream,
            offset: start(&client, &agent.id, *stream, &logs).await?,
            printer: Printer {
                // An agent's stderr is data where it was asked for alone.
                to_stdout: logs.stream.is_some() || *stream == Stream::Stdout,
                timestamps: logs.timestamps,
                within_line: false,
            },
        });
    }
    if logs.follow {
        follow(&client, &agent.id, shown, logs.timestamps).await?;
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

/// Prints what is there. With times, two outputs are printed as they came, chunk by chunk.
async fn all(
    client: &Client,
    id: &str,
    mut shown: Vec<Shown>,
    timed: bool,
) -> Result<(), CliError> {
    let mut next: Vec<Option<Piece>> = Vec::new();
    for shown in &mut shown {
        next.push(read(client, id, shown, timed).await?);
    }
    loop {
        let with_more = next.iter().enumerate().filter_map(|(place, piece)| {
            let piece = piece.as_ref()?;
            Some((place, piece.time.as_ref().filter(|_| timed)))
        });
        // RFC 3339 in UTC sorts as text. Without times all are equal, and the first output comes first.
        let Some((place, _)) = with_more.min_by_key(|(_, time)| *time) else {
            return Ok(());
        };
        if let (Some(shown), Some(slot)) = (shown.get_mut(place), next.get_mut(place)) {
            if let Some(piece) = slot.take() {
                shown.printer.print(&piece.bytes, piece.time.as_deref())?;
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

/// Prints what is there and what comes, until the agent has ended.
async fn follow(
    client: &Client,
    id: &str,
    mut shown: Vec<Shown>,
    timed: bool,
) -> Result<(), CliError> {
    let mut subscriptions = Vec::new();
    for shown in &shown {
        let params = SubscribeParams {
            id: Some(id.to_owned()),
            stream: Some(match shown.stream {
                Stream::Stdout => StreamChoice::Stdout,
                Stream::Stderr => StreamChoice::Stderr,
            }),
            from_offset: Some(shown.offset),
            timed,
            ..SubscribeParams::default()
        };
        subscriptions.push(client.subscribe(params).await?);
    }
    let second = subscriptions.pop();
    let first = subscriptions.pop();
    let mut ended = [first.is_none(), second.is_none()];
    let (mut first, mut second) = (first, second);
    while ended != [true, true] {
        let event = tokio::select! {
            event = next(&mut first), if !ended[0] => { ended[0] = is_end(&event); event }
            event = next(&mut second), if !ended[1] => { ended[1] = is_end(&event); event }
        };
        match event {
            None => return Err(CliError::Lost(id.to_owned())),
            Some(Notification::AgentOutput(chunk)) => {
                let Some(shown) = shown.iter_mut().find(|shown| shown.stream == chunk.stream)
                else {
                    continue;
                };
                let gap = chunk.offset.saturating_sub(shown.offset);
                if gap > 0 {
                    output::note(&format!("{gap} bytes are no longer kept"));
                }
                let bytes = decode(chunk.data)?;
                shown.offset = chunk.offset + bytes.len() as u64;
                shown.printer.print(&bytes, chunk.time.as_deref())?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

async fn next(events: &mut Option<Events>) -> Option<Notification> {
    events.as_mut()?.next().await
}

fn is_end(event: &Option<Notification>) -> bool {
    matches!(event, Some(Notification::AgentExit(_)))
}

/// Writes bytes as they are, or with the time in front of each line.
struct Printer {
    to_stdout: bool,
    timestamps: bool,
    within_line: bool,
}

impl Printer {
    fn print(&mut self, bytes: &[u8], time: Option<&str>) -> Result<(), CliError> {
        let stamped;
        let bytes = if self.timestamps {
            stamped = self.stamp(bytes, time.unwrap_or("-"));
            &stamped
        } else {
            bytes
        };
        if self.to_stdout {
            return output::print(bytes);
        }
        io::stderr()
            .write_all(bytes)
            .map_err(CliError::io("writing to stderr"))
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
