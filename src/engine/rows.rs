//! Rows of the topology and the users as they are sealed: CBOR with numbered fields, so that later
//! versions can add some. Names stand in here and nowhere else on disk.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::amqp::field_table::Table;
use crate::broker::delay::inner_kind;
use crate::broker::equivalence::QueueProperties;
use crate::broker::exchange::{Binding, DestinationName, Exchange, ExchangeKind, ExchangeProperties};
use crate::broker::id::RowId;
use crate::broker::name::Name;
use crate::store::RowKind;

use super::access::{Grant, User};
use super::history::with_history;
use super::queue_cell::{QueueCell, QueueRef};
use super::rights::Permissions;

/// An exchange.
#[derive(Encode, Decode)]
pub(super) struct ExchangeRow {
    #[n(0)]
    name: ByteVec,
    #[n(1)]
    kind: String,
    #[n(2)]
    auto_delete: bool,
    #[n(3)]
    internal: bool,
    #[n(4)]
    arguments: ByteVec,
}

/// A queue.
#[derive(Encode, Decode)]
pub(super) struct QueueRow {
    #[n(0)]
    name: ByteVec,
    #[n(1)]
    auto_delete: bool,
    #[n(2)]
    arguments: ByteVec,
}

/// A binding.
#[derive(Encode, Decode)]
pub(super) struct BindingRow {
    #[n(0)]
    pub source: ByteVec,
    #[n(1)]
    destination: ByteVec,
    #[n(2)]
    to_exchange: bool,
    #[n(3)]
    pub routing_key: ByteVec,
    #[n(4)]
    pub arguments: ByteVec,
}

/// A user.
#[derive(Encode, Decode)]
pub(super) struct UserRow {
    #[n(0)]
    name: String,
    #[n(1)]
    password_hash: String,
    #[n(2)]
    tags: Vec<String>,
    /// absent in rows of versions that kept none
    #[n(3)]
    grants: Option<Vec<GrantRow>>,
}

/// What a user may do in one virtual host.
#[derive(Encode, Decode)]
struct GrantRow {
    #[n(0)]
    vhost: String,
    #[n(1)]
    configure: String,
    #[n(2)]
    write: String,
    #[n(3)]
    read: String,
}

macro_rules! coded {
    ($($row:ident),*) => {$(
        impl $row {
            pub fn encode(&self) -> Vec<u8> {
                // Writing to a Vec cannot fail.
                minicbor::to_vec(self).unwrap_or_default()
            }

            pub fn decode(bytes: &[u8]) -> Result<Self, String> {
                minicbor::decode(bytes).map_err(|e| e.to_string())
            }
        }
    )*};
}
coded!(ExchangeRow, QueueRow, BindingRow, UserRow);

impl ExchangeRow {
    pub fn of(exchange: &Exchange<QueueRef>) -> ExchangeRow {
        let p = &exchange.properties;
        ExchangeRow {
            name: exchange.name.to_vec().into(),
            kind: p.kind.as_str().to_owned(),
            auto_delete: p.auto_delete,
            internal: p.internal,
            arguments: p.arguments.to_vec().into(),
        }
    }

    pub fn into_exchange(self, row: RowId) -> Result<Exchange<QueueRef>, String> {
        let kind = ExchangeKind::parse(self.kind.as_bytes())
            .ok_or_else(|| "it is of an exchange type that this version does not know".to_owned())?;
        if kind == ExchangeKind::Delayed {
            inner_kind(Table::from_raw(&self.arguments)).map_err(|fault| fault.reply_text())?;
        }
        let properties = ExchangeProperties {
            kind,
            durable: true,
            auto_delete: self.auto_delete,
            internal: self.internal,
            arguments: self.arguments.as_slice().into(),
        };
        Ok(with_history(Exchange::new(self.name.as_slice().into(), properties, Some(row))))
    }
}

impl QueueRow {
    pub fn of(queue: &QueueCell) -> QueueRow {
        QueueRow {
            name: queue.name.to_vec().into(),
            auto_delete: queue.properties.auto_delete,
            arguments: queue.properties.arguments.to_vec().into(),
        }
    }

