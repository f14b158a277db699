//! Mizzen's companion control plane: API server, store, controllers, scheduler and node part.

pub mod node;
