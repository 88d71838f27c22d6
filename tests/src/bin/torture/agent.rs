//! One agent under torture: its expected behaviour, its faults, and the verdict on its result.

use std::collections::BTreeSet;

use colibri_tests::follower::Follower;
use colibri_tests::lines::{Difference, End, check};
use colibri_tests::reports::{Report, Reports};
use colibri_tests::{Daemon, eventually, processes_with, program};
use serde_json::{Value, json};

use crate::table::{Fault, Table};

/// Fault that was injected into this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Undisturbed,
    /// A kill was sent and may have arrived.
    Killed,
    ShimKilled,
}

/// Mount target of the writer's program in a sandbox.
const WRITER_INSIDE: &str = "/tmp/writer";

/// Parameters of an agent.
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
            // Mounted, because a private /tmp hides a repository there.
            let mount = json!({"source": writer, "target": WRITER_INSIDE, "read_only": true});
            params["jail"] = json!({"path": "/", "mounts": [mount]});
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
            0 => Follower::with_program(|| daemon.command("colibri"), &id),
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

    pub(crate) fn injected(&mut self, fault: Fault) {
        self.faults.insert(fault);
        self.last_fault = fault;
    }

    /// Disconnects its client, which reconnects.
    pub(crate) fn cut_client(&mut self) {
        self.follower.cut();
        self.injected(Fault::ClientKilled);
    }

    /// Kills its shim; returns false if the agent has ended before.
    pub(crate) fn kill_shim(&mut self, daemon: &Daemon, fault: Fault) -> bool {
        let directory = daemon.agent_dir(&self.id);
        if directory.join("exit.json").exists() {
            return false;
        }
        self.min_stdout = std::fs::read_dir(directory.join("stdout"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "log"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        colibri_tests::kill_9(daemon.shim_pid(&self.id));
        self.fate = Fate::ShimKilled;
        self.injected(fault);
        true
    }

    /// Counts losses of an ended agent; `shown` is its `get-agent` result.
    pub(crate) fn judge(self, shown: &Value, reports: &Reports, table: &mut Table) {
        let report = eventually("the writer of an ended agent has ended", || {
            match reports.get(&self.request.token) {
                Some(report) => report.ended.then_some(report),
                // The writer may have been killed before its first report.
                None => processes_with(&self.request.token)
                    .is_empty()
                    .then(Report::default),
            }
        });
        let exit_ok = self.exit_is_right(shown, report);
        let followed = self.follower.finish();
        let mut difference = followed.by_offset;
        let end = match (report.done, self.fate) {
            (true, Fate::Undisturbed) => End::Whole,
            (_, Fate::ShimKilled) => End::WithItsShim,
            _ => End::Killed,
        };
        let shown_bytes = ["stdout_bytes", "stderr_bytes"].map(|key| shown[key].as_u64());
        for (output, shown_bytes) in shown_bytes.into_iter().enumerate() {
            let received = &followed.received[output];
            let counted = check(received, report.written[output], end);
            difference.lost += counted.lost;
            difference.repeated += counted.repeated;
            difference.lost += shown_bytes.unwrap().saturating_sub(received.len() as u64);
        }
        if end == End::WithItsShim {
            difference.lost += self.min_stdout.saturating_sub(shown_bytes[0].unwrap());
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
        row.exit_codes_lost += u64::from(!exit_ok);
        row.agents_lost += u64::from(followed.refused.is_some());
        if difference != Difference::default() || !exit_ok || followed.refused.is_some() {
            eprintln!(
                "agent {} ({:?}, last met {:?}): {difference:?}, refused {:?}, received {:?}\n  must exit with {}\n  report {report:?}\n  shown {shown}",
                self.id,
                self.fate,
                self.last_fault,
                followed.refused,
                followed.received.each_ref().map(Vec::len),
                self.request.code
            );
        }
    }

    fn exit_is_right(&self, shown: &Value, report: Report) -> bool {
        let exit = &shown["exit"];
        let own_code = exit["code"] == json!(self.request.code);
        match self.fate {
            Fate::Undisturbed => own_code && report.done,
            // In a sandbox bwrap reports signals like a shell does.
            Fate::Killed => {
                (own_code && report.done)
                    || (exit["reason"] == "killed-by-user"
                        && [
                            (&exit["signal"], json!(15)),
                            (&exit["signal"], json!(9)),
                            (&exit["code"], json!(143)),
                            (&exit["code"], json!(137)),
                        ]
                        .iter()
                        .any(|(counted, request)| *counted == request))
            }
            Fate::ShimKilled => {
                let reason = shown["error"].as_str().unwrap_or_default();
                (own_code && report.done)
                    || (exit["reason"] == "lost"
                        && shown["state"] == "error"
                        && reason.contains("shim"))
            }
        }
    }
}
