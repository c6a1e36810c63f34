//! Connections over real sockets: peers that are slow, silent or dead.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::connection::{Connection, End};
use super::stream::Stream;
use crate::amqp::field_table::Table;
use crate::amqp::frame::{self, PROTOCOL_HEADER};
use crate::amqp::method::Method;
use crate::broker::message::Message;
use crate::engine::{Engine, Permissions, UserSpec};
use crate::limits::OUTPUT_BYTES_HIGH;
use crate::session::port::{Broker, Mechanism, Publish, QueueSpec, RouteNumber};
use crate::session::{Identity, Peer, Settings};
use crate::store::{Mode, OpenOptions, Store};

/// Less than what is sent from where it is.
const MESSAGE_BYTES: usize = 3 * 1024;
const SOCKET_BYTES: u32 = 64 * 1024;

fn settings() -> Settings {
    Settings {
        identity: Identity { product: String::new(), version: String::new(), cluster_name: String::new() },
        mechanisms: vec![Mechanism::Plain],
        frame_size_bytes_max: 131_072,
        initial_frame_size_bytes_max: 8192,
        channel_max: 10,
        heartbeat_seconds: 60,
        message_bytes_max: 1024 * 1024,
        delivery_timeout_ms: 0,
    }
}

/// An engine with a user and `count` messages in the queue `q`.
fn engine(dir: &std::path::Path, count: usize) -> Arc<Engine> {
    let options = OpenOptions::new(dir, Mode::PlainInsecure, None);
    let (store, recovered) = Store::open(options).unwrap();
    let engine = Engine::start(store, recovered, "/").unwrap();
    let all = Permissions::all();
    let me = UserSpec { name: "me", password: b"secret", tags: &[], permissions: Some(&all) };
    engine.ensure_user(&me).unwrap();
    let (mut client, _) = engine.connect();
    client.open(b"me", b"/").unwrap();
    let arguments = Table::default();
    let spec = QueueSpec {
        name: b"q",
        server_named: false,
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        arguments,
    };
    client.declare_queue(&spec).unwrap();
    let message = Message::new(b"", b"q", &[0, 0], &[&[7; MESSAGE_BYTES]]);
    let publish = |_| Publish {
        channel: 1,
        route: RouteNumber(1),
        has_copies: false,
        mandatory: false,
        persistent: false,
        priority: 0,
        expiration_ms: None,
        message: message.clone(),
    };
    client.publish(&mut (0..count).map(publish).collect(), &mut Vec::new());
    engine
}

/// Everything up to basic.consume, in one piece.
fn opening(heartbeat: u16) -> Vec<u8> {
    let mut bytes = PROTOCOL_HEADER.to_vec();
    let nothing = Table::default();
    for (channel, method) in [
        (
            0,
            Method::ConnectionStartOk {
                client_properties: nothing,
                mechanism: b"PLAIN",
                response: b"\0me\0secret",
                locale: b"en_US",
            },
        ),
        (0, Method::ConnectionTuneOk { channel_max: 10, frame_max: 131_072, heartbeat }),
        (0, Method::ConnectionOpen { virtual_host: b"/", capabilities: b"", insist: false }),
        (1, Method::ChannelOpen { out_of_band: b"" }),
        (
            1,
            Method::BasicConsume {
                ticket: 0,
                queue: b"q",
                consumer_tag: b"t",
                no_local: false,
                no_ack: false,
                exclusive: false,
                no_wait: true,
                arguments: nothing,
            },
        ),
    ] {
        frame::write_method(&mut bytes, channel, &method);
    }
    bytes
}

/// A connection that is not run yet, and the client's end of it, which has sent its opening.
async fn connect(engine: &Arc<Engine>, heartbeat: u16) -> (Connection, TcpStream) {
    // Small buffers, so that the kernel does not take everything at once.
    let (here, there) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    here.set_send_buffer_size(SOCKET_BYTES).unwrap();
    there.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    here.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = here.listen(1).unwrap();
    let mut client = there.connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    client.write_all(&opening(heartbeat)).await.unwrap();
    let peer = Peer { is_loopback: true, certificate_name: None };
    let timeout = Duration::from_secs(20);
    (Connection::new(Stream::Plain(socket), engine.clone(), settings(), peer, timeout), client)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.unwrap() })
}

