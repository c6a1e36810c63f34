//! What the traffic of a run is: the same for every broker. Names of its queues, and how producers and consumers share
//! them.

use std::time::Duration;

use super::producer::Names;
use crate::amqp::field_table::{TableWriter, Value};

/// The smallest body: it begins with the time at which it was sent.
pub const BODY_BYTES_MIN: usize = 8;

/// The most messages that a queue which is held at a depth may have more or fewer.
const LEAD_MAX: u64 = 1000;

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
    /// Bindings of another exchange than the one that is published to.
    pub idle_bindings: usize,
    /// Bindings that match nothing, on the topic exchange that is published to; 0: the default exchange.
    pub bindings: usize,
    /// Routing keys that a topic exchange gets in turn; 0: each queue's name.
    pub keys: usize,
    /// Messages that are in the queues before, and stay as many.
    pub depth: u64,
    /// Whether CPU time is counted from rest to rest: nothing of what was before, and all that comes after.
    pub settles: bool,
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
        match (self.fanout, self.bindings, self.keys) {
            (true, ..) => Some("fanout"),
            (false, 0, 0) => None,
            (false, ..) => Some("topic"),
        }
    }

    /// All names of a run.
    pub fn names(&self, id: &str) -> Names {
        let prefix = &self.prefix;
        let queues = self.queue_names(id);
        let exchange = self.exchange_kind().map(|kind| format!("{prefix}.{id}.{kind}"));
        // Other bindings begin with the same words, so that they are in the way.
        let many = exchange.as_ref().filter(|_| self.keys > 0);
        let (keys, binding_keys) = match many {
            Some(exchange) => (
                (0..self.keys).map(|at| format!("{exchange}.other.{at}.q{}", at % self.queues)).collect(),
                (0..self.queues).map(|queue| format!("{exchange}.*.*.q{queue}")).collect(),
            ),
            // A fanout exchange looks at no key; elsewhere a queue goes by its name.
            None if self.fanout => (vec![String::new()], queues.clone()),
            None => (queues.clone(), queues.clone()),
        };
        let idle_queues = self.idle_queues.max(usize::from(self.idle_bindings > 0));
        Names {
            queues,
            exchange,
            keys,
            binding_keys,
            idle_queues: (0..idle_queues).map(|at| format!("{prefix}.{id}.idle.{at}")).collect(),
            idle_exchange: format!("{prefix}.{id}.idle"),
        }
    }

    /// The same traffic with nothing around it.
    pub fn alone(&self) -> Load {
        let (idle_connections, idle_queues, idle_bindings) = (0, 0, 0);
        Load {
            idle_connections,
            idle_queues,
            idle_bindings,
            bindings: 0,
            depth: 0,
            settles: false,
            ..self.clone()
        }
    }

    /// How far the producers may be ahead of the consumers, or these ahead of them, while the queues are held as deep
    /// as they are; `None` when they are not.
    pub fn lead(&self) -> Option<u64> {
        (self.depth > 0).then(|| (self.depth / 2).clamp(1, LEAD_MAX))
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
        let crowd = load.clone();
        let names = load.names("ab");
        assert_eq!(names.queues, ["mine.ab.0", "mine.ab.1"]);
        assert_eq!(names.exchange.as_deref(), Some("mine.ab.fanout"));
        let crowded = Load { fanout: false, bindings: 1, idle_queues: 1, ..load }.names("cd");
        assert_eq!(crowded.exchange.as_deref(), Some("mine.cd.topic"));
        assert_eq!(
            (crowded.idle_queues, &*crowded.idle_exchange),
            (vec!["mine.cd.idle.0".into()], "mine.cd.idle")
        );
        let keyed = Load { fanout: false, keys: 3, idle_queues: 0, idle_bindings: 9, ..crowd };
        let names = keyed.names("ef");
        let at = "mine.ef.topic";
        assert_eq!(names.binding_keys, [format!("{at}.*.*.q0"), format!("{at}.*.*.q1")]);
        assert_eq!(names.keys, ["0.q0", "1.q1", "2.q0"].map(|key| format!("{at}.other.{key}")));
        assert_eq!(names.idle_queues, ["mine.ef.idle.0"], "somebody must be bound");
    }

    #[test]
    fn a_queue_that_is_held_at_a_depth_neither_runs_empty_nor_doubles() {
        for (depth, lead) in [(0, None), (1, Some(1)), (10, Some(5)), (1_000_000, Some(1000))] {
            assert_eq!(Load { depth, ..load("") }.lead(), lead);
        }
    }

    #[test]
    fn sizes_are_told_in_whole_units_only() {
        assert_eq!(
            [100, 512, 1024, 1500, 65536].map(bytes_text),
            ["100 B", "512 B", "1 KiB", "1500 B", "64 KiB"]
        );
    }
}
