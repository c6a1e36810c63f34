//! `sealmq-forensics inspect`: what a record says without the key, and one message with it, for an incident.

use std::fmt::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::hexdump;
use super::output::write_new;
use super::properties::properties_json;
use super::scan::Outcome;
use super::sources::KeyArguments;
use super::verify::{moment, queue_names, refused};
use crate::broker::id::{QueueId, Seq};
use crate::seal::envelope::{FLAG_LAST, FLAG_PADDED, Header, OVERHEAD_BYTES};
use crate::seal::keyring::hex;
use crate::store::{OpenedEntry, Overview, RawRecord, RecordFacts, StoreError, Viewer};

/// Bytes of a record that are shown as a dump.
const DUMP_BYTES: usize = 256;
/// Bytes of a body that a terminal gets; `--out` gives all of it.
const BODY_SHOWN_BYTES_MAX: usize = 64 * 1024;
/// Queues that the text lists.
const QUEUES_MAX: usize = 100;

/// What to look at.
#[derive(Args, Debug)]
pub struct InspectArguments {
    /// The data directory of a broker that does not run, an atomic copy of it, or a backup
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The queue's id, as verify and inspect list it
    #[arg(long, value_name = "ID", requires = "seq")]
    pub queue: Option<u64>,
    /// The message's place in the queue
    #[arg(long, value_name = "N", requires = "queue")]
    pub seq: Option<u64>,
    /// The key's source.
    #[command(flatten)]
    pub key: KeyArguments,
    /// Write the decrypted body to this new file, mode 0600, instead of showing it
    #[arg(long, value_name = "FILE", requires = "seq")]
    pub out: Option<PathBuf>,
    /// Print as JSON (a body is base64)
    #[arg(long)]
    pub json: bool,
}

/// What is printed, and how it went.
pub struct Inspected {
    /// `Found`: the record is damaged or does not open. `Failed`: there is none.
    pub outcome: Outcome,
    /// For standard output.
    pub text: String,
    /// For standard error, before anything else.
    pub warnings: Vec<String>,
}

/// Looks at a store or at one record of it.
///
/// # Errors
/// When the store is in use, cannot be opened, the key does not fit, or the body cannot be written.
pub fn inspect(arguments: &InspectArguments) -> Result<Inspected> {
    let dir = &arguments.directory;
    let credential = arguments.key.find_if_named(dir)?.credential;
    let mut viewer = Viewer::open(dir, credential.as_ref()).map_err(refused)?;
    drop(credential);
    let warnings = std::mem::take(&mut viewer.warnings);
    let mut inspected = match (arguments.queue, arguments.seq) {
        (Some(queue), Some(seq)) => entry(&mut viewer, arguments, QueueId(queue), Seq(seq))?,
        _ => overview(&mut viewer, arguments)?,
    };
    inspected.warnings.splice(0..0, warnings);
    Ok(inspected)
}

fn overview(viewer: &mut Viewer, arguments: &InspectArguments) -> Result<Inspected> {
    let overview = viewer.overview().map_err(refused)?;
    let names = queue_names(&viewer.rows().map_err(refused)?);
    let (mode, store) = (viewer.mode.name(), viewer.store.as_str());
    if arguments.json {
        let kinds = overview.kinds.iter().map(|((family, kind), (records, bytes))| {
            json!({"family": family, "kind": kind, "records": records, "bytes": bytes})
        });
        let queues = overview.queues.iter().map(|(id, (records, first, last, bytes))| {
            json!({"id": id, "name": names.get(id), "records": records, "first": first, "last": last, "bytes": bytes})
        });
        let keys = overview.keys.iter().map(|(id, records)| json!({"id": id, "records": records}));
        let slots = overview.keyring.iter().flat_map(|(_, slots)| slots);
        let slots = slots.map(|slot| json!({"id": slot.id, "kind": slot.kind, "active": slot.is_active}));
        let report = json!({
            "directory": arguments.directory,
            "mode": mode,
            "store": store,
            "keyring_generation": overview.keyring.as_ref().map(|(generation, _)| generation),
            "slots": slots.collect::<Vec<_>>(),
            "records": kinds.collect::<Vec<_>>(),
            "data_keys": keys.collect::<Vec<_>>(),
            "queues": queues.collect::<Vec<_>>(),
        });
        return printed(&report);
    }
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{}: {mode} store {store}", arguments.directory.display());
    let _ = write_overview(&mut text, &overview, &names, viewer.has_key());
    Ok(Inspected { outcome: Outcome::Clean, text, warnings: Vec::new() })
}

