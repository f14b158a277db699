//! The pod network: addresses, links and routes of this node's pods, asked for by the CNI plugin.

pub mod datapath;
