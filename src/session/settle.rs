//! What goes back to queues: acknowledgements, rejections, and all that a consumer, a channel or a
//! connection held when it ends.

use std::collections::HashMap;

use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;
use crate::broker::queue::{ConsumerId, Entry};

use super::connection::Session;
use super::port::{Broker, Share, Waiting};
use super::transaction::Fate;
use super::unacked::Unacked;

/// What comes back to one queue.
struct Back<D> {
    shares: Vec<Share>,
    entries: Vec<Entry<D>>,
}

/// What comes back, by queue.
type Returns<B> = HashMap<<B as Broker>::Queue, Back<<B as Broker>::Durable>>;

impl<D> Back<D> {
    fn push(&mut self, consumer: Option<ConsumerId>, entry: Entry<D>) {
        match self.shares.last_mut() {
            Some(last) if last.consumer == consumer => last.count += 1,
            Some(_) | None => self.shares.push(Share { consumer, count: 1 }),
        }
        self.entries.push(entry);
    }
}

impl<B: Broker> Session<B> {
    // ---- acknowledgements

    pub(super) fn ack(&mut self, number: u16, tag: u64, multiple: bool) -> Result<(), Fault> {
        let channel = self.channel(number)?;
        if channel.transaction.is_some() {
            return self.settle_at_commit(number, tag, multiple, Fate::Acknowledged);
        }
        if multiple {
            for unacked in self.take_up_to(number, tag)? {
                self.settle_unacked(unacked);
            }
        } else {
            let taken = channel.unacked.take(tag).ok_or_else(|| unknown_tag(tag))?;
            self.settle_unacked(taken);
        }
        Ok(())
    }

    pub(super) fn reject(
        &mut self,
        number: u16,
        tag: u64,
        multiple: bool,
        requeue: bool,
    ) -> Result<(), Fault> {
        if self.channel(number)?.transaction.is_some() {
            let fate = if requeue { Fate::Requeued } else { Fate::Rejected };
            return self.settle_at_commit(number, tag, multiple, fate);
        }
        let taken = self.take(number, tag, multiple)?;
        if requeue {
            self.give_back(&[], taken);
        } else {
            self.give_away(taken);
        }
        Ok(())
    }

    fn settle_at_commit(&mut self, number: u16, tag: u64, multiple: bool, fate: Fate) -> Result<(), Fault> {
        let taken = self.take(number, tag, multiple)?;
        if let Some(transaction) = &mut self.channel(number)?.transaction {
            transaction.settle(taken, fate);
        }
        Ok(())
    }

    fn take(&mut self, number: u16, tag: u64, multiple: bool) -> Result<Vec<Unacked<B::Durable>>, Fault> {
        match multiple {
            true => self.take_up_to(number, tag),
            false => Ok(vec![self.channel(number)?.unacked.take(tag).ok_or_else(|| unknown_tag(tag))?]),
        }
    }

    /// Rejects deliveries for good, source by source, in order.
    pub(super) fn give_away(&mut self, taken: Vec<Unacked<B::Durable>>) {
        self.flush_settled();
        let mut rest = taken.into_iter().peekable();
        while let Some(first) = rest.next() {
            let key = first.source;
            let mut entries = vec![first.entry];
            while let Some(next) = rest.next_if(|u| u.source == key) {
                entries.push(next.entry);
            }
            self.forget_deliveries(key, entries.len());
            if let Some(source) = self.sources.get(key as usize) {
                self.broker.reject(&source.queue, source.consumer, entries);
            }
            self.drop_idle(key as usize);
        }
    }

    /// So many deliveries of a source wait for nothing any more.
    pub(super) fn forget_deliveries(&mut self, key: u32, count: usize) {
        (0..count).for_each(|_| self.credit_back(key));
        if let Some(source) = self.sources.get_mut(key as usize) {
            source.outstanding = source.outstanding.saturating_sub(count);
        }
    }

    pub(super) fn recover(&mut self, number: u16, requeue: bool) -> Result<(), Fault> {
        if !requeue {
            return Err(Fault::new(ReplyCode::NotImplemented, "requeue=false"));
        }
        let taken = self.take_up_to(number, 0)?;
        self.give_back(&[], taken);
        Ok(())
    }

    fn take_up_to(&mut self, number: u16, tag: u64) -> Result<Vec<Unacked<B::Durable>>, Fault> {
        self.channel(number)?.unacked.take_up_to(tag).ok_or_else(|| unknown_tag(tag))
    }

    fn settle_unacked(&mut self, unacked: Unacked<B::Durable>) {
        let key = unacked.source;
        self.credit_back(key);
        self.settle_later(key, unacked.entry);
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        source.outstanding = source.outstanding.saturating_sub(1);
        if source.settles_in_order {
            self.flush_publishes();
            self.flush_settled();
        }
    }

    /// Gathers settled entries of one source; another source's come in a batch of their own.
    pub(super) fn settle_later(&mut self, key: u32, entry: Entry<B::Durable>) {
        if self.settled_source != key {
            // A reply is stored before the request that it answers is acknowledged.
            if !self.settled.is_empty() {
                self.flush_publishes();
            }
            self.flush_settled();
            self.settled_source = key;
        }
        self.settled.push(entry);
    }

    pub(super) fn flush_settled(&mut self) {
        if self.settled.is_empty() {
            return;
        }
        let key = self.settled_source as usize;
        if let Some(source) = self.sources.get(key) {
            self.broker.settle(&source.queue, source.consumer, &mut self.settled);
        }
        self.settled.clear();
        self.drop_idle(key);
    }

