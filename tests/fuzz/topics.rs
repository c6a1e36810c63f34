//! Topic patterns against the definition: `*` is one word, `#` any number of them (AMQP 0-9-1 section 3.1.3.3).

use std::collections::BTreeSet;

use sealmq::broker::topic::{Left, Trie};

use crate::driver::{Target, fingerprint};
use crate::random::Random;

/// Lines: the first is a key, each further one adds the pattern behind a `+` or removes that behind a `-`.
pub struct Topics;

/// Words times patterns grow quickly enough; a key is at most 255 bytes on the wire.
const LINE_BYTES_MAX: usize = 255;

fn words(key: &[u8]) -> Vec<&[u8]> {
    if key.is_empty() { Vec::new() } else { key.split(|byte| *byte == b'.').collect() }
}

/// Row by row: which prefixes of the key the pattern read so far can stand for.
fn matches(pattern: &[u8], key: &[u8]) -> bool {
    let key = words(key);
    let mut reach = vec![false; key.len() + 1];
    reach[0] = true;
    for word in words(pattern) {
        let mut next = vec![false; key.len() + 1];
        for at in 0..=key.len() {
            next[at] = match word {
                b"#" => reach[at] || (at > 0 && next[at - 1]),
                b"*" => at > 0 && reach[at - 1],
                word => at > 0 && reach[at - 1] && key[at - 1] == word,
            };
        }
        reach = next;
    }
    reach[key.len()]
}

fn line(random: &mut Random) -> Vec<u8> {
    const WORDS: &[&str] = &["a", "b", "*", "#", "#", "", "kern", "\u{e9}"];
    let count = if random.once_in(10) { random.below(120) } else { random.below(6) };
    (0..count).map(|_| random.pick(WORDS)).collect::<Vec<_>>().join(".").into_bytes()
}

impl Target for Topics {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut input = line(random);
        for _ in 0..random.below(20) {
            input.push(b'\n');
            input.push(if random.once_in(4) { b'-' } else { b'+' });
            input.extend(line(random));
        }
        input
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let mut lines =
            input.split(|byte| *byte == b'\n').map(|line| &line[..line.len().min(LINE_BYTES_MAX)]);
        let key = lines.next().unwrap_or_default();
        let (mut trie, mut model): (Trie<Vec<u8>>, BTreeSet<&[u8]>) = Default::default();
        for line in lines {
            let Some((&sign, pattern)) = line.split_first() else { continue };
            if sign == b'-' {
                trie.update(pattern, |_| Left::Nothing);
                model.remove(pattern);
            } else {
                trie.update(pattern, |value| {
                    *value = pattern.to_vec();
                    Left::Something
                });
                model.insert(pattern);
            }
        }
        let mut found = Vec::new();
        trie.matches(key, |pattern| found.push(pattern.as_slice()));
        found.sort();
        let expected: Vec<&[u8]> = model.iter().copied().filter(|pattern| matches(pattern, key)).collect();
        assert_eq!(found, expected, "key {key:?}");
        let shapes: Vec<String> = found
            .iter()
            .take(4)
            .map(|pattern| {
                pattern.iter().map(|b| if b".*#".contains(b) { *b as char } else { 'w' }).take(9).collect()
            })
            .collect();
        fingerprint((shapes, words(key).len().min(8), model.len().min(6)))
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        // A node for each word, and a word may be a single byte.
        16 * 1024 + 1024 * input.len()
    }
}
