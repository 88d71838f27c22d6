//! `writer SOCKET TOKEN SEED CODE [wait]`: an agent that reports its output. It writes the lines of
//! [`colibri_tests::lines`] to both outputs, in chunks and with pauses that depend on the seed. After each write it sends
//! the total length and checksum to SOCKET. It exits with CODE. With `wait` it writes 1 MiB to each output, and waits for
//! a line on stdin after the first write.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use colibri_tests::lines::{Counter, Lines};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, token, seed, code, wait @ ..] = arguments.as_slice() else {
        panic!("usage: writer SOCKET TOKEN SEED CODE [wait]")
    };
    let seed: u64 = seed.parse().unwrap();
    let mut report = UnixStream::connect(socket).unwrap();
    // One write for each report, so that a kill rarely truncates one. The reader ignores a truncated line.
    let mut send = |text: String| report.write_all(format!("{text}\n").as_bytes()).unwrap();
    send(format!("hello {token} {}", std::process::id()));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut max_chunk = *random.choice(&[9, 300, 5_000, 70_000]).unwrap();
    let mut max_pause_us = *random.choice(&[0, 500, 3_000, 20_000]).unwrap();
    let mut writes = random.usize(..400.min(800_000 / max_chunk));
    if !wait.is_empty() {
        (max_chunk, max_pause_us, writes) = (5_000, 0, 400);
    }
    let mut lines = [Lines::new(seed), Lines::new(!seed)];
    let mut counters = [Counter::default(), Counter::default()];
    let mut buffers = [Vec::new(), Vec::new()];
    for write in 0..=writes {
        for output in 0..2 {
            let is_last = write == writes;
            let size = random.usize(1..=max_chunk);
            let buffer = &mut buffers[output];
            while !is_last && buffer.len() < size {
                buffer.extend(lines[output].line());
            }
            let size = if is_last { buffer.len() } else { size };
            let bytes: Vec<u8> = buffer.drain(..size).collect();
            match output {
                0 => {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(&bytes).and_then(|()| stdout.flush())
                }
                _ => io::stderr().lock().write_all(&bytes),
            }
            .unwrap();
            let written = counters[output].add(&bytes);
            // If the test has ended, this write fails and the panic ends this program.
            send(format!(
                "wrote {output} {} {}",
                written.bytes, written.checksum
            ));
        }
        if write == 0 && !wait.is_empty() {
            io::stdin().read_line(&mut String::new()).unwrap();
        }
        if max_pause_us > 0 {
            std::thread::sleep(Duration::from_micros(random.u64(..max_pause_us)));
        }
    }
    send("done".to_owned());
    std::process::exit(code.parse().unwrap());
}
