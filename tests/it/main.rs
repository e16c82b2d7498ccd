//! End-to-end tests: the binary and the primitives against real servers. One binary, so that it links once.
// Helpers are not tests themselves, and may fail as loudly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod backup;
mod cli;
mod containers;
mod crash;
mod demo;
mod disk;
mod dns;
mod docker;
mod docs;
mod http;
mod lab;
mod mariadb;
mod postgres;
mod proxy;
mod replay;
mod secrets;
mod sqlite;
mod ssh;
mod terminal;
mod tried;
