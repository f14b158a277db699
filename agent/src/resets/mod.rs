//! Connections of this node's sockets to deleted endpoints, ended: an application that waits for
//! an answer which can't come gets `ECONNABORTED` at once (reference V8, R9, U11).
//!
//! ```text
//! reconcile ──Reset──> Queue ──> a thread of its own ──┬─> namespaces   of this node's processes
//!                                                      └─> sock_diag    in each: list, destroy
//! ```
//! A socket is destroyed for what it was translated to, never for the address that it has: one
//! that dialled the pod itself, or that was led to whoever has the address now, is left alone.

pub mod namespaces;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use mizzen_ebpf_abi::{addr::Addr, socket::SocketPeer};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use namespaces::{Found, Namespace};

use crate::{
    datapath::{Connected, DESTINATIONS_MAX, SockDiag, SocketId, Translations, translations_of},
    diff::plan::Reset,
    model::service::Protocol,
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
pub const PART: &str = "resets";
/// Plans whose sockets wait; beyond that they are left to their timeouts, counted.
const QUEUE_MAX: usize = 256;
/// Endpoints that are looked for together.
const BATCH_MAX: usize = 4096;
/// When it is looked a second time.
const LATE: Duration = Duration::from_millis(200);
/// How long the last of them may take when the agent ends.
const LAST_RESETS: Duration = Duration::from_secs(2);

/// What was done.
#[derive(Debug, Default)]
pub struct Counts {
    /// TCP sockets that were destroyed.
    pub tcp: AtomicU64,
    /// UDP sockets that were destroyed.
    pub udp: AtomicU64,
    /// Endpoints whose sockets could not be looked for, in some namespace or in all.
    pub failures: AtomicU64,
}

/// The way to have sockets destroyed; never waits.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: SyncSender<Vec<Reset>>,
    counts: Arc<Counts>,
}

impl Queue {
    /// A queue, and its other end.
    pub fn new(counts: Arc<Counts>) -> (Self, Receiver<Vec<Reset>>) {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        (Self { sender, counts }, receiver)
    }

    /// Has the sockets destroyed that were led to these endpoints.
    pub fn push(&self, resets: Vec<Reset>) {
        if resets.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(resets) | TrySendError::Disconnected(resets)) =
            self.sender.try_send(resets)
        {
            let endpoints = resets.len();
            self.counts.failures.fetch_add(endpoints as u64, Relaxed);
            tracing::warn!(endpoints, "connections to deleted endpoints are left to time out");
        }
    }
}

/// The thread that destroys sockets. It ends with the last [`Queue`], when all is done that was
/// asked for.
#[derive(Debug)]
pub struct Worker {
    thread: thread::JoinHandle<()>,
    /// Closed when the thread is about to end.
    ended: oneshot::Receiver<()>,
}

impl Worker {
    /// Waits until `cancel`, and then, for [`LAST_RESETS`] at most, for what is under way: whoever
    /// has the queue is to drop it. A thread that ends before that is an error.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), TaskError> {
        let Self { thread, ended } = self;
        let last = async {
            cancel.cancelled().await;
            tokio::time::sleep(LAST_RESETS).await;
        };
        tokio::select! {
            _closed = ended => {}
            () = last => {
                tracing::warn!(
                    "destroying sockets took longer than {LAST_RESETS:?}: the remaining \
                     connections to deleted endpoints are left to time out"
                );
                return Ok(());
            }
        }
        thread.join().map_err(|_panic| "the thread that destroys sockets panicked".into())
    }
}

