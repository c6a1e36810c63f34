//! One task for one connection: read what is there, parse and apply all of it, encode what the outbox
//! holds, flush once. The session decides; this moves bytes, keeps time and waits.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::amqp::frame;
use crate::engine::{Client, Engine, Outbox};
use crate::limits::{FRAME_SIZE_BYTES_DEFAULT, OUTPUT_BYTES_HIGH};
use crate::session::port::LoginRefused;
use crate::session::{Peer, Session, Settings};

use super::stream::Stream;
use super::unread::Unread;

/// Why a connection ended; for the log.
#[derive(Debug)]
pub(super) enum End {
    /// a close method from either side was answered
    Closed,
    /// the peer closed the socket without connection.close
    PeerGone,
    /// nothing came for two heartbeat intervals
    MissedHeartbeats(u16),
    /// connection.open did not come in time
    HandshakeTimeout,
    /// the socket failed
    Io(io::Error),
}

/// Past this, whole frames that were read are handled before more is. The largest frame that is usual fits.
const READ_BYTES: usize = FRAME_SIZE_BYTES_DEFAULT as usize;
/// The first read's buffer; most handshake frames fit, and idle connections stay small.
const READ_BYTES_FIRST: usize = 4 * 1024;
/// How long a peer may take to answer connection.close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Old clients are told of a refused login by the end of the connection; RabbitMQ lets them wait, too.
const REFUSED_LOGIN_DELAY: Duration = Duration::from_secs(3);
/// Rounds of read, apply and write in one go, before other tasks get the thread.
const TURNS_MAX: usize = 8;

pub(super) struct Connection {
    stream: Stream,
    session: Session<Client>,
    engine: Arc<Engine>,
    outbox: Arc<Outbox>,
    input: Unread,
    /// how the input ended, behind bytes that are still to be handled
    input_end: Option<io::Result<usize>>,
    flush_due: bool,
    login: Option<JoinHandle<Result<(), LoginRefused>>>,
    clock: Clock,
    began: Instant,
    /// wakes us when deliveries may be late; with what it is set to, in milliseconds since `began`
    deadline: Option<(u64, Pin<Box<Sleep>>)>,
}

/// Deadlines: the handshake's first, then heartbeats, then the close's.
struct Clock {
    timer: Pin<Box<Sleep>>,
    phase: ClockPhase,
    received: bool,
    sent: bool,
    /// intervals in a row in which nothing came
    silent: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ClockPhase {
    Handshake,
    Heartbeat(Duration),
    Idle,
    Closing,
    Refused,
}

impl Connection {
    pub fn new(
        stream: Stream,
        engine: Arc<Engine>,
        settings: Settings,
        peer: Peer,
        handshake_timeout: Duration,
    ) -> Connection {
        let (client, outbox) = engine.connect();
        let timer = Box::pin(sleep_until(Instant::now() + handshake_timeout));
        Connection {
            stream,
            session: Session::new(client, settings, peer),
            engine,
            outbox,
            input: Unread::default(),
            input_end: None,
            flush_due: false,
            login: None,
            clock: Clock { timer, phase: ClockPhase::Handshake, received: false, sent: false, silent: 0 },
            began: Instant::now(),
            deadline: None,
        }
    }

