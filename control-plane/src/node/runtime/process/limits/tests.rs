//! What is written where, on machines of either kind.

use super::*;

const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

fn written(resource: Resource, version: Version, limits: Limits) -> Vec<(&'static str, String)> {
    let settings = settings(resource, version, limits);
    settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
}

#[test]
fn each_hierarchy_has_words_of_its_own_for_the_same_limits() {
    let limits =
        Limits { cpu_shares: 512, cpu_quota_us: 50_000, memory_bytes: 1 << 26, oom_score_adj: 0 };
    for (resource, version, expected) in [
        (
            Resource::Cpu,
            Version::V1,
            &[
                ("cpu.shares", "512"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
            ][..],
        ),
        (Resource::Cpu, Version::V2, &[("cpu.weight", "20"), ("cpu.max", "50000 100000")]),
        (
            Resource::Memory,
            Version::V1,
            &[("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "67108864")],
        ),
        (
            Resource::Memory,
            Version::V2,
            &[("memory.max", "67108864"), ("memory.swap.max", "0"), ("memory.oom.group", "1")],
        ),
        (Resource::Tasks, Version::V1, &[("pids.max", "4096")]),
    ] {
        let expected: Vec<_> =
            expected.iter().map(|&(file, value)| (file, value.to_owned())).collect();
        assert_eq!(written(resource, version, limits), expected, "{resource:?} {version:?}");
    }
}

#[test]
fn who_has_no_limit_is_not_limited() {
    let none = Limits { cpu_shares: 2, ..Limits::default() };
    assert_eq!(written(Resource::Cpu, Version::V1, none), [("cpu.shares", "2".into())]);
    assert_eq!(written(Resource::Memory, Version::V1, none), []);
    assert_eq!(written(Resource::Memory, Version::V2, none), [("memory.oom.group", "1".into())]);
    assert_eq!((weight(2), weight(262_144), weight(u64::MAX)), (1, 10_000, 10_000));
}

#[test]
fn hierarchies_are_found_with_their_controllers() {
    let all = hierarchies(HYBRID);
    let mounts: Vec<_> = all.iter().map(|one| (one.version, one.mount.to_str().unwrap())).collect();
    let (v1, v2) = (Version::V1, Version::V2);
    assert_eq!(
        mounts,
        [
            (v1, "/sys/fs/cgroup/cpu,cpuacct"),
            (v1, "/sys/fs/cgroup/memory"),
            (v2, "/sys/fs/cgroup/unified"),
        ]
    );
    assert!(all[0].controllers.iter().any(|one| one == "cpu"));
    let of = |folder: &str| unified(&all, Path::new(folder)).map(|one| one.version);
    assert_eq!(of("/sys/fs/cgroup/unified/mizzen"), Some(v2));
    assert_eq!(of("/elsewhere"), None);
}

#[test]
fn the_kernel_tells_whom_it_ended_in_either_version() {
    let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
    let v2 = "low 0\nhigh 0\nmax 9\noom 3\noom_kill 3\noom_group_kill 1\n";
    assert_eq!((killed(v1), killed(v2)), (2, 3));
    for none in ["", "oom 3\noom_kill 0\n", "oom_kill_disable 1\n"] {
        assert_eq!(killed(none), 0, "{none}");
    }
}
