//! Mizzen's node agent.

pub mod apply;
pub mod datapath;
pub mod desired;
pub mod diff;
pub mod dns;
pub mod model;
pub mod podnet;
pub mod status;
