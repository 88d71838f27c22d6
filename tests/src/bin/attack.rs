//! `attack`: what tests/freebsd/attacks.sh cannot do by a shell: sockets, descriptors, reapers and terminals.
//!
//! ```text
//! attack control MANNER HELPER ARG…   runs the helper with a control socket, and misuses the socket
//! attack pass DIRECTORY SOCKET HELPER ARG…  runs the helper, and passes a directory to the agent by a socket with this path
//! attack receive SOCKET PATH          receives a directory by the socket, and opens PATH relative to it
//! attack reap HELPER ARG…             runs the helper below a reaper, which sends KILL to all descendants for 3 s
//! attack leave SECONDS                becomes a reaper, whose grandchild sleeps in a new session
//! attack adopt UID JAIL SECONDS HELPER ARG…  as root, becomes the reaper of a sleep in the jail and of the helper, which it
//!                                     starts as the user, and waits for the end of the sleep
//! attack orphan HELPER ARG…           runs the helper with a control socket below init
//! attack outlive HELPER ARG…          runs the helper with the other end of its control socket as descriptor 0
//! attack unnamed HELPER ARG…          executes the helper with an empty argv[0]
//! attack swap DIRECTORY ONE OTHER     exchanges two names in a directory every few milliseconds, for 5 min
//! attack fill SOCKET                  fills the queue of a datagram socket
//! attack rename ONE OTHER             renames a file or directory once
//! attack inject                       puts a byte into the input of the terminal that is descriptor 0
//! attack jail NAME                    opens a descriptor of a jail and enters the jail by it
//! ```
//!
//! The exit code is the helper's, 99 if it has not ended within 15 s, and for the attempts without a helper 0 if they
//! succeeded, else 1.

fn main() -> std::process::ExitCode {
    attempts::main()
}

#[cfg(not(target_os = "freebsd"))]
mod attempts {
    pub(crate) fn main() -> std::process::ExitCode {
        std::process::ExitCode::from(2)
    }
}

#[cfg(target_os = "freebsd")]
mod attempts {
    #![allow(clippy::print_stdout, clippy::print_stderr)]

