//! RocksDB, and the only file that names it: options, one synced batch, scans.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor,
    CompactOptions, DB, DBCompressionType, DBRecoveryMode, FlushOptions, InfoLogger, LogLevel, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

use super::blob_files;
use super::error::StoreError;
use super::layout::{Family, Key};

const MIB: usize = 1024 * 1024;
/// Values above this go to blob files, so that compaction does not copy bodies.
const BLOB_BYTES_MIN: u64 = 4096;
/// Blob files up to this share, from the oldest, are rewritten when the tables that name them are.
const BLOB_AGE_CUTOFF: &str = "blob_garbage_collection_age_cutoff";
const MEMTABLE_BYTES: &str = "rocksdb.cur-size-all-mem-tables";
const MEMTABLE_ACTIVE_BYTES: &str = "rocksdb.cur-size-active-mem-table";
const TABLES_BYTES: &str = "rocksdb.live-sst-files-size";
const BACKGROUND_ERRORS: &str = "rocksdb.background-errors";
/// Entries are read one after the other, so their blocks are larger than usual, which spares reads and look-ups; what
/// holds one is still within what the allocator keeps at hand for each thread (jemalloc's `tcache_max`: 32 KiB).
const ENTRIES_BLOCK_BYTES: usize = 28 * 1024;
/// When a memory table of entries is written out.
pub(super) const ENTRIES_MEMORY_BYTES: u64 = 32 * MIB as u64;
/// What is in a memory table can go from one end of a queue to the other: puts are at its tail, and what is removed out of
/// order at its head. Such a table is merged with all of the level below it, which therefore is kept small.
const ENTRIES_BASE_BYTES: u64 = 64 * MIB as u64;
/// How much of a scan is read ahead, in bytes.
const SCAN_READAHEAD_BYTES: usize = 2 * MIB;

/// RocksDB's own words about a failure; they hold no keys and no values.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RocksError(String);

impl From<rocksdb::Error> for RocksError {
    fn from(error: rocksdb::Error) -> RocksError {
        RocksError(error.into_string())
    }
}

/// The open database. RocksDB's LOCK file is held until it is dropped.
pub(super) struct Rocks {
    // Dropped in this order: the database is closed when nobody has `open` any more.
    db: DB,
    path: PathBuf,
    open: Arc<()>,
}

/// What one commit changes.
pub(super) struct Batch<'a> {
    inner: WriteBatch,
    families: [&'a ColumnFamily; 3],
    /// Keys that it removes.
    pub(super) deletions: u64,
}

/// How the logs end (preflight.rs), which says how RocksDB is to read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Whole: then anything that RocksDB takes exception to is an error.
    Whole,
    /// Cut short, as a crash leaves it: it ends before the first record that is not whole.
    Torn,
}

impl Rocks {
    /// Opens or creates the database; all logs go to `tracing`, none to a file.
    pub(super) fn open(path: &Path, tail: Tail) -> Result<Rocks, StoreError> {
        let open = || Ok(DB::open_cf_descriptors(&db_options(tail)?, path, families())?);
        let db = open().map_err(|e: RocksError| database_error(path, &e))?;
        Ok(Rocks { db, path: path.to_path_buf(), open: Arc::default() })
    }

    /// Opens the database for reading only, and changes none of its files.
    pub(super) fn look(path: &Path, tail: Tail) -> Result<Rocks, StoreError> {
        let open = || {
            let (options, families) = (db_options(tail)?, families());
            Ok(DB::open_cf_descriptors_read_only(&options, path, families, false)?)
        };
        let db = open().map_err(|e: RocksError| database_error(path, &e))?;
        Ok(Rocks { db, path: path.to_path_buf(), open: Arc::default() })
    }

    /// Somebody has it for as long as the database is open.
    pub(super) fn is_open(&self) -> Weak<()> {
        Arc::downgrade(&self.open)
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily, RocksError> {
        let missing = || RocksError(format!("column family {} is missing", family.name()));
        self.db.cf_handle(family.name()).ok_or_else(missing)
    }

    /// An empty batch.
    pub(super) fn batch(&self, capacity_bytes: usize) -> Result<Batch<'_>, RocksError> {
        let [meta, entries, bodies] = Family::ALL;
        let families = [self.family(meta)?, self.family(entries)?, self.family(bodies)?];
        Ok(Batch { inner: WriteBatch::with_capacity_bytes(capacity_bytes), families, deletions: 0 })
    }

