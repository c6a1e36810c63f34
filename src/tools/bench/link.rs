//! One connection to a broker: bytes in and out in large pieces, frames in between. It is owned by one task, which reads
//! and writes in turn, so that neither a lock nor a second task stands between the traffic and the clock.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::{Error, Result};
use super::url::Target;
use crate::amqp::frame::{self, Frame, Kind};
use crate::amqp::method::Method;

/// The largest frame that is asked for; RabbitMQ's own default.
const FRAME_BYTES_MAX: u32 = 131_072;
/// Room for what is read at once.
const INBOX_BYTES: usize = 256 * 1024;
/// rustls asks for 4 KiB at a time; this much is read from the socket instead.
const SOCKET_READ_BYTES: usize = 64 * 1024;
/// The one channel of each connection.
pub const CHANNEL: u16 = 1;

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, bytes),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }
}

/// Bytes that came and are not read yet.
pub struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    frame_bytes_max: u32,
}

impl Inbox {
    fn new() -> Inbox {
        Inbox { bytes: vec![0; INBOX_BYTES], start: 0, end: 0, frame_bytes_max: FRAME_BYTES_MAX }
    }

    /// The next whole frame, if there is one; the error says what is wrong with the bytes.
    pub fn next_frame(&mut self) -> std::result::Result<Option<Frame<'_>>, String> {
        let parsed = frame::parse(&self.bytes[self.start..self.end], self.frame_bytes_max);
        match parsed.map_err(|error| error.to_string())? {
            Some((frame, used)) => {
                self.start += used;
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }

    /// Room to read into; a frame that is not whole yet always finds enough.
    fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < self.bytes.len() / 4 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }
}

/// An open connection.
pub struct Link {
    stream: Stream,
    /// What came.
    pub inbox: Inbox,
    /// What is to be sent; appended to freely, sent by [`Link::turn`].
    pub out: Vec<u8>,
    written: usize,
    must_flush: bool,
    /// `HOST:PORT`, for messages.
    pub address: Arc<str>,
    /// What the connection is used for at this time, for messages.
    pub doing: &'static str,
}

impl Link {
    /// Connects, over TLS if the URL says so; no AMQP yet.
    pub async fn connect(target: &Target, tls: &Arc<ClientConfig>) -> Result<Link> {
        let address = target.address();
        let unreachable = |source| Error::Unreachable { address: address.clone(), source };
        let socket = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let stream = if target.is_tls {
            let name = ServerName::try_from(target.host.clone())
                .map_err(|error| Error::NoTls { address: address.clone(), problem: error.to_string() })?;
            let socket = BufReader::with_capacity(SOCKET_READ_BYTES, socket);
            let shaken = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, socket).await;
            Stream::Tls(Box::new(shaken.map_err(|error| tls_fault(&address, &error))?))
        } else {
            Stream::Plain(socket)
        };
        Ok(Link {
            stream,
            inbox: Inbox::new(),
            out: Vec::new(),
            written: 0,
            must_flush: false,
            address: address.into(),
            doing: "connecting",
        })
    }

    /// The TLS version, as the specification writes it; `None` on plain TCP.
    pub fn tls_version(&self) -> Option<&'static str> {
        let Stream::Tls(stream) = &self.stream else { return None };
        match stream.get_ref().1.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => Some("TLS 1.2"),
            Some(rustls::ProtocolVersion::TLSv1_3) => Some("TLS 1.3"),
            _ => Some("TLS"),
        }
    }

    /// Agrees on the size of frames: the smaller one of ours and the server's; 0 is no limit of its own.
    pub fn agree_on_frame_size(&mut self, offered_bytes: u32) -> u32 {
        let offered = if offered_bytes == 0 { FRAME_BYTES_MAX } else { offered_bytes };
        self.inbox.frame_bytes_max = offered.min(FRAME_BYTES_MAX);
        self.inbox.frame_bytes_max
    }

    /// The largest frame, framing included.
    pub fn frame_bytes_max(&self) -> u32 {
        self.inbox.frame_bytes_max
    }

    /// How many bytes wait to be sent.
    pub fn backlog_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether everything has been handed to the system.
    pub fn is_drained(&self) -> bool {
        self.out.is_empty() && !self.must_flush
    }

    /// Sends and receives what is possible, and waits until something is. May be dropped at any time: nothing is lost.
    pub async fn turn(&mut self) -> Result<()> {
        let moved = poll_fn(|cx| self.poll_turn(cx)).await;
        moved.map_err(|error| self.lost(&error))
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut moved = false;
        while self.written < self.out.len() {
            match self.stream.poll_write(cx, &self.out[self.written..])? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(n) => {
                    self.written += n;
                    self.must_flush = true;
                    moved = true;
                }
                Poll::Pending => break,
            }
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            if self.must_flush && self.stream.poll_flush(cx)?.is_ready() {
                self.must_flush = false;
                moved = true;
            }
        }
        let mut buf = ReadBuf::new(self.inbox.room());
        if let Poll::Ready(()) = self.stream.poll_read(cx, &mut buf)? {
            let got = buf.filled().len();
            if got == 0 {
                return Poll::Ready(Err(io::Error::other("the broker closed it")));
            }
            self.inbox.end += got;
            moved = true;
        }
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Appends a method on the channel.
    pub fn send(&mut self, method: &Method<'_>) {
        frame::write_method(&mut self.out, CHANNEL, method);
    }

    /// Sends what is to be sent and reads on until a method is the wanted one; contents and other methods are passed
    /// over, a close is an error.
    pub async fn wait<T>(&mut self, mut pick: impl FnMut(&Method<'_>) -> Option<T>) -> Result<T> {
        loop {
            while let Some(frame) =
                self.inbox.next_frame().map_err(|problem| not_amqp(&self.address, problem))?
            {
                if frame.kind != Kind::Method {
                    continue;
                }
                let method = Method::decode(frame.payload)
                    .map_err(|error| not_amqp(&self.address, error.to_string()))?;
                if let Some(wanted) = pick(&method) {
                    return Ok(wanted);
                }
                check_close(&method, &self.address, self.doing)?;
            }
            self.turn().await?;
        }
    }

    /// Sends a method on the channel and waits for its answer, known by class and method.
    pub async fn call(&mut self, doing: &'static str, method: &Method<'_>, answer: (u16, u16)) -> Result<()> {
        self.doing = doing;
        self.send(method);
        self.wait(|method| (method.id() == answer).then_some(())).await
    }

    fn lost(&self, error: &io::Error) -> Error {
        Error::Lost { address: self.address.to_string(), doing: self.doing, problem: error.to_string() }
    }
}

/// A close of connection or channel as the error that it is.
pub fn check_close(method: &Method<'_>, address: &str, doing: &'static str) -> Result<()> {
    match *method {
        Method::ConnectionClose { reply_code, reply_text, .. }
        | Method::ChannelClose { reply_code, reply_text, .. } => Err(Error::Refused {
            address: address.to_owned(),
            doing,
            code: reply_code,
            text: String::from_utf8_lossy(reply_text).into_owned(),
        }),
        _ => Ok(()),
    }
}

/// Bytes that are no frame, or a frame that cannot be read.
pub fn not_amqp(address: &str, problem: String) -> Error {
    Error::NotAmqp { address: address.to_owned(), problem }
}

fn tls_fault(address: &str, error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (address, problem) = (address.to_owned(), error.to_string());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Error::Untrusted { address, problem },
        _ => Error::NoTls { address, problem },
    }
}
