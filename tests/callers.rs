//! Who may call, what stands beside the service on its port, and what the gRPC layer answers by itself.

mod common;

use std::sync::{Arc, Mutex};

use common::{PATIENCE, SECRET, TestServer, channel, config, eventually, push};
use futures_util::{StreamExt, stream};
use plex::{
    Server,
    config::{ControlSecret, Secret},
    proto::{self, gateway_client::GatewayClient},
};
use prost::{Message as _, bytes::Buf};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    metadata::MetadataValue,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// What GetInfo answers to a call with this `authorization`.
async fn called_with(server: &TestServer, authorization: Option<&str>) -> Result<(), Status> {
    let mut request = Request::new(proto::GetInfoRequest {});
    if let Some(value) = authorization {
        let value = MetadataValue::try_from(value.as_bytes()).expect("a header's value");
        request.metadata_mut().insert("authorization", value);
    }
    GatewayClient::new(server.bare_channel().await).get_info(request).await.map(drop)
}

#[tokio::test]
async fn every_call_needs_a_secret() {
    let server = TestServer::start().await;
    let mut bare = GatewayClient::new(server.bare_channel().await);
    let uids = vec!["alice".to_owned()];
    let statuses = [
        bare.push(push("alice", "/x", "")).await.unwrap_err(),
        bare.push_stream(stream::pending::<proto::PushStreamRequest>()).await.unwrap_err(),
        bare.push_many(proto::PushManyRequest { uids: uids.clone(), uri: "/x".into(), body: "".into() })
            .await
            .unwrap_err(),
        bare.broadcast(proto::BroadcastRequest { uri: "/x".into(), body: "".into() }).await.unwrap_err(),
        bare.is_online(proto::IsOnlineRequest { uids }).await.unwrap_err(),
        bare.online_status(proto::OnlineStatusRequest::default()).await.unwrap_err(),
        bare.get_host(proto::GetHostRequest::default()).await.unwrap_err(),
        bare.get_info(proto::GetInfoRequest {}).await.unwrap_err(),
        bare.disconnect(proto::DisconnectRequest::default()).await.unwrap_err(),
        bare.list_sessions(proto::ListSessionsRequest::default()).await.unwrap_err(),
    ];
    for status in &statuses {
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    assert_eq!(server.metric(r#"plex_control_unauthorized_total{reason="missing"}"#).await, statuses.len() as u64);
}

#[tokio::test]
async fn only_a_whole_bearer_secret_counts() {
    let server = TestServer::start().await;
    let right = format!("Bearer {SECRET}");
    called_with(&server, Some(&right)).await.unwrap();
    // The scheme's case says nothing (RFC 9110).
    called_with(&server, Some(&format!("bearer {SECRET}"))).await.unwrap();
    let (shorter, longer) = (&right[..right.len() - 1], format!("{right}x"));
    let basic = format!("Basic {SECRET}");
    for wrong in ["", "Bearer", "Bearer ", SECRET, shorter, &longer, &basic, &right.to_uppercase(), "Bearer é"] {
        let status = called_with(&server, Some(wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}");
        assert!(!format!("{status:?}").contains(SECRET), "{status:?}");
    }
    called_with(&server, None).await.unwrap_err();
}

#[tokio::test]
async fn each_of_several_secrets_counts() {
    let several = ["the-old-secret-of-all", "the-new-secret-of-all"];
    let server = TestServer::with(|config| {
        config.control.secrets = several
            .map(|secret| ControlSecret { name: secret[..7].to_owned(), ..Secret::new(secret).unwrap().into() })
            .into();
    })
    .await;
    for secret in several {
        called_with(&server, Some(&format!("Bearer {secret}"))).await.unwrap();
    }
    called_with(&server, Some(&format!("Bearer {SECRET}"))).await.unwrap_err();
}

#[tokio::test]
async fn without_a_configured_secret_one_is_made_up_and_kept() {
    use std::os::unix::fs::PermissionsExt;
    let (mut config, folder) = config();
    config.control.secrets = Vec::new();
    let mut made_up = Vec::new();
    for _ in 0..2 {
        let bound = Server::builder(config.clone()).build().unwrap().bind().await.unwrap();
        let (secret, address, stop) = (bound.secret().expose().to_owned(), bound.addresses().control, bound.stopper());
        let running = tokio::spawn(bound.run());
        common::backend(address, &secret).await.get_info(proto::GetInfoRequest {}).await.unwrap();
        let file = folder.path().join("control.secret");
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), secret);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        made_up.push(secret);
        stop.shutdown();
        running.await.unwrap();
    }
    assert_eq!(made_up[0], made_up[1]);
    assert!(made_up[0].len() >= 32, "it can't be guessed");
    let (mut other, _folder) = common::config();
    other.control.secrets = Vec::new();
    let bound = Server::builder(other).build().unwrap().bind().await.unwrap();
    assert_ne!(bound.secret().expose(), made_up[0]);
}

#[tokio::test]
async fn health_needs_no_secret_and_says_serving() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.bare_channel().await);
    for service in ["", "plex.v1.Gateway"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let unknown = health.check(HealthCheckRequest { service: "plex.v1.Nothing".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
}

/// What reflection answers, without a secret.
async fn reflect(server: &TestServer, request: MessageRequest) -> MessageResponse {
    let mut reflection = ServerReflectionClient::new(server.bare_channel().await);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let asked = stream::iter([request]);
    let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    let answer = timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test]
async fn reflection_lists_the_services_without_a_secret() {
    let server = TestServer::start().await;
    let MessageResponse::ListServicesResponse(list) =
        reflect(&server, MessageRequest::ListServices(String::new())).await
    else {
        panic!("a list");
    };
    let mut names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
    names.sort_unstable();
    for name in ["grpc.health.v1.Health", "plex.v1.Gateway"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[tokio::test]
async fn reflection_tells_every_message_of_a_call() {
    let server = TestServer::start().await;
    for symbol in ["plex.v1.Gateway", "plex.v1.Gateway.Push", "plex.v1.PushResponse", "plex.v1.OfflineReason"] {
        let MessageResponse::FileDescriptorResponse(files) =
            reflect(&server, MessageRequest::FileContainingSymbol(symbol.into())).await
        else {
            panic!("{symbol} is known");
        };
        let file = prost_types::FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
        assert_eq!(file.package(), "plex.v1");
        assert_eq!(file.service[0].method.len(), 11);
    }
    let file = MessageRequest::FileByFilename("google/protobuf/timestamp.proto".into());
    assert!(matches!(reflect(&server, file).await, MessageResponse::FileDescriptorResponse(_)));
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(out, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining()).to_vec()))
    }
}

async fn raw(server: &TestServer, path: &'static str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel(server.addresses.control).await);
    grpc.ready().await.unwrap();
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {SECRET}").parse().unwrap());
    let path = PathAndQuery::from_static(path);
    timeout(PATIENCE, grpc.unary(request, path, Raw)).await.unwrap().map(tonic::Response::into_inner)
}

#[tokio::test]
async fn bytes_that_are_no_protobuf_are_answered_with_internal() {
    let server = TestServer::start().await;
    for rubbish in [vec![0xff; 3], vec![0x0a, 0x7f, b'x'], vec![0x0a, 0x01, 0xff]] {
        let status = raw(&server, "/plex.v1.Gateway/Push", rubbish).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status}");
    }
    // A field of a newer client is ignored.
    let mut newer = push("nobody", "/x", "").encode_to_vec();
    newer.extend([0xf8, 0x07, 0x01]);
    let answer = raw(&server, "/plex.v1.Gateway/Push", newer).await.unwrap();
    assert_eq!(proto::PushResponse::decode(&*answer).unwrap().status(), proto::PushStatus::Offline);
    let unknown = raw(&server, "/plex.v1.Gateway/Later", Vec::new()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented, "{unknown}");
}

#[tokio::test]
async fn a_message_over_4_mib_is_out_of_range() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let fits = (4 << 20) - 100;
    let status = backend.push(push("alice", "/x", &"x".repeat(fits))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let status = backend.push(push("alice", "/x", &"x".repeat((4 << 20) + 1))).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    // The connection serves on.
    backend.get_info(proto::GetInfoRequest {}).await.unwrap();
}

#[tokio::test]
async fn more_calls_than_max_streams_wait_for_their_turn() {
    let server = TestServer::with(|config| config.control.max_streams = 2).await;
    let mut backend = server.backend().await;
    let first = backend.online_status(proto::OnlineStatusRequest::default()).await.unwrap();
    let second = backend.online_status(proto::OnlineStatusRequest::default()).await.unwrap();
    let mut waits = backend.clone();
    let third = tokio::spawn(async move { waits.get_info(proto::GetInfoRequest {}).await });
    // Another connection has its own count, and answers; by then the third could have been answered, too.
    for _ in 0..3 {
        server.backend().await.get_info(proto::GetInfoRequest {}).await.unwrap();
    }
    assert!(!third.is_finished());
    drop(first);
    timeout(PATIENCE, third).await.expect("its turn comes").unwrap().unwrap();
    drop(second);
}

#[tokio::test]
async fn after_its_age_a_connection_is_told_to_go_and_calls_go_on_over_a_new_one() {
    let age = std::time::Duration::from_millis(100);
    let server = TestServer::with(|config| config.control.max_connection_age = Some(age)).await;
    // A unary call under way runs to its end.
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let mut waits = backend.clone();
    let ended = Arc::new(Mutex::new(false));
    let told = Arc::clone(&ended);
    let waiting = tokio::spawn(async move {
        let request = common::call("alice", "/ask", "", std::time::Duration::from_secs(60));
        let result = waits.push(request).await;
        *told.lock().unwrap() = true;
        result.unwrap().into_inner()
    });
    let seq = device.next().await.seq;
    let mut watch =
        common::watch::Watch::open(&mut server.backend().await, proto::OnlineStatusRequest::default()).await;
    let (_, status) = watch.rest().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!*ended.lock().unwrap());
    // The channel connects anew by itself.
    eventually("a call over a new connection", || {
        let mut backend = backend.clone();
        async move { backend.get_info(proto::GetInfoRequest {}).await.ok() }
    })
    .await;
    device.ack(seq, "").await;
    assert_eq!(waiting.await.unwrap().status(), proto::PushStatus::Acked);
    backend.get_info(proto::GetInfoRequest {}).await.unwrap();
}

