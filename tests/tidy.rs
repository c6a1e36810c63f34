//! The architecture test: reads the source text of this package and holds it to the house rules.
//!
//! What lives here: the layer table of `src/lib.rs`, the owner of each outside power, and the bounds on
//! files and functions, each with the remedy in its message. What must not: anything that needs the
//! library to compile or run; this file reads text and nothing else. It is a lexer and a handful of
//! searches, not a compiler: macros that build paths from pieces would pass unseen.
//!
//! To change a rule, change its table here and say why in the commit; there is no list of exceptions.

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use source::{Finding, Source, arguments, identifier, is_word, item_end, root_paths, words};

/// Lines in one file, its tests not counted.
const FILE_LINES_MAX: usize = 500;
/// Lines in one function, from `fn` to its closing brace, outside tests.
const FUNCTION_LINES_MAX: usize = 70;

/// The layers of `src/lib.rs` in the order of its table, each with what it may import: a whole module, or
/// one part of it. Broker and engine know AMQP's values, never its frames; the engine knows the port that a
/// session asks through, never the session.
const LAYERS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("amqp", &["limits"]),
    (
        "broker",
        &["limits", "amqp::field_table", "amqp::properties", "amqp::reader::DecodeError", "amqp::reply_code"],
    ),
    ("session", &["limits", "amqp", "broker"]),
    ("seal", &["limits"]),
    ("store", &["limits", "broker", "seal"]),
    (
        "engine",
        &[
            "limits",
            "amqp::field_table",
            "amqp::properties",
            "amqp::reply_code",
            "broker",
            "session::port",
            "seal",
            "store",
        ],
    ),
    ("net", &["limits", "amqp", "broker", "session", "engine"]),
    ("server", &["limits", "amqp", "broker", "session", "seal", "store", "engine", "net"]),
    ("tools", &["limits", "amqp", "broker", "session", "seal", "store", "engine", "net", "server"]),
    ("bin", &["server", "tools"]),
];

/// A power over the outside world, the words that exercise it and the only places that may.
struct Power {
    name: &'static str,
    words: &'static [&'static str],
    owners: &'static [&'static str],
    remedy: &'static str,
}

const POWERS: &[Power] = &[
    Power {
        name: "cryptography of data at rest",
        words: &["aes", "aes_gcm", "argon2", "hkdf", "hmac"],
        owners: &["seal/"],
        remedy: "add what is needed to `seal` and call it",
    },
    Power {
        name: "PKCS#11 modules",
        words: &["cryptoki"],
        owners: &["server/pkcs11"],
        remedy: "what a token does is behind `seal::key_service::KeyService`",
    },
    Power {
        name: "RocksDB",
        words: &["rocksdb"],
        owners: &["store/rocks.rs"],
        remedy: "only store/rocks.rs names the engine; give it a method",
    },
    Power {
        name: "TLS and TCP sockets",
        words: &["rustls", "tokio_rustls", "ureq", "TcpListener", "TcpStream"],
        owners: &["net/", "server/healthcheck", "server/vault", "tools/"],
        remedy: "AMQP sockets belong to `net`; tools, the health check and a key server own their client side",
    },
    Power {
        name: "Unix sockets",
        words: &["UnixListener", "UnixStream"],
        owners: &["server/control", "server/healthcheck", "tools/"],
        remedy: "the control socket is server/control.rs",
    },
    Power {
        name: "the async runtime",
        words: &["tokio"],
        owners: &["engine/", "net/", "server/", "tools/", "bin/"],
        remedy: "layers L0 to L5 are synchronous; pass the event in, return the effect",
    },
    Power {
        name: "locks over shared state",
        words: &["Mutex", "RwLock"],
        owners: &["engine/", "seal/locked", "store/commit", "net/", "server/", "tools/"],
        remedy: "shared state lives in `engine` (and the committer's inbox, the arenas for keys); pass `&mut`",
    },
    Power {
        name: "ending the process",
        words: &["process::exit", "process::abort"],
        owners: &["bin/"],
        remedy: "return an error; the program maps it to an exit code",
    },
    Power {
        name: "the clock",
        words: &["Instant::now", "SystemTime::now", "OffsetDateTime::now_utc", "UtcDateTime::now"],
        owners: &["engine/", "net/", "server/", "store/", "tools/"],
        remedy: "take `now` as an argument",
    },
    Power {
        name: "randomness",
        words: &["getrandom", "SystemRandom"],
        owners: &["seal/", "engine/", "net/", "server/", "tools/"],
        remedy: "take the random value as an argument",
    },
    Power {
        name: "files",
        words: &["std::fs", "fs::File", "OpenOptions", "tokio::fs"],
        owners: &["store/", "net/", "server/", "tools/"],
        remedy: "bytes come in as arguments; data at rest is `store`'s",
    },
    Power {
        name: "environment variables",
        words: &["std::env", "env::var", "env::var_os"],
        owners: &["server/", "tools/", "bin/"],
        remedy: "read it in server/environment.rs and pass the value",
    },
    Power {
        name: "anyhow",
        words: &["anyhow"],
        owners: &["tools/", "bin/"],
        remedy: "a layer has one `thiserror` enum, by cause",
    },
    Power {
        name: "serialization by derive",
        words: &["serde", "serde_json"],
        owners: &["store/", "engine/view", "net/", "server/", "tools/", "bin/"],
        remedy: "domain types are never Serialize; make a plain view of them",
    },
];

