//! Mizzen's node agent.

pub mod model;
pub mod podnet;
pub mod status;
