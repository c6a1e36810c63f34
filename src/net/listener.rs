//! Accepting connections: sockets, the TLS handshake with its deadline, and what the log says about
//! who came and why they went.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::engine::Engine;
use crate::session::{self, Peer};

use super::connection::{Connection, End};
use super::stream::{ReadAhead, Stream};
use super::tls::{LoginFrom, login_name};

/// What every connection of a listener has in common.
#[derive(Clone)]
pub struct Settings {
    /// what sessions are told
    pub session: session::Settings,
    /// from accept to connection.open
    pub handshake_timeout: Duration,
    /// from accept to the end of the TLS handshake
    pub tls_handshake_timeout: Duration,
    /// TCP_NODELAY (`tcp_listen_options.nodelay`)
    pub nodelay: bool,
    /// which part of a client certificate names the user
    pub login_from: LoginFrom,
}

/// A bound listener.
pub struct Listening {
    socket: TcpListener,
    /// where it listens; the port is the real one when 0 was asked for
    pub address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
}

impl Listening {
    /// Whether it speaks AMQPS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// How long to wait after accept failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds a listener; with `tls` it speaks AMQPS.
///
/// # Errors
/// The socket's error, for the caller to name the address and the key that asked for it.
pub fn bind(address: SocketAddr, backlog: u32, tls: Option<Arc<ServerConfig>>) -> io::Result<Listening> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let socket = socket.listen(backlog)?;
    let address = socket.local_addr()?;
    Ok(Listening { socket, address, tls })
}

/// Serves until the engine stops, then until the last connection has said goodbye. To be cancelled by
/// dropping; connections then end without goodbye.
pub async fn serve(listening: Listening, engine: Arc<Engine>, settings: Settings, stop: Stop) {
    let mut connections = JoinSet::new();
    let mut stop = stop;
    let acceptor = listening.tls.map(TlsAcceptor::from);
    loop {
        tokio::select! {
            accepted = listening.socket.accept() => match accepted {
                Ok((socket, from)) => {
                    let (engine, settings, acceptor) = (engine.clone(), settings.clone(), acceptor.clone());
                    connections.spawn(async move { connect(socket, from, acceptor, engine, settings).await });
                }
                // EMFILE and friends: connections that end make room, so accepting goes on.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => log_panic(ended),
            _ = stop.changed() => break,
        }
    }
    drop(listening.socket);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// Changes once, when accepting is to end.
pub type Stop = tokio::sync::watch::Receiver<bool>;

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task has panicked; its queues got back what it held");
    }
}

async fn connect(
    socket: TcpStream,
    from: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    engine: Arc<Engine>,
    settings: Settings,
) {
    if let Err(error) = socket.set_nodelay(settings.nodelay) {
        tracing::debug!(%from, %error, "cannot set TCP_NODELAY");
    }
    let mut peer = Peer { is_loopback: from.ip().to_canonical().is_loopback(), certificate_name: None };
    let stream = match acceptor {
        None => Stream::Plain(socket),
        Some(acceptor) => {
            let handshake = timeout(settings.tls_handshake_timeout, acceptor.accept(ReadAhead::new(socket)));
            let stream = match handshake.await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::warn!(%from, reason = %tls_reason(&error), "TLS handshake failed");
                    return;
                }
                Err(_) => {
                    tracing::warn!(%from, "TLS handshake did not finish in time");
                    return;
                }
            };
            let certificates = stream.get_ref().1.peer_certificates();
            peer.certificate_name =
                certificates.and_then(|list| list.first()).and_then(|c| login_name(c, settings.login_from));
            Stream::Tls(Box::new(stream))
        }
    };
    let connection = Connection::new(stream, engine, settings.session, peer, settings.handshake_timeout);
    let (end, session) = connection.run().await;
    log_end(from, &end, &session);
}

/// What came instead of a TLS handshake, where it can be told; no bytes of the peer.
fn tls_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the peer closed the connection".to_owned(),
        io::ErrorKind::ConnectionReset => "the peer reset the connection".to_owned(),
        io::ErrorKind::InvalidData => {
            let text = error.to_string();
            if text.contains("InvalidContentType") || text.contains("corrupt message") {
                format!("no TLS from the peer ({text}); a client without TLS on the AMQPS port?")
            } else {
                text
            }
        }
        _ => error.to_string(),
    }
}

fn log_end<B: session::port::Broker>(from: SocketAddr, end: &End, session: &session::Session<B>) {
    let user = String::from_utf8_lossy(session.user());
    let name = session.client_name().unwrap_or_default();
    if let Some(what) = session.bad_header() {
        tracing::warn!(%from, what, "bad protocol header; answered with AMQP 0-9-1's");
        return;
    }
    match (end, session.close_reason()) {
        (_, Some(reason)) => tracing::warn!(%from, %user, name, reason, "connection closed by the broker"),
        (End::PeerGone, None) if session.is_closing() => {
            tracing::info!(%from, %user, name, "connection closed by the client");
        }
        (End::Closed, None) => tracing::info!(%from, %user, name, "connection closed by the client"),
        (End::PeerGone, None) => {
            tracing::warn!(%from, %user, name, "the client closed the TCP connection without AMQP's goodbye");
        }
        (End::MissedHeartbeats(seconds), None) => {
            tracing::warn!(%from, %user, name, timeout_seconds = seconds, "missed heartbeats from the client");
        }
        (End::HandshakeTimeout, None) => tracing::warn!(%from, "AMQP handshake did not finish in time"),
        (End::Io(error), None) => tracing::warn!(%from, %user, name, %error, "connection lost"),
    }
}
