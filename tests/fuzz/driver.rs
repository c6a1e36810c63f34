//! Runs one target over and over: makes inputs, keeps those that brought something new to light, holds each
//! to its allowance of memory, and leaves the one that broke something in a file.
//!
//! What counts as new is the target's own fingerprint of what happened (answers, errors, shapes). Coverage
//! of the code would see more. It was weighed: libFuzzer (cargo-fuzz, bolero) instruments with stable flags,
//! but its runtime is C++ that must be built and licensed, its programs cannot be plain tests, and each needs
//! a build of its own; AFL wants a tool beside cargo; fuzzcheck and LibAFL's in-process runtime want nightly
//! or `unsafe` of ours. Inputs made by structure and fingerprints reach every state of these parsers, and run
//! with nothing but `cargo test`. A target is only a function of bytes, so another engine can drive it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peakmem_alloc::PeakMemAllocTrait;

use crate::MEMORY;
use crate::random::Random;

/// Something that takes any bytes. It panics where a promise is broken.
pub trait Target {
    /// An input that is well formed, or nearly.
    fn generate(&mut self, random: &mut Random) -> Vec<u8>;

    /// Changes an input; `other` is another one that was worth keeping.
    fn mutate(&mut self, random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
        random.mutate(input, other, INPUT_BYTES_MAX);
    }

    /// Does what there is to do with it; what comes back is equal for inputs that did the same.
    fn run(&mut self, input: &[u8]) -> u64;

    /// Gets ready for the next input; not held to the allowance of memory.
    fn clean_up(&mut self) {}

    /// Bytes of memory that may be in use at once beyond what was in use before.
    fn memory_bytes_max(&self, input: &[u8]) -> usize;
}

/// Longest input, in bytes.
pub const INPUT_BYTES_MAX: usize = 16 * 1024;
/// Inputs kept for their fingerprints.
const KEPT_MAX: usize = 4096;
/// An input that takes longer than that hangs; the slowest one takes some milliseconds.
const HANG: Duration = Duration::from_secs(30);
/// Seconds for each target when nobody says otherwise.
const SECONDS_DEFAULT: f64 = 2.0;

const CHILD: &str = "SEALMQ_FUZZ_CHILD";
const INPUT: &str = "SEALMQ_FUZZ_INPUT";
const SECONDS: &str = "SEALMQ_FUZZ_SECONDS";
const SEED: &str = "SEALMQ_FUZZ_SEED";

/// The test of that name: fuzzes a target in a process of its own, or runs the one input that is asked for.
pub fn campaign<T: Target>(name: &'static str, make: impl FnOnce() -> T) {
    if let Some(path) = std::env::var_os(INPUT) {
        let input = fs::read(&path).expect("the input can be read");
        run(&mut make(), &input);
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        return fuzz(name, make());
    }
    let program = std::env::current_exe().expect("the path of this program");
    let arguments = [name, "--exact", "--nocapture", "--test-threads=1"];
    let status = Command::new(program).args(arguments).env(CHILD, "1").status().expect("a process starts");
    if !status.success() {
        let crash = file(name, "crash");
        let input = last_input(name).unwrap_or_else(|| panic!("{status} before the first input"));
        fs::write(&crash, input).expect("the input is kept");
        let crash = crash.display();
        panic!("{status}; the input is {crash}: {INPUT}={crash} cargo test --test fuzz {name}");
    }
}

/// The input that ran when a process ended: its length in eight bytes, then itself.
fn last_input(name: &str) -> Option<Vec<u8>> {
    let bytes = fs::read(file(name, "input")).ok()?;
    let (length, input) = bytes.split_first_chunk::<8>()?;
    Some(input.get(..u64::from_be_bytes(*length) as usize)?.to_vec())
}

fn file(name: &str, kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}.{kind}"))
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn fuzz<T: Target>(name: &str, mut target: T) {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = setting(SEED).unwrap_or(clock);
    let time = Duration::from_secs_f64(setting(SECONDS).unwrap_or(SECONDS_DEFAULT));
    println!("{name}: {SEED}={seed}");
    let mut random = Random::new(seed);
    let path = file(name, "input");
    let current = File::create(&path).expect("a file for the input");
    let count = Arc::new(AtomicU64::new(0));
    watch(count.clone());
    let (mut kept, mut seen): (Vec<Vec<u8>>, HashSet<u64>) = Default::default();
    let (start, mut record) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let input = next_input(&mut target, &mut random, &kept);
        // In place before anything can go wrong: there is no telling whether we get to write it afterwards.
        record.clear();
        record.extend_from_slice(&(input.len() as u64).to_be_bytes());
        record.extend_from_slice(&input);
        current.write_all_at(&record, 0).expect("the input is kept");
        if seen.insert(run(&mut target, &input)) {
            match kept.len() < KEPT_MAX {
                true => kept.push(input),
                false => kept[random.below(KEPT_MAX)] = input,
            }
        }
        count.fetch_add(1, Relaxed);
    }
    println!("{name}: {} inputs, {} of them did something new", count.load(Relaxed), seen.len());
    fs::remove_file(path).expect("the file is there");
}

fn next_input<T: Target>(target: &mut T, random: &mut Random, kept: &[Vec<u8>]) -> Vec<u8> {
    if kept.is_empty() || random.once_in(3) {
        return target.generate(random);
    }
    let mut input = kept[random.below(kept.len())].clone();
    let other = &kept[random.below(kept.len())];
    target.mutate(random, &mut input, other);
    input
}

fn run<T: Target>(target: &mut T, input: &[u8]) -> u64 {
    MEMORY.reset_peak_memory();
    let fingerprint = target.run(input);
    let (used, allowed) = (MEMORY.get_peak_memory(), target.memory_bytes_max(input));
    assert!(
        used <= allowed,
        "{} bytes of input took {used} bytes of memory, {allowed} are allowed",
        input.len()
    );
    target.clean_up();
    fingerprint
}

/// Ends the process when one input takes for ever.
fn watch(count: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        loop {
            let before = count.load(Relaxed);
            std::thread::sleep(HANG);
            if count.load(Relaxed) == before {
                println!("one input takes longer than {HANG:?}");
                std::process::abort();
            }
        }
    });
}

/// A fingerprint of anything that can be hashed, the same in every run.
pub fn fingerprint(of: impl std::hash::Hash) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}
