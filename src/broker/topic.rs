//! Topic patterns as a persistent trie of words: `*` stands for one word, `#` for any number of them
//! (AMQP 0-9-1 section 3.1.3.3). An algorithm and its nodes; what is bound is the caller's value.
//!
//! Matching walks all patterns at once, word by word, over the set of nodes that are still possible.
//! Each node is in that set at most once, so the time is bounded by words times nodes, whatever the
//! number of `#`: there is no backtracking that a hostile pattern could make exponential.

use super::name::Name;
use super::small_map::SmallMap;
use smallvec::SmallVec;
use std::collections::HashSet;
use std::sync::Arc;

/// Nodes that wait behind a `#` up to which a scan finds one faster than a hash set does.
const SCANNED_MAX: usize = 16;

/// Patterns and one value for each; a clone shares its nodes until one of the two changes.
#[derive(Clone, Debug)]
pub struct Trie<V: Clone> {
    root: Arc<Node<V>>,
}

#[derive(Clone, Debug)]
struct Node<V: Clone> {
    words: SmallMap<Name, Arc<Node<V>>>,
    star: Option<Arc<Node<V>>>,
    hash: Option<Arc<Node<V>>>,
    value: Option<V>,
}

impl<V: Clone> Default for Node<V> {
    fn default() -> Self {
        Node { words: SmallMap::default(), star: None, hash: None, value: None }
    }
}

impl<V: Clone> Default for Trie<V> {
    fn default() -> Self {
        Trie { root: Arc::default() }
    }
}

/// The words of a key; the empty key has none, `.` has two empty ones, as in RabbitMQ.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let split = (!key.is_empty()).then(|| key.split(|byte| *byte == b'.'));
    split.into_iter().flatten()
}

impl<V: Clone + Default> Trie<V> {
    /// Changes the value of exactly this pattern, which is made where there is none yet. When `change`
    /// says that nothing is left of it, the pattern goes, and with it each node that no other needs.
    pub fn update(&mut self, pattern: &[u8], change: impl FnOnce(&mut V) -> Left) {
        Arc::make_mut(&mut self.root).update(&mut words(pattern), change);
    }

    /// Calls `found` once for the value of each pattern that matches `key`, in an order that depends
    /// on the patterns only.
    pub fn matches<'a>(&'a self, key: &[u8], found: impl FnMut(&'a V)) {
        self.walk(key, found);
    }

    /// As [`Trie::matches`]; how often a node was looked at.
    fn walk<'a>(&'a self, key: &[u8], mut found: impl FnMut(&'a V)) -> usize {
        let mut visits = 0;
        let mut walk = Walk { waiting: SmallVec::new(), known: HashSet::new() };
        let mut now: SmallVec<[&Node<V>; 16]> = SmallVec::new();
        let mut next: SmallVec<[&Node<V>; 16]> = SmallVec::new();
        walk.enter(&self.root, &mut now);
        for word in words(key) {
            // A node behind a `#` that is entered in this step must not take this word as well.
            let waiting = walk.waiting.len();
            visits += waiting + now.len();
            for at in 0..waiting {
                let Some(node) = walk.waiting.get(at).copied() else { break };
                walk.step(node, word, &mut next);
            }
            now.drain(..).for_each(|node| walk.step(node, word, &mut next));
            std::mem::swap(&mut now, &mut next);
        }
        walk.waiting.iter().chain(&now).filter_map(|node| node.value.as_ref()).for_each(&mut found);
        visits
    }
}

/// What the caller of [`Trie::update`] left of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Something: the pattern stays.
    Something,
    /// Nothing: the pattern goes.
    Nothing,
}

