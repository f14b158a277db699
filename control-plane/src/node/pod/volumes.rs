//! What a pod's volumes have to be on the node, and where its containers see them. Pure: the
//! interpreter is [`crate::node::volumes`].

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Secret, Volume,
    VolumeMount, VolumeProjection,
};

use super::{
    super::runtime::{Mount, Propagation},
    environment::{self, Sources},
    expand::expand,
    inputs::TokenRequest,
    resources,
};

/// The mode of a file where nothing is said.
const MODE: i32 = 0o644;

/// A volume as it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlan {
    /// Its name in the pod.
    pub name: String,
    /// What it is.
    pub content: Content,
    /// Folders in it that have to be there, relative to it.
    pub sub_paths: Vec<PathBuf>,
    /// The group that may write to it (`fsGroup`).
    pub group: Option<u32>,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An empty folder that lives as long as the pod.
    Empty {
        /// In memory.
        memory: bool,
        /// Bytes that it may hold, where it is in memory.
        size: Option<u64>,
    },
    /// A path of the node.
    Host {
        /// Which.
        path: PathBuf,
        /// `type`: what has to be there, or is made; empty for anything.
        kind: String,
    },
    /// Files, replaced all at once.
    Files {
        /// Which, in order of their paths.
        files: Vec<File>,
        /// They are secret: they are kept in memory.
        secret: bool,
    },
}

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where, relative to the volume.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

/// Volumes that follow objects of the API, so that they have to be looked after while the pod runs.
pub(super) fn follow_objects(volumes: &[Volume]) -> bool {
    volumes.iter().any(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
    })
}

/// The plan for the volumes that a container mounts, and its mounts. `Err` says, for people, what
/// cannot be had.
pub(super) fn plan(
    sources: Sources<'_>,
    container: &Container,
    env: &[(String, String)],
    group: Option<u32>,
) -> Result<(Vec<VolumePlan>, Vec<Mount>), String> {
    let spec = sources.pod.spec.as_ref();
    let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut plans: Vec<VolumePlan> = Vec::new();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| format!("volume {:?} not found", mount.name))?;
        let sub_path = sub_path(mount, env)?;
        let known = plans.iter().position(|plan| plan.name == volume.name);
        let index = if let Some(index) = known {
            index
        } else {
            plans.push(one(sources, volume, group)?);
            plans.len() - 1
        };
        let plan = &mut plans[index];
        let root = match &plan.content {
            Content::Host { path, .. } => path.clone(),
            _ => folder(sources, &plan.name),
        };
        mounts.push(mounted(mount, root, &sub_path, &plan.content)?);
        if !sub_path.as_os_str().is_empty() {
            plan.sub_paths.push(sub_path);
        }
    }
    mounts.sort_by_key(|mount| Path::new(&mount.container_path).components().count());
    Ok((plans, mounts))
}

/// Where a volume of the pod is on the node.
fn folder(sources: Sources<'_>, name: &str) -> PathBuf {
    let uid = sources.pod.metadata.uid.as_deref().unwrap_or_default();
    sources.node.volume_dir.join(uid).join(name)
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<PathBuf, String> {
    let lookup =
        |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let text = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => expand(expression, lookup),
        (_, sub_path) => sub_path.clone().unwrap_or_default(),
    };
    let path = PathBuf::from(&text);
    if is_inside(&path) { Ok(path) } else { Err(format!("subPath {text:?} leaves its volume")) }
}

/// Neither absolute nor up.
fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn mounted(
    mount: &VolumeMount,
    volume_path: PathBuf,
    sub_path: &Path,
    content: &Content,
) -> Result<Mount, String> {
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("None" | "") => Propagation::Private,
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(other) => return Err(format!("unknown mountPropagation {other:?}")),
    };
    Ok(Mount {
        container_path: mount.mount_path.clone(),
        host_path: volume_path.join(sub_path),
        volume_path,
        // What follows objects of the API is theirs to change.
        read_only: mount.read_only == Some(true) || matches!(content, Content::Files { .. }),
        propagation,
    })
}

/// The plan for one of the pod's volumes, without the parts that containers mount.
pub(super) fn one(
    sources: Sources<'_>,
    volume: &Volume,
    group: Option<u32>,
) -> Result<VolumePlan, String> {
    let content = content(sources, volume)?;
    let group = if matches!(content, Content::Host { .. }) { None } else { group };
    Ok(VolumePlan { name: volume.name.clone(), content, sub_paths: Vec::new(), group })
}

fn content(sources: Sources<'_>, volume: &Volume) -> Result<Content, String> {
    let mut files = Files { sources, found: Vec::new(), secret: false };
    if let Some(empty) = &volume.empty_dir {
        return Ok(empty_dir(empty));
    } else if let Some(host) = &volume.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        return Ok(Content::Host { path: host.path.clone().into(), kind });
    } else if let Some(map) = &volume.config_map {
        let wanted =
            Keys { items: map.items.as_deref(), mode: map.default_mode, optional: map.optional };
        files.config_map(&map.name, &wanted)?;
    } else if let Some(secret) = &volume.secret {
        let wanted = Keys {
            items: secret.items.as_deref(),
            mode: secret.default_mode,
            optional: secret.optional,
        };
        files.secret(secret.secret_name.as_deref().unwrap_or_default(), &wanted)?;
    } else if let Some(downward) = &volume.downward_api {
        files.downward(downward.items.as_deref(), downward.default_mode)?;
    } else if let Some(projected) = &volume.projected {
        for projection in projected.sources.iter().flatten() {
            files.projection(projection, projected.default_mode)?;
        }
    } else {
        return Err(format!(
            "this node part does not support the type of volume {:?}",
            volume.name
        ));
    }
    let Files { mut found, secret, .. } = files;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Content::Files { files: found, secret })
}

