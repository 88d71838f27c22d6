//! A pure state machine from an agent's event lines to idle, working, blocked, done or error