/// Modules that handle bytes from outside: they may not panic.
const MUST_NOT_PANIC: &[&str] = &["amqp", "broker", "session", "seal", "store"];
const PANICS: &[&str] = &[".unwrap()", ".expect(", ".unwrap_err()", "panic!(", "todo!(", "unimplemented!("];

const UNITS_MISPLACED: &[&str] = &["_in_ms", "_in_millis", "_in_seconds", "_in_secs", "_in_bytes"];

// The rules. Each takes what it needs and returns what it found.

fn check_imports(source: &Source) -> Vec<Finding> {
    let layer = source.layer();
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else { return Vec::new() };
    let mut found = Vec::new();
    for (at, path) in root_paths(source) {
        let target = identifier(&path);
        let is_layer = LAYERS.iter().any(|(name, _)| *name == target);
        let is_allowed = allowed.iter().any(|door| {
            path.strip_prefix(door).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        });
        if is_layer && target != layer && !is_allowed {
            let remedy = format!("`{layer}` may import [{}]: LAYERS in tests/tidy.rs", allowed.join(", "));
            found.push(source.finding(at, format!("`{layer}` imports `{path}`"), remedy));
        }
    }
    found
}

fn check_powers(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for power in POWERS.iter().filter(|power| !power.owners.iter().any(|at| source.place().starts_with(at))) {
        for word in power.words {
            for at in words(&source.shipped, word).filter(|at| is_used(&source.shipped, *at, word)) {
                let rule = format!("`{word}` ({}) outside {}", power.name, power.owners.join(", "));
                found.push(source.finding(at, rule, power.remedy));
            }
        }
    }
    found
}

/// A crate's name counts where a path starts with it or a macro is called: a variable may share it.
fn is_used(code: &str, at: usize, word: &str) -> bool {
    let rest = code[at + word.len()..].trim_start();
    let is_crate = !word.contains("::") && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    !is_crate || rest.starts_with("::") || rest.starts_with('!') || code[..at].trim_end().ends_with("use")
}

fn check_size(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let lines = source.text.lines().count() - source.test_lines;
    if lines > FILE_LINES_MAX {
        let rule = format!("{lines} lines without tests, {FILE_LINES_MAX} are allowed");
        found.push(source.finding(0, rule, "split it by what it does, one `//!` each"));
    }
    for at in words(&source.shipped, "fn") {
        let name = identifier(source.shipped[at + 2..].trim_start());
        let end = item_end(&source.shipped, at);
        let lines = 1 + source.shipped[at..end].matches('\n').count();
        if !name.is_empty() && lines > FUNCTION_LINES_MAX {
            let rule = format!("`{name}` has {lines} lines, {FUNCTION_LINES_MAX} are allowed");
            found.push(source.finding(at, rule, "give its steps names of their own"));
        }
    }
    found
}

