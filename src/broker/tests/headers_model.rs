//! Bindings of a headers exchange against the words of the specification (AMQP 0-9-1 section 3.1.3.4, and
//! RabbitMQ's `-with-x`): each header of the binding is looked for in the message, one by one.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::amqp::field_table::{TableWriter, Value};
use crate::broker::headers::{Headers, Pattern};

/// Values that are equal or not for reasons that can be seen.
#[derive(Clone, Copy, Debug)]
enum Plain {
    Void,
    Bool(bool),
    Number(i64, Width),
    Float(i8, bool),
    Text(&'static str, bool),
    Decimal(u8, u32),
}

/// How a number is written.
#[derive(Clone, Copy, Debug)]
enum Width {
    I8,
    I16,
    I32,
    I64,
    Timestamp,
}

impl Plain {
    fn value(self) -> Value<'static> {
        match self {
            Plain::Void => Value::Void,
            Plain::Bool(v) => Value::Bool(v),
            Plain::Number(v, Width::I8) => Value::I8(v as i8),
            Plain::Number(v, Width::I16) => Value::I16(v as i16),
            Plain::Number(v, Width::I32) => Value::I32(v as i32),
            Plain::Number(v, Width::I64) => Value::I64(v),
            Plain::Number(v, Width::Timestamp) => Value::Timestamp(v.unsigned_abs()),
            Plain::Float(v, true) => Value::F32(f32::from(v)),
            Plain::Float(v, false) => Value::F64(f64::from(v)),
            Plain::Text(v, true) => Value::LongStr(v.as_bytes()),
            Plain::Text(v, false) => Value::Bytes(v.as_bytes()),
            Plain::Decimal(scale, v) => Value::Decimal(scale, v),
        }
    }

    /// Whether a header of this value is what `asked` asks for.
    fn is_what(self, asked: Plain) -> bool {
        match (asked, self) {
            (Plain::Void, _) => true,
            (Plain::Bool(a), Plain::Bool(b)) => a == b,
            // A timestamp has no sign.
            (Plain::Number(a, Width::Timestamp), Plain::Number(b, Width::Timestamp)) => a.abs() == b.abs(),
            (Plain::Number(a, Width::Timestamp), Plain::Number(b, _)) => a.abs() == b,
            (Plain::Number(a, _), Plain::Number(b, Width::Timestamp)) => a == b.abs(),
            (Plain::Number(a, _), Plain::Number(b, _)) => a == b,
            (Plain::Float(a, _), Plain::Float(b, _)) => a == b,
            (Plain::Text(a, _), Plain::Text(b, _)) => a == b,
            (Plain::Decimal(a, b), Plain::Decimal(c, d)) => (a, b) == (c, d),
            _ => false,
        }
    }
}

fn plain() -> impl Strategy<Value = Plain> {
    let width = prop::sample::select(vec![Width::I8, Width::I16, Width::I32, Width::I64, Width::Timestamp]);
    prop_oneof![
        1 => Just(Plain::Void),
        2 => any::<bool>().prop_map(Plain::Bool),
        4 => (-2i64..3, width).prop_map(|(v, width)| Plain::Number(v, width)),
        1 => (-1i8..2, any::<bool>()).prop_map(|(v, narrow)| Plain::Float(v, narrow)),
        3 => (prop::sample::select(vec!["", "a", "1"]), any::<bool>()).prop_map(|(v, long)| Plain::Text(v, long)),
        1 => (0u8..2, 0u32..2).prop_map(|(scale, v)| Plain::Decimal(scale, v)),
    ]
}

fn entries(max: usize) -> impl Strategy<Value = Vec<(&'static str, Plain)>> {
    vec((prop::sample::select(vec!["a", "b", "c", "x-d", "x-e"]), plain()), 0..max)
}

fn table(entries: &[(&str, Plain)]) -> TableWriter {
    entries.iter().fold(TableWriter::new(), |table, (name, plain)| table.entry(name, plain.value()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn bindings_match_as_the_words_say(
        asked in entries(5),
        headers in entries(10),
        mode in prop::option::of(prop::sample::select(vec!["all", "any", "all-with-x", "any-with-x"])),
        mode_first in any::<bool>(),
    ) {
        let mut arguments = if mode_first { TableWriter::new() } else { table(&asked) };
        if let Some(mode) = mode {
            arguments = arguments.entry("x-match", Value::LongStr(mode.as_bytes()));
        }
        if mode_first {
            arguments = asked.iter().fold(arguments, |table, (name, plain)| table.entry(name, plain.value()));
        }
        let mode = mode.unwrap_or("all");
        let counts = |name: &str| mode.ends_with("with-x") || !name.starts_with("x-");
        let is_met = |(name, asked): &(&str, Plain)| {
            let header = headers.iter().find(|(other, _)| other == name);
            header.is_some_and(|(_, header)| header.is_what(*asked))
        };
        let mut counted = asked.iter().filter(|(name, _)| counts(name));
        let expected = if mode.starts_with("all") { counted.all(is_met) } else { counted.any(is_met) };
        let pattern = Pattern::compile(arguments.as_table()).unwrap();
        let headers = table(&headers);
        prop_assert_eq!(pattern.matches(&Headers::read(Some(headers.as_table()))), expected);
    }
}
