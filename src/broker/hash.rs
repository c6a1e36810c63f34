//! Hashes that choose a binding, the same after a restart and in later versions, and consistent hashing
//! by weighted rendezvous: each binding scores against the key, the highest score takes the message.
//!
//! A ring or a list of buckets would take memory by the weight, which a client chooses; scores take
//! none, and a binding that comes or goes moves only the keys that are its own.

use super::exchange::{BindingKey, Compiled, DestinationName};
use super::routing_keys::Routable;
use crate::amqp::field_table::{Table, Value};
use crate::limits::HASH_WEIGHT_MAX;

/// What of a message a consistent hash exchange hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The routing key; CC and BCC do not count.
    RoutingKey,
    /// The header of that name (`hash-header`).
    Header(Box<[u8]>),
    /// A property (`hash-property`).
    Property(Property),
}

/// The properties that can be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the specification's own field names")]
pub enum Property {
    MessageId,
    CorrelationId,
    Timestamp,
}

impl Property {
    /// The property of that name, if it can be hashed.
    pub fn parse(name: &[u8]) -> Option<Property> {
        match name {
            b"message_id" => Some(Property::MessageId),
            b"correlation_id" => Some(Property::CorrelationId),
            b"timestamp" => Some(Property::Timestamp),
            _ => None,
        }
    }
}

impl HashOn {
    /// What the arguments of an exchange name; they were checked when it was declared.
    pub fn of(arguments: Table<'_>) -> HashOn {
        if let Some(Value::LongStr(name)) = arguments.find(b"hash-header") {
            return HashOn::Header(name.into());
        }
        match arguments.find(b"hash-property") {
            Some(Value::LongStr(name)) => Property::parse(name).map_or(HashOn::RoutingKey, HashOn::Property),
            Some(_) | None => HashOn::RoutingKey,
        }
    }

    /// The message's hash; messages without the header or the property all have the same.
    pub(super) fn hash(&self, message: &Routable<'_>) -> u64 {
        let properties = message.properties;
        match self {
            HashOn::RoutingKey => of(message.keys.first()),
            HashOn::Header(name) => {
                properties.headers.and_then(|headers| headers.find(name)).map_or(0, of_value)
            }
            HashOn::Property(Property::MessageId) => properties.message_id.map_or(0, of),
            HashOn::Property(Property::CorrelationId) => properties.correlation_id.map_or(0, of),
            HashOn::Property(Property::Timestamp) => {
                properties.timestamp.map_or(0, |seconds| of(&seconds.to_be_bytes()))
            }
        }
    }
}

/// One binding's share of a consistent hash exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    seed: u64,
    weight: f64,
}

/// Why a routing key is no weight; the client is answered 406 with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Not a decimal integer: the key as RabbitMQ prints it.
    #[error("The binding key must be an integer: {0}")]
    NotAnInteger(String),
    /// Zero or less.
    #[error("The binding key must be greater than 0")]
    TooSmall,
    /// More than [`HASH_WEIGHT_MAX`].
    #[error("The binding key must not be greater than {HASH_WEIGHT_MAX}")]
    TooLarge,
}

impl Bucket {
    /// The share of a binding: its key is the weight, its destination says which keys are its own. So a
    /// destination that is bound twice has the larger weight, and a change of weight moves few keys.
    pub fn of(binding: &BindingKey) -> Result<Bucket, WeightError> {
        let weight = weight(&binding.routing_key)?;
        let kind: &[u8] = match binding.destination {
            DestinationName::Queue(_) => b"q",
            DestinationName::Exchange(_) => b"x",
        };
        let parts = [kind, binding.destination.name()];
        Ok(Bucket { seed: of_all(parts.into_iter()), weight: f64::from(weight) })
    }

    /// How well the hash fits; among buckets the highest wins, each as often as its weight says.
    fn score(&self, hash: u64) -> f64 {
        // 53 bits are what a double holds; the half keeps the logarithm finite.
        let unit = ((mix(hash ^ self.seed) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        self.weight / -unit.ln()
    }
}

fn weight(key: &[u8]) -> Result<u32, WeightError> {
    let (negative, digits) = match key {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        let printed = super::term::Term(Value::LongStr(key)).to_string();
        return Err(WeightError::NotAnInteger(printed));
    }
    let number =
        digits.iter().fold(0u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    match u32::try_from(number) {
        _ if negative || number == 0 => Err(WeightError::TooSmall),
        Ok(weight) if weight <= HASH_WEIGHT_MAX => Ok(weight),
        Ok(_) | Err(_) => Err(WeightError::TooLarge),
    }
}

/// Whose bucket scores highest for that hash.
pub(super) fn heaviest<'a, T>(hash: u64, bindings: impl Iterator<Item = (T, &'a Compiled)>) -> Option<T> {
    let mut best: Option<(f64, T)> = None;
    for (binding, compiled) in bindings {
        let Compiled::Bucket(bucket) = compiled else { continue };
        let score = bucket.score(hash);
        if best.as_ref().is_none_or(|(highest, _)| score > *highest) {
            best = Some((score, binding));
        }
    }
    best.map(|(_, binding)| binding)
}

/// Hash of one string of bytes: FNV-1a, its bits spread by SplitMix64.
pub(super) fn of(bytes: &[u8]) -> u64 {
    mix(absorb(FNV_OFFSET, bytes))
}

/// Hash of several; where one ends counts.
pub(super) fn of_all<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    mix(parts.fold(FNV_OFFSET, |hash, part| absorb(absorb(hash, part), &(part.len() as u32).to_be_bytes())))
}

