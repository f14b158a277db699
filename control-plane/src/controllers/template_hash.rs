//! The hash of a pod template: in the names of replica sets and revisions, and in labels of pods.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Characters of hashes in names: no vowels and nothing that looks like them, so that no words
/// come out (the alphabet of `rand.SafeEncodeString` in k8s.io/apimachinery).
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template, different for each collision count. FNV-1a (32 bits) over the
/// template as JSON: the order of fields is that of the types and of sorted maps, so that it is
/// the same in every run; a field that is not set does not count, so that types may grow.
pub(crate) fn hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    // The types have no map with keys other than text and no failing serializer.
    let json = serde_json::to_vec(template).unwrap_or_default();
    let collisions = collision_count.map(i32::to_be_bytes);
    let bytes = json.into_iter().chain(collisions.into_iter().flatten());
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let safe = |digit: u8| char::from(SAFE[usize::from(digit) % SAFE.len()]);
    hash.to_string().bytes().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        }))
        .unwrap()
    }

    #[test]
    fn inv_72_the_hash_tells_templates_and_collisions_apart_and_is_safe_in_names() {
        let hashes = [
            hash(&template("a"), None),
            hash(&template("b"), None),
            hash(&template("a"), Some(1)),
            hash(&template("a"), Some(2)),
        ];
        for (index, hash) in hashes.iter().enumerate() {
            assert!(hash.bytes().all(|byte| SAFE.contains(&byte)), "{hash}");
            assert!(!hash.is_empty() && hash.len() <= 10, "{hash}");
            assert!(!hashes[..index].contains(hash), "{hashes:?}");
        }
        assert_eq!(hash(&template("a"), None), hashes[0], "the same in every run");
    }
}
