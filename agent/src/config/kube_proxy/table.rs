//! Every field of a KubeProxyConfiguration, up to Kubernetes 1.37: what its values may be, and what
//! Mizzen makes of it.

/// A field.
pub(in crate::config) struct Field {
    /// Its path, as `iptables.syncPeriod`.
    pub(in crate::config) path: &'static str,
    /// What its values may be. Null is a value of each.
    pub(super) form: Form,
    /// What becomes of it.
    pub(in crate::config) meaning: Meaning,
}

/// What values a field may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Bool,
    Integer {
        least: i64,
        most: i64,
    },
    /// With or without a fraction.
    Number,
    Text,
    /// Empty, or an address without a port.
    Address,
    /// Empty, or one of these.
    Word(&'static [&'static str]),
    /// As Go has it: `1h30m`.
    Duration,
    /// A duration, or nanoseconds.
    DurationOrNumber,
    /// An address with a port, or without, which is then this one.
    ListenAddress(u16),
    /// Ranges with commas between them.
    Ranges,
    /// A list of ranges and of `primary`, `localhost` and `all`.
    NodePortAddresses,
    Texts,
    /// Names with true or false.
    Gates,
    Anything,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Meaning {
    /// It says what the file is.
    Header,
    /// It becomes these settings, in the way that the text says.
    Becomes(&'static [&'static str], &'static str),
    /// It is accepted, told once where it says something, and has no effect, for this reason.
    NoEffect(&'static str),
}

use Form::{
    Address, Anything, Bool, Duration, DurationOrNumber, Gates, Integer, ListenAddress,
    NodePortAddresses, Number, Ranges, Text, Texts, Word,
};
use Meaning::{Becomes, Header, NoEffect};

const WRITTEN_AT_ONCE: &str =
    "each change is written when it comes, and what others altered is mended within seconds";
const NO_MARKS: &str = "packets to be masqueraded are not marked";
const NO_IPVS: &str = "there are no IPVS rules";
const KERNEL_CONNTRACK: &str = "the kernel's connection tracking is left as it is: set its limits by \
     sysctl where something else needs them; the packet path has a table of its own (flowTableMax)";
const LIFETIMES: &str = "the packet path's flows live as long as by kube-proxy's defaults \
     (docs/packet-path.md)";
const CLIENT: &str = "the agent has a handful of watches and reads JSON";
const WINDOWS: &str = "it is for Windows";
const LOG_FORM: &str = "the log is written line by line to standard error";

const fn field(path: &'static str, form: Form, meaning: Meaning) -> Field {
    Field { path, form, meaning }
}

/// The table, in the order of kubeadm's files.
pub(in crate::config) const FIELDS: &[Field] = &[
    field("apiVersion", Text, Header),
    field("kind", Text, Header),
    field(
        "bindAddress",
        Address,
        Becomes(
            &["metrics_bind_address"],
            "an address of IPv6 without metricsBindAddress: [::1]:10249; else without effect, for the \
             node's addresses are those of its Node object, and both families are served",
        ),
    ),
    field(
        "bindAddressHardFail",
        Bool,
        NoEffect(
            "a port that another program has is taken when that ends, and named by `mizzen status` until then",
        ),
    ),
    field("clientConnection.acceptContentTypes", Text, NoEffect(CLIENT)),
    field("clientConnection.burst", Integer { least: 0, most: i32::MAX as i64 }, NoEffect(CLIENT)),
    field("clientConnection.contentType", Text, NoEffect(CLIENT)),
    field("clientConnection.kubeconfig", Text, Becomes(&["kubeconfig"], "")),
    field("clientConnection.qps", Number, NoEffect(CLIENT)),
    field(
        "clusterCIDR",
        Ranges,
        Becomes(&["cluster_cidr"], "where detectLocalMode is ClusterCIDR or empty"),
    ),
    field(
        "configSyncPeriod",
        Duration,
        NoEffect("objects are watched, not read from time to time"),
    ),
    field(
        "conntrack.maxPerCore",
        Integer { least: 0, most: i32::MAX as i64 },
        NoEffect(KERNEL_CONNTRACK),
    ),
    field("conntrack.min", Integer { least: 0, most: i32::MAX as i64 }, NoEffect(KERNEL_CONNTRACK)),
    field(
        "conntrack.tcpBeLiberal",
        Bool,
        NoEffect("the packet path takes no segment for invalid by its sequence number"),
    ),
    field("conntrack.tcpCloseWaitTimeout", Duration, NoEffect(LIFETIMES)),
    field("conntrack.tcpEstablishedTimeout", Duration, NoEffect(LIFETIMES)),
    field("conntrack.udpStreamTimeout", Duration, NoEffect(LIFETIMES)),
    field("conntrack.udpTimeout", Duration, NoEffect(LIFETIMES)),
    field(
        "detectLocal.bridgeInterface",
        Text,
        Becomes(&["pod_device"], "where detectLocalMode is BridgeInterface"),
    ),
    field(
        "detectLocal.interfaceNamePrefix",
        Text,
        Becomes(
            &["pod_device"],
            "with `+` behind it, where detectLocalMode is InterfaceNamePrefix",
        ),
    ),
    field(
        "detectLocalMode",
        Word(&["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]),
        Becomes(
            &["detect_local"],
            "ClusterCIDR (or empty): ClusterCIDR, and None where clusterCIDR is empty; NodeCIDR: \
             PodCIDRs; the others, which go by devices: PodCIDRs, with those as podDevice",
        ),
    ),
    field("enableProfiling", Bool, NoEffect("the agent serves no profiles")),
    field("featureGates", Gates, NoEffect("they are gates of kube-proxy's own code")),
    field(
        "healthzBindAddress",
        ListenAddress(10256),
        Becomes(&["healthz_bind_address"], "0.0.0.0 means both families, as for kube-proxy"),
    ),
    field(
        "hostnameOverride",
        Text,
        Becomes(
            &["node_name"],
            "in lower case, where the variable NODE_NAME does not name the node: the file is one for \
             all nodes, and kubeadm's DaemonSet names each by a flag over it",
        ),
    ),
    field(
        "iptables.localhostNodePorts",
        Bool,
        Becomes(
            &["node_port_addresses"],
            "in mode iptables: false leaves out loopback addresses, whatever nodePortAddresses says",
        ),
    ),
    field(
        "iptables.masqueradeAll",
        Bool,
        Becomes(&["masquerade_all"], "in the modes iptables and ipvs"),
    ),
    field("iptables.masqueradeBit", Integer { least: 0, most: 31 }, NoEffect(NO_MARKS)),
    field("iptables.minSyncPeriod", Duration, NoEffect(WRITTEN_AT_ONCE)),
    field(
        "iptables.snatNodeInternalIP",
        Bool,
        NoEffect("the node's InternalIP is always what is masqueraded with"),
    ),
    field("iptables.syncPeriod", Duration, NoEffect(WRITTEN_AT_ONCE)),
    field("ipvs.excludeCIDRs", Texts, NoEffect(NO_IPVS)),
    field("ipvs.minSyncPeriod", Duration, NoEffect(WRITTEN_AT_ONCE)),
    field(
        "ipvs.scheduler",
        Text,
        NoEffect("backends are chosen at random, as in the modes iptables and nftables"),
    ),
    field(
        "ipvs.strictARP",
        Bool,
        NoEffect("no device has services' addresses, so that the node never answers ARP for them"),
    ),
    field("ipvs.syncPeriod", Duration, NoEffect(WRITTEN_AT_ONCE)),
    field("ipvs.tcpFinTimeout", Duration, NoEffect(LIFETIMES)),
    field("ipvs.tcpTimeout", Duration, NoEffect(LIFETIMES)),
    field("ipvs.udpTimeout", Duration, NoEffect(LIFETIMES)),
    field("logging.flushFrequency", DurationOrNumber, NoEffect(LOG_FORM)),
    field("logging.format", Word(&["text", "json"]), Becomes(&["log_format"], "")),
    field("logging.options.json.infoBufferSize", Anything, NoEffect(LOG_FORM)),
    field("logging.options.json.splitStream", Bool, NoEffect(LOG_FORM)),
    field("logging.options.text.infoBufferSize", Anything, NoEffect(LOG_FORM)),
    field("logging.options.text.splitStream", Bool, NoEffect(LOG_FORM)),
    field(
        "logging.verbosity",
        Integer { least: 0, most: u32::MAX as i64 },
        Becomes(&["log_filter"], "from 4 on: `debug`"),
    ),
    field(
        "logging.vmodule",
        Anything,
        NoEffect("it names files of kube-proxy's code; logFilter can name modules of the agent's"),
    ),
    field(
        "metricsBindAddress",
        ListenAddress(10249),
        Becomes(&["metrics_bind_address"], "0.0.0.0 means both families, as for kube-proxy"),
    ),
    field(
        "mode",
        Word(&["iptables", "ipvs", "nftables"]),
        Becomes(
            &["node_port_addresses"],
            "services are balanced in eBPF whatever it is; but with nftables an empty \
             nodePortAddresses means `primary`, and with the others all addresses: of loopback IPv4's \
             alone, and with iptables alone",
        ),
    ),
    field("nftables.masqueradeAll", Bool, Becomes(&["masquerade_all"], "in mode nftables")),
    field("nftables.masqueradeBit", Integer { least: 0, most: 31 }, NoEffect(NO_MARKS)),
    field("nftables.minSyncPeriod", Duration, NoEffect(WRITTEN_AT_ONCE)),
    field("nftables.syncPeriod", Duration, NoEffect(WRITTEN_AT_ONCE)),
    field(
        "nodePortAddresses",
        NodePortAddresses,
        Becomes(
            &["node_port_addresses"],
            "`localhost` and `all` as the ranges that they stand for; a family of which no range is \
             named takes node ports at all of its addresses. Loopback addresses take them where they \
             are named themselves (`localhost`, 127.0.0.0/8, ::1/128); by a range that holds others \
             too only IPv4's do, in mode iptables",
        ),
    ),
    field(
        "oomScoreAdj",
        Integer { least: -1000, most: 1000 },
        NoEffect("the pod's priority class, or OOMScoreAdjust= of the unit, says it"),
    ),
    field("portRange", Text, NoEffect("kube-proxy itself has not used it for long")),
    field("showHiddenMetricsForVersion", Text, NoEffect("the agent hides no metrics")),
    field("udpIdleTimeout", Duration, NoEffect("it was for the mode userspace, which is gone")),
    field("windowsRunAsService", Bool, NoEffect(WINDOWS)),
    field("winkernel.enableDSR", Bool, NoEffect(WINDOWS)),
    field("winkernel.forwardHealthCheckVip", Bool, NoEffect(WINDOWS)),
    field("winkernel.networkName", Text, NoEffect(WINDOWS)),
    field("winkernel.rootHnsEndpointName", Text, NoEffect(WINDOWS)),
    field("winkernel.sourceVip", Text, NoEffect(WINDOWS)),
];
