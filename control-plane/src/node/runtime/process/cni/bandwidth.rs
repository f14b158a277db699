//! How much a pod may receive and send, from its annotations to the capability `bandwidth` (CNI,
//! CONVENTIONS.md). Pure. As containerd does it: rates only, and a burst that stands for none.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::quantity::nanos;

/// The annotations and the directions of the capability, both as the pod sees it.
const DIRECTIONS: [(&str, &str); 2] =
    [("kubernetes.io/ingress-bandwidth", "ingress"), ("kubernetes.io/egress-bandwidth", "egress")];
/// Rates that runtimes take for a limit, in bits per second: from a kilobit to a petabit.
const RATES: std::ops::RangeInclusive<i128> = 1_000..=1_000_000_000_000_000;
/// The burst where nobody said one, in bits.
const NO_BURST: u32 = u32::MAX;
const NANO: i128 = 1_000_000_000;

/// An annotation that is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod's annotation {annotation} is {text:?}, which is no number of bits per second from 1k \
     to 1P, such as 10M"
)]
pub(in super::super) struct BadLimit {
    annotation: &'static str,
    text: String,
}

/// The capability's value; `None` where nothing is limited.
pub(super) fn capability(
    annotations: &BTreeMap<String, String>,
) -> Result<Option<Value>, BadLimit> {
    let mut limits = Map::new();
    for (annotation, direction) in DIRECTIONS {
        let Some(text) = annotations.get(annotation) else { continue };
        let rate = nanos(text).map(|nanos| nanos / NANO).filter(|rate| RATES.contains(rate));
        let rate = rate.and_then(|rate| u64::try_from(rate).ok());
        let rate = rate.ok_or_else(|| BadLimit { annotation, text: text.clone() })?;
        limits.insert(format!("{direction}Rate"), rate.into());
        limits.insert(format!("{direction}Burst"), NO_BURST.into());
    }
    Ok((!limits.is_empty()).then(|| limits.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Option<Value>, BadLimit> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        capability(&annotations.iter().map(owned).collect())
    }

    #[test]
    fn cni_32_annotations_become_the_capability() {
        assert_eq!(of(&[("other", "x")]).unwrap(), None);
        let ingress = ("kubernetes.io/ingress-bandwidth", "10M");
        let expected = json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX});
        assert_eq!(of(&[ingress]).unwrap(), Some(expected));
        let expected = json!({
            "ingressRate": 10_000_000, "ingressBurst": u32::MAX,
            "egressRate": 1024, "egressBurst": u32::MAX,
        });
        let egress = ("kubernetes.io/egress-bandwidth", "1Ki");
        assert_eq!(of(&[ingress, egress]).unwrap(), Some(expected));
    }

    #[test]
    fn cni_32_what_is_no_limit_is_refused_by_its_annotation() {
        for text in ["", "fast", "10Q", "-1M", "0", "999", "2P", "1m"] {
            for (annotation, _) in DIRECTIONS {
                let said = of(&[(annotation, text)]).unwrap_err().to_string();
                assert!(said.contains(annotation) && said.contains(&format!("{text:?}")), "{said}");
            }
        }
        assert!(of(&[("kubernetes.io/egress-bandwidth", "1P")]).is_ok());
    }
}
