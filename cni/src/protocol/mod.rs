//! The Container Network Interface: how a runtime calls a plugin, and how the plugin answers.
//!
//! Specification 1.1.0 (containernetworking/cni, SPEC.md), with the older versions in
//! [`SUPPORTED`] that runtimes in use still ask for. Pure: no file, socket or clock.

pub mod conf;
pub mod env;
pub mod error;
pub mod prev_result;
pub mod result;
pub mod runtime_config;

#[cfg(test)]
mod tests;

use std::fmt;

/// A version of the specification that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1: results as lists.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: no address version in results.
    V1_0_0,
    /// 1.1.0: GC, STATUS, MTU in results.
    V1_1_0,
}

/// All of them, oldest first.
pub const SUPPORTED: [Version; 4] =
    [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

impl Version {
    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version that is written so, if we speak it.
    pub fn parse(text: &str) -> Option<Self> {
        SUPPORTED.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `0.3.1, 0.4.0, …`
pub fn supported_list() -> String {
    SUPPORTED.map(Version::as_str).join(", ")
}
