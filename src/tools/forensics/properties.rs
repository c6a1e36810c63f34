//! A message's properties and headers as JSON, for people: text where bytes are text, base64 elsewhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use crate::amqp::field_table::{Table, Value};
use crate::amqp::properties::Properties;

/// Tables in tables that are followed; a plain store's bytes may say anything.
const DEPTH_MAX: usize = 64;

/// The properties of a message as its publisher sent them; a word on them where they are none.
pub(super) fn properties_json(block: &[u8]) -> Json {
    let Ok(properties) = Properties::decode(block) else {
        return json!({"unreadable_base64": STANDARD.encode(block)});
    };
    let mut named = Map::new();
    let texts = [
        ("content_type", properties.content_type),
        ("content_encoding", properties.content_encoding),
        ("correlation_id", properties.correlation_id),
        ("reply_to", properties.reply_to),
        ("expiration", properties.expiration),
        ("message_id", properties.message_id),
        ("type", properties.kind),
        ("user_id", properties.user_id),
        ("app_id", properties.app_id),
        ("cluster_id", properties.cluster_id),
    ];
    named.extend(texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), bytes_json(value?)))));
    let numbers = [
        ("delivery_mode", properties.delivery_mode.map(u64::from)),
        ("priority", properties.priority.map(u64::from)),
        ("timestamp", properties.timestamp),
    ];
    named.extend(numbers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))));
    named.extend(properties.headers.map(|headers| ("headers".to_owned(), table_json(headers, 0))));
    Json::Object(named)
}

fn bytes_json(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

fn table_json(table: Table<'_>, depth: usize) -> Json {
    if depth > DEPTH_MAX {
        return json!("(too deep)");
    }
    let mut named = Map::new();
    for entry in table.iter() {
        let (name, value) = match entry {
            Ok((name, value)) => (String::from_utf8_lossy(name).into_owned(), value_json(value, depth)),
            Err(error) => ("(unreadable)".to_owned(), json!(error.to_string())),
        };
        named.insert(name, value);
    }
    Json::Object(named)
}

fn value_json(value: Value<'_>, depth: usize) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::I8(value) => json!(value),
        Value::U8(value) => json!(value),
        Value::I16(value) => json!(value),
        Value::U16(value) => json!(value),
        Value::I32(value) => json!(value),
        Value::U32(value) => json!(value),
        Value::I64(value) => json!(value),
        Value::F32(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::Decimal(scale, value) => json!({"decimal": value, "scale": scale}),
        Value::LongStr(bytes) => bytes_json(bytes),
        Value::Bytes(bytes) => json!({"base64": STANDARD.encode(bytes)}),
        Value::Timestamp(seconds) => json!({"timestamp": seconds}),
        Value::Table(table) => table_json(table, depth + 1),
        Value::Array(_) if depth > DEPTH_MAX => json!("(too deep)"),
        Value::Array(array) => {
            let items = array.iter().map(|item| match item {
                Ok(value) => value_json(value, depth + 1),
                Err(error) => json!(error.to_string()),
            });
            Json::Array(items.collect())
        }
        Value::Void => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::TableWriter;

    #[test]
    fn each_property_and_header_is_shown_by_its_name() {
        let array = TableWriter::new().item(Value::I64(-1)).item(Value::Void);
        let headers = TableWriter::new()
            .entry("text", Value::LongStr(b"value"))
            .entry("bytes", Value::LongStr(&[0xff]))
            .entry("list", Value::Array(array.as_array()));
        let properties = Properties {
            content_type: Some(b"text/plain"),
            headers: Some(headers.as_table()),
            delivery_mode: Some(2),
            timestamp: Some(7),
            kind: Some(b"order"),
            ..Properties::default()
        };
        let mut block = Vec::new();
        properties.encode(&mut block);
        let wanted = json!({
            "content_type": "text/plain",
            "headers": {"text": "value", "bytes": {"base64": "/w=="}, "list": [-1, null]},
            "delivery_mode": 2,
            "timestamp": 7,
            "type": "order",
        });
        assert_eq!(properties_json(&block), wanted);
        assert_eq!(properties_json(&[1]), json!({"unreadable_base64": "AQ=="}));
    }

    #[test]
    fn tables_in_tables_without_end_come_to_an_end() {
        let mut inner = TableWriter::new();
        for _ in 0..5000 {
            inner = TableWriter::new().entry("t", Value::Table(inner.as_table()));
        }
        assert!(table_json(inner.as_table(), 0).to_string().contains("too deep"));
    }
}
