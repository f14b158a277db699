//! Which cgroup an agent takes for its node's. Needs root.

use std::path::Path;

use super::dns::field::Field;

/// Enters a cgroup, and a namespace whose root that is, mounts it where the machine's is, and becomes
/// the agent, without the flag that names one: as a runtime starts a container that has no mount of the
/// node's.
const AS_A_CONTAINER: &str = r#"
echo 0 > "$0/cgroup.procs"
for word; do
    shift
    if [ "$word" = --cgroup-root ]; then skip=1; continue; fi
    if [ "$skip" ]; then skip=; continue; fi
    set -- "$@" "$word"
done
exec unshare --mount --cgroup sh -c 'mount -t cgroup2 none "$0" && exec "$@"' "${0%/*}" "$@"
"#;

#[test]
fn an_agent_whose_container_has_its_own_cgroups_alone_says_so_and_ends() {
    let field = Field::new();
    let host = &field.hosts[0];
    let cgroup = host.node.options().cgroup_root.unwrap();
    let mount = cgroup.parent().map(Path::display).unwrap();
    let by = ["sh", "-c", AS_A_CONTAINER, cgroup.to_str().unwrap()];
    let mut agent = field.begin_by(host, &by, &[]);
    assert!(!agent.ended().success());
    let log = agent.log();
    let said = format!("{mount} is the cgroup of the agent's own container");
    assert!(log.contains(&said), "{log}");

    // Where it is named, it is meant.
    let by = ["sh", "-c", "echo 0 > \"$0/cgroup.procs\"; exec \"$@\"", by[3]];
    field.begin_by(host, &by, &[]).until_ready(host);
}
