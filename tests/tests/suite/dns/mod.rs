//! The resolver as pods meet it: real sockets, `dig` as a client that is not ours, and an upstream
//! that behaves and one that doesn't. Needs root.

mod connected;
mod corefile;
mod encrypted;
mod explain;
pub(crate) mod field;
mod forwarding;
mod kept;
mod lifecycle;
mod names;
mod news;
mod overload;
mod semantics;
mod site;
mod soak;
mod steps;
mod transport;
mod untracked;
mod upgrade;
mod upstream;
mod vitals;
