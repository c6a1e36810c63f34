//! Who exists and what leads where: queues, exchanges and bindings of one virtual host as an immutable
//! snapshot that is cheap to clone, change and swap. `route` reads it without a lock.
//!
//! Not here: messages, what a queue holds, permissions, the store. Generic over the queue's handle `Q`;
//! two handles are the same queue exactly when they are equal.
//!
//! Cost: a clone copies a few pointers, a change copies the path to what changed (logarithmic), a
//! route through the default, a direct or a fanout exchange to few queues allocates nothing.

use super::exchange::{
    Binding, BindingKey, Compiled, Destination, DestinationName, Exchange, ExchangeKind, ExchangeProperties,
    ordered,
};
use super::fault::Fault;
use super::hash::{Bucket, WeightError};
use super::headers::{Pattern, PatternError};
use super::id::RowId;
use super::name::{Name, ResourceKind};
use super::small_map::SmallMap;
use crate::amqp::field_table::Table;
use crate::amqp::reader::DecodeError;
use crate::amqp::reply_code::ReplyCode;
use foldhash::quality::RandomState;
use rpds::HashTrieMapSync;
use std::hash::Hash;
use std::sync::Arc;

type Map<K, V> = HashTrieMapSync<K, V, RandomState>;

/// The bindings that lead to one destination, by their source.
type Incoming<Q> = SmallMap<(Name, BindingKey), Arc<Binding<Q>>>;

/// The exchanges that every virtual host has; none is stored.
const PREDECLARED: [(&str, ExchangeKind); 7] = [
    ("", ExchangeKind::Direct),
    ("amq.direct", ExchangeKind::Direct),
    ("amq.fanout", ExchangeKind::Fanout),
    ("amq.headers", ExchangeKind::Headers),
    ("amq.match", ExchangeKind::Headers),
    ("amq.rabbitmq.trace", ExchangeKind::Topic),
    ("amq.topic", ExchangeKind::Topic),
];

/// A snapshot of one virtual host.
#[derive(Clone, Debug)]
pub struct Topology<Q: Clone + Eq + Hash> {
    queues: Map<Name, (Name, Q)>,
    exchanges: Map<Name, Arc<Exchange<Q>>>,
    /// Bindings by what they lead to, so that deleting that finds them.
    incoming: Map<DestinationName, Incoming<Q>>,
    version: u64,
}

/// A binding as a client asks for it, for exchange.bind and queue.bind alike.
#[derive(Clone, Debug)]
pub struct BindingRequest<'a> {
    /// The exchange to lead from.
    pub source: &'a [u8],
    /// What to lead to.
    pub destination: DestinationName,
    /// The key or the pattern.
    pub routing_key: &'a [u8],
    /// The arguments.
    pub arguments: Table<'a>,
}

/// Why a binding was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The default exchange's bindings are the queues themselves: 403.
    #[error("operation not permitted on the default exchange")]
    DefaultExchange,
    /// The source does not exist, or the destination does not: 404.
    #[error("no {0} of that name")]
    Missing(ResourceKind, Name),
    /// Arguments of a headers exchange that cannot be matched with: 406.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A key that is no weight, for a consistent hash exchange: 406.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The arguments are not a field table: 502.
    #[error("the binding's arguments cannot be read: {0}")]
    Undecodable(#[from] DecodeError),
}

impl BindError {
    /// What the client is answered.
    pub fn fault(&self, vhost: &str) -> Fault {
        match self {
            BindError::DefaultExchange => Fault::new(ReplyCode::AccessRefused, self.to_string()),
            BindError::Missing(ResourceKind::Queue, name) => Fault::no_queue(name, vhost),
            BindError::Missing(ResourceKind::Exchange, name) => Fault::no_exchange(name, vhost),
            BindError::Pattern(PatternError::Undecodable(_)) | BindError::Undecodable(_) => {
                Fault::new(ReplyCode::SyntaxError, self.to_string())
            }
            BindError::Pattern(_) | BindError::Weight(_) => {
                Fault::new(ReplyCode::PreconditionFailed, self.to_string())
            }
        }
    }
}

/// What bind did.
#[derive(Clone, Debug)]
pub enum Bound<Q> {
    /// It is there now, and is to be stored if it has a row.
    Added(Arc<Binding<Q>>),
    /// It was there; the client reads bind-ok all the same.
    AlreadyThere,
}

