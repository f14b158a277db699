//! Errors as the specification wants them: a code, a short message, details.

use serde_json::{Value, json};

use super::Version;
use crate::wire::Failure;

/// The `cniVersion` of the configuration is not one of ours.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// The container is not known.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// An environment variable is missing or wrong.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// A file or stream could not be read or written.
pub const IO_FAILURE: u32 = 5;
/// The configuration is not JSON.
pub const DECODING_FAILURE: u32 = 6;
/// The configuration's content is wrong.
pub const INVALID_CONFIG: u32 = 7;
/// `CNI_NETNS` is the plugin's own namespace (the reference implementation's code).
pub const INVALID_NETNS: u32 = 8;
/// Not now; the runtime should try again.
pub const TRY_AGAIN_LATER: u32 = 11;
/// STATUS: an ADD would fail.
pub const UNAVAILABLE: u32 = 50;
/// STATUS: an ADD would fail, and pods that are there may be cut off.
pub const LIMITED: u32 = 51;
/// Ours: a kernel or datapath operation failed.
pub const OPERATION_FAILED: u32 = 100;
/// Ours: CHECK found something that is not as ADD left it.
pub const CHECK_FAILED: u32 = 101;

/// An error for the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg} (code {code}): {details}")]
pub struct CniError {
    /// One of the constants of this module.
    pub code: u32,
    /// What is wrong, in short.
    pub msg: String,
    /// Which value, why, and what helps; may be empty.
    pub details: String,
}

impl CniError {
    /// An error with details.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// As JSON for standard output.
    pub fn render(&self, version: Version) -> Value {
        let mut value = json!({"cniVersion": version.as_str(), "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            value["details"] = self.details.clone().into();
        }
        value
    }
}

impl From<Failure> for CniError {
    fn from(failure: Failure) -> Self {
        Self { code: failure.code, msg: failure.msg, details: failure.details }
    }
}
