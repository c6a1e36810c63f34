//! Declarations: the typed arguments of queues, their validation, and whether a second declaration is
//! equivalent to the first, with RabbitMQ's reply texts (features.md sections 1.4 and 1.6, checked
//! against RabbitMQ 4.0). Acting on the arguments is the queue's and the engine's business.

use crate::amqp::field_table::{Table, Value};
use crate::amqp::reader::DecodeError;
use std::sync::Arc;

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
