//! What the API server refuses, fills in and deletes, asked in this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail at that place")]

mod autoscalers;
mod bed;
mod certificates;
mod cidrs;
mod deletion;
mod endpoints;
mod jobs;
mod limits;
mod lists;
mod others;
mod pods;
mod services;
mod statuses;
mod storage;
