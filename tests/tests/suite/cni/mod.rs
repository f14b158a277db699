//! The CNI plugin and the agent's pod network, as a container runtime meets them.

mod alone;
mod altered;
mod bandwidth;
mod bed;
mod calls;
mod check;
mod faults;
mod gc;
mod host_ports;
mod hostile;
mod killed;
mod look;
mod traffic;
mod tunnel;
mod upgrade;
