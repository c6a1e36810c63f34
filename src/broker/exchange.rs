//! One exchange: its kind, its bindings, and the index by which it finds what a key goes to. It knows
//! its own bindings only; who else exists, and what goes when something is deleted, is the topology's.

use super::dedup::ExchangeRules;
use super::delay;
use super::hash::{self, Bucket, HashOn};
use super::headers::{Headers, Pattern};
use super::id::RowId;
use super::name::{Name, ResourceKind};
use super::routing_keys::Routable;
use super::small_map::SmallMap;
use super::topic::{Left, Trie};
use crate::amqp::field_table::{Table, Value};
use crate::amqp::reader::DecodeError;
use foldhash::quality::RandomState;
use rpds::HashTrieMapSync;
use std::any::Any;
use std::sync::Arc;

/// How an exchange chooses where a message goes (AMQP 0-9-1 section 3.1.3, and RabbitMQ's plugins).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// Bindings whose key is the routing key.
    Direct,
    /// All bindings.
    Fanout,
    /// Bindings whose pattern matches the routing key.
    Topic,
    /// Bindings whose arguments match the message's headers.
    Headers,
    /// One binding, the same for equal keys; a binding's own key is its weight.
    ConsistentHash,
    /// One binding, by the hash of the key modulo the number of bindings.
    ModulusHash,
    /// One binding, drawn anew for each message.
    Random,
    /// The same, of classic queues on this node; with one node they all are.
    LocalRandom,
    /// All bindings; a new binding gets the latest messages too.
    RecentHistory,
    /// As the kind in its argument `x-delayed-type` says, once the message's delay is over (`delay`).
    Delayed,
    /// All bindings, once for each value of a header (`dedup`).
    Deduplication,
}

impl ExchangeKind {
    /// Each kind with its name on the wire.
    const NAMES: [(ExchangeKind, &'static str); 11] = [
        (ExchangeKind::Direct, "direct"),
        (ExchangeKind::Fanout, "fanout"),
        (ExchangeKind::Topic, "topic"),
        (ExchangeKind::Headers, "headers"),
        (ExchangeKind::ConsistentHash, "x-consistent-hash"),
        (ExchangeKind::ModulusHash, "x-modulus-hash"),
        (ExchangeKind::Random, "x-random"),
        (ExchangeKind::LocalRandom, "x-local-random"),
        (ExchangeKind::RecentHistory, "x-recent-history"),
        (ExchangeKind::Delayed, "x-delayed-message"),
        (ExchangeKind::Deduplication, "x-message-deduplication"),
    ];

    /// The kind that a client names in exchange.declare; `None` is 406 `unknown exchange type`.
    pub fn parse(name: &[u8]) -> Option<ExchangeKind> {
        Self::NAMES.iter().find(|(_, known)| known.as_bytes() == name).map(|(kind, _)| *kind)
    }

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// What a client declares an exchange to be; compared when it is declared again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeProperties {
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it goes with its last binding.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// The field table of the declaration, without its length.
    pub arguments: Arc<[u8]>,
}

/// The name of what a binding leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DestinationName {
    /// A queue.
    Queue(Name),
    /// Another exchange.
    Exchange(Name),
}

impl DestinationName {
    /// The name alone.
    pub fn name(&self) -> &Name {
        match self {
            DestinationName::Queue(name) | DestinationName::Exchange(name) => name,
        }
    }

    /// What it names.
    pub fn kind(&self) -> ResourceKind {
        match self {
            DestinationName::Queue(_) => ResourceKind::Queue,
            DestinationName::Exchange(_) => ResourceKind::Exchange,
        }
    }
}

/// What a binding leads to: the handle of a queue, or an exchange that is looked up when it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination<Q> {
    /// A queue.
    Queue(Q),
    /// Another exchange.
    Exchange(Name),
}

/// What makes a binding of an exchange different from its others. Arguments are ordered by name, so
/// that the order in which a client wrote them makes no difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BindingKey {
    /// What it leads to.
    pub destination: DestinationName,
    /// The key or the pattern.
    pub routing_key: Name,
    /// The field table, without its length, ordered by name.
    pub arguments: Arc<[u8]>,
}

/// A binding.
#[derive(Clone, Debug)]
pub struct Binding<Q> {
    /// The exchange that it leads from.
    pub source: Name,
    /// What it leads to, its key and its arguments.
    pub key: BindingKey,
    /// Its row in the store; `None` when it is not durable.
    pub row: Option<RowId>,
    pub(super) destination: Destination<Q>,
    pub(super) compiled: Compiled,
}

impl<Q> Binding<Q> {
    /// What it leads to.
    pub fn destination(&self) -> &Destination<Q> {
        &self.destination
    }
}

