//! Mizzen's node agent.

pub mod model;
