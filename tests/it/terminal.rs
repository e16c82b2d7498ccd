//! The real binary on a real terminal and under real signals: what an operator sees, types and interrupts.

mod doubt;
mod edited;
mod live;
mod lock;
mod signals;
mod step;
mod window;
