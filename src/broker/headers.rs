//! What a binding of a headers exchange asks of a message's headers (AMQP 0-9-1 section 3.1.3.4, with
//! RabbitMQ's `-with-x` modes). Compiled once when it is bound; nothing here knows exchanges.

use super::term::{Term, type_name};
use crate::amqp::field_table::{Table, Value};
use crate::amqp::reader::DecodeError;
use smallvec::SmallVec;

/// The headers of one message in the order of their names, ready to be compared with many patterns.
pub struct Headers<'a>(SmallVec<[(&'a [u8], Value<'a>); 8]>);

impl<'a> Headers<'a> {
    /// Reads a message's header table; what follows an undecodable entry counts as absent.
    pub fn read(table: Option<Table<'a>>) -> Headers<'a> {
        let entries = table.unwrap_or_default().iter().map_while(Result::ok);
        let mut headers: SmallVec<[_; 8]> = entries.collect();
        headers.sort_by_key(|(name, _)| *name);
        Headers(headers)
    }

    fn find(&self, name: &[u8]) -> Option<Value<'a>> {
        let at = self.0.partition_point(|(other, _)| *other < name);
        self.0.get(at).filter(|(other, _)| *other == name).map(|(_, value)| *value)
    }
}

/// Why a binding's arguments cannot be matched with; the session answers 406 with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `x-match` is a string, but none of the four.
    #[error("Invalid x-match field value {0}; expected all, any, all-with-x, or any-with-x")]
    UnknownMatch(String),
    /// `x-match` is not a string: its type and value.
    #[error("Invalid x-match field type {0} (value {1}); expected longstr")]
    MatchType(&'static str, String),
    /// The arguments are not a field table.
    #[error("the binding's arguments cannot be read: {0}")]
    Undecodable(#[from] DecodeError),
}

/// A binding's arguments, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    needed: Needed,
    expected: Vec<(Box<[u8]>, Expected)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    All,
    Any,
}

/// A value to compare with as RabbitMQ does: the type on the wire does not matter, the value does.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    /// A void in the binding: the header only has to be there.
    Presence,
    Bool(bool),
    Int(i128),
    Float(f64),
    Decimal(u8, u32),
    Bytes(Box<[u8]>),
    Table(Box<[u8]>),
    Array(Box<[u8]>),
}

impl Pattern {
    /// Compiles the arguments of a binding; `x-match` may be missing and is `all` then.
    pub fn compile(arguments: Table<'_>) -> Result<Pattern, PatternError> {
        let (needed, with_x) = match arguments.find(b"x-match") {
            None | Some(Value::LongStr(b"all")) => (Needed::All, false),
            Some(Value::LongStr(b"any")) => (Needed::Any, false),
            Some(Value::LongStr(b"all-with-x")) => (Needed::All, true),
            Some(Value::LongStr(b"any-with-x")) => (Needed::Any, true),
            Some(other @ Value::LongStr(_)) => {
                return Err(PatternError::UnknownMatch(Term(other).to_string()));
            }
            Some(other) => {
                return Err(PatternError::MatchType(type_name(other), Term(other).to_string()));
            }
        };
        let mut expected = Vec::new();
        for entry in arguments.iter() {
            let (name, value) = entry?;
            if name != b"x-match" && (with_x || !name.starts_with(b"x-")) {
                expected.push((Box::from(name), Expected::of(value)));
            }
        }
        Ok(Pattern { needed, expected })
    }

    /// Whether a message with these headers goes through the binding. A pattern that names no header
    /// takes every message with `all`, and none with `any`.
    pub fn matches(&self, headers: &Headers<'_>) -> bool {
        let mut each = self
            .expected
            .iter()
            .map(|(name, expected)| headers.find(name).is_some_and(|value| expected.admits(value)));
        match self.needed {
            Needed::All => each.all(|matched| matched),
            Needed::Any => each.any(|matched| matched),
        }
    }
}

impl Expected {
    fn of(value: Value<'_>) -> Expected {
        match value {
            Value::Void => Expected::Presence,
            Value::Bool(v) => Expected::Bool(v),
            Value::F32(v) => Expected::Float(v.into()),
            Value::F64(v) => Expected::Float(v),
            Value::Decimal(scale, v) => Expected::Decimal(scale, v),
            Value::LongStr(v) | Value::Bytes(v) => Expected::Bytes(v.into()),
            Value::Table(v) => Expected::Table(v.raw().into()),
            Value::Array(v) => Expected::Array(v.raw().into()),
            Value::I8(v) => Expected::Int(v.into()),
            Value::U8(v) => Expected::Int(v.into()),
            Value::I16(v) => Expected::Int(v.into()),
            Value::U16(v) => Expected::Int(v.into()),
            Value::I32(v) => Expected::Int(v.into()),
            Value::U32(v) => Expected::Int(v.into()),
            Value::I64(v) => Expected::Int(v.into()),
            Value::Timestamp(v) => Expected::Int(v.into()),
        }
    }