    // ---- endings

    /// Ends a consumer from this side; what was on its way goes back untouched.
    pub(super) fn cancel_consumer(&mut self, key: u32) {
        self.give_back(&[key], Vec::new());
    }

    /// Gives back what channels hold of queues: their consumers, what waits for these, and what they
    /// have not acknowledged; and forgets the publish that each was putting together.
    pub(super) fn release_channels(&mut self, numbers: impl IntoIterator<Item = u16>) {
        let (mut consumers, mut unacked) = (Vec::new(), Vec::new());
        for number in numbers {
            self.end_replies(number);
            let Ok(channel) = self.channel(number) else { continue };
            consumers.extend(channel.consumers.drain().map(|(_, key)| key));
            // A transaction that is not committed has not happened.
            let forgotten = channel.transaction.take().unwrap_or_default();
            channel.unacked.put_back(forgotten.into_unacked());
            unacked.extend(channel.unacked.take_up_to(0).unwrap_or_default());
            let dropped = channel.drop_content();
            self.assembled_bytes -= dropped;
        }
        self.give_back(&consumers, unacked);
    }

    /// Puts entries back into their queues: what is on its way to the `ending` consumers, untouched, and
    /// what was delivered, as redelivered. A queue gets all of it at once: nobody is handed the later
    /// ones while the earlier ones are still to come.
    pub(super) fn give_back(&mut self, ending: &[u32], unacked: Vec<Unacked<B::Durable>>) {
        self.flush_settled();
        let mut returns = Returns::<B>::new();
        for key in ending {
            self.end_consumer(*key, &mut returns);
        }
        if !ending.is_empty() {
            self.take_waiting_of_ended(&mut returns);
        }
        ending.iter().for_each(|key| self.drop_idle(*key as usize));
        for Unacked { source: key, entry, .. } in unacked {
            self.credit_back(key);
            let Some(source) = self.sources.get_mut(key as usize) else { continue };
            let counted = u32::from(self.broker.counts_deliveries(&source.queue));
            let delivery_count = entry.delivery_count.saturating_add(counted);
            let entry = Entry { redelivered: true, delivery_count, ..entry };
            back_to(&mut returns, &source.queue).push(source.consumer, entry);
            source.outstanding = source.outstanding.saturating_sub(1);
            self.drop_idle(key as usize);
        }
        for (queue, Back { shares, entries }) in returns {
            self.broker.requeue(&queue, &shares, entries);
        }
    }

    fn end_consumer(&mut self, key: u32, returns: &mut Returns<B>) {
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        let Some(consumer) = source.consumer else { return };
        source.cancelled = true;
        let mut undelivered = Vec::new();
        self.broker.cancel(&source.queue, consumer, key, &mut undelivered);
        if !undelivered.is_empty() {
            let back = back_to(returns, &source.queue);
            let count = undelivered.len();
            undelivered.into_iter().for_each(|entry| back.push(Some(consumer), entry));
            (0..count).for_each(|_| self.credit_back(key));
        }
    }

    /// What was taken from the outbox already and not yet encoded.
    fn take_waiting_of_ended(&mut self, returns: &mut Returns<B>) {
        for item in std::mem::take(&mut self.waiting) {
            let (Waiting::Delivery(key, _) | Waiting::Cancelled(key)) = &item else {
                self.waiting.push_back(item);
                continue;
            };
            let key = *key;
            match (self.sources.get(key as usize).filter(|source| source.cancelled), item) {
                (Some(source), Waiting::Delivery(_, entry)) => {
                    back_to(returns, &source.queue).push(source.consumer, entry);
                    self.credit_back(key);
                }
                (Some(_), Waiting::Cancelled(_) | Waiting::Reply(..)) => {}
                (None, item) => self.waiting.push_back(item),
            }
        }
    }

    /// One message less in the channel's common limit. Its consumers may go on, all at once and soon:
    /// doing it for each acknowledgement would be quadratic in a channel of many consumers.
    fn credit_back(&mut self, key: u32) {
        let Some(source) = self.sources.get(key as usize) else { return };
        if let (Some(_), false, Some(Some(channel))) =
            (source.consumer, source.no_ack, self.channels.get(usize::from(source.channel)))
        {
            channel.credit.give_back(1);
            self.resume_due |= channel.credit.is_limited();
        }
    }

    pub(super) fn drop_idle(&mut self, key: usize) {
        if self.sources.get(key).is_some_and(|s| s.cancelled && s.outstanding == 0) {
            self.sources.remove(key);
        }
    }

    // ---- going on

    pub(super) fn resume_if_due(&mut self) {
        if std::mem::take(&mut self.resume_due) {
            self.resume_all();
        }
    }

    /// The outbox, or a channel's common limit, has room again.
    pub fn resume_all(&mut self) {
        for (_, source) in &self.sources {
            if let (Some(consumer), false) = (source.consumer, source.cancelled) {
                self.broker.resume(&source.queue, consumer);
            }
        }
    }
}

fn back_to<'r, Q: Clone + Eq + std::hash::Hash, D>(
    returns: &'r mut HashMap<Q, Back<D>>,
    queue: &Q,
) -> &'r mut Back<D> {
    returns.entry(queue.clone()).or_insert_with(|| Back { shares: Vec::new(), entries: Vec::new() })
}

fn unknown_tag(tag: u64) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format!("unknown delivery tag {tag}"))
}
