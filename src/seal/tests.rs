//! What is left of a key in this process: a search of all its readable memory, as a debugger would make it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::key::{Dek, Kek};
use super::keyring::{Keyring, SealedKeyring, Slot};
use super::locked::on_clean_stack;
use super::slot_key::{Cost, Credential, Passphrase, SlotKey};
use super::xaes::Xaes;

const MASK: u8 = 0xA5;
const STEP_BYTES: usize = 1 << 20;

/// Bytes to search for, masked so that the search does not find itself.
#[derive(PartialEq)]
pub(crate) struct Wanted(Vec<u8>);

impl Wanted {
    pub(crate) fn new(bytes: &[u8]) -> Wanted {
        on_clean_stack(|| Wanted(bytes.iter().map(|byte| byte ^ MASK).collect()))
    }

    /// Still masked, for another process to search itself.
    pub(crate) fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What [`Wanted::to_hex`] gave.
    pub(crate) fn of_hex(text: &str) -> Wanted {
        let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        Wanted(pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect())
    }

    /// How often they stand in this process's memory.
    pub(crate) fn found(&self) -> usize {
        // One search at a time: another one's buffer would hold what stands in memory twice.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = File::open("/proc/self/mem").unwrap();
        let mut buffer = vec![0u8; STEP_BYTES + self.0.len()];
        let own = buffer.as_ptr().addr()..buffer.as_ptr().addr() + buffer.len();
        let mut found = 0;
        for (from, to) in regions() {
            let mut at = from;
            while at < to {
                let len = buffer.len().min(to - at);
                let read = memory.read_exact_at(&mut buffer[..len], at as u64);
                // A region may have gone since it was listed; the buffer itself is no place of its own.
                if read.is_ok() {
                    found += self.count(&buffer[..len], at, &own);
                }
                at += STEP_BYTES;
            }
        }
        buffer.fill(0);
        std::hint::black_box(&mut buffer);
        found
    }

    fn count(&self, bytes: &[u8], address: usize, own: &std::ops::Range<usize>) -> usize {
        let first = self.0[0] ^ MASK;
        let begins = memchr::memchr_iter(first, bytes).filter(|at| {
            let here = bytes[*at..].iter().take(self.0.len());
            *at < STEP_BYTES && here.map(|byte| byte ^ MASK).eq(self.0.iter().copied())
        });
        begins.filter(|at| !own.contains(&(address + at))).count()
    }
}

/// Every readable region of this process, as (from, to).
fn regions() -> Vec<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let readable =
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|flags| flags.starts_with('r')));
    let number = |text| usize::from_str_radix(text, 16).unwrap();
    let ends = readable.map(|line| line.split(' ').next().unwrap().split_once('-').unwrap());
    ends.map(|(from, to)| (number(from), number(to))).collect()
}

/// A passphrase of random letters as a credential, and the key that a new slot gets from it.
fn passphrase(wanted: &mut Vec<(&str, Wanted)>) -> (Credential, SlotKey) {
    let cheap = Cost { memory_kib: 64, passes: 1, lanes: 1 };
    let letters = on_clean_stack(|| {
        let random = zeroize::Zeroizing::new(super::random::<24>().unwrap());
        let mut letters = zeroize::Zeroizing::new(Vec::with_capacity(24));
        letters.extend(random.iter().map(|byte| b'a' + byte % 16));
        letters
    });
    wanted.push(("passphrase", Wanted::new(&letters)));
    let copy = zeroize::Zeroizing::new(letters.to_vec());
    let key = SlotKey::new(Credential::Passphrase(Passphrase::take(copy).unwrap()), cheap).unwrap();
    (Credential::Passphrase(Passphrase::take(letters).unwrap()), key)
}

#[test]
fn no_key_is_left_in_memory_when_it_is_dropped() {
    let (mut wanted, store) = (Vec::new(), [7; 16]);
    let kek = on_clean_stack(|| Kek::take(&mut super::random().unwrap()));
    let kek = SlotKey::new(Credential::Key(kek), Cost::DEFAULT).unwrap();
    let mut ring = Keyring::create(&kek, store).unwrap();
    let (words, from_words) = passphrase(&mut wanted);
    ring.slots.push(Slot::wrap(&from_words, &store, &ring.root).unwrap());
    let dek = Dek::generate().unwrap();
    for (name, key) in [
        ("KEK", kek.kek.secret()),
        ("key of a passphrase", from_words.kek.secret()),
        ("root key", ring.root.secret()),
        ("data key", dek.secret()),
    ] {
        wanted.push((name, Wanted::new(key.expose())));
    }
    wanted.push(("K_ring", Wanted::new(ring.root.ring().expose())));
    wanted.push(("K_meta", Wanted::new(ring.root.meta().expose())));
    let entry = super::keyring::KeyEntry {
        key_id: 2,
        class: 1,
        state: 1,
        created_ms: 0,
        retired_ms: 0,
        scope: 0,
        key: dek,
    };
    ring.keys.push(entry);
    // Through the whole life of a keyring: written, checked, opened, and its keys set up and used.
    let bytes = ring.encode().unwrap();
    SealedKeyring::parse(bytes.clone()).unwrap().check(&ring.root, Some(&kek)).unwrap();
    let kek = Credential::Key(kek.kek);
    drop(SealedKeyring::parse(bytes.clone()).unwrap().unlock(&kek).unwrap());
    let opened = SealedKeyring::parse(bytes).unwrap().unlock(&words).unwrap();
    let cipher = Xaes::new(opened.keys[0].key.secret());
    let meta = Xaes::new(&opened.root.meta());
    assert!(opened.root.verifies_descriptor(b"text", &ring.root.descriptor_tag(b"text")));
    let sub_key = cipher.derive(&[1; 12]);
    let mut text = b"text".to_vec();
    sub_key.seal(&[2; 12], b"", &mut text).unwrap();
    meta.seal(&[3; 24], b"", &mut text).unwrap();
    for (name, key) in wanted.iter().filter(|(name, _)| *name != "K_ring") {
        assert!(key.found() > 0, "the control: {name} is in use and not found");
    }
    drop((kek, words, from_words, ring, opened, cipher, meta, sub_key));
    for (name, key) in wanted {
        assert_eq!(key.found(), 0, "{name} is left in memory");
    }
}

#[test]
fn the_search_finds_what_a_dropped_buffer_leaves_behind() {
    let secret: [u8; 32] = super::random().unwrap();
    let wanted = Wanted::new(&secret);
    let left = Box::leak(secret.to_vec().into_boxed_slice());
    assert!(wanted.found() >= 2, "on the stack and on the heap");
    assert_eq!(left.len(), 32);
}
