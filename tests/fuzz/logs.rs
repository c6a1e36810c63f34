//! A database's logs as somebody may have left them, against a reader that knows only how a sound log looks.

use sealmq::store::{LogState, check_log};

use crate::driver::{Target, fingerprint};
use crate::random::Random;

/// The first byte says how many blocks of sound records stand before the rest.
pub struct Logs;

const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 7;
const BLOCKS_MAX: usize = 3;

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let sum = crc32c::crc32c(&[&[kind], payload].concat()).rotate_right(15).wrapping_add(0xa282_ead8);
    let mut out = sum.to_le_bytes().to_vec();
    out.extend_from_slice(&(payload.len() as u16).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
    out
}

fn log(input: &[u8]) -> Vec<u8> {
    let (blocks, rest) = input.split_first().unwrap_or((&0, b""));
    let block = record(1, &[9; BLOCK_BYTES - HEADER_BYTES]);
    [block.repeat(usize::from(*blocks) % BLOCKS_MAX), rest.to_vec()].concat()
}

/// One sound record behind the other, each commit with its beginning and its end.
fn is_whole(log: &[u8]) -> bool {
    let mut is_open = false;
    for block in log.chunks(BLOCK_BYTES) {
        let mut rest = block;
        while rest.len() >= HEADER_BYTES {
            let (kind, len) = (rest[6], usize::from(u16::from_le_bytes([rest[4], rest[5]])));
            let Some(payload) = rest.get(HEADER_BYTES..HEADER_BYTES + len) else { return false };
            let expected = if is_open { [3, 4] } else { [1, 2] };
            if !expected.contains(&kind) || !rest.starts_with(&record(kind, payload)) {
                return false;
            }
            is_open = kind == 2 || kind == 3;
            rest = &rest[HEADER_BYTES + len..];
        }
        if !rest.is_empty() && block.len() < BLOCK_BYTES {
            return false;
        }
    }
    !is_open
}

impl Target for Logs {
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut input = vec![random.below(BLOCKS_MAX) as u8];
        for _ in 0..random.below(8) {
            let payload = random.bytes(60);
            let kinds: &[u8] = random.pick(&[&[1][..], &[2, 4], &[2, 3, 4], &[1, 1], &[5], &[0]]);
            kinds.iter().for_each(|kind| input.extend(record(*kind, &payload)));
        }
        input
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let log = log(input);
        let state = check_log(&log[..]).expect("reading memory does not fail");
        assert_eq!(state == LogState::Whole, is_whole(&log), "{state:?}");
        let cut = match state {
            LogState::Whole => return fingerprint("whole"),
            LogState::Torn { offset } | LogState::Corrupt { offset, .. } => offset as usize,
        };
        assert!(cut <= log.len());
        // What stands before the fault is sound, unless the fault is a commit that goes on without its end.
        assert!(is_whole(&log[..cut]) || matches!(state, LogState::Corrupt { .. }), "{state:?}");
        fingerprint(match state {
            LogState::Corrupt { reason, .. } => reason,
            _ => "torn",
        })
    }

    fn memory_bytes_max(&self, input: &[u8]) -> usize {
        8 * BLOCK_BYTES + 4 * input.len()
    }
}
