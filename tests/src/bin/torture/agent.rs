//! One agent of the torture test: its expected exit and output, the faults injected into it, and its losses.

use std::collections::BTreeSet;

use colibri_tests::follower::Follower;
use colibri_tests::lines::{Difference, End, compare};
use colibri_tests::reports::{Report, Reports};
use colibri_tests::{Daemon, eventually, journal_bytes, processes_with, program};
use serde_json::{Value, json};

use crate::table::{Fault, Table};

/// The kill that an agent was subject to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Undisturbed,
    /// A `kill-agent` request was sent; the daemon may have been killed before it read the request.
    Killed,
    ShimKilled,
}

/// Mount target of the writer's program in a sandbox.
const WRITER_INSIDE: &str = "/tmp/writer";

/// Parameters of a spawn, with the token and the exit code of its writer.
pub(crate) struct SpawnRequest {
    pub(crate) token: String,
    pub(crate) code: u8,
    pub(crate) params: Value,
}

impl SpawnRequest {
    pub(crate) fn random(random: &mut fastrand::Rng, number: u64, reports: &Reports) -> Self {
        let token = format!("writer-{number}-");
        let (seed, code) = (random.u64(..).to_string(), random.u8(..));
        let writer = program("writer");
        let mut params = json!({
            "program": writer,
            "args": [reports.socket(), token, seed, code.to_string()],
        });
        if random.u8(..3) == 0 {
            // A sandbox hides a repository below /tmp, and the socket of the reports.
            let mount = json!({"source": writer, "target": WRITER_INSIDE, "read_only": true});
            let reports = json!({"source": reports.socket()});
            params["jail"] = json!({"path": "/", "mounts": [mount, reports], "lift": ["unix-sockets", "landlock"]});
            params["program"] = json!(WRITER_INSIDE);
        }
        Self {
            token,
            code,
            params,
        }
    }
}

/// A spawned agent.
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) request: SpawnRequest,
    pub(crate) fate: Fate,
    follower: Follower,
    /// Minimum length of its stdout at the end.
    min_stdout: u64,
    faults: BTreeSet<Fault>,
    last_fault: Fault,
}

impl Agent {
    pub(crate) fn new(
        random: &mut fastrand::Rng,
        daemon: &Daemon,
        id: String,
        request: SpawnRequest,
        last_fault: Fault,
    ) -> Self {
        let follower = match random.u8(..4) {
            0 => Follower::with_logs_command(|| daemon.command("colibri"), &id),
            _ => Follower::over_wire(daemon.socket(), id.clone()),
        };
        Self {
            id,
            request,
            fate: Fate::Undisturbed,
            follower,
            min_stdout: 0,
            faults: BTreeSet::new(),
            last_fault,
        }
    }

    /// Records that a fault was injected.
    pub(crate) fn record_fault(&mut self, fault: Fault) {
        self.faults.insert(fault);
        self.last_fault = fault;
    }

    /// Disconnects its client, which reconnects.
    pub(crate) fn disconnect_client(&mut self) {
        self.follower.disconnect();
        self.record_fault(Fault::ClientKilled);
    }

    /// Kills its shim; returns false if the agent has ended before.
    pub(crate) fn kill_shim(&mut self, daemon: &Daemon, fault: Fault) -> bool {
        let directory = daemon.agent_dir(&self.id);
        if directory.join("exit.json").exists() {
            return false;
        }
        self.min_stdout = journal_bytes(&directory.join("stdout"));
        colibri_tests::kill_9(daemon.shim_pid(&self.id));
        self.fate = Fate::ShimKilled;
        self.record_fault(fault);
        true
    }

    /// Adds the losses of an ended agent to the table; `agent` is its `get-agent` result.
    pub(crate) fn count_losses(self, agent: &Value, reports: &Reports, table: &mut Table) {
        let report = eventually("the writer of an ended agent has ended", || {
            match reports.get(&self.request.token) {
                Some(report) => report.ended.then_some(report),
                // The writer may have been killed before its first report.
                None => processes_with(&self.request.token)
                    .is_empty()
                    .then(Report::default),
            }
        });
        let exit_is_expected = self.is_expected_exit(agent, report);
        let followed = self.follower.finish();
        let mut difference = followed.offset_difference;
        let end = match (report.done, self.fate) {
            (true, Fate::Undisturbed) => End::Whole,
            (_, Fate::ShimKilled) => End::WithItsShim,
            _ => End::Killed,
        };
        let stored = ["stdout_bytes", "stderr_bytes"].map(|key| agent[key].as_u64().unwrap());
        for (output, stored) in stored.into_iter().enumerate() {
            let received = &followed.received[output];
            let content = compare(received, report.written[output], end);
            difference.lost += content.lost;
            difference.repeated += content.repeated;
            difference.lost += stored.saturating_sub(received.len() as u64);
        }
        if end == End::WithItsShim {
            difference.lost += self.min_stdout.saturating_sub(stored[0]);
        }
        let bytes = followed.received.iter().map(Vec::len).sum::<usize>() as u64;
        table.agents += 1;
        table.bytes += bytes;
        for fault in &self.faults {
            table.row(*fault).bytes += bytes;
        }
        let row = table.row(self.last_fault);
        row.difference.lost += difference.lost;
        row.difference.repeated += difference.repeated;
        row.exit_codes_lost += u64::from(!exit_is_expected);
        row.agents_lost += u64::from(followed.error.is_some());
        if difference != Difference::default() || !exit_is_expected || followed.error.is_some() {
            eprintln!(
                "agent {} ({:?}, last fault {:?}): {difference:?}, error {:?}, received {:?}\n  must exit with {}\n  report {report:?}\n  get-agent {agent}",
                self.id,
                self.fate,
                self.last_fault,
                followed.error,
                followed.received.each_ref().map(Vec::len),
                self.request.code
            );
        }
    }

    /// Returns whether the agent has exited with its code, or by the kill that it was subject to.
    fn is_expected_exit(&self, agent: &Value, report: Report) -> bool {
        let exit = &agent["exit"];
        if report.done && exit["code"] == json!(self.request.code) {
            return true;
        }
        match self.fate {
            Fate::Undisturbed => false,
            Fate::Killed => {
                // In a sandbox, bwrap(1) reports a signal as an exit code, like a shell.
                let by_signal = exit["signal"] == 15 || exit["signal"] == 9;
                let by_code = exit["code"] == 143 || exit["code"] == 137;
                exit["reason"] == "killed-by-user" && (by_signal || by_code)
            }
            Fate::ShimKilled => {
                let error = agent["error"].as_str().unwrap_or_default();
                exit["reason"] == "lost" && agent["state"] == "error" && error.contains("shim")
            }
        }
    }
}
