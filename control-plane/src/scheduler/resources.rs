//! Amounts of resources: parsing quantities, and what pods ask for.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name: CPU in thousandths of a core, everything else in its own unit
/// (bytes, pieces). Sorted by name, and small: there are some for every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resources(Vec<(Cow<'static, str>, i64)>);

/// Names that almost all amounts have.
const USUAL: [&str; 4] = ["cpu", "memory", "pods", "ephemeral-storage"];

/// A name to keep.
fn kept(name: &str) -> Cow<'static, str> {
    let usual = USUAL.iter().find(|usual| **usual == name);
    usual.map_or_else(|| Cow::Owned(name.to_owned()), |usual| Cow::Borrowed(*usual))
}

/// What a container without a request for CPU is taken to use, in thousandths, when nodes are
/// compared. The same numbers as Kubernetes'.
const DEFAULT_CPU: i64 = 100;
/// What a container without a request for memory is taken to use, in bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

impl Resources {
    /// The amounts of an API object. A quantity that cannot be read counts as none.
    pub(crate) fn from_api(quantities: Option<&BTreeMap<String, Quantity>>) -> Self {
        let parsed = quantities.into_iter().flatten().map(|(name, quantity)| {
            let unit = if name == "cpu" { 1000 } else { 1 };
            (kept(name), parse(&quantity.0, unit).unwrap_or(0))
        });
        Self(parsed.collect())
    }

    /// The amount of a resource.
    pub(crate) fn get(&self, name: &str) -> i64 {
        self.place(name).map_or(0, |at| self.0[at].1)
    }

    /// Sets the amount of a resource.
    pub(crate) fn set(&mut self, name: &str, amount: i64) {
        *self.slot(name) = amount;
    }

    /// Name and amount of all resources that are not zero.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().filter(|(_, amount)| *amount != 0).map(|(name, amount)| (&**name, *amount))
    }

    /// Adds other amounts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes other amounts away.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
        self.0.retain(|(_, amount)| *amount != 0);
    }

    /// Takes the larger amount of each resource.
    fn max(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, operation: fn(i64, i64) -> i64) {
        for (name, amount) in &other.0 {
            let own = self.slot(name);
            *own = operation(*own, *amount);
        }
    }

    /// Where a name stands, or would.
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_ref().cmp(name))
    }

    /// The amount of a resource, to change; 0 so far if there was none.
    fn slot(&mut self, name: &str) -> &mut i64 {
        let at = self.place(name).unwrap_or_else(|at| {
            self.0.reserve_exact(1);
            self.0.insert(at, (kept(name), 0));
            at
        });
        &mut self.0[at].1
    }
}

/// What a pod needs at the most at any time: its containers and sidecars together, or an init
/// container with the sidecars that were started before it, whichever is more; plus the overhead
/// of its runtime class. Requests of the pod as a whole take the place of the sum (KEP-2837).
pub(crate) fn requests(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        Resources::from_api(container.resources.as_ref().and_then(|it| it.requests.as_ref()))
    })
}

/// The same for comparing nodes: containers that ask for nothing are taken to use something, so
/// that they spread too.
pub(crate) fn estimated_use(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
        let mut resources = Resources::from_api(requests);
        for (name, amount) in [("cpu", DEFAULT_CPU), ("memory", DEFAULT_MEMORY)] {
            if requests.is_none_or(|requests| !requests.contains_key(name)) {
                resources.set(name, amount);
            }
        }
        resources
    })
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    spec.containers.iter().for_each(|container| running.add(&of(container)));
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut peak = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&peak);
            starting.max(&sidecars);
        } else {
            peak.add(&sidecars);
            starting.max(&peak);
        }
    }
    running.add(&sidecars);
    running.max(&starting);
    let whole = Resources::from_api(spec.resources.as_ref().and_then(|it| it.requests.as_ref()));
    for (name, amount) in &whole.0 {
        running.set(name, *amount);
    }
    running.add(&Resources::from_api(spec.overhead.as_ref()));
    running
}

/// A quantity times `unit`, rounded up; `None` if it is none or does not fit.
pub(crate) fn parse(text: &str, unit: i128) -> Option<i64> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let divisor = divisor.checked_mul(denominator)?;
    let product = digits.checked_mul(numerator)?.checked_mul(unit)?;
    let up = i128::from(product.rem_euclid(divisor) != 0);
    i64::try_from(product.div_euclid(divisor) + up).ok()
}

/// What a suffix multiplies with, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power| Some((1_i128 << (10 * power), 1));
    let decimal = |power| Some((10_i128.pow(power), 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn quantities_of_every_form() {
        let table = [
            ("1", 1000, Some(1000)),
            ("100m", 1000, Some(100)),
            ("0.1", 1000, Some(100)),
            ("1.5", 1000, Some(1500)),
            ("1n", 1000, Some(1)),
            ("128Mi", 1, Some(134_217_728)),
            ("1.5Gi", 1, Some(1_610_612_736)),
            ("1k", 1, Some(1000)),
            ("1e3", 1, Some(1000)),
            ("1E", 1, Some(1_000_000_000_000_000_000)),
            ("2E3", 1, Some(2000)),
            ("12e-1", 1, Some(2)),
            ("0", 1, Some(0)),
            ("", 1, None),
            ("abc", 1, None),
            ("1Xi", 1, None),
            ("100E", 1, None),
        ];
        for (text, unit, expected) in table {
            assert_eq!(parse(text, unit), expected, "{text}");
        }
    }

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn cpu(cpu: &str) -> Value {
        json!({"requests": {"cpu": cpu}})
    }

    #[test]
    fn init_containers_count_when_they_need_more() {
        let spec = spec(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": cpu("50m")},
                {"name": "init", "resources": cpu("400m")},
            ],
            "containers": [
                {"name": "a", "resources": cpu("100m")},
                {"name": "b", "resources": cpu("200m")},
            ],
            "overhead": {"cpu": "10m"},
        }));
        // 450m while starting, 350m while running.
        assert_eq!(requests(&spec).get("cpu"), 460);
    }

    #[test]
    fn a_pod_that_asks_for_nothing_is_still_something() {
        let spec = spec(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(requests(&spec), Resources::default());
        assert_eq!(estimated_use(&spec).get("cpu"), 200);
        assert_eq!(estimated_use(&spec).get("memory"), 2 * DEFAULT_MEMORY);
    }
}
