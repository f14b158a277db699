//! Probes by the gRPC health checking protocol (`grpc.health.v1.Health/Check`).

use std::net::SocketAddr;

use http::uri::PathAndQuery;
use tonic::{client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// The answer of a server that serves.
const SERVING: i32 = 1;

/// The question.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    /// The service; all of the server where empty.
    #[prost(string, tag = "1")]
    service: String,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    /// `UNKNOWN`, `SERVING`, `NOT_SERVING` or `SERVICE_UNKNOWN`.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks once; `Err` says, for people, why that is no success.
pub(super) async fn check(address: SocketAddr, service: &str) -> Result<(), String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| error.to_string())?;
    let question = tonic::Request::new(Question { service: service.to_owned() });
    let path = PathAndQuery::from_static(METHOD);
    let answer = client.unary(question, path, ProstCodec::<Question, Answer>::default()).await;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    if answer.status == SERVING {
        return Ok(());
    }
    Err(format!("the service {service:?} answers with status {}", answer.status))
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes, BytesMut};
    use http_body_util::{BodyExt, StreamBody};
    use hyper::{
        Request, Response,
        body::{Frame, Incoming},
        service::service_fn,
    };
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use prost::Message;

    use super::*;

    /// A server whose service `up` serves, and whose `down` does not.
    async fn server() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(answer);
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    type Body = StreamBody<
        futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, std::convert::Infallible>>>,
    >;

    async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        assert_eq!(request.uri().path(), METHOD);
        let body = request.into_body().collect().await?.to_bytes();
        // One octet says that it is not compressed, four how long it is.
        let question = Question::decode(&body[5..]).unwrap();
        let status = if question.service == "up" { SERVING } else { 2 };
        let message = Answer { status }.encode_to_vec();
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap());
        frame.put_slice(&message);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames = vec![Ok(Frame::data(frame.freeze())), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
        let kind = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        Ok(response)
    }

    #[tokio::test]
    async fn only_a_service_that_serves_is_a_success() {
        let address = server().await;
        assert_eq!(check(address, "up").await, Ok(()));
        let down = check(address, "down").await.unwrap_err();
        assert_eq!(down, "the service \"down\" answers with status 2");
        assert!(check("127.0.0.1:1".parse().unwrap(), "up").await.is_err());
    }
}
