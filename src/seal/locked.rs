//! Memory for keys, and the only `unsafe` of this crate: pages that are locked into RAM, left out of core
//! dumps, empty in a forked child, and fenced on both sides by pages that nobody may touch. And [`Workspace`], the
//! large memory that a password's hash works in.
//!
//! A value in them is cleared when it is dropped. Moving it moves a pointer, so no copy stays behind; what
//! its making left on the stack is cleared by [`on_clean_stack`].
//!
//! Pages come in arenas that are never given back: a store has few keys at a time. Where the process may
//! not lock as much as it needs (RLIMIT_MEMLOCK), everything else still holds, and [`unlocked_bytes`] says so.

#![expect(
    unsafe_code,
    reason = "mlock, madvise and values at addresses of our own; nothing else may be here"
)]

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mlock, mmap_anonymous, mprotect, munmap,
};
use zeroize::Zeroize;

/// What is given out at a time, in bytes; also the strictest alignment that a value may have.
const CELL_BYTES: usize = 64;
/// One arena in bytes: a multiple of every page size that Linux has, and as much as old kernels let anyone lock.
const ARENA_BYTES: usize = 64 * 1024;
/// Before and behind an arena, in bytes; address space only.
const FENCE_BYTES: usize = 64 * 1024;
/// Stack that one key operation may have used, in bytes, with room to spare.
const STACK_BYTES: usize = 16 * 1024;

static ARENAS: Mutex<Vec<Arena>> = Mutex::new(Vec::new());
static UNLOCKED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Bytes for keys that the kernel did not let this process lock, so that they may be swapped out.
pub fn unlocked_bytes() -> usize {
    UNLOCKED_BYTES.load(Relaxed)
}

/// Runs `work`, then clears the stack that it used. What it returns must not be a key itself.
pub(super) fn on_clean_stack<R>(work: impl FnOnce() -> R) -> R {
    // Both are calls of their own from one place, so their frames begin at the same address.
    #[inline(never)]
    fn apart<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
    #[inline(never)]
    fn clear() {
        let mut below = [0u64; STACK_BYTES / size_of::<u64>()];
        std::hint::black_box(&mut below);
        below.zeroize();
    }
    let result = apart(work);
    clear();
    result
}

/// Many values in pages of their own, which are the kernel's again as soon as this is dropped: nothing of a password is
/// left in memory that others get, and an allocator that keeps what is freed for a while does not keep this. Left out of
/// core dumps; too large to be locked.
pub(super) struct Workspace<T> {
    first: NonNull<T>,
    count: usize,
}

impl<T: Copy> Workspace<T> {
    const BYTES_EACH: usize = {
        // The smallest pages that there are.
        assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0);
        size_of::<T>()
    };

    /// `count` values, all the same; `None` when there is no memory, or nothing is asked for.
    pub(super) fn new(count: usize, value: T) -> Option<Workspace<T>> {
        let bytes = count.checked_mul(Self::BYTES_EACH).filter(|bytes| isize::try_from(*bytes).is_ok())?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses. It refuses one of no bytes.
        let pages = unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) }.ok()?;
        let first = NonNull::new(pages.cast::<T>())?;
        // Large pages, where the machine grants them, save thousands of faults.
        for advice in [Advice::LinuxDontDump, Advice::LinuxHugepage] {
            // SAFETY: the new mapping, which nobody else knows of; its contents do not change.
            let _ = unsafe { madvise(pages, bytes, advice) };
        }
        for at in 0..count {
            // SAFETY: within the mapping, writable, aligned as pages are (BYTES_EACH), and nobody else's.
            unsafe { first.add(at).write(value) };
        }
        Some(Workspace { first, count })
    }
}

impl<T> AsMut<[T]> for Workspace<T> {
    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: `new` wrote so many values there, and `&mut self` is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

impl<T> Drop for Workspace<T> {
    fn drop(&mut self) {
        // SAFETY: the whole mapping of `new`, which nobody can reach after this; values that are `Copy` need no drop.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

/// One value in locked memory, owned as by a `Box`; cleared on drop.
pub(super) struct Locked<T>(NonNull<T>);

// SAFETY: the value has one owner, and is reached through it only, as with a `Box`.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    const CELLS: usize = {
        assert!(align_of::<T>() <= CELL_BYTES && size_of::<T>() <= ARENA_BYTES);
        size_of::<T>().div_ceil(CELL_BYTES)
    };