fn empty_dir(empty: &EmptyDirVolumeSource) -> Content {
    let size = empty.size_limit.as_ref().and_then(|size| resources::parse(&size.0, 1));
    Content::Empty {
        memory: empty.medium.as_deref() == Some("Memory"),
        size: size.and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0),
    }
}

/// Which keys of an object become files.
struct Keys<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
}

/// The files of a volume, as they are found.
struct Files<'a> {
    sources: Sources<'a>,
    found: Vec<File>,
    secret: bool,
}

impl Files<'_> {
    fn add(&mut self, path: &str, mode: Option<i32>, content: Vec<u8>) -> Result<(), String> {
        let path = PathBuf::from(path);
        if path.as_os_str().is_empty() || !is_inside(&path) {
            return Err(format!("the path {:?} leaves its volume", path.display()));
        }
        let mode = u32::try_from(mode.unwrap_or(MODE)).unwrap_or_default() & 0o777;
        self.found.retain(|known| known.path != path);
        self.found.push(File { path, mode, content });
        Ok(())
    }

    fn config_map(&mut self, name: &str, wanted: &Keys<'_>) -> Result<(), String> {
        let found = self.sources.inputs.config_map(name)?;
        if found.is_none() && wanted.optional != Some(true) {
            return Err(format!("configmap {name:?} not found"));
        }
        let data = found.map(data_of_map).unwrap_or_default();
        self.keys(&data, wanted)
    }

    fn secret(&mut self, name: &str, wanted: &Keys<'_>) -> Result<(), String> {
        self.secret = true;
        let found = self.sources.inputs.secret(name)?;
        if found.is_none() && wanted.optional != Some(true) {
            return Err(format!("secret {name:?} not found"));
        }
        let data = found.map(data_of_secret).unwrap_or_default();
        self.keys(&data, wanted)
    }

    fn keys(&mut self, data: &[(String, Vec<u8>)], wanted: &Keys<'_>) -> Result<(), String> {
        let items = wanted.items.filter(|items| !items.is_empty());
        let Some(items) = items else {
            return data
                .iter()
                .try_for_each(|(key, value)| self.add(key, wanted.mode, value.clone()));
        };
        for item in items {
            match data.iter().find(|(key, _)| *key == item.key) {
                Some((_, value)) => {
                    self.add(&item.path, item.mode.or(wanted.mode), value.clone())?;
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("references non-existent key: {}", item.key)),
            }
        }
        Ok(())
    }

    fn downward(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        mode: Option<i32>,
    ) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let text = if let Some(field) = &item.field_ref {
                whole_map(self.sources, &field.field_path)
                    .or_else(|| environment::field_value(self.sources, &field.field_path))
                    .ok_or_else(|| format!("unsupported fieldPath {:?}", field.field_path))?
            } else if let Some(field) = &item.resource_field_ref {
                environment::resource_value(self.sources, None, field)?
            } else {
                return Err(format!("the file {:?} has no source", item.path));
            };
            self.add(&item.path, item.mode.or(mode), text.into_bytes())?;
        }
        Ok(())
    }

    fn projection(
        &mut self,
        projection: &VolumeProjection,
        mode: Option<i32>,
    ) -> Result<(), String> {
        if let Some(map) = &projection.config_map {
            let wanted = Keys { items: map.items.as_deref(), mode, optional: map.optional };
            self.config_map(&map.name, &wanted)?;
        }
        if let Some(secret) = &projection.secret {
            let wanted = Keys { items: secret.items.as_deref(), mode, optional: secret.optional };
            self.secret(&secret.name, &wanted)?;
        }
        if let Some(downward) = &projection.downward_api {
            self.downward(downward.items.as_deref(), mode)?;
        }
        if let Some(token) = &projection.service_account_token {
            self.secret = true;
            let found = self.sources.inputs.token(TokenRequest::of(token))?;
            let found = found.ok_or("the API server gave no token for the service account")?;
            self.add(&token.path, mode, found.text.clone().into_bytes())?;
        }
        Ok(())
    }
}

fn data_of_map(map: &ConfigMap) -> Vec<(String, Vec<u8>)> {
    let text = map.data.iter().flatten();
    let text = text.map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let bytes = map.binary_data.iter().flatten();
    text.chain(bytes.map(|(key, value)| (key.clone(), value.0.clone()))).collect()
}

fn data_of_secret(secret: &Secret) -> Vec<(String, Vec<u8>)> {
    let data = secret.data.iter().flatten();
    data.map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// All labels or annotations, a line each.
fn whole_map(sources: Sources<'_>, path: &str) -> Option<String> {
    let map = match path {
        "metadata.labels" => &sources.pod.metadata.labels,
        "metadata.annotations" => &sources.pod.metadata.annotations,
        _ => return None,
    };
    let lines: Vec<String> =
        map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    Some(lines.join("\n"))
}

#[cfg(test)]
#[path = "volumes/tests.rs"]
mod tests;