impl<V: Clone + Default> Node<V> {
    fn update<'k>(&mut self, rest: &mut impl Iterator<Item = &'k [u8]>, change: impl FnOnce(&mut V) -> Left) {
        let Some(word) = rest.next() else {
            let mut value = self.value.take().unwrap_or_default();
            self.value = (change(&mut value) == Left::Something).then_some(value);
            return;
        };
        let mut child = match word {
            b"*" => self.star.take(),
            b"#" => self.hash.take(),
            word => self.words.find(word).cloned(),
        }
        .unwrap_or_default();
        let node = Arc::make_mut(&mut child);
        node.update(rest, change);
        let left = (!node.is_bare()).then_some(child);
        match (word, left) {
            (b"*", left) => self.star = left,
            (b"#", left) => self.hash = left,
            (word, Some(child)) => self.words.insert(Name::from(word), child),
            (word, None) => drop(self.words.remove(word)),
        }
    }
}

impl<V: Clone> Node<V> {
    fn is_bare(&self) -> bool {
        self.value.is_none() && self.star.is_none() && self.hash.is_none() && self.words.is_empty()
    }
}

/// The nodes reached through a `#`: once reached they stay possible, since `#` takes any further word.
struct Walk<'a, V: Clone> {
    waiting: SmallVec<[&'a Node<V>; 8]>,
    known: HashSet<usize>,
}