    /// Makes a value and puts it there; what `make` leaves on the stack is cleared.
    pub(super) fn new(make: impl FnOnce() -> T) -> Locked<T> {
        let place = take(Self::CELLS).cast::<T>();
        on_clean_stack(|| {
            let value = make();
            // SAFETY: the cells were free, are writable, and are large and aligned enough (CELLS).
            unsafe { place.write(value) };
        });
        Locked(place)
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` put a value there, which stays until `drop`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` is the only way to it now.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: `new` put a value there, and nobody can reach it after this.
        unsafe { self.0.drop_in_place() };
        let words = self.0.cast::<u64>();
        for at in 0..Self::CELLS * CELL_BYTES / size_of::<u64>() {
            // SAFETY: within the cells that are still ours, at a multiple of eight bytes.
            unsafe { words.add(at).write_volatile(0) };
        }
        compiler_fence(SeqCst);
        give_back(self.0.cast(), Self::CELLS);
    }
}

/// A mapping, and which of its cells are in use.
struct Arena {
    base: NonNull<u8>,
    used: [bool; ARENA_BYTES / CELL_BYTES],
}

// SAFETY: the mapping belongs to the process and is never unmapped; `base` is its address, nothing more.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps an arena. Without memory the process ends, as for any other allocation.
    fn map() -> Arena {
        let len = FENCE_BYTES + ARENA_BYTES + FENCE_BYTES;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let mapped = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) };
        let base = mapped.unwrap_or(null_mut()).cast::<u8>().wrapping_add(FENCE_BYTES);
        let pages = base.cast::<c_void>();
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the middle of the new mapping, which nobody else knows of.
        let is_open = mapped.is_ok() && unsafe { mprotect(pages, ARENA_BYTES, access) }.is_ok();
        let (Some(base), true) = (NonNull::new(base), is_open) else {
            handle_alloc_error(Layout::new::<[u8; ARENA_BYTES]>());
        };
        // SAFETY: the same pages; what is read from or written to them does not change.
        if unsafe { mlock(pages, ARENA_BYTES) }.is_err() {
            UNLOCKED_BYTES.fetch_add(ARENA_BYTES, Relaxed);
        }
        for advice in [Advice::LinuxDontDump, Advice::LinuxWipeOnFork] {
            // SAFETY: the same pages; what this process reads from them does not change.
            // A kernel that knows neither advice (before 4.14) keeps the rest of the promise.
            let _ = unsafe { madvise(pages, ARENA_BYTES, advice) };
        }
        Arena { base, used: [false; ARENA_BYTES / CELL_BYTES] }
    }

    /// The first free run of cells that is long enough.
    fn take(&mut self, cells: usize) -> Option<NonNull<u8>> {
        let first = self.used.windows(cells).position(|run| !run.contains(&true))?;
        self.used.iter_mut().skip(first).take(cells).for_each(|used| *used = true);
        // SAFETY: the run lies within the mapping.
        Some(unsafe { self.base.add(first * CELL_BYTES) })
    }

    fn give_back(&mut self, offset: usize, cells: usize) {
        self.used.iter_mut().skip(offset / CELL_BYTES).take(cells).for_each(|used| *used = false);
    }
}

fn take(cells: usize) -> NonNull<u8> {
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = arenas.iter_mut().find_map(|arena| arena.take(cells)) {
        return place;
    }
    let mut arena = Arena::map();
    let place = arena.take(cells);
    arenas.push(arena);
    // A new arena is large enough for every value: `Locked::CELLS` is checked when it is compiled.
    place.unwrap_or_else(|| handle_alloc_error(Layout::new::<[u8; ARENA_BYTES]>()))
}