/// Streams of health and reflection, each of which has answered once.
async fn streams_beside(
    server: &TestServer,
) -> (tonic::Streaming<HealthCheckResponse>, tonic::Streaming<ServerReflectionResponse>) {
    let channel = server.bare_channel().await;
    let mut health =
        HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let requests = stream::iter([request]).chain(stream::pending());
    let mut reflection =
        ServerReflectionClient::new(channel).server_reflection_info(requests).await.unwrap().into_inner();
    reflection.message().await.unwrap().unwrap();
    (health, reflection)
}

/// The stream's end, which is told by the gateway and not by the end of its connection.
async fn expect_over<T: std::fmt::Debug>(stream: &mut tonic::Streaming<T>) {
    let status = timeout(PATIENCE, stream.message()).await.expect("it ends in time").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().starts_with("the gateway ends this stream"), "{status}");
}

#[tokio::test]
async fn streams_of_health_and_reflection_do_not_hold_up_the_end_of_the_drain() {
    let mut server = TestServer::start().await;
    let (mut health, mut reflection) = streams_beside(&server).await;
    let stopping = server.stopping();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    expect_over(&mut health).await;
    expect_over(&mut reflection).await;
    stopping.await;
}

#[tokio::test]
async fn streams_of_health_and_reflection_end_at_the_age_of_their_connection() {
    let age = std::time::Duration::from_millis(100);
    let server = TestServer::with(|config| config.control.max_connection_age = Some(age)).await;
    let (mut health, mut reflection) = streams_beside(&server).await;
    expect_over(&mut health).await;
    expect_over(&mut reflection).await;
}

