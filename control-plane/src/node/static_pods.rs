//! Static pods: manifests in a folder of the node, which run whether or not there is an API server.
//! The API has a mirror of each, made and kept by the node part, so that everybody can see it; who
//! deletes the mirror changes nothing. A pod with another manifest is another pod.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{report, runtime::PodIdentity};

/// Where a pod comes from, as the kubelet says it.
const SOURCE: &str = "kubernetes.io/config.source";
/// Which manifest it is.
const HASH: &str = "kubernetes.io/config.hash";
/// It is the mirror of the pod with this hash.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Between two looks at the folder.
const PERIOD: Duration = Duration::from_secs(2);
/// Between two looks at a mirror.
const MIRROR_PERIOD: Duration = Duration::from_secs(10);
/// A larger file is no manifest.
const SIZE_MAX: u64 = 1 << 20;

/// The pods of a folder, by uid.
pub(super) type Statics = BTreeMap<String, Arc<Pod>>;

/// The pod is the mirror of a static one.
pub(super) fn is_mirror(pod: &Pod) -> bool {
    pod.annotations().contains_key(MIRROR)
}

/// The pod is a static one.
pub(super) fn is_static(pod: &Pod) -> bool {
    pod.annotations().get(SOURCE).is_some_and(|source| source == "file") && !is_mirror(pod)
}

/// A folder of manifests, and what was last known of each file. What can't be read or understood
/// stays as it was: a disk that fails, or a file that is being written, ends no pod.
pub(super) struct Folder {
    dir: PathBuf,
    node: String,
    known: BTreeMap<PathBuf, Arc<Pod>>,
}

impl Folder {
    /// The folder of this node; nothing of it is known yet.
    pub(super) fn new(dir: PathBuf, node: String) -> Self {
        Self { dir, node, known: BTreeMap::new() }
    }

    /// The pods as last known.
    pub(super) fn pods(&self) -> Statics {
        let pods = self.known.values();
        pods.map(|pod| (pod.uid().unwrap_or_default(), Arc::clone(pod))).collect()
    }

    /// Looks at the folder; what is wrong with it and its files.
    pub(super) fn look(&mut self) -> Vec<String> {
        let files =
            match std::fs::read_dir(&self.dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                Err(error) => {
                    return vec![format!(
                        "the static pods in {} stay as they were, for it can't be listed: {error}",
                        self.dir.display()
                    )];
                }
            };
        let mut before = std::mem::take(&mut self.known);
        let mut complaints = Vec::new();
        for path in files.iter().map(std::fs::DirEntry::path).filter(|path| is_manifest(path)) {
            match read(&path, &self.node) {
                Ok(Some(pod)) => drop(self.known.insert(path, Arc::new(pod))),
                Ok(None) => {} // it went a moment ago
                Err(why) => {
                    let mut complaint = format!("{} is no static pod: {why}", path.display());
                    if let Some((path, pod)) = before.remove_entry(&path) {
                        complaint += "; the pod that it was goes on";
                        self.known.insert(path, pod);
                    }
                    complaints.push(complaint);
                }
            }
        }
        complaints
    }
}

/// Sends the pods of the folder whenever they change, until `stop`.
pub(super) async fn follow(
    mut folder: Folder,
    pods: watch::Sender<Statics>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained = Vec::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let complaints = folder.look();
        for complaint in complaints.iter().filter(|one| !complained.contains(*one)) {
            tracing::warn!("{complaint}");
        }
        complained = complaints;
        let found = folder.pods();
        pods.send_if_modified(|known| {
            let changed = !found.keys().eq(known.keys());
            *known = found;
            changed
        });
    }
}

