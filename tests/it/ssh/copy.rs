//! Copies from host to host.
