//! tx: what a channel publishes and acknowledges waits for tx.commit, which hands all of it to the
//! broker at once, or for tx.rollback, which forgets it (AMQP 0-9-1 section 1.9).

use crate::amqp::frame;
use crate::amqp::method::Method;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;
use crate::limits::TRANSACTION_BYTES_MAX;

use super::channel::unexpected;
use super::connection::Session;
use super::port::{Broker, Outcome, Planned, Settled};
use super::unacked::Unacked;

/// What a transaction has gathered.
pub(super) struct Transaction<Q, D> {
    publishes: Vec<Planned<Q>>,
    publish_bytes: usize,
    settled: Vec<(Unacked<D>, Fate)>,
}

/// What becomes of a delivery at the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Acknowledged,
    Rejected,
    Requeued,
}

impl<Q, D> Default for Transaction<Q, D> {
    fn default() -> Self {
        Transaction { publishes: Vec::new(), publish_bytes: 0, settled: Vec::new() }
    }
}

impl<Q, D> Transaction<Q, D> {
    /// Deliveries that it would have settled, oldest first.
    pub fn into_unacked(self) -> Vec<Unacked<D>> {
        let mut unacked: Vec<_> = self.settled.into_iter().map(|(unacked, _)| unacked).collect();
        unacked.sort_unstable_by_key(|unacked| unacked.tag);
        unacked
    }

    pub fn settle(&mut self, unacked: impl IntoIterator<Item = Unacked<D>>, fate: Fate) {
        self.settled.extend(unacked.into_iter().map(|unacked| (unacked, fate)));
    }

    /// # Errors
    /// 506 when it has grown beyond [`TRANSACTION_BYTES_MAX`]; RabbitMQ would go on until memory ends.
    pub fn publish(&mut self, planned: Planned<Q>) -> Result<(), Fault> {
        // Ten million empty messages are large, too.
        self.publish_bytes += planned.publish.message.size_bytes() + size_of::<Planned<Q>>();
        if self.publish_bytes > TRANSACTION_BYTES_MAX {
            let text = format!("the transaction is larger than {TRANSACTION_BYTES_MAX} bytes");
            return Err(Fault::new(ReplyCode::ResourceError, text));
        }
        self.publishes.push(planned);
        Ok(())
    }
}

impl<B: Broker> Session<B> {
    pub(super) fn handle_tx_class(&mut self, number: u16, method: Method<'_>) -> Result<(), Fault> {
        let refuse = |text: &'static str| Err(Fault::new(ReplyCode::PreconditionFailed, text));
        let channel = self.channel(number)?;
        match method {
            Method::TxSelect {} if channel.confirms.is_some() => {
                return refuse("cannot switch from confirm to tx mode");
            }
            Method::TxSelect {} => {
                channel.transaction.get_or_insert_default();
                frame::write_method(&mut self.out.frames, number, &Method::TxSelectOk {});
            }
            Method::TxCommit {} | Method::TxRollback {} if channel.transaction.is_none() => {
                return refuse("channel is not transactional");
            }
            Method::TxCommit {} => self.commit(number)?,
            Method::TxRollback {} => {
                let forgotten = channel.transaction.replace(Transaction::default()).unwrap_or_default();
                // The deliveries stay unacknowledged; they are not delivered again by themselves.
                channel.unacked.put_back(forgotten.into_unacked());
                self.deadlines.look_again();
                frame::write_method(&mut self.out.frames, number, &Method::TxRollbackOk {});
            }
            _ => return Err(unexpected()),
        }
        Ok(())
    }

    fn commit(&mut self, number: u16) -> Result<(), Fault> {
        // While the transaction is whole: the channel closes, and gives back what it holds.
        if self.broker.has_failed() {
            return Err(Fault::store_failed());
        }
        let channel = self.channel(number)?;
        let gathered = channel.transaction.replace(Transaction::default()).unwrap_or_default();
        let mut acknowledged: Vec<Settled<B>> = Vec::new();
        let (mut rejected, mut requeued) = (Vec::new(), Vec::new());
        for (unacked, fate) in gathered.settled {
            match fate {
                Fate::Rejected => rejected.push(unacked),
                Fate::Requeued => requeued.push(unacked),
                Fate::Acknowledged => {
                    let key = unacked.source;
                    self.forget_deliveries(key, 1);
                    if let Some(source) = self.sources.get(key as usize) {
                        let (queue, consumer) = (source.queue.clone(), source.consumer);
                        acknowledged.push(Settled { queue, consumer, entry: unacked.entry });
                    }
                    self.drop_idle(key as usize);
                }
            }
        }
        let publishes = gathered.publishes.iter().map(|planned| &planned.publish);
        let mandatory: Vec<_> = publishes.map(|p| p.mandatory.then(|| p.message.clone())).collect();
        let (outcomes, barrier) = self.broker.commit(gathered.publishes, acknowledged)?;
        let is_whole = outcomes.iter().all(|outcome| *outcome != Outcome::Refused);
        for (message, outcome) in mandatory.into_iter().zip(outcomes) {
            self.handle_outcome(number, message, outcome);
        }
        self.give_away(rejected);
        self.give_back(&[], requeued);
        if !is_whole {
            // A queue was full, or is gone. Commit-ok would say that it has the message.
            return Err(Fault::new(ReplyCode::PreconditionFailed, "partial tx completion"));
        }
        self.reply_at(barrier, number, Some(&Method::TxCommitOk {}));
        Ok(())
    }
}
