//! Field values as RabbitMQ's reply texts print them: as Erlang terms, with Erlang's names of their
//! types. Clients and their tests compare these texts, so they are part of what is on the wire.

use super::fault::lossy;
use crate::amqp::field_table::Value;
use crate::limits::TABLE_DEPTH_MAX;
use std::fmt;

/// The name of a value's type in RabbitMQ's texts, such as `signedint`.
pub fn type_name(value: Value<'_>) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::I8(_) => "byte",
        Value::U8(_) => "unsignedbyte",
        Value::I16(_) => "short",
        Value::U16(_) => "unsignedshort",
        Value::I32(_) => "signedint",
        Value::U32(_) => "unsignedint",
        Value::I64(_) => "long",
        Value::F32(_) => "float",
        Value::F64(_) => "double",
        Value::Decimal(..) => "decimal",
        Value::LongStr(_) => "longstr",
        Value::Bytes(_) => "binary",
        Value::Timestamp(_) => "timestamp",
        Value::Table(_) => "table",
        Value::Array(_) => "array",
        Value::Void => "void",
    }
}

/// A value that displays as an Erlang term: `<<"text">>`, `[{signedint,1}]`, `[{<<"k">>,bool,true}]`.
pub struct Term<'a>(
    /// The value.
    pub Value<'a>,
);

/// A value that displays without quotes where it is a string, and as a term otherwise.
pub struct Plain<'a>(
    /// The value.
    pub Value<'a>,
);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::LongStr(bytes) | Value::Bytes(bytes) => lossy(bytes).fmt(f),
            other => Term(other).fmt(f),
        }
    }
}

impl fmt::Display for Term<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        term(f, self.0, 0)
    }
}

/// Deeper than `TABLE_DEPTH_MAX` nothing is printed: a peer's nesting must not become our recursion.
fn term(f: &mut fmt::Formatter<'_>, value: Value<'_>, depth: usize) -> fmt::Result {
    match value {
        Value::Bool(v) => write!(f, "{v}"),
        Value::I8(v) => write!(f, "{v}"),
        Value::U8(v) => write!(f, "{v}"),
        Value::I16(v) => write!(f, "{v}"),
        Value::U16(v) => write!(f, "{v}"),
        Value::I32(v) => write!(f, "{v}"),
        Value::U32(v) => write!(f, "{v}"),
        Value::I64(v) => write!(f, "{v}"),
        Value::Timestamp(v) => write!(f, "{v}"),
        Value::F32(v) => float(f, f64::from(v)),
        Value::F64(v) => float(f, v),
        Value::Decimal(scale, v) => write!(f, "{{{scale},{v}}}"),
        Value::LongStr(bytes) | Value::Bytes(bytes) => binary(f, bytes),
        Value::Void => f.write_str("undefined"),
        Value::Table(_) | Value::Array(_) if depth >= TABLE_DEPTH_MAX => f.write_str("..."),
        Value::Table(table) => list(f, table.iter().map_while(Result::ok), |f, (name, value)| {
            f.write_str("{")?;
            binary(f, name)?;
            write!(f, ",{},", type_name(value))?;
            term(f, value, depth + 1)?;
            f.write_str("}")
        }),
        Value::Array(array) => list(f, array.iter().map_while(Result::ok), |f, value| {
            write!(f, "{{{},", type_name(value))?;
            term(f, value, depth + 1)?;
            f.write_str("}")
        }),
    }
}

/// Erlang has digits on both sides of the point, even before an exponent.
fn float(f: &mut fmt::Formatter<'_>, value: f64) -> fmt::Result {
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => write!(f, "{mantissa}.0e{exponent}"),
        _ => f.write_str(&text),
    }
}

/// Text in quotes, with escapes and the mark `/utf8` beyond ASCII; anything else byte by byte.
fn binary(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    let is_printable = |c: char| !c.is_control() || ('\x08'..='\r').contains(&c) || c == '\x1b';
    match std::str::from_utf8(bytes) {
        Ok("") => f.write_str("<<>>"),
        Ok(text) if text.chars().all(is_printable) => {
            f.write_str("<<\"")?;
            for c in text.chars() {
                match c {
                    '"' | '\\' => write!(f, "\\{c}")?,
                    '\x08' => f.write_str("\\b")?,
                    '\t' => f.write_str("\\t")?,
                    '\n' => f.write_str("\\n")?,
                    '\x0b' => f.write_str("\\v")?,
                    '\x0c' => f.write_str("\\f")?,
                    '\r' => f.write_str("\\r")?,
                    '\x1b' => f.write_str("\\e")?,
                    c => write!(f, "{c}")?,
                }
            }
            f.write_str(if text.is_ascii() { "\">>" } else { "\"/utf8>>" })
        }
        Ok(_) | Err(_) => {
            f.write_str("<<")?;
            for (at, byte) in bytes.iter().enumerate() {
                write!(f, "{}{byte}", if at > 0 { "," } else { "" })?;
            }
            f.write_str(">>")
        }
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: impl Iterator<Item = T>,
    each: impl Fn(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    f.write_str("[")?;
    for (at, item) in items.enumerate() {
        if at > 0 {
            f.write_str(",")?;
        }
        each(f, item)?;
    }
    f.write_str("]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::{Array, TableWriter};

    #[test]
    fn prints_what_rabbitmq_4_0_printed() {
        let empty = TableWriter::new();
        let list = TableWriter::new().item(Value::I32(1)).item(Value::Table(empty.as_table()));
        let table = TableWriter::new().entry("a", Value::I32(1));
        for (value, term, plain) in [
            (Value::Array(list.as_array()), "[{signedint,1},{table,[]}]", "[{signedint,1},{table,[]}]"),
            (Value::Table(table.as_table()), "[{<<\"a\">>,signedint,1}]", "[{<<\"a\">>,signedint,1}]"),
            (Value::Void, "undefined", "undefined"),
            (Value::Bytes(b"ab"), "<<\"ab\">>", "ab"),
            (Value::I64(-7), "-7", "-7"),
            (Value::F64(1.0), "1.0", "1.0"),
            (Value::F64(1e30), "1.0e30", "1.0e30"),
            (Value::F64(1.5e-7), "1.5e-7", "1.5e-7"),
            (Value::LongStr(b""), "<<>>", ""),
            (Value::LongStr(b"a\nb"), "<<\"a\\nb\">>", "a\nb"),
            (Value::LongStr(b"\"\\"), "<<\"\\\"\\\\\">>", "\"\\"),
            (Value::LongStr("\u{e9}".as_bytes()), "<<\"\u{e9}\"/utf8>>", "\u{e9}"),
            (Value::LongStr(b"\xff\0"), "<<255,0>>", "\u{fffd}\0"),
        ] {
            assert_eq!((Term(value).to_string().as_str(), Plain(value).to_string().as_str()), (term, plain));
        }
    }

    #[test]
    fn a_hostile_nesting_is_cut_off() {
        let mut bytes = Vec::new();
        for _ in 0..5_000 {
            let mut outer = vec![b'A'];
            outer.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            outer.append(&mut bytes);
            bytes = outer;
        }
        let text = Term(Value::Array(Array::from_raw(&bytes))).to_string();
        assert!(text.contains("{array,...}") && text.len() < 300, "{text}");
    }
}
