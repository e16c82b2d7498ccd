//! Tests of the language on the durable executor, against a far side in memory that remembers everything done to it.

mod check;
mod crash;
mod each;
mod flow;
mod world;
