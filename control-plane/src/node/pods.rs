//! The pods of this node: watched in the API, each handed to its worker. Sandboxes that no pod
//! in the API claims are removed, once the API has told of all pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    admission, machine, report,
    runtime::{PodIdentity, Runtime},
    static_pods::{self, Folder, Statics},
    volumes,
    worker::{self, Shared, Wanted},
};

/// Follows the pods until `stop`.
pub(super) async fn follow<R: Runtime>(
    shared: Arc<Shared<R>>,
    static_dir: Option<PathBuf>,
    stop: CancellationToken,
) {
    let api: Api<Pod> = Api::all(shared.client.clone());
    let of_node = format!("spec.nodeName={}", shared.facts.name);
    let events = watcher(api, watcher::Config::default().fields(&of_node)).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut pods = Pods::new(shared, stop.clone());
    let mut statics = pods.follow_files(static_dir);
    pods.take_statics(statics.borrow_and_update().clone());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => pods.take(event).await,
                Some(Err(error)) => tracing::warn!(%error, "pods not watched; trying again"),
                None => return,
            },
            Some(ended) = pods.workers.join_next() => pods.ended(ended),
            Ok(()) = statics.changed() => pods.take_statics(statics.borrow_and_update().clone()),
            () = stop.cancelled() => break,
        }
    }
    // Their pods go on; only what was begun is finished or found again later.
    while pods.workers.join_next().await.is_some() {}
}

struct Pods<R> {
    shared: Arc<Shared<R>>,
    stop: CancellationToken,
    workers: JoinSet<String>,
    /// By the pod's uid.
    senders: BTreeMap<String, watch::Sender<Wanted>>,
    /// The uids that the list under way has told of.
    listed: BTreeSet<String>,
    /// The uids of pods that had a sandbox when the node part started, until all are listed.
    housed: BTreeSet<String>,
    /// Left-over sandboxes were looked for.
    swept: bool,
    /// The static pods that there have to be.
    statics: Statics,
    /// Those that have mirrors, and how to have one removed.
    mirrors: BTreeMap<String, CancellationToken>,
}

impl<R: Runtime> Pods<R> {
    fn new(shared: Arc<Shared<R>>, stop: CancellationToken) -> Self {
        Self {
            shared,
            stop,
            workers: JoinSet::new(),
            senders: BTreeMap::new(),
            listed: BTreeSet::new(),
            housed: BTreeSet::new(),
            swept: false,
            statics: Statics::new(),
            mirrors: BTreeMap::new(),
        }
    }

    /// The static pods of a folder, as they are now and at every change.
    fn follow_files(&mut self, dir: Option<PathBuf>) -> watch::Receiver<Statics> {
        let node = self.shared.facts.name.clone();
        let mut folder = dir.map(|dir| Folder::new(dir, node));
        let found = folder.as_mut().map(|folder| {
            // What is wrong is said by who follows it.
            let _complaints = folder.look();
            folder.pods()
        });
        let (sender, receiver) = watch::channel(found.unwrap_or_default());
        let stop = self.stop.clone();
        self.workers.spawn(async move {
            match folder {
                Some(folder) => static_pods::follow(folder, sender, stop).await,
                // The channel stays open: who waits for it would be told of its end for ever.
                None => stop.cancelled().await,
            }
            String::new()
        });
        receiver
    }

    /// Starts what is new in the folder, and ends what is no longer there.
    fn take_statics(&mut self, statics: Statics) {
        self.statics = statics;
        let gone: Vec<String> =
            self.mirrors.keys().filter(|uid| !self.statics.contains_key(*uid)).cloned().collect();
        for uid in gone {
            if let Some(removed) = self.mirrors.remove(&uid) {
                removed.cancel();
            }
            if let Some(sender) = self.senders.get(&uid) {
                sender.send_if_modified(|known| !std::mem::replace(&mut known.gone, true));
            }
        }
        for (uid, pod) in self.statics.clone() {
            // One whose end is not over is begun anew then.
            if !self.senders.contains_key(&uid) {
                self.employ_static(uid, pod);
            }
        }
    }

    fn employ_static(&mut self, uid: String, pod: Arc<Pod>) {
        let (statuses, receiver) = watch::channel(PodStatus::default());
        let removed = CancellationToken::new();
        let client = self.shared.client.clone();
        let (stop, mirrored) = (self.stop.clone(), Arc::clone(&pod));
        let mirror = static_pods::mirror(client, mirrored, receiver, removed.clone(), stop);
        self.workers.spawn(async move {
            mirror.await;
            String::new()
        });
        self.mirrors.insert(uid.clone(), removed);
        self.employ(uid, Wanted { pod, gone: false, statuses: Some(statuses) });
    }

    /// A mirror that nobody keeps: its pod's file went while no node part ran.
    fn forget_mirror(&mut self, pod: &Pod) {
        let name = pod.name_any();
        let kept = self.statics.values().any(|one| one.name_any() == name);
        if kept {
            return;
        }
        let client = self.shared.client.clone();
        let namespace = pod.namespace().unwrap_or_default();
        self.workers.spawn(async move {
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            if let Err(error) = static_pods::delete(&api, &name).await {
                tracing::warn!(pod = name, %error, "a mirror without a pod was not deleted");
            }
            String::new()
        });
    }

