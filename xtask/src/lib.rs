//! Every development command of Mizzen.
//!
//! `commands` has a file per verb; what they share is beside it: `toolchain` (what the machine
//! must have), `product` (what is built, and where it lies), `cluster` (nodes made of network
//! namespaces). The tests use `cluster` too, so that they start what a user starts.

pub mod bench;
pub mod cluster;
pub mod commands;
pub mod conformance;
pub mod console;
pub mod deny;
pub mod deploy;
pub mod image;
pub mod invoke;
mod links;
pub mod load;
pub mod monitoring;
pub mod preemption;
pub mod product;
pub mod python;
pub mod schemas;
pub mod step;
pub mod toolchain;

use std::path::PathBuf;

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// The target folder: `CARGO_TARGET_DIR` where it is set, else `target` in the checkout.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from)
}
