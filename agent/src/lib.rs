//! Mizzen's node agent.

pub mod apply;
pub mod model;
pub mod podnet;
pub mod status;
