//! `make torture`: injects faults into the real programs at random times while agents write. It prints a table of the
//! losses per fault, and fails if there is one.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod agent;
mod scenarios;
mod table;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use colibri_tests::reports::Reports;
use colibri_tests::{Daemon, SOON, Wire, processes_with, wait_until};
use serde_json::{Value, json};

use crate::agent::{Agent, Fate, SpawnRequest};
use crate::table::{Fault, Table};

const USAGE: &str = "usage: torture [--rounds N | --seconds S] [--seed N]\n\nKills daemons, clients and shims while agents write, and counts losses. A round kills one daemon (default: 200).\n";
/// Number of concurrent writers.
const WRITERS: usize = 6;
/// Maximum number of ended and checked agents that are not yet removed.
const MAX_ENDED: usize = 12;

/// Condition that ends the run.
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
        Limit::Rounds(max) => rounds < max,
        Limit::Until(end) => Instant::now() < end,
    } {
        torture.run_round();
        rounds += 1;
        if rounds % 50 == 0 {
            eprintln!("{rounds} daemons killed");
        }
    }
    let is_clean = torture.finish();
    print!("{}", torture.table);
    if is_clean && torture.table.is_lossless() {
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
    /// Tokens of all known agents.
    tokens: HashSet<String>,
    /// Number of spawn requests.
    requests: u64,
    /// Number of injected faults of [`scenarios`].
    scenarios: usize,
    /// The fault of the latest round.
    last_fault: Fault,
    table: Table,
    /// Whether no problem was reported.
    is_clean: bool,
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
            requests: 0,
            scenarios: 0,
            last_fault: Fault::DaemonKilled,
            table: Table::default(),
            is_clean: true,
        }
    }

    fn report(&mut self, problem: &str) {
        eprintln!("{problem}");
        self.is_clean = false;
    }

    /// Creates the request of the next agent.
    fn next_request(&mut self) -> SpawnRequest {
        self.requests += 1;
        SpawnRequest::random(&mut self.random, self.requests, &self.reports)
    }

    /// Follows a spawned agent.
    fn add_agent(&mut self, id: String, request: SpawnRequest) {
        self.tokens.insert(request.token.clone());
        self.agents.push(Agent::new(
            &mut self.random,
            &self.daemon,
            id,
            request,
            self.last_fault,
        ));
    }

    /// Sleeps for a random time, so that the next fault occurs in any state.
    fn sleep_up_to(&mut self, max: Duration) {
        std::thread::sleep(max.mul_f64(self.random.f64()));
    }

    /// Injects faults, among them one kill of the daemon, and checks all agents with the next daemon.
    fn run_round(&mut self) {
        while self.agents.len() < WRITERS {
            let request = self.next_request();
            let answer = self
                .daemon
                .connect()
                .call("spawn-agent", request.params.clone());
            match answer["result"]["id"].as_str() {
                Some(id) => self.add_agent(id.to_owned(), request),
                None => return self.report(&format!("a spawn was refused: {answer}")),
            }
        }
        self.sleep_up_to(Duration::from_millis(60));
        if self.random.bool() {
            let victim = self.random.usize(..self.agents.len());
            self.agents[victim].disconnect_client();
            self.table.row(Fault::ClientKilled).injected += 1;
        }
        if self.random.u8(..10) == 0 {
            self.kill_random_shim(Fault::ShimKilled);
        }
        if self.random.u8(..3) == 0 {
            self.run_scenario();
        }
        let (fault, in_flight) = self.kill_daemon();
        self.last_fault = fault;
        self.table.row(fault).injected += 1;
        self.agents
            .iter_mut()
            .for_each(|agent| agent.record_fault(fault));
        if self.random.u8(..10) == 0 {
            self.kill_random_shim(Fault::ShimKilledUnseen);
        }
        self.sleep_up_to(Duration::from_millis(40));
        self.daemon.launch();
        self.check_agents(in_flight);
    }

    /// Runs the next scenario.
    fn run_scenario(&mut self) {
        let (fault, run) = scenarios::ALL[self.scenarios % scenarios::ALL.len()];
        self.scenarios += 1;
        self.table.row(fault).injected += 1;
        if let Err(problem) = run(&self.daemon) {
            self.table.row(fault).agents_lost += 1;
            self.report(&format!("{fault:?}: {problem}"));
        }
    }

    fn kill_random_shim(&mut self, fault: Fault) {
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
        let (fault, max_delay, in_flight) = match self.random.u8(..10) {
            0..3 => {
                let request = self.next_request();
                let stream = send(&self.daemon, "spawn-agent", &request.params);
                let in_flight = InFlight::Spawn(request, stream);
                (Fault::DuringSpawn, Duration::from_millis(25), in_flight)
            }
            3..5 => {
                let victim = self.random.usize(..self.agents.len());
                let agent = &mut self.agents[victim];
                if agent.fate == Fate::Undisturbed {
                    agent.fate = Fate::Killed;
                }
                let params = json!({"id": agent.id, "grace_ms": self.random.u64(..30)});
                drop(send(&self.daemon, "kill-agent", &params));
                let in_flight = InFlight::Kill(victim);
                (Fault::DuringKill, Duration::from_millis(40), in_flight)
            }
            5..7 if !self.ended.is_empty() => {
                let ids: Vec<String> = self.ended.keys().cloned().collect();
                let id = self.random.choice(ids).unwrap();
                drop(send(&self.daemon, "remove-agent", &json!({"id": id})));
                let in_flight = InFlight::Remove(id);
                (Fault::DuringRemove, Duration::from_millis(2), in_flight)
            }
            _ => (Fault::DaemonKilled, Duration::ZERO, InFlight::Nothing),
        };
        self.sleep_up_to(max_delay);
        self.daemon.kill();
        (fault, in_flight)
    }

    /// Checks that exactly the expected agents exist, and counts the losses of ended ones.
    fn check_agents(&mut self, in_flight: InFlight) {
        let mut wire = self.daemon.connect();
        let mut listed = list_agents(&mut wire);
        match in_flight {
            InFlight::Nothing => {}
            InFlight::Spawn(request, stream) => {
                let mut answer = String::new();
                let _ = BufReader::new(stream).read_line(&mut answer);
                let answer = serde_json::from_str::<Value>(&answer).ok();
                let answered_id =
                    answer.and_then(|answer| Some(answer["result"]["id"].as_str()?.to_owned()));
                let listed_id = listed
                    .values()
                    .find(|agent| agent["args"][1] == request.token.as_str())
                    .map(|agent| agent["id"].as_str().unwrap().to_owned());
                match (listed_id, answered_id) {
                    (Some(id), answered_id) => {
                        if answered_id.is_some_and(|answered_id| answered_id != id) {
                            self.report("a spawn was answered with the id of another agent");
                        }
                        self.add_agent(id, request);
                        if let Some(agent) = self.agents.last_mut() {
                            agent.record_fault(Fault::DuringSpawn);
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
                listed = list_agents(&mut wire);
            }
            InFlight::Remove(id) => {
                if !listed.contains_key(&id) {
                    self.ended.remove(&id);
                }
            }
        }
        for (id, expected) in self.ended.clone() {
            match listed.remove(&id) {
                None => self.record_lost_agent(&id),
                Some(agent) if agent["exit"] != expected["exit"] => {
                    self.table.row(self.last_fault).exit_codes_lost += 1;
                    self.report(&format!("agent {id}: was {expected}, is {agent}"));
                }
                Some(_) => {}
            }
        }
        for agent in std::mem::take(&mut self.agents) {
            match listed.remove(&agent.id) {
                None => self.record_lost_agent(&agent.id),
                Some(shown) if shown["exited_at"].is_null() => self.agents.push(agent),
                Some(shown) => self.count_losses(agent, shown),
            }
        }
        for id in listed.into_keys() {
            self.report(&format!("agent {id} was never requested"));
        }
        self.check_directories();
        while self.ended.len() > MAX_ENDED {
            let (id, _) = self.ended.pop_first().unwrap();
            let answer = wire.call("remove-agent", json!({"id": id}));
            if answer.get("result").is_none() {
                self.report(&format!("agent {id} cannot be removed: {answer}"));
            }
        }
    }

    fn count_losses(&mut self, agent: Agent, shown: Value) {
        let id = agent.id.clone();
        agent.count_losses(&shown, &self.reports, &mut self.table);
        self.ended.insert(id, shown);
    }

    fn record_lost_agent(&mut self, id: &str) {
        self.table.row(self.last_fault).agents_lost += 1;
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
        let deadline = Instant::now() + SOON;
        let problems = loop {
            let problems = describe_unknown(&self.daemon.state().join("agents"), &known);
            // The daemon may be creating or removing a directory.
            if problems.is_empty() || Instant::now() > deadline {
                break problems;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        for problem in problems {
            self.report(&problem);
        }
    }

    /// Waits for the remaining agents, checks that no directory and no process is left, and returns whether no problem was
    /// reported.
    fn finish(&mut self) -> bool {
        let mut wire = self.daemon.connect();
        for agent in std::mem::take(&mut self.agents) {
            let shown = wire.call("wait-agent", json!({"id": agent.id}))["result"].clone();
            self.count_losses(agent, shown);
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
        let mark = self.daemon.directory().to_str().unwrap().to_owned();
        wait_until("no process is left", || processes_with(&mark).is_empty());
        self.is_clean
    }
}

/// Returns all agents by id.
fn list_agents(wire: &mut Wire) -> BTreeMap<String, Value> {
    let answer = wire.call("list-agents", json!({}));
    let agents = answer["result"]["agents"].as_array().unwrap();
    agents
        .iter()
        .map(|agent| (agent["id"].as_str().unwrap().to_owned(), agent.clone()))
        .collect()
}

/// Describes directories that belong neither to an agent nor to the pooled shim.
fn describe_unknown(agents: &Path, known: &HashSet<String>) -> Vec<String> {
    let mut pooled = 0;
    let mut unknown = Vec::new();
    for entry in std::fs::read_dir(agents).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let has_spec = entry.path().join("spec.json").exists();
        if has_spec && known.contains(&name) {
            continue;
        }
        // A running shim locks its log.
        let log = std::fs::File::open(entry.path().join("shim.log"));
        let is_alive = log.is_ok_and(|log| log.try_lock_shared().is_err());
        if !has_spec && is_alive && pooled == 0 {
            pooled += 1;
            continue;
        }
        let files = std::fs::read_dir(entry.path()).into_iter().flatten();
        let files: Vec<_> = files.flatten().map(|file| file.file_name()).collect();
        unknown.push(format!("directory {name} belongs to no agent: {files:?}"));
    }
    unknown
}
