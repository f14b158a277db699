//! Where the keys of a cluster are in etcd: below a prefix, as `/mizzen/apps/deployments/…`.

use std::sync::Arc;

use crate::store::Query;

/// The keys below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Begins and ends with a slash.
    prefix: Arc<str>,
}

impl Keys {
    /// Those below a prefix, with or without slashes around it.
    pub(super) fn below(prefix: &str) -> Self {
        let inner = prefix.trim_matches('/');
        let prefix = if inner.is_empty() { "/".to_owned() } else { format!("/{inner}/") };
        Self { prefix: prefix.into() }
    }

    /// A key as etcd knows it.
    pub(super) fn whole(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A key of etcd's as the store knows it; `None` if it is none of these.
    pub(super) fn own<'a>(&self, whole: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(whole).ok()?.strip_prefix(&*self.prefix)
    }

    /// The first key that a query may find.
    pub(super) fn start(&self, query: &Query<'_>) -> String {
        match query.after {
            Some(after) if after >= query.prefix => successor(self.whole(after).as_bytes()),
            _ => self.whole(query.prefix),
        }
    }

    /// The first key after all that begin with this text.
    pub(super) fn end(&self, prefix: &str) -> String {
        let mut end = self.whole(prefix);
        // Keys are ASCII: there is a next character, and it is ASCII too.
        let last = end.pop().unwrap_or('/');
        end.push(char::from_u32(u32::from(last) + 1).unwrap_or(char::MAX));
        end
    }
}

/// The first key after this one.
pub(super) fn successor(key: &[u8]) -> String {
    let mut next = String::from_utf8_lossy(key).into_owned();
    next.push('\0');
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_below_the_prefix_and_come_back() {
        for prefix in ["/mizzen", "mizzen/", "/mizzen/"] {
            let keys = Keys::below(prefix);
            assert_eq!(keys.whole("core/pods/a/b"), "/mizzen/core/pods/a/b");
            assert_eq!(keys.own(b"/mizzen/core/pods/a/b"), Some("core/pods/a/b"));
            assert_eq!(keys.own(b"/mizzen2/core/pods/a/b"), None);
        }
        assert_eq!(Keys::below("").whole("a"), "/a");
    }

    #[test]
    fn a_range_begins_after_and_ends_behind_its_prefix() {
        let keys = Keys::below("m");
        let query = |prefix, after| Query { prefix, after, limit: None, at: None };
        assert_eq!(keys.start(&query("core/pods/", None)), "/m/core/pods/");
        assert_eq!(keys.start(&query("core/pods/", Some("core/pods/a"))), "/m/core/pods/a\0");
        // Whoever stands before the range begins with it.
        assert_eq!(keys.start(&query("core/pods/", Some("apps/x"))), "/m/core/pods/");
        assert_eq!(keys.end("core/pods/"), "/m/core/pods0");
        assert_eq!(keys.end(""), "/m0");
    }
}