    use std::error::Error;
    use std::ffi::{c_int, c_uint, c_ulong};
    use std::fs::{File, Permissions};
    use std::io::{self, IoSlice, IoSliceMut, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, ExitCode};
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::fs::{Mode, OFlags};
    use rustix::io::{FdFlags, fcntl_setfd};
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };

    type Answer = Result<ExitCode, Box<dyn Error>>;

    /// Maximum time for the helper to end.
    const HELPER_TIMEOUT: Duration = Duration::from_secs(15);
    /// Exit code for a helper that has not ended.
    const STUCK: u8 = 99;

    pub(crate) fn main() -> ExitCode {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match words[..] {
            ["control", manner, program, ref args @ ..] => control(manner, program, args),
            ["pass", directory, socket, program, ref args @ ..] => {
                pass(directory, socket, program, args)
            }
            ["receive", socket, path] => receive(socket, path),
            ["reap", program, ref args @ ..] => reap(program, args),
            ["leave", seconds] => leave(seconds),
            ["adopt", uid, jail, seconds, program, ref args @ ..] => {
                adopt(uid, jail, seconds, program, args)
            }
            ["orphan", program, ref args @ ..] => orphan(program, args),
            ["outlive", program, ref args @ ..] => outlive(program, args),
            ["unnamed", program, ref args @ ..] => {
                Err(Command::new(program).arg0("").args(args).exec().into())
            }
            ["inject"] => inject(),
            ["swap", directory, one, other] => swap(directory, one, other),
            ["fill", socket] => fill(socket),
            ["rename", one, other] => std::fs::rename(one, other)
                .map(|()| ExitCode::SUCCESS)
                .map_err(Into::into),
            ["jail", name] => enter(name),
            _ => Err("unknown attempt".into()),
        };
        answer.unwrap_or_else(|error| {
            eprintln!("attack: {error}");
            ExitCode::FAILURE
        })
    }

    /// Waits for the helper and returns its exit code.
    fn end_of(mut helper: Child) -> Answer {
        let deadline = Instant::now() + HELPER_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = helper.try_wait()? {
                let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
                return Ok(ExitCode::from(u8::try_from(code)?));
            }
            thread::sleep(Duration::from_millis(20));
        }
        println!("stuck");
        Ok(ExitCode::from(STUCK))
    }

    /// Ignores the errors of a write: the helper may have closed the socket.
    fn send(socket: &UnixStream, bytes: &[u8]) {
        let _ = (&mut &*socket).write_all(bytes);
    }

    fn control(manner: &str, program: &str, args: &[&str]) -> Answer {
        let (mine, theirs) = UnixStream::pair()?;
        fcntl_setfd(&theirs, FdFlags::empty())?;
        if manner == "shut" {
            mine.shutdown(std::net::Shutdown::Write)?;
        }
        let helper = Command::new(program)
            .args(args)
            .env("COLIBRI_CONTROL_FD", theirs.as_raw_fd().to_string())
            .spawn()?;
        // Wait for the agent's start, or for the refusal.
        let mut start = [0; 6];
        mine.set_read_timeout(Some(HELPER_TIMEOUT))?;
        // With a copy of the helper's end, the caller can change its flags.
        let copy = (manner == "blocking").then_some(theirs);
        let started = (&mut &mine).read_exact(&mut start).is_ok() && &start == b"agent ";
        if !started {
            println!("not started");
            return end_of(helper);
        }
        if let Some(copy) = &copy {
            copy.set_nonblocking(false)?;
            send(&mine, b"signal STOP all\n");
        }
        match manner {
            "shut" | "blocking" | "close" => {}
            "garbage" => send(&mine, b"\xff\0remove --jail x\n"),
            "endless" => send(&mine, &[b'x'; 1 << 20]),
            "flood" => {
                let flooding = mine.try_clone()?;
                thread::Builder::new().spawn(move || {
                    loop {
                        let lines = b"signal STOP group\n".repeat(50);
                        if (&mut &flooding).write_all(&lines).is_err() {
                            return;
                        }
                    }
                })?;
            }
            "descriptors" => {
                let root = File::open("/")?;
                let copies = [root.as_fd(); 8];
                for _ in 0..20 {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
                    let mut ancillary = SendAncillaryBuffer::new(&mut space);
                    ancillary.push(SendAncillaryMessage::ScmRights(&copies));
                    let line = [IoSlice::new(b"signal STOP all\n")];
                    let _ = sendmsg(&mine, &line, &mut ancillary, SendFlags::NOSIGNAL);
                }
            }
            line => send(&mine, format!("{line}\n").as_bytes()),
        }
        if manner == "close" {
            drop(mine);
            return end_of(helper);
        }
        // What the monitor answers within a second. The flood and the blocked socket are not read at all.
        if !matches!(manner, "flood" | "blocking") {
            mine.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut answers = Vec::new();
            let mut portion = [0; 512];
            while let Ok(count @ 1..) = (&mut &mine).read(&mut portion) {
                answers.extend_from_slice(&portion[..count]);
            }
            print!("{}", String::from_utf8_lossy(&answers));
        }
        end_of(helper)
    }

    fn pass(directory: &str, socket: &str, program: &str, args: &[&str]) -> Answer {
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, Permissions::from_mode(0o777))?;
        listener.set_nonblocking(true)?;
        let helper = Command::new(program).args(args).spawn()?;
        let deadline = Instant::now() + HELPER_TIMEOUT;
        let mine = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error.into()),
            }
        };
        let directory = File::open(directory)?;
        let descriptors = [directory.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(
            &mine,
            &[IoSlice::new(b"D")],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        end_of(helper)
    }

    fn receive(socket: &str, path: &str) -> Answer {
        let stream = UnixStream::connect(socket)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0; 1];
        recvmsg(
            stream.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::empty(),
        )?;
        let directory = ancillary
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            })
            .ok_or("received no descriptor")?;
        let mut file = File::from(rustix::fs::openat(
            &directory,
            path,
            OFlags::RDONLY,
            Mode::empty(),
        )?);
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        println!("escaped: {} bytes", text.len());
        Ok(ExitCode::SUCCESS)
    }

    fn reap(program: &str, args: &[&str]) -> Answer {
        use rustix::process::{Signal, reaper_kill, set_reaper_status};
        set_reaper_status(true)?;
        let helper = Command::new(program).args(args).spawn()?;
        // Until the helper is root.
        thread::sleep(Duration::from_secs(2));
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut killed = 0;
        while Instant::now() < deadline {
            match reaper_kill(None, Signal::KILL, false, None) {
                Ok(result) => killed += result.killed,
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        println!("killed {killed}");
        end_of(helper)
    }

    fn leave(seconds: &str) -> Answer {
        rustix::process::set_reaper_status(true)?;
        // The shell ends at once, so that the sleep is an orphan of this reaper.
        let script =
            format!("/bin/daemon -f /bin/sleep {seconds} & /bin/daemon -f /bin/sleep {seconds}");
        Command::new("/bin/sh").args(["-c", &script]).status()?;
        thread::sleep(Duration::from_secs(600));
        Ok(ExitCode::SUCCESS)
    }

    /// Runs the program in the background of a shell that ends at once, so that this process's nearest reaper, or init, is its
    /// parent.
    fn start_orphan(shell: &mut Command, program: &str, args: &[&str]) -> io::Result<()> {
        let script = r#"(sleep 2; exec "$0" "$@") &"#;
        shell.args(["-c", script, program]).args(args).status()?;
        Ok(())
    }

    fn adopt(uid: &str, jail: &str, seconds: &str, program: &str, args: &[&str]) -> Answer {
        rustix::process::set_reaper_status(true)?;
        let mut sleep = Command::new("/usr/sbin/jexec")
            .args([jail, "/bin/sleep", seconds])
            .spawn()?;
        let uid = uid.parse()?;
        start_orphan(Command::new("/bin/sh").uid(uid).gid(uid), program, args)?;
        sleep.wait()?;
        // A zombie would stay in the list of processes.
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
        Ok(ExitCode::SUCCESS)
    }

    fn orphan(program: &str, args: &[&str]) -> Answer {
        let (mut mine, theirs) = UnixStream::pair()?;
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let number = theirs.as_raw_fd().to_string();
        let mut shell = Command::new("/bin/sh");
        start_orphan(shell.env("COLIBRI_CONTROL_FD", number), program, args)?;
        drop(theirs);
        mine.set_read_timeout(Some(HELPER_TIMEOUT))?;
        let mut start = [0; 6];
        match mine.read_exact(&mut start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => println!("not started"),
            other => println!("started: {other:?}"),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn outlive(program: &str, args: &[&str]) -> Answer {
        let (mut mine, theirs) = UnixStream::pair()?;
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let helper = Command::new(program)
            .args(args)
            .env("COLIBRI_CONTROL_FD", theirs.as_raw_fd().to_string())
            .stdin(OwnedFd::from(mine.try_clone()?))
            .spawn()?;
        drop(theirs);
        mine.set_read_timeout(Some(HELPER_TIMEOUT))?;
        let answer = match mine.read_exact(&mut [0; 6]) {
            Ok(()) => "started",
            Err(_) => "not started",
        };
        println!("{answer}");
        end_of(helper)
    }

    unsafe extern "C" {
        fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
        fn jail_get(parameters: *mut IoSliceMut<'_>, count: c_uint, flags: c_int) -> c_int;
        fn syscall(number: c_int, ...) -> c_int;
    }

    fn fill(socket: &str) -> Answer {
        let log = UnixDatagram::unbound()?;
        log.set_nonblocking(true)?;
        log.connect(socket)?;
        while log.send(&[b'x'; 512]).is_ok() {}
        Ok(ExitCode::SUCCESS)
    }

    /// Exchanges two names, so that a path that contains one of them leads to the other for half of the time.
    fn swap(directory: &str, one: &str, other: &str) -> Answer {
        std::env::set_current_dir(directory)?;
        let end = Instant::now() + Duration::from_secs(300);
        let renamed = |from: &str, to: &str| std::fs::rename(from, to).is_ok();
        let pause = || thread::sleep(Duration::from_millis(3));
        println!("swapping");
        while Instant::now() < end {
            // A mount point cannot be renamed. No target exists, because rename(2) to a mount point never returns in FreeBSD 15.1.
            if renamed(one, "exchanged") {
                let free = if renamed(other, one) { other } else { one };
                while !renamed("exchanged", free) && Instant::now() < end {
                    pause();
                }
            }
            pause();
        }
        Ok(ExitCode::SUCCESS)
    }

    fn inject() -> Answer {
        /// `TIOCSTI` of sys/ttycom.h: `_IOW('t', 114, char)`.
        const TIOCSTI: c_ulong = 0x8001_7472;
        let byte = b'#';
        // SAFETY: the request reads one byte, which lives through the call.
        if unsafe { ioctl(0, TIOCSTI, &raw const byte) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        println!("injected");
        Ok(ExitCode::SUCCESS)
    }

    fn enter(name: &str) -> Answer {
        /// Flag of jail_get(2): returns a descriptor.
        const GET_DESC: c_int = 0x40;
        /// Number of jail_attach_jd(2).
        const JAIL_ATTACH_JD: c_int = 597;
        let mut name = [name.as_bytes(), b"\0"].concat();
        let mut descriptor = (-1_i32).to_ne_bytes();
        let (mut first, mut second) = (*b"name\0", *b"desc\0");
        let mut parameters = [
            IoSliceMut::new(&mut first),
            IoSliceMut::new(&mut name),
            IoSliceMut::new(&mut second),
            IoSliceMut::new(&mut descriptor),
        ];
        // SAFETY: IoSliceMut has the layout of struct iovec; the buffers live through the call.
        let jid = unsafe { jail_get(parameters.as_mut_ptr(), 4, GET_DESC) };
        if jid < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let descriptor = i32::from_ne_bytes(descriptor);
        // SAFETY: the kernel has just opened the descriptor.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // SAFETY: the call takes a number.
        if unsafe { syscall(JAIL_ATTACH_JD, owned.as_raw_fd()) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        println!("entered");
        Ok(ExitCode::SUCCESS)
    }
}
