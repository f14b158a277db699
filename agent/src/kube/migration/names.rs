//! The agent's side of [`super::core_dns`]: a label of its Node asks whether it answers names, and it
//! says so when it does, having asked itself.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{net::UdpSocket, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::NAMES_ANSWER;
use crate::{
    dns,
    kube::client::{Clients, limited},
    model::snapshot::Snapshot,
    status::{Board, State},
    supervisor::TaskError,
};

/// How often it is looked while names are not answered, and the pause after an answer that was not
/// taken.
const LOOK: Duration = Duration::from_secs(2);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Octets of an answer.
const ANSWER_MAX: usize = 4096;

/// What an agent answers to the label of its Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The number that the label has.
    pub asked: u64,
    /// Whether it answers names.
    pub answers: bool,
    /// Where, or why not.
    pub said: Vec<String>,
    /// The cluster DNS addresses at which it was asked and answered; older agents don't say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<IpAddr>,
}

/// Whom it asks.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node that this is.
    pub node_name: String,
    /// Where this agent's resolver answers the node's clients; none where the role is off.
    pub listeners: Vec<SocketAddr>,
    /// The cluster domain.
    pub domain: String,
}

/// Answers the label until cancelled.
pub async fn run(
    config: Config,
    servers: Clients,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let node = config.node_name.clone();
    let label =
        |snapshot: &Snapshot| snapshot.nodes.get(node.as_str()).and_then(|node| node.names_asked);
    let (mut told, mut failures) = (None, 0);
    loop {
        let asked = label(&snapshots.borrow_and_update());
        let mut again = false;
        if let Some(asked) = asked {
            let answer = answer(asked, &config, &board).await;
            again = !answer.answers;
            if told.as_ref() != Some(&answer) {
                match tell(&node, &servers, failures, &answer).await {
                    Ok(()) => (told, failures) = (Some(answer), 0),
                    Err(error) => {
                        failures += 1;
                        again = true;
                        servers.look_again().await;
                        tracing::warn!(%error, node, "say at the Node that names are answered");
                    }
                }
            }
        }
        let changed = async {
            if snapshots.wait_for(|snapshot| label(snapshot) != asked).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = changed => {}
            () = tokio::time::sleep(LOOK), if again => {}
        }
    }
}

async fn tell(
    node: &str,
    servers: &Clients,
    failures: usize,
    answer: &Answer,
) -> Result<(), kube::Error> {
    let text = serde_json::to_string(answer).map_err(kube::Error::SerdeError)?;
    let patch = Patch::Merge(json!({"metadata": {"annotations": {NAMES_ANSWER: text}}}));
    let api: Api<Node> = Api::all(servers.pick(failures).client);
    limited(api.patch(node, &PatchParams::default(), &patch)).await.map(drop)
}

async fn answer(asked: u64, config: &Config, board: &Board) -> Answer {
    match answered(config, board).await {
        Ok(()) => {
            let said = config.listeners.iter().map(|at| format!("{at} answers")).collect();
            let at = config.listeners.iter().map(SocketAddr::ip).collect();
            Answer { asked, answers: true, said, at }
        }
        Err(why) => Answer { asked, answers: false, said: vec![why], at: Vec::new() },
    }
}

/// Why names are not answered, where they are not: at each of the addresses.
async fn answered(config: &Config, board: &Board) -> Result<(), String> {
    if config.listeners.is_empty() {
        return Err("this agent answers no names (`dns: false`)".to_owned());
    }
    // Without its own listeners others would answer, CoreDNS among them.
    match board.parts().get(dns::PART) {
        Some(State::Ready) => {}
        Some(State::Waiting(why) | State::Degraded(why)) => return Err(format!("dns: {why}")),
        None => return Err("dns: it begins".to_owned()),
    }
    for at in &config.listeners {
        ask(*at, &config.domain).await.map_err(|why| format!("a question to {at}: {why}"))?;
    }
    Ok(())
}

/// Asks for the API's own Service, which every cluster has.
async fn ask(at: SocketAddr, domain: &str) -> Result<(), String> {
    let name = format!("kubernetes.default.svc.{}.", domain.trim_end_matches('.'));
    let name = Name::from_ascii(&name).map_err(|error| error.to_string())?;
    let mut question = Message::new(question_id(at), MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, RecordType::A));
    let question = question.to_vec().map_err(|error| error.to_string())?;
    let asked = async {
        let from: IpAddr = match at {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((from, 0)).await?;
        socket.connect(at).await?;
        socket.send(&question).await?;
        let mut answer = vec![0; ANSWER_MAX];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(PATIENCE, asked).await.map_err(|_| "no answer".to_owned())?;
    judge(&question, &answer.map_err(|error| error.to_string())?)
}

/// A number for a question, which is over before the next is asked.
fn question_id(at: SocketAddr) -> u16 {
    at.port() ^ 0x4d5a
}

/// Whether an answer is one to this question, and none of an error.
fn judge(question: &[u8], answer: &[u8]) -> Result<(), String> {
    match (question, answer) {
        ([a, b, ..], [c, d, flags, code, ..]) if (a, b) == (c, d) && flags & 0x80 != 0 => {
            match code & 0xf {
                0 => Ok(()),
                code => Err(format!("it is answered with the code {code}")),
            }
        }
        _ => Err("what came is no answer to it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver that gives these answers behind the question's number, one for each.
    async fn resolver(answers: Vec<[u8; 2]>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let mut question = [0; 512];
                let (length, from) = socket.recv_from(&mut question).await.unwrap();
                let name = b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\0\0\x01\0\x01";
                assert_eq!(&question[12..length], name);
                let mut said = question[..12].to_vec();
                said[2..4].copy_from_slice(&answer);
                socket.send_to(&said, from).await.unwrap();
            }
        });
        at
    }

    #[tokio::test]
    async fn an_agent_says_that_it_answers_when_it_has_been_asked() {
        let at = resolver(vec![[0x84, 0], [0x84, 2], [0x04, 0]]).await;
        let config = |listeners: Vec<SocketAddr>| Config {
            node_name: "n".to_owned(),
            listeners,
            domain: "cluster.local".to_owned(),
        };
        let board = Board::default();
        let none = answer(7, &config(Vec::new()), &board).await;
        assert!(!none.answers && none.said[0].contains("dns: false"), "{none:?}");
        let begins = answer(7, &config(vec![at]), &board).await;
        assert!(!begins.answers, "{begins:?}");
        board.report(dns::PART, State::Waiting("port 53 is taken".to_owned()));
        let waits = answer(7, &config(vec![at]), &board).await;
        assert!(!waits.answers && waits.said[0].contains("port 53 is taken"), "{waits:?}");
        board.report(dns::PART, State::Ready);
        let answers = answer(7, &config(vec![at]), &board).await;
        let said = vec![format!("{at} answers")];
        assert_eq!(answers, Answer { asked: 7, answers: true, said, at: vec![at.ip()] });
        for said in ["the code 2", "no answer to it"] {
            let fails = answer(7, &config(vec![at]), &board).await;
            assert!(!fails.answers && fails.said[0].contains(said), "{fails:?}");
        }
    }
}