/// What unbind did; the client reads unbind-ok in each case.
#[derive(Clone, Debug)]
pub enum Unbound<Q: Clone> {
    /// It is gone, and with it perhaps exchanges that delete themselves.
    Removed(Removed<Q>),
    /// There was no such binding.
    NotFound,
}

/// All that one deletion took away; what has a row is to be deleted in the store as well.
#[derive(Clone, Debug)]
pub struct Removed<Q: Clone> {
    /// The queue, if it was one that was deleted.
    pub queue: Option<Q>,
    /// Exchanges: the deleted one first, then auto-delete exchanges that lost their last binding.
    pub exchanges: Vec<Arc<Exchange<Q>>>,
    /// Bindings that led from or to any of them.
    pub bindings: Vec<Arc<Binding<Q>>>,
}

/// A binding as it is listed, the default exchange's included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedBinding<'a> {
    /// The exchange that it leads from.
    pub source: &'a [u8],
    /// Whether it leads to a queue or an exchange.
    pub destination_kind: ResourceKind,
    /// What it leads to.
    pub destination: &'a [u8],
    /// The key or the pattern.
    pub routing_key: &'a [u8],
    /// The arguments, without their length.
    pub arguments: &'a [u8],
}

impl<Q: Clone + Eq + Hash> Default for Topology<Q> {
    fn default() -> Self {
        Topology::new()
    }
}

impl<Q: Clone + Eq + Hash> Topology<Q> {
    /// A virtual host with the predeclared exchanges and nothing else.
    pub fn new() -> Topology<Q> {
        let mut exchanges = Map::default();
        for (name, kind) in PREDECLARED {
            let internal = name == "amq.rabbitmq.trace";
            let arguments = Arc::from([]);
            let properties =
                ExchangeProperties { kind, durable: true, auto_delete: false, internal, arguments };
            let name = Name::from(name.as_bytes());
            exchanges.insert_mut(name.clone(), Arc::new(Exchange::new(name, properties, None)));
        }
        Topology { queues: Map::default(), exchanges, incoming: Map::default(), version: 0 }
    }

    /// Rises with every change: a route that was found under an equal version still holds.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The queue of that name.
    pub fn queue(&self, name: &[u8]) -> Option<&Q> {
        self.queues.get(name).map(|(_, queue)| queue)
    }

    /// All queues with their names, in no order.
    pub fn queues(&self) -> impl Iterator<Item = (&Name, &Q)> {
        self.queues.values().map(|(name, queue)| (name, queue))
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.size()
    }

    /// The exchange of that name.
    pub fn exchange(&self, name: &[u8]) -> Option<&Arc<Exchange<Q>>> {
        self.exchanges.get(name)
    }

    /// All exchanges, in no order.
    pub fn exchanges(&self) -> impl Iterator<Item = &Arc<Exchange<Q>>> {
        self.exchanges.values()
    }

    /// Adds a queue; gives it back and changes nothing when the name is taken.
    pub fn insert_queue(&mut self, name: Name, queue: Q) -> Result<(), Q> {
        if self.queues.contains_key(&name) {
            return Err(queue);
        }
        self.queues.insert_mut(name.clone(), (name, queue));
        self.version += 1;
        Ok(())
    }

    /// Removes a queue and all that led to it; `None` when there is no such queue.
    pub fn remove_queue(&mut self, name: &[u8]) -> Option<Removed<Q>> {
        let (name, queue) = self.queues.get(name)?.clone();
        self.queues.remove_mut(&name);
        self.version += 1;
        let mut removed = Removed { queue: Some(queue), exchanges: Vec::new(), bindings: Vec::new() };
        self.cut_incoming(DestinationName::Queue(name), &mut removed);
        Some(removed)
    }

    /// Adds an exchange; gives it back and changes nothing when the name is taken.
    pub fn insert_exchange(&mut self, exchange: Arc<Exchange<Q>>) -> Result<(), Arc<Exchange<Q>>> {
        if self.exchanges.contains_key(&exchange.name) {
            return Err(exchange);
        }
        self.exchanges.insert_mut(exchange.name.clone(), exchange);
        self.version += 1;
        Ok(())
    }

