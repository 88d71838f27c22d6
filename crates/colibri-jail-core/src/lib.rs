//! Pure logic that wraps a command line in a FreeBSD jail or a bubblewrap sandbox