fn check_text(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    if !source.text.starts_with("//! ") {
        found.push(source.finding(0, "no `//!` on the first line", "say what lives here and what must not"));
    }
    if let Some(at) = source.text.bytes().position(|byte| !byte.is_ascii()) {
        found.push(source.finding(at, "a character that is not ASCII", "write it in ASCII, or as an escape"));
    }
    for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
        for at in words(&source.text, word) {
            found.push(source.finding(at, format!("`{word}` left in"), "do it now, or open an issue"));
        }
    }
    for notes in [concat!("store", ".md"), concat!("design", ".md"), concat!("features", ".md")] {
        for (at, _) in source.text.match_indices(notes) {
            found.push(source.finding(at, format!("`{notes}` is not part of this project"), "say it here"));
        }
    }
    found
}

fn check_attributes(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for word in ["#[allow", "#![allow"] {
        for (at, _) in source.code.match_indices(word) {
            let remedy = "mend the cause, or use #[expect(.., reason = \"..\")]";
            found.push(source.finding(at, "a lint is switched off", remedy));
        }
    }
    for word in ["#[expect(", "#![expect("] {
        for (at, _) in source.code.match_indices(word) {
            let end = source.code[at..].find(']').map_or(source.code.len(), |n| at + n);
            if words(&source.code[at..end], "reason").next().is_none() {
                found.push(source.finding(at, "#[expect] without a reason", "add reason = \"..\""));
            }
        }
    }
    found
}

/// The one file where `unsafe` may stand.
const UNSAFE_OWNER: &str = "seal/locked";

fn check_unsafe(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for at in words(&source.shipped, "unsafe") {
        let line_start = source.text[..at].rfind('\n').unwrap_or(0);
        let mut above = source.text[..line_start].lines().rev().take(3);
        let is_explained = above.any(|line| line.trim_start().starts_with("// SAFETY: "));
        if !source.place().starts_with(UNSAFE_OWNER) {
            let rule = format!("`unsafe` outside {UNSAFE_OWNER}");
            found.push(source.finding(at, rule, "do without, or give seal/locked.rs what is missing"));
        } else if !is_explained {
            found.push(source.finding(at, "`unsafe` without a reason", "write // SAFETY: above it"));
        }
    }
    found
}

fn check_panics_and_channels(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    if MUST_NOT_PANIC.contains(&source.layer()) {
        for word in PANICS {
            let calls = source.shipped.match_indices(word).filter(|(at, _)| {
                // `Result::expect` takes one argument; a method of our own with the same name takes more.
                *word != ".expect(" || arguments(&source.shipped, at + ".expect".len()).len() == 1
            });
            for (at, _) in calls {
                let remedy = "return this layer's error; a lock: unwrap_or_else(PoisonError::into_inner)";
                found.push(source.finding(at, format!("`{word}` where bytes from outside pass"), remedy));
            }
        }
    }
    // std's `mpsc::channel()` takes no capacity, tokio's `channel(n)` does.
    let std_channel = words(&source.shipped, "mpsc::channel").filter(|at| {
        let rest = source.shipped[at + "mpsc::channel".len()..].trim_start();
        let rest =
            rest.strip_prefix("::<").map_or(rest, |inner| inner.split_once(">(").map_or("", |(_, end)| end));
        rest.starts_with("()") || rest.starts_with(')')
    });
    let unbounded = words(&source.shipped, "unbounded_channel").chain(words(&source.shipped, "unbounded"));
    for at in std_channel.chain(unbounded) {
        found.push(source.finding(at, "a channel without a bound", "give it a bound from limits.rs"));
    }
    found
}