    /// Removes an exchange and all that led from it or to it; `None` when there is no such exchange.
    /// That it is not predeclared, and unused if that was asked for, is checked before.
    pub fn remove_exchange(&mut self, name: &[u8]) -> Option<Removed<Q>> {
        let name = self.exchanges.get(name)?.name.clone();
        let mut removed = Removed { queue: None, exchanges: Vec::new(), bindings: Vec::new() };
        self.version += 1;
        if let Some(gone) = self.take_exchange(&name, &mut removed) {
            self.cut_incoming(gone, &mut removed);
        }
        Some(removed)
    }

    /// Adds a binding unless there is an equal one. `row` is its place in the store, if both ends are
    /// durable; it is not used when the binding is already there.
    pub fn bind(&mut self, request: &BindingRequest<'_>, row: Option<RowId>) -> Result<Bound<Q>, BindError> {
        let name = request.destination.name();
        if request.source.is_empty() || name.is_empty() {
            return Err(BindError::DefaultExchange);
        }
        let missing = |kind, name: &[u8]| BindError::Missing(kind, Name::from(name));
        let source =
            self.exchange(request.source).ok_or_else(|| missing(ResourceKind::Exchange, request.source))?;
        let destination = match &request.destination {
            DestinationName::Queue(name) => self.queue(name).cloned().map(Destination::Queue),
            DestinationName::Exchange(name) => {
                self.exchange(name).map(|exchange| Destination::Exchange(exchange.name.clone()))
            }
        }
        .ok_or_else(|| missing(request.destination.kind(), name))?;
        let key = request.key()?;
        if source.binding(&key).is_some() {
            return Ok(Bound::AlreadyThere);
        }
        let compiled = match source.routes_as() {
            ExchangeKind::Headers => Compiled::Pattern(Pattern::compile(request.arguments)?),
            ExchangeKind::ConsistentHash => Compiled::Bucket(Bucket::of(&key)?),
            ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic => Compiled::Nothing,
            ExchangeKind::ModulusHash | ExchangeKind::Random => Compiled::Nothing,
            ExchangeKind::LocalRandom | ExchangeKind::RecentHistory => Compiled::Nothing,
            ExchangeKind::Delayed | ExchangeKind::Deduplication => Compiled::Nothing,
        };
        let source = source.name.clone();
        let binding = Arc::new(Binding { source: source.clone(), key, row, destination, compiled });
        if let Some(exchange) = self.exchanges.get_mut(&source) {
            Arc::make_mut(exchange).add(binding.clone());
        }
        let mut incoming = self.incoming.get(&binding.key.destination).cloned().unwrap_or_default();
        incoming.insert((source, binding.key.clone()), binding.clone());
        self.incoming.insert_mut(binding.key.destination.clone(), incoming);
        self.version += 1;
        Ok(Bound::Added(binding))
    }

    /// Removes a binding. That an end of it does not exist is no error, as in RabbitMQ.
    pub fn unbind(&mut self, request: &BindingRequest<'_>) -> Result<Unbound<Q>, BindError> {
        if request.source.is_empty() || request.destination.name().is_empty() {
            return Err(BindError::DefaultExchange);
        }
        let key = request.key()?;
        let Some(source) = self.exchange(request.source).filter(|source| source.binding(&key).is_some())
        else {
            return Ok(Unbound::NotFound);
        };
        let source = source.name.clone();
        let mut removed = Removed { queue: None, exchanges: Vec::new(), bindings: Vec::new() };
        self.version += 1;
        self.forget_incoming(&source, &key);
        if let Some(gone) = self.cut_binding(&source, &key, &mut removed) {
            self.cut_incoming(gone, &mut removed);
        }
        Ok(Unbound::Removed(removed))
    }

