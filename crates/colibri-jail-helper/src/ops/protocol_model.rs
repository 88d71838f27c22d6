//! A model of the locks and records of this program on Linux, which tests explore exhaustively: every interleaving of the
//! operations of two callers, with a crash of every process at every step.
//!
//! ```text
//! create         fork, ReadReady, Lock, ScanTemporary, ScanRecord.., CreateTemporary, WriteHalf, WriteRest, Rename, Unlock,
//!                SendGo, WaitExit, WaitFirst, RemoveLock, RemoveRead, RemoveDelete, RemoveUnlock, Collect
//!                after an error or without a requester: CloseStart, Collect
//! remove         find_created_jail, OpenFirst, OpenMonitor, HasEnded, Kill, IsMonitorRunning, WaitBoth, RemoveLock, ..
//! signal         all, FindMonitored, OpenTarget, Ancestors, HasRootUid, SendSignal
//! first process  Forked, User, Restricted, Ready, Agent; then a zombie until the monitor or init(8) collects it
//! crash          the kernel closes the files of the process, and later sends the parent-death signal
//! ```
//!
//! A step is one system call, or several whose order no other process can observe: the lookup and deletion of one record
//! under the lock, or the collection of the first process and the exit of its monitor. A wait for a lock or a process may
//! expire at once. A requester may have ended at every step that reads it.
//!
//! A process that its caller freezes is one that the search never selects again. The search includes these cases: every
//! state has the steps of all other processes, which never wait for the frozen one without a timeout. Only the clean-up
//! after a crash assumes that frozen processes are killed or continue.

#[cfg(test)]
mod tests {
    use std::fmt;

    /// Number of callers.
    const CALLERS: usize = 2;
    /// Maximum number of concurrent operations of one caller.
    const CONCURRENT: usize = 2;
    const SLOTS: usize = CALLERS * CONCURRENT;
    /// Number of pids. A free pid is reused at once.
    const PIDS: usize = 6;
    /// Maximum number of jail names.
    const NAMES: usize = 2;
    /// No caller, operation or process.
    const NONE: u8 = u8::MAX;

    /// A [`super::super::records::ProcessId`]: pid and start time.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Id(u8);

    impl Id {
        const NONE: Self = Self(NONE);

        fn new(pid: usize, start: u8) -> Self {
            Self(start << 3 | u8::try_from(pid).unwrap())
        }

        fn pid(self) -> usize {
            usize::from(self.0 & 7)
        }

        fn start(self) -> u8 {
            self.0 >> 3
        }
    }

