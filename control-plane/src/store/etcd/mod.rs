//! A [`Store`] over etcd, API v3, for several API servers that share one truth.
//!
//! Reads and commits go to etcd itself, so that they see what every server has written. Watches
//! do not: one watch of everything ([`follow`]) keeps the entries and their bounded history in
//! this process, and the watches of all clients read that, as with the embedded store. A commit
//! is answered when this process has seen it come back, so that whoever wrote finds its own
//! change in watches and in the rules.

mod follow;
mod keys;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, GetResponse,
    Identity, KeyValue, KvClient, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::follow::Follower;
use self::keys::Keys;
use super::history::Cursor;
use super::state::State;
use super::{
    Action, Entry, Expect, Key, MAX_VALUE, Op, Options, Page, Query, Revision, Store, StoreError,
    Watch,
};

/// Time that etcd gets for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time that etcd gets for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a quiet connection is asked whether the other end is still there, and for how long
/// it may not answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// For how long a commit waits until the watch shows it here.
const LAG: Duration = Duration::from_secs(5);
/// Entries that are read at once.
const PAGE: usize = 500;
/// Largest message: a page of the largest values.
const MESSAGE_MAX: usize = 1 << 30;
/// How often a read is tried where an endpoint goes away under it.
const READ_ATTEMPTS: u32 = 3;

/// Where etcd is, and what of it is ours.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// URLs of its members: `http://…` or `https://…`.
    pub endpoints: Vec<String>,
    /// What the keys of this cluster begin with.
    pub prefix: String,
    /// File with the CA of its certificates, PEM. `https` needs it: CAs of the system are not asked.
    pub ca_file: Option<PathBuf>,
    /// Files with a client certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// How often revisions older than this are given up; `None` leaves that to others.
    pub compact_every: Option<Duration>,
    /// How much history is kept here for watches.
    pub history: Options,
}

impl EtcdOptions {
    /// Members that are reached without certificates, with the usual rest.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/mizzen".to_owned(),
            ca_file: None,
            identity: None,
            compact_every: Some(Duration::from_mins(5)),
            history: Options::default(),
        }
    }

    fn connect_options(&self) -> Result<ConnectOptions, StoreError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member that lost the others must not answer with what they have left behind.
            .with_require_leader(true);
        if self.endpoints.iter().all(|endpoint| !endpoint.starts_with("https://")) {
            return Ok(options);
        }
        let Some(file) = &self.ca_file else {
            let reason = &"https needs the CA of its certificates, --etcd-cafile";
            return Err(away(&self.endpoints.join(",").into(), "connect", reason));
        };
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(file)?));
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(options.with_tls(tls))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    let failed = |reason| StoreError::Read { path: path.to_owned(), reason: Arc::new(reason) };
    std::fs::read(path).map_err(failed)
}

/// The [`Store`] over etcd.
pub struct Etcd {
    asked: Asked,
    state: Arc<State>,
    /// The revision that the watch has shown.
    reached: watch::Receiver<Revision>,
    _ends: DropGuard,
}

impl Etcd {
    /// Connects, reads everything, and follows it from then on. Has to be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// If a file with a certificate can't be read, or etcd does not answer.
    pub async fn open(options: &EtcdOptions) -> Result<Self, StoreError> {
        let endpoints: Arc<str> = options.endpoints.join(",").into();
        let connected = Client::connect(&options.endpoints, Some(options.connect_options()?)).await;
        let client = connected.map_err(|error| away(&endpoints, "connect", &error))?;
        let asked = Asked {
            keys: Keys::below(&options.prefix),
            endpoints,
            client,
            compacted: Arc::default(),
        };
        let (revision, entries) = follow::load(&asked).await?;
        let state = Arc::new(State::new(options.history.bounds(), revision, revision, entries));
        let ends = CancellationToken::new();
        let (sender, reached) = watch::channel(revision);
        let follower = Follower::new(asked.clone(), Arc::clone(&state), sender);
        tokio::spawn(ends.clone().run_until_cancelled_owned(follower.run()));
        if let Some(every) = options.compact_every {
            let compactor = follow::compact(asked.clone(), every);
            tokio::spawn(ends.clone().run_until_cancelled_owned(compactor));
        }
        Ok(Self { asked, state, reached, _ends: ends.drop_guard() })
    }

    /// Waits until the watch has shown a revision.
    async fn seen(&self, revision: Revision) {
        let mut reached = self.reached.clone();
        let seen = reached.wait_for(|reached| *reached >= revision);
        if tokio::time::timeout(LAG, seen).await.is_err() {
            tracing::warn!(revision, "etcd has a write that its watch does not show");
        }
    }
}

