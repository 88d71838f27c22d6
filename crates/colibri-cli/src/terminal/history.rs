//! The output from which the screen of an agent is drawn again: the end of its current run.

use colibri_client::{Agent, Client, ClientError, OutputReader, Stream, StreamRange};

/// Maximum number of bytes that are replayed.
const MAX_REPLAY: u64 = 4 << 20;

/// Passes the output of the current run so far to `push`, or the end of it. Returns whether it was complete; otherwise the
/// screen may be wrong.
pub(super) async fn replay(
    client: &Client,
    agent: &Agent,
    mut push: impl FnMut(&[u8]),
) -> Result<bool, ClientError> {
    let end = agent.stdout_bytes;
    let run_start = run_start(client, agent).await?;
    let start = run_start.max(end.saturating_sub(MAX_REPLAY));
    let range = StreamRange {
        stream: Stream::Stdout,
        start,
        end,
    };
    let mut is_complete = start == run_start;
    let mut reader = OutputReader::new(client, &agent.id, &[range], false);
    while let Some(chunk) = reader.next().await? {
        is_complete &= chunk.gap == 0;
        push(&chunk.bytes);
    }
    Ok(is_complete)
}

/// Returns the offset of the first byte of the current or last run.
async fn run_start(client: &Client, agent: &Agent) -> Result<u64, ClientError> {
    if agent.run <= 1 {
        return Ok(0);
    }
    let runs = client.list_runs(&agent.id).await?;
    let start = |run: &colibri_client::Run| match run.run == agent.run {
        true => run.stdout.start,
        false => run.stdout.end,
    };
    Ok(runs.last().map_or(0, start))
}