fn write_overview(
    out: &mut String,
    overview: &Overview,
    names: &std::collections::HashMap<u64, String>,
    has_key: bool,
) -> fmt::Result {
    if let Some((generation, slots)) = &overview.keyring {
        writeln!(out, "keyring: generation {generation} (by its header, which only the key authenticates)")?;
        for slot in slots {
            let state = if slot.is_active { "" } else { ", opens only" };
            writeln!(out, "  slot {} ({}{state})", slot.id, slot.kind)?;
        }
    }
    writeln!(out, "\n{:>8}  {:<14} {:>12} {:>14}", "family", "kind", "records", "bytes")?;
    for ((family, kind), (records, bytes)) in &overview.kinds {
        writeln!(out, "{family:>8}  {kind:<14} {records:>12} {bytes:>14}")?;
    }
    if !overview.keys.is_empty() {
        writeln!(out, "\n{:>8} {:>12}", "key id", "records")?;
        overview.keys.iter().try_for_each(|(id, records)| writeln!(out, "{id:>8} {records:>12}"))?;
    }
    if !overview.queues.is_empty() {
        writeln!(
            out,
            "\n{:>8} {:>12} {:>12} {:>12}  name",
            "queue", "messages", "first place", "last place"
        )?;
    }
    for (id, (records, first, last, _)) in overview.queues.iter().take(QUEUES_MAX) {
        let unknown = if has_key { "(deleted)" } else { "(sealed)" };
        let name = names.get(id).map_or(unknown, String::as_str).escape_debug().to_string();
        writeln!(out, "{id:>8} {records:>12} {first:>12} {last:>12}  {name}")?;
    }
    if overview.queues.len() > QUEUES_MAX {
        writeln!(out, "and {} more queues (--json lists all)", overview.queues.len() - QUEUES_MAX)?;
    }
    writeln!(out, "\nOne record: --queue ID --seq N; its message: with the key as well (--kek FILE).")
}

fn entry(viewer: &mut Viewer, arguments: &InspectArguments, queue: QueueId, seq: Seq) -> Result<Inspected> {
    let Some(record) = viewer.entry(queue, seq).map_err(refused)? else {
        let text =
            format!("queue {} has no entry {}: acknowledged, dropped, or never there\n", queue.0, seq.0);
        return Ok(Inspected { outcome: Outcome::Failed, text, warnings: Vec::new() });
    };
    if !viewer.has_key() {
        if arguments.out.is_some() {
            let dir = arguments.directory.clone();
            return Err(refused(StoreError::KekMissing { dir }));
        }
        let outcome = if record.facts().is_ok() { Outcome::Clean } else { Outcome::Found };
        let report = json!({"queue": queue.0, "seq": seq.0, "record": record_json(&record)});
        if arguments.json {
            return Ok(Inspected { outcome, ..printed(&report)? });
        }
        return Ok(Inspected { outcome, text: record_text(&record), warnings: Vec::new() });
    }
    let opened = match viewer.open_entry(queue, seq, &record) {
        Ok(opened) => opened,
        Err(error) => {
            let text = format!("{}\nIt does not open: {}: {error}\n", record_text(&record), error.code());
            return Ok(Inspected { outcome: Outcome::Found, text, warnings: Vec::new() });
        }
    };
    let name = queue_names(&viewer.rows().map_err(refused)?).remove(&queue.0);
    let mut warnings = vec![
        "WARNING: what follows is a decrypted message. It stays in the terminal's history, in pipes and in files: \
         show it to those who may see it, and delete it afterwards"
            .to_owned(),
    ];
    if let Some(path) = &arguments.out {
        write_new(path, opened.message.body(), &[&arguments.directory])?;
        warnings.push(format!("the body was written to {} (mode 0600)", path.display()));
    }
    let facts = message_json(queue, seq, name, &opened);
    if arguments.json {
        let mut report = facts;
        let body = arguments.out.is_none().then(|| STANDARD.encode(opened.message.body()));
        report.extend([("body_base64".to_owned(), json!(body)), ("record".to_owned(), record_json(&record))]);
        return Ok(Inspected { warnings, ..printed(&Json::Object(report))? });
    }
    let mut text = record_text(&record);
    // Writing into a String cannot fail.
    let _ = write_message(&mut text, &facts, &opened, arguments.out.is_none());
    Ok(Inspected { outcome: Outcome::Clean, text, warnings })
}

fn printed(report: &Json) -> Result<Inspected> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    Ok(Inspected { outcome: Outcome::Clean, text, warnings: Vec::new() })
}

fn flags(header: &Header) -> String {
    let named = [(FLAG_PADDED, "padded"), (FLAG_LAST, "last piece")];
    let set: Vec<_> =
        named.iter().filter(|(bit, _)| header.flags & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(", ") }
}