/// etcd as it is asked for what concerns this cluster.
#[derive(Clone)]
struct Asked {
    client: Client,
    keys: Keys,
    endpoints: Arc<str>,
    /// The newest revision that is known to be given up.
    compacted: Arc<AtomicU64>,
}

impl Asked {
    fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MESSAGE_MAX)
    }

    fn away(&self, what: &'static str, reason: &dyn std::fmt::Display) -> StoreError {
        away(&self.endpoints, what, reason)
    }

    /// The newest revision of all.
    async fn revision(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only();
        let answer = self.read(self.keys.whole(""), Some(options)).await?;
        answer.map(|answer| header_revision(answer.header())).map_err(|at| self.away("read", &at))
    }

    /// Reads from a key on. The inner error is etcd's about the revision that was asked for.
    async fn read(
        &self,
        key: String,
        options: Option<GetOptions>,
    ) -> Result<Result<GetResponse, At>, StoreError> {
        let mut attempt = 1;
        loop {
            let mut kv = self.kv();
            let answer = kv.get(key.as_str(), options.clone());
            match tokio::time::timeout(ANSWER, answer).await {
                Ok(Ok(answer)) => return Ok(Ok(answer)),
                Ok(Err(error)) => match At::of(&error) {
                    Some(at) => return Ok(Err(at)),
                    None if attempt < READ_ATTEMPTS => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    None => return Err(self.away("read", &error)),
                },
                Err(_elapsed) => return Err(self.away("read", &"no answer in time")),
            }
            attempt += 1;
        }
    }

    /// Entries of a range as of one revision.
    async fn range(&self, query: Query<'_>) -> Result<Page, StoreError> {
        let (mut start, end) = (self.keys.start(&query), self.keys.end(query.prefix));
        let mut wanted = query.limit.unwrap_or(usize::MAX);
        let mut page = Page { revision: query.at.unwrap_or(0), entries: Vec::new(), remaining: 0 };
        loop {
            let mut options = GetOptions::new().with_range(end.as_str());
            if page.revision > 0 {
                options = options.with_revision(signed(page.revision));
            }
            let take = wanted.min(PAGE);
            options = match take {
                0 => options.with_count_only(),
                _ => options.with_limit(i64::try_from(take).unwrap_or(i64::MAX)),
            };
            let mut answer = match self.read(start, Some(options)).await? {
                Ok(answer) => answer,
                Err(at) => return Err(self.no_such_revision(at, page.revision).await?),
            };
            if page.revision == 0 {
                page.revision = header_revision(answer.header());
            }
            let found = answer.take_kvs();
            let count = usize::try_from(answer.count()).unwrap_or(0);
            page.remaining = count.saturating_sub(found.len());
            wanted -= found.len();
            let Some(last) = found.last() else { return Ok(page) };
            start = keys::successor(last.key());
            page.entries.extend(found.into_iter().filter_map(|pair| self.entry(&pair)));
            if wanted == 0 || page.remaining == 0 {
                return Ok(page);
            }
        }
    }

    /// The error for a revision that etcd does not have.
    async fn no_such_revision(&self, at: At, asked: Revision) -> Result<StoreError, StoreError> {
        Ok(match at {
            At::Compacted => {
                let oldest = self.compacted.load(Ordering::Relaxed).max(asked + 1);
                StoreError::Compacted { asked, oldest }
            }
            At::Future => StoreError::Ahead { asked, newest: Box::pin(self.revision()).await? },
        })
    }

    /// A pair as the rest knows it; `None` if its key is none of ours.
    fn entry(&self, pair: &KeyValue) -> Option<(Key, Entry)> {
        Some((self.keys.own(pair.key())?.into(), entry(pair)))
    }
}

/// What etcd holds for a key.
fn entry(pair: &KeyValue) -> Entry {
    Entry {
        value: Bytes::copy_from_slice(pair.value()),
        created: unsigned(pair.create_revision()),
        modified: unsigned(pair.mod_revision()),
    }
}

/// Why etcd has no state as of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Compacted,
    Future,
}

impl At {
    /// etcd says it by text alone (`rpctypes.ErrGRPCCompacted`, `ErrGRPCFutureRev`).
    fn of(error: &Error) -> Option<Self> {
        let Error::GRpcStatus(status) = error else { return None };
        let message = status.message();
        if message.contains("revision has been compacted") {
            return Some(Self::Compacted);
        }
        message.contains("future revision").then_some(Self::Future)
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Compacted => "the revision has been compacted",
            Self::Future => "the revision has not been reached",
        })
    }
}

