//! Kill -9 at random moments, in a child process, against a model of what it was told to be durable.
//!
//! The child writes to its standard output: `+ queue seq` when a put is promised to be kept, `? queue seq` before it
//! deletes, `- queue seq` when the deletion is durable. What it could not tell any more may be either way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::*;

const DIR: &str = "SEALMQ_TEST_CRASH_DIR";

/// The message that belongs at a place; every ninth is large and stands apart.
fn message_of(queue: u64, seq: u64) -> Message {
    let repeat = if seq.is_multiple_of(9) { 20_000 } else { 20 };
    message(&format!("{queue}/{seq} ").repeat(repeat))
}

fn say(lines: &[String]) {
    let mut out = std::io::stdout().lock();
    let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap();
}

/// Not a test of its own: the process that is killed.
#[test]
#[ignore = "started by the crash test"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (store, recovered) = open(Path::new(&dir));
    let (mut promised, mut waiting, mut live) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
    let mut next = 1;
    for queue in &recovered.queues {
        next = next.max(queue.next_seq.0);
        live.extend(entries(&store, queue).into_iter().map(|e| (queue.id, e.seq, e.shared, Position(0))));
    }
    let mut random = std::process::id() as u64 | 1;
    loop {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let deletes = live.len().min((random >> 33) as usize % 40);
        let doomed: Vec<_> = live.drain(..deletes).collect();
        say(&doomed.iter().map(|(queue, seq, ..)| format!("? {} {}", queue.0, seq.0)).collect::<Vec<_>>());
        let mut appender = store.appender();
        for (queue, seq, shared, place) in doomed {
            appender.delete(queue, seq, 0, shared.as_ref(), place);
            waiting.push_back((appender.tail(), format!("- {} {}", queue.0, seq.0)));
        }
        drop(appender);
        for _ in 0..(random >> 40) % 30 {
            let queues: Vec<QueueId> =
                if next.is_multiple_of(5) { vec![QUEUE, QueueId(2)] } else { vec![QUEUE] };
            let text = message_of(1, next);
            let shared = (queues.len() > 1 || text.size_bytes() > 4096)
                .then(|| store.shared_body(&text, queues.len() as u32));
            let mut appender = store.appender();
            if random.is_multiple_of(7) {
                appender.may_wait(Duration::from_millis(3));
            }
            for queue in queues {
                let place = appender.put(queue, Seq(next), &text, shared.as_ref(), meta(next));
                promised.push_back((place, format!("+ {} {next}", queue.0)));
                live.push_back((queue, Seq(next), shared.clone(), place));
            }
            next += 1;
        }
        if random.is_multiple_of(11) {
            // What is deleted before the head has no tombstone then.
            store.begin_flush();
        }
        if random.is_multiple_of(3) {
            let tail = store.appender().tail();
            wait(&store, tail);
        }
        assert_eq!(store.failure(), None);
        for (lines, upto) in [(&mut promised, store.kept()), (&mut waiting, store.durable())] {
            let told = lines.iter().take_while(|(place, _)| *place <= upto).count();
            say(&lines.drain(..told).map(|(_, line)| line).collect::<Vec<_>>());
        }
    }
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crash::child", "--ignored", "--nocapture", "--quiet"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[derive(Default)]
struct Model {
    /// Told to be durable, and not asked to be deleted.
    must: BTreeSet<(u64, u64)>,
    /// Told to be deleted for good.
    gone: BTreeSet<(u64, u64)>,
    /// Asked to be deleted.
    doomed: BTreeSet<(u64, u64)>,
}

impl Model {
    fn hear(&mut self, line: &str) -> bool {
        let fields: Vec<&str> = line.split(' ').collect();
        let [sign @ ("+" | "-" | "?"), queue, seq] = fields[..] else { return false };
        let (Ok(queue), Ok(seq)) = (queue.parse(), seq.parse()) else { return false };
        let place = (queue, seq);
        match sign {
            "?" => {
                self.must.remove(&place);
                self.doomed.insert(place);
            }
            "-" => {
                self.gone.insert(place);
            }
            _ if self.doomed.contains(&place) => {}
            _ => {
                self.must.insert(place);
            }
        }
        true
    }
}

#[test]
fn nothing_durable_is_lost_and_nothing_deleted_comes_back_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let (mut model, mut heard_in_all) = (Model::default(), 0);
    for round in 0..nightly(12, 200) {
        let mut child = start(dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after some number of reports; the pipe still holds what came after.
        let patience = 1 + (round * 7919) % 1500;
        let mut heard = 0;
        while heard < patience {
            let line = lines.next().expect("the child runs until it is killed").unwrap();
            heard += u64::from(model.hear(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        heard_in_all += heard + lines.map_while(Result::ok).filter(|line| model.hear(line)).count() as u64;
        check(dir.path(), &mut model, round);
    }
    assert!(heard_in_all > 1000, "{heard_in_all} reports are too few to mean anything");
}

fn check(dir: &Path, model: &mut Model, round: u64) {
    let (store, recovered) = open(dir);
    assert!(!recovered.clean && recovered.quarantined.is_empty());
    let mut found = BTreeMap::new();
    for queue in &recovered.queues {
        let entries = entries(&store, queue);
        assert!(entries.is_sorted_by(|a, b| a.seq < b.seq));
        for entry in &entries {
            assert_eq!(entry.message, message_of(1, entry.seq.0), "round {round}");
            assert_eq!(entry.meta, meta(entry.seq.0));
            assert!(entry.seq < queue.next_seq);
            found.insert((queue.id.0, entry.seq.0), ());
        }
    }
    let lost: Vec<_> = model.must.iter().filter(|place| !found.contains_key(place)).collect();
    assert!(lost.is_empty(), "round {round}: lost {lost:?}");
    let risen: Vec<_> = model.gone.iter().filter(|place| found.contains_key(place)).collect();
    assert!(risen.is_empty(), "round {round}: came back {risen:?}");
    // The next round starts from what was found, told or not.
    model.must = found.into_keys().collect();
    model.doomed.clear();
    store.close().unwrap();
}
