//! How long a control plane takes to its first answer; and a data folder to start with.

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Request;
use mizzen_control_plane::ControlPlane;
use mizzen_control_plane::authz::User;
use mizzen_control_plane::store::{Action, Embedded, Expect, Op, Options, Store};
use tower::Service as _;

use crate::sample::Sample;
use crate::{Fill, Start};

/// Objects that one commit of [`fill`] writes.
const AT_ONCE: usize = 100;

/// Starts until `/readyz` says so, one after the other.
pub(crate) async fn measure(options: &Start) -> Result<Sample> {
    let mut latencies = Vec::new();
    let began = Instant::now();
    for _ in 0..options.times {
        let start = Instant::now();
        let mut builder = ControlPlane::builder();
        if let Some(folder) = &options.dir {
            builder = builder.in_directory(&folder.join("store"));
        }
        let control_plane = builder.start().await?;
        let mut service = control_plane.service_as(User::anonymous());
        let request = Request::get("/readyz").body(String::new())?;
        let answer = service.call(request).await?;
        ensure!(answer.status().is_success(), "/readyz says {}", answer.status());
        latencies.push(start.elapsed());
        control_plane.stop().await;
    }
    Ok(Sample::of(latencies.len(), began.elapsed(), latencies))
}

/// Fills a data folder with ConfigMaps of 1 KB.
pub(crate) async fn fill(options: &Fill) -> Result<Sample> {
    let began = Instant::now();
    let store = Embedded::open(&options.dir.join("store"), &Options::default())?;
    let objects = options.megabytes * 1024;
    for first in (0..objects).step_by(AT_ONCE) {
        let ops = (first..first + AT_ONCE).map(|number| {
            let value = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"m{number}","namespace":"default","uid":"00000000-0000-4000-8000-{number:012}","creationTimestamp":"2026-01-01T00:00:00Z"}},"data":{{"a":"{}"}}}}"#,
                "x".repeat(850),
            );
            let key = format!("core/configmaps/default/m{number}").into();
            Op { key, expect: Expect::Any, action: Action::Put(Bytes::from(value)) }
        });
        store.commit(ops.collect()).await?;
    }
    Ok(Sample::of(objects, began.elapsed(), Vec::new()))
}
