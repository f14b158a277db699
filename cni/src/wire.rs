//! What plugin and agent say to each other on `<stateDir>/cni.sock`.
//!
//! One request and one response per connection: a length of four bytes, big-endian, then that
//! much JSON. The pod's network namespace travels as a file descriptor beside the request's first
//! byte, because the agent may not see the path that names it. Both sides name the
//! [`VERSION`] that they speak: during an upgrade they may differ.

use std::{
    fmt, fs, io,
    io::{IoSlice, IoSliceMut, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of these messages. It grows when one side could misunderstand the other. A request says
/// the oldest version that knows all that is in it ([`Command::version`]), and an agent takes this
/// one and those before: while a node is upgraded, plugins are a moment older or newer than agents.
pub const VERSION: u32 = 2;
/// The longest message in bytes: GC with 4,000 attachments fits.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The agent's state folder unless the network configuration says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/run/mizzen";
/// The agent's socket in its state folder.
pub const SOCKET: &str = "cni.sock";
/// The agent's other socket there, for the command line and for agents that come after it.
pub const AGENT_SOCKET: &str = "agent.sock";
/// In the state folder: DELs that the agent has not seen, one [`Attachment`] as JSON per line.
pub const DEL_JOURNAL: &str = "cni-del.journal";

/// The pods' IPv4 next hop. No interface has it; each pod has a permanent neighbour entry.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 next hop, in the same way.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// One interface of one container: what every CNI call is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `CNI_CONTAINERID`: the sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside.
    pub ifname: String,
}

impl Attachment {
    /// Name of the host's end of the veth: `mz` and 64 hashed bits in 13 digits of base 32, the
    /// 15 characters that Linux allows. The same for the same attachment, always: DEL has nothing
    /// else to go by when the agent is down.
    pub fn host_ifname(&self) -> String {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
        let text = self.container_id.bytes().chain([0]).chain(self.ifname.bytes());
        let hash = text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let digits = (0..13).map(|index| char::from(DIGITS[(hash >> (5 * index) & 31) as usize]));
        HOST_IFNAME_PREFIX.chars().chain(digits).collect()
    }
}

/// What every host's end begins with.
pub const HOST_IFNAME_PREFIX: &str = "mz";

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// The pod as Kubernetes knows it, where the runtime says so (`CNI_ARGS`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `K8S_POD_NAME`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`Command::version`] of what is asked.
    pub version: u32,
    /// Milliseconds until the plugin gives up; the agent undoes what it finishes later.
    pub timeout_ms: u32,
    /// What the runtime calls this by in its traces.
    #[serde(flatten)]
    pub trace: Trace,
    /// The network's name; attachments of other networks are not ours.
    pub network: String,
    /// What to do.
    pub command: Command,
}

/// W3C trace context and baggage, as far as a runtime sends them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// `TRACEPARENT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_parent: Option<String>,
    /// `TRACESTATE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_state: Option<String>,
    /// `BAGGAGE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baggage: Option<String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Command {
    /// Connect a pod; its network namespace comes beside the request.
    Add {
        /// Which interface.
        attachment: Attachment,
        /// For whom.
        pod: Pod,
        /// What the interface shall have.
        #[serde(default, skip_serializing_if = "Requested::is_empty")]
        requested: Box<Requested>,
    },
    /// Disconnect a pod. Success where it is not connected.
    Del {
        /// Which interface.
        attachment: Attachment,
    },
    /// Is the pod connected as the result of ADD said? Its namespace comes beside the request.
    Check {
        /// Which interface.
        attachment: Attachment,
        /// The addresses that the runtime remembers; empty: any.
        addresses: Vec<IpAddr>,
        /// All that it remembers; agents of former times look at the addresses alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remembered: Option<Box<Remembered>>,
    },
    /// Disconnect every pod that is not in the list and is no younger than that.
    Gc {
        /// All that the runtime knows.
        valid: Vec<Attachment>,
        /// When the plugin was called, by [`uptime`]; plugins of former times don't say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        called: Option<u64>,
    },
    /// Could an ADD succeed now?
    Status,
}

impl Command {
    /// The first version of these messages in which it is understood.
    pub fn version(&self) -> u32 {
        match self {
            Self::Add { requested, .. } if !requested.is_empty() => 2,
            _ => 1,
        }
    }
}

/// Hundredths of a second since the machine started (`/proc/uptime`): the clock that a plugin and the
/// agent share.
pub fn uptime() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let digits: String =
        text.chars().take_while(|one| *one != ' ').filter(char::is_ascii_digit).collect();
    digits.parse().map_err(io::Error::other)
}

/// What a runtime asks of an interface beyond its being there (`runtimeConfig`, `args`,
/// `CNI_ARGS`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requested {
    /// Addresses, one of each family at most; of the other family any is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Link-layer address of the pod's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Ports of the node that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How much the pod may receive and send.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

impl Requested {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a runtime remembers of an attachment (`prevResult` of CHECK).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// Link-layer address of the host's end, where it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mac: Option<Mac>,
    /// That of the pod's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_mac: Option<Mac>,
    /// The addresses of the pod's end, each with its next hop where that is said.
    pub addresses: Vec<RememberedPrefix>,
    /// The routes of the pod's main table.
    pub routes: Vec<RememberedPrefix>,
}

/// An address or a network, and its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RememberedPrefix {
    /// The address, or the first of the network.
    pub address: IpAddr,
    /// Length of the prefix in bits, no more than the family has.
    pub prefix_len: u8,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The address of the node; unspecified (`0.0.0.0`, `::`) is every one of its family, and none
    /// is every one.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "hostIP")]
    pub host_ip: Option<IpAddr>,
    /// The node's port, host byte order.
    pub host_port: u16,
    /// The pod's port, host byte order.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// Transport protocol of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// How much a pod may receive (ingress) and send (egress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// What it may receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Limit>,
    /// What it may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Limit>,
}