    /// A record. Its name is its position in the directory.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Record {
        first: Id,
        parent: Id,
    }

    impl Record {
        const NONE: Self = Self {
            first: Id::NONE,
            parent: Id::NONE,
        };
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    #[repr(u8)]
    enum Stage {
        /// The pid is free.
        Free,
        /// The root process of `create`.
        Monitor,
        /// A monitor whose files the kernel has closed.
        Exiting,
        /// A process that has ended and keeps its pid.
        Zombie,
        /// The first process, uid 0.
        Forked,
        /// After `become_user`.
        User,
        /// After `restrict_process`, which sets the parent-death signal.
        Restricted,
        /// After the ready byte.
        Ready,
        /// After the byte `go`: it executes bubblewrap.
        Agent,
    }

    /// The `go` byte was sent to the process.
    const GO: u8 = 1;
    /// The monitor's end of the socket is closed.
    const CLOSED: u8 = 2;
    /// KILL was sent to the process.
    const KILLED: u8 = 4;
    /// The process is a child of init(8).
    const ORPHAN: u8 = 8;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Process {
        id: Id,
        stage: Stage,
        owner: u8,
        parent: Id,
        name: u8,
        flags: u8,
    }

    impl Process {
        fn is_running(&self) -> bool {
            !matches!(self.stage, Stage::Free | Stage::Zombie)
        }

        fn has_root_uid(&self) -> bool {
            matches!(self.stage, Stage::Monitor | Stage::Exiting | Stage::Forked)
        }

        fn free(&mut self) {
            *self = Self {
                id: self.id,
                ..Self::unused(0)
            };
        }

        fn end(&mut self) {
            self.stage = Stage::Zombie;
            self.flags &= ORPHAN;
        }

        fn unused(pid: usize) -> Self {
            Self {
                id: Id::new(pid, 0),
                stage: Stage::Free,
                owner: NONE,
                parent: Id::NONE,
                name: 0,
                flags: 0,
            }
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    #[repr(u8)]
    enum Step {
        Idle,
        ReadReady,
        Lock,
        ScanTemporary,
        ScanRecord,
        CreateTemporary,
        WriteHalf,
        WriteRest,
        Rename,
        Unlock,
        AddFailed,
        SendGo,
        CloseStart,
        WaitExit,
        WaitFirst,
        RemoveLock,
        RemoveRead,
        RemoveDelete,
        RemoveUnlock,
        Collect,
        /// Only with [`Mutation::CollectBeforeDelete`].
        Exit,
        /// A crashed `create`, before the kernel sends the parent-death signal.
        Exiting,
        OpenFirst,
        OpenMonitor,
        HasEnded,
        Kill,
        IsMonitorRunning,
        WaitBoth,
        FindMonitored,
        OpenTarget,
        Ancestors,
        HasRootUid,
        SendSignal,
    }

    /// One operation, and the number of later ones of the same slot.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Slot {
        step: Step,
        is_create: bool,
        /// Number of operations that the slot may still start.
        left: u8,
        name: u8,
        /// Number of running agents that `add` has found.
        running: u8,
        /// Position of the scan, or the pid of a signal.
        position: u8,
        /// The record of `create`, or the one that `remove` has read.
        record: Record,
        /// The other record that `signal` has read.
        other: Record,
        /// The processes of the open pidfds.
        pidfds: [Id; 2],
    }

    impl Slot {
        fn idle(left: u8) -> Self {
            Self {
                step: Step::Idle,
                is_create: false,
                left,
                name: 0,
                running: 0,
                position: 0,
                record: Record::NONE,
                other: Record::NONE,
                pidfds: [Id::NONE; 2],
            }
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    #[repr(u8)]
    enum Temporary {
        Missing,
        Empty,
        Torn,
        Complete,
    }

    /// The directory of one caller.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Directory {
        records: [Record; NAMES],
        temporary: Temporary,
        /// The slot that holds the lock.
        lock: u8,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct State {
        processes: [Process; PIDS],
        slots: [Slot; SLOTS],
        directories: [Directory; CALLERS],
    }

    /// All fields of a state, one process, operation or directory in one or two words.
    type Key = [u64; PIDS + 2 * SLOTS + CALLERS];

    impl State {
        fn key(&self) -> Key {
            let mut key = [0; PIDS + 2 * SLOTS + CALLERS];
            for (pid, process) in self.processes.iter().enumerate() {
                let Process {
                    id,
                    stage,
                    owner,
                    parent,
                    name,
                    flags,
                } = *process;
                key[pid] =
                    u64::from_le_bytes([id.0, stage as u8, owner, parent.0, name, flags, 0, 0]);
            }
            for slot in 0..SLOTS {
                let Slot {
                    step,
                    is_create,
                    left,
                    name,
                    running,
                    position,
                    ..
                } = self.slots[slot];
                let Slot {
                    record,
                    other,
                    pidfds: [a, b],
                    ..
                } = self.slots[slot];
                let is_create = u8::from(is_create);
                key[PIDS + 2 * slot] = u64::from_le_bytes([
                    step as u8, is_create, left, name, running, position, a.0, b.0,
                ]);
                let (a, b, c, d) = (
                    record.first.0,
                    record.parent.0,
                    other.first.0,
                    other.parent.0,
                );
                key[PIDS + 2 * slot + 1] = u64::from_le_bytes([a, b, c, d, 0, 0, 0, 0]);
            }
            for caller in 0..CALLERS {
                let Directory {
                    records: [x, y],
                    temporary,
                    lock,
                } = self.directories[caller];
                let (a, b, c, d) = (x.first.0, x.parent.0, y.first.0, y.parent.0);
                key[PIDS + 2 * SLOTS + caller] =
                    u64::from_le_bytes([a, b, c, d, temporary as u8, lock, 0, 0]);
            }
            key
        }

        fn find(&mut self, id: Id) -> Option<&mut Process> {
            let process = self.processes.get_mut(id.pid())?;
            (process.id == id && process.stage != Stage::Free).then_some(process)
        }

        fn has_ended(&self, id: Id) -> bool {
            let process = self.processes.get(id.pid());
            !process.is_some_and(|process| process.id == id && process.is_running())
        }

        fn start(&mut self, stage: Stage, owner: usize, parent: Id, name: usize) -> Option<Id> {
            let mut processes = self.processes.iter_mut().enumerate();
            let (pid, free) = processes.find(|(_, process)| process.stage == Stage::Free)?;
            let id = Id::new(pid, free.id.start() + 1);
            *free = Process {
                id,
                stage,
                owner: u8::try_from(owner).unwrap(),
                parent,
                name: u8::try_from(name).unwrap(),
                flags: 0,
            };
            Some(id)
        }
    }

    /// Reports whether a step of a caller changes nothing of the other one.
    fn is_separate(before: &State, after: &State, caller: usize) -> bool {
        let other = CALLERS - 1 - caller;
        for pid in 0..PIDS {
            let (old, new) = (&before.processes[pid], &after.processes[pid]);
            let is_free = old.stage == Stage::Free;
            let owner = if is_free { new.owner } else { old.owner };
            if usize::from(owner) == other && old != new {
                return false;
            }
        }
        before.directories[other] == after.directories[other]
    }

    /// A change of the protocol that an invariant must detect.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Mutation {
        /// All callers use one lock.
        GlobalLock,
        /// All callers use one directory of records.
        SharedDirectory,
        /// The lock excludes no other process.
        NoLock,
        /// `Records::remove` does not compare the record before it deletes the file.
        NoReread,
        /// `create` adds the record before the first process has become the agent's user.
        RecordBeforeUser,
        /// `create` sends `go` before it adds the record.
        GoBeforeRecord,
        /// The first process has no parent-death signal.
        NoParentDeathSignal,
        /// The first process inherits the monitor's end of the socket.
        NoSocketEnd,
        /// The monitor collects the first process before it deletes the record.
        CollectBeforeDelete,
        /// `Records::add` does not delete the temporary file.
        KeepTemporary,
        /// `Records::add` does not delete the records of ended agents.
        KeepEnded,
        /// `Records::add` has no quota.
        NoQuota,
        /// `remove` does not wait for the processes that it kills.
        NoWait,
        /// A process is identified by its pid alone.
        NoStartTime,
        /// `signal` sends by pid, not by pidfd.
        SignalByPid,
    }

    /// The property that a step or a state violates.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Invariant {
        /// No step changes what belongs to another caller, or waits for it.
        Separation,
        /// The first process of a record has become the agent or has ended.
        RecordOfAgent,
        /// A signal reaches only agents of the caller.
        SignalTarget,
        /// A running agent has its record.
        AgentHasRecord,
        /// Names are unique, and no more agents than the quota run.
        NamesAndQuota,
        /// A crash leaves no lock and no process, and the next `create` cleans the directory.
        CleanUp,
        /// A removal deletes only the record that it has read.
        RemovalOfRead,
        /// The first process of a record keeps its pid while its monitor runs.
        PidOfRecord,
    }

    const CREATE: u8 = 1;
    const REMOVE: u8 = 2;
    const SIGNAL: u8 = 4;

    /// The operations of one slot.
    #[derive(Debug, Clone, Copy)]
    struct Plan {
        count: u8,
        kinds: u8,
    }

    /// The operations, limits and mutation that a search explores.
    #[derive(Debug, Clone)]
    struct Model {
        mutation: Option<Mutation>,
        /// The invariant that is checked; otherwise all are.
        only: Option<Invariant>,
        quota: u8,
        names: usize,
        plans: [Plan; SLOTS],
    }

    /// The outcome of one step.
    struct Move {
        label: &'static str,
        caller: usize,
        result: Result<State, Invariant>,
    }

    /// A violated invariant and the steps that lead to it.
    #[derive(Debug)]
    struct Violation {
        invariant: Invariant,
        trace: Vec<String>,
    }

    impl fmt::Display for Violation {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(
                formatter,
                "{:?} after: {}",
                self.invariant,
                self.trace.join(", ")
            )
        }
    }

    impl Model {
        fn has(&self, mutation: Mutation) -> bool {
            self.mutation == Some(mutation)
        }

        fn directory(&self, caller: usize) -> usize {
            if self.has(Mutation::SharedDirectory) {
                0
            } else {
                caller
            }
        }

        fn lock_of(&self, caller: usize) -> usize {
            if self.has(Mutation::GlobalLock) {
                0
            } else {
                self.directory(caller)
            }
        }

        fn initial(&self) -> State {
            State {
                processes: std::array::from_fn(Process::unused),
                slots: self.plans.map(|plan| Slot::idle(plan.count)),
                directories: [Directory {
                    records: [Record::NONE; NAMES],
                    temporary: Temporary::Missing,
                    lock: NONE,
                }; CALLERS],
            }
        }

        /// `ProcessId::is_running`.
        fn is_running(&self, state: &State, id: Id) -> bool {
            let Some(process) = state.processes.get(id.pid()) else {
                return false;
            };
            process.is_running() && (process.id == id || self.has(Mutation::NoStartTime))
        }

        /// Appends every possible step to `moves`.
        fn moves(&self, state: &State, moves: &mut Vec<Move>) {
            for slot in 0..SLOTS {
                self.slot_moves(state, slot, moves);
                self.crash(state, slot, moves);
            }
            for pid in 0..PIDS {
                self.process_moves(state, pid, moves);
            }
        }

        /// The steps of a first process, and of init(8).
        fn process_moves(&self, state: &State, pid: usize, moves: &mut Vec<Move>) {
            let process = state.processes[pid];
            let mut change = |label, change: &dyn Fn(&mut Process)| {
                let mut next = *state;
                change(&mut next.processes[pid]);
                let caller = usize::from(process.owner);
                let result = Ok(next);
                moves.push(Move {
                    label,
                    caller,
                    result,
                });
            };
            let has = |flag| process.flags & flag != 0;
            let advance = match process.stage {
                Stage::Forked => Some(("become_user", Stage::User)),
                Stage::User => Some(("restrict_process", Stage::Restricted)),
                Stage::Restricted => Some(("write the ready byte", Stage::Ready)),
                Stage::Ready if has(GO) => Some(("execute", Stage::Agent)),
                Stage::Ready | Stage::Agent => None,
                Stage::Zombie if has(ORPHAN) => {
                    return change("init collects", &Process::free);
                }
                _ => return,
            };
            if let Some((label, stage)) = advance
                && !has(KILLED)
            {
                change(label, &|process| process.stage = stage);
            }
            // Also a crash of this process, and the effect of KILL or of a closed socket.
            change("first process ends", &Process::end);
        }

        /// The crash of the process of an operation, and then what the kernel does.
        fn crash(&self, state: &State, slot: usize, moves: &mut Vec<Move>) {
            let mut next = *state;
            let label = match state.slots[slot].step {
                Step::Idle => return,
                Step::Exiting => {
                    self.notify_exit(&mut next, slot);
                    "kernel sends the parent-death signal"
                }
                _ => {
                    self.close_files(&mut next, slot);
                    "crash"
                }
            };
            let caller = slot / CONCURRENT;
            let result = Ok(next);
            moves.push(Move {
                label,
                caller,
                result,
            });
        }

        /// Releases the lock of an operation.
        fn unlock(&self, state: &mut State, slot: usize) {
            let lock = &mut state.directories[self.lock_of(slot / CONCURRENT)].lock;
            if usize::from(*lock) == slot {
                *lock = NONE;
            }
        }

        fn close_files(&self, state: &mut State, slot: usize) {
            self.unlock(state, slot);
            let Slot {
                is_create,
                record,
                left,
                ..
            } = state.slots[slot];
            if !is_create {
                state.slots[slot] = Slot::idle(left);
                return;
            }
            self.close_start(state, record.first);
            if let Some(monitor) = state.find(record.parent) {
                monitor.stage = Stage::Exiting;
            }
            state.slots[slot] = Slot {
                step: Step::Exiting,
                is_create,
                record,
                ..Slot::idle(left)
            };
        }

        fn close_start(&self, state: &mut State, first: Id) {
            if let Some(first) = state.find(first)
                && first.is_running()
                && !self.has(Mutation::NoSocketEnd)
            {
                first.flags |= CLOSED;
            }
        }

        fn notify_exit(&self, state: &mut State, slot: usize) {
            let Slot { record, left, .. } = state.slots[slot];
            if let Some(first) = state.find(record.first) {
                first.flags |= ORPHAN;
                if first.stage >= Stage::Restricted && !self.has(Mutation::NoParentDeathSignal) {
                    first.flags |= KILLED;
                }
            }
            if let Some(monitor) = state.find(record.parent) {
                monitor.free();
            }
            state.slots[slot] = Slot::idle(left);
        }

        /// The next operations of an idle slot.
        fn start_moves(&self, state: &State, slot: usize, moves: &mut Vec<Move>) {
            let caller = slot / CONCURRENT;
            let Plan { kinds, .. } = self.plans[slot];
            let mut idle = *state;
            idle.slots[slot].left -= 1;
            let records = state.directories[self.directory(caller)].records;
            let mut push = |label, next: State| {
                let result = Ok(next);
                moves.push(Move {
                    label,
                    caller,
                    result,
                });
            };
            for (name, &found) in records.iter().enumerate().take(self.names) {
                let mut next = idle;
                if kinds & CREATE != 0
                    && let Some(parent) = next.start(Stage::Monitor, caller, Id::NONE, name)
                    && let Some(first) = next.start(Stage::Forked, caller, parent, name)
                {
                    let step = match self.has(Mutation::RecordBeforeUser) {
                        true => Step::Lock,
                        false => Step::ReadReady,
                    };
                    next.slots[slot] = Slot {
                        step,
                        is_create: true,
                        name: u8::try_from(name).unwrap(),
                        record: Record { first, parent },
                        ..next.slots[slot]
                    };
                    push("fork", next);
                }
                if kinds & REMOVE != 0 {
                    let mut next = idle;
                    if found != Record::NONE {
                        next.slots[slot] = Slot {
                            step: Step::OpenFirst,
                            name: u8::try_from(name).unwrap(),
                            record: found,
                            ..next.slots[slot]
                        };
                    }
                    push("find_created_jail", next);
                }
            }
            if kinds & SIGNAL != 0 && records != [Record::NONE; NAMES] {
                for pid in 0..PIDS {
                    let mut next = idle;
                    let [record, other] = records;
                    next.slots[slot] = Slot {
                        step: Step::FindMonitored,
                        position: u8::try_from(pid).unwrap(),
                        record,
                        other,
                        ..next.slots[slot]
                    };
                    push("all", next);
                }
            }
        }

        /// The steps of an operation. The first one of a step is that of success.
        fn slot_moves(&self, state: &State, slot: usize, moves: &mut Vec<Move>) {
            let caller = slot / CONCURRENT;
            let operation = state.slots[slot];
            let Slot {
                step,
                is_create,
                left,
                record,
                pidfds,
                ..
            } = operation;
            let name = usize::from(operation.name);
            let directory = self.directory(caller);
            let lock = self.lock_of(caller);
            let first = state.processes.get(record.first.pid()).copied();
            let first_has_ended = state.has_ended(record.first);
            let mut push = |label, result: Result<State, Invariant>| {
                moves.push(Move {
                    label,
                    caller,
                    result,
                });
            };
            let to = |step| {
                let mut next = *state;
                next.slots[slot].step = step;
                next
            };
            let idle = || {
                let mut next = *state;
                next.slots[slot] = Slot::idle(left);
                next
            };
            let after_lock = |step| {
                let mut next = to(step);
                next.directories[lock].lock = u8::try_from(slot).unwrap();
                next
            };
            let holder = usize::from(state.directories[lock].lock);
            let is_free = holder >= SLOTS || self.has(Mutation::NoLock);
            match step {
                Step::Idle if left > 0 => self.start_moves(state, slot, moves),
                Step::Idle | Step::Exiting => {}
                Step::ReadReady => {
                    let added = match self.mutation {
                        Some(Mutation::RecordBeforeUser | Mutation::GoBeforeRecord) => Step::SendGo,
                        _ => Step::Lock,
                    };
                    if first_has_ended {
                        push("read_exact fails", Ok(to(Step::Collect)));
                    } else if first.is_some_and(|first| first.stage >= Stage::Ready) {
                        push("read_exact", Ok(to(added)));
                        push("agent_record: orphaned", Ok(to(Step::CloseStart)));
                    }
                }
                Step::Lock if is_free => push("add: lock", Ok(after_lock(Step::ScanTemporary))),
                Step::Lock if holder / CONCURRENT == caller => {
                    push("add: lock expires", Ok(to(Step::CloseStart)));
                }
                Step::RemoveLock if is_free => {
                    push("remove: lock", Ok(after_lock(Step::RemoveRead)));
                }
                Step::RemoveLock if holder / CONCURRENT == caller => match is_create {
                    true => push("remove: lock expires", Ok(to(Step::Collect))),
                    false => push("remove: lock expires", Ok(idle())),
                },
                Step::Lock | Step::RemoveLock => push("lock", Err(Invariant::Separation)),
                Step::ScanTemporary => {
                    let mut next = to(Step::ScanRecord);
                    if !self.has(Mutation::KeepTemporary) {
                        next.directories[directory].temporary = Temporary::Missing;
                    }
                    push("add: delete the temporary file", Ok(next));
                }
                Step::ScanRecord => {
                    let position = usize::from(operation.position);
                    let found = state.directories[directory].records[position];
                    let mut next = *state;
                    next.slots[slot].position += 1;
                    if found == Record::NONE {
                    } else if !self.is_running(state, found.first) {
                        if !self.has(Mutation::KeepEnded) {
                            next.directories[directory].records[position] = Record::NONE;
                        }
                    } else if position == name {
                        return push("add: name exists", Ok(to(Step::AddFailed)));
                    } else {
                        next.slots[slot].running += 1;
                    }
                    if position + 1 == self.names {
                        let operation = &mut next.slots[slot];
                        let is_full = operation.running >= self.quota;
                        operation.step = match is_full && !self.has(Mutation::NoQuota) {
                            true => Step::AddFailed,
                            false => Step::CreateTemporary,
                        };
                        operation.running = 0;
                        operation.position = 0;
                    }
                    push("add: read and delete a record", Ok(next));
                }
                Step::CreateTemporary => {
                    let is_missing = state.directories[directory].temporary == Temporary::Missing;
                    let mut next = to(if is_missing {
                        Step::WriteHalf
                    } else {
                        Step::AddFailed
                    });
                    next.directories[directory].temporary = match is_missing {
                        true => Temporary::Empty,
                        false => Temporary::Missing,
                    };
                    push("add: create_file_at", Ok(next));
                }
                Step::WriteHalf | Step::WriteRest => {
                    let (to_step, content) = match step {
                        Step::WriteHalf => (Step::WriteRest, Temporary::Torn),
                        _ => (Step::Rename, Temporary::Complete),
                    };
                    let mut next = to(to_step);
                    next.directories[directory].temporary = content;
                    push("add: write_all", Ok(next));
                    let mut next = to(Step::AddFailed);
                    next.directories[directory].temporary = Temporary::Missing;
                    push("add: write_all fails", Ok(next));
                }
                Step::Rename => {
                    let mut next = to(Step::Unlock);
                    next.directories[directory].temporary = Temporary::Missing;
                    next.directories[directory].records[name] = record;
                    push("add: rename_at", Ok(next));
                }
                Step::Unlock => {
                    let mut next = to(match self.mutation {
                        Some(Mutation::RecordBeforeUser) => Step::ReadReady,
                        Some(Mutation::GoBeforeRecord) => Step::WaitExit,
                        _ => Step::SendGo,
                    });
                    self.unlock(&mut next, slot);
                    push("add: unlock", Ok(next));
                }
                Step::AddFailed => {
                    let mut next = to(Step::CloseStart);
                    next.slots[slot].position = 0;
                    next.slots[slot].running = 0;
                    self.unlock(&mut next, slot);
                    push("add: unlock after an error", Ok(next));
                }
                Step::SendGo => {
                    let mut next = to(match self.has(Mutation::GoBeforeRecord) {
                        true => Step::Lock,
                        false => Step::WaitExit,
                    });
                    if let Some(first) = next.find(record.first)
                        && first.is_running()
                    {
                        first.flags |= GO;
                    }
                    self.close_start(&mut next, record.first);
                    push("write go", Ok(next));
                }
                Step::CloseStart => {
                    let mut next = to(Step::Collect);
                    self.close_start(&mut next, record.first);
                    push("drop(start)", Ok(next));
                }
                Step::WaitExit => {
                    if first_has_ended {
                        push("wait_exit: first", Ok(to(Step::WaitFirst)));
                    } else {
                        let mut next = to(Step::WaitFirst);
                        if let Some(first) = next.find(record.first) {
                            first.flags |= KILLED;
                        }
                        push("wait_exit: requester; pidfd_signal KILL", Ok(next));
                    }
                }
                Step::WaitFirst if first_has_ended => {
                    let mut next = to(Step::RemoveLock);
                    if self.has(Mutation::CollectBeforeDelete)
                        && let Some(first) = next.find(record.first)
                    {
                        first.free();
                    }
                    push("wait_exit: first", Ok(next));
                }
                Step::WaitFirst => {}
                Step::RemoveRead => {
                    let found = state.directories[directory].records[name];
                    let is_same =
                        found == record || self.has(Mutation::NoReread) && found != Record::NONE;
                    let step = if is_same {
                        Step::RemoveDelete
                    } else {
                        Step::RemoveUnlock
                    };
                    push("remove: read", Ok(to(step)));
                }
                Step::RemoveDelete => {
                    let mut next = to(Step::RemoveUnlock);
                    let found = &mut next.directories[directory].records[name];
                    if ![record, Record::NONE].contains(found) {
                        return push("remove: remove_file_at", Err(Invariant::RemovalOfRead));
                    }
                    *found = Record::NONE;
                    push("remove: remove_file_at", Ok(next));
                }
                Step::RemoveUnlock => {
                    let mut next = if is_create { to(Step::Collect) } else { idle() };
                    if self.has(Mutation::CollectBeforeDelete) && is_create {
                        next.slots[slot].step = Step::Exit;
                    }
                    self.unlock(&mut next, slot);
                    push("remove: unlock", Ok(next));
                }
                Step::Collect | Step::Exit if first_has_ended => {
                    let mut next = idle();
                    for id in [record.first, record.parent] {
                        if let Some(process) = next.find(id) {
                            process.free();
                        }
                    }
                    push("wait_for", Ok(next));
                }
                Step::Collect | Step::Exit => {}
                Step::OpenFirst | Step::OpenMonitor => {
                    let (id, to_step, position) = match step {
                        Step::OpenFirst => (record.first, Step::OpenMonitor, 0),
                        _ => (record.parent, Step::HasEnded, 1),
                    };
                    let mut next = to(to_step);
                    let found = state.processes[id.pid()];
                    if found.stage != Stage::Free {
                        next.slots[slot].pidfds[position] = found.id;
                    }
                    push("remove_jail: pidfd", Ok(next));
                }
                Step::HasEnded => match self.is_running(state, record.first) {
                    true => push("remove_jail: has_ended", Ok(to(Step::Kill))),
                    false => {
                        let mut next = to(Step::RemoveLock);
                        next.slots[slot].pidfds = [Id::NONE; 2];
                        push("remove_jail: has_ended", Ok(next));
                    }
                },
                Step::Kill => {
                    let mut next = to(Step::IsMonitorRunning);
                    let result = send(&mut next, pidfds[0], caller, KILLED);
                    push("remove_jail: pidfd_signal", result.map(|()| next));
                }
                Step::IsMonitorRunning => {
                    let mut next = to(Step::WaitBoth);
                    if !self.is_running(state, record.parent) {
                        next.slots[slot].pidfds[1] = Id::NONE;
                    }
                    push("remove_jail: parent.is_running", Ok(next));
                }
                Step::WaitBoth => {
                    let mut running = pidfds.iter().filter(|id| !state.has_ended(**id));
                    let waits_for = running.next();
                    if let Some(id) = waits_for
                        && usize::from(state.processes[id.pid()].owner) != caller
                    {
                        push("remove_jail: wait_exit", Err(Invariant::Separation));
                    } else if waits_for.is_none() || self.has(Mutation::NoWait) {
                        let mut next = to(Step::RemoveLock);
                        next.slots[slot].pidfds = [Id::NONE; 2];
                        push("remove_jail: wait_exit", Ok(next));
                    } else {
                        push("remove_jail: wait_exit expires", Ok(idle()));
                    }
                }
                Step::FindMonitored => {
                    let mut next = to(Step::OpenTarget);
                    let records = [record, operation.other];
                    let mut monitored = records.iter().filter(|record| {
                        **record != Record::NONE
                            && record.parent.pid() == usize::from(operation.position)
                    });
                    if let Some(record) = monitored.next()
                        && self.is_running(state, record.parent)
                    {
                        next.slots[slot].position = u8::try_from(record.first.pid()).unwrap();
                    }
                    push("find_target: parent.is_running", Ok(next));
                }
                Step::OpenTarget => {
                    let found = state.processes[usize::from(operation.position)];
                    let mut next = to(Step::Ancestors);
                    next.slots[slot].pidfds[0] = found.id;
                    let next = if found.stage == Stage::Free {
                        idle()
                    } else {
                        next
                    };
                    push("find_target: pidfd", Ok(next));
                }
                Step::Ancestors => {
                    let found = state.processes[usize::from(operation.position)];
                    let is_owned = [record, operation.other].iter().any(|record| {
                        *record != Record::NONE
                            && (record.first == found.id
                                || self.has(Mutation::NoStartTime)
                                    && record.first.pid() == found.id.pid())
                    });
                    let is_owned = is_owned && found.is_running();
                    let next = if is_owned {
                        to(Step::HasRootUid)
                    } else {
                        idle()
                    };
                    push("find_target: stable_ancestors", Ok(next));
                }
                Step::HasRootUid => {
                    let found = state.processes[usize::from(operation.position)];
                    let is_refused = found.stage == Stage::Free || found.has_root_uid();
                    let next = if is_refused {
                        idle()
                    } else {
                        to(Step::SendSignal)
                    };
                    push("find_target: has_root_uid", Ok(next));
                }
                Step::SendSignal => {
                    let mut next = idle();
                    let mut target = pidfds[0];
                    if self.has(Mutation::SignalByPid) {
                        target = state.processes[target.pid()].id;
                    }
                    let result = send(&mut next, target, caller, 0);
                    push("send_signal", result.map(|()| next));
                }
            }
        }

        /// Appends the invariants that a state violates.
        fn check_state(&self, state: &State, found: &mut Vec<(Invariant, &str)>) {
            for directory in &state.directories {
                for record in &directory.records {
                    if *record == Record::NONE {
                        continue;
                    }
                    let first = state.processes[record.first.pid()];
                    let monitor = state.processes[record.parent.pid()];
                    if first.id == record.first && first.has_root_uid() {
                        found.push((Invariant::RecordOfAgent, ""));
                    }
                    let is_collected = first.id != record.first || first.stage == Stage::Free;
                    let is_monitored =
                        monitor.id == record.parent && monitor.stage == Stage::Monitor;
                    if is_collected && is_monitored {
                        found.push((Invariant::PidOfRecord, ""));
                    }
                }
            }
            let mut running = [[0_u8; NAMES]; CALLERS];
            for process in &state.processes {
                if process.stage == Stage::Agent {
                    let (caller, name) = (usize::from(process.owner), usize::from(process.name));
                    running[caller][name] += 1;
                    let count: u8 = running[caller].iter().sum();
                    if running[caller][name] > 1 || count > self.quota {
                        found.push((Invariant::NamesAndQuota, ""));
                    }
                    let record = state.directories[self.directory(caller)].records[name];
                    if record.first != process.id || record.parent != process.parent {
                        found.push((Invariant::AgentHasRecord, ""));
                    }
                }
            }
        }

        /// Returns the state after a crash of all operations, in which every first process has ended as far as the
        /// kernel and its own code end it.
        fn after_crash(&self, state: &State) -> Result<State, Invariant> {
            let mut next = *state;
            for slot in 0..SLOTS {
                match next.slots[slot].step {
                    Step::Idle => continue,
                    Step::Exiting => {}
                    _ => self.close_files(&mut next, slot),
                }
                if next.slots[slot].step == Step::Exiting {
                    self.notify_exit(&mut next, slot);
                }
            }
            for process in &mut next.processes {
                let is_ending = match process.stage {
                    Stage::Free | Stage::Zombie => true,
                    Stage::Monitor | Stage::Exiting => false,
                    _ if process.flags & KILLED != 0 => true,
                    // It reads `go` before the end of the socket.
                    Stage::Agent => false,
                    _ => process.flags & (GO | CLOSED) == CLOSED,
                };
                if !is_ending {
                    return Err(Invariant::CleanUp);
                }
                process.free();
            }
            next.slots = [Slot::idle(0); SLOTS];
            match next
                .directories
                .iter()
                .all(|directory| directory.lock == NONE)
            {
                true => Ok(next),
                false => Err(Invariant::CleanUp),
            }
        }

        /// Checks that one more `create` of each caller cleans its directory.
        fn check_next_create(&self, state: &State) -> Result<(), Invariant> {
            for caller in 0..CALLERS {
                let slot = caller * CONCURRENT;
                let mut state = *state;
                let parent = state.start(Stage::Monitor, caller, Id::NONE, 0);
                let parent = parent.ok_or(Invariant::CleanUp)?;
                let first = state.start(Stage::Ready, caller, parent, 0);
                let first = first.ok_or(Invariant::CleanUp)?;
                let record = Record { first, parent };
                state.slots[slot] = Slot {
                    step: Step::Lock,
                    is_create: true,
                    record,
                    ..Slot::idle(0)
                };
                let mut moves = Vec::new();
                while !matches!(
                    state.slots[slot].step,
                    Step::SendGo | Step::WaitExit | Step::ReadReady
                ) {
                    moves.clear();
                    self.slot_moves(&state, slot, &mut moves);
                    let step = moves.first().ok_or(Invariant::CleanUp)?;
                    state = step.result?;
                    if state.slots[slot].step == Step::CloseStart {
                        return Err(Invariant::CleanUp);
                    }
                }
                let mut expected = [Record::NONE; NAMES];
                expected[0] = record;
                let directory = state.directories[self.directory(caller)];
                if directory.records != expected || directory.temporary != Temporary::Missing {
                    return Err(Invariant::CleanUp);
                }
            }
            Ok(())
        }

        /// Explores all states and returns their number.
        fn explore(&self) -> Result<usize, Violation> {
            let initial = self.initial();
            let mut states: Vec<(State, u32)> = vec![(initial, 0)];
            let (mut known, mut crashed) = (States::default(), States::default());
            known.insert(&initial);
            let (mut moves, mut found) = (Vec::new(), Vec::new());
            let mut position = 0;
            while let Some((state, _)) = states.get(position).copied() {
                moves.clear();
                self.moves(&state, &mut moves);
                for step in &moves {
                    match step.result {
                        Ok(next) if is_separate(&state, &next, step.caller) => {
                            if known.insert(&next) {
                                states.push((next, u32::try_from(position).unwrap()));
                            }
                        }
                        Ok(_) => found.push((Invariant::Separation, step.label)),
                        Err(invariant) => found.push((invariant, step.label)),
                    }
                }
                self.check_state(&state, &mut found);
                let checked = match self.after_crash(&state) {
                    Ok(after) if crashed.insert(&after) => self.check_next_create(&after),
                    after => after.map(drop),
                };
                if let Err(invariant) = checked {
                    found.push((invariant, "crash of all operations"));
                }
                let mut violations = found.drain(..);
                if let Some((invariant, last)) = violations
                    .find(|(invariant, _)| self.only.is_none_or(|only| only == *invariant))
                {
                    let trace = self.trace(&states, position, last);
                    return Err(Violation { invariant, trace });
                }
                drop(violations);
                position += 1;
            }
            Ok(states.len())
        }

        /// Returns the steps to a state, and the last one.
        fn trace(&self, states: &[(State, u32)], position: usize, last: &str) -> Vec<String> {
            let mut trace = vec![last.to_owned()];
            let mut position = position;
            while position > 0 {
                let (state, before) = &states[position];
                position = usize::try_from(*before).unwrap();
                let mut moves = Vec::new();
                self.moves(&states[position].0, &mut moves);
                let step = moves.iter().find(|step| step.result.as_ref() == Ok(state));
                trace.push(step.map_or_else(String::new, |step| {
                    format!("{}: {}", ["A", "B"][step.caller], step.label)
                }));
            }
            trace.reverse();
            trace
        }
    }

    /// Signals a process by its pidfd. KILL sets a flag; any other signal has no effect in the model.
    fn send(state: &mut State, target: Id, caller: usize, flag: u8) -> Result<(), Invariant> {
        if state.has_ended(target) {
            return Ok(());
        }
        let process = &mut state.processes[target.pid()];
        if process.has_root_uid() || usize::from(process.owner) != caller {
            return Err(Invariant::SignalTarget);
        }
        process.flags |= flag;
        Ok(())
    }

    /// A set of states: a hash table with linear probing. Unlike the generic code of [`std::collections::HashSet`], it is
    /// fast in an unoptimized build.
    #[derive(Default)]
    struct States {
        keys: Vec<Key>,
        /// Positions in `keys` plus 1; 0 is free. The number is a power of two.
        table: Vec<u32>,
    }

    impl States {
        /// Adds a state. Reports whether it was missing.
        fn insert(&mut self, state: &State) -> bool {
            if self.keys.len() * 2 >= self.table.len() {
                self.table = vec![0; (self.table.len() * 2).max(1 << 16)];
                for position in 0..self.keys.len() {
                    let key = self.keys[position];
                    let (entry, _) = self.find(&key);
                    self.table[entry] = u32::try_from(position + 1).unwrap();
                }
            }
            let key = state.key();
            let (entry, is_known) = self.find(&key);
            if !is_known {
                self.keys.push(key);
                self.table[entry] = u32::try_from(self.keys.len()).unwrap();
            }
            !is_known
        }

        /// Returns the entry of a key, and whether the set contains it.
        fn find(&self, key: &Key) -> (usize, bool) {
            let mut hash = 0_u64;
            for word in key {
                hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
            }
            let mask = self.table.len() - 1;
            let mut entry = (hash >> 32) as usize & mask;
            loop {
                match self.table[entry] {
                    0 => return (entry, false),
                    found if self.keys[found as usize - 1] == *key => return (entry, true),
                    _ => entry = (entry + 1) & mask,
                }
            }
        }
    }

    const NOTHING: Plan = Plan { count: 0, kinds: 0 };

    fn one(kinds: u8) -> Plan {
        Plan { count: 1, kinds }
    }

    fn two(kinds: u8) -> Plan {
        Plan { count: 2, kinds }
    }

    fn model(quota: u8, names: usize, plans: [Plan; SLOTS]) -> Model {
        Model {
            mutation: None,
            only: None,
            quota,
            names,
            plans,
        }
    }

    /// Explores models and checks that they have as many states as they should.
    fn explore_all(models: &[Model], minimum: usize) {
        let mut states = 0;
        for model in models {
            match model.explore() {
                Ok(count) => states += count,
                Err(violation) => panic!("{model:?}: {violation}"),
            }
        }
        println!("{states} states");
        assert!(states >= minimum, "{states} states");
    }

    #[test]
    fn two_operations_of_a_caller_keep_the_invariants() {
        let any = CREATE | REMOVE | SIGNAL;
        let models = [
            model(1, 1, [two(any), one(any), NOTHING, NOTHING]),
            model(1, 2, [one(any), one(any), NOTHING, NOTHING]),
        ];
        explore_all(&models, 350_000);
    }

    #[test]
    fn operations_of_two_callers_keep_the_invariants() {
        let create_or_remove = CREATE | REMOVE;
        let models = [
            model(1, 1, [one(CREATE), one(REMOVE), one(CREATE), one(REMOVE)]),
            model(
                1,
                1,
                [
                    one(CREATE),
                    one(REMOVE | SIGNAL),
                    one(create_or_remove),
                    NOTHING,
                ],
            ),
        ];
        explore_all(&models, 600_000);
    }

    #[test]
    fn reuse_of_pids_by_another_caller_keeps_the_invariants() {
        let any = CREATE | REMOVE | SIGNAL;
        let models = [model(
            2,
            1,
            [two(any), NOTHING, one(CREATE | REMOVE), NOTHING],
        )];
        explore_all(&models, 500_000);
    }

    #[test]
    fn mutated_protocol_violates_the_expected_invariant() {
        use Invariant::{
            AgentHasRecord, CleanUp, NamesAndQuota, PidOfRecord, RecordOfAgent, RemovalOfRead,
            Separation, SignalTarget,
        };
        use Mutation::{
            CollectBeforeDelete, GlobalLock, GoBeforeRecord, KeepEnded, KeepTemporary, NoLock,
            NoParentDeathSignal, NoQuota, NoReread, NoSocketEnd, NoStartTime, NoWait,
            RecordBeforeUser, SharedDirectory, SignalByPid,
        };
        let two_creates = [one(CREATE), one(CREATE), NOTHING, NOTHING];
        let both_create = [one(CREATE), NOTHING, one(CREATE), NOTHING];
        let with_remove = [two(CREATE), one(REMOVE), NOTHING, NOTHING];
        let with_signal = [one(CREATE), one(SIGNAL), one(CREATE), NOTHING];
        for (mutation, expected, names, plans) in [
            (GlobalLock, Separation, 1, both_create),
            (SharedDirectory, Separation, 1, both_create),
            (NoLock, NamesAndQuota, 1, two_creates),
            (NoReread, RemovalOfRead, 1, with_remove),
            (RecordBeforeUser, RecordOfAgent, 1, two_creates),
            (GoBeforeRecord, AgentHasRecord, 1, two_creates),
            (NoParentDeathSignal, CleanUp, 1, two_creates),
            (NoSocketEnd, CleanUp, 1, two_creates),
            (CollectBeforeDelete, PidOfRecord, 1, two_creates),
            (KeepTemporary, CleanUp, 1, two_creates),
            (KeepEnded, CleanUp, 2, two_creates),
            (NoQuota, NamesAndQuota, 2, two_creates),
            (NoWait, AgentHasRecord, 1, with_remove),
            (NoStartTime, SignalTarget, 1, with_signal),
            (SignalByPid, SignalTarget, 1, with_signal),
        ] {
            let correct = model(1, names, plans);
            let mutated = Model {
                mutation: Some(mutation),
                only: Some(expected),
                ..correct
            };
            let violation = mutated.explore().unwrap_err();
            assert_eq!(violation.invariant, expected, "{mutation:?}: {violation}");
        }
    }
}
