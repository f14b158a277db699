//! What the machine is, for the Node object: capacity, versions, pressure.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::{api::core::v1::NodeSystemInfo, apimachinery::pkg::api::resource::Quantity};

/// Pods that a node takes, as by the kubelet.
pub(super) const PODS_MAX: usize = 110;
/// Memory is short below this (kubelet: hard eviction threshold `memory.available<100Mi`).
const MEMORY_SHORT_KIB: u64 = 100 * 1024;

/// The version that the node part reports as a kubelet's.
pub(super) const KUBELET_VERSION: &str = "v1.35.0-mizzen";

/// The machine's processors, in thousandths.
pub(super) fn cpu_millis() -> i64 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    i64::try_from(processors).unwrap_or(i64::MAX).saturating_mul(1000)
}

/// Bytes of the machine's memory; 0 where nobody knows.
pub(super) fn memory_bytes() -> i64 {
    let kib = memory_kib("MemTotal:").unwrap_or_default();
    i64::try_from(kib).unwrap_or(i64::MAX).saturating_mul(1024)
}

/// The machine's processors, memory and places for pods.
pub(super) fn capacity() -> BTreeMap<String, Quantity> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory_kib = memory_kib("MemTotal:").unwrap_or_default();
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(processors.to_string())),
        ("memory".to_owned(), Quantity(format!("{memory_kib}Ki"))),
        ("pods".to_owned(), Quantity(PODS_MAX.to_string())),
    ])
}

/// Versions and identities.
pub(super) fn system_info(runtime_version: &str) -> NodeSystemInfo {
    let line = |path: &str| {
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime_version.to_owned(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: line("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: pretty_name(&os_release).unwrap_or_default(),
        system_uuid: line("/sys/class/dmi/id/product_uuid").to_ascii_lowercase(),
        ..NodeSystemInfo::default()
    }
}

/// The architecture as Kubernetes names it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The machine has hardly any memory left.
pub(super) fn memory_is_short() -> bool {
    memory_kib("MemAvailable:").is_some_and(|available| available < MEMORY_SHORT_KIB)
}

/// The file system of `path` has less room left than this share of it.
pub(super) fn disk_is_short(path: &Path, percent: u8) -> bool {
    nix::sys::statvfs::statvfs(path).is_ok_and(|stat| {
        let (free, all) = (stat.blocks_available(), stat.blocks());
        all > 0 && free * 100 / all < u64::from(percent)
    })
}

fn memory_kib(field: &str) -> Option<u64> {
    field_kib(&std::fs::read_to_string("/proc/meminfo").ok()?, field)
}

fn field_kib(meminfo: &str, field: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_files_are_understood() {
        let meminfo = "MemTotal:       24684172 kB\nMemFree: 1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(field_kib(meminfo, "MemTotal:"), Some(24_684_172));
        assert_eq!(field_kib(meminfo, "MemAvailable:"), Some(23_000_000));
        assert_eq!(field_kib(meminfo, "Swap:"), None);
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(pretty_name(release).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    }
}
