//! One call of the plugin, from environment and standard input to what goes to standard output.

use std::{
    error::Error,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde_json::Value;

use crate::{
    client::{self, Absence},
    offline,
    protocol::{
        Version,
        conf::{self, NetConf},
        env::{Invocation, Verb},
        error::{
            CniError, INVALID_ENVIRONMENT, INVALID_NETNS, IO_FAILURE, OPERATION_FAILED,
            TRY_AGAIN_LATER, UNAVAILABLE,
        },
        prev_result, result, runtime_config,
    },
    wire::{self, Command, MAX_MESSAGE, Request, Response},
};

/// No call takes longer. Runtimes hold a lock over all of a node's pods meanwhile.
pub const TIME_LIMIT: Duration = Duration::from_secs(8);

/// What a DEL keeps of that time for the case that the agent gives no answer: the kernel has two
/// seconds to delete the link ([`offline::delete_link`]).
const OFFLINE_TIME: Duration = Duration::from_millis(2500);

/// When a call began.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// When it has to be done.
    pub deadline: Instant,
    /// When it began, by [`wire::uptime`]: what a GC takes away is older. `None` where the kernel does
    /// not say it.
    pub uptime: Option<u64>,
}

impl Start {
    /// A call that begins now. Who asks for it has yet to say what is asked.
    pub fn until(deadline: Instant) -> Self {
        Self { deadline, uptime: wire::uptime().ok() }
    }
}

/// Does what the runtime asked. `Ok(None)`: success, and nothing to say.
/// The version beside an error is the one in which to render it.
pub fn run(
    invocation: &Invocation,
    stdin: &[u8],
    start: Start,
) -> Result<Option<Value>, (Version, CniError)> {
    if invocation.verb == Verb::Version {
        return Ok(Some(result::versions(conf::version_of(stdin))));
    }
    let conf = conf::parse(invocation.verb, stdin).map_err(|error| {
        let version = conf::version_of(stdin).and_then(|text| Version::parse(&text));
        (version.unwrap_or(Version::V1_1_0), error)
    })?;
    dispatch(invocation, &conf, start).map_err(|error| (conf.version, error))
}

fn dispatch(
    invocation: &Invocation,
    conf: &NetConf,
    Start { deadline, uptime }: Start,
) -> Result<Option<Value>, CniError> {
    let attachment = invocation.attachment.clone();
    match invocation.verb {
        Verb::Add => {
            let netns = open_netns(invocation)?;
            let requested = Box::new(runtime_config::requested(conf, invocation)?);
            let command = Command::Add { attachment, pod: invocation.pod.clone(), requested };
            match ask(invocation, conf, command, Some(netns.as_fd()), deadline)? {
                Response::Added(link) => Ok(Some(result::added(conf, invocation, &link))),
                other => Err(unexpected(&other)),
            }
        }
        Verb::Check => {
            let netns = open_netns(invocation)?;
            let previous = prev_result::read(conf, invocation)?;
            if let Some(previous) = &previous {
                verify_sandbox(invocation, &previous.sandbox, &netns)?;
            }
            let remembered = previous.map(|previous| Box::new(previous.remembered));
            let addresses = conf.prev_addresses();
            let command = Command::Check { attachment, addresses, remembered };
            done(&ask(invocation, conf, command, Some(netns.as_fd()), deadline)?)
        }
        Verb::Del => {
            let until = deadline.checked_sub(OFFLINE_TIME).unwrap_or(deadline);
            let asked = ask(invocation, conf, Command::Del { attachment }, None, until)
                .and_then(|response| done(&response));
            if let Err(error) = asked {
                del_without_agent(invocation, conf, &error);
            }
            Ok(None)
        }
        // No list means that the runtime did not say, not that nothing is valid.
        Verb::Gc => match conf.valid_attachments.clone() {
            None => Ok(None),
            Some(valid) => {
                let command = Command::Gc { valid, called: uptime };
                done(&ask(invocation, conf, command, None, deadline)?)
            }
        },
        Verb::Status => {
            let answer = ask(invocation, conf, Command::Status, None, deadline);
            done(&answer.map_err(|error| match error.code {
                TRY_AGAIN_LATER => CniError { code: UNAVAILABLE, ..error },
                _ => error,
            })?)
        }
        Verb::Version => Ok(None),
    }
}

