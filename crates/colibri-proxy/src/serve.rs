//! The parts `serve` and `resolve`: processes outside of the sandbox.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use colibri_jail_core::{CredentialRule, Destination, NetworkRule};
use colibri_sys::socket_passing::{self, Received};
use rustix::process::Pid;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::credential::Credential;
use crate::policy::Policy;
use crate::reporter::Reporter;
use crate::resolver::{self, Resolver};
use crate::server::{MAX_CONNECTIONS, Purpose, Shared, accept_connections, purpose, sandbox_end};
use crate::settings::{Settings, send_message};
use crate::tls::{TlsContext, root_certificates, to_pem};
use crate::{ProxyError, failed, lockdown};

/// Signals that both parts ignore: they are sent to all processes of an agent, and the proxy must outlive the agent.
const IGNORED_SIGNALS: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM];

/// Prepares a process.
fn start() -> Result<(), ProxyError> {
    // On FreeBSD this process inherits the monitor's control socket, whose end the shim waits for. Linux before 5.9 lacks
    // the call, and has no such socket.
    let _ = colibri_sys::descriptors::close_from(3);
    lockdown::deny_new_privileges().map_err(failed("give up privileges"))?;
    for signal in IGNORED_SIGNALS {
        signal_hook::flag::register(*signal, Arc::default()).map_err(failed("ignore signals"))?;
    }
    Ok(())
}

/// Parses the number of the parent.
fn parse_parent(parent: &OsStr) -> Result<Pid, ProxyError> {
    let parent = parent.to_string_lossy().parse().ok();
    parent
        .and_then(Pid::from_raw)
        .ok_or_else(|| "cannot watch the sandbox: the number of its process is invalid".into())
}

/// Leaves root, hides the memory of this process, and lets it end with its parent.
fn restrict(parent: Pid) -> Result<(), ProxyError> {
    lockdown::leave_root().map_err(failed("become another user than root"))?;
    // The limit is not restored: this process executes no other program for a user.
    let _ = lockdown::hide_memory().map_err(failed("hide its memory"))?;
    colibri_sys::process::die_with_parent(parent).map_err(failed("watch the sandbox"))
}

/// Returns the connection at standard input.
fn connection() -> Result<UnixStream, ProxyError> {
    let connection = io::stdin().as_fd().try_clone_to_owned();
    connection
        .map(UnixStream::from)
        .map_err(failed("use its connection"))
}

/// Resolves names for `serve` until that ends.
pub(crate) fn resolve(parent: &OsStr) -> Result<ExitCode, ProxyError> {
    start()?;
    restrict(parse_parent(parent)?)?;
    resolver::run(connection()?).map_err(failed("resolve names"))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the resolver process and returns the connection to it.
fn start_resolver() -> io::Result<UnixStream> {
    let (connection, resolver_end) = UnixStream::pair()?;
    Command::new(std::env::current_exe()?)
        .arg("resolve")
        .arg(std::process::id().to_string())
        .stdin(Stdio::from(OwnedFd::from(resolver_end)))
        .stdout(Stdio::null())
        .spawn()?;
    Ok(connection)
}

/// Runs outside of the sandbox: receives the settings and the listening sockets from standard input, and serves until the
/// process `parent` ends.
pub(crate) fn serve(parent: &OsStr) -> Result<ExitCode, ProxyError> {
    start()?;
    // Before the keys arrive; restrict() repeats it for another user.
    let _ = lockdown::hide_memory().map_err(failed("hide its memory"))?;
    let parent = parse_parent(parent)?;
    let watched = watch(parent).map_err(failed("watch the sandbox"))?;
    let connection = connection()?;
    let settings = Settings::receive(&connection).map_err(failed("receive its settings"))?;
    let rules: Vec<NetworkRule> = settings
        .rules
        .iter()
        .map(|rule| rule.parse())
        .collect::<Result<_, _>>()?;
    let mut credentials = Vec::new();
    for setting in settings.credentials {
        credentials.push(Credential {
            rule: setting.rule.parse::<CredentialRule>()?,
            placeholder: setting.placeholder,
            key: setting.key,
        });
    }
    let destinations: Vec<Destination> = credentials
        .iter()
        .map(|credential| credential.rule.destination().clone())
        .collect();
    let roots = match settings.authority_key.is_some() {
        true => root_certificates(settings.roots_file.as_deref()),
        false => Vec::new(),
    };
    if settings.wants_roots {
        let bundle: String = roots.iter().map(|root| to_pem(root)).collect();
        send_message(&connection, bundle.as_bytes()).map_err(failed("send the certificates"))?;
    }
    let tls = match settings.authority_key {
        Some(key) => Some(TlsContext::new(&key, roots)?),
        None => None,
    };
    let events = match settings.events {
        true => Some(events().map_err(failed("use the descriptor of the events"))?),
        false => None,
    };
    let resolver = start_resolver().map_err(failed("start the resolver"))?;
    // After the files of certificates and programs, which may be readable for root only, and before any byte of the agent.
    restrict(parent)?;
    let connections = lockdown::allow_connections(MAX_CONNECTIONS);
    let received =
        socket_passing::receive(&connection).map_err(failed("receive the listening socket"))?;
    drop(connection);
    let policy = Policy::new(rules, destinations);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(failed("start"))?.block_on(async {
        let shared = Arc::new(Shared {
            policy,
            resolver: Resolver::new(resolver).map_err(failed("use the resolver"))?,
            reporter: Reporter::new(events).map_err(failed("start a thread"))?,
            credentials,
            tls,
        });
        accept(received, watched, shared, connections).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Opens a process whose end a poll shows (pidfd_open(2)). The kernel sends the signal at the end of the parent only if the
/// parent may signal this process, and both may have different users.
#[cfg(target_os = "linux")]
fn watch(parent: Pid) -> io::Result<Option<OwnedFd>> {
    use rustix::process::{PidfdFlags, pidfd_open};
    Ok(Some(pidfd_open(parent, PidfdFlags::empty())?))
}

/// Returns nothing on this system, where both have the same user.
#[cfg(not(target_os = "linux"))]
fn watch(_parent: Pid) -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

/// Returns standard output, which does not block.
fn events() -> io::Result<OwnedFd> {
    let events = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&events, true)?;
    Ok(events)
}

/// Locks this process down and accepts connections until the sandbox ends.
async fn accept(
    received: Received,
    watched: Option<OwnedFd>,
    shared: Arc<Shared>,
    connections: usize,
) -> Result<(), ProxyError> {
    let permits = Arc::new(Semaphore::new(connections));
    let mut listeners: Vec<(TcpListener, Purpose)> = Vec::new();
    for (index, listener) in received.listeners.into_iter().enumerate() {
        let address = listener
            .local_addr()
            .map_err(failed("use a listening socket"))?;
        if let Some(purpose) = purpose(index, (address.ip(), address.port()), &shared.policy) {
            let listener =
                TcpListener::from_std(listener).map_err(failed("use a listening socket"))?;
            listeners.push((listener, purpose));
        }
    }
    let end = sandbox_end(received.sandbox_link, watched);
    lockdown::deny_files_and_programs().map_err(failed("restrict its system calls"))?;
    for (listener, purpose) in listeners {
        tokio::spawn(accept_connections(
            listener,
            purpose,
            shared.clone(),
            permits.clone(),
        ));
    }
    end.await.map_err(failed("watch the sandbox"))
}
