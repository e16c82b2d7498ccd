//! End-to-end tests of PostgreSQL, and of the streams to database servers that it shares with the others.

mod tunnel;
