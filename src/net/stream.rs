//! A connection's transport: TCP with or without TLS, as one type that reads and writes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// rustls asks for 4 KiB at a time; this many bytes are read from the socket at once instead.
const SOCKET_READ_BYTES: usize = 16 * 1024;

/// A connected socket after its TLS handshake, if there is one.
pub(super) enum Stream {
    /// `listeners.tcp`
    Plain(TcpStream),
    /// `listeners.ssl`
    Tls(Box<TlsStream<Buffered>>),
}

/// The socket under TLS.
pub(super) type Buffered = BufReader<TcpStream>;

pub(super) fn buffered(socket: TcpStream) -> Buffered {
    BufReader::with_capacity(SOCKET_READ_BYTES, socket)
}

impl Stream {
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, bytes),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, bytes),
        }
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}
