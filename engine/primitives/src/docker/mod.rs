//! Docker Engines: containers, images, volumes, networks, Compose projects and swarms, over the SSH connection of their host.
//!
//! - `engine.rs`, `transport.rs`, `url.rs`, `context.rs`: an engine of the inventory, how it is reached, what its errors mean
//! - `things.rs`: the handles that methods are called on; `info.rs`: what there is; `acts.rs`: the shape of most primitives; `given.rs`: options alike
//! - `container/`, `image/`, `volume.rs`, `network.rs`, `compose/`, `swarm/`: what is done

mod acts;
mod compose;
mod container;
mod context;
mod engine;
mod given;
mod image;
mod info;
mod network;
mod swarm;
mod things;
mod transport;
mod url;
mod volume;

use runbook_core::primitive::Registry;

pub(crate) use image::layers::serve;

/// The label that names the action by which something was made.
const ACTION: &str = "runbook.action";

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    things::register(r);
    info::register(r);
    container::register(r);
    image::register(r);
    volume::register(r);
    network::register(r);
    compose::register(r);
    swarm::register(r);
}
