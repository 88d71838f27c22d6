//! The privilege boundary: how an unprivileged daemon reaches what needs root