impl<'a, V: Clone> Walk<'a, V> {
    fn step(&mut self, node: &'a Node<V>, word: &[u8], next: &mut SmallVec<[&'a Node<V>; 16]>) {
        if let Some(child) = node.words.find(word) {
            self.enter(child, next);
        }
        if let Some(child) = &node.star {
            self.enter(child, next);
        }
    }

    /// Adds a node, and those that are behind it through `#` standing for no word at all.
    fn enter(&mut self, node: &'a Node<V>, into: &mut SmallVec<[&'a Node<V>; 16]>) {
        into.push(node);
        let mut behind = node.hash.as_deref();
        while let Some(node) = behind.filter(|node| self.is_new(node)) {
            self.waiting.push(node);
            behind = node.hash.as_deref();
        }
    }

    fn is_new(&mut self, node: &Node<V>) -> bool {
        if self.waiting.len() < SCANNED_MAX {
            return !self.waiting.iter().any(|known| std::ptr::eq(*known, node));
        }
        if self.known.is_empty() {
            self.known.extend(self.waiting.iter().map(|known| std::ptr::from_ref(*known).addr()));
        }
        self.known.insert(std::ptr::from_ref(node).addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trie(patterns: &[&str]) -> Trie<String> {
        let mut trie = Trie::default();
        for pattern in patterns {
            put(&mut trie, pattern);
        }
        trie
    }

    fn put(trie: &mut Trie<String>, pattern: &str) {
        trie.update(pattern.as_bytes(), |value| {
            *value = pattern.to_owned();
            Left::Something
        });
    }

    fn matching(trie: &Trie<String>, key: &str) -> Vec<String> {
        let mut found = Vec::new();
        trie.matches(key.as_bytes(), |value| found.push(value.clone()));
        found.sort();
        found
    }

    /// The definition, word by word; exponential, so only for short patterns.
    fn matches_naively(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), None) => matches_naively(rest, key),
            (Some((&"#", rest)), Some((_, tail))) => {
                matches_naively(rest, key) || matches_naively(pattern, tail)
            }
            (Some((&word, rest)), Some((&head, tail))) if word == "*" || word == head => {
                matches_naively(rest, tail)
            }
            _ => false,
        }
    }

    #[test]
    fn star_is_one_word_and_hash_is_any_number() {
        let patterns =
            ["", "#", "*", "a", "a.*", "a.#", "#.a", "*.critical", "kernel.*", "#.#", "*.#", "a.#.b"];
        for (key, expected) in [
            ("", vec!["", "#", "#.#"]),
            ("a", vec!["#", "#.#", "#.a", "*", "*.#", "a", "a.#"]),
            ("a.b", vec!["#", "#.#", "*.#", "a.#", "a.#.b", "a.*"]),
            ("a.x.y.b", vec!["#", "#.#", "*.#", "a.#", "a.#.b"]),
            ("kernel.critical", vec!["#", "#.#", "*.#", "*.critical", "kernel.*"]),
            ("a.", vec!["#", "#.#", "*.#", "a.#", "a.*"]),
            (".", vec!["#", "#.#", "*.#"]),
        ] {
            assert_eq!(matching(&trie(&patterns), key), expected, "key {key:?}");
        }
    }

    #[test]
    fn wildcards_in_a_key_are_plain_words() {
        assert_eq!(matching(&trie(&["*", "#", "a"]), "#"), ["#", "*"]);
        assert_eq!(matching(&trie(&["a.*", "a.b", "#.b"]), "a.*"), ["a.*"]);
    }

    fn nodes<V: Clone>(node: &Node<V>) -> usize {
        let below = node.words.values().chain(&node.star).chain(&node.hash);
        1 + below.map(|child| nodes(child)).sum::<usize>()
    }

    /// Each `#` can stand for any part of the key: trying them one after another would take exponential time.
    #[test]
    fn many_hashes_visit_each_node_at_most_once_for_each_word() {
        let deep = vec!["#.a"; 60].join(".");
        let mut patterns: Vec<String> = (0..100).map(|n| format!("{deep}.#.{n}")).collect();
        patterns.extend([vec!["#"; 100].join("."), vec!["#.*"; 50].join("."), vec!["*.#"; 50].join(".")]);
        let trie = trie(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
        let most = nodes(&trie.root);
        for words in [1, 60, 120] {
            let key = vec!["a"; words].join(".");
            let visits = trie.walk(key.as_bytes(), |_| ());
            assert!(visits <= words * most, "{visits} visits of {most} nodes for {words} words");
        }
        assert_eq!(matching(&trie, &format!("{}.7", vec!["a"; 120].join("."))).len(), 4);
    }

    fn pattern() -> impl Strategy<Value = Vec<&'static str>> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "#", "#", ""]), 0..6)
    }

    /// A single empty word cannot be written: its key would be the empty one, which has no word.
    fn written(words: &[&str]) -> Option<String> {
        (words != [""]).then(|| words.join("."))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_definition(
            patterns in prop::collection::vec(pattern(), 1..40),
            removed in prop::collection::vec(any::<bool>(), 40),
            key in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 0..7),
        ) {
            let patterns: Vec<_> = patterns.into_iter().filter(|p| written(p).is_some()).collect();
            prop_assume!(written(&key).is_some());
            let mut trie = Trie::default();
            for pattern in &patterns {
                let text = written(pattern).unwrap_or_default();
                put(&mut trie, &text);
            }
            let before = trie.clone();
            let mut expected: Vec<String> = Vec::new();
            let mut expected_before: Vec<String> = Vec::new();
            for (at, pattern) in patterns.iter().enumerate() {
                let text = written(pattern).unwrap_or_default();
                if matches_naively(pattern, &key) {
                    expected_before.push(text.clone());
                }
                let gone = |p: &[&str]| patterns.iter().zip(&removed).any(|(q, gone)| q == p && *gone);
                if removed[at] {
                    trie.update(text.as_bytes(), |_| Left::Nothing);
                }
                if matches_naively(pattern, &key) && !gone(pattern) {
                    expected.push(text);
                }
            }
            for list in [&mut expected, &mut expected_before] {
                list.sort();
                list.dedup();
            }
            let (words, key) = (key.len(), key.join("."));
            prop_assert!(trie.walk(key.as_bytes(), |_| ()) <= words * nodes(&trie.root));
            prop_assert_eq!(matching(&trie, &key), expected);
            prop_assert_eq!(matching(&before, &key), expected_before, "a clone must not change");
        }
    }

    #[test]
    fn removing_every_pattern_leaves_a_bare_root() {
        let patterns = ["a.b.c", "a.b", "a.*.#", "#.x", ""];
        let mut trie = trie(&patterns);
        for pattern in patterns {
            trie.update(b"a.never.bound", |_| Left::Nothing);
            trie.update(pattern.as_bytes(), |_| Left::Nothing);
        }
        assert!(trie.root.is_bare());
    }
}