/// What an exchange that asks each of its bindings asks of this one.
#[derive(Clone, Debug)]
pub(super) enum Compiled {
    /// Nothing: the exchange finds it by its key, or only counts it.
    Nothing,
    /// Of a headers exchange.
    Pattern(Pattern),
    /// Of a consistent hash exchange.
    Bucket(Bucket),
}

/// What the engine keeps for an exchange, such as its latest messages; here it is only passed on.
pub type Keeper = Arc<dyn Any + Send + Sync>;

/// An exchange with its bindings; a clone shares them until one of the two changes.
#[derive(Clone, Debug)]
pub struct Exchange<Q: Clone> {
    /// Its name; the default exchange's is empty.
    pub name: Name,
    /// What it was declared to be.
    pub properties: ExchangeProperties,
    /// Its row in the store; `None` when it is not durable or predeclared.
    pub row: Option<RowId>,
    alternate: Option<Name>,
    routes_as: ExchangeKind,
    delay_queue: Option<Q>,
    keeper: Option<Keeper>,
    /// it drops duplicates; the same for as long as the exchange lives
    deduplication: Option<Arc<ExchangeRules>>,
    bindings: SmallMap<BindingKey, Arc<Binding<Q>>>,
    index: Index<Q>,
}

/// Destinations in the order of their names, each with the number of bindings that lead to it.
#[derive(Clone, Debug)]
pub(super) struct Targets<Q: Clone>(SmallMap<DestinationName, Target<Q>>);

#[derive(Clone, Debug)]
struct Target<Q> {
    destination: Destination<Q>,
    bindings: u32,
}

#[derive(Clone, Debug)]
enum Index<Q: Clone> {
    Direct(HashTrieMapSync<Name, Targets<Q>, RandomState>),
    Fanout(Targets<Q>),
    Topic(Trie<Targets<Q>>),
    /// Asks each binding for its pattern.
    Headers,
    /// Asks each binding for its score.
    ConsistentHash(HashOn),
    /// Counts the bindings and takes one.
    ModulusHash,
    /// The same.
    Random,
}

impl<Q: Clone> Exchange<Q> {
    /// An exchange without bindings.
    pub fn new(name: Name, properties: ExchangeProperties, row: Option<RowId>) -> Exchange<Q> {
        let alternate = match Table::from_raw(&properties.arguments).find(b"alternate-exchange") {
            Some(Value::LongStr(name)) => Some(Name::from(name)),
            _ => None,
        };
        let arguments = Table::from_raw(&properties.arguments);
        let routes_as = match properties.kind {
            // Whether it names one is checked before; what it cannot name routes nothing by surprise.
            ExchangeKind::Delayed => delay::inner_kind(arguments).unwrap_or(ExchangeKind::Direct),
            kind => kind,
        };
        // What it refuses was refused when it was declared.
        let deduplication = ExchangeRules::of(routes_as, arguments).ok().flatten().map(Arc::new);
        let index = match routes_as {
            ExchangeKind::Direct | ExchangeKind::Delayed => Index::Direct(HashTrieMapSync::default()),
            ExchangeKind::Fanout | ExchangeKind::RecentHistory | ExchangeKind::Deduplication => {
                Index::Fanout(Targets::default())
            }
            ExchangeKind::Topic => Index::Topic(Trie::default()),
            ExchangeKind::Headers => Index::Headers,
            ExchangeKind::ConsistentHash => Index::ConsistentHash(HashOn::of(arguments)),
            ExchangeKind::ModulusHash => Index::ModulusHash,
            ExchangeKind::Random | ExchangeKind::LocalRandom => Index::Random,
        };
        Exchange {
            name,
            properties,
            row,
            alternate,
            routes_as,
            delay_queue: None,
            keeper: None,
            deduplication,
            bindings: SmallMap::default(),
            index,
        }
    }

    /// The same with something that the engine keeps for it; whoever has a clone shares it.
    pub fn with_keeper(self, keeper: Keeper) -> Exchange<Q> {
        Exchange { keeper: Some(keeper), ..self }
    }

    /// What the engine keeps for it.
    pub fn keeper(&self) -> Option<&Keeper> {
        self.keeper.as_ref()
    }

    /// The same exchange with a queue for the messages that it delays.
    pub fn with_delay_queue(self, queue: Q) -> Exchange<Q> {
        Exchange { delay_queue: Some(queue), ..self }
    }

    /// Where messages wait that it delays. Nobody knows this queue by a name.
    pub fn delay_queue(&self) -> Option<&Q> {
        self.delay_queue.as_ref()
    }

    /// Its delay queue, if the message is to wait there.
    pub(super) fn delays(&self, message: &Routable<'_>) -> Option<&Q> {
        let queue = self.delay_queue.as_ref()?;
        delay::delay_ms(message.properties.headers).map(|_| queue)
    }

