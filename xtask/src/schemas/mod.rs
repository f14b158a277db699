//! Distils the tables of `control-plane/src/schema/types` from the Go types of Kubernetes' API: which
//! fields a type has, by which name in JSON and which number in protobuf, and how lists merge.
//!
//! The tables hold facts of the wire formats only. Descriptions come from k8s-openapi.

mod go;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use go::{Field, File};

/// Packages: path below the sources, and the name that the tables give it.
const PACKAGES: &[(&str, &str)] = &[
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "meta.v1"),
    ("k8s.io/api/apps/v1", "apps.v1"),
    ("k8s.io/api/authentication/v1", "authentication.v1"),
    ("k8s.io/api/authorization/v1", "authorization.v1"),
    ("k8s.io/api/autoscaling/v1", "autoscaling.v1"),
    ("k8s.io/api/autoscaling/v2", "autoscaling.v2"),
    ("k8s.io/api/batch/v1", "batch.v1"),
    ("k8s.io/api/certificates/v1", "certificates.v1"),
    ("k8s.io/api/coordination/v1", "coordination.v1"),
    ("k8s.io/api/core/v1", "core.v1"),
    ("k8s.io/api/discovery/v1", "discovery.v1"),
    ("k8s.io/api/events/v1", "events.v1"),
    ("k8s.io/api/networking/v1", "networking.v1"),
    ("k8s.io/api/node/v1", "node.v1"),
    ("k8s.io/api/policy/v1", "policy.v1"),
    ("k8s.io/api/rbac/v1", "rbac.v1"),
    ("k8s.io/api/scheduling/v1", "scheduling.v1"),
    ("k8s.io/api/storage/v1", "storage.v1"),
];

/// Types of other packages, and types that JSON and protobuf write in ways of their own.
const SPECIAL: &[(&str, &str)] = &[
    ("k8s.io/apimachinery/pkg/api/resource.Quantity", "quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr.IntOrString", "intorstring"),
    ("k8s.io/apimachinery/pkg/runtime.RawExtension", "raw"),
    ("k8s.io/apimachinery/pkg/types.UID", "string"),
    ("k8s.io/apimachinery/pkg/types.NodeName", "string"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Time", "time"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime", "microtime"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Duration", "duration"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1", "raw"),
];

/// Types that only the server writes.
const MADE_HERE: &[&str] = &["Table", "TableRow"];

const HEADER: &str = "# Made by `cargo xtask schemas`; see xtask/src/schemas.\n";

/// Reads the sources below `sources` (laid out by import path) and writes a table per package into
/// `into`.
pub fn distil(sources: &Path, into: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    for (path, _) in PACKAGES {
        let file = sources.join(path).join("types.go");
        let text = fs::read_to_string(&file).with_context(|| {
            format!("read {}: unpack k8s.io/api and k8s.io/apimachinery there", file.display())
        })?;
        files.insert(*path, go::parse(&text));
    }
    for (path, name) in PACKAGES {
        let file = into.join(format!("{name}.txt"));
        fs::write(&file, table(&files, path)?)
            .with_context(|| format!("write the table {}", file.display()))?;
    }
    Ok(())
}

/// The table of one package.
fn table(files: &BTreeMap<&str, File>, path: &str) -> Result<String> {
    let mut text = HEADER.to_owned();
    for (name, fields) in &files[path].structs {
        let list = name.ends_with("List") && fields.iter().any(|field| field.name == "items");
        if list || MADE_HERE.contains(&name.as_str()) {
            continue;
        }
        let _ = write!(text, "\n{name}\n");
        for field in fields {
            line(files, path, field, &mut text)
                .with_context(|| format!("field {:?} of {path}.{name}", field.name))?;
        }
    }
    Ok(text)
}

fn line(files: &BTreeMap<&str, File>, path: &str, field: &Field, text: &mut String) -> Result<()> {
    let kind = resolve(files, path, &field.kind)?;
    if field.name.is_empty() && kind == "meta.v1.TypeMeta" {
        text.push_str(" apiVersion 0 string\n kind 0 string\n");
        return Ok(());
    }
    let name = if field.name.is_empty() { "+" } else { &field.name };
    let _ = write!(text, " {name} {} {kind}", field.number);
    if !field.omits_empty && !field.name.is_empty() {
        text.push_str(" always");
    }
    let retains = field.strategy.split(',').any(|part| part == "retainKeys");
    let merges = field.strategy.split(',').any(|part| part == "merge");
    match (merges, field.key.as_str()) {
        (true, "") => text.push_str(" set"),
        (true, key) => drop(write!(text, " key={key}")),
        (false, _) => {}
    }
    if retains {
        text.push_str(" retain");
    }
    text.push('\n');
    Ok(())
}

/// A Go type as the tables write it: `*` a pointer, `[]` a list, `{}` a map by text, `()` a list
/// that protobuf wraps in a message.
fn resolve(files: &BTreeMap<&str, File>, path: &str, kind: &str) -> Result<String> {
    if let Some(rest) = kind.strip_prefix('*') {
        return Ok(format!("*{}", resolve(files, path, rest)?));
    }
    if kind == "[]byte" {
        return Ok("bytes".to_owned());
    }
    if let Some(rest) = kind.strip_prefix("[]") {
        return Ok(format!("[]{}", resolve(files, path, rest)?));
    }
    if let Some(rest) = kind.strip_prefix("map[") {
        let (_, value) = rest.split_once(']').context("a map without a value")?;
        let value = resolve(files, path, value)?;
        // Lists can't be values of a map in protobuf.
        return Ok(match value.strip_prefix("[]") {
            Some(item) => format!("{{}}(){item}"),
            None => format!("{{}}{value}"),
        });
    }
    if matches!(kind, "string" | "bool" | "int32" | "int64" | "float64") {
        return Ok(kind.to_owned());
    }
    let (path, name) = match kind.split_once('.') {
        Some((package, name)) => {
            let path = files[path].imports.get(package);
            (path.with_context(|| format!("package {package} is not imported"))?.as_str(), name)
        }
        None => (path, kind),
    };
    let full = format!("{path}.{name}");
    if let Some((_, special)) = SPECIAL.iter().find(|(known, _)| *known == full) {
        return Ok((*special).to_owned());
    }
    let (known, file) =
        files.get_key_value(path).with_context(|| format!("package {path} is not read"))?;
    if let Some(other) = file.names.get(name) {
        return resolve(files, known, other);
    }
    if !file.structs.contains_key(name) {
        bail!("there is no type {full}");
    }
    let package = PACKAGES.iter().find(|(listed, _)| listed == known);
    let (_, package) = package.with_context(|| format!("package {path} has no name"))?;
    Ok(format!("{package}.{name}"))
}
