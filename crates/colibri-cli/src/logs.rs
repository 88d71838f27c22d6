//! `colibri logs`: prints an agent's output from an offset, a time or a line on.

use std::collections::HashMap;
use std::io;

use colibri_client::{
    Client, ClientError, ErrorKind, FollowEvent, FollowStream, OutputChunk, OutputReader,
    ReadParams, Stream, StreamChoice, StreamRange, SubscribeParams, last_lines,
};
use jiff::{SignedDuration, Timestamp};

use crate::args::{Global, LogsArgs};
use crate::connect::{connect_to, endpoint};
use crate::error::CliError;
use crate::output;
use crate::sink::watch_stdout_reader;

/// Prints the kept output, or follows the output until the agent has ended or the reader has closed stdout.
pub(crate) async fn logs(global: &Global, options: LogsArgs) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let client = connect_to(&endpoint).await?;
    let agent = client.find_agent(&options.agent.id).await?;
    let mut streams = vec![Stream::Stdout, Stream::Stderr];
    streams.retain(|stream| options.stream.is_none_or(|only| only == *stream));
    let mut ranges = Vec::new();
    if let Some(count) = options.tail {
        ranges = last_lines(&client, &agent, &streams, count).await?;
        // Output that the agent writes meanwhile is printed too.
        ranges.iter_mut().for_each(|range| range.end = u64::MAX);
    } else {
        for stream in streams {
            let start = start_offset(&client, &agent.id, stream, &options).await?;
            let end = u64::MAX;
            ranges.push(StreamRange { stream, start, end });
        }
    }
    let mut printer = Printer {
        stderr_to_stdout: options.stream.is_some(),
        timestamps: options.timestamps,
        within_line: HashMap::new(),
    };
    if options.follow {
        let params = SubscribeParams {
            stream: options.stream.map(|stream| match stream {
                Stream::Stdout => StreamChoice::Stdout,
                Stream::Stderr => StreamChoice::Stderr,
            }),
            from_offset: start_of(&ranges, Stream::Stdout),
            stderr_from_offset: start_of(&ranges, Stream::Stderr),
            timed: options.timestamps,
            ..SubscribeParams::default()
        };
        return follow(endpoint.follow(client, &agent.id, params), &mut printer).await;
    }
    let mut reader = OutputReader::new(&client, &agent.id, &ranges, options.timestamps);
    while let Some(chunk) = reader.next().await? {
        printer.print(&chunk)?;
    }
    Ok(0)
}

fn start_of(ranges: &[StreamRange], stream: Stream) -> Option<u64> {
    let range = ranges.iter().find(|range| range.stream == stream);
    range.map(|range| range.start)
}

/// Returns the first offset to print. Without `--from` it is not before the oldest kept byte.
async fn start_offset(
    client: &Client,
    id: &str,
    stream: Stream,
    options: &LogsArgs,
) -> Result<u64, CliError> {
    let mut probe = ReadParams {
        id: id.to_owned(),
        stream,
        offset: options.from.unwrap_or(0),
        limit: 0,
        since: options.since.map(|since| since.to_string()),
        timed: false,
    };
    match client.read_journal(probe.clone()).await {
        Ok(read) => Ok(read.offset),
        Err(error) => match (options.from, error.oldest_offset()) {
            (None, Some(oldest)) => {
                output::message(&format!("the first {oldest} bytes are no longer kept"));
                Ok(oldest)
            }
            // `--from` applies to both streams: a shorter one is printed from its end on.
            (Some(_), _) if options.stream.is_none() && is_beyond_end(&error) => {
                probe.since = Some(Timestamp::MAX.to_string());
                Ok(client.read_journal(probe).await?.offset)
            }
            _ => Err(error.into()),
        },
    }
}

fn is_beyond_end(error: &ClientError) -> bool {
    matches!(error, ClientError::Rpc(error) if error.data.kind == ErrorKind::OffsetBeyondEnd)
}

/// Prints kept and new output until the agent has ended or the reader has closed stdout.
async fn follow(mut events: FollowStream, printer: &mut Printer) -> Result<u8, CliError> {
    let mut stdout_closed = watch_stdout_reader()?;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // A write would report this only with the next output.
            _ = &mut stdout_closed => return Ok(0),
        };
        match event {
            None | Some(Ok(FollowEvent::Exit(_))) => return Ok(0),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(FollowEvent::Connection(event))) => output::connection_event(event).await,
            Some(Ok(FollowEvent::Output(chunk))) => printer.print(&chunk)?,
            Some(Ok(_)) => {}
        }
    }
}

/// Prints output unchanged, or with a timestamp before each line.
struct Printer {
    /// A stream that was requested alone goes to stdout.
    stderr_to_stdout: bool,
    timestamps: bool,
    /// Whether the last line of a stream is unfinished.
    within_line: HashMap<Stream, bool>,
}

impl Printer {
    fn print(&mut self, chunk: &OutputChunk) -> Result<(), CliError> {
        if chunk.gap > 0 {
            output::message(&format!("{} bytes are no longer kept", chunk.gap));
        }
        let time = chunk.time.as_deref().unwrap_or("-");
        let stamped = self
            .timestamps
            .then(|| self.stamp(chunk.stream, &chunk.bytes, time));
        let bytes = stamped.as_deref().unwrap_or(&chunk.bytes);
        match chunk.stream {
            Stream::Stderr if !self.stderr_to_stdout => {
                output::write_while_read(io::stderr(), "cannot write to stderr", bytes)
            }
            _ => output::print_while_read(bytes),
        }
    }

    /// Inserts the time of its first byte before each line. A line that began in an earlier chunk has a timestamp.
    fn stamp(&mut self, stream: Stream, bytes: &[u8], time: &str) -> Vec<u8> {
        let within_line = self.within_line.entry(stream).or_default();
        let mut stamped = Vec::with_capacity(bytes.len() + 32);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !*within_line {
                stamped.extend_from_slice(time.as_bytes());
                stamped.push(b' ');
            }
            stamped.extend_from_slice(line);
            *within_line = !line.ends_with(b"\n");
        }
        stamped
    }
}

/// Parses an age like `10m`, or an RFC 3339 time.
pub(crate) fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|age| now.checked_sub(age.abs()).ok())
        .ok_or_else(|| "give an age like 10m or 2h, or a time like 2026-01-31T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_the_time_of_its_first_byte() {
        let mut printer = Printer {
            stderr_to_stdout: false,
            timestamps: true,
            within_line: HashMap::new(),
        };
        let mut printed = Vec::new();
        for (bytes, time) in [
            (&b"one\ntw"[..], "T1"),
            (b"o", "T2"),
            (b"\n\nthree", "T3"),
            (b"\n", "T4"),
            (b"\xff\n", "T5"),
        ] {
            printed.extend(printer.stamp(Stream::Stdout, bytes, time));
        }
        assert_eq!(printed, b"T1 one\nT1 two\nT3 \nT3 three\nT5 \xff\n");
    }

    #[test]
    fn since_is_an_age_or_a_time() {
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
