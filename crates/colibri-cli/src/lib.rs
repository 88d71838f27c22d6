//! The colibri command
