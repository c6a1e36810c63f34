//! Reading a whole column family on several threads, and what they saw in the order of the keys. Each thread opens and
//! measures records by themselves; whatever depends on more than one record is the caller's, on one thread. What comes
//! out, faults included, does not depend on how many threads there are or which is first.

use std::mem;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, Scope};

use super::error::StoreError;
use super::layout::Family;
use super::rocks::Rocks;
use crate::limits::{
    READ_BODY_PART_BYTES, READ_BODY_THREADS_MAX, READ_PART_BYTES, READ_PIECE_SEEN, READ_PIECES_AHEAD,
    READ_THREADS_MAX,
};

/// What a thread does with the records that it gets, one after the other.
pub(super) trait Look {
    /// What it tells of them.
    type Seen: Send;

    /// The next record, in the order of the keys.
    fn look(&mut self, key: &[u8], value: &[u8], seen: &mut Vec<Self::Seen>);

    /// The next record does not follow upon this one.
    fn end(&mut self, _seen: &mut Vec<Self::Seen>) {}
}

/// How a family is read.
pub(super) struct Division {
    /// Where its parts begin, but for the first.
    pub(super) cuts: Vec<Vec<u8>>,
    pub(super) threads: usize,
}

impl Division {
    /// Two threads for each processor, for a family that is large enough: one waits for the disk now and then.
    pub(super) fn of(rocks: &Rocks, family: Family) -> Result<Division, StoreError> {
        let (most, part_bytes) = match family {
            Family::Bodies => (READ_BODY_THREADS_MAX, READ_BODY_PART_BYTES),
            _ => (READ_THREADS_MAX, READ_PART_BYTES),
        };
        let threads = (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).min(most);
        Ok(Division { cuts: rocks.cuts(family, part_bytes)?, threads })
    }
}

type Part<'a> = (&'a [u8], Option<&'a [u8]>);
type Lane<S> = Receiver<Piece<S>>;

/// Some of what was seen of a part: a part may be far larger than was meant, a piece is not.
struct Piece<S> {
    seen: Vec<S>,
    /// How reading the part ended; `None` when more pieces of it follow.
    end: Option<Result<(), StoreError>>,
}

/// Reads all records of a family, and gives `take` what was seen of them, in order.
///
/// # Errors
/// The first one in the order of the keys: of `take`, or of reading.
pub(super) fn scan_in_parts<L: Look>(
    rocks: &Rocks,
    family: Family,
    division: &Division,
    make: impl Fn() -> L + Sync,
    mut take: impl FnMut(L::Seen) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let cuts = || division.cuts.iter().map(Vec::as_slice);
    let parts: Vec<Part<'_>> =
        std::iter::once(&[][..]).chain(cuts()).zip(cuts().map(Some).chain([None])).collect();
    let threads = division.threads.min(parts.len());
    if threads < 2 {
        return one_by_one(rocks, family, &parts, make(), take);
    }
    thread::scope(|scope| {
        let lane = |lane| {
            let parts = parts.iter().skip(lane).step_by(threads).copied();
            read(scope, rocks, family, parts, &make)
        };
        let lanes = (0..threads).map(lane).collect::<Result<Vec<Lane<L::Seen>>, StoreError>>()?;
        // Each lane tells its parts in order and they are asked for in order, so what the lane that is waited for tells
        // next is always what is wanted, and a lane that is full waits for its turn only.
        for (_, lane) in parts.iter().zip(lanes.iter().cycle()) {
            take_part(rocks, lane, &mut take)?;
        }
        Ok(())
    })
}

/// Takes one part from the thread that reads it.
fn take_part<S>(
    rocks: &Rocks,
    lane: &Lane<S>,
    take: &mut impl FnMut(S) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        let piece = lane.recv().map_err(|_| ended(rocks))?;
        piece.seen.into_iter().try_for_each(&mut *take)?;
        if let Some(end) = piece.end {
            return end;
        }
    }
}

/// A thread that reads its parts, no further ahead than it may; it ends when nobody listens any more.
fn read<'scope, 'env, L: Look + 'env>(
    scope: &'scope Scope<'scope, 'env>,
    rocks: &'env Rocks,
    family: Family,
    parts: impl Iterator<Item = Part<'env>> + Send + 'scope,
    make: &'env (impl Fn() -> L + Sync),
) -> Result<Lane<L::Seen>, StoreError>
where
    L::Seen: 'scope,
{
    let (tell, lane) = sync_channel(READ_PIECES_AHEAD);
    let thread = thread::Builder::new().name("sealmq-read".into());
    let spawned = thread.spawn_scoped(scope, move || {
        let mut looker = make();
        for (from, to) in parts {
            let mut seen = Vec::new();
            let scanned = rocks.scan_between(family, from, to, |key, value| {
                looker.look(key, value, &mut seen);
                if seen.len() < READ_PIECE_SEEN {
                    return Ok(());
                }
                tell.send(Piece { seen: mem::take(&mut seen), end: None }).map_err(|_| ended(rocks))
            });
            let is_over = scanned.is_err();
            if !is_over {
                looker.end(&mut seen);
            }
            if tell.send(Piece { seen, end: Some(scanned) }).is_err() || is_over {
                return;
            }
        }
    });
    spawned.map(|_| lane).map_err(|e| StoreError::system(rocks.path(), e))
}

/// The other side of a lane is gone: a thread has failed, or nobody wants to know any more what it reads.
fn ended(rocks: &Rocks) -> StoreError {
    StoreError::system(rocks.path(), "a thread that reads the store has ended")
}

fn one_by_one<L: Look>(
    rocks: &Rocks,
    family: Family,
    parts: &[Part<'_>],
    mut looker: L,
    mut take: impl FnMut(L::Seen) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut seen = Vec::new();
    for (from, to) in parts {
        rocks.scan_between(family, from, *to, |key, value| {
            looker.look(key, value, &mut seen);
            seen.drain(..).try_for_each(&mut take)
        })?;
        looker.end(&mut seen);
        seen.drain(..).try_for_each(&mut take)?;
    }
    Ok(())
}