    /// Writes the batch as one, and returns when it is on the disk.
    pub(super) fn write(&self, batch: Batch<'_>) -> Result<(), RocksError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(batch.inner, &options)?)
    }

    /// Bytes that stand in the log and in memory, and are still to be written to tables. Never waits for the disk.
    pub(super) fn unflushed_bytes(&self) -> u64 {
        let of = |family| self.db.property_int_value_cf(self.family(family).ok()?, MEMTABLE_BYTES).ok()?;
        Family::ALL.into_iter().filter_map(of).sum()
    }

    /// Bytes of a family's memory table; less than before when another one was begun.
    pub(super) fn memory_bytes(&self, family: Family) -> u64 {
        self.number_of(family, MEMTABLE_ACTIVE_BYTES)
    }

    /// Bytes of a family's tables.
    pub(super) fn table_bytes(&self, family: Family) -> u64 {
        self.number_of(family, TABLES_BYTES)
    }

    fn number_of(&self, family: Family, property: &str) -> u64 {
        let number = self
            .family(family)
            .ok()
            .and_then(|handle| self.db.property_int_value_cf(handle, property).ok().flatten());
        number.unwrap_or_default()
    }

    /// Removes the tables of entries in which is nothing but what lies between two keys, both included. Others keep what
    /// they hold of it, and so does memory: whoever asks for it must know that it is gone.
    pub(super) fn drop_tables(&self, first: &Key, last: &Key) {
        let dropped = self.family(Family::Entries).and_then(|handle| {
            Ok(self.db.delete_file_in_range_cf(handle, first.as_bytes(), last.as_bytes())?)
        });
        if let Err(e) = dropped {
            tracing::warn!("tables of what was deleted stay on the disk: {e}");
        }
    }

    /// Begins to write to tables what stands in memory, so that its log can go. A failure is RocksDB's to tell the next
    /// writer.
    pub(super) fn begin_flush(&self) {
        Family::ALL.into_iter().for_each(|family| self.begin_flush_of(family));
    }

    /// The same for one family.
    pub(super) fn begin_flush_of(&self, family: Family) {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let begun = self.family(family).map(|handle| self.db.flush_cf_opt(handle, &options));
        if !matches!(begun, Ok(Ok(()))) {
            tracing::warn!("the database did not begin to write its tables");
        }
    }

    /// Makes a copy of the database at one moment in a folder that does not exist yet: files that never change are
    /// linked where the file system can, the others copied. Commits go on meanwhile.
    pub(super) fn checkpoint(&self, folder: &Path) -> Result<(), StoreError> {
        let make = || Ok(Checkpoint::new(&self.db)?.create_checkpoint(folder)?);
        make().map_err(|e: RocksError| StoreError::Database {
            path: folder.to_path_buf(),
            reason: e.to_string(),
        })
    }

    /// Has everything that was deleted leave the log, the tables and the blob files: each is written anew without it,
    /// and the old files are removed. Commits go on meanwhile.
    pub(super) fn carry_out_deletions(&self) -> Result<(), StoreError> {
        let errors = || self.db.property_int_value(BACKGROUND_ERRORS);
        let work = || {
            let before = errors()?;
            for family in Family::ALL {
                self.db.flush_cf(self.family(family)?)?;
            }
            self.db.set_options_cf(self.family(Family::Bodies)?, &[(BLOB_AGE_CUTOFF, "1.0")])?;
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
            for family in Family::ALL {
                self.db.compact_range_cf_opt(self.family(family)?, None::<&[u8]>, None::<&[u8]>, &options);
            }
            self.db.set_options_cf(self.family(Family::Bodies)?, &[(BLOB_AGE_CUTOFF, "0.5")])?;
            // The call above has no result.
            match errors()? == before {
                true => Ok(()),
                false => Err(RocksError("rewriting its files has failed".into())),
            }
        };
        work().map_err(|e: RocksError| database_error(&self.path, &e))
    }

    /// Lets RocksDB rewrite its tables in the background, which would only compete with those who wait for a start.
    pub(super) fn start_compactions(&self) -> Result<(), StoreError> {
        let start = |family| {
            let options = [("disable_auto_compactions", "false")];
            Ok(self.db.set_options_cf(self.family(family)?, &options)?)
        };
        [Family::Entries, Family::Bodies]
            .into_iter()
            .try_for_each(start)
            .map_err(|e: RocksError| database_error(&self.path, &e))
    }

