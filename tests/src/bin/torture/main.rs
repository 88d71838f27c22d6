//! `make torture`: injects faults at random moments into the real programs while agents write. Prints a table of
//! losses per fault; any loss is a failure.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod agent;
mod single;
mod table;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use colibri_tests::reports::Reports;
use colibri_tests::{Daemon, SOON, Wire, eventually, processes_with};
use serde_json::{Value, json};

use crate::agent::{Agent, Fate, SpawnRequest};
use crate::table::{Fault, Table};

const USAGE: &str = "usage: torture [--rounds N | --seconds S] [--seed N]\n\nKills daemons, clients and shims under writers and counts what is lost. A round kills one daemon (default: 200).\n";
/// Number of concurrent writers.
const WRITERS: usize = 6;
/// Number of ended and checked agents that are kept for later removals.
const ENDED: usize = 12;

/// End of the run.
enum Limit {
    Rounds(u64),
    Until(Instant),
}

fn main() -> ExitCode {
    let mut limit = Limit::Rounds(200);
    let mut seed = fastrand::u64(..1_000_000);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (option.as_str(), value) {
            ("--rounds", Some(rounds)) => limit = Limit::Rounds(rounds),
            ("--seconds", Some(seconds)) => {
                limit = Limit::Until(Instant::now() + Duration::from_secs(seconds));
            }
            ("--seed", Some(number)) => seed = number,
            _ => {
                eprint!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    println!("seed {seed}");
    let mut torture = Torture::start(seed);
    let mut rounds = 0;
    while match limit {
        Limit::Rounds(most) => rounds < most,
        Limit::Until(end) => Instant::now() < end,
    } {
        torture.round();
        rounds += 1;
        if rounds % 50 == 0 {
            eprintln!("{rounds} daemons killed");
        }
    }
    let clean = torture.finish();
    print!("{}", torture.table);
    if clean && torture.table.lossless() {
        println!("no loss; no process and no directory is left");
        ExitCode::SUCCESS
    } else {
        println!("DATA OR AGENTS WERE LOST; reproduce with --seed {seed}");
        ExitCode::FAILURE
    }
}

/// Request in flight when the daemon is killed.
enum InFlight {
    Nothing,
    Spawn(SpawnRequest, UnixStream),
    Kill(usize),
    Remove(String),
}

struct Torture {
    random: fastrand::Rng,
    daemon: Daemon,
    reports: Reports,
    agents: Vec<Agent>,
    /// Ended and checked agents, with their expected `list-agents` entries.
    ended: BTreeMap<String, Value>,
    tokens: HashSet<String>,
    next: u64,
    /// Number of injected faults that start their own agents.
    singles: usize,
    last: Fault,
    table: Table,
    clean: bool,
}

impl Torture {
    fn start(seed: u64) -> Self {
        let daemon = Daemon::start();
        Self {
            random: fastrand::Rng::with_seed(seed),
            reports: Reports::listen(&daemon.path("reports")),
            daemon,
            agents: Vec::new(),
            ended: BTreeMap::new(),
            tokens: HashSet::new(),
            next: 0,
            singles: 0,
            last: Fault::DaemonKilled,
            table: Table::default(),
            clean: true,
        }
    }

    fn report(&mut self, what: &str) {
        eprintln!("{what}");
        self.clean = false;
    }

    fn request(&mut self) -> SpawnRequest {
        self.next += 1;
        SpawnRequest::random(&mut self.random, self.next, &self.reports)
    }

    fn add(&mut self, id: String, request: SpawnRequest) {
        self.tokens.insert(request.token.clone());
        self.agents.push(Agent::new(
            &mut self.random,
            &self.daemon,
            id,
            request,
            self.last,
        ));
    }

    /// Sleeps for a random time, so that faults hit at any moment.
    fn moment(&mut self, most: Duration) {
        std::thread::sleep(most.mul_f64(self.random.f64()));
    }

    fn round(&mut self) {
        while self.agents.len() < WRITERS {
            let request = self.request();
            let answer = self
                .daemon
                .connect()
                .call("spawn-agent", request.params.clone());
            match answer["result"]["id"].as_str() {
                Some(id) => self.add(id.to_owned(), request),
                None => return self.report(&format!("a spawn was refused: {answer}")),
            }
        }
        self.moment(Duration::from_millis(60));
        if self.random.bool() {
            let victim = self.random.usize(..self.agents.len());
            self.agents[victim].cut_client();
            self.table.row(Fault::ClientKilled).injected += 1;
        }
        if self.random.u8(..10) == 0 {
            self.kill_a_shim(Fault::ShimKilled);
        }
        if self.random.u8(..3) == 0 {
            self.inject_single();
        }
        let (fault, flight) = self.kill_daemon();
        self.last = fault;
        self.table.row(fault).injected += 1;
        self.agents
            .iter_mut()
            .for_each(|agent| agent.injected(fault));
        if self.random.u8(..10) == 0 {
            self.kill_a_shim(Fault::ShimKilledUnseen);
        }
        self.moment(Duration::from_millis(40));
        self.daemon.launch();
        self.check_state(flight);
    }

    /// Injects the next fault that starts its own agents.
    fn inject_single(&mut self) {
        let (fault, inject) = single::FAULTS[self.singles % single::FAULTS.len()];
        self.singles += 1;
        self.table.row(fault).injected += 1;
        if let Err(what) = inject(&self.daemon) {
            self.table.row(fault).agents_lost += 1;
            self.report(&format!("{fault:?}: {what}"));
        }
    }

    fn kill_a_shim(&mut self, fault: Fault) {
        let victim = self.random.usize(..self.agents.len());
        if self.agents[victim].kill_shim(&self.daemon, fault) {
            self.table.row(fault).injected += 1;
        }
    }

    /// Kills the daemon, possibly with a request in flight.
    fn kill_daemon(&mut self) -> (Fault, InFlight) {
        let send = |daemon: &Daemon, method: &str, params: &Value| {
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
            stream.write_all(format!("{request}\n").as_bytes()).unwrap();
            stream
        };
        let (fault, most, flight) = match self.random.u8(..10) {
            0..3 => {
                let request = self.request();
                let stream = send(&self.daemon, "spawn-agent", &request.params);
                let flight = InFlight::Spawn(request, stream);
                (Fault::DuringSpawn, Duration::from_millis(25), flight)
            }
            3..5 => {
                let victim = self.random.usize(..self.agents.len());
                let agent = &mut self.agents[victim];
                if agent.fate == Fate::Undisturbed {
                    agent.fate = Fate::Killed;
                }
                let params = json!({"id": agent.id, "grace_ms": self.random.u64(..30)});
                drop(send(&self.daemon, "kill-agent", &params));
                let flight = InFlight::Kill(victim);
                (Fault::DuringKill, Duration::from_millis(40), flight)
            }
            5..7 if !self.ended.is_empty() => {
                let ids: Vec<String> = self.ended.keys().cloned().collect();
                let id = self.random.choice(ids).unwrap();
                drop(send(&self.daemon, "remove-agent", &json!({"id": id})));
                let flight = InFlight::Remove(id);
                (Fault::DuringRemove, Duration::from_millis(2), flight)
            }
            _ => (Fault::DaemonKilled, Duration::ZERO, InFlight::Nothing),
        };
        self.moment(most);
        self.daemon.kill();
        (fault, flight)
    }

    /// Checks that exactly the expected agents exist, and judges the ended ones.
    fn check_state(&mut self, flight: InFlight) {
        let mut wire = self.daemon.connect();
        let mut shown = list(&mut wire);
        match flight {
            InFlight::Nothing => {}
            InFlight::Spawn(request, stream) => {
                let mut answer = String::new();
                let _ = BufReader::new(stream).read_line(&mut answer);
                let answered = serde_json::from_str::<Value>(&answer).ok();
                let answered = answered
                    .and_then(|answered| Some(answered["result"]["id"].as_str()?.to_owned()));
                let found = shown
                    .values()
                    .find(|agent| agent["args"][1] == request.token.as_str())
                    .map(|agent| agent["id"].as_str().unwrap().to_owned());
                match (found, answered) {
                    (Some(id), answered) => {
                        if answered.is_some_and(|answered| answered != id) {
                            self.report("a spawn was answered with the id of another agent");
                        }
                        self.add(id, request);
                        if let Some(agent) = self.agents.last_mut() {
                            agent.injected(Fault::DuringSpawn);
                        }
                    }
                    (None, Some(id)) => {
                        self.table.row(Fault::DuringSpawn).agents_lost += 1;
                        self.report(&format!(
                            "agent {id} was reported to the caller and is unknown"
                        ));
                    }
                    (None, None) => {}
                }
            }
            InFlight::Kill(victim) => {
                let agent = &self.agents[victim];
                let params = json!({"id": agent.id, "grace_ms": 0});
                let answer = wire.call("kill-agent", params);
                if answer["result"]["remaining_pids"] != json!([]) {
                    self.report(&format!(
                        "a kill after an interrupted kill failed: {answer}"
                    ));
                }
                shown = list(&mut wire);
            }
            InFlight::Remove(id) => {
                if !shown.contains_key(&id) {
                    self.ended.remove(&id);
                }
            }
        }
        for (id, expected) in self.ended.clone() {
            match shown.remove(&id) {
                None => self.agent_lost(&id),
                Some(agent) if agent["exit"] != expected["exit"] => {
                    self.table.row(self.last).exit_codes_lost += 1;
                    self.report(&format!("agent {id}: was {expected}, is {agent}"));
                }
                Some(_) => {}
            }
        }
        for agent in std::mem::take(&mut self.agents) {
            match shown.remove(&agent.id) {
                None => self.agent_lost(&agent.id),
                Some(now) if now["exited_at"].is_null() => self.agents.push(agent),
                Some(now) => self.judge(agent, now),
            }
        }
        for id in shown.into_keys() {
            self.report(&format!("agent {id} was never requested"));
        }
        self.check_directories();
        while self.ended.len() > ENDED {
            let (id, _) = self.ended.pop_first().unwrap();
            let answer = wire.call("remove-agent", json!({"id": id}));
            if answer.get("result").is_none() {
                self.report(&format!("not removed: {answer}"));
            }
        }
    }

    fn judge(&mut self, agent: Agent, shown: Value) {
        let id = agent.id.clone();
        agent.judge(&shown, &self.reports, &mut self.table);
        self.ended.insert(id, shown);
    }

    fn agent_lost(&mut self, id: &str) {
        self.table.row(self.last).agents_lost += 1;
        self.ended.remove(id);
        self.report(&format!("agent {id} is unknown"));
    }

    /// Checks that every directory belongs to a known agent or to the pooled shim.
    fn check_directories(&mut self) {
        let known: HashSet<String> = self
            .agents
            .iter()
            .map(|agent| agent.id.clone())
            .chain(self.ended.keys().cloned())
            .collect();
        let until = Instant::now() + SOON;
        let unknown = loop {
            let unknown = unknown_directories(&self.daemon.state().join("agents"), &known);
            // A directory may be about to be created or removed.
            if unknown.is_empty() || Instant::now() > until {
                break unknown;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        for complaint in unknown {
            self.report(&complaint);
        }
    }

    /// Waits for the last agents and checks that nothing remains.
    fn finish(&mut self) -> bool {
        let mut wire = self.daemon.connect();
        for agent in std::mem::take(&mut self.agents) {
            let shown = wire.call("wait-agent", json!({"id": agent.id}))["result"].clone();
            self.judge(agent, shown);
        }
        for id in std::mem::take(&mut self.ended).into_keys() {
            wire.call("remove-agent", json!({"id": id}));
        }
        self.check_directories();
        for token in self.reports.tokens() {
            if !self.tokens.contains(&token) {
                self.table.row(Fault::DuringSpawn).agents_lost += 1;
                self.report(&format!("{token} ran and was never listed"));
            }
        }
        self.daemon.terminate();
        let mark = self.daemon.path("").to_str().unwrap().to_owned();
        eventually("no process is left", || {
            processes_with(&mark).is_empty().then_some(())
        });
        self.clean
    }
}

/// Returns all agents by id.
fn list(wire: &mut Wire) -> BTreeMap<String, Value> {
    let answer = wire.call("list-agents", json!({}));
    let agents = answer["result"]["agents"].as_array().unwrap();
    agents
        .iter()
        .map(|agent| (agent["id"].as_str().unwrap().to_owned(), agent.clone()))
        .collect()
}

/// Describes directories that belong neither to an agent nor to the pooled shim.
fn unknown_directories(agents: &Path, known: &HashSet<String>) -> Vec<String> {
    let mut pooled = 0;
    let mut unknown = Vec::new();
    for entry in std::fs::read_dir(agents).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let complete = entry.path().join("spec.json").exists();
        if complete && known.contains(&name) {
            continue;
        }
        // A live shim holds a lock on its log.
        let log = std::fs::File::open(entry.path().join("shim.log"));
        let alive = log.is_ok_and(|log| log.try_lock_shared().is_err());
        if !complete && alive && pooled == 0 {
            pooled += 1;
            continue;
        }
        let files = std::fs::read_dir(entry.path()).into_iter().flatten();
        let files: Vec<_> = files.flatten().map(|file| file.file_name()).collect();
        unknown.push(format!("directory {name} belongs to no agent: {files:?}"));
    }
    unknown
}
