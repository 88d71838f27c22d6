//! The setuid-root program of a deployed host. It reads one request, checks it against a policy that only root can
//! write, and performs it. docs/helper-protocol.md specifies its input and output, docs/security.md its threat model.
//!
//! [`run`] contains every step in order. A module imports only modules below it, or after it in the same line. The one
//! exception: `policy` returns `HelperError`, which wraps the errors of the modules below `error`.
//!
//! ```text
//!   main         the steps of one call
//!     │
//!   ops          performs the request: create, attach, signal, remove, check
//!   audit        one syslog line per decision, one message per failure
//!   error        HelperError and its exit codes
//!     │
//!   authorize    rules + request → grant or refusal; pure, except for the lookup of users
//!     │
//!   policy       helper.toml → the rules of a caller
//!   request      argv → Request (pure)
//!     │
//!   zfs          command lines of zfs(8)
//!     │
//!   environment, users, safe_open, paths, escape    variables, user tables, files, constants
//!     │
//!   sys          system calls, the only unsafe code
//! ```

// The start-up code of Rust's standard library opens closed descriptors 0 to 2; this program must detect them.
#![cfg_attr(not(test), no_main)]

mod audit;
mod authorize;
#[cfg(any(target_os = "freebsd", test))]
mod control;
mod environment;
mod error;
mod escape;
mod ops;
mod paths;
mod policy;
mod request;
mod safe_open;
mod sys;
mod users;
#[cfg(any(target_os = "freebsd", test))]
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
mod zfs;

use std::ffi::{c_char, c_int};

use audit::AuditLog;
use authorize::{Host, Refusal};
use error::HelperError;
use policy::Policy;
use request::HelperRequest;
use sys::Caller;

/// Maximum time until an agent starts, and of any other request, in seconds.
const SETUP_TIMEOUT: u32 = 30;

#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let argv = sys::argv(argc, argv);
    let caller = sys::caller();
    let mut log = AuditLog::new(caller.uid);
    let result = run(&argv, &caller, &mut log);
    if let Err(error) = &result {
        log.refused(error);
    }
    sys::count_as(caller.uid);
    result.unwrap_or_else(|error| {
        audit::print_error(&error, caller.uid);
        error.exit_code()
    })
}

/// Performs one request and returns the exit code. `create` and `attach` monitor the agent and return its exit code. On Linux
/// `create` returns a second time, with an error, in the process that could not become the agent.
fn run(argv: &[Vec<u8>], caller: &Caller, log: &mut AuditLog) -> Result<c_int, HelperError> {
    // Reject a start that the caller could exploit.
    if argv.first().is_none_or(Vec::is_empty) {
        return Err(HelperError::NoName);
    }
    sys::check_standard_descriptors()?;
    if !sys::has_effective_root() {
        return Err(HelperError::NotSetuid);
    }

    // Reset what execve(2) inherits from the caller. After the change of uids the caller cannot signal this process.
    let requester = ops::Requester::take()?;
    sys::reset_signals_and_timers()?;
    // These requests give a caller who is root no further right, so they need no policy.
    if caller.uid == 0
        && let Ok(request) = HelperRequest::parse(argv)
        && request.is_for_root()
    {
        log.request = request.to_string();
        log.allowed("")?;
        return ops::perform_for_root(request, requester);
    }
    sys::reset_limits()?;
    sys::become_root()?;
    sys::limit_time(SETUP_TIMEOUT, caller);
    sys::reset_umask();
    std::env::set_current_dir("/").map_err(sys::cannot("change directory to /"))?;

    // Load the policy. A caller without a rule gets the same answer to every request.
    let policy = Policy::load(&paths::policy())?;
    log.syslog = policy.syslog;
    let rules = policy.rules_for(caller);
    if rules.is_empty() {
        return Err(HelperError::NotListed(caller.uid));
    }

    // Parse the request; authorize it, log the decision, perform it.
    let request = HelperRequest::parse(argv)?;
    log.request = request.to_string();
    match &request {
        HelperRequest::Create {
            jail,
            is_filtered,
            run,
        } => {
            let grant = authorize::create(&rules, jail, run, &Host::this())?;
            log.allowed(&format!("as={}", grant.user))?;
            ops::create(caller, &grant, jail, *is_filtered, requester)
        }
        HelperRequest::Attach { jail, run } => {
            let grant = authorize::attach(&rules, jail, run, &Host::this())?;
            log.allowed(&format!("as={}", grant.user))?;
            ops::attach(caller, &grant, requester)
        }
        HelperRequest::Signal { jail, signal, pids } => {
            authorize::signal(&rules, jail.as_ref(), *signal)?;
            let targets = ops::find_targets(caller.uid, jail.as_ref(), pids)?;
            for target in &targets {
                authorize::signal(&rules, Some(&target.jail), *signal)?;
            }
            log.allowed("owner=verified")?;
            ops::send_signal(targets, *signal).map(|()| 0)
        }
        HelperRequest::Remove(jail) => {
            let record = ops::find_created_jail(caller.uid, jail)?;
            log.allowed("owner=verified")?;
            ops::remove_jail(&record).map(|()| 0)
        }
        HelperRequest::Check => {
            log.allowed("")?;
            ops::probe()?;
            sys::count_as(caller.uid);
            ops::print_rules(caller.uid, &rules).map(|()| 0)
        }
        HelperRequest::Monitor { .. }
        | HelperRequest::Clean { .. }
        | HelperRequest::AwaitProxy { .. } => Err(Refusal::RootOnly.into()),
    }
}
