//! A pod on this node: what it wants, what is seen of it, and what follows from the two.
//!
//! Everything here is pure: no clock, no I/O, no runtime. [`state::step`] is the heart; the
//! worker around it is the worker of the pod.

pub mod backoff;
mod conditions;
mod config;
mod container_status;
mod decide;
mod dns;
mod environment;
mod expand;
pub mod facts;
pub mod inputs;
pub mod observed;
mod privileges;
mod resources;
pub mod state;
mod status;
#[cfg(test)]
mod testing;
mod unenforced;
pub mod volumes;

pub(super) use self::{config::identity, unenforced::unenforced};