    /// How its bindings are matched: its kind, unless that only delays.
    pub fn routes_as(&self) -> ExchangeKind {
        self.routes_as
    }

    /// Whether it is the exchange without a name, which leads to each queue by the queue's own name.
    pub fn is_default(&self) -> bool {
        self.name.is_empty()
    }

    /// Where a message goes that none of its bindings takes: the argument `alternate-exchange`.
    pub fn alternate(&self) -> Option<&Name> {
        self.alternate.as_ref()
    }

    /// How it tells duplicates, if it does: those go on to its alternate exchange, or nowhere.
    pub fn deduplication(&self) -> Option<&Arc<ExchangeRules>> {
        self.deduplication.as_ref()
    }

    /// Whether it takes two messages with the same key the same way, and does nothing else with them.
    pub fn is_repeatable(&self) -> bool {
        let by_key = match &self.index {
            Index::Direct(_) | Index::Topic(_) | Index::ModulusHash => true,
            Index::Fanout(_) => self.routes_as != ExchangeKind::RecentHistory,
            Index::ConsistentHash(on) => *on == HashOn::RoutingKey,
            Index::Headers | Index::Random => false,
        };
        by_key && self.delay_queue.is_none() && self.deduplication.is_none()
    }

    /// Whether anything is bound to it; exchange.delete with if-unused refuses then.
    pub fn is_used(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Its bindings, ordered by destination, key and arguments.
    pub fn bindings(&self) -> impl Iterator<Item = &Arc<Binding<Q>>> {
        self.bindings.values()
    }

    pub(super) fn binding(&self, key: &BindingKey) -> Option<&Arc<Binding<Q>>> {
        self.bindings.find(key)
    }

    /// Adds a binding that it does not have yet.
    pub(super) fn add(&mut self, binding: Arc<Binding<Q>>) {
        let key = &binding.key;
        match &mut self.index {
            Index::Direct(keys) => {
                let mut targets = keys.get(&key.routing_key).cloned().unwrap_or_default();
                targets.add(&binding);
                keys.insert_mut(key.routing_key.clone(), targets);
            }
            Index::Fanout(targets) => targets.add(&binding),
            Index::Topic(trie) => trie.update(&key.routing_key, |targets| {
                targets.add(&binding);
                Left::Something
            }),
            Index::Headers | Index::ConsistentHash(_) | Index::ModulusHash | Index::Random => {}
        }
        self.bindings.insert(key.clone(), binding);
    }

    /// Takes a binding out, and returns it if it was there.
    pub(super) fn take(&mut self, key: &BindingKey) -> Option<Arc<Binding<Q>>> {
        let binding = self.bindings.remove(key)?;
        match &mut self.index {
            Index::Direct(keys) => {
                let mut targets = keys.get(&key.routing_key).cloned().unwrap_or_default();
                match targets.take(&key.destination) {
                    Left::Something => keys.insert_mut(key.routing_key.clone(), targets),
                    Left::Nothing => drop(keys.remove_mut(&key.routing_key)),
                }
            }
            Index::Fanout(targets) => drop(targets.take(&key.destination)),
            Index::Topic(trie) => {
                trie.update(&key.routing_key, |targets| targets.take(&key.destination));
            }
            Index::Headers | Index::ConsistentHash(_) | Index::ModulusHash | Index::Random => {}
        }
        Some(binding)
    }

    /// Calls `found` with each set of destinations that the message goes to. A destination is in a set
    /// once, but may be in several sets.
    pub(super) fn targets<'a>(&'a self, message: &Routable<'_>, mut found: impl FnMut(Reached<'a, Q>)) {
        let keys = &message.keys;
        match &self.index {
            Index::Direct(map) => {
                keys.iter().filter_map(|key| map.get(key)).map(Reached::Set).for_each(found);
            }
            Index::Fanout(targets) => found(Reached::Set(targets)),
            Index::Topic(trie) => {
                keys.iter().for_each(|key| trie.matches(key, |targets| found(Reached::Set(targets))));
            }
            Index::Headers => {
                let headers = Headers::read(message.properties.headers);
                let matching = |b: &&Arc<Binding<Q>>| match &b.compiled {
                    Compiled::Pattern(pattern) => pattern.matches(&headers),
                    Compiled::Bucket(_) | Compiled::Nothing => false,
                };
                let matching = self.bindings.values().filter(matching);
                matching.for_each(|binding| found(Reached::One(&binding.destination)));
            }
            Index::ConsistentHash(on) => {
                let chosen =
                    hash::heaviest(on.hash(message), self.bindings.values().map(|b| (b, &b.compiled)));
                chosen.into_iter().for_each(|binding| found(Reached::One(&binding.destination)));
            }
            Index::ModulusHash => self.nth(hash::of_all(keys.iter())).into_iter().for_each(found),
            // Two random exchanges on one way do not draw alike.
            Index::Random => self.nth(message.draw ^ hash::of(&self.name)).into_iter().for_each(found),
        }
    }

    /// The binding of that number, modulo how many there are.
    fn nth(&self, number: u64) -> Option<Reached<'_, Q>> {
        let at = number.checked_rem(self.bindings.len() as u64)?;
        self.bindings.values().nth(at as usize).map(|binding| Reached::One(&binding.destination))
    }
}