/// Asks the agent; its refusals become errors.
fn ask(
    invocation: &Invocation,
    conf: &NetConf,
    command: Command,
    netns: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Response, CniError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let request = Request {
        version: command.version(),
        timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        trace: invocation.trace.clone(),
        network: conf.name.clone(),
        command,
    };
    // A DEL is noted for the agent that is to come.
    let absence = if invocation.verb == Verb::Del { Absence::Fails } else { Absence::Waits };
    match client::call(&conf.state_dir, &request, netns, absence, deadline) {
        Ok(Response::Failed(failure)) => Err(failure.into()),
        Ok(response) => Ok(response),
        Err(error) => {
            let reason = error.source().map(ToString::to_string).unwrap_or_default();
            Err(CniError::new(
                TRY_AGAIN_LATER,
                "the mizzen agent is not available",
                format!("{error}: {reason}; see whether mizzen-agent runs on this node"),
            ))
        }
    }
}

/// Frees what can be freed from here, and leaves the rest to the agent.
fn del_without_agent(invocation: &Invocation, conf: &NetConf, reason: &CniError) {
    let attachment = &invocation.attachment;
    eprintln!("mizzen-cni: DEL {attachment} without the agent: {reason}");
    // First: an agent makes anew what is gone and was not noted.
    if let Err(error) = offline::append_journal(&conf.state_dir, attachment) {
        eprintln!("mizzen-cni: note for the agent in {}: {error}", conf.state_dir.display());
    }
    if let Err(error) = offline::delete_link(&attachment.host_ifname()) {
        eprintln!("mizzen-cni: delete interface {}: {error}", attachment.host_ifname());
    }
}

fn done(response: &Response) -> Result<Option<Value>, CniError> {
    match response {
        Response::Done => Ok(None),
        other => Err(unexpected(other)),
    }
}

fn unexpected(response: &Response) -> CniError {
    CniError::new(OPERATION_FAILED, "unexpected answer of the agent", format!("{response:?}"))
}

/// Opens the container's network namespace, which must not be our own.
fn open_netns(invocation: &Invocation) -> Result<File, CniError> {
    let path = invocation.netns.as_deref().unwrap_or(Path::new(""));
    let invalid = |error: io::Error| {
        let details = format!("{}: {error}", path.display());
        CniError::new(INVALID_ENVIRONMENT, "can't open CNI_NETNS", details)
    };
    // What is no namespace may be a pipe, where a plain open waits for a writer, or a terminal.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let netns =
        File::options().read(true).custom_flags(flags.bits()).open(path).map_err(invalid)?;
    let theirs = netns.metadata().map_err(invalid)?;
    let ours = std::fs::metadata("/proc/self/ns/net").map_err(|error| {
        CniError::new(IO_FAILURE, "can't read /proc/self/ns/net", error.to_string())
    })?;
    // Namespace files live on one kernel-internal file system (nsfs).
    if theirs.dev() != ours.dev() {
        let details = format!("{} is not a namespace", path.display());
        return Err(CniError::new(INVALID_ENVIRONMENT, "invalid CNI_NETNS", details));
    }
    if theirs.ino() == ours.ino() && !invocation.netns_override {
        let msg = "the plugin's network namespace and CNI_NETNS must not be the same";
        return Err(CniError::new(INVALID_NETNS, msg, path.display().to_string()));
    }
    Ok(netns)
}

/// The namespace in which the runtime remembers the interface is the one that it names now, by
/// whatever path.
fn verify_sandbox(invocation: &Invocation, remembered: &str, netns: &File) -> Result<(), CniError> {
    let named = invocation.netns.as_deref().unwrap_or(Path::new(""));
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let is_same = || {
        let theirs = std::fs::metadata(remembered).map(id);
        theirs.is_ok_and(|theirs| netns.metadata().map(id).is_ok_and(|ours| ours == theirs))
    };
    if named == Path::new(remembered) || is_same() {
        return Ok(());
    }
    let details = format!("its sandbox is {remembered}, CNI_NETNS is {}", named.display());
    Err(prev_result::lost(details))
}

/// Reads standard input to its end, no further than `deadline` and [`MAX_MESSAGE`] bytes.
pub fn read_stdin(deadline: Instant) -> Result<Vec<u8>, CniError> {
    let failure = |details: String| CniError::new(IO_FAILURE, "can't read standard input", details);
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, timeout).map_err(|errno| failure(errno.to_string()))?;
        if ready == 0 {
            return Err(failure("the runtime did not close it in time".into()));
        }
        let length = stdin.lock().read(&mut chunk).map_err(|error| failure(error.to_string()))?;
        if length == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&chunk[..length]);
        if bytes.len() > MAX_MESSAGE {
            return Err(failure(format!("longer than {MAX_MESSAGE} bytes")));
        }
    }
}