/// Starts the thread, whose network namespace is the node's: that of the caller.
pub fn start(
    translations: Translations,
    cgroup: PathBuf,
    counts: Arc<Counts>,
    board: Arc<Board>,
) -> io::Result<(Queue, Worker)> {
    let node = File::open("/proc/thread-self/ns/net")?;
    let Found { denied, unnamed, .. } = namespaces::below(&cgroup, &node);
    let denied = Denied { namespaces: denied, ..Denied::default() };
    board.report(PART, state(&denied, unnamed));
    let of_thread = Arc::clone(&counts);
    start_with(counts, move |batch, look| {
        let found = namespaces::below(&cgroup, &node);
        let unnamed = found.unnamed;
        let counts = Counts::default();
        let denied = end_connections(&batch, found, &translations, &counts);
        board.report(PART, state(&denied, unnamed));
        of_thread.tcp.fetch_add(counts.tcp.load(Relaxed), Relaxed);
        of_thread.udp.fetch_add(counts.udp.load(Relaxed), Relaxed);
        if look == Look::First {
            // What could not be looked for is counted once.
            of_thread.failures.fetch_add(counts.failures.load(Relaxed), Relaxed);
        }
    })
}

/// The processes that this one may not look into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Denied {
    /// It is not known which network namespace they are in.
    namespaces: BTreeSet<u32>,
    /// It is not known which sockets they have, and of UDP's that would tell what they were led to.
    sockets: BTreeSet<u32>,
}

/// How it is where these processes may not be looked into.
fn state(denied: &Denied, unnamed: usize) -> State {
    if unnamed > 0 {
        return State::Degraded(format!(
            "{unnamed} of this node's processes can't be seen from this PID namespace: their \
             connections to deleted endpoints are left to time out, and what live ones sent is not \
             counted; give the agent's pod `hostPID: true`"
        ));
    }
    if let Some(first) = denied.namespaces.first() {
        return State::Degraded(format!(
            "{} of this node's processes may not be looked into ({first} for one): their \
             connections to deleted endpoints are left to time out, and what live ones sent is not \
             counted; give the agent the capability SYS_PTRACE",
            denied.namespaces.len()
        ));
    }
    let Some(first) = denied.sockets.first() else { return State::Ready };
    State::Degraded(format!(
        "{} of this node's processes may not be asked for their sockets ({first} for one): those of \
         UDP that were led to deleted endpoints get no error; give the agent the capability \
         DAC_READ_SEARCH",
        denied.sockets.len()
    ))
}

/// Which look for the sockets of an endpoint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// At once.
    First,
    /// A moment later: a socket whose program chose before the tables changed may not have been in
    /// the kernel's lists yet.
    Late,
}

/// Starts a thread that calls `end` with what is asked for, as much at a time as there is: at once,
/// and again when [`LATE`] has passed or the queue is gone. What is asked for meanwhile does not wait
/// for that.
fn start_with(
    counts: Arc<Counts>,
    mut end: impl FnMut(Vec<Reset>, Look) + Send + 'static,
) -> io::Result<(Queue, Worker)> {
    let (queue, receiver) = Queue::new(counts);
    let (tells, ended) = oneshot::channel();
    let thread = thread::Builder::new().name("resets".into()).spawn(move || {
        let _tells: oneshot::Sender<()> = tells;
        let mut late: Option<(Instant, Vec<Reset>)> = None;
        loop {
            let asked = match &late {
                None => receiver.recv().map_err(|_gone| RecvTimeoutError::Disconnected),
                Some((due, _)) => {
                    receiver.recv_timeout(due.saturating_duration_since(Instant::now()))
                }
            };
            let is_over = asked == Err(RecvTimeoutError::Disconnected);
            if let Ok(mut batch) = asked {
                // What came meanwhile goes together: namespaces are entered once.
                while batch.len() < BATCH_MAX
                    && let Ok(more) = receiver.try_recv()
                {
                    batch.extend(more);
                }
                end(batch.clone(), Look::First);
                let (_, waiting) = late.get_or_insert_with(|| (Instant::now() + LATE, Vec::new()));
                waiting.extend(batch);
            }
            let is_due = |(due, waiting): &mut (Instant, Vec<Reset>)| {
                is_over || *due <= Instant::now() || waiting.len() >= BATCH_MAX
            };
            if let Some((_, batch)) = late.take_if(is_due) {
                end(batch, Look::Late);
            }
            if is_over {
                break;
            }
        }
    })?;
    Ok((queue, Worker { thread, ended }))
}