    /// All bindings in no order, with the one that each queue has from the default exchange.
    pub fn bindings(&self) -> impl Iterator<Item = ListedBinding<'_>> {
        let implicit = self.queues.keys().map(ListedBinding::implicit);
        implicit
            .chain(self.exchanges().flat_map(|exchange| exchange.bindings().map(|b| ListedBinding::of(b))))
    }

    /// The bindings that lead to a queue, that from the default exchange first; none without the queue.
    pub fn bindings_of_queue(&self, name: &[u8]) -> impl Iterator<Item = ListedBinding<'_>> {
        let entry = self.queues.get(name).map(|(name, _)| name);
        let destination = entry.map(|name| DestinationName::Queue(name.clone()));
        let incoming = destination.and_then(|destination| self.incoming.get(&destination));
        let explicit = incoming.into_iter().flat_map(|bindings| bindings.values());
        let implicit = entry.into_iter().map(ListedBinding::implicit);
        implicit.chain(explicit.map(|binding| ListedBinding::of(binding)))
    }

    /// Removes bindings that led to `gone`, and exchanges that delete themselves therefore. A list of
    /// what is left to do instead of recursion: clients choose how long a chain of exchanges is.
    fn cut_incoming(&mut self, gone: DestinationName, removed: &mut Removed<Q>) {
        let mut left = vec![gone];
        while let Some(gone) = left.pop() {
            let Some(bindings) = self.incoming.get(&gone).cloned() else { continue };
            self.incoming.remove_mut(&gone);
            for binding in bindings.values() {
                left.extend(self.cut_binding(&binding.source, &binding.key, removed));
            }
        }
    }

    /// Takes a binding out of its source. When that was an auto-delete exchange's last one, the
    /// exchange goes too, and its name is returned: what led to it is still to be cut.
    fn cut_binding(
        &mut self,
        source: &Name,
        key: &BindingKey,
        removed: &mut Removed<Q>,
    ) -> Option<DestinationName> {
        let exchange = Arc::make_mut(self.exchanges.get_mut(source)?);
        removed.bindings.push(exchange.take(key)?);
        let goes = exchange.properties.auto_delete && !exchange.is_used();
        goes.then(|| self.take_exchange(source, removed)).flatten()
    }

    /// Takes an exchange out with all that leads from it; what led to it is still to be cut.
    fn take_exchange(&mut self, name: &Name, removed: &mut Removed<Q>) -> Option<DestinationName> {
        let exchange = self.exchanges.get(name)?.clone();
        self.exchanges.remove_mut(name);
        for binding in exchange.bindings() {
            self.forget_incoming(&binding.source, &binding.key);
            removed.bindings.push(binding.clone());
        }
        let gone = DestinationName::Exchange(exchange.name.clone());
        removed.exchanges.push(exchange);
        Some(gone)
    }

    fn forget_incoming(&mut self, source: &Name, key: &BindingKey) {
        let Some(mut bindings) = self.incoming.get(&key.destination).cloned() else { return };
        bindings.remove(&(source.clone(), key.clone()));
        if bindings.is_empty() {
            self.incoming.remove_mut(&key.destination);
        } else {
            self.incoming.insert_mut(key.destination.clone(), bindings);
        }
    }
}

impl BindingRequest<'_> {
    fn key(&self) -> Result<BindingKey, DecodeError> {
        Ok(BindingKey {
            destination: self.destination.clone(),
            routing_key: Name::from(self.routing_key),
            arguments: ordered(self.arguments)?,
        })
    }
}

