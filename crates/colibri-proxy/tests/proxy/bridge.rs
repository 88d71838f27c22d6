//! Starts the proxy with this test program as the command: it opens a port and passes it to the proxy, as `enter` does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Variable that makes the test `bridge` act as the sandbox: addresses of further sockets, separated by commas.
const BRIDGE_VARIABLE: &str = "TEST_BRIDGE";

/// The proxy's program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_colibri-proxy");

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// Lines of the command about its process.
    pub(crate) facts: Vec<String>,
    stderr: Receiver<String>,
    child: Child,
    stdin: Option<ChildStdin>,
}

/// Not a test: the process in place of a sandbox.
#[test]
fn bridge() {
    let Ok(addresses) = std::env::var(BRIDGE_VARIABLE) else {
        return;
    };
    let number: i32 = std::env::var("COLIBRI_PROXY_FD").unwrap().parse().unwrap();
    let link = colibri_sys::descriptors::take_inherited_socket(number).unwrap();
    let mut listeners = vec![TcpListener::bind("127.0.0.1:0").unwrap()];
    let port = listeners[0].local_addr().unwrap().port();
    for address in addresses.split(',').filter(|address| !address.is_empty()) {
        listeners.push(TcpListener::bind(address).unwrap());
    }
    colibri_sys::socket_passing::send(&link.as_fd(), &listeners).unwrap();
    drop(listeners);
    let mut facts = format!("pid {}\n", std::process::id());
    for (name, value) in std::env::vars() {
        facts += &format!("env {name}={value}\n");
    }
    #[cfg(target_os = "linux")]
    {
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        facts += &format!("dumpable {dumpable:?}\n");
    }
    let core = rustix::process::getrlimit(rustix::process::Resource::Core);
    facts += &format!("core {:?}\n", core.current);
    println!("\n{facts}port {port}");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Options of a proxy for a test.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// Options and rules of `run`.
    pub(crate) arguments: &'a [&'a str],
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// Addresses of further sockets that the sandbox opens.
    pub(crate) listen: &'a [&'a str],
    /// File at descriptor 12.
    pub(crate) events: Option<&'a Path>,
}

impl Proxy {
    /// Starts a proxy with these rules.
    pub(crate) fn start(rules: &[&str]) -> Self {
        Self::start_with(&Start {
            arguments: rules,
            ..Start::default()
        })
    }

    pub(crate) fn start_with(start: &Start) -> Self {
        let bridge = std::env::current_exe().unwrap();
        let mut command = Command::new("bash");
        let events = start.events.unwrap_or(Path::new("/dev/null"));
        command
            .args([
                "-c",
                "ulimit -Sc $(ulimit -Hc); exec 12>>\"$0\"; exec \"$@\"",
            ])
            .arg(events)
            .args([PROGRAM, "run"])
            .args(start.arguments)
            .arg("--")
            .arg(bridge)
            .args(["--exact", "bridge::bridge", "--nocapture"])
            .env(BRIDGE_VARIABLE, start.listen.join(","))
            .env_remove("COLIBRI_PROXY_ROOTS")
            .envs(start.environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let (sender, stderr) = channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut facts = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = loop {
            let Some(line) = lines.next() else {
                panic!(
                    "the proxy ended: {:?}",
                    stderr.iter().collect::<Vec<String>>()
                );
            };
            let line = line.unwrap();
            match line.strip_prefix("port ") {
                Some(port) => break port.parse().unwrap(),
                None => facts.push(line),
            }
        };
        Self {
            port,
            facts,
            stderr,
            child,
            stdin,
        }
    }

    /// Returns the value of a fact about the command.
    pub(crate) fn fact(&self, name: &str) -> Option<&str> {
        let mut facts = self.facts.iter();
        facts.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }

    /// Waits for the next line on standard error.
    pub(crate) fn stderr_line(&self) -> String {
        self.stderr.recv().unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    /// Sends bytes and returns all that the proxy answers until it closes the connection.
    pub(crate) fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_all(&mut stream)
    }

    /// Opens a tunnel, and returns the stream after the response.
    pub(crate) fn tunnel(&self, destination: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(stream, "CONNECT {destination} HTTP/1.1\r\n\r\n").unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    /// Runs curl with this proxy; returns its standard output.
    pub(crate) fn curl(&self, arguments: &[&str]) -> String {
        let proxy = format!("http://127.0.0.1:{}", self.port);
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "", "--proxy", &proxy])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Returns the pids of `serve` and `resolve`.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let pid = self.fact("pid").unwrap().parse().unwrap();
        colibri_sys::process::descendants(pid).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Reads until the end of the stream, or its reset.
pub(crate) fn read_all(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads the head of a message, and no byte after it.
pub(crate) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap() == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads one response with `Content-Length`: its head and its body.
pub(crate) fn read_response(stream: &mut impl Read) -> (String, String) {
    let head = read_head(stream);
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length: ").nth(1).unwrap_or("0");
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8_lossy(&body).into_owned())
}