impl Bandwidth {
    /// Whether it may do both as it can.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A limit in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Bits per second; not 0.
    pub rate: u64,
    /// Bits that may go at once after a silence; at most [`Limit::BURST_MAX`].
    pub burst: u64,
}

impl Limit {
    /// Below 4 GiB, which the kernel's shapers count in 32 bits.
    pub const BURST_MAX: u64 = 8 * (1 << 32) - 1;
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Response {
    /// ADD is done.
    Added(Link),
    /// Everything else is done.
    Done,
    /// It could not be done; nothing was left half-made.
    Failed(Failure),
}

/// A pod's link, as the result of ADD reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The host's end.
    pub host_ifname: String,
    /// Its link-layer address.
    pub host_mac: Mac,
    /// Link-layer address of the pod's end.
    pub pod_mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The pod's addresses, one of each family that the node has.
    pub addresses: Vec<IpAddr>,
}

/// Why something could not be done, in the terms of the CNI specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A code of the specification, or from 100.
    pub code: u32,
    /// What went wrong, in short.
    pub msg: String,
    /// Why, and what helps.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// A link-layer address, written as `02:00:0a:f4:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let octets = bytes.and_then(|bytes| bytes.try_into().ok());
        octets.map(Self).ok_or_else(|| format!("{text:?} is no link-layer address"))
    }
}

/// Sends one message, with a file descriptor beside it where there is one.
pub fn send<T: Serialize>(
    stream: &mut UnixStream,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
    let length = length.ok_or_else(|| too_long(body.len()))?;
    let bytes = [&length.to_be_bytes()[..], &body].concat();
    let fds = fd.map(|fd| [fd.as_raw_fd()]);
    let rights: Vec<_> = fds.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
    let sent = loop {
        let slices = [IoSlice::new(&bytes)];
        match sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    stream.write_all(&bytes[sent..])
}

/// Receives one message and the file descriptor beside it, if there is one.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<(T, Option<OwnedFd>)> {
    let mut length = [0; 4];
    let (received, fd) = receive_with_fd(stream, &mut length)?;
    if received == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"));
    }
    stream.read_exact(&mut length[received..])?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(too_long(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fd))
}

fn receive_with_fd(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(bytes)];
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut first = None;
    for control in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(fds) = control else { continue };
        for fd in fds {
            // SAFETY: the kernel has just put this descriptor into our table for this message;
            // nothing else knows its number, so we are its one owner.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            first.get_or_insert(fd);
        }
    }
    Ok((message.bytes, first))
}

fn too_long(length: usize) -> io::Error {
    let text = format!("a message of {length} bytes, the limit is {MAX_MESSAGE}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::{io::Seek, os::fd::AsFd};

    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment { container_id: container_id.into(), ifname: ifname.into() }
    }

    #[test]
    fn cni_28_host_ifname_is_stable_distinct_and_fits_linux() {
        let name = attachment("a".repeat(64).as_str(), "eth0").host_ifname();
        assert_eq!(name.len(), 15);
        assert!(name.starts_with("mz"));
        assert_eq!(name, attachment("a".repeat(64).as_str(), "eth0").host_ifname());
        assert_ne!(name, attachment("a".repeat(64).as_str(), "eth1").host_ifname());
        // Where the container ends and the interface begins matters.
        assert_ne!(attachment("ab", "c").host_ifname(), attachment("a", "bc").host_ifname());
    }

    #[test]
    fn a_message_and_its_descriptor_arrive() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"the namespace").unwrap();
        let sent = Request {
            version: VERSION,
            timeout_ms: 8000,
            trace: Trace::default(),
            network: "mizzen".into(),
            command: Command::Add {
                attachment: attachment("c1", "eth0"),
                pod: Pod { namespace: "default".into(), name: "web-0".into(), uid: "u".into() },
                requested: Box::default(),
            },
        };
        send(&mut here, &sent, Some(file.as_fd())).unwrap();
        let (received, fd) = receive::<Request>(&mut there).unwrap();
        assert_eq!(received, sent);
        let mut file = fs::File::from(fd.unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the namespace");
    }

    /// An agent of the version before understands all but what it could not do.
    #[test]
    fn a_request_names_the_oldest_version_that_knows_it() {
        let add = |requested| Command::Add {
            attachment: attachment("c1", "eth0"),
            pod: Pod::default(),
            requested: Box::new(requested),
        };
        let plain = add(Requested::default());
        assert_eq!((plain.version(), Command::Status.version()), (1, 1));
        let text = serde_json::to_string(&plain).unwrap();
        assert!(!text.contains("requested"), "{text}");
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), plain);
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(add(Requested { mac, ..Requested::default() }).version(), 2);
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_before_it_is_read() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let error = receive::<Request>(&mut there).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let long = "x".repeat(MAX_MESSAGE);
        assert!(send(&mut here, &long, None).is_err());
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&[0, 0, 0, 9, b'{']).unwrap();
        drop(here);
        assert!(receive::<Request>(&mut there).is_err());
    }

    #[test]
    fn link_layer_addresses_read_back() {
        let mac = Mac([2, 0, 10, 244, 0, 255]);
        assert_eq!(mac.to_string(), "02:00:0a:f4:00:ff");
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
        assert!(Mac::try_from("02:00".to_owned()).is_err());
    }
}
