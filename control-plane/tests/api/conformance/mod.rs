//! What Kubernetes' conformance tests ask of an API server, each by its name there: "Ingress API
//! should support creating Ingress API operations" is
//! `ingress_api_should_support_creating_ingress_api_operations`. What they ask of controllers is
//! in `tests/controllers`.

mod api_machinery;
mod auth;
mod cli;
mod events;
mod operations;