    fn admits(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Expected::Presence, _) => true,
            (Expected::Bytes(expected), Value::LongStr(v) | Value::Bytes(v)) => **expected == *v,
            (Expected::Bool(expected), Value::Bool(v)) => *expected == v,
            (Expected::Decimal(scale, unscaled), Value::Decimal(s, u)) => (*scale, *unscaled) == (s, u),
            (Expected::Table(expected), Value::Table(v)) => **expected == *v.raw(),
            (Expected::Array(expected), Value::Array(v)) => **expected == *v.raw(),
            // All integers are alike, and so are both widths of floats; but 5 is not 5.0.
            (Expected::Int(_) | Expected::Float(_), v) => *self == Expected::of(v),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    fn table(entries: &[(&str, Value<'_>)]) -> TableWriter {
        entries.iter().fold(TableWriter::new(), |table, (name, value)| table.entry(name, *value))
    }

    fn matches(pattern: &[(&str, Value<'_>)], headers: &[(&str, Value<'_>)]) -> bool {
        let (pattern, headers) = (table(pattern), table(headers));
        Pattern::compile(pattern.as_table()).unwrap().matches(&Headers::read(Some(headers.as_table())))
    }

    const fn text(text: &'static str) -> Value<'static> {
        Value::LongStr(text.as_bytes())
    }

    #[test]
    fn all_needs_each_header_and_any_needs_one() {
        let both = [("a", text("1")), ("b", text("2"))];
        let one = [("z", text("0")), ("b", text("2"))];
        let wrong = [("a", text("2")), ("b", text("1"))];
        let with = |mode| [("x-match", text(mode)), ("b", text("2")), ("a", text("1"))];
        for (mode, expected) in [("all", [true, false, false, false]), ("any", [true, true, false, false])] {
            let got = [&both[..], &one, &wrong, &[]].map(|headers| matches(&with(mode), headers));
            assert_eq!(got, expected, "{mode}");
        }
        assert!(matches(&both, &both) && !matches(&both, &one), "without x-match it is all");
    }

    #[test]
    fn a_pattern_without_headers_takes_all_or_nothing() {
        assert!(matches(&[], &[]) && matches(&[], &[("a", text("1"))]));
        assert!(!matches(&[("x-match", text("any"))], &[("a", text("1"))]));
    }

    #[test]
    fn names_beginning_with_x_count_only_when_asked_for() {
        let headers = [("a", text("1")), ("x-b", text("2"))];
        let with = |mode, b| [("x-match", text(mode)), ("a", text("1")), ("x-b", text(b))];
        assert!(matches(&with("all", "3"), &headers) && !matches(&with("all-with-x", "3"), &headers));
        assert!(matches(&with("all-with-x", "2"), &headers));
        let only_x = |mode| [("x-match", text(mode)), ("x-b", text("2"))];
        assert!(!matches(&only_x("any"), &headers) && matches(&only_x("any-with-x"), &headers));
    }

    #[test]
    fn a_void_asks_for_presence() {
        assert!(matches(&[("a", Value::Void)], &[("a", Value::Bool(false))]));
        assert!(matches(&[("a", Value::Void)], &[("a", Value::Void)]));
        assert!(!matches(&[("a", Value::Void)], &[("b", text("1"))]));
        assert!(!matches(&[("a", text(""))], &[("a", Value::Void)]));
    }

    #[test]
    fn values_are_compared_across_types_of_the_wire() {
        let inner = table(&[("k", text("v"))]);
        let equal = [
            (Value::I32(5), Value::I64(5)),
            (Value::U8(5), Value::Timestamp(5)),
            (Value::I8(-1), Value::I16(-1)),
            (Value::F32(0.5), Value::F64(0.5)),
            (text("a"), Value::Bytes(b"a")),
            (Value::Table(inner.as_table()), Value::Table(inner.as_table())),
        ];
        for (a, b) in equal {
            assert!(matches(&[("h", a)], &[("h", b)]) && matches(&[("h", b)], &[("h", a)]), "{a:?} {b:?}");
        }
        let different = [
            (Value::I32(1), Value::Bool(true)),
            (Value::I32(5), text("5")),
            (Value::U8(255), Value::I8(-1)),
            (Value::I32(5), Value::F64(5.0)),
            (Value::F64(f64::NAN), Value::F64(f64::NAN)),
            (Value::Decimal(0, 5), Value::I32(5)),
            (Value::Timestamp(u64::MAX), Value::I64(-1)),
        ];
        for (a, b) in different {
            assert!(!matches(&[("h", a)], &[("h", b)]) && !matches(&[("h", b)], &[("h", a)]), "{a:?} {b:?}");
        }
    }

    #[test]
    fn refuses_an_unknown_match_with_rabbitmq_s_text() {
        for (value, expected) in [
            (
                text("foo"),
                "Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x",
            ),
            (Value::I32(5), "Invalid x-match field type signedint (value 5); expected longstr"),
            (Value::Bytes(b"all"), "Invalid x-match field type binary (value <<\"all\">>); expected longstr"),
        ] {
            let error = Pattern::compile(table(&[("x-match", value)]).as_table()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let broken = Table::from_raw(b"\x01aI\0");
        assert_eq!(Pattern::compile(broken), Err(PatternError::Undecodable(DecodeError::Truncated)));
    }
}
