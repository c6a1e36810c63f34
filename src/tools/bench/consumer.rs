//! One consuming connection: counts deliveries, takes the time each was under way, acknowledges in steps.

use std::sync::Arc;

use tokio::sync::watch;

use super::client;
use super::error::{Error, Result};
use super::histogram::Histogram;
use super::link::{Link, check_close, not_amqp};
use super::load::{BODY_BYTES_MIN, Load};
use super::producer::PACE;
use super::tally::Tally;
use crate::amqp::frame::Kind;
use crate::amqp::method::Method;
use crate::amqp::properties::ContentHeader;

/// A consumer that is connected, and has subscribed.
pub struct Consumer {
    link: Link,
    ack_every: u64,
    /// Whether the time under way means anything: what waited in a backlog on purpose says nothing.
    is_timed: bool,
    /// How far it may be ahead of the producers.
    lead: Option<u64>,
    /// The delivery tag of the last message that was whole, and of the last acknowledgement.
    tag: u64,
    acknowledged: u64,
    /// The message that is coming in: its tag, and bytes of its body that are missing.
    coming: u64,
    missing: u64,
    is_first_piece: bool,
    count: u64,
    last_us: u64,
    under_way: Histogram,
}

/// What a consumer has seen.
pub struct Consumed {
    /// Messages.
    pub count: u64,
    /// When the last one came, in microseconds from the start.
    pub last_us: u64,
    /// Time from publish to delivery, in microseconds.
    pub under_way: Histogram,
}

impl Consumer {
    /// Sets the prefetch, and subscribes to `queues`.
    pub async fn subscribe(mut link: Link, load: &Load, queues: &[&str]) -> Result<Consumer> {
        if load.ack_every > 0 {
            client::limit_prefetch(&mut link, load.prefetch).await?;
        }
        link.doing = "consuming";
        queues.iter().for_each(|queue| client::subscribe(&mut link, queue, load.ack_every == 0));
        while !link.is_drained() {
            link.turn().await?;
        }
        Ok(Consumer {
            link,
            ack_every: load.ack_every,
            is_timed: !load.backlog && load.depth == 0,
            lead: load.lead(),
            tag: 0,
            acknowledged: 0,
            coming: 0,
            missing: 0,
            is_first_piece: false,
            count: 0,
            last_us: 0,
            under_way: Histogram::default(),
        })
    }

    /// Consumes until it is told to stop; what is unacknowledged then is acknowledged.
    pub async fn run(mut self, tally: Arc<Tally>, mut stop: watch::Receiver<bool>) -> Result<Consumed> {
        loop {
            self.read(&tally)?;
            // Unread and unacknowledged, the next ones stay in the queue.
            let must_wait = self.lead.is_some_and(|lead| tally.delivered() > tally.published() + lead);
            tokio::select! {
                biased;
                () = tokio::time::sleep(PACE), if must_wait => {}
                turned = self.link.turn(), if !must_wait => turned?,
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if self.ack_every > 0 && self.tag > self.acknowledged {
            self.acknowledge();
        }
        client::close_channel(&mut self.link).await?;
        client::close(self.link).await;
        Ok(Consumed { count: self.count, last_us: self.last_us, under_way: self.under_way })
    }

    /// Takes all that came. What came in one piece came at one time.
    fn read(&mut self, tally: &Tally) -> Result<()> {
        let (before, now_us) = (self.count, tally.now_us());
        while let Some(frame) =
            self.link.inbox.next_frame().map_err(|problem| not_amqp(&self.link.address, problem))?
        {
            let bad = |problem: &str| not_amqp(&self.link.address, problem.to_owned());
            match frame.kind {
                Kind::Body => {
                    if self.is_first_piece && self.is_timed {
                        let sent_us = frame.payload.first_chunk::<BODY_BYTES_MIN>();
                        let sent_us = sent_us.ok_or_else(|| bad("a body that was not published"))?;
                        self.under_way.record(now_us.saturating_sub(u64::from_be_bytes(*sent_us)));
                    }
                    self.is_first_piece = false;
                    let size = frame.payload.len() as u64;
                    self.missing =
                        self.missing.checked_sub(size).ok_or_else(|| bad("a body that is too long"))?;
                    if self.missing == 0 {
                        self.count += 1;
                        self.tag = self.coming;
                    }
                }
                Kind::Header => {
                    let header = ContentHeader::decode(frame.payload).map_err(|e| bad(&e.to_string()))?;
                    self.missing = header.body_size;
                    self.is_first_piece = true;
                }
                Kind::Method => match Method::decode(frame.payload).map_err(|e| bad(&e.to_string()))? {
                    Method::BasicDeliver { delivery_tag, .. } => self.coming = delivery_tag,
                    Method::BasicCancel { .. } => {
                        return Err(Error::Cancelled { address: self.link.address.to_string() });
                    }
                    other => check_close(&other, &self.link.address, self.link.doing)?,
                },
                Kind::Heartbeat => {}
            }
            if self.ack_every > 0 && self.tag - self.acknowledged >= self.ack_every {
                self.acknowledge();
            }
        }
        if self.count > before {
            self.last_us = now_us;
            tally.add_delivered(self.count - before);
        }
        Ok(())
    }

    fn acknowledge(&mut self) {
        self.link.send(&Method::BasicAck { delivery_tag: self.tag, multiple: self.ack_every > 1 });
        self.acknowledged = self.tag;
    }
}