fn record_json(record: &RawRecord) -> Json {
    let facts = match record.facts() {
        Err(error) => json!({"error": error.to_string()}),
        Ok(RecordFacts::Plain { head, content_bytes }) => {
            json!({"version": 0, "head": head, "content_bytes": content_bytes})
        }
        Ok(RecordFacts::Sealed { header, sealed_bytes, tag }) => json!({
            "version": 1,
            "kind": format!("{:?}", header.kind),
            "flags": header.flags,
            "suite": "XAES-256-GCM",
            "key_id": header.key_id,
            "nonce_prefix": hex(&header.prefix),
            "nonce_counter": header.counter,
            "sealed_bytes": sealed_bytes,
            "tag": hex(&tag),
        }),
    };
    json!({
        "family": record.family,
        "key": hex(&record.key),
        "value_bytes": record.value.len(),
        "facts": facts,
    })
}

/// What a record says without any key, and its first bytes.
fn record_text(record: &RawRecord) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_record(&mut text, record);
    text
}

fn write_record(out: &mut String, record: &RawRecord) -> fmt::Result {
    let bytes = record.value.len();
    writeln!(out, "record at key {} of column family {}: {bytes} bytes", hex(&record.key), record.family)?;
    match record.facts() {
        Err(error) => writeln!(out, "  it is no record: {error}")?,
        Ok(RecordFacts::Plain { head, content_bytes }) => {
            let head: String = head.chars().filter(|c| !c.is_control()).collect();
            writeln!(out, "  version 0: NOT SEALED, {content_bytes} bytes of content\n  {head}")?;
        }
        Ok(RecordFacts::Sealed { header, sealed_bytes, tag }) => {
            writeln!(out, "  0   version        1, sealed")?;
            writeln!(out, "  1   kind           {} ({:?})", header.kind as u8, header.kind)?;
            writeln!(out, "  2   flags          {:#04x} ({})", header.flags, flags(&header))?;
            writeln!(out, "  3   suite          1 (XAES-256-GCM)")?;
            writeln!(out, "  4   key id         {}", header.key_id)?;
            writeln!(out, "  8   nonce prefix   {}, one for each commit", hex(&header.prefix))?;
            writeln!(out, "  20  nonce counter  {}", header.counter)?;
            writeln!(
                out,
                "  28  ciphertext     {sealed_bytes} bytes, the content's length with its padding ({OVERHEAD_BYTES} bytes are the seal)"
            )?;
            writeln!(out, "  {:<3} tag            {}", 28 + sealed_bytes, hex(&tag))?;
        }
    }
    writeln!(out)?;
    let shown = record.value.get(..bytes.min(DUMP_BYTES)).unwrap_or_default();
    hexdump::lines(0, shown).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    if bytes > DUMP_BYTES {
        writeln!(out, "... {} bytes more", bytes - DUMP_BYTES)?;
    }
    Ok(())
}

fn message_json(queue: QueueId, seq: Seq, name: Option<String>, opened: &OpenedEntry) -> Map<String, Json> {
    let OpenedEntry { meta, delivery_count, body, message } = opened;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let report = json!({
        "queue": queue.0,
        "queue_name": name,
        "seq": seq.0,
        "enqueued_at": moment(meta.enqueued_ms),
        "expires_at": (meta.expires_ms > 0).then(|| moment(meta.expires_ms)),
        "priority": meta.priority,
        "delivery_count": delivery_count,
        "exchange": text(message.exchange()),
        "routing_key": text(message.routing_key()),
        "properties": properties_json(message.properties()),
        "body_bytes": message.body().len(),
        "body_apart": body.as_ref().map(|(id, records)| json!({"id": id.0, "pieces": records.len()})),
    });
    match report {
        Json::Object(report) => report,
        _ => Map::new(),
    }
}

fn write_message(
    out: &mut String,
    facts: &Map<String, Json>,
    opened: &OpenedEntry,
    shows_body: bool,
) -> fmt::Result {
    writeln!(out, "\nmessage")?;
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_null()) {
        match value {
            Json::Object(inner) if name == "properties" => {
                writeln!(out, "  {name}")?;
                inner.iter().try_for_each(|(name, value)| writeln!(out, "    {name:<20} {value}"))?;
            }
            value => writeln!(out, "  {name:<22} {value}")?,
        }
    }
    if !shows_body {
        return Ok(());
    }
    let body = opened.message.body();
    let shown = body.get(..body.len().min(BODY_SHOWN_BYTES_MAX)).unwrap_or_default();
    writeln!(out, "\nbody, {} bytes", body.len())?;
    match std::str::from_utf8(shown) {
        Ok(text) if text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t') => {
            writeln!(out, "{text}")?
        }
        // A body may hold what makes a terminal obey it.
        _ => hexdump::lines(0, shown).iter().try_for_each(|line| writeln!(out, "{line}"))?,
    }
    if body.len() > shown.len() {
        writeln!(out, "... {} bytes more; --out FILE gives all of them", body.len() - shown.len())?;
    }
    Ok(())
}
