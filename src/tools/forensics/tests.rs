//! The claims of `sealmq-forensics` on real directories.

mod leaks;
mod store;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::html::render_html;
use super::output::write_report;
use super::*;

const BODY: &[u8] = br#"{"data": {"message": "Rolling 3", "outcome": 3}, "version": "1.0.0"}"#;

/// Bytes that look sealed: a fixed stream without structure (xorshift), so that a failure can be repeated.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| step()).collect()
}

fn store(root: &Path, log: &[u8]) {
    fs::create_dir_all(root.join("db/empty")).unwrap();
    fs::write(root.join("db/000004.log"), log).unwrap();
    fs::write(root.join("keyring"), noise(300)).unwrap();
}

fn plain_log() -> Vec<u8> {
    [&noise(5000)[..], b"\x00die\x00", BODY, &noise(3000)].concat()
}

#[test]
fn says_file_offset_form_and_entropy() {
    let root = tempfile::tempdir().unwrap();
    store(root.path(), &plain_log());
    let report = scan(root.path(), &Needles::new(["Rolling 3", "absent needle"]).unwrap()).unwrap();
    assert_eq!(report.outcome, Outcome::Found);
    let log = report.files.iter().find(|file| file.path == "db/000004.log").unwrap();
    let at = 5000 + 5 + BODY.windows(9).position(|window| window == b"Rolling 3").unwrap() as u64;
    let hit = &log.hits[0];
    assert_eq!((hit.form, hit.place, hit.count, &hit.offsets), (Form::Text, Place::Content, 1, &vec![at]));
    assert!(log.entropy > 7.9 && log.bytes == plain_log().len() as u64);
    assert_eq!(report.needles.iter().map(|needle| needle.hits).collect::<Vec<_>>(), [1, 0]);
    let text = render_scan(&report);
    assert!(
        text.contains(&format!("db/000004.log: as text at 0x{at:x}")) && text.contains("FOUND"),
        "{text}"
    );
}

#[test]
fn a_sealed_directory_is_clean() {
    let root = tempfile::tempdir().unwrap();
    store(root.path(), &noise(2_000_000));
    let report = scan(root.path(), &Needles::new(["Rolling 3", "application/json"]).unwrap()).unwrap();
    assert_eq!((report.outcome, report.hit_count()), (Outcome::Clean, 0));
    assert!(report.entropy > 7.99, "{}", report.entropy);
}

#[test]
fn finds_a_needle_far_behind_the_first_chunk() {
    let root = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(root.path().join("sparse")).unwrap();
    let far = (1 << 26) + 12_345;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(far)).unwrap();
    file.write_all(b"canary").unwrap();
    let report = scan(root.path(), &Needles::new(["canary"]).unwrap()).unwrap();
    assert_eq!(report.files[0].hits[0].offsets, [far]);
}

#[test]
fn names_of_files_folders_and_links_are_searched_too() {
    let root = tempfile::tempdir().unwrap();
    store(root.path(), b"");
    fs::create_dir(root.path().join("queue-orders")).unwrap();
    symlink("/elsewhere/orders", root.path().join("link")).unwrap();
    let report = scan(root.path(), &Needles::new(["orders"]).unwrap()).unwrap();
    let found: Vec<_> =
        report.files.iter().filter(|file| !file.hits.is_empty()).map(|file| &file.path).collect();
    assert_eq!(found, ["link", "queue-orders"]);
    assert!(report.files.iter().flat_map(|file| &file.hits).all(|hit| hit.place == Place::Name));
}

#[test]
fn a_missing_or_empty_directory_is_no_clean_one() {
    let root = tempfile::tempdir().unwrap();
    let needles = Needles::new(["x"]).unwrap();
    assert!(matches!(scan(root.path(), &needles), Err(Error::NothingToSearch { .. })));
    let error = scan(&root.path().join("absent"), &needles).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
}

