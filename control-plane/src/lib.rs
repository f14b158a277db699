//! Mizzen's companion control plane: a Kubernetes API server, its store, controllers, scheduler
//! and node part, small enough to start in a moment.

pub mod api;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod cidr;
pub mod control_plane;
pub mod controllers;
mod cork;
mod election;
pub mod in_process;
pub mod kubeconfig;
mod listen;
pub mod node;
pub mod pki;
pub mod registry;
pub mod scheduler;
pub mod schema;
pub mod serve;
mod shown;
pub mod store;

pub use control_plane::ControlPlane;
