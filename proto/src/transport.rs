//! Connections between daemons: unix sockets on a machine, mutual TLS between machines.