#[test]
fn sockets_and_pipes_are_named_and_not_waited_for() {
    let root = tempfile::tempdir().unwrap();
    store(root.path(), b"");
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("control.sock")).unwrap();
    let report = scan(root.path(), &Needles::new(["needle"]).unwrap()).unwrap();
    assert!(report.without_content.contains(&"control.sock".to_owned()), "{:?}", report.without_content);
    assert_eq!(report.outcome, Outcome::Clean);
}

#[test]
fn compare_shows_the_plain_bytes_and_the_sealed_ones() {
    let root = tempfile::tempdir().unwrap();
    let (sealed, plain) = (root.path().join("sealed"), root.path().join("plain"));
    store(&sealed, &noise(9000));
    store(&plain, &plain_log());
    let needles = Needles::new(["Rolling 3", "\"outcome\": 3", "in neither"]).unwrap();
    let report = compare(&sealed, &plain, &needles).unwrap();
    assert_eq!(report.outcome, Outcome::Clean, "{:?}", report.errors);
    assert_eq!(report.plain_excerpts.len(), 1, "neighbours become one excerpt");
    assert!(report.sealed_excerpts.is_empty());
    assert_eq!(report.contrast.as_ref().unwrap().lines.len(), 16);
    let text = render_compare(&report);
    for expected in ["Rolling 3", "in neither: proves nothing", "clean: 0 hits in the sealed directory, 2 in"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let shown: String = report.plain_excerpts[0].lines.iter().map(|line| &line[51..]).collect();
    assert!(shown.contains(std::str::from_utf8(BODY).unwrap()), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["outcome"], "clean");
    assert_eq!(json["plain"]["files"][0]["hits"][0]["form"], "text");
}

#[test]
fn compare_reports_a_leak_and_fails_without_a_control() {
    let root = tempfile::tempdir().unwrap();
    let (sealed, plain) = (root.path().join("sealed"), root.path().join("plain"));
    store(&sealed, &plain_log());
    store(&plain, &plain_log());
    let leak = compare(&sealed, &plain, &Needles::new(["Rolling 3"]).unwrap()).unwrap();
    assert_eq!((leak.outcome, leak.sealed_excerpts.len()), (Outcome::Found, 1));
    let void = compare(&sealed, &plain, &Needles::new(["not sent at all"]).unwrap()).unwrap();
    assert_eq!(void.outcome, Outcome::Failed);
    assert!(void.errors[0].contains("proves nothing"), "{:?}", void.errors);
}

#[test]
fn compare_tells_that_the_two_were_exchanged() {
    let root = tempfile::tempdir().unwrap();
    let (sealed, plain) = (root.path().join("sealed"), root.path().join("plain"));
    store(&sealed, &noise(9000));
    store(&plain, &plain_log());
    fs::write(plain.join("SEALMQ_STORE"), r#"{"mode": "plain-insecure"}"#).unwrap();
    let needles = Needles::new(["Rolling 3"]).unwrap();
    assert_eq!(compare(&sealed, &plain, &needles).unwrap().outcome, Outcome::Clean);
    let exchanged = compare(&plain, &sealed, &needles).unwrap();
    assert_eq!(exchanged.outcome, Outcome::Failed);
    assert!(exchanged.errors[0].contains("exchanged"), "{:?}", exchanged.errors);
}

#[test]
fn each_needle_is_shown_before_any_is_shown_twice() {
    let root = tempfile::tempdir().unwrap();
    let (sealed, plain) = (root.path().join("sealed"), root.path().join("plain"));
    store(&sealed, &noise(100));
    let gap = noise(2000);
    let mut log = Vec::new();
    for _ in 0..40 {
        log.extend_from_slice(b"frequent needle");
        log.extend_from_slice(&gap);
    }
    log.extend_from_slice(b"rare needle");
    store(&plain, &log);
    let report =
        compare(&sealed, &plain, &Needles::new(["frequent needle", "rare needle"]).unwrap()).unwrap();
    let shown: Vec<_> = report.plain_excerpts.iter().flat_map(|excerpt| &excerpt.hits).collect();
    assert_eq!(shown.len(), 12);
    assert!(shown.iter().any(|hit| hit.contains("rare needle")), "{shown:?}");
}

/// A needle and a path that would be markup, and a body that holds a script.
fn hostile_pair(root: &Path) -> CompareReport {
    let (sealed, plain) = (root.join("sealed"), root.join("plain"));
    store(&sealed, &noise(90_000));
    store(&plain, &[&noise(40_000)[..], b"</pre><script>alert(1)</script>", &noise(50_000)].concat());
    fs::write(plain.join("db/<b onclick=x>.log"), "a name").unwrap();
    compare(&sealed, &plain, &Needles::new(["</pre><script>alert(1)</script>", "nowhere"]).unwrap()).unwrap()
}

#[test]
fn the_report_is_one_file_that_loads_and_runs_nothing() {
    let root = tempfile::tempdir().unwrap();
    let page = render_html(&hostile_pair(root.path()), "2026-01-01T00:00:00Z");
    for forbidden in
        ["<script", "http:", "https:", "url(", "@import", "<link", "<iframe", "<b onclick", "<object"]
    {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
}

#[test]
fn the_report_shows_verdict_pictures_and_both_sides_of_a_place() {
    let root = tempfile::tempdir().unwrap();
    let report = hostile_pair(root.path());
    let page = render_html(&report, "2026-01-01T00:00:00Z");
    for wanted in [
        "The sealed store shows nothing of what was looked for.",
        "1 of 2",
        "proves nothing",
        "one byte in 6 of 87.9 KiB",
        "data:image/png;base64,",
        "<mark>",
        "<figcaption>sealed: <span class=\"path\">db/000004.log</span></figcaption>",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    // Keyring and log on each side, three pictures each; the file of that name is too small for any.
    assert_eq!((page.matches("<img ").count(), page.matches("<svg ").count()), (4, 8));
    let leak =
        compare(&root.path().join("plain"), &root.path().join("plain"), &Needles::new(["script"]).unwrap());
    let page = render_html(&leak.unwrap(), "");
    assert!(page.contains("The sealed store shows something that it should hide."));
    assert!(page.contains("Readable in the sealed store"));
    let void = compare(
        &root.path().join("sealed"),
        &root.path().join("plain"),
        &Needles::new(["no such text"]).unwrap(),
    );
    assert!(render_html(&void.unwrap(), "").contains("This comparison proves nothing"));
}

#[test]
fn the_report_of_large_stores_is_small() {
    let root = tempfile::tempdir().unwrap();
    for side in ["sealed", "plain"] {
        store(&root.path().join(side), &noise(100));
        for number in 0..40 {
            fs::write(root.path().join(side).join(format!("db/{number:06}.sst")), noise(600_000)).unwrap();
        }
    }
    let needles = Needles::new(["nowhere"]).unwrap();
    let report = compare(&root.path().join("sealed"), &root.path().join("plain"), &needles).unwrap();
    let page = render_html(&report, "");
    assert!(page.len() < 600_000, "{} bytes", page.len());
    assert!(page.contains("8 of 42 files"));
}

#[test]
fn a_report_is_its_owners_alone_and_never_in_what_is_examined() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let examined = root.path().join("data");
    fs::create_dir_all(examined.join("db")).unwrap();
    let path = root.path().join("report.html");
    for text in ["first", "second"] {
        write_report(&path, text, &[&examined]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert!(write_report(&examined.join("db/report.html"), "x", &[&examined]).is_err());
    symlink(root.path().join("elsewhere"), root.path().join("link.html")).unwrap();
    assert!(write_report(&root.path().join("link.html"), "x", &[&examined]).is_err());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3, "nothing else was made");
}
