//! Finds the offsets of the last lines of an agent's output. Journals are read backwards from their ends, so that the
//! cost depends on the requested lines and not on the length of the journals; memory is bounded by one chunk.

use colibri_client::{Agent, Client, ClientError, MAX_READ, OutputData, ReadParams, Stream};

use crate::error::CliError;

/// Returns the offset in each of `streams` at which the agent's last `count` lines begin. Lines of several streams are
/// counted together, ordered by the times of their first bytes.
pub(crate) async fn starts(
    client: &Client,
    agent: &Agent,
    streams: &[Stream],
    count: u64,
) -> Result<Vec<u64>, CliError> {
    let mut starts = Vec::new();
    let mut lines = 0;
    for stream in streams {
        let journal = Journal {
            client,
            id: &agent.id,
            stream: *stream,
            end: match stream {
                Stream::Stdout => agent.stdout_bytes,
                Stream::Stderr => agent.stderr_bytes,
            },
        };
        let (start, found) = journal.last(count).await?;
        lines += found;
        starts.push(Lines {
            journal,
            start,
            piece: None,
        });
    }
    // Each stream contributed up to `count` lines: skip the oldest ones.
    for _ in count..lines {
        let mut oldest: Option<(String, usize)> = None;
        for (place, of) in starts.iter_mut().enumerate() {
            let Some(time) = of.time().await? else {
                continue;
            };
            // RFC 3339 in UTC sorts as text.
            if oldest.as_ref().is_none_or(|(than, _)| time < *than) {
                oldest = Some((time, place));
            }
        }
        let Some(of) = oldest.and_then(|(_, place)| starts.get_mut(place)) else {
            break;
        };
        of.skip().await?;
    }
    Ok(starts.iter().map(|of| of.start).collect())
}

/// One output up to the offset `end`.
struct Journal<'a> {
    client: &'a Client,
    id: &'a str,
    stream: Stream,
    end: u64,
}

/// Bytes of one output from an offset on, with their time if it was requested.
struct Piece {
    offset: u64,
    bytes: Vec<u8>,
    time: String,
}

impl Journal<'_> {
    /// Returns where the last `count` lines begin, and how many there are.
    async fn last(&self, count: u64) -> Result<(u64, u64), CliError> {
        let (mut place, mut found) = (self.end, 0);
        if count == 0 {
            return Ok((place, 0));
        }
        let mut oldest = self.oldest().await?;
        while place > oldest {
            let from = place.saturating_sub(MAX_READ).max(oldest);
            let bytes = match self.read(from, place).await? {
                Ok(bytes) => bytes,
                // Retention has dropped these bytes meanwhile.
                Err(kept) => {
                    oldest = kept;
                    continue;
                }
            };
            for (at, _) in bytes
                .iter()
                .enumerate()
                .rev()
                .filter(|(_, byte)| **byte == b'\n')
            {
                let start = from + at as u64 + 1;
                // The line feed at the end begins no line.
                if start < self.end {
                    found += 1;
                    if found == count {
                        return Ok((start, found));
                    }
                }
            }
            place = from;
        }
        let first = u64::from(oldest < self.end);
        Ok((oldest.min(self.end), found + first))
    }

    /// Returns the offset of the oldest byte that is kept.
    async fn oldest(&self) -> Result<u64, CliError> {
        match self.client.read_journal(self.params(0, 0, false)).await {
            Ok(_) => Ok(0),
            Err(ClientError::Rpc(error)) if error.data.oldest_offset.is_some() => {
                Ok(error.data.oldest_offset.unwrap_or(0))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads all bytes of a range; the inner error is the oldest kept offset if the start is no longer kept.
    async fn read(&self, from: u64, to: u64) -> Result<Result<Vec<u8>, u64>, CliError> {
        let mut bytes = Vec::new();
        loop {
            let place = from + bytes.len() as u64;
            if place >= to {
                return Ok(Ok(bytes));
            }
            let params = self.params(place, to - place, false);
            let read = match self.client.read_journal(params).await {
                Err(ClientError::Rpc(error)) if error.data.oldest_offset > Some(from) => {
                    return Ok(Err(error.data.oldest_offset.unwrap_or(to)));
                }
                other => other?,
            };
            let more = decode(read.data)?;
            if more.is_empty() {
                return Ok(Ok(bytes));
            }
            bytes.extend(more);
        }
    }

    fn params(&self, offset: u64, limit: u64, timed: bool) -> ReadParams {
        ReadParams {
            id: self.id.to_owned(),
            stream: self.stream,
            offset,
            limit,
            since: None,
            timed,
        }
    }
}

/// The lines of one output, from the line that begins at `start` on.
struct Lines<'a> {
    journal: Journal<'a>,
    start: u64,
    piece: Option<Piece>,
}

impl Lines<'_> {
    /// Returns when the line at `start` began; `None` at the end.
    async fn time(&mut self) -> Result<Option<String>, CliError> {
        let piece = self.piece_at(self.start).await?;
        Ok(piece.map(|piece| piece.time.clone()))
    }

    /// Advances to the next line.
    async fn skip(&mut self) -> Result<(), CliError> {
        let mut place = self.start;
        loop {
            let Some(piece) = self.piece_at(place).await? else {
                self.start = self.journal.end;
                return Ok(());
            };
            let within = usize::try_from(place - piece.offset).unwrap_or(usize::MAX);
            let rest = piece.bytes.get(within..).unwrap_or_default();
            match rest.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    self.start = place + at as u64 + 1;
                    return Ok(());
                }
                None => place += rest.len() as u64,
            }
        }
    }

    /// Returns the piece that contains the byte at `place`.
    async fn piece_at(&mut self, place: u64) -> Result<Option<&Piece>, CliError> {
        if place >= self.journal.end {
            return Ok(None);
        }
        let has = |piece: &Piece| {
            (piece.offset..piece.offset + piece.bytes.len() as u64).contains(&place)
        };
        if !self.piece.as_ref().is_some_and(has) {
            let limit = (self.journal.end - place).min(MAX_READ);
            let params = self.journal.params(place, limit, true);
            let read = self.journal.client.read_journal(params).await?;
            self.piece = Some(Piece {
                offset: read.offset,
                bytes: decode(read.data)?,
                time: read.time.unwrap_or_default(),
            })
            .filter(|piece| !piece.bytes.is_empty());
        }
        Ok(self.piece.as_ref())
    }
}

fn decode(data: OutputData) -> Result<Vec<u8>, CliError> {
    data.into_bytes().map_err(|error| {
        CliError::io("cannot read output that the daemon sent")(std::io::Error::other(error))
    })
}
