//! The API server as its clients see it: kube-rs, raw requests and, where the machine has it,
//! `kubectl`; each against a real server on a loopback port.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail at that place")]

mod access;
mod conformance;
mod delete;
mod general;
mod kinds;
mod kubectl;
mod kubectl_auth;
mod objects;
mod python;
mod server;
mod services;
mod transcripts;
mod watch;
