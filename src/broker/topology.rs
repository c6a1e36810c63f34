//! Who exists and what leads where: queues, exchanges and bindings of one virtual host as an immutable
//! snapshot that is cheap to clone, change and swap. `route` reads it without a lock.
//!
//! Not here: messages, what a queue holds, permissions, the store. Generic over the queue's handle `Q`;
//! two handles are the same queue exactly when they are equal.
//!
//! Cost: a clone copies a few pointers, a change copies the path to what changed (logarithmic), a
//! route through the default, a direct or a fanout exchange to few queues allocates nothing.

use super::exchange::{
    Binding, BindingKey, Destination, DestinationName, Exchange, ExchangeKind, ExchangeProperties, ordered,
};
use super::fault::Fault;
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

/// The exchanges that every virtual host has (features.md section 1.3); none is stored.
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
    incoming: Map<DestinationName, SmallMap<(Name, BindingKey), Arc<Binding<Q>>>>,
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
    /// The arguments are not a field table: 502.
    #[error("the binding's arguments cannot be read: {0}")]
    Undecodable(#[from] DecodeError),
}

impl BindError {
    /// What the client is answered (features.md section 1.6).
    pub fn fault(&self, vhost: &str) -> Fault {
        match self {
            BindError::DefaultExchange => Fault::new(ReplyCode::AccessRefused, self.to_string()),
            BindError::Missing(ResourceKind::Queue, name) => Fault::no_queue(name, vhost),
            BindError::Missing(ResourceKind::Exchange, name) => Fault::no_exchange(name, vhost),
            BindError::Pattern(PatternError::Undecodable(_)) | BindError::Undecodable(_) => {
                Fault::new(ReplyCode::SyntaxError, self.to_string())
            }
            BindError::Pattern(error) => Fault::new(ReplyCode::PreconditionFailed, error.to_string()),
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
    pub fn insert_exchange(&mut self, exchange: Exchange<Q>) -> Result<(), Exchange<Q>> {
        if self.exchanges.contains_key(&exchange.name) {
            return Err(exchange);
        }
        self.exchanges.insert_mut(exchange.name.clone(), Arc::new(exchange));
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
        let pattern = match source.properties.kind {
            ExchangeKind::Headers => Some(Pattern::compile(request.arguments)?),
            ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic => None,
        };
        let source = source.name.clone();
        let binding = Arc::new(Binding { source: source.clone(), key, row, destination, pattern });
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
        let implicit = self.queues.keys().map(|name| ListedBinding::implicit(name));
        implicit
            .chain(self.exchanges().flat_map(|exchange| exchange.bindings().map(|b| ListedBinding::of(b))))
    }

    /// The bindings that lead to a queue, that from the default exchange first; none without the queue.
    pub fn bindings_of_queue(&self, name: &[u8]) -> impl Iterator<Item = ListedBinding<'_>> {
        let entry = self.queues.get(name).map(|(name, _)| name);
        let destination = entry.map(|name| DestinationName::Queue(name.clone()));
        let incoming = destination.and_then(|destination| self.incoming.get(&destination));
        let explicit = incoming.into_iter().flat_map(|bindings| bindings.values());
        let implicit = entry.into_iter().map(|name| ListedBinding::implicit(name));
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
