//! Pods, as far as they ask something of this agent: of the others nothing is kept.

use super::ObjectKey;

/// A pod of this node whose sockets are left alone (`mizzen.dev/socket-translation: "false"`): the
/// packet path does its translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptedOutPod {
    /// Namespace and name.
    pub key: ObjectKey,
}