/// Destroys what was led to these endpoints, in each of the namespaces. Gives the processes that
/// may not be looked into, whose sockets, or some of them, were not found.
fn end_connections(
    batch: &[Reset],
    found: Found,
    translations: &Translations,
    counts: &Counts,
) -> Denied {
    let work = Work::new(batch);
    let Found { namespaces, denied, unnamed } = found;
    let mut denied = Denied { namespaces: denied, ..Denied::default() };
    for Namespace { file, processes } in &namespaces {
        let sockets = &mut denied.sockets;
        let missed = match setns(file, CloneFlags::CLONE_NEWNET) {
            Ok(()) => work.run(|part| part.end(processes, translations, counts, sockets)),
            Err(errno) => {
                tracing::debug!(%errno, "a network namespace could not be entered");
                batch.len()
            }
        };
        counts.failures.fetch_add(missed as u64, Relaxed);
    }
    if denied != Denied::default() || unnamed > 0 {
        counts.failures.fetch_add(batch.len() as u64, Relaxed);
    }
    denied
}

/// The endpoints of a batch, in the order in which the kernel is asked for them: by protocol and
/// family.
struct Work(BTreeMap<(Protocol, bool), BTreeMap<SocketAddr, Vec<Reset>>>);

impl Work {
    fn new(batch: &[Reset]) -> Self {
        let mut work: BTreeMap<_, BTreeMap<SocketAddr, Vec<Reset>>> = BTreeMap::new();
        for reset in batch {
            let part = work.entry((reset.protocol, reset.endpoint.is_ipv6())).or_default();
            part.entry(reset.endpoint).or_default().push(*reset);
        }
        Self(work)
    }

    /// Has `end` see to one part after the other, as many endpoints at a time as the kernel is asked
    /// for at once. One that fails holds up no other. Gives the number of endpoints that were
    /// missed.
    fn run(&self, mut end: impl FnMut(&Part<'_>) -> io::Result<()>) -> usize {
        let mut missed = 0;
        for ((protocol, _), resets) in &self.0 {
            let destinations: Vec<SocketAddr> = resets.keys().copied().collect();
            for to in destinations.chunks(DESTINATIONS_MAX) {
                if let Err(error) = end(&Part { protocol: *protocol, to, resets }) {
                    missed += to.iter().map(|at| resets[at].len()).sum::<usize>();
                    tracing::debug!(%error, endpoints = to.len(), "sockets were not destroyed");
                }
            }
        }
        missed
    }
}

/// Endpoints that the kernel is asked for at once.
struct Part<'a> {
    protocol: Protocol,
    to: &'a [SocketAddr],
    /// Those of the same protocol and family.
    resets: &'a BTreeMap<SocketAddr, Vec<Reset>>,
}

impl Part<'_> {
    /// In the namespace of the calling thread, which these processes are in. On a socket of its
    /// own: what an earlier part left unread is none of its answers.
    fn end(
        &self,
        processes: &[u32],
        translations: &Translations,
        counts: &Counts,
        denied: &mut BTreeSet<u32>,
    ) -> io::Result<()> {
        let Self { protocol, to, resets } = *self;
        let mut kernel = SockDiag::open()?;
        let mut found = kernel.connected(protocol, to, translations)?;
        if protocol == Protocol::Udp {
            recall(&mut found, processes, translations, denied)?;
        }
        let deleted = || to.iter().filter_map(|at| resets.get(at)).flatten();
        let led = |peer: SocketPeer| deleted().any(|reset| was_led(&peer, reset));
        let found = found.iter().filter(|socket| socket.peer.is_some_and(led));
        let sockets: Vec<SocketId> = found.map(|socket| socket.id).collect();
        let destroyed = kernel.destroy(protocol, &sockets)? as u64;
        let count = if protocol == Protocol::Udp { &counts.udp } else { &counts.tcp };
        count.fetch_add(destroyed, Relaxed);
        if destroyed > 0 {
            tracing::debug!(%protocol, destroyed, "destroyed sockets of deleted endpoints");
        }
        Ok(())
    }
}