/// Part of what a message reaches.
pub(super) enum Reached<'a, Q: Clone> {
    Set(&'a Targets<Q>),
    One(&'a Destination<Q>),
}

impl<Q: Clone> Default for Targets<Q> {
    fn default() -> Self {
        Targets(SmallMap::default())
    }
}

impl<Q: Clone> Targets<Q> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Destination<Q>> {
        self.0.values().map(|target| &target.destination)
    }

    fn add(&mut self, binding: &Binding<Q>) {
        let name = &binding.key.destination;
        match self.0.find_mut(name) {
            Some(target) => target.bindings += 1,
            None => {
                let destination = binding.destination.clone();
                self.0.insert(name.clone(), Target { destination, bindings: 1 });
            }
        }
    }

    fn take(&mut self, name: &DestinationName) -> Left {
        if let Some(target) = self.0.find_mut(name) {
            target.bindings -= 1;
            if target.bindings == 0 {
                self.0.remove(name);
            }
        }
        if self.0.is_empty() { Left::Nothing } else { Left::Something }
    }
}

/// A field table's bytes with its entries ordered by name, as RabbitMQ stores and compares arguments.
/// Fails where the table cannot be read or is nested too deeply.
pub fn ordered(table: Table<'_>) -> Result<Arc<[u8]>, DecodeError> {
    table.validate()?;
    let mut entries = Vec::new();
    let mut rest = table.raw();
    for entry in table.iter() {
        let (name, value) = entry?;
        let length = 1 + name.len() + 1 + value_length(value);
        let (bytes, behind) = rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        entries.push((name, bytes));
        rest = behind;
    }
    entries.sort_by_key(|(name, _)| *name);
    Ok(entries.into_iter().flat_map(|(_, bytes)| bytes).copied().collect())
}

/// Bytes of a value on the wire, its tag left out (AMQP 0-9-1 section 4.2.1, with RabbitMQ's tags).
fn value_length(value: Value<'_>) -> usize {
    match value {
        Value::Void => 0,
        Value::Bool(_) | Value::I8(_) | Value::U8(_) => 1,
        Value::I16(_) | Value::U16(_) => 2,
        Value::I32(_) | Value::U32(_) | Value::F32(_) => 4,
        Value::Decimal(..) => 5,
        Value::I64(_) | Value::F64(_) | Value::Timestamp(_) => 8,
        Value::LongStr(bytes) | Value::Bytes(bytes) => 4 + bytes.len(),
        Value::Table(table) => 4 + table.raw().len(),
        Value::Array(array) => 4 + array.raw().len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    fn table(entries: &[(&str, Value<'_>)]) -> TableWriter {
        entries.iter().fold(TableWriter::new(), |table, (name, value)| table.entry(name, *value))
    }

    #[test]
    fn knows_the_kinds_by_their_wire_names() {
        for (kind, name) in ExchangeKind::NAMES {
            assert_eq!((ExchangeKind::parse(name.as_bytes()), kind.as_str()), (Some(kind), name));
        }
        assert_eq!(ExchangeKind::parse(b"x-unknown"), None);
    }

    #[test]
    fn orders_every_type_of_value_by_name() {
        let inner = table(&[("k", Value::LongStr(b"v"))]);
        let empty = table(&[]);
        let values = [
            ("q", Value::Bool(true)),
            ("p", Value::I8(1)),
            ("o", Value::U8(1)),
            ("n", Value::I16(1)),
            ("m", Value::U16(1)),
            ("l", Value::I32(1)),
            ("k", Value::U32(1)),
            ("j", Value::I64(1)),
            ("i", Value::F32(1.0)),
            ("h", Value::F64(1.0)),
            ("g", Value::Decimal(1, 2)),
            ("f", Value::LongStr(b"x")),
            ("e", Value::Bytes(b"yz")),
            ("d", Value::Timestamp(1)),
            ("c", Value::Table(inner.as_table())),
            ("b", Value::Array(empty.as_array())),
            ("a", Value::Void),
        ];
        let mut sorted = values;
        sorted.reverse();
        assert_eq!(&*ordered(table(&values).as_table()).unwrap(), table(&sorted).as_table().raw());
        assert_eq!(ordered(Table::from_raw(b"\x01aI\0")), Err(DecodeError::Truncated));
    }
}