fn check_names(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let bytes = source.shipped.as_bytes();
    let starts = (0..bytes.len()).filter(|at| is_word(bytes[*at]) && (*at == 0 || !is_word(bytes[at - 1])));
    for at in starts {
        let name = identifier(&source.shipped[at..]);
        let defines = |keyword: &str| source.shipped[..at].trim_end().ends_with(keyword);
        let is_type = defines("struct") || defines("enum") || defines("trait");
        let vague = ["Manager", "Helper", "Helpers", "Util", "Utils"].iter().any(|word| name.ends_with(word));
        if is_type && vague {
            found.push(source.finding(at, format!("`{name}` names nothing"), "name it for what it is"));
        }
        // `basic.get` is AMQP's own word: only what takes nothing but `self` is a getter.
        let is_getter = || {
            arguments(&source.shipped, at + name.len())
                .iter()
                .all(|one| one.is_empty() || one.ends_with("self"))
        };
        if defines("fn") && name.starts_with("get_") && is_getter() {
            found.push(source.finding(
                at,
                format!("`{name}`"),
                "a getter carries the field's name, without get_",
            ));
        }
        // Only where the name is given: another crate's may be what it is.
        let after = source.shipped[at + name.len()..].trim_start();
        let is_given = ["fn", "let", "mut", "const", "static"].iter().any(|keyword| defines(keyword))
            || (after.starts_with(':') && !after.starts_with("::"));
        let plain = name.to_ascii_lowercase();
        if is_given && UNITS_MISPLACED.iter().any(|end| plain.ends_with(end)) {
            found.push(source.finding(
                at,
                format!("`{name}`"),
                "the unit stands last, without `in`: timeout_ms",
            ));
        }
    }
    found
}

fn check(source: &Source) -> Vec<Finding> {
    let rules = [
        check_text,
        check_imports,
        check_powers,
        check_size,
        check_attributes,
        check_unsafe,
        check_panics_and_channels,
        check_names,
    ];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

// Rules that look at all files at once.

/// Files below `src/` that no `mod` line and no `[[bin]]` reaches.
fn check_module_tree(sources: &[Source], manifest: &str) -> Vec<Finding> {
    let mut reached: BTreeSet<String> = BTreeSet::from(["src/lib.rs".to_owned()]);
    reached.extend(
        manifest
            .lines()
            .filter_map(|line| Some(line.strip_prefix("path = \"")?.strip_suffix('"')?.to_owned())),
    );
    for source in sources {
        let folder = match source.path.strip_suffix("/mod.rs").or(source.path.strip_suffix("/lib.rs")) {
            Some(folder) => folder.to_owned(),
            None => source.path.trim_end_matches(".rs").to_owned(),
        };
        for at in words(&source.code, "mod") {
            let rest = source.code[at + 3..].trim_start();
            let name = identifier(rest);
            if rest[name.len()..].trim_start().starts_with(';') {
                reached.insert(format!("{folder}/{name}.rs"));
                reached.insert(format!("{folder}/{name}/mod.rs"));
            }
        }
    }
    let lost =
        sources.iter().filter(|source| source.path.starts_with("src/") && !reached.contains(&source.path));
    lost.map(|source| source.finding(0, "no `mod` line reaches this file", "declare it or delete it"))
        .collect()
}

/// The layer table in the documentation of `src/lib.rs` and `LAYERS` must list the same modules in one order.
fn check_layer_table(lib: &Source) -> Vec<Finding> {
    let rows = lib.text.lines().filter(|line| line.starts_with("//! | L"));
    let documented: Vec<&str> =
        rows.flat_map(|row| row.split("[`").skip(1).filter_map(|part| part.split('`').next())).collect();
    let enforced: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).filter(|name| *name != "bin").collect();
    let mut found = Vec::new();
    if documented != enforced {
        let rule = format!("the table lists {documented:?}, tests/tidy.rs enforces {enforced:?}");
        found.push(lib.finding(0, rule, "change both together"));
    }
    for at in words(&lib.code, "mod") {
        let name = identifier(lib.code[at + 3..].trim_start());
        if !enforced.contains(&name) {
            found.push(lib.finding(
                at,
                format!("`{name}` has no layer"),
                "give it a row in the table and in LAYERS",
            ));
        }
    }
    found
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    rust_files(&root.join("src"), &mut paths);
    rust_files(&root.join("tests"), &mut paths);
    rust_files(&root.join("benches"), &mut paths);
    paths.sort();
    let sources: Vec<Source> = paths
        .iter()
        .map(|path| {
            let text =
                std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Source::new(&path.strip_prefix(root).expect("below the root").to_string_lossy(), &text)
        })
        .collect();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml is readable");
    let lib = sources.iter().find(|source| source.path == "src/lib.rs").expect("src/lib.rs exists");
    let mut found = check_layer_table(lib);
    found.extend(check_module_tree(&sources, &manifest));
    found.extend(sources.iter().flat_map(check));
    let report: Vec<String> = found.iter().map(Finding::to_string).collect();
    assert!(found.is_empty(), "{} rules broken:\n{}\n", found.len(), report.join("\n"));
}