impl<'a> ListedBinding<'a> {
    fn implicit(queue: &'a Name) -> ListedBinding<'a> {
        let destination_kind = ResourceKind::Queue;
        ListedBinding {
            source: b"",
            destination_kind,
            destination: queue,
            routing_key: queue,
            arguments: b"",
        }
    }

    fn of<Q>(binding: &'a Binding<Q>) -> ListedBinding<'a> {
        ListedBinding {
            source: &binding.source,
            destination_kind: binding.key.destination.kind(),
            destination: binding.key.destination.name(),
            routing_key: &binding.key.routing_key,
            arguments: &binding.key.arguments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::{TableWriter, Value};
    use std::time::{Duration, Instant};

    fn name(text: &str) -> Name {
        Name::from(text.as_bytes())
    }

    fn exchange(text: &str, kind: ExchangeKind, auto_delete: bool) -> Arc<Exchange<u32>> {
        let arguments = Arc::from([]);
        let properties = ExchangeProperties { kind, durable: false, auto_delete, internal: false, arguments };
        Arc::new(Exchange::new(name(text), properties, None))
    }

    fn to_queue<'a>(source: &'a str, queue: &str, key: &'a str) -> BindingRequest<'a> {
        let destination = DestinationName::Queue(name(queue));
        let (source, routing_key) = (source.as_bytes(), key.as_bytes());
        BindingRequest { source, destination, routing_key, arguments: Table::default() }
    }

    fn to_exchange<'a>(source: &'a str, target: &str, key: &'a str) -> BindingRequest<'a> {
        BindingRequest { destination: DestinationName::Exchange(name(target)), ..to_queue(source, "", key) }
    }

    fn added(topology: &mut Topology<u32>, request: &BindingRequest<'_>, row: u64) {
        assert!(matches!(topology.bind(request, Some(RowId(row))), Ok(Bound::Added(_))));
    }

    fn rows(removed: &Removed<u32>) -> Vec<u64> {
        let mut rows: Vec<u64> = removed.bindings.iter().filter_map(|b| b.row).map(|row| row.0).collect();
        rows.sort();
        rows
    }

    fn exchange_names(removed: &Removed<u32>) -> Vec<Name> {
        removed.exchanges.iter().map(|exchange| exchange.name.clone()).collect()
    }

    /// Every binding is in its source and in `incoming`, and nothing else is in either.
    fn assert_consistent(topology: &Topology<u32>) {
        let forward = topology.exchanges().flat_map(|x| x.bindings()).count();
        let backward: usize = topology.incoming.values().map(SmallMap::len).sum();
        assert_eq!(forward, backward);
        for ((source, key), binding) in topology.incoming.values().flat_map(SmallMap::iter) {
            assert_eq!((&binding.source, &binding.key), (source, key));
            let held = topology.exchange(source).and_then(|exchange| exchange.binding(key));
            assert!(held.is_some_and(|held| Arc::ptr_eq(held, binding)));
        }
        assert!(topology.incoming.values().all(|bindings| !bindings.is_empty()));
    }

    #[test]
    fn begins_with_the_predeclared_exchanges() {
        let topology = Topology::<u32>::new();
        let mut found: Vec<(Vec<u8>, &str, bool)> = topology
            .exchanges()
            .map(|x| (x.name.to_vec(), x.properties.kind.as_str(), x.properties.internal))
            .collect();
        found.sort();
        let expected = [
            ("", "direct", false),
            ("amq.direct", "direct", false),
            ("amq.fanout", "fanout", false),
            ("amq.headers", "headers", false),
            ("amq.match", "headers", false),
            ("amq.rabbitmq.trace", "topic", true),
            ("amq.topic", "topic", false),
        ];
        assert_eq!(found, expected.map(|(name, kind, internal)| (name.as_bytes().to_vec(), kind, internal)));
        assert!(topology.exchanges().all(|x| x.properties.durable && x.row.is_none()));
    }

    #[test]
    fn a_taken_name_is_left_as_it_is() {
        let mut topology = Topology::new();
        assert_eq!(topology.insert_queue(name("q"), 1), Ok(()));
        assert_eq!(topology.insert_queue(name("q"), 2), Err(2));
        assert_eq!(topology.queue(b"q"), Some(&1));
        assert!(topology.insert_exchange(exchange("amq.topic", ExchangeKind::Direct, false)).is_err());
        assert_eq!(topology.exchange(b"amq.topic").unwrap().properties.kind, ExchangeKind::Topic);
        assert!(topology.remove_queue(b"nope").is_none() && topology.remove_exchange(b"nope").is_none());
    }

    #[test]
    fn bind_and_unbind_are_idempotent() {
        let mut topology = Topology::new();
        topology.insert_queue(name("q"), 1).unwrap();
        let request = to_queue("amq.direct", "q", "k");
        added(&mut topology, &request, 7);
        let version = topology.version();
        assert!(matches!(topology.bind(&request, Some(RowId(8))), Ok(Bound::AlreadyThere)));
        assert_eq!(topology.version(), version, "nothing has changed");
        match topology.unbind(&request).unwrap() {
            Unbound::Removed(removed) => assert_eq!(rows(&removed), [7]),
            Unbound::NotFound => panic!("it was bound"),
        }
        for missing in [&request, &to_queue("amq.direct", "nope", "k"), &to_queue("nope", "q", "k")] {
            assert!(matches!(topology.unbind(missing), Ok(Unbound::NotFound)));
        }
        assert_consistent(&topology);
    }

    #[test]
    fn arguments_tell_bindings_apart_and_their_order_does_not() {
        let mut topology = Topology::new();
        topology.insert_queue(name("q"), 1).unwrap();
        let tables = [
            TableWriter::new(),
            TableWriter::new().entry("a", Value::U8(1)).entry("b", Value::U8(2)),
            TableWriter::new().entry("b", Value::U8(2)).entry("a", Value::U8(1)),
        ];
        let plain = to_queue("amq.direct", "q", "k");
        let requests: Vec<BindingRequest<'_>> =
            tables.iter().map(|t| BindingRequest { arguments: t.as_table(), ..plain.clone() }).collect();
        added(&mut topology, &requests[0], 1);
        added(&mut topology, &requests[1], 2);
        assert!(matches!(topology.bind(&requests[2], None), Ok(Bound::AlreadyThere)));
        assert!(
            matches!(topology.unbind(&requests[2]), Ok(Unbound::Removed(removed)) if rows(&removed) == [2])
        );
        assert_eq!(topology.exchange(b"amq.direct").unwrap().bindings().count(), 1);
    }

    #[test]
    fn refuses_bindings_as_rabbitmq_does() {
        let mut topology = Topology::new();
        topology.insert_queue(name("q"), 1).unwrap();
        let unknown_match = TableWriter::new().entry("x-match", Value::LongStr(b"foo"));
        let invalid =
            BindingRequest { arguments: unknown_match.as_table(), ..to_queue("amq.match", "q", "") };
        let broken =
            BindingRequest { arguments: Table::from_raw(b"\x01aI\0"), ..to_queue("amq.match", "q", "") };
        for (request, expected) in [
            (to_queue("amq.direct", "nope", ""), "NOT_FOUND - no queue 'nope' in vhost '/'"),
            (to_queue("nope", "q", ""), "NOT_FOUND - no exchange 'nope' in vhost '/'"),
            (to_queue("nopex", "nope", ""), "NOT_FOUND - no exchange 'nopex' in vhost '/'"),
            (to_exchange("amq.direct", "nope", ""), "NOT_FOUND - no exchange 'nope' in vhost '/'"),
            (to_queue("", "q", "q"), "ACCESS_REFUSED - operation not permitted on the default exchange"),
            (
                to_exchange("amq.direct", "", ""),
                "ACCESS_REFUSED - operation not permitted on the default exchange",
            ),
            (
                invalid,
                "PRECONDITION_FAILED - Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x",
            ),
            (broken, "SYNTAX_ERROR - the binding's arguments cannot be read: it ends inside a field"),
        ] {
            let error = topology.bind(&request, None).unwrap_err();
            assert_eq!(error.fault("/").reply_text(), expected);
        }
        assert!(matches!(topology.unbind(&to_queue("", "q", "q")), Err(BindError::DefaultExchange)));
        assert_eq!(topology.version(), 1, "only the queue was added");
    }

    #[test]
    fn removing_a_queue_takes_its_bindings_and_exchanges_that_delete_themselves() {
        let mut topology = Topology::new();
        for (at, queue) in ["q", "other"].into_iter().enumerate() {
            topology.insert_queue(name(queue), at as u32).unwrap();
        }
        for (text, auto_delete) in [("temp", true), ("shared", true), ("kept", false), ("front", true)] {
            topology.insert_exchange(exchange(text, ExchangeKind::Topic, auto_delete)).unwrap();
        }
        added(&mut topology, &to_queue("temp", "q", "a"), 1);
        added(&mut topology, &to_queue("temp", "q", "b"), 2);
        added(&mut topology, &to_queue("shared", "q", "a"), 3);
        added(&mut topology, &to_queue("shared", "other", "a"), 4);
        added(&mut topology, &to_queue("kept", "q", "a"), 5);
        added(&mut topology, &to_exchange("front", "temp", "#"), 6);
        let before = topology.clone();
        let removed = topology.remove_queue(b"q").unwrap();
        assert_eq!(removed.queue, Some(0));
        assert_eq!(rows(&removed), [1, 2, 3, 5, 6]);
        assert_eq!(exchange_names(&removed), [name("temp"), name("front")]);
        assert!(topology.exchange(b"shared").is_some() && topology.exchange(b"kept").is_some());
        assert_consistent(&topology);
        assert!(before.exchange(b"temp").is_some_and(|temp| temp.bindings().count() == 2));
        assert_consistent(&before);
    }

    #[test]
    fn removing_an_exchange_takes_both_sides_of_it_and_loops_end() {
        let mut topology = Topology::new();
        topology.insert_queue(name("q"), 1).unwrap();
        for text in ["a", "b", "c"] {
            topology.insert_exchange(exchange(text, ExchangeKind::Fanout, text == "a")).unwrap();
        }
        added(&mut topology, &to_exchange("a", "b", ""), 1);
        added(&mut topology, &to_exchange("b", "b", ""), 2);
        added(&mut topology, &to_exchange("b", "a", ""), 3);
        added(&mut topology, &to_exchange("b", "c", ""), 4);
        added(&mut topology, &to_queue("b", "q", ""), 5);
        assert!(topology.exchange(b"b").unwrap().is_used() && !topology.exchange(b"c").unwrap().is_used());
        let removed = topology.remove_exchange(b"b").unwrap();
        assert_eq!(rows(&removed), [1, 2, 3, 4, 5]);
        assert_eq!(exchange_names(&removed), [name("b"), name("a")]);
        assert!(topology.queue(b"q").is_some() && topology.exchange(b"c").is_some());
        assert_consistent(&topology);
    }

    #[test]
    fn a_long_chain_of_exchanges_deletes_itself_without_recursion() {
        let mut topology = Topology::new();
        topology.insert_queue(name("q"), 1).unwrap();
        let link = |at: u32| format!("x{at}");
        for at in 0..20_000 {
            topology.insert_exchange(exchange(&link(at), ExchangeKind::Fanout, true)).unwrap();
            match at {
                0 => added(&mut topology, &to_queue("x0", "q", ""), 0),
                at => added(&mut topology, &to_exchange(&link(at), &link(at - 1), ""), at.into()),
            }
        }
        let removed = topology.remove_queue(b"q").unwrap();
        assert_eq!((removed.exchanges.len(), removed.bindings.len()), (20_000, 20_000));
        assert_eq!(topology.exchanges().count(), 7);
    }

    #[test]
    fn lists_bindings_with_those_of_the_default_exchange() {
        let mut topology = Topology::new();
        topology.insert_queue(name("q"), 1).unwrap();
        topology.insert_queue(name("r"), 2).unwrap();
        topology.insert_exchange(exchange("x", ExchangeKind::Topic, false)).unwrap();
        added(&mut topology, &to_queue("amq.topic", "q", "a.*"), 1);
        added(&mut topology, &to_exchange("amq.topic", "x", "#"), 2);
        let shown = |b: ListedBinding<'_>| {
            [b.source, b.destination_kind.to_string().as_bytes(), b.destination, b.routing_key]
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .join(" ")
        };
        let of_queue: Vec<String> = topology.bindings_of_queue(b"q").map(shown).collect();
        assert_eq!(of_queue, [" queue q q", "amq.topic queue q a.*"]);
        assert_eq!(topology.bindings_of_queue(b"nope").count(), 0);
        let mut all: Vec<String> = topology.bindings().map(shown).collect();
        all.sort();
        assert_eq!(all, [" queue q q", " queue r r", "amq.topic exchange x #", "amq.topic queue q a.*"]);
    }

    /// Copying what thousands of bindings share for each new one would make this quadratic: minutes.
    #[test]
    fn ten_thousand_declares_and_binds_on_fresh_clones_are_quick() {
        let start = Instant::now();
        for source in ["amq.topic", "amq.direct", "amq.fanout", "amq.headers"] {
            let mut topology = Topology::new();
            for at in 0..10_000 {
                let queue = format!("queue-{at}");
                let snapshot = topology.clone();
                topology.insert_queue(name(&queue), at).unwrap();
                added(&mut topology, &to_queue(source, &queue, &format!("kern.{at}.critical")), at.into());
                drop(snapshot);
            }
            for at in 0..10_000 {
                let snapshot = topology.clone();
                assert!(topology.remove_queue(format!("queue-{at}").as_bytes()).is_some());
                drop(snapshot);
            }
            assert_consistent(&topology);
        }
        let took = start.elapsed();
        println!("four times 10 000 declares, binds and deletes: {took:?}");
        assert!(took < Duration::from_secs(60));
    }
}
