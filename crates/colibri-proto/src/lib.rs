//! Colibri's wire protocol: JSON-RPC 2.0 types, codec and JSON Schema