    /// Ends [`Rocks::carry_out_deletions`] half way, for good: nothing is to be written after this.
    pub(super) fn give_up_compactions(&self) {
        self.db.cancel_all_background_work(false);
    }

    /// All files of the database together, in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        let files = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|facts| facts.len()).sum()
    }

    /// Where the database is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keys that cut a family into parts of about so many bytes of its tables, in order. What lies between two of them
    /// is whole: no body is cut. The same files are always cut at the same places.
    pub(super) fn cuts(&self, family: Family, part_bytes: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let files = self.db.live_files().map_err(|e| database_error(&self.path, &e.into()))?;
        let mut cuts = BTreeSet::new();
        for file in files.into_iter().filter(|file| file.column_family_name == family.name()) {
            let (from, to) = (number(file.start_key.as_deref()), number(file.end_key.as_deref()));
            let parts = (file.size as u64).div_ceil(part_bytes).max(1);
            // Keys are numbers, mostly without gaps.
            let step = to.saturating_sub(from) / u128::from(parts);
            let cut = |part: u64| from.saturating_add(step * u128::from(part)).to_be_bytes();
            cuts.extend((0..parts).filter_map(|part| Some(cut(part).get(..family.whole_bytes())?.to_vec())));
        }
        Ok(cuts.into_iter().collect())
    }

    /// One value.
    pub(super) fn value(&self, family: Family, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || Ok(self.db.get_cf(self.family(family)?, key.as_bytes())?);
        read().map_err(|e: RocksError| database_error(&self.path, &e))
    }

    /// Shows every key and value of a family, in order.
    pub(super) fn scan(
        &self,
        family: Family,
        visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.scan_between(family, &[], None, visit)
    }

    /// The same, from one key on and up to another, that one not included.
    pub(super) fn scan_between(
        &self,
        family: Family,
        from: &[u8],
        to: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let failed = |e: &RocksError| database_error(&self.path, e);
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(SCAN_READAHEAD_BYTES);
        to.into_iter().for_each(|to| options.set_iterate_upper_bound(to));
        let handle = self.family(family).map_err(|e| failed(&e))?;
        let mut rows = self.db.raw_iterator_cf_opt(handle, options);
        rows.seek(from);
        while let Some((key, value)) = rows.item() {
            visit(key, value)?;
            rows.next();
        }
        rows.status().map_err(|e| {
            let RocksError(mut reason) = e.into();
            if reason.contains("Blob")
                && let Some((path, offset)) = blob_files::find_damage(&self.path)
            {
                reason = format!("{reason}: {} is damaged at byte {offset}", path.display());
            }
            failed(&RocksError(reason))
        })
    }
}

impl Rocks {
    /// Shows keys and values of a family from one key to another, both included, in order, until `visit` has enough.
    pub(super) fn range(
        &self,
        family: Family,
        from: &Key,
        to: &Key,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let failed = |e: &RocksError| database_error(&self.path, e);
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        // The first key behind the last one that is wanted.
        options.set_iterate_upper_bound([to.as_bytes(), &[0]].concat());
        let handle = self.family(family).map_err(|e| failed(&e))?;
        let mut rows = self.db.raw_iterator_cf_opt(handle, options);
        rows.seek(from.as_bytes());
        while let Some((key, value)) = rows.item() {
            if !visit(key, value)? {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|e| failed(&e.into()))
    }
}

/// How often a key was written, on which it depends how it is to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Puts {
    /// RocksDB's SingleDelete is right.
    #[default]
    One,
    /// More than once, or nobody knows: a SingleDelete could bring an older value back.
    Several,
}

