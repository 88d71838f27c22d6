//! A typed async client for the Colibri daemon's socket