/// A frame of HTTP/2.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn as_many_calls_as_may_be_open_can_be_cancelled_at_once_and_the_connection_serves_on() {
    let server = TestServer::start().await;
    let mut stream = TcpStream::connect(server.addresses.control).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(h2_frame(SETTINGS, 0, 0, &[]));
    let path = "/plex.v1.Gateway/Push";
    let literal = |name: u8, value: &str| [&[name, value.len() as u8], value.as_bytes()].concat();
    // POST over http, with `:authority` and `:path`.
    let head = [&[0x83, 0x86][..], &literal(0x01, "plex"), &literal(0x04, path)].concat();
    const CANCEL: [u8; 4] = 8u32.to_be_bytes();
    // All in one go: calls and their ends are read together.
    for number in 0..1_000 {
        let stream = 1 + 2 * number;
        bytes.extend(h2_frame(HEADERS, END_HEADERS, stream, &head));
        bytes.extend(h2_frame(RST_STREAM, 0, stream, &CANCEL));
    }
    bytes.extend(h2_frame(PING, 0, 0, b"alive???"));
    stream.write_all(&bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("an answer in time").expect("it is still open");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        assert_ne!(head[3], GOAWAY, "{}", String::from_utf8_lossy(&payload));
        if head[3] == PING && payload == b"alive???" {
            return;
        }
    }
}

/// What is needed of HTTP/2.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;