impl<'a> Batch<'a> {
    fn family(&self, family: Family) -> &'a ColumnFamily {
        let [meta, entries, bodies] = self.families;
        match family {
            Family::Meta => meta,
            Family::Entries => entries,
            Family::Bodies => bodies,
        }
    }

    pub(super) fn put(&mut self, family: Family, key: &Key, value: &[u8]) {
        self.inner.put_cf(self.family(family), key.as_bytes(), value);
    }

    /// Removes a key that may have been written several times.
    pub(super) fn delete(&mut self, family: Family, key: &Key) {
        self.deletions += 1;
        self.inner.delete_cf(self.family(family), key.as_bytes());
    }

    /// Writes a key once more. What it held until now stays in the files, as what was deleted does.
    pub(super) fn replace(&mut self, family: Family, key: &Key, value: &[u8]) {
        self.deletions += 1;
        self.put(family, key, value);
    }

    /// Removes a key that was written so often.
    pub(super) fn remove(&mut self, family: Family, key: &Key, puts: Puts) {
        match puts {
            Puts::One => self.delete_once(family, key),
            Puts::Several => self.delete(family, key),
        }
    }

    /// Removes a key that was written exactly once. Anything else is undefined (RocksDB, "Single Delete").
    pub(super) fn delete_once(&mut self, family: Family, key: &Key) {
        self.deletions += 1;
        self.inner.single_delete_cf(self.family(family), key.as_bytes());
    }

    /// Removes all keys from one on, up to another, that one not included. What comes later in the batch is not meant.
    pub(super) fn remove_range(&mut self, family: Family, from: &Key, to: &Key) {
        self.inner.delete_range_cf(self.family(family), from.as_bytes(), to.as_bytes());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.inner.size_in_bytes()
    }
}

/// The number that a key's first bytes are.
fn number(key: Option<&[u8]>) -> u128 {
    let bytes = key.into_iter().flatten().copied().chain(std::iter::repeat(0)).take(16);
    bytes.fold(0, |number, byte| number << 8 | u128::from(byte))
}

fn database_error(path: &Path, error: &RocksError) -> StoreError {
    // RocksDB tells a held lock by its text only.
    if error.0.contains("lock hold by current process") || error.0.contains("While lock file") {
        return StoreError::Locked { dir: path.to_path_buf() };
    }
    StoreError::Database { path: path.to_path_buf(), reason: error.to_string() }
}

fn families() -> [ColumnFamilyDescriptor; 3] {
    let cache = Cache::new_hyper_clock_cache(128 * MIB, 16 * 1024);
    Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache)))
}

fn db_options(tail: Tail) -> Result<Options, RocksError> {
    // Without this the host's name is written into every SST file.
    let mut options = Options::default().get_options_from_string("db_host_id=;")?;
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(match tail {
        Tail::Whole => DBRecoveryMode::AbsoluteConsistency,
        Tail::Torn => DBRecoveryMode::PointInTime,
    });
    options.set_paranoid_checks(true);
    options.set_max_open_files(512);
    // A small column family that never flushes would otherwise keep the whole log alive.
    options.set_max_total_wal_size(256 * MIB as u64);
    options.set_db_write_buffer_size(128 * MIB);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(MIB as u64);
    options.set_wal_bytes_per_sync(512 * 1024);
    options.set_keep_log_file_num(1);
    options.set_recycle_log_file_num(0);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_write_dbid_to_manifest(true);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_skip_stats_update_on_db_open(true);
    // RocksDB prints host name and paths in header lines whatever the level, so the level is checked here.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |level, text| match level {
        LogLevel::Warn => tracing::warn!(target: "sealmq::store::rocks", "{}", text.trim_end()),
        LogLevel::Error | LogLevel::Fatal => {
            tracing::error!(target: "sealmq::store::rocks", "{}", text.trim_end())
        }
        _ => {}
    }));
    Ok(options)
}

fn family_options(family: Family, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(if family == Family::Entries { ENTRIES_BLOCK_BYTES } else { 16 * 1024 });
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    // Ciphertext does not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::None);
    if family == Family::Meta {
        options.set_write_buffer_size(8 * MIB);
        return options;
    }
    // Until `Rocks::start_compactions`.
    options.set_disable_auto_compactions(true);
    // A long queue comes in the order of its keys, so its tables are hardly ever merged, however small they are. A body
    // that is consumed soon is better spared the blob file.
    options.set_write_buffer_size(match family {
        Family::Entries => ENTRIES_MEMORY_BYTES as usize,
        _ => 64 * MIB,
    });
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(32 * MIB as u64);
    if family == Family::Entries {
        options.set_max_bytes_for_level_base(ENTRIES_BASE_BYTES);
    }
    if family == Family::Bodies {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_file_size(64 * MIB as u64);
        options.set_blob_compression_type(DBCompressionType::None);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(0.5);
        options.set_blob_gc_force_threshold(0.5);
    }
    options
}