/// Finds out what sockets were translated to of which the list does not tell.
fn recall(
    sockets: &mut [Connected],
    processes: &[u32],
    translations: &Translations,
    denied: &mut BTreeSet<u32>,
) -> io::Result<()> {
    let inodes: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let known = translations_of(&inodes, processes, translations, denied)?;
    for socket in sockets {
        socket.peer = known.get(&socket.inode).copied();
    }
    Ok(())
}

/// Whether a socket's connection was led to a deleted endpoint. Generations wrap.
fn was_led(peer: &SocketPeer, reset: &Reset) -> bool {
    let age = reset.generation.wrapping_sub(peer.generation);
    peer.leads_to(&Addr::from(reset.endpoint.ip()), reset.endpoint.port().to_be_bytes())
        && peer.set == reset.set
        && age.cast_signed() >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(generation: u32) -> Reset {
        let endpoint = "10.0.0.1:8080".parse().unwrap();
        Reset { set: 3, protocol: Protocol::Tcp, endpoint, generation, backend: None }
    }

    fn peer(set: u32, port: u16, generation: u32) -> SocketPeer {
        let backend = Addr::from_v4([10, 0, 0, 1]);
        SocketPeer {
            backend,
            backend_port: port.to_be_bytes(),
            set,
            generation,
            ..SocketPeer::default()
        }
    }

    #[test]
    fn v8_only_what_was_led_to_the_deleted_endpoint_is_destroyed() {
        assert!(was_led(&peer(3, 8080, 7), &reset(7)));
        assert!(was_led(&peer(3, 8080, 1), &reset(7)), "in an earlier generation");
        assert!(was_led(&peer(3, 8080, u32::MAX), &reset(2)), "before it wrapped");
        assert!(!was_led(&peer(3, 8080, 8), &reset(7)), "whoever has the address now");
        assert!(!was_led(&peer(4, 8080, 7), &reset(7)), "another service's");
        assert!(!was_led(&peer(3, 8081, 7), &reset(7)), "another port");
        let mut direct = peer(3, 8080, 7);
        direct.forget();
        assert!(!was_led(&direct, &reset(7)), "dialled to the pod itself");
    }

    #[test]
    fn r09_an_endpoint_that_can_not_be_looked_for_holds_up_no_other() {
        let of = |protocol, endpoint: &str| Reset {
            protocol,
            endpoint: endpoint.parse().unwrap(),
            ..reset(7)
        };
        let many = (1..=DESTINATIONS_MAX + 1).map(|port| format!("10.0.0.1:{port}"));
        let mut batch: Vec<Reset> = many.map(|at| of(Protocol::Tcp, &at)).collect();
        batch.push(of(Protocol::Tcp, "[fd00::1]:80"));
        batch.push(of(Protocol::Udp, "10.0.0.1:53"));
        let mut asked = Vec::new();
        let missed = Work::new(&batch).run(|part| {
            asked.push((part.protocol, part.to.len()));
            if asked.len() % 2 == 1 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
        });
        let parts = [
            (Protocol::Tcp, DESTINATIONS_MAX),
            (Protocol::Tcp, 1),
            (Protocol::Tcp, 1),
            (Protocol::Udp, 1),
        ];
        assert_eq!(asked, parts);
        assert_eq!(missed, DESTINATIONS_MAX + 1);
    }

    #[test]
    fn who_may_not_be_looked_into_is_told_with_the_remedy() {
        let of = |namespaces: &[u32], sockets: &[u32]| Denied {
            namespaces: namespaces.iter().copied().collect(),
            sockets: sockets.iter().copied().collect(),
        };
        let said = |denied: &Denied, unnamed| match state(denied, unnamed) {
            State::Degraded(reason) => reason,
            other => panic!("it is degraded: {other:?}"),
        };
        assert_eq!(state(&of(&[], &[]), 0), State::Ready);
        let reason = said(&of(&[], &[]), 3);
        assert!(reason.starts_with("3 ") && reason.contains("hostPID"), "{reason}");
        let reason = said(&of(&[7, 9], &[7]), 0);
        assert!(reason.starts_with("2 of this node's processes"), "{reason}");
        assert!(reason.ends_with("SYS_PTRACE"), "{reason}");
        let reason = said(&of(&[], &[7]), 0);
        assert!(reason.starts_with("1 of this node's processes"), "{reason}");
        assert!(reason.ends_with("DAC_READ_SEARCH"), "{reason}");
    }

    #[tokio::test]
    async fn v8_what_was_asked_for_is_done_before_the_agent_ends() {
        let (allow, allowed) = std::sync::mpsc::channel();
        let (done, ends) = std::sync::mpsc::channel();
        let end = move |batch: Vec<Reset>, look| {
            if look == Look::Late {
                return;
            }
            allowed.recv().unwrap();
            done.send(batch.iter().map(|reset| reset.generation).collect::<Vec<_>>()).unwrap();
        };
        let (queue, worker) = start_with(Arc::default(), end).unwrap();
        let cancel = CancellationToken::new();
        let running = tokio::spawn(worker.run(cancel.clone()));
        queue.push(vec![reset(1)]);
        queue.push(vec![reset(2)]);
        cancel.cancel();
        drop(queue);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!running.is_finished(), "it is under way");
        for _ in 0..2 {
            allow.send(()).unwrap_or_default();
        }
        running.await.unwrap().unwrap();
        assert_eq!(ends.try_iter().flatten().collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn resets_that_take_for_ever_do_not_hold_up_the_end() {
        let (_never, blocked) = std::sync::mpsc::channel::<()>();
        let end = move |_batch, _look| blocked.recv().unwrap_or_default();
        let (queue, worker) = start_with(Arc::default(), end).unwrap();
        queue.push(vec![reset(1)]);
        let cancel = CancellationToken::new();
        cancel.cancel();
        worker.run(cancel).await.unwrap();
    }

    /// Everything is looked for twice, and what comes meanwhile does not wait for the second look.
    #[test]
    fn v8_a_second_look_holds_up_no_first_one() {
        let (done, seen) = std::sync::mpsc::channel();
        let (hand_over, handed_over) = std::sync::mpsc::channel::<Queue>();
        let end = move |batch: Vec<Reset>, look| {
            // The second is asked for while the first is seen to.
            if let Ok(queue) = handed_over.recv() {
                queue.push(vec![reset(2)]);
            }
            for reset in batch {
                done.send((reset.generation, look)).unwrap();
            }
        };
        let (queue, worker) = start_with(Arc::default(), end).unwrap();
        queue.push(vec![reset(1)]);
        hand_over.send(queue).unwrap();
        drop(hand_over);
        let looks: Vec<_> = seen.iter().collect();
        assert_eq!(looks, [(1, Look::First), (2, Look::First), (1, Look::Late), (2, Look::Late)]);
        worker.thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_told() {
        let (queue, worker) = start_with(Arc::default(), |_batch, _look| panic!("gone")).unwrap();
        queue.push(vec![reset(1)]);
        let error = worker.run(CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[test]
    fn a_full_queue_is_counted_and_holds_nobody_up() {
        let counts = Arc::new(Counts::default());
        let (queue, receiver) = Queue::new(Arc::clone(&counts));
        queue.push(Vec::new());
        for _ in 0..=QUEUE_MAX {
            queue.push(vec![reset(1)]);
        }
        assert_eq!(counts.failures.load(Relaxed), 1);
        assert_eq!(receiver.try_iter().count(), QUEUE_MAX);
    }
}
