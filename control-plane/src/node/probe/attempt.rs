//! One attempt of a probe.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use super::{
    super::{
        pod::state::ProbeTarget,
        runtime::{ExecError, ExecOutput, Runtime, process::chain},
    },
    http,
};

/// Why an attempt was no success; for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum AttemptError {
    /// The container answered otherwise, or not in time.
    #[error("{0}")]
    Failed(String),
    /// The container was not asked, as while the runtime is away: that says nothing of it.
    #[error("{0}")]
    Unknown(String),
}

impl From<String> for AttemptError {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// Success, maybe with a warning, or why not.
pub(in super::super) async fn attempt<R: Runtime>(
    runtime: &R,
    target: &ProbeTarget,
    timeout: Duration,
) -> Result<Option<String>, AttemptError> {
    let probe = &target.probe;
    if let Some(action) = &probe.exec {
        // The runtime ends the command when the time is over.
        let command = action.command.clone().unwrap_or_default();
        let ran = runtime.exec(&target.sandbox, &target.container, &command, timeout).await;
        return executed(ran).map(|()| None);
    }
    let ask = async {
        if let Some(get) = &probe.http_get {
            let (host, port) = place(target, get.host.as_deref(), &get.port)?;
            http::check(&host, port, get).await
        } else if let Some(grpc) = &probe.grpc {
            let (host, port) = place(target, None, &IntOrString::Int(grpc.port))?;
            let host: IpAddr = host.parse().map_err(|_| format!("{host} is not an address"))?;
            let service = grpc.service.as_deref().unwrap_or_default();
            super::grpc::check(SocketAddr::new(host, port), service).await.map(|()| None)
        } else if let Some(tcp) = &probe.tcp_socket {
            let to = place(target, tcp.host.as_deref(), &tcp.port)?;
            TcpStream::connect(to).await.map(|_connected| None).map_err(|error| error.to_string())
        } else {
            Err("the probe names nothing to do".to_owned())
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(outcome) => Ok(outcome?),
        Err(_elapsed) => Err(format!("no answer within {} s", timeout.as_secs()).into()),
    }
}

/// What a command says of its container.
fn executed(ran: Result<ExecOutput, ExecError>) -> Result<(), AttemptError> {
    match ran {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => Err(format!("exit code {}: {}", output.exit_code, output.output).into()),
        Err(error @ ExecError::TimedOut(_)) => Err(error.to_string().into()),
        Err(error @ ExecError::Runtime(_)) => Err(AttemptError::Unknown(chain(&error))),
    }
}

/// Where to connect to: the pod's first address, unless the probe names a host, which may be a name.
fn place(
    target: &ProbeTarget,
    host: Option<&str>,
    port: &IntOrString,
) -> Result<(String, u16), String> {
    let host = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None => target.address.ok_or("the pod has no address")?.to_string(),
    };
    let number = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => target.ports.get(name).copied().or(name.parse().ok()),
    };
    match number.filter(|&number| number != 0) {
        Some(number) => Ok((host, number)),
        None => Err(format!("{port:?} is not a port of the container")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::{api::core::v1::Probe, jiff::Timestamp};
    use serde_json::json;

    use super::{
        super::super::{pod::state::ProbeKind, runtime::RuntimeError},
        *,
    };

    fn target(port: u16) -> ProbeTarget {
        ProbeTarget {
            container: "c".into(),
            sandbox: "s".into(),
            kind: ProbeKind::Readiness,
            probe: Probe::default(),
            address: Some("127.0.0.1".parse().unwrap()),
            ports: BTreeMap::from([("http".to_owned(), port)]),
            started_at: Timestamp::now(),
        }
    }

    #[test]
    fn a_command_that_nobody_ran_says_nothing_of_its_container() {
        let ended = |exit_code| Ok(ExecOutput { exit_code, output: "said".into() });
        assert_eq!(executed(ended(0)), Ok(()));
        assert_eq!(executed(ended(1)), Err(AttemptError::Failed("exit code 1: said".into())));
        let late = executed(Err(ExecError::TimedOut(Duration::from_secs(2)))).unwrap_err();
        assert_eq!(late, AttemptError::Failed("the command took longer than 2 s".into()));
        let away = RuntimeError {
            operation: "executing in",
            object: "c".into(),
            source: "the container runtime cannot be reached".into(),
        };
        let unknown = executed(Err(away.into())).unwrap_err();
        let said = "executing in c: the container runtime cannot be reached";
        assert_eq!(unknown, AttemptError::Unknown(said.into()));
    }

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let target = target(8080);
        let number = |port: serde_json::Value| {
            let port = serde_json::from_value(port).unwrap();
            place(&target, None, &port).map(|(_, port)| port)
        };
        assert_eq!(number(json!(81)), Ok(81));
        assert_eq!(number(json!("http")), Ok(8080));
        assert!(number(json!("none")).is_err());
        assert!(number(json!(0)).is_err());
        assert!(number(json!(70000)).is_err());
        let port = IntOrString::Int(81);
        assert_eq!(place(&target, Some("::1"), &port), Ok(("::1".to_owned(), 81)));
        assert_eq!(place(&target, Some("web"), &port), Ok(("web".to_owned(), 81)));
    }
}