fn away(endpoints: &Arc<str>, what: &'static str, reason: &dyn std::fmt::Display) -> StoreError {
    let reason = reason.to_string().into();
    StoreError::Away { endpoints: Arc::clone(endpoints), what, reason }
}

/// etcd counts with signed numbers, from 1.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    u64::try_from(revision).unwrap_or(0)
}

fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(0, |header| unsigned(header.revision()))
}

/// The transaction that a commit is. Where a condition fails it reads the keys that have one.
fn transaction(keys: &Keys, ops: &[Op]) -> Txn {
    let compare = |op: &Op| match op.expect {
        Expect::Any => None,
        Expect::Absent => Some(Compare::create_revision(keys.whole(&op.key), CompareOp::Equal, 0)),
        Expect::Modified(revision) => {
            let revision = signed(revision);
            Some(Compare::mod_revision(keys.whole(&op.key), CompareOp::Equal, revision))
        }
    };
    let change = |op: &Op| match &op.action {
        Action::Put(value) => TxnOp::put(keys.whole(&op.key), value.to_vec(), None),
        Action::Delete => TxnOp::delete(keys.whole(&op.key), None),
    };
    let look = |op: &Op| {
        let options = GetOptions::new().with_keys_only();
        (op.expect != Expect::Any).then(|| TxnOp::get(keys.whole(&op.key), Some(options)))
    };
    Txn::new()
        .when(ops.iter().filter_map(compare).collect::<Vec<_>>())
        .and_then(ops.iter().map(change).collect::<Vec<_>>())
        .or_else(ops.iter().filter_map(look).collect::<Vec<_>>())
}

/// Which condition failed, by what etcd has read of the keys that have one.
fn conflict(ops: &[Op], answers: &[TxnOpResponse]) -> StoreError {
    let conditional = ops.iter().filter(|op| op.expect != Expect::Any);
    let current = answers.iter().map(|answer| match answer {
        TxnOpResponse::Get(got) => got.kvs().first().map(|pair| unsigned(pair.mod_revision())),
        _ => None,
    });
    let mut pairs = conditional.zip(current);
    let failed = pairs.find(|(op, current)| match op.expect {
        Expect::Any => false,
        Expect::Absent => current.is_some(),
        Expect::Modified(revision) => *current != Some(revision),
    });
    match failed {
        Some((op, current)) => StoreError::Conflict { key: Arc::clone(&op.key), current },
        // etcd evaluates and reads at once: one of them has to have failed.
        None => StoreError::Closed,
    }
}

impl Store for Etcd {
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(self.asked.revision())
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            let answer = self.asked.read(self.asked.keys.whole(key), None).await?;
            let answer = answer.map_err(|at| self.asked.away("read", &at))?;
            Ok(answer.kvs().first().map(entry))
        })
    }

    fn range<'a>(&'a self, query: Query<'a>) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(self.asked.range(query))
    }

    fn commit(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            for op in &ops {
                if let Action::Put(value) = &op.action
                    && value.len() > MAX_VALUE
                {
                    return Err(StoreError::TooLarge { key: op.key.clone(), size: value.len() });
                }
            }
            let mut kv = self.asked.kv();
            let answer = kv.txn(transaction(&self.asked.keys, &ops));
            // It is not asked again: it may have happened.
            let answer = match tokio::time::timeout(ANSWER, answer).await {
                Ok(answer) => answer.map_err(|error| self.asked.away("write", &error))?,
                Err(_elapsed) => return Err(self.asked.away("write", &"no answer in time")),
            };
            let answers = answer.op_responses();
            if !answer.succeeded() {
                return Err(conflict(&ops, &answers));
            }
            let revision = header_revision(answer.header());
            let changed = answers.iter().any(|answer| match answer {
                TxnOpResponse::Put(_) => true,
                TxnOpResponse::Delete(gone) => gone.deleted() > 0,
                _ => false,
            });
            if changed {
                self.seen(revision).await;
            }
            Ok(revision)
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        Box::pin(async move {
            if after > self.state.revision() {
                let newest = self.asked.revision().await?;
                if after > newest {
                    return Err(StoreError::Ahead { asked: after, newest });
                }
            }
            // Learn now, not at the first take, that the history does not reach back so far.
            self.state.history.between(prefix, after, after)?;
            Ok(Box::new(Cursor::new(Arc::clone(&self.state), prefix, after)) as Box<dyn Watch>)
        })
    }
}
