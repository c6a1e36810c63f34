//! What the traffic of a run is: the same for every broker. Names of its queues, and how producers and consumers share
//! them.

use std::time::Duration;

use super::producer::Names;
use crate::amqp::field_table::{TableWriter, Value};

/// The smallest body: it begins with the time at which it was sent.
pub const BODY_BYTES_MIN: usize = 8;

/// How much is published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many messages in all.
    Count(u64),
    /// As many as go in this time.
    Time(Duration),
}

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// What plots and tables call it.
    pub name: String,
    /// How much is published.
    pub amount: Amount,
    /// Connections that publish.
    pub producers: usize,
    /// Connections that consume; 0: nobody does.
    pub consumers: usize,
    /// Queues.
    pub queues: usize,
    /// Bytes in each body.
    pub body_bytes: usize,
    /// Whether messages have delivery_mode 2.
    pub persistent: bool,
    /// Whether the queues are durable.
    pub durable: bool,
    /// Unconfirmed publishes that each producer may have; 0: no confirms.
    pub confirms: usize,
    /// Unacknowledged deliveries that each consumer may have; 0: no limit.
    pub prefetch: u16,
    /// Deliveries that one acknowledgement is for; 0: none are acknowledged.
    pub ack_every: u64,
    /// Messages a second, over all producers; 0: as fast as it goes.
    pub rate: u64,
    /// Whether each message goes to each queue.
    pub fanout: bool,
    /// Connections beside those of the traffic, which do nothing.
    pub idle_connections: usize,
    /// Queues beside those of the traffic, each bound to another exchange.
    pub idle_queues: usize,
    /// Bindings that match nothing, on the topic exchange that is published to; 0: the default exchange.
    pub bindings: usize,
    /// Whether consumers start when everything is published.
    pub backlog: bool,
    /// Arguments of the queues.
    pub arguments: Vec<(String, Argument)>,
    /// How names of queues begin.
    pub prefix: String,
    /// After this the run is given up.
    pub timeout: Duration,
}

/// A queue's argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// `true` or `false`
    Bool(bool),
    /// a whole number
    Number(i64),
    /// anything else
    Text(String),
}

impl Argument {
    /// The type follows from how it is written; a number or word in quotes is text.
    pub fn parse(text: &str) -> Argument {
        let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        match (quoted, text) {
            (Some(inside), _) => Argument::Text(inside.to_owned()),
            (None, "true") => Argument::Bool(true),
            (None, "false") => Argument::Bool(false),
            (None, text) => text.parse().map_or_else(|_| Argument::Text(text.to_owned()), Argument::Number),
        }
    }
}

impl Load {
    /// Deliveries that are due for each message.
    pub fn copies(&self) -> u64 {
        if self.fanout { self.queues as u64 } else { 1 }
    }

    /// The queues' names in a run; `id` keeps runs, and other users of the broker, apart.
    fn queue_names(&self, id: &str) -> Vec<String> {
        (0..self.queues).map(|at| format!("{}.{id}.{at}", self.prefix)).collect()
    }

    /// The type of the exchange that is published to; none for the default exchange.
    pub fn exchange_kind(&self) -> Option<&'static str> {
        match (self.fanout, self.bindings) {
            (true, _) => Some("fanout"),
            (false, 1..) => Some("topic"),
            (false, 0) => None,
        }
    }

    /// All names of a run.
    pub fn names(&self, id: &str) -> Names {
        let prefix = &self.prefix;
        Names {
            queues: self.queue_names(id),
            exchange: self.exchange_kind().map(|kind| format!("{prefix}.{id}.{kind}")),
            idle_queues: (0..self.idle_queues).map(|at| format!("{prefix}.{id}.idle.{at}")).collect(),
            idle_exchange: format!("{prefix}.{id}.idle"),
        }
    }

    /// The queues that a consumer takes from: each queue has a consumer, and each consumer a queue.
    pub fn queues_of_consumer(&self, consumer: usize) -> impl Iterator<Item = usize> {
        let (consumers, queues) = (self.consumers, self.queues);
        (0..consumers.max(queues)).filter(move |at| at % consumers == consumer).map(move |at| at % queues)
    }

    /// The arguments for queue.declare.
    pub fn argument_table(&self) -> TableWriter {
        self.arguments.iter().fold(TableWriter::new(), |table, (name, argument)| {
            table.entry(
                name,
                match argument {
                    Argument::Bool(value) => Value::Bool(*value),
                    Argument::Number(value) => Value::I64(*value),
                    Argument::Text(value) => Value::LongStr(value.as_bytes()),
                },
            )
        })
    }
}

/// Bytes as people write them: `100 B`, `1 KiB`.
pub fn bytes_text(bytes: usize) -> String {
    match bytes {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::tests::load;
    use super::*;

    #[test]
    fn each_queue_has_a_consumer_and_each_consumer_a_queue() {
        for (consumers, queues) in [(1, 1), (4, 1), (1, 3), (3, 7), (7, 3)] {
            let load = Load { consumers, queues, ..load("") };
            let taken: Vec<Vec<usize>> =
                (0..consumers).map(|consumer| load.queues_of_consumer(consumer).collect()).collect();
            assert!(taken.iter().all(|of_one| !of_one.is_empty()), "{consumers} consumers, {queues} queues");
            assert!((0..queues).all(|queue| taken.concat().contains(&queue)), "{taken:?}");
            assert_eq!(taken.concat().len(), consumers.max(queues), "no subscription twice");
        }
    }

    #[test]
    fn an_arguments_type_follows_from_how_it_is_written() {
        assert_eq!(Argument::parse("true"), Argument::Bool(true));
        assert_eq!(Argument::parse("-5"), Argument::Number(-5));
        assert_eq!(Argument::parse("quorum"), Argument::Text("quorum".into()));
        assert_eq!(Argument::parse("\"5\""), Argument::Text("5".into()));
    }

    #[test]
    fn names_of_two_runs_differ_and_begin_as_asked() {
        let load = Load { prefix: "mine".into(), queues: 2, fanout: true, ..load("") };
        let names = load.names("ab");
        assert_eq!(names.queues, ["mine.ab.0", "mine.ab.1"]);
        assert_eq!(names.exchange.as_deref(), Some("mine.ab.fanout"));
        let crowded = Load { fanout: false, bindings: 1, idle_queues: 1, ..load }.names("cd");
        assert_eq!(crowded.exchange.as_deref(), Some("mine.cd.topic"));
        assert_eq!(
            (crowded.idle_queues, &*crowded.idle_exchange),
            (vec!["mine.cd.idle.0".into()], "mine.cd.idle")
        );
    }

    #[test]
    fn sizes_are_told_in_whole_units_only() {
        assert_eq!(
            [100, 512, 1024, 1500, 65536].map(bytes_text),
            ["100 B", "512 B", "1 KiB", "1500 B", "64 KiB"]
        );
    }
}
