//! Reads Rust just well enough for tests/tidy.rs: blanks comments, literals and tests, finds words and paths.
//! No rule lives here.

use std::fmt;

/// One broken rule: where, which, and what to do.
#[derive(Debug, PartialEq)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub rule: String,
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.path, self.line, self.rule, self.remedy)
    }
}

/// One file: its text, and the same text with comments, literals and test code blanked, so that a
/// search finds code only. Offsets and line numbers agree in all three.
pub struct Source {
    pub path: String,
    pub text: String,
    pub code: String,
    pub shipped: String,
    /// Lines that belong to tests and do not count for the size of the file.
    pub test_lines: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let code = blank_comments_and_literals(text);
        let beside = path.ends_with("/tests.rs") || path.contains("/tests/");
        let apart = path.starts_with("tests/") || path.starts_with("benches/");
        let tests = if beside || apart { vec![(0, code.len())] } else { test_items(&code) };
        let test_lines = tests.iter().map(|(from, to)| code[*from..*to].lines().count()).sum();
        let shipped = tests.iter().fold(code.clone(), |code, (from, to)| blank(&code, *from, *to));
        Source { path: path.to_owned(), text: text.to_owned(), code, shipped, test_lines }
    }

    /// The path below `src/`, or the whole path for what lives elsewhere.
    pub fn place(&self) -> &str {
        self.path.strip_prefix("src/").unwrap_or(&self.path)
    }

    /// The layer that this file belongs to: the first part of its path.
    pub fn layer(&self) -> &str {
        let first = self.place().split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The module path of this file: `src/amqp/frame.rs` is `[amqp, frame]`, `src/amqp/mod.rs` is `[amqp]`.
    pub fn module(&self) -> Vec<&str> {
        let place = self.place().trim_end_matches(".rs").trim_end_matches("/mod");
        if place == "lib" { Vec::new() } else { place.split('/').collect() }
    }

    pub fn finding(&self, offset: usize, rule: impl Into<String>, remedy: impl Into<String>) -> Finding {
        let line = 1 + self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
        Finding { path: self.path.clone(), line, rule: rule.into(), remedy: remedy.into() }
    }
}

/// `text` with `from..to` turned into spaces, line ends kept.
fn blank(text: &str, from: usize, to: usize) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Blanks comments and the inside of string and character literals.
fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at).min(bytes.len());
        if end == at {
            at += 1;
            continue;
        }
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none starts there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment_len(rest),
        [b'"', ..] => at + string_len(rest),
        [b'r', b'"' | b'#', ..] if !after_word => at + raw_string_len(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !after_word => at + raw_string_len(rest, 2),
        [b'\'', b'\\', ..] => {
            at + 3 + rest[3.min(rest.len())..].iter().position(|byte| *byte == b'\'').map_or(0, |n| n + 1)
        }
        [b'\'', _, b'\'', ..] => at + 3,
        // A character of several bytes: a lifetime is never followed by a quote this soon.
        [b'\'', first, ..] if *first >= 0x80 => {
            at + 2 + rest[2..].iter().position(|byte| *byte == b'\'').unwrap_or(0)
        }
        _ => at,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_len(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return 0; // `r#name`, a raw identifier
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let body = prefix + hashes + 1;
    rest[body..]
        .windows(close.len())
        .position(|part| part == close)
        .map_or(rest.len(), |n| body + n + close.len())
}

pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The items under `#[cfg(test)]`, each from its attribute to its end.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        if found.last().is_none_or(|(_, end)| *end <= at) {
            found.push((at, item_end(code, at + attribute.len())));
        }
    }
    found
}

/// The end of the item after `from`: its first `;` or its closing brace.
pub fn item_end(code: &str, from: usize) -> usize {
    let bytes = code.as_bytes();
    let mut nested = 0usize;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested = nested.saturating_sub(1),
            b';' if nested == 0 => return at + 1,
            b'{' if nested == 0 => return closing_brace(code, at),
            _ => {}
        }
    }
    bytes.len()
}

/// The offset after the brace that closes the one at `open`.
fn closing_brace(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The arguments in the parentheses that open at `open`, or after it.
pub fn arguments(code: &str, open: usize) -> Vec<&str> {
    let Some(from) = code[open..].find('(').map(|n| open + n + 1) else { return Vec::new() };
    let (mut nested, mut start, mut found) = (0usize, from, Vec::new());
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' | b'{' => nested += 1,
            b',' if nested == 0 => {
                found.push(code[start..at].trim());
                start = at + 1;
            }
            b')' if nested == 0 => {
                found.push(code[start..at].trim());
                break;
            }
            b')' | b']' | b'}' => nested -= 1,
            _ => {}
        }
    }
    if found.len() > 1 && found.last().is_some_and(|last| last.is_empty()) {
        found.pop(); // after a trailing comma
    }
    found
}

/// Offsets of `word` in `code`, standing on its own: not a part of a longer identifier.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = *at == 0 || !is_word(bytes[at - 1]);
        let after = bytes.get(at + word.len()).is_none_or(|byte| !is_word(*byte));
        before && after
    })
}

/// The identifier at the start of `rest`.
pub fn identifier(rest: &str) -> &str {
    let end = rest.bytes().position(|byte| !is_word(byte)).unwrap_or(rest.len());
    &rest[..end]
}

/// Every path that `source` names from the crate's root, as `module::item`, with its offset.
pub fn root_paths(source: &Source) -> Vec<(usize, String)> {
    let code = &source.shipped;
    let mut found = Vec::new();
    let root = if source.layer() == "bin" { "sealmq" } else { "crate" };
    for at in words(code, root) {
        expand(&code[at + root.len()..], String::new(), &mut |path| found.push((at, path)));
    }
    let depth = source.module().len();
    let mut passed = 0;
    for at in words(code, "super").filter(|_| depth > 0) {
        if at < passed {
            continue;
        }
        let chain = code[at..].split("::").take_while(|part| *part == "super").count();
        passed = at + chain * "super::".len();
        if chain == depth {
            let rest = code.get(passed - 2..).unwrap_or_default();
            expand(rest, String::new(), &mut |path| found.push((at, path)));
        }
    }
    found
}

/// Follows `::name::name` and `::{a, b::c}` and hands each path out with `::` between its first two parts.
fn expand(rest: &str, prefix: String, out: &mut dyn FnMut(String)) {
    let Some(rest) = rest.trim_start().strip_prefix("::") else {
        if !prefix.is_empty() {
            out(prefix);
        }
        return;
    };
    let rest = rest.trim_start();
    if rest.is_empty() {
        return; // after the last comma of a group
    }
    if !rest.starts_with('{') {
        let name = identifier(rest);
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
        return expand(&rest[name.len()..], path, out);
    }
    let group = &rest[1..closing_brace(rest, 0).saturating_sub(1)];
    let (mut depth, mut start) = (0usize, 0);
    for (at, byte) in group.bytes().chain([b',']).enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                expand(&format!("::{}", group[start..at].trim()), prefix.clone(), out);
                start = at + 1;
            }
            _ => {}
        }
    }
}
