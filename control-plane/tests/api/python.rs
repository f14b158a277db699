//! Programs of others that are written in Python, from the environment that `cargo xtask test`
//! makes: the `kubernetes` client, and schemathesis, which asks for whatever the OpenAPI document
//! allows and for what it does not.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};

use crate::server::Server;

/// A program of the environment, beside the folder of the binaries.
fn command(name: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_mizzen-control-plane"));
    let program = binary.ancestors().nth(2).unwrap().join("python/bin").join(name);
    assert!(program.exists(), "no {}: `cargo xtask test` makes it", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_does_its_daily_work() {
    let server = Server::start().await;
    let mut client = command("python");
    client.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/client.py"));
    client.arg(&server.kubeconfig);
    let done = output(client).await;
    assert!(done.status.success() && done.stdout == b"done\n", "{}", said(&done));
}

/// The documents of all groups as one.
async fn document(server: &Server) -> Value {
    let index = server.get("/openapi/v3").await.unwrap();
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for root in index["paths"].as_object().unwrap().keys() {
        let document = server.get(&format!("/openapi/v3/{root}")).await.unwrap();
        let part = |value: &Value| value.as_object().unwrap().clone();
        paths.extend(part(&document["paths"]));
        schemas.extend(part(&document["components"]["schemas"]));
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// One request for each operation, or for as many as there is time for; for `cargo xtask soak` a
/// hundred, and those that cover the schemas.
#[tokio::test(flavor = "multi_thread")]
async fn soak_schemathesis_finds_no_failure_of_the_server() {
    let server = Server::start().await;
    let (data, document) = (server.data_dir(), document(&server).await);
    std::fs::write(data.join("openapi.json"), document.to_string()).unwrap();
    let mut run = command("schemathesis");
    run.current_dir(data).args(["run", "openapi.json", "--url", &server.url]);
    run.args(["--tls-verify", "pki/ca.crt", "--request-cert", "pki/admin.crt"]);
    run.args(["--request-cert-key", "pki/admin.key", "--request-timeout", "30"]);
    run.args(["--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink"]);
    run.args([
        "--warnings",
        "off",
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
    ]);
    let seed = std::env::var("MIZZEN_SOAK_SEED").unwrap_or_else(|_| "1".to_owned());
    run.args(["--seed", &seed]);
    if std::env::var_os("MIZZEN_SOAK").is_some() {
        run.args(["--phases", "coverage,fuzzing", "--max-examples", "100", "--max-time", "900"]);
    } else {
        run.args(["--phases", "fuzzing", "--max-examples", "1", "--max-time", "12"]);
    }
    let done = output(run).await;
    assert!(done.status.success(), "{}", said(&done));
    eprintln!("{}", said(&done));
    assert!(server.get("/api/v1/namespaces/default").await.is_ok());
}
