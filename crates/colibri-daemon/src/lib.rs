//! The Colibri daemon: sockets, registry and supervision