/// The checker itself, held to bad samples: each rule must see what it is for, and no more.
#[cfg(test)]
mod samples {
    use super::*;

    /// The rules that `code`, in a file with a proper first line at `path`, breaks.
    fn broken(path: &str, code: &str) -> Vec<String> {
        check(&Source::new(path, &format!("//! What lives here.\n{code}\n")))
            .into_iter()
            .map(|found| found.rule)
            .collect()
    }

    fn assert_clean(path: &str, code: &str) {
        assert_eq!(broken(path, code), Vec::<String>::new(), "{path}: {code}");
    }

    fn assert_broken(path: &str, code: &str, rule: &str) {
        let found = broken(path, code);
        assert!(
            found.iter().any(|text| text.contains(rule)),
            "{path}: {code}: expected `{rule}`, found {found:?}"
        );
    }

    #[test]
    fn an_import_from_a_lower_layer_is_found_however_it_is_written() {
        let ways = [
            "use crate::engine::Hub;",
            "use crate::{limits, engine::{self, Hub}};",
            "use crate::{limits::{A, B}, engine};",
            "fn f() { crate::engine::run() }",
            "use super::super::engine::Hub;",
            "use super::super::{engine::Hub};",
            "pub use crate::engine as e;",
        ];
        for way in ways {
            assert_broken("src/amqp/frame.rs", way, "`amqp` imports `engine");
        }
    }

    #[test]
    fn an_import_from_above_or_from_the_same_layer_is_allowed() {
        assert_clean(
            "src/amqp/frame.rs",
            "use crate::limits::A;\nuse super::writer::W;\nuse crate::amqp::reader::R;",
        );
        assert_clean("src/session/mod.rs", "use crate::{amqp::{frame, table::T}, broker, limits};");
        assert_clean("src/tools/ctl/mod.rs", "use crate::server::control;\nuse super::super::server::x;");
        assert_clean("src/bin/sealmq.rs", "use sealmq::server::config;");
        assert_clean("src/amqp/mod.rs", "pub(crate) fn engine() {}\n// crate::engine is not for us\n");
    }

    #[test]
    fn a_part_of_a_module_opens_no_other_part() {
        let frames = "use crate::amqp::{field_table::T, frame::F};";
        assert_broken("src/broker/queue.rs", frames, "imports `amqp::frame");
        assert_broken(
            "src/engine/hub.rs",
            "use crate::session::channel::Channel;",
            "imports `session::channel",
        );
        assert_clean(
            "src/engine/hub.rs",
            "use crate::session::port::{Broker, Got,};\nuse crate::session::port;",
        );
        assert_clean("src/broker/queue.rs", "use crate::amqp::field_table::Table;");
        assert_broken("src/bin/sealmq.rs", "use sealmq::store::Store;", "`bin` imports `store");
    }