    async fn take(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                if !self.swept {
                    self.look_for_housed().await;
                }
            }
            watcher::Event::InitApply(pod) => {
                self.listed.extend(pod.uid());
                self.put(pod);
            }
            watcher::Event::InitDone => {
                self.forget_unlisted();
                if !self.swept {
                    self.swept = true;
                    self.housed.clear();
                    self.sweep().await;
                }
            }
            watcher::Event::Apply(pod) => self.put(pod),
            watcher::Event::Delete(pod) => {
                if let Some(sender) = pod.uid().and_then(|uid| self.senders.get(&uid)) {
                    sender.send_replace(Wanted { pod: Arc::new(pod), gone: true, statuses: None });
                }
            }
        }
    }

    /// Tells the pod's worker, which is made where there is none.
    fn put(&mut self, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        if static_pods::is_mirror(&pod) {
            return self.forget_mirror(&pod);
        }
        let wanted = Wanted { pod: Arc::new(pod), gone: false, statuses: None };
        if let Some(sender) = self.senders.get(&uid) {
            sender.send_if_modified(|known| {
                // Once gone, an identity does not come back.
                let changed = !known.gone;
                if changed {
                    *known = wanted;
                }
                changed
            });
        } else if self.is_refused(&uid, &wanted.pod) {
            self.refuse(&wanted.pod);
        } else {
            self.employ(uid, wanted);
        }
    }

    fn is_refused(&self, uid: &str, pod: &Pod) -> bool {
        if self.senders.len() < machine::PODS_MAX {
            return false;
        }
        let known: Vec<Arc<Pod>> =
            self.senders.values().map(|sender| Arc::clone(&sender.borrow().pod)).collect();
        let has_sandbox = self.housed.contains(uid);
        admission::is_refused(pod, has_sandbox, known.iter().map(Arc::as_ref))
    }

    fn employ(&mut self, uid: String, wanted: Wanted) {
        let (sender, receiver) = watch::channel(wanted);
        let worker = worker::run(Arc::clone(&self.shared), receiver, self.stop.clone());
        self.senders.insert(uid.clone(), sender);
        self.workers.spawn(async move {
            worker.await;
            uid
        });
    }

    /// Pods that the API no longer told of have gone while nobody watched.
    fn forget_unlisted(&mut self) {
        for (uid, sender) in &self.senders {
            if !self.listed.contains(uid) && !self.statics.contains_key(uid) {
                sender.send_if_modified(|known| !std::mem::replace(&mut known.gone, true));
            }
        }
        self.listed.clear();
    }

    /// Notes which pods an earlier node part made sandboxes for.
    async fn look_for_housed(&mut self) {
        match self.shared.runtime.sandboxes(None).await {
            Ok(found) => self.housed = found.into_iter().map(|one| one.pod.uid).collect(),
            // Those whose status says that they were started are known all the same.
            Err(error) => tracing::warn!(%error, "sandboxes of an earlier node part not found"),
        }
    }

    /// Has what an earlier node part left, and no pod claims, removed.
    async fn sweep(&mut self) {
        let sandboxes = match self.shared.runtime.sandboxes(None).await {
            Ok(sandboxes) => sandboxes,
            Err(error) => return tracing::warn!(%error, "left-over sandboxes not looked for"),
        };
        for uid in volumes::owners(&self.shared.facts.volume_dir) {
            let claimed = self.senders.contains_key(&uid)
                || sandboxes.iter().any(|sandbox| sandbox.pod.uid == uid);
            if !claimed {
                tracing::info!(pod = uid, "removing left-over volumes");
                let pod = PodIdentity { namespace: String::new(), name: uid.clone(), uid };
                let wanted = Wanted { pod: Arc::new(stand_in(&pod)), gone: true, statuses: None };
                self.employ(pod.uid, wanted);
            }
        }
        for sandbox in sandboxes {
            if !self.senders.contains_key(&sandbox.pod.uid) {
                tracing::info!(
                    sandbox = sandbox.id,
                    pod = sandbox.pod.name,
                    "removing left-over sandbox"
                );
                let pod = Arc::new(stand_in(&sandbox.pod));
                self.employ(sandbox.pod.uid, Wanted { pod, gone: true, statuses: None });
            }
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.senders.remove(&uid);
                let again = self.statics.get(&uid).cloned();
                if let Some(pod) = again.filter(|_| !self.stop.is_cancelled()) {
                    self.employ_static(uid, pod);
                }
            }
            // A worker that fails would leave its pod without anybody: better all start anew.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_cancelled) => {}
        }
    }

    /// Admission: the node has no place for the pod (kubelet: `OutOfpods`).
    fn refuse(&mut self, pod: &Pod) {
        let identity = super::pod::identity(pod);
        let max = machine::PODS_MAX;
        let status = PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some("OutOfpods".to_owned()),
            message: Some(format!(
                "Node didn't have enough resource: pods, requested: 1, used: {max}, capacity: {max}"
            )),
            ..pod.status.clone().unwrap_or_default()
        };
        let client = self.shared.client.clone();
        self.workers.spawn(async move {
            if let Err(error) = report::write(client, &identity, None, &status).await {
                tracing::warn!(pod = identity.name, %error, "refusal not reported");
            }
            String::new()
        });
    }
}

/// A pod of which only the sandbox is left.
fn stand_in(identity: &PodIdentity) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.namespace = Some(identity.namespace.clone());
    pod.metadata.name = Some(identity.name.clone());
    pod.metadata.uid = Some(identity.uid.clone());
    pod
}
