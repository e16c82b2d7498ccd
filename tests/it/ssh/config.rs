//! The SSH configuration: compared with `ssh -G`, and followed by real connections.

mod corpus;
mod generated;
mod oracle;
mod routes;
