//! A connection's transport: TCP with or without TLS, as one type that reads and writes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::unread::{LENT_BYTES, Unread};

/// A connected socket after its TLS handshake, if there is one.
pub(super) enum Stream {
    /// `listeners.tcp`
    Plain(TcpStream),
    /// `listeners.ssl`
    Tls(Box<TlsStream<ReadAhead>>),
}

/// The socket under TLS. rustls asks for 4 KiB at a time; all that is there is read from the socket at once instead.
pub(super) struct ReadAhead {
    socket: TcpStream,
    ahead: Unread,
}

impl ReadAhead {
    pub(super) fn new(socket: TcpStream) -> ReadAhead {
        ReadAhead { socket, ahead: Unread::default() }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ReadAhead { socket, ahead } = &mut *self;
        if ahead.is_empty() {
            let mut room = ReadBuf::new(ahead.room(LENT_BYTES));
            let polled = Pin::new(socket).poll_read(cx, &mut room);
            let n = room.filled().len();
            if polled.is_pending() {
                ahead.rest();
            }
            ready!(polled)?;
            ahead.filled(n);
        }
        let n = ahead.bytes().len().min(buf.remaining());
        buf.put_slice(ahead.bytes().get(..n).unwrap_or_default());
        ahead.use_up(n);
        ahead.rest();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Stream {
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_write_vectored(cx, pieces),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, pieces),
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