/// Its output never runs empty, so what was sent must not wait for that to be forgotten.
#[test]
fn a_consumer_that_is_always_behind_costs_no_more_than_one_output() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), 8000);
    run(async {
        let (mut connection, client) = connect(&engine, 0).await;
        let (mut read, mut most) = (0, 0);
        let mut chunk = vec![0; 32 * 1024];
        while read < 8000 * MESSAGE_BYTES {
            let ended = std::future::poll_fn(|cx| Poll::Ready(connection.poll(cx))).await;
            assert!(ended.is_pending());
            most = most.max(connection.output_bytes());
            match client.try_read(&mut chunk) {
                Ok(n) => read += n,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        assert!(most < 4 * OUTPUT_BYTES_HIGH, "{most}");
    });
}

/// Nobody else would wake it: there are no heartbeats.
#[test]
fn a_peer_that_never_answers_a_close_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), 0);
    run(async {
        let (connection, _client) = connect(&engine, 0).await;
        let running = tokio::spawn(connection.run());
        while engine.totals().consumers == 0 {
            tokio::task::yield_now().await;
        }
        engine.stop();
        let from = Instant::now();
        let (end, session) = running.await.unwrap();
        assert!(matches!(end, End::Closed), "{end:?}");
        // The handshake's deadline of 20 seconds must not be what ended it.
        assert!(from.elapsed() < Duration::from_secs(15));
        assert!(session.is_closing() && engine.totals().consumers == 0);
    });
}

#[test]
fn heartbeats_are_heard_behind_a_full_output_and_their_end_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), 8000);
    run(async {
        let (connection, mut client) = connect(&engine, 1).await;
        let mut running = tokio::spawn(connection.run());
        let mut heartbeat = Vec::new();
        frame::write_heartbeat(&mut heartbeat);
        let mut tick = tokio::time::interval(Duration::from_millis(400));
        // Twice as long as a silent peer is given; it reads nothing all the time.
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            tokio::select! {
                _ = tick.tick() => client.write_all(&heartbeat).await.unwrap(),
                ended = &mut running => panic!("{:?}", ended.unwrap().0),
            }
        }
        let (end, _) = running.await.unwrap();
        assert!(matches!(end, End::MissedHeartbeats(1)), "{end:?}");
        assert_eq!(engine.totals().consumers, 0);
        drop(client);
    });
}

/// The end is read together with what came before it.
#[test]
fn what_a_peer_sent_before_it_hung_up_is_handled() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), 0);
    run(async {
        let (connection, mut client) = connect(&engine, 0).await;
        let mut bytes = Vec::new();
        let publish = Method::BasicPublish {
            ticket: 0,
            exchange: b"",
            routing_key: b"q",
            mandatory: false,
            immediate: false,
        };
        for _ in 0..3 {
            frame::write_method(&mut bytes, 1, &publish);
            frame::write_content(&mut bytes, 1, &[0, 0], b"last words", 4096);
        }
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let (end, _) = connection.run().await;
        assert!(matches!(end, End::PeerGone), "{end:?}");
        assert_eq!(engine.totals().messages, 3);
    });
}

/// A stream that ends right behind close-ok looks like a lost connection to some clients.
#[test]
fn after_close_ok_the_client_hangs_up_first() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), 0);
    run(async {
        let (connection, mut client) = connect(&engine, 0).await;
        let mut running = tokio::spawn(connection.run());
        let mut bytes = Vec::new();
        let close = Method::ConnectionClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };
        frame::write_method(&mut bytes, 0, &close);
        client.write_all(&bytes).await.unwrap();
        let mut close_ok = Vec::new();
        frame::write_method(&mut close_ok, 0, &Method::ConnectionCloseOk {});
        let mut read = Vec::new();
        while !read.ends_with(&close_ok) {
            assert!(client.read_buf(&mut read).await.unwrap() > 0, "the stream ended before close-ok");
        }
        let mut byte = [0];
        tokio::select! {
            biased;
            n = client.read(&mut byte) => panic!("the stream ended first: {n:?}"),
            _ = &mut running => panic!("it did not wait"),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        drop(client);
        let (end, session) = running.await.unwrap();
        assert!(matches!(end, End::PeerGone) && session.is_closing(), "{end:?}");
    });
}