    #[test]
    fn each_power_has_its_owner() {
        let cases = [
            ("src/store/commit.rs", "use aes::Aes256;", "cryptography"),
            ("src/store/commit.rs", "fn f() { rocksdb::DB::open() }", "RocksDB"),
            ("src/engine/mod.rs", "use tokio::net::TcpStream;", "TLS and TCP"),
            ("src/session/mod.rs", "use tokio::sync::Notify;", "runtime"),
            ("src/broker/queue.rs", "use std::sync::Mutex;", "locks"),
            ("src/server/run.rs", "fn f() { std::process::exit(1) }", "ending the process"),
            ("src/broker/queue.rs", "fn f() { std::time::Instant::now(); }", "clock"),
            ("src/session/mod.rs", "fn f() { getrandom::fill(b); }", "randomness"),
            ("src/seal/key.rs", "use std::fs;", "files"),
            ("src/engine/hub.rs", "fn f() -> anyhow::Result<()> { Err(anyhow!(x)) }", "anyhow"),
            ("src/broker/queue.rs", "#[derive(serde::Serialize)] struct Q;", "serialization"),
            ("src/engine/hub.rs", "fn f() { std::env::var(a); }", "environment"),
        ];
        for (path, code, power) in cases {
            assert_broken(path, code, power);
        }
        assert_clean("src/store/rocks.rs", "use rocksdb::DB;");
        assert_clean("src/seal/xaes.rs", "use hmac::Hmac;\nuse aes::Aes256;");
        assert_clean("src/broker/queue.rs", "fn f(aes: u8) -> u8 { aes + 1 }");
        assert_clean(
            "src/broker/queue.rs",
            "#[cfg(test)]\nmod tests { use std::sync::Mutex; fn f() { x.unwrap() } }",
        );
    }

    #[test]
    fn a_panic_is_found_only_where_bytes_from_outside_pass() {
        for code in ["fn f() { x.unwrap() }", "fn f() { x.expect(y) }", "fn f() { panic!() }"] {
            assert_broken("src/amqp/frame.rs", code, "where bytes from outside pass");
            assert_clean("src/tools/mod.rs", code);
        }
        assert_clean("src/session/confirm.rs", "fn f() { confirms.expect(tag, barrier); }");
        assert_broken("src/session/confirm.rs", "fn f() { x.expect(\n  y(a, b),\n ) }", "expect");
        assert_clean("src/amqp/frame.rs", "// x.unwrap()\n/* panic!() */ const A: &str = \".unwrap()\";");
        assert_clean(
            "src/amqp/frame.rs",
            "const A: &str = r#\"\" .unwrap() \"#; const Q: char = '\"'; const B: u8 = b'\\'';",
        );
        assert_broken(
            "src/amqp/frame.rs",
            "const Q: char = '\"'; fn f<'a>() { x.unwrap() } const R: char = '\"';",
            "unwrap",
        );
    }

    #[test]
    fn a_channel_needs_a_bound() {
        for code in ["mpsc::unbounded_channel()", "mpsc::channel()", "mpsc::channel::<Vec<u8>>()"] {
            assert_broken("src/net/mod.rs", &format!("fn f() {{ {code}; }}"), "without a bound");
        }
        assert_clean("src/net/mod.rs", "fn f() { mpsc::channel(64); mpsc::channel::<u8>(limits::A); }");
        assert_clean("src/session/mod.rs", "fn f() { self.channel() }");
    }

    #[test]
    fn a_lint_is_not_switched_off_without_a_reason() {
        assert_broken("src/net/mod.rs", "#[allow(dead_code)] fn f() {}", "switched off");
        assert_broken("src/net/mod.rs", "#[expect(dead_code)] fn f() {}", "without a reason");
        assert_clean("src/net/mod.rs", "#[expect(dead_code, reason = \"a test uses it\")] fn f() {}");
    }

