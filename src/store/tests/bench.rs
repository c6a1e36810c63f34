//! Rates, by hand: `cargo test --release --lib store::tests::bench -- --ignored --nocapture`.

use super::*;
use crate::limits::INBOX_BYTES_MAX;

#[test]
#[ignore = "a measurement, to be run in release"]
fn how_many_messages_are_committed_in_a_second() {
    for (mode, size, acks) in [
        (Mode::PlainInsecure, 1024, false),
        (Mode::Sealed, 1024, false),
        (Mode::Sealed, 1024, true),
        (Mode::Sealed, 100, false),
        (Mode::Sealed, 3000, false),
    ] {
        let dir = tempfile::Builder::new()
            .tempdir_in(std::env::var("SEALMQ_BENCH_DIR").unwrap_or(".".into()))
            .unwrap();
        let (store, _) = try_open(dir.path(), mode, Some(kek())).unwrap();
        let text = message(&"x".repeat(size));
        let (count, started) = (1_000_000u64, Instant::now());
        let mut place = Position(0);
        for first in (1..=count).step_by(64) {
            while store.backlog_bytes() > INBOX_BYTES_MAX / 8 {
                std::thread::sleep(Duration::from_micros(100));
            }
            let mut appender = store.appender();
            for seq in first..first + 64 {
                place = appender.put(QUEUE, Seq(seq), &text, None, meta(seq));
                if acks && seq > 20_000 {
                    appender.delete(QUEUE, Seq(seq - 20_000), 0, None, Position(0));
                }
            }
        }
        let filled = started.elapsed();
        wait(&store, place);
        let seconds = started.elapsed().as_secs_f64();
        let stats = store.stats();
        println!(
            "{} {size} B acks={acks}: {:.0} messages/s, {:.0} per commit, {} MB, filled in {filled:?}",
            mode.name(),
            count as f64 / seconds,
            count as f64 / stats.commits as f64,
            stats.bytes / 1_000_000,
        );
    }
}
