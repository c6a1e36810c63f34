//! `verify` and `inspect` on stores that the store itself has made.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::super::sources::KeyArguments;
use super::super::*;
use crate::amqp::properties::Properties;
use crate::broker::id::{QueueId, Seq};
use crate::broker::message::Message;
use crate::seal::Kek;
use crate::store::{EntryMeta, Mode, OpenOptions, Store, kek_from_file};

const BODY: &[u8] = br#"{"outcome": "a canary in a body"}"#;

struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    /// A store at rest: a small message, a large one, and one that a terminal would obey.
    fn new(mode: Mode) -> Site {
        let site = Site { folder: tempfile::tempdir().unwrap() };
        for (name, first) in [("kek", 1u8), ("other", 77)] {
            let path = site.folder.path().join(name);
            fs::write(&path, (first..first + 32).collect::<Vec<u8>>()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        }
        let kek: Kek = kek_from_file(&site.path("kek")).unwrap();
        let (store, _) = Store::open(OpenOptions::new(site.data(), mode, Some(kek.into()))).unwrap();
        let mut properties = Vec::new();
        Properties { content_type: Some(b"application/json"), ..Properties::default() }
            .encode(&mut properties);
        let message = |body: &[u8]| Message::new(b"canary-exchange", b"canary.key", &properties, &[body]);
        let meta = EntryMeta { enqueued_ms: 1000, ..EntryMeta::default() };
        let large = store.shared_body(&message(&BODY.repeat(20_000)), 1);
        let mut appender = store.appender();
        appender.put(QueueId(4), Seq(1), &message(BODY), None, meta);
        appender.put(QueueId(4), Seq(2), large.message(), Some(&large), meta);
        appender.put(QueueId(4), Seq(3), &message(b"\x1b]0;canary\x07"), None, meta);
        drop(appender);
        store.close().unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn key(&self, name: Option<&str>) -> KeyArguments {
        KeyArguments { kek: name.map(|name| self.path(name)), ..KeyArguments::default() }
    }

    fn verify(&self, key: Option<&str>) -> anyhow::Result<VerifyReport> {
        let (directory, key) = (self.data(), self.key(key));
        verify(&VerifyArguments { directory, key, anchor: None, no_anchor: false, json: false })
    }

    fn inspect(&self, key: Option<&str>, seq: Option<u64>) -> anyhow::Result<Inspected> {
        self.inspect_to(key, seq, None)
    }

    fn inspect_to(
        &self,
        key: Option<&str>,
        seq: Option<u64>,
        out: Option<&Path>,
    ) -> anyhow::Result<Inspected> {
        let (directory, key, out) = (self.data(), self.key(key), out.map(Path::to_path_buf));
        inspect(&InspectArguments { directory, queue: seq.map(|_| 4), seq, key, out, json: false })
    }

    /// Flips a bit in the last write-ahead log, as rot does.
    fn rot(&self) {
        let logs = fs::read_dir(self.data().join("db")).unwrap().map(|entry| entry.unwrap().path());
        let log = logs.filter(|path| path.extension().is_some_and(|suffix| suffix == "log")).max().unwrap();
        let mut bytes = fs::read(&log).unwrap();
        bytes[200] ^= 1;
        fs::write(log, bytes).unwrap();
    }
}

#[test]
fn verify_says_sound_or_names_the_fault_and_the_file() {
    for (mode, key) in [(Mode::Sealed, Some("kek")), (Mode::PlainInsecure, None)] {
        let site = Site::new(mode);
        let report = site.verify(key).unwrap();
        assert_eq!((report.outcome, report.counts.messages, report.complete), (Outcome::Clean, 3, true));
        assert!(render_verify(&report).contains("\nSOUND: "));
        site.rot();
        let report = site.verify(key).unwrap();
        assert_eq!((report.outcome, report.complete), (Outcome::Found, false));
        let text = render_verify(&report);
        for wanted in ["fault 1: E_WAL_CORRUPT", ".log at byte ", "  -> ", "FAULTS: 1"] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&json["outcome"], &json["faults"][0]["code"]),
            (&"found".into(), &"E_WAL_CORRUPT".into())
        );
    }
}

#[test]
fn without_the_right_key_there_is_an_error_and_no_verdict() {
    let site = Site::new(Mode::Sealed);
    for (key, code) in [(None, "E_KEK_UNAVAILABLE"), (Some("other"), "E_KEK_WRONG"), (Some("none"), "E_KEK_")]
    {
        let error = site.verify(key).unwrap_err().to_string();
        assert!(error.contains(code), "{error}");
    }
}

#[test]
fn without_the_key_a_record_tells_its_frame_and_nothing_of_its_content() {
    let site = Site::new(Mode::Sealed);
    let overview = site.inspect(None, None).unwrap().text;
    for wanted in ["Entry", "BodyChunk", "slot ", "(sealed)"] {
        assert!(overview.contains(wanted), "{wanted}: {overview}");
    }
    let record = site.inspect(None, Some(1)).unwrap();
    for wanted in
        ["kind           3 (Entry)", "suite          1 (XAES-256-GCM)", "nonce prefix", "00000000: 01"]
    {
        assert!(record.text.contains(wanted), "{wanted}: {}", record.text);
    }
    assert!(!record.text.contains("canary") && !overview.contains("canary") && record.warnings.is_empty());
    assert_eq!(site.inspect(None, Some(9)).unwrap().outcome, Outcome::Failed);
}

#[test]
fn with_the_key_one_message_is_shown_after_a_warning() {
    for (mode, key) in [(Mode::Sealed, Some("kek")), (Mode::PlainInsecure, None)] {
        let site = Site::new(mode);
        let shown = site.inspect(key, Some(1)).unwrap();
        assert!(shown.warnings[0].contains("WARNING"), "{:?}", shown.warnings);
        for wanted in
            ["canary-exchange", "canary.key", "application/json", r#"{"outcome": "a canary in a body"}"#]
        {
            assert!(shown.text.contains(wanted), "{wanted}: {}", shown.text);
        }
        let large = site.inspect(key, Some(2)).unwrap().text;
        assert!(large.contains(r#"body_apart             {"id":1,"pieces":3}"#), "{}", &large[..2000]);
        let control = site.inspect(key, Some(3)).unwrap().text;
        assert!(!control.contains('\x1b') && control.contains("1b5d 303b"), "{control}");
    }
}

#[test]
fn a_body_is_written_to_a_new_file_of_its_owner_alone() {
    let site = Site::new(Mode::Sealed);
    let out = site.path("body");
    let shown = site.inspect_to(Some("kek"), Some(2), Some(&out)).unwrap();
    assert_eq!(fs::read(&out).unwrap(), BODY.repeat(20_000));
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!shown.text.contains("a canary in a body") && shown.warnings[1].contains("0600"));
    assert!(site.inspect_to(Some("kek"), Some(1), Some(&out)).is_err(), "never over a file");
    symlink(site.path("elsewhere"), site.path("link")).unwrap();
    assert!(site.inspect_to(Some("kek"), Some(1), Some(&site.path("link"))).is_err());
    assert!(!site.path("elsewhere").exists(), "never through a link");
    assert!(site.inspect_to(None, Some(1), Some(&site.path("sealed"))).is_err());
    assert!(!site.path("sealed").exists());
}