fn give_back(place: NonNull<u8>, cells: usize) {
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    for arena in arenas.iter_mut() {
        let offset = place.addr().get().wrapping_sub(arena.base.addr().get());
        if offset < ARENA_BYTES {
            return arena.give_back(offset, cells);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// What is at an address now, whoever owns it.
    fn memory(address: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file = std::fs::File::open("/proc/self/mem").unwrap();
        file.read_exact_at(&mut bytes, address as u64).unwrap();
        bytes
    }

    /// The lines of smaps for the mapping that holds `address`, and the headings before and behind it.
    fn mapping(address: usize) -> (String, [String; 2], String) {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut headings, mut flags) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let first = line.split(' ').next().unwrap();
            if let Some(rest) = line.strip_prefix("VmFlags:") {
                flags.push(rest.to_owned());
            } else if !first.ends_with(':') {
                headings.push(line.to_owned());
            }
        }
        let holds = |line: &String| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            (usize::from_str_radix(from, 16).unwrap()..usize::from_str_radix(to, 16).unwrap())
                .contains(&address)
        };
        let at = headings.iter().position(holds).unwrap();
        let fences = [headings[at - 1].clone(), headings[at + 1].clone()];
        (headings[at].clone(), fences, format!("{} ", flags[at]))
    }

    #[test]
    fn a_value_stays_where_it_is_and_is_cleared_when_it_goes() {
        let mut secret = Locked::new(|| [0u8; 100]);
        secret.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        let address = secret.0.addr().get();
        let moved = Box::new(secret);
        assert_eq!(moved.0.addr().get(), address);
        let wanted: Vec<u8> = (1..=100).collect();
        assert_eq!(memory(address, 100), wanted);
        // The cells may be somebody else's as soon as they are given back, yet never with these bytes.
        drop(moved);
        assert_ne!(memory(address, 100), wanted);
    }

    #[test]
    fn a_workspace_is_the_systems_again_when_it_goes() {
        assert!(Workspace::new(0, 1u8).is_none() && Workspace::new(usize::MAX / 4, [1u8; 8]).is_none());
        let mut space = Workspace::new(5000, [0x5A5A_u64; 16]).unwrap();
        assert!(space.as_mut().len() == 5000 && space.as_mut().iter().all(|value| *value == [0x5A5A; 16]));
        let address = space.first.addr().get();
        let (heading, _, flags) = mapping(address);
        assert!(heading.contains(" rw-p ") && flags.contains(" dd "), "{heading} {flags}");
        drop(space);
        // Another thread may have got the place meanwhile, yet never with these bytes.
        let mut bytes = [0; 128];
        let file = std::fs::File::open("/proc/self/mem").unwrap();
        let is_readable = file.read_exact_at(&mut bytes, address as u64).is_ok();
        assert!(!is_readable || !bytes.chunks(2).all(|two| two == 0x5A5A_u16.to_ne_bytes()));
    }

    #[test]
    fn its_pages_are_locked_left_out_of_dumps_and_children_and_fenced() {
        let secret = Locked::new(|| [1u8; 32]);
        let (heading, fences, flags) = mapping(secret.0.addr().get());
        assert!(heading.contains(" rw-p "), "{heading}");
        assert!(fences.iter().all(|fence| fence.contains(" ---p ")), "{fences:?}");
        assert!(flags.contains(" dd ") && flags.contains(" wf "), "{flags}");
        // Where the machine does not let us lock, that is known.
        assert!(flags.contains(" lo ") || unlocked_bytes() > 0, "{flags}");
    }

    #[test]
    fn more_values_than_one_arena_holds_do_not_overlap() {
        let mut values: Vec<Locked<[u8; 1000]>> = Vec::new();
        for at in 0..3 * ARENA_BYTES / 1024 {
            values.push(Locked::new(|| [at as u8; 1000]));
        }
        let mut addresses: Vec<usize> = values.iter().map(|value| value.0.addr().get()).collect();
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= 1000 && pair[0] % CELL_BYTES == 0));
        assert!(values.iter().enumerate().all(|(at, value)| value.iter().all(|byte| *byte == at as u8)));
        let again = addresses[0];
        drop(values);
        let (heading, ..) = mapping(again);
        assert!(heading.contains(" rw-p "), "a freed place stays mapped: {heading}");
    }

    #[test]
    fn the_stack_of_a_key_operation_is_cleared() {
        // More than the search itself overwrites.
        const LEFT_BYTES: usize = STACK_BYTES / 2;
        // Written and left on the stack, with its address to find it again.
        #[inline(never)]
        fn leave() -> usize {
            let mut left = [0x5Au8; LEFT_BYTES];
            std::hint::black_box(&mut left).as_ptr().addr()
        }
        let address = on_clean_stack(leave);
        assert!(!memory(address, LEFT_BYTES).windows(16).any(|run| run == [0x5A; 16]));
        let address = leave();
        assert!(
            memory(address, LEFT_BYTES).windows(16).any(|run| run == [0x5A; 16]),
            "the control finds nothing"
        );
    }
}