/// Whether a file is named as manifests are.
fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|text| text.to_str());
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The pod of a file; `None` where there is none.
fn read(path: &Path, node: &str) -> Result<Option<Pod>, String> {
    let text = std::fs::metadata(path).and_then(|meta| match meta.len() {
        ..=SIZE_MAX => std::fs::read_to_string(path),
        size => Err(io::Error::other(format!("it has {size} octets, at most {SIZE_MAX} are read"))),
    });
    match text {
        Ok(text) => parse(&text, node).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// A pod of a manifest, with the names that the node gives it.
fn parse(text: &str, node: &str) -> Result<Pod, String> {
    let mut pod: Pod = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty());
    let name = name.ok_or("it has no metadata.name")?;
    let spec = pod.spec.as_mut().filter(|spec| !spec.containers.is_empty());
    let spec = spec.ok_or("it has no spec.containers")?;
    let hash = fnv1a(format!("{node}\n{text}").as_bytes());
    spec.node_name = Some(node.to_owned());
    pod.metadata.name = Some(format!("{name}-{node}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), hash);
    pod.status = None;
    let wanted = super::pod::inputs::objects(&pod);
    if wanted.is_empty() {
        return Ok(pod);
    }
    Err(format!("a static pod may not refer to objects of the API: {}", wanted.join(", ")))
}

/// 128 bits that tell manifests apart, the same for ever (FNV-1a).
fn fnv1a(bytes: &[u8]) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in bytes {
        hash ^= u128::from(*byte);
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}

/// Keeps the mirror of a pod, with the status that its worker sends, until `stop`; deletes it when
/// the pod is `removed`.
pub(super) async fn mirror(
    client: Client,
    pod: Arc<Pod>,
    mut status: watch::Receiver<PodStatus>,
    removed: CancellationToken,
    stop: CancellationToken,
) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    loop {
        let now = status.borrow_and_update().clone();
        let kept = if removed.is_cancelled() {
            delete(&api, &pod.name_any()).await
        } else {
            keep(&client, &api, &pod, &now).await
        };
        match kept {
            Ok(()) if removed.is_cancelled() => return,
            Ok(()) => {}
            // The pod runs all the same.
            Err(error) => tracing::debug!(pod = pod.name_any(), %error, "mirror not kept"),
        }
        tokio::select! {
            Ok(()) = status.changed() => {}
            () = removed.cancelled(), if !removed.is_cancelled() => {}
            () = tokio::time::sleep(MIRROR_PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn keep(
    client: &Client,
    api: &Api<Pod>,
    pod: &Pod,
    status: &PodStatus,
) -> Result<(), kube::Error> {
    let name = pod.name_any();
    let hash = pod.annotations().get(HASH).cloned().unwrap_or_default();
    let mirror = || async {
        let owner = owner(client, pod).await?;
        api.create(&PostParams::default(), &mirror_of(pod, &hash, owner)).await
    };
    let found = match on_this_node(api, pod).await? {
        Some(found) if found.annotations().get(MIRROR) != Some(&hash) && !is_mirror(&found) => {
            tracing::warn!(pod = name, "another pod has the name of a static pod's mirror");
            return Ok(());
        }
        Some(found)
            if found.annotations().get(MIRROR) == Some(&hash)
                && found.metadata.deletion_timestamp.is_none() =>
        {
            found
        }
        Some(_stale) => {
            delete(api, &name).await?;
            mirror().await?
        }
        None => mirror().await?,
    };
    if report::essence(status) == report::essence(&found.status.clone().unwrap_or_default()) {
        return Ok(());
    }
    let identity = PodIdentity {
        namespace: found.namespace().unwrap_or_default(),
        uid: found.uid().unwrap_or_default(),
        name,
    };
    report::write(client.clone(), &identity, None, status).await.map(drop)
}

/// Deletes a mirror at once; success where there is none.
pub(super) async fn delete(api: &Api<Pod>, name: &str) -> Result<(), kube::Error> {
    match api.delete(name, &DeleteParams::default().grace_period(0)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// The pod of that name on the same node. A node may ask for those of its own only.
async fn on_this_node(api: &Api<Pod>, pod: &Pod) -> Result<Option<Pod>, kube::Error> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let which = format!("spec.nodeName={node},metadata.name={}", pod.name_any());
    let found = api.list(&ListParams::default().fields(&which)).await?;
    Ok(found.items.into_iter().next())
}

/// The node as the owner of a mirror, which is all that it may create.
async fn owner(client: &Client, pod: &Pod) -> Result<OwnerReference, kube::Error> {
    let name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let node = Api::<Node>::all(client.clone()).get(&name).await?;
    Ok(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name,
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    })
}

fn mirror_of(pod: &Pod, hash: &str, owner: OwnerReference) -> Pod {
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.owner_references = Some(vec![owner]);
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    annotations.insert(MIRROR.to_owned(), hash.to_owned());
    mirror
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "metadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_the_node() {
        let pod = parse(MANIFEST, "node-1").unwrap();
        assert_eq!(
            (pod.name_any().as_str(), pod.namespace().unwrap().as_str()),
            ("web-node-1", "default")
        );
        assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("node-1"));
        assert!(is_static(&pod) && !is_mirror(&pod));
        let mirror = mirror_of(&pod, "h", OwnerReference::default());
        assert!(is_mirror(&mirror) && !is_static(&mirror) && mirror.uid().is_none());
        // The same manifest is the same pod, another one or another node's another.
        let uid = |text: &str, node: &str| parse(text, node).unwrap().uid();
        assert_eq!(uid(MANIFEST, "node-1"), pod.uid());
        assert_ne!(uid(&MANIFEST.replace("image: i", "image: j"), "node-1"), pod.uid());
        assert_ne!(uid(MANIFEST, "node-2"), pod.uid());
    }

    #[test]
    fn what_is_no_pod_is_said_by_file_and_keeps_nobody_else_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("good.yaml", MANIFEST),
            ("none.yaml", "spec: {containers: [{name: c}]}"),
            ("empty.json", "{\"metadata\": {\"name\": \"x\"}}"),
            ("torn.yaml", "metadata: {"),
            (
                "refers.yaml",
                "metadata: {name: x}\nspec: {containers: [{name: c, envFrom: [{secretRef: {name: s}}]}]}",
            ),
            (".hidden.yaml", "torn"),
            ("readme.txt", "torn"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let (pods, mut complaints) = looked(&mut Folder::new(dir.path().into(), "n".into()));
        assert_eq!(pods.len(), 1);
        complaints.sort();
        let said: Vec<&str> = complaints.iter().filter_map(|one| one.rsplit('/').next()).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].starts_with("empty.json is no static pod: it has no spec.containers"));
        assert!(said[1].contains("it has no metadata.name"));
        assert!(said[2].contains("may not refer to objects of the API: secret s"), "{}", said[2]);
        let absent = &mut Folder::new(dir.path().join("absent"), "n".into());
        assert_eq!(looked(absent), (Statics::new(), Vec::new()));
    }

    fn looked(folder: &mut Folder) -> (Statics, Vec<String>) {
        let complaints = folder.look();
        (folder.pods(), complaints)
    }

    #[test]
    fn what_can_not_be_read_any_more_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (at, aside) = (dir.path().join("static"), dir.path().join("aside"));
        std::fs::create_dir(&at).unwrap();
        let file = at.join("web.yaml");
        std::fs::write(&file, MANIFEST).unwrap();
        let mut folder = Folder::new(at.clone(), "n".into());
        let (first, complaints) = looked(&mut folder);
        assert_eq!((first.len(), complaints.len()), (1, 0));
        let mut stays = |what: &str| {
            let (pods, complaints) = looked(&mut folder);
            assert_eq!(pods, first, "{what}");
            assert!(complaints.len() == 1 && complaints[0].contains(what), "{complaints:?}");
        };
        // A file that is half written, that is no text, that is too long, that is a folder by now.
        std::fs::write(&file, &MANIFEST[..20]).unwrap();
        stays("web.yaml is no static pod");
        stays("the pod that it was goes on");
        std::fs::write(&file, [0xff; 9]).unwrap();
        stays("UTF-8");
        std::fs::write(&file, vec![b' '; 1 << 21]).unwrap();
        stays("2097152 octets");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        stays("directory");
        // A folder that can't be listed.
        std::fs::rename(&at, &aside).unwrap();
        std::fs::write(&at, "").unwrap();
        stays("can't be listed");
        std::fs::remove_file(&at).unwrap();
        // One that is not there has no pods, and neither has a file.
        assert_eq!(looked(&mut folder), (Statics::new(), Vec::new()));
        std::fs::rename(&aside, &at).unwrap();
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, MANIFEST).unwrap();
        assert_eq!(looked(&mut folder).0, first);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(looked(&mut folder), (Statics::new(), Vec::new()));
    }
}