    /// Runs until the connection is over; the session says what is left to say about it.
    pub async fn run(mut self) -> (End, Session<Client>) {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        // Queues get back what this connection holds before anything else is waited for.
        self.session.release_everything();
        if let End::Closed = end {
            let shutdown = std::future::poll_fn(|cx| self.stream.poll_shutdown(cx));
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, shutdown).await;
        }
        (end, self.session)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.outbox.register(cx.waker());
        for _ in 0..TURNS_MAX {
            self.work();
            self.poll_login(cx);
            // After the work: it may have opened the connection (heartbeats begin with that) or begun a close,
            // which has its deadline before we sleep.
            if let Poll::Ready(end) = self.poll_clock(cx) {
                return Poll::Ready(end);
            }
            let wrote = match self.poll_output(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(End::Io(error)),
                Poll::Pending => false,
            };
            if self.session.is_closed() && self.clock.phase != ClockPhase::Refused {
                return if wrote { Poll::Ready(End::Closed) } else { Poll::Pending };
            }
            match self.poll_input(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(End::PeerGone),
                Poll::Ready(Ok(_)) => {}
                // TLS without close_notify: most clients just close the socket.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(End::PeerGone);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(End::Io(error)),
                Poll::Pending if self.has_work(wrote) || self.poll_deadline(cx) => {}
                Poll::Pending => {
                    // The socket is not asked meanwhile, so somebody else must wake us.
                    if self.engine.is_congested() {
                        self.engine.wake_after_commit(cx.waker());
                    }
                    return Poll::Pending;
                }
            }
        }
        // Still busy: others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Applies what was read, and encodes what queues have assigned.
    fn work(&mut self) {
        if self.engine.is_stopping() {
            self.session.shut_down();
        }
        self.session.handle_alarm(self.engine.alarm());
        self.session.handle_kept();
        self.session.handle_clock(self.began.elapsed().as_millis() as u64);
        if !self.input.is_empty() && !self.session.is_paused() {
            let used = self.session.handle_bytes(self.input.bytes(), OUTPUT_BYTES_HIGH);
            self.input.use_up(used);
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        loop {
            if self.session.waiting().is_empty() && self.outbox.drain_into(self.session.waiting()) {
                self.session.resume_all();
            }
            if self.session.waiting().is_empty() || self.session.output().len() >= OUTPUT_BYTES_HIGH {
                return;
            }
            self.session.handle_deliveries(OUTPUT_BYTES_HIGH);
        }
    }

    #[cfg(test)]
    pub(super) fn output_bytes(&mut self) -> usize {
        self.session.output().held_bytes()
    }

    /// Whether another turn would find something to do without waiting for the socket.
    fn has_work(&mut self, wrote: bool) -> bool {
        let waiting = wrote && !self.session.waiting().is_empty();
        // Input that is there but not whole waits for the socket.
        let input = !self.session.is_paused() && self.may_continue() && self.has_whole_frame();
        waiting || input
    }

    /// Backpressure: too much waits for the committer, or for this socket.
    fn may_continue(&mut self) -> bool {
        !self.engine.is_congested() && self.session.output().len() < OUTPUT_BYTES_HIGH
    }

    /// Whether the socket is read. While the output is full it still is, up to one buffer: heartbeats of
    /// a slow peer are to be seen. Whole frames that are there are handled before more is read.
    fn may_read(&self) -> bool {
        let has_room = self.input.bytes().len() < self.input_bytes_max() || !self.has_whole_frame();
        !self.session.is_paused() && !self.engine.is_congested() && has_room
    }

    fn has_whole_frame(&self) -> bool {
        let rest = self.input.bytes();
        frame::size_bytes_of(rest).is_some_and(|size| rest.len() >= size)
    }

    fn input_bytes_max(&self) -> usize {
        if self.session.is_open() { READ_BYTES } else { READ_BYTES_FIRST }
    }

    /// Passwords are checked off the reactor: that takes milliseconds on purpose.
    fn poll_login(&mut self, cx: &mut Context<'_>) {
        if let Some(login) = self.session.take_login() {
            let engine = self.engine.clone();
            self.login = Some(tokio::task::spawn_blocking(move || engine.users().check(&login)));
        }
        let Some(login) = self.login.as_mut() else { return };
        if let Poll::Ready(outcome) = Pin::new(login).poll(cx) {
            self.login = None;
            // A check that panicked has proven nothing.
            self.session.handle_login(outcome.unwrap_or(Err(LoginRefused)));
            if self.session.is_closed() {
                self.clock.set(ClockPhase::Refused, REFUSED_LOGIN_DELAY);
            }
        }
    }

    /// Sends what there is; ready when nothing is left. A peer that is always a little behind never lets the output run
    /// empty: what it has got goes all the same.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let output = self.session.output();
        while !output.is_empty() {
            let written = self.stream.poll_write(cx, &output.pieces());
            let n = match written {
                Poll::Ready(n) => n?,
                Poll::Pending => {
                    output.forget_sent();
                    return Poll::Pending;
                }
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            output.advance(n);
            self.flush_due = true;
            self.clock.sent = true;
        }
        output.forget_sent();
        if self.flush_due {
            ready!(self.stream.poll_flush(cx))?;
            self.flush_due = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, up to one buffer: TLS gives it record by record, and who publishes one message in each is
    /// to be served in batches nevertheless. How many bytes came; pending as well while input must wait.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut came = 0;
        if self.may_read() {
            while self.input_end.is_none() && (came == 0 || self.input.bytes().len() < self.input_bytes_max())
            {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(n @ 1..)) => came += n,
                    Poll::Ready(end) => self.input_end = Some(end),
                    Poll::Pending => break,
                }
            }
            let is_handled = !self.has_whole_frame() || !self.may_continue();
            if came == 0
                && is_handled
                && let Some(end) = self.input_end.take()
            {
                return Poll::Ready(end);
            }
        }
        if came == 0 {
            self.input.rest();
            return Poll::Pending;
        }
        self.clock.received = true;
        Poll::Ready(Ok(came))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // The rest of a frame that has begun, if it is no larger than the session will take.
        let frame_max = self.session.frame_size_bytes_max() as usize + frame::OVERHEAD_BYTES;
        let frame = frame::size_bytes_of(self.input.bytes()).unwrap_or(0).min(frame_max);
        let mut buf = ReadBuf::new(self.input.room(frame.max(self.input_bytes_max())));
        ready!(self.stream.poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        self.input.filled(n);
        Poll::Ready(Ok(n))
    }

    /// Whether unacknowledged deliveries are to be looked at; if not yet, we are woken then.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at_ms) = self.session.deadline_ms() else { return false };
        let at = self.began + Duration::from_millis(at_ms);
        let (armed_ms, timer) = self.deadline.get_or_insert_with(|| (at_ms, Box::pin(sleep_until(at))));
        if *armed_ms != at_ms {
            *armed_ms = at_ms;
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.clock.follow(&self.session);
        loop {
            if self.clock.phase == ClockPhase::Idle {
                return Poll::Pending;
            }
            ready!(self.clock.timer.as_mut().poll(cx));
            match self.clock.phase {
                ClockPhase::Handshake => return Poll::Ready(End::HandshakeTimeout),
                ClockPhase::Closing | ClockPhase::Refused => return Poll::Ready(End::Closed),
                ClockPhase::Idle => return Poll::Pending,
                ClockPhase::Heartbeat(half) => {
                    let sent = std::mem::take(&mut self.clock.sent);
                    if !sent {
                        self.session.heartbeat();
                    }
                    let received = std::mem::take(&mut self.clock.received);
                    // Who is not read from cannot be heard. If that is because the output is full, taking
                    // some of it is a sign of life.
                    let held_back = self.session.is_paused() || self.engine.is_congested();
                    let excused = received || held_back || (sent && !self.may_read());
                    self.clock.silent = if excused { 0 } else { self.clock.silent + 1 };
                    // Four halves: AMQP 0-9-1 4.2.7 closes after two missed intervals.
                    if self.clock.silent >= 4 {
                        return Poll::Ready(End::MissedHeartbeats(self.session.heartbeat_seconds()));
                    }
                    self.clock.set(ClockPhase::Heartbeat(half), half);
                }
            }
        }
    }
}

impl Clock {
    fn set(&mut self, phase: ClockPhase, after: Duration) {
        self.phase = phase;
        self.timer.as_mut().reset(Instant::now() + after);
    }

    /// Moves on when the session has: opened, or closing.
    fn follow(&mut self, session: &Session<Client>) {
        match self.phase {
            ClockPhase::Handshake if session.is_open() => match session.heartbeat_seconds() {
                0 => self.phase = ClockPhase::Idle,
                seconds => {
                    let half = Duration::from_millis(u64::from(seconds) * 500);
                    self.set(ClockPhase::Heartbeat(half), half);
                }
            },
            // Even the last bytes may never be taken.
            ClockPhase::Handshake | ClockPhase::Heartbeat(_) | ClockPhase::Idle
                if session.is_closing() || session.is_closed() =>
            {
                self.set(ClockPhase::Closing, CLOSE_TIMEOUT);
            }
            _ => {}
        }
    }
}