/// Equal values of different integer types hash alike, as they are equal in a headers exchange.
fn of_value(value: Value<'_>) -> u64 {
    match value {
        Value::LongStr(bytes) | Value::Bytes(bytes) => of(bytes),
        value => match super::arguments::integer(value) {
            Some(number) => of(&number.to_be_bytes()),
            None => of(super::term::Term(value).to_string().as_bytes()),
        },
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn absorb(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// SplitMix64's finalizer: each bit of the input changes half of the output's.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;
    use crate::amqp::properties::Properties;
    use crate::broker::name::Name;
    use crate::broker::routing_keys::RoutingKeys;

    fn bucket(queue: usize, weight: &str) -> Result<Bucket, WeightError> {
        let destination = DestinationName::Queue(Name::from(format!("q{queue}").as_bytes()));
        Bucket::of(&BindingKey {
            destination,
            routing_key: Name::from(weight.as_bytes()),
            arguments: [].into(),
        })
    }

    fn buckets(weights: &[&str]) -> Vec<Compiled> {
        let buckets = weights.iter().enumerate().map(|(at, weight)| bucket(at, weight).unwrap());
        buckets.map(Compiled::Bucket).collect()
    }

    fn choices(buckets: &[Compiled]) -> Vec<usize> {
        let key = |at: u32| of(format!("key-{at}").as_bytes());
        (0..20_000).map(|at| heaviest(key(at), buckets.iter().enumerate()).unwrap()).collect::<Vec<usize>>()
    }

    #[test]
    fn keys_are_shared_out_by_weight() {
        let chosen = choices(&buckets(&["1", "1", "2", "4"]));
        for (at, share) in [2_500, 2_500, 5_000, 10_000].into_iter().enumerate() {
            let count = chosen.iter().filter(|chosen| **chosen == at).count();
            assert!(count.abs_diff(share) < share / 10, "bucket {at}: {count} of {share}");
        }
    }

    #[test]
    fn a_bucket_that_comes_or_goes_moves_only_its_own_keys() {
        let four = buckets(&["3", "1", "2", "1"]);
        let (before, after) = (choices(&four), choices(&four[..3]));
        for (before, after) in before.into_iter().zip(after) {
            assert!(before == after || before == 3, "a key of bucket {before} went to {after}");
        }
    }

    /// What is bound to a durable exchange must get the same keys after a restart and an update.
    #[test]
    fn hashes_are_the_same_in_every_version() {
        assert_eq!(of(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(of(b"key"), 0x487e_b6f7_e0ea_7e7c);
        assert_ne!(of_all([&b"ab"[..], b"c"].into_iter()), of_all([&b"a"[..], b"bc"].into_iter()));
    }

    #[test]
    fn a_weight_is_a_positive_integer_up_to_a_bound() {
        for (key, expected) in [
            ("1", None),
            ("+5", None),
            ("007", None),
            ("1000000", None),
            ("1000001", Some("The binding key must not be greater than 1000000")),
            ("99999999999999999999999", Some("The binding key must not be greater than 1000000")),
            ("0", Some("The binding key must be greater than 0")),
            ("-1", Some("The binding key must be greater than 0")),
            ("abc", Some("The binding key must be an integer: <<\"abc\">>")),
            ("", Some("The binding key must be an integer: <<>>")),
            ("1.5", Some("The binding key must be an integer: <<\"1.5\">>")),
            (" 1", Some("The binding key must be an integer: <<\" 1\">>")),
        ] {
            let error = bucket(0, key).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), expected, "{key:?}");
        }
    }

    #[test]
    fn hashes_what_the_arguments_name() {
        let headers = |value| TableWriter::new().entry("h", value);
        let hash = |on: &HashOn, properties: &Properties<'_>, key| {
            on.hash(&Routable { keys: RoutingKeys::one(key), properties, draw: 0, is_duplicate: &|_| false })
        };
        let text = headers(Value::LongStr(b"a"));
        let some =
            Properties { message_id: Some(b"a"), headers: Some(text.as_table()), ..Properties::default() };
        let none = Properties::default();
        let argument =
            |name: &str, value| HashOn::of(TableWriter::new().entry(name, Value::LongStr(value)).as_table());
        assert_eq!(hash(&HashOn::of(Table::default()), &some, b"a"), of(b"a"));
        for on in [argument("hash-header", b"h"), argument("hash-property", b"message_id")] {
            assert_eq!(hash(&on, &some, b"other"), of(b"a"));
            assert_eq!(hash(&on, &none, b"x"), hash(&on, &none, b"y"), "all without it go together");
        }
        let (short, long) = (headers(Value::I8(5)), headers(Value::I64(5)));
        let of_header = |headers: &TableWriter| {
            let properties = Properties { headers: Some(headers.as_table()), ..Properties::default() };
            hash(&argument("hash-header", b"h"), &properties, b"")
        };
        assert_eq!(of_header(&short), of_header(&long), "the type on the wire makes no difference");
    }
}
