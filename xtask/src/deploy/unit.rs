//! The systemd unit, for nodes on which the agent is no pod.

use super::{HEAD, privileges::CAPABILITIES};

/// `deploy/mizzen-agent.service`.
pub(super) fn text() -> String {
    let names = CAPABILITIES.iter().map(|capability| format!("CAP_{}", capability.name));
    let capabilities = names.collect::<Vec<_>>().join(" ");
    format!(
        "{HEAD}[Unit]
Description=Mizzen node agent: Services, pod network and DNS of a Kubernetes node
Wants=network-online.target
After=network-online.target
# A kubeconfig that is not there yet, or an API server that is away, may last: it is tried on.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
# As kubelets name nodes; nodeName in the configuration counts where it says otherwise.
Environment=NODE_NAME=%H
ExecStartPre=/usr/bin/mizzen-agent config check --config /etc/mizzen/agent.yaml
ExecStart=/usr/bin/mizzen-agent run --config /etc/mizzen/agent.yaml
# It says that it serves when it knows the cluster, and the API server may be late.
TimeoutStartSec=infinity
TimeoutStopSec=75
Restart=always
RestartSec=1
# Between one process and the next, systemd keeps the listening DNS sockets.
FileDescriptorStoreMax=256
OOMScoreAdjust=-997
LimitNOFILE=1048576
StateDirectory=mizzen
RuntimeDirectory=mizzen
RuntimeDirectoryPreserve=yes

# What it may do, and why: docs/privileges.md.
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=yes
ProtectHome=yes
PrivateTmp=yes
ProtectClock=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invoke;

    /// What ends at once is started again a second later, for as long as it takes.
    #[test]
    fn systemd_never_gives_up() {
        let text = text();
        let (of_unit, of_service) = text.split_once("[Service]").expect("sections");
        assert!(of_unit.contains("\nStartLimitIntervalSec=0\n"), "{of_unit}");
        assert!(of_service.contains("\nRestart=always\nRestartSec=1\n"), "{of_service}");
    }

    #[test]
    fn systemd_understands_the_unit() {
        if !invoke::in_path("systemd-analyze") {
            return;
        }
        let folder = std::env::temp_dir().join(format!("mizzen-unit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("mizzen-agent.service");
        // It asks whether the programs are there.
        std::fs::write(&file, text().replace("/usr/bin/mizzen-agent", "/bin/true"))
            .expect("a file");
        let mut verify = invoke::command("systemd-analyze", ["verify", "--recursive-errors=no"]);
        let said = invoke::output(verify.arg(&file));
        std::fs::remove_dir_all(&folder).expect("to remove the folder");
        let said = said.expect("systemd-analyze");
        let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success() && complaints.is_empty(), "{complaints}");
    }
}
