//! The numbered behaviours 1 to 38 of the DNS reference, asked of a running resolver with `dig`:
//! by UDP and by TCP, over IPv4 and IPv6. The four answers have to say the same.

mod cluster;
mod headless;
mod missing;
mod names;
mod services;

use cluster::{Cluster, Said};
