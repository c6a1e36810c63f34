//! What goes back to queues: acknowledgements, rejections, and all that a consumer, a channel or a
//! connection held when it ends.

use std::collections::VecDeque;

use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;
use crate::broker::queue::Entry;

use super::connection::{Session, Source};
use super::port::{Broker, Waiting};
use super::transaction::Fate;
use super::unacked::Unacked;

impl<B: Broker> Session<B> {
    /// Ends a consumer from this side; what was on its way goes back untouched.
    pub(super) fn cancel_source(&mut self, key: u32) {
        self.flush_settled();
        let Some(source) = self.sources.get_mut(key as usize) else { return };
        source.cancelled = true;
        let (queue, consumer, idle) = (source.queue.clone(), source.consumer, source.outstanding == 0);
        if let Some(consumer) = consumer {
            self.broker.cancel(&queue, consumer, key);
        }
        let (mine, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|w| matches!(w, Waiting::Delivery(k, _) | Waiting::Cancelled(k) if *k == key));
        self.waiting = others;
        let entries: Vec<_> = mine
            .into_iter()
            .filter_map(|w| match w {
                Waiting::Delivery(_, entry) => Some(entry),
                Waiting::Cancelled(_) => None,
            })
            .collect();
        if !entries.is_empty() {
            self.broker.requeue(&queue, consumer, entries);
        }
        if idle {
            self.sources.try_remove(key as usize);
        }
    }

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
        if self.channel(number)?.credit.is_limited() {
            self.flush_settled();
            self.resume_channel(number);
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
            self.give_back(taken);
        } else {
            self.give_away(taken);
        }
        if self.channel(number)?.credit.is_limited() {
            self.resume_channel(number);
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

    pub(super) fn recover(&mut self, number: u16, requeue: bool) -> Result<(), Fault> {
        if !requeue {
            return Err(Fault::new(ReplyCode::NotImplemented, "requeue=false"));
        }
        let taken = self.take_up_to(number, 0)?;
        self.give_back(taken);
        self.resume_channel(number);
        Ok(())
    }

    fn take_up_to(&mut self, number: u16, tag: u64) -> Result<Vec<Unacked<B::Durable>>, Fault> {
        self.channel(number)?.unacked.take_up_to(tag).ok_or_else(|| unknown_tag(tag))
    }

    fn settle_unacked(&mut self, unacked: Unacked<B::Durable>) {
        let key = unacked.source;
        self.credit_back(key, 1);
        self.settle_later(key, unacked.entry);
        self.less_outstanding(key, 1);
    }

    /// Gathers settled entries of one source; another source's come in a batch of their own.
    pub(super) fn settle_later(&mut self, key: u32, entry: Entry<B::Durable>) {
        if self.settled_source != key {
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

    /// Puts deliveries back into their queues, in order, as redelivered.
    pub(super) fn give_back(&mut self, taken: Vec<Unacked<B::Durable>>) {
        self.give_up(taken, |broker, source, entries| {
            let entries = entries.into_iter().map(returned).collect();
            broker.requeue(&source.queue, source.consumer, entries);
        });
    }

    /// Rejects deliveries for good.
    pub(super) fn give_away(&mut self, taken: Vec<Unacked<B::Durable>>) {
        self.give_up(taken, |broker, source, entries| {
            broker.reject(&source.queue, source.consumer, entries);
        });
    }

    /// Parts with deliveries, source by source, in order.
    fn give_up(
        &mut self,
        taken: Vec<Unacked<B::Durable>>,
        to: impl Fn(&mut B, &Source<B::Queue>, Vec<Entry<B::Durable>>),
    ) {
        self.flush_settled();
        let mut rest = taken.into_iter().peekable();
        while let Some(first) = rest.next() {
            let key = first.source;
            let mut entries = vec![first.entry];
            while let Some(next) = rest.next_if(|u| u.source == key) {
                entries.push(next.entry);
            }
            let count = entries.len();
            self.credit_back(key, count as u32);
            if let Some(source) = self.sources.get(key as usize) {
                to(&mut self.broker, source, entries);
            }
            self.less_outstanding(key, count);
            self.drop_idle(key as usize);
        }
    }

    pub(super) fn credit_back(&mut self, key: u32, count: u32) {
        let Some(source) = self.sources.get(key as usize) else { return };
        if let (Some(_), Some(Some(channel))) =
            (source.consumer, self.channels.get(usize::from(source.channel)))
        {
            channel.credit.give_back(count);
        }
    }

    pub(super) fn less_outstanding(&mut self, key: u32, count: usize) {
        if let Some(source) = self.sources.get_mut(key as usize) {
            source.outstanding = source.outstanding.saturating_sub(count);
        }
    }

    pub(super) fn drop_idle(&mut self, key: usize) {
        if self.sources.get(key).is_some_and(|s| s.cancelled && s.outstanding == 0) {
            self.sources.remove(key);
        }
    }

    /// Room came back to a channel's common limit, or to the outbox: its consumers may go on.
    pub(super) fn resume_channel(&mut self, number: u16) {
        self.resume_where(|source| source.channel == number);
    }

    /// The outbox has room again.
    pub fn resume_all(&mut self) {
        self.resume_where(|_| true);
    }

    fn resume_where(&mut self, wanted: impl Fn(&Source<B::Queue>) -> bool) {
        for (_, source) in &self.sources {
            if let (Some(consumer), false, true) = (source.consumer, source.cancelled, wanted(source)) {
                self.broker.resume(&source.queue, consumer);
            }
        }
    }
}

fn returned<D>(entry: Entry<D>) -> Entry<D> {
    Entry { redelivered: true, delivery_count: entry.delivery_count.saturating_add(1), ..entry }
}

fn unknown_tag(tag: u64) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format!("unknown delivery tag {tag}"))
}
