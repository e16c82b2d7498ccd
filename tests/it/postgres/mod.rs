//! End-to-end tests of PostgreSQL, and of the streams to database servers that it shares with the others.

mod accounts;
mod archive;
mod compare;
mod copies;
mod data;
mod delayed;
mod dumps;
mod large;
mod logical;
mod recovery;
mod recovery_end;
mod switch;
mod tls;
mod tunnel;
mod way_back;
