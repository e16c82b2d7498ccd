//! End-to-end tests: the binary and the primitives against real servers. One binary, so that it links once.

mod support;

mod backup;
mod cli;
mod crash;
mod demo;
mod dns;
mod lab;
mod sqlite;
mod ssh;
