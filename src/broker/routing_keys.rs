//! The routing keys of one message: the one it was published with, and those of the headers CC and BCC
//! (RabbitMQ's sender-selected distribution). What routing looks at in a message is here; where it goes
//! then is `route`'s.

use super::dedup::ExchangeRules;
use super::fault::Fault;
use super::term::type_name;
use crate::amqp::field_table::{Array, Table, TableWriter, Value};
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;
use crate::limits::COPIES_MAX;
use std::sync::Arc;

const CC: &[u8] = b"CC";
const BCC: &[u8] = b"BCC";

/// What routing looks at in a message.
#[derive(Clone, Copy)]
pub struct Routable<'a> {
    /// By what it goes.
    pub keys: RoutingKeys<'a>,
    /// Its properties; headers exchanges and consistent hash exchanges read them.
    pub properties: &'a Properties<'a>,
    /// A number of its own, for exchanges that choose by chance.
    pub draw: u64,
    /// Whether an exchange with these rules has seen it; asked at most once on one way to it.
    pub is_duplicate: &'a dyn Fn(&Arc<ExchangeRules>) -> bool,
}

/// One routing key or several, the published one first.
#[derive(Clone, Copy)]
pub struct RoutingKeys<'a> {
    first: &'a [u8],
    open: Array<'a>,
    blind: Array<'a>,
}

impl<'a> RoutingKeys<'a> {
    /// The published key, the items of CC, the items of BCC. Items that are not strings do not count.
    pub fn new(first: &'a [u8], open: Array<'a>, blind: Array<'a>) -> RoutingKeys<'a> {
        RoutingKeys { first, open, blind }
    }

    /// A key alone.
    pub fn one(key: &'a [u8]) -> RoutingKeys<'a> {
        RoutingKeys::new(key, Array::default(), Array::default())
    }

    /// The published key.
    pub fn first(&self) -> &'a [u8] {
        self.first
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        self.open().chain(strings(self.blind))
    }

    /// Those that may be told: all but BCC's.
    pub fn open(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        std::iter::once(self.first).chain(strings(self.open))
    }
}

fn strings<'a>(array: Array<'a>) -> impl Iterator<Item = &'a [u8]> {
    array.iter().map_while(Result::ok).filter_map(|item| match item {
        Value::LongStr(key) => Some(key),
        _ => None,
    })
}

/// The headers CC and BCC, picked up while a table is walked for another reason.
#[derive(Clone, Copy, Default)]
pub struct CopyHeaders<'a> {
    open: Option<Value<'a>>,
    blind: Option<Value<'a>>,
}

impl<'a> CopyHeaders<'a> {
    /// Looks at one header; of several with the same name the first counts.
    pub fn see(&mut self, name: &[u8], value: Value<'a>) {
        if name == CC {
            self.open.get_or_insert(value);
        } else if name == BCC {
            self.blind.get_or_insert(value);
        }
    }

    /// The items of CC and of BCC, each `None` without that header.
    ///
    /// # Errors
    /// 406 in RabbitMQ's words when one is not an array; 406 for more keys than [`COPIES_MAX`].
    pub fn check(self) -> Result<(Option<Array<'a>>, Option<Array<'a>>), Fault> {
        let array = |name: &str, value: Option<Value<'a>>| match value {
            None => Ok(None),
            Some(Value::Array(keys)) => Ok(Some(keys)),
            Some(other) => {
                let found = type_name(other);
                Err(invalid(format!("{{unacceptable_type_in_header,\"{name}\",{found}}}")))
            }
        };
        let (open, blind) = (array("CC", self.open)?, array("BCC", self.blind)?);
        let count: usize = [open, blind].into_iter().flatten().map(|keys| keys.iter().count()).sum();
        if count > COPIES_MAX {
            return Err(invalid(format!("{count} keys in CC and BCC are more than {COPIES_MAX}")));
        }
        Ok((open, blind))
    }
}

fn invalid(why: String) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format!("invalid message: {why}"))
}

/// Appends the properties without the header BCC.
pub fn encode_without_blind_copies(properties: &Properties<'_>, out: &mut Vec<u8>) {
    let headers = properties.headers.unwrap_or_default();
    let kept = headers.iter().map_while(Result::ok).filter(|(name, _)| *name != BCC);
    let kept = kept.fold(TableWriter::new(), |table, (name, value)| table.raw_entry(name, value));
    let kept: Table<'_> = kept.as_table();
    Properties { headers: Some(kept), ..*properties }.encode(out);
}