    #[test]
    fn unsafe_has_one_place_and_a_reason() {
        let explained = "fn f() {\n    // SAFETY: because.\n    unsafe { g() }\n}";
        assert_clean("src/seal/locked.rs", explained);
        assert_clean("src/seal/locked.rs", "// SAFETY: because.\nunsafe impl Send for A {}");
        assert_broken("src/store/rocks.rs", explained, "`unsafe` outside");
        assert_broken("src/seal/locked.rs", "fn f() {\n    unsafe { g() }\n}", "without a reason");
        assert_clean("src/seal/key.rs", "// unsafe is not for us\n");
    }

    #[test]
    fn sizes_are_bounded_and_tests_do_not_count() {
        let long = format!("fn long() {{\n{}}}", "    step();\n".repeat(FUNCTION_LINES_MAX));
        assert_broken("src/net/mod.rs", &long, "`long` has");
        let fits = format!("fn fits() {{\n{}}}", "    step();\n".repeat(FUNCTION_LINES_MAX - 2));
        assert_clean("src/net/mod.rs", &fits);
        let rows = "const A: u8 = 1;\n".repeat(FILE_LINES_MAX);
        assert_broken("src/net/mod.rs", &rows, "lines without tests");
        assert_clean("src/net/mod.rs", &format!("#[cfg(test)]\nmod tests {{\n{rows}}}"));
        assert_clean("src/net/tests.rs", &rows);
    }

    #[test]
    fn names_and_text_follow_the_house() {
        assert_broken("src/net/mod.rs", "struct QueueManager;", "names nothing");
        assert_broken("src/net/mod.rs", "fn get_size(&self) -> u8 {}", "get_size");
        assert_broken("src/net/mod.rs", "fn get_size() {}", "get_size");
        assert_clean("src/net/mod.rs", "fn get_source(&mut self, number: u16) {}");
        assert_broken("src/net/mod.rs", "const TIMEOUT_IN_MS: u8 = 1;", "TIMEOUT_IN_MS");
        assert_broken("src/net/mod.rs", "struct A { wait_in_seconds: u8 }", "wait_in_seconds");
        assert_clean("src/net/mod.rs", "fn f() { theirs.size_in_bytes() }");
        assert_broken("src/net/mod.rs", concat!("// TO", "DO later"), "left in");
        assert_broken("src/net/mod.rs", "// caf\u{e9}", "not ASCII");
        let bare = check(&Source::new("src/net/mod.rs", "fn f() {}\n"));
        assert_eq!(bare.len(), 1);
        assert_eq!(
            bare[0].to_string(),
            "src/net/mod.rs:1: no `//!` on the first line; say what lives here and what must not"
        );
    }

    #[test]
    fn a_file_outside_the_module_tree_is_found() {
        let at = |path: &str, code: &str| Source::new(path, &format!("//! Here.\n{code}"));
        let sources = [
            at("src/lib.rs", "pub mod amqp;"),
            at("src/amqp/mod.rs", "mod frame;"),
            at("src/amqp/frame.rs", "#[cfg(test)]\nmod tests;"),
            at("src/amqp/frame/tests.rs", ""),
            at("src/amqp/lost.rs", ""),
            at("src/bin/tool.rs", ""),
        ];
        let found = check_module_tree(&sources, "path = \"src/bin/tool.rs\"\n");
        assert_eq!(found.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(), ["src/amqp/lost.rs"]);
    }

    #[test]
    fn the_documented_layers_must_be_the_enforced_ones() {
        let rows = |names: &[&str]| {
            let table: Vec<String> =
                names.iter().map(|name| format!("//! | L | [`{name}`] | x |\n")).collect();
            Source::new("src/lib.rs", &format!("//! Map.\n{}", table.concat()))
        };
        let enforced: Vec<&str> =
            LAYERS.iter().map(|(name, _)| *name).filter(|name| *name != "bin").collect();
        assert_eq!(check_layer_table(&rows(&enforced)).len(), 0);
        assert_eq!(check_layer_table(&rows(&enforced[1..])).len(), 1);
        let stray = Source::new("src/lib.rs", &format!("{}pub mod attic;\n", rows(&enforced).text));
        assert_eq!(check_layer_table(&stray).len(), 1);
    }
}