    pub fn into_parts(self) -> (Name, QueueProperties) {
        let arguments = self.arguments.as_slice().into();
        let properties = QueueProperties { durable: true, auto_delete: self.auto_delete, arguments };
        (self.name.as_slice().into(), properties)
    }
}

impl BindingRow {
    pub fn of(binding: &Binding<QueueRef>) -> BindingRow {
        let key = &binding.key;
        BindingRow {
            source: binding.source.to_vec().into(),
            destination: key.destination.name().to_vec().into(),
            to_exchange: matches!(key.destination, DestinationName::Exchange(_)),
            routing_key: key.routing_key.to_vec().into(),
            arguments: key.arguments.to_vec().into(),
        }
    }

    pub fn destination(&self) -> DestinationName {
        let name = Name::from(self.destination.as_slice());
        match self.to_exchange {
            true => DestinationName::Exchange(name),
            false => DestinationName::Queue(name),
        }
    }
}

impl UserRow {
    pub fn of(name: &str, user: &User) -> UserRow {
        let grant = |grant: &Grant| GrantRow {
            vhost: grant.vhost.clone(),
            configure: grant.permissions.configure.clone(),
            write: grant.permissions.write.clone(),
            read: grant.permissions.read.clone(),
        };
        UserRow {
            name: name.to_owned(),
            password_hash: user.password_hash.clone(),
            tags: user.tags.clone(),
            grants: user.grants.as_ref().map(|grants| grants.iter().map(grant).collect()),
        }
    }

    pub fn into_user(self, row: RowId) -> Result<(String, User), String> {
        let grant = |GrantRow { vhost, configure, write, read }| {
            Grant::new(vhost, Permissions { configure, write, read })
        };
        let grants = self.grants.map(|grants| grants.into_iter().map(grant).collect()).transpose()?;
        Ok((self.name, User { row, password_hash: self.password_hash, tags: self.tags, grants }))
    }
}

/// The name in a row, for whoever examines a store; `None` when the row has none or cannot be read.
pub fn row_name(kind: RowKind, plaintext: &[u8]) -> Option<Vec<u8>> {
    match kind {
        RowKind::Exchange => ExchangeRow::decode(plaintext).ok().map(|row| row.name.to_vec()),
        RowKind::Queue => QueueRow::decode(plaintext).ok().map(|row| row.name.to_vec()),
        RowKind::User => UserRow::decode(plaintext).ok().map(|row| row.name.into_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn queue_row(name: Vec<u8>, auto_delete: bool, arguments: Vec<u8>) -> QueueRow {
        QueueRow { name: name.into(), auto_delete, arguments: arguments.into() }
    }

    proptest! {
        #[test]
        fn rows_come_back(name in vec(any::<u8>(), 0..300), flags: (bool, bool), arguments in vec(any::<u8>(), 0..300)) {
            let row = QueueRow::decode(&queue_row(name.clone(), flags.0, arguments.clone()).encode()).unwrap();
            let (read, properties) = row.into_parts();
            prop_assert_eq!((&*read, properties.auto_delete), (&name[..], flags.0));
            prop_assert_eq!(&*properties.arguments, &arguments[..]);
            let (source, routing_key) = (name.clone().into(), arguments.clone().into());
            let binding = BindingRow {
                source, destination: name.clone().into(), to_exchange: flags.1, routing_key, arguments: arguments.into(),
            };
            let read = BindingRow::decode(&binding.encode()).unwrap();
            prop_assert_eq!(read.destination(), binding.destination());
            prop_assert_eq!((&read.source, &read.arguments), (&binding.source, &binding.arguments));
        }

        #[test]
        fn changed_rows_are_read_or_refused(
            name in vec(any::<u8>(), 0..40),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = queue_row(name.clone(), true, name).encode();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let _ = (QueueRow::decode(bytes), BindingRow::decode(bytes), UserRow::decode(bytes));
                let _ = ExchangeRow::decode(bytes).and_then(|row| row.into_exchange(RowId(1)));
            }
        }
    }
}
