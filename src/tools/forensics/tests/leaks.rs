//! What RocksDB writes of its own accord: the host's name, absolute paths, options. Searched for in every file that it
//! makes for a sealed store, after flushes, compactions and deletions; found in a database with its default options.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::super::*;
use crate::amqp::field_table::{TableWriter, Value};
use crate::amqp::properties::Properties;
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::message::Message;
use crate::broker::queue::Run;
use crate::seal::Kek;
use crate::store::{EntryMeta, Mode, OpenOptions, PageRequest, Position, RowKind, Store};

/// The folder in which all stores of this test lie.
const FOLDER: &str = "canary-folder-5f0a77";
const HOST: &str = "canary-host-c31d9e";
/// What clients wrote.
const CONTENT: [&str; 7] = [
    "canary-body-3f9a1c",
    "canary-large-body-77b0e2",
    "canary-exchange-e7f3aa",
    "canary.key.b81f02",
    "canary-header-5d2190",
    "canary-queue-6c0d44",
    "canary-user-90ce51",
];
/// Set in the process that runs under another host's name.
const CHILD: &str = "SEALMQ_TEST_LEAK_HOST";

fn needles(texts: &[&str]) -> Needles {
    Needles::new(texts.iter().copied()).unwrap()
}

fn message(text: &str) -> Message {
    let [_, _, exchange, key, header, ..] = CONTENT;
    let headers = TableWriter::new().entry(header, Value::LongStr(header.as_bytes()));
    let mut properties = Vec::new();
    Properties { headers: Some(headers.as_table()), ..Properties::default() }.encode(&mut properties);
    Message::new(exchange.as_bytes(), key.as_bytes(), &properties, &[text.as_bytes()])
}

/// Each round writes small, middling and large messages, takes some away again, and starts anew, which moves the
/// content of the log into tables and blob files.
fn work(dir: &Path, mode: Mode) {
    let [body, large_body, .., queue, user] = CONTENT;
    for round in 0..6u64 {
        let kek = Kek::take(&mut std::array::from_fn(|i| i as u8));
        let (store, recovered) = Store::open(OpenOptions::new(dir, mode, Some(kek.into()))).unwrap();
        let runs = recovered.queues.iter().flat_map(|queue| queue.runs.iter().map(|run| (queue.id, *run)));
        let read = |(queue, run): (QueueId, Run)| {
            let (first, last) = (run.first, run.last);
            let all = PageRequest { queue, first, last, len_max: usize::MAX, bytes_max: usize::MAX };
            store.page(&all).unwrap().entries
        };
        let found: Vec<_> = runs.flat_map(read).collect();
        let large = store.shared_body(&message(&large_body.repeat(20_000)), 2);
        let mut appender = store.appender();
        appender.put_row(RowKind::Queue, RowId(1), queue.as_bytes().to_vec());
        appender.put_row(RowKind::User, RowId(2), format!("{user} {round}").into_bytes());
        for entry in found.iter().filter(|entry| entry.seq.0 % 2 == 0) {
            let bytes = entry.message.size_bytes();
            appender.delete(QueueId(1), entry.seq, bytes, entry.shared.as_ref(), Position(0));
        }
        let first = 1 + round * 100;
        for seq in first..first + 20 {
            let text = body.repeat(if seq % 5 == 0 { 600 } else { 2 });
            appender.put(QueueId(1), Seq(seq), &message(&text), None, EntryMeta::default());
        }
        for seq in [first + 20, first + 21] {
            appender.put(QueueId(1), Seq(seq), large.message(), Some(&large), EntryMeta::default());
        }
        drop(appender);
        store.close().unwrap();
    }
}

/// What kinds of files there are: suffixes, and names that end in no number.
fn kinds(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .map(|name| name.rsplit_once('.').map_or(name.clone(), |(_, suffix)| suffix.to_owned()))
        .map(|name| name.split('-').next().unwrap_or_default().to_owned())
        .collect()
}

/// The store with RocksDB's own defaults, as the control.
fn database_with_defaults(dir: &Path) {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let database = rocksdb::DB::open(&options, dir).unwrap();
    database.put(CONTENT[0], CONTENT[1]).unwrap();
    database.flush().unwrap();
}

fn audit(host: Option<&str>) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join(FOLDER);
    let (sealed, plain, control) = (folder.join("sealed"), folder.join("plain"), folder.join("control"));
    fs::create_dir(&folder).unwrap();
    work(&sealed, Mode::Sealed);
    work(&plain, Mode::PlainInsecure);
    database_with_defaults(&control);
    let wanted = ["log", "sst", "blob", "MANIFEST", "CURRENT", "OPTIONS", "IDENTITY"];
    let found = kinds(&sealed.join("db"));
    assert!(wanted.iter().all(|kind| found.contains(*kind)), "not all kinds of files were made: {found:?}");
    assert!(!found.contains("LOG"), "RocksDB's text log is there");

    let path = folder.to_str().unwrap();
    let of_the_host: Vec<&str> = [FOLDER, path].into_iter().chain(host).collect();
    let all: Vec<&str> = CONTENT.iter().chain(&of_the_host).copied().collect();
    let report = scan(&sealed, &needles(&all)).unwrap();
    assert_eq!(report.outcome, Outcome::Clean, "{}", render_scan(&report));
    for (dir, texts) in [(&plain, &CONTENT[..]), (&control, &of_the_host)] {
        let report = scan(dir, &needles(texts)).unwrap();
        let missing: Vec<_> = report.needles.iter().filter(|needle| needle.hits == 0).collect();
        assert!(missing.is_empty(), "the search for these proves nothing: {missing:?}");
    }
}

/// Runs in the process that the next test starts; alone it does nothing.
#[test]
fn under_another_hosts_name() {
    if std::env::var_os(CHILD).is_some() {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(host.trim(), HOST);
        audit(Some(HOST));
        println!("audited as {HOST}");
    }
}

/// The host's real name may be too short to be searched for, so the audit runs under another one, in a namespace.
#[test]
fn neither_host_nor_path_nor_content_stands_in_any_file_that_rocksdb_writes() {
    let run = |namespace: &[&str]| {
        let script = format!("echo {HOST} > /proc/sys/kernel/hostname && exec \"$0\" \"$@\"");
        let test = "tools::forensics::tests::leaks::under_another_hosts_name";
        let output = Command::new("unshare")
            .args(namespace)
            .args(["sh", "-c", &script])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output();
        output.map(|output| {
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
        })
    };
    for namespace in [&["--uts"][..], &["--user", "--map-root-user", "--uts"]] {
        let said = run(namespace).unwrap_or_default();
        if said.contains(&format!("audited as {HOST}")) {
            return;
        }
        assert!(!said.contains("running 1 test"), "{said}");
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim();
    let is_long = host.len() >= 8;
    if !is_long {
        println!("NOT SEARCHED: the host's name; '{host}' is too short, and no namespace is permitted here");
    }
    audit(Some(host).filter(|_| is_long));
}
