//! The setuid-root program of a deployed host: it reads one request, checks it against a policy of root's, and
//! does it. What it takes and gives is docs/helper-protocol.md; what it defends against is docs/security.md.
//! This file is the whole course of it, in order.

// Rust's own start would open descriptors that the caller left closed; the check below must see them so.
#![cfg_attr(not(test), no_main)]

mod act;
mod decide;
mod environment;
mod error;
mod fixed;
mod log;
mod place;
mod policy;
mod record;
mod request;
mod sys;
mod users;

use std::ffi::{c_char, c_int};

use error::Stop;
use log::Log;
use policy::Policy;
use request::Request;

#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let words = sys::words(argc, argv);
    let mut log = Log::new(sys::real_uid());
    match run(words, &mut log) {
        Ok(()) => 0,
        Err(stop) => {
            log.refused(&stop);
            log::complain(&stop);
            stop.exit_code()
        }
    }
}

fn run(words: Vec<Vec<u8>>, log: &mut Log) -> Result<(), Stop> {
    // Whoever starts a program chooses all of this: none of it is taken as it is.
    if words.first().is_none_or(Vec::is_empty) {
        return Err(Stop::NoName);
    }
    sys::check_standard_descriptors()?;
    if !sys::is_effectively_root() {
        return Err(Stop::NotSetuid);
    }
    let caller = sys::caller();
    sys::close_from(3)?;
    sys::reset_signals_and_timers()?;
    sys::reset_limits()?;
    sys::become_root_alone()?;
    sys::reset_umask();
    sys::change_directory("/").map_err(|error| Stop::system("going to /", error))?;

    let policy = Policy::load(&fixed::policy())?;
    log.demand(policy.syslog);
    let rules = policy.of(&caller);
    if rules.is_empty() {
        return Err(Stop::NotListed(caller.uid));
    }

    let request = Request::parse(&words)?;
    log.concerns(&request);
    let grant = decide::decide(&rules, &request, &users::resolve)?;
    act::perform(&caller, &rules, &request, &grant, log)
}
