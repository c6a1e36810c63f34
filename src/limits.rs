//! Every bound in one file: its unit, its default and why it has that value. No logic lives here.

/// Largest frame a client may send before it has authenticated, in bytes (RabbitMQ: `initial_frame_max`).
/// A 4 KiB JWT as PLAIN password fits; nothing larger has a reason to come before tune-ok.
pub const INITIAL_FRAME_SIZE_BYTES_MAX: u32 = 8192;

/// Offered in connection.tune, in bytes, the frame's 8 bytes of framing included (RabbitMQ's default).
pub const FRAME_SIZE_BYTES_DEFAULT: u32 = 131_072;

/// The smallest frame_max that AMQP 0-9-1 allows (4.2.3); RabbitMQ 4.1 raised it to 8192 and broke old clients.
pub const FRAME_SIZE_BYTES_MIN: u32 = 4096;

/// Channels on one connection (RabbitMQ's default).
pub const CHANNELS_DEFAULT: u16 = 2047;

/// Seconds between heartbeats offered in connection.tune (RabbitMQ's default).
pub const HEARTBEAT_SECONDS_DEFAULT: u16 = 60;

/// Largest message body in bytes (RabbitMQ 4: `max_message_size` 16 MiB).
pub const MESSAGE_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// Hard ceiling for `max_message_size` in bytes (RabbitMQ: 512 MiB).
pub const MESSAGE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Bytes of bodies that all channels of one connection may have begun and not finished; a single message may
/// always be as large as `max_message_size` allows. Thousands of channels could each begin a large one.
pub const ASSEMBLED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Nesting of field tables and arrays; deeper is a syntax error, so that recursion over a peer's bytes is bounded.
pub const TABLE_DEPTH_MAX: usize = 16;

/// Seconds from TCP accept to connection.open-ok (RabbitMQ: `handshake_timeout` 10 s).
pub const HANDSHAKE_SECONDS_DEFAULT: u64 = 10;

/// Milliseconds that a delivery may wait for its acknowledgement (RabbitMQ's default for `consumer_timeout`).
pub const CONSUMER_TIMEOUT_MS_DEFAULT: u64 = 1_800_000;

/// Longest `consumer_timeout` in milliseconds: ten years, as for every other time. What exceeds 248 days never comes.
pub const CONSUMER_TIMEOUT_MS_MAX: u64 = 315_360_000_000;

/// Longest reply-text on the wire in bytes: it is a shortstr.
pub const REPLY_TEXT_BYTES_MAX: usize = 255;

/// Undelivered bytes in one connection's outbox before queues stop assigning to it.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

/// Undelivered messages in one connection's outbox before queues stop assigning to it.
pub const OUTBOX_MESSAGES_MAX: usize = 1024;

/// Replies (direct reply-to) in one connection's outbox in bytes, bookkeeping included. They have no queue to wait
/// in, so what comes beyond this is dropped; a thousand requests that were sent at once should be answered.
pub const REPLIES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Encoded bytes waiting for one socket before no further delivery is taken from the outbox.
pub const OUTPUT_BYTES_HIGH: usize = 256 * 1024;

/// Bodies of so many bytes are sent from where they are, not from a copy in the output.
pub const BODY_APART_BYTES_MIN: usize = 4 * 1024;

/// Bytes waiting for the committer before publishing connections stop reading (permits).
pub const INBOX_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Messages in one write batch: past this the commit's latency grows and its rate does not.
pub const COMMIT_MESSAGES_MAX: usize = 512;

/// Plaintext bytes in one write batch; it goes on where something gave way to what comes later.
pub const COMMIT_BYTES_MAX: usize = 1024 * 1024;

/// The same of large messages while what is put is acknowledged soon: what is not in this batch may never have to be
/// written, and writing that costs more than one commit more.
pub const COMMIT_LARGE_BYTES_MAX: usize = 128 * 1024;

/// Longest wait of an acknowledgement-only batch for company, in milliseconds.
pub const COMMIT_ACK_LINGER_MS: u64 = 50;

/// Shortest time for which a commit waits for acknowledgements that are likely to come, in milliseconds: no longer than a
/// commit takes on most disks, and the committer need not be woken for each message.
pub const COMMIT_PATIENCE_MS_MIN: u64 = 1;

/// How long after the last message that might wait the committer goes on to look by itself, in milliseconds.
pub const COMMIT_QUIET_MS: u64 = 10;

/// Time in which what is known of a commit's duration loses half of its weight, in milliseconds.
pub const COMMIT_DELAY_HALF_LIFE_MS: u64 = 50;

/// For how long it is known when something was put, in milliseconds: consumers that take longer are not waited for.
pub const PUT_AGE_MS_MAX: u64 = 100;

/// How many appenders' times are known at most, beyond those that wait for a commit.
pub const PUT_STAMPS_MAX: usize = 8192;

/// Bodies up to this size, routed to one queue, are stored in the entry itself.
pub const INLINE_BODY_BYTES_MAX: usize = 4096;

/// Bodies above this size are sealed by the connection's task instead of the committer: several pieces would keep the
/// others of a batch waiting. The committer seals what is one piece in a buffer that is warm, and at gigabytes a second.
pub const COMMITTER_SEAL_BYTES_MAX: usize = BODY_CHUNK_BYTES;

/// A stored body is split into chunks of this many bytes, each sealed on its own.
pub const BODY_CHUNK_BYTES: usize = 256 * 1024;

/// Pieces of the largest body there can be, with its properties and padding: nobody follows a body further.
pub const BODY_CHUNKS_MAX: u32 = (MESSAGE_BYTES_MAX as usize / BODY_CHUNK_BYTES * 2) as u32;

/// Keys deleted in one batch while a dropped queue is cleared away.
pub const PURGE_KEYS_MAX: usize = 4096;

/// Records that are sealed again in one step of a reseal.
pub const RESEAL_RECORDS_MAX: usize = 256;

/// Bytes of records after which a step of a reseal ends; one larger body is a step of its own.
pub const RESEAL_BYTES_MAX: usize = 1024 * 1024;

/// Entries that one step of a reseal looks at, in memory, to find those that concern it.
pub const RESEAL_LOOKS_MAX: usize = 16 * 1024;

/// Time from one step of a reseal to the next, in milliseconds: the commits between belong to the clients, and it
/// comes to 12 800 records or 50 MiB a second at most.
pub const RESEAL_STEP_MS: u64 = 20;

/// Bodies shared by several queues that one pass of a reseal keeps in mind until it has found all their entries.
pub const RESEAL_SHARED_MAX: usize = 64 * 1024;

/// Passes of a reseal without anything done after which it ends: what is left then cannot be read.
pub const RESEAL_IDLE_PASSES_MAX: u32 = 3;

/// Time between two passes of a reseal, in milliseconds: what a transaction or a purge still holds is free then.
pub const RESEAL_PASS_MS: u64 = 500;

/// How often it is looked for data keys that are so old that what they sealed is sealed again, in seconds.
pub const RESEAL_LOOK_SECONDS: u64 = 3600;

/// Age of a data key at which what it sealed is sealed again by itself, in days, unless the configuration says otherwise.
pub const RESEAL_DAYS_DEFAULT: u64 = 30;

/// Changes of any kind that one batch takes, acknowledgements and struck-out puts included; keeps the inbox
/// lock short.
pub const COMMIT_SLOTS_MAX: usize = 4 * COMMIT_MESSAGES_MAX;

/// Records sealed under one data key before the next is made.
pub const DATA_KEY_RECORDS_MAX: u64 = 1 << 32;

/// Hours for which one data key seals.
pub const DATA_KEY_HOURS_MAX: u64 = 24;

/// Seconds for which opening the database may take, before the start is given up: RocksDB is known to hang on some
/// damage. Its logs are read and replayed in that time, so they buy more; see [`OPEN_LOG_BYTES_PER_SECOND`].
pub const OPEN_SECONDS_MAX: u64 = 60;

/// Bytes of logs that lengthen [`OPEN_SECONDS_MAX`] by a second: a slow disk reads this much, and replay is faster.
pub const OPEN_LOG_BYTES_PER_SECOND: u64 = 1024 * 1024;

/// Seconds for which what the anchor says may be in the page cache only; a power cut may set it back by as much.
pub const ANCHOR_SYNC_SECONDS: u64 = 1;

/// Commit numbers passed over when an operator accepts an older database than the anchor tells of: the newer one, which
/// may come back, has at most a second's commits beyond its anchor.
pub const ACCEPTED_COMMITS_SKIPPED: u64 = 1 << 32;

/// Entries of one queue that are known to be no part of it and are remembered as such: its manifest names them
/// in each commit.
pub const EXTRA_ENTRIES_MAX: usize = 1024;

/// Places of a queue that are tried in search of the one entry that is missing: a second's work.
pub const MISSING_PLACES_TRIED_MAX: u64 = 1 << 25;

/// Data keys in one keyring above which each new one is warned of: some messages have been there for years.
pub const DATA_KEYS_ALARM: usize = 4096;

/// Queues with keys of their own (`x-seal-shred`): the whole list of keys is sealed, written and read back each time
/// that one of them comes or goes.
pub const SHRED_QUEUES_MAX: usize = 1024;

/// Keys that one such queue may have: a purge makes a new one, and the old one stays while a consumer holds a message
/// that it sealed.
pub const QUEUE_KEYS_MAX: usize = 16;

/// Deleted queues whose keys are gone and that are remembered, so that a transaction that was under way when its
/// queue was deleted is not sealed under another key.
pub const GONE_QUEUES_MAX: usize = 4096;

/// Hours after which a deleted message has left the disk, unless the configuration says otherwise: a day, so that
/// everything is rewritten twice a day at most.
pub const ERASE_HOURS_DEFAULT: u64 = 24;

/// Removing deleted messages from the disk is tried again after this part of the time that it may take.
pub const ERASE_RETRY_PARTS: u32 = 16;

/// Longest wait of the health probe for a commit of its own, in seconds.
pub const PROBE_SECONDS_MAX: u64 = 5;

/// Delayed messages that become due together and are routed in one go: more would keep the clock from other queues.
pub const DELAYED_RELEASE_MAX: usize = 256;

/// The same in bytes of messages: what is routed waits for the committer in memory.
pub const DELAYED_RELEASE_BYTES_MAX: usize = 1024 * 1024;

/// Milliseconds until due messages are looked at again when too much waits for the committer.
pub const DELAYED_RETRY_MS: u64 = 20;

/// Bytes of messages that one transaction may gather before its commit.
pub const TRANSACTION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Weight of one binding of a consistent hash exchange: finer shares than one in a million make no difference.
pub const HASH_WEIGHT_MAX: u32 = 1_000_000;

/// Routing keys in the headers CC and BCC of one message, together: each is routed, so one small publish must not
/// buy more work than that many publishes.
pub const COPIES_MAX: usize = 10_000;

/// Compiled size of one permission's regular expression in bytes; larger ones count repetitions of repetitions.
pub const PERMISSION_REGEX_BYTES_MAX: usize = 256 * 1024;

/// Messages of one queue that stay in memory when there are more and the store has them, unless the configuration
/// says otherwise.
pub const RESIDENT_MESSAGES_MAX: usize = 100_000;

/// The same in bytes of bodies.
pub const RESIDENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How many times as much stays in memory where no store has it, unless memory is short: to write it and read it back is work that nothing but the
/// room asks for, and publishers without confirms are often tens of thousands of messages ahead.
pub const RESIDENT_TRANSIENT_TIMES: usize = 4;

/// Bytes of bodies that are read ahead of what is in the store only, by each level of priorities: two pages, so that one is read while the other is delivered. What
/// a page holds is then still in the processor's cache when its turn comes (backlog-drain: 12 % less CPU than with half
/// of [`RESIDENT_BYTES_MAX`]).
pub const READ_AHEAD_BYTES_MAX: usize = 1024 * 1024;

/// Messages of one queue that stay in memory however little of it there is: a page that takes one reading.
pub const RESIDENT_MESSAGES_MIN: usize = 128;

/// The same in bytes of bodies.
pub const RESIDENT_BYTES_MIN: usize = 128 * 1024;

/// Milliseconds until messages that could not be read back are tried again.
pub const PAGE_RETRY_MS: u64 = 1000;

/// Transient messages that are spilled as one block: it is written and read back whole, and fits into half of the
/// smallest window.
pub const SPILL_BLOCK_MESSAGES_MAX: usize = RESIDENT_MESSAGES_MIN / 2;

/// The same in bytes of messages; the last one may exceed it.
pub const SPILL_BLOCK_BYTES_MAX: usize = RESIDENT_BYTES_MIN / 2;

/// Bytes of messages that are spilled in one go: whoever waits for a page waits no longer than that takes.
pub const SPILL_STEP_BYTES_MAX: usize = 1024 * 1024;

/// Tries, `PAGE_RETRY_MS` apart, until a block that the disk does not give is taken for lost: a lack of descriptors
/// passes, and a queue is not to wait for ever.
pub const SPILL_READ_TRIES_MAX: u32 = 10;

/// Bytes of one file of spilled blocks, unless a single block is larger; what is deleted together.
pub const SPILL_SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Bytes that spilling leaves free on the disk beyond `disk_free_limit`: the store must not fail, and publishers not
/// be blocked, for the sake of what may as well stay in memory.
pub const SPILL_DISK_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Exchanges that one connection remembers as writable; most publish to a few.
pub const WRITABLE_EXCHANGES_MAX: usize = 64;

/// Messages that an exchange of type x-recent-history keeps at most: all of them are in memory, and each new
/// binding gets all of them at once.
pub const HISTORY_MESSAGES_MAX: i64 = 100_000;

/// Values that an exchange with deduplication remembers when it does not say (LavinMQ's default).
pub const DEDUPLICATION_KEYS_DEFAULT: usize = 128;

/// Values that such an exchange may remember at most; each takes about 100 bytes of memory.
pub const DEDUPLICATION_KEYS_MAX: usize = 1_000_000;

/// Entries of one queue that wait to be dead-lettered before whoever adds more of them waits as well: dead
/// letters of one queue are made one by one, and the memory for those that wait is bounded.
pub const DEAD_WAITING_MAX: usize = 8192;

/// Dead letters of one queue that nobody takes (`x-dead-letter-strategy` at-least-once) and that are tried again
/// in one go: more would keep the clock from other queues.
pub const LETTERS_RETRIED_MAX: usize = 2048;

/// Dead letters of one queue that are forwarded between two looks at the queue.
pub const LETTERS_STEP_MAX: usize = 64;

/// Milliseconds until dead letters that nobody took are tried again. RabbitMQ waits three minutes; here that
/// costs little, and what was in the way is often gone soon.
pub const LETTERS_RETRY_MS: u64 = 1000;

/// Entries of one queue that one caller dead-letters before it leaves what others add to the clock's task.
pub const DEAD_BURIED_MAX: usize = 16 * 1024;

/// Fewest bytes of a passphrase that opens a keyring: Argon2id slows guessing down, it does not replace length.
pub const PASSPHRASE_BYTES_MIN: usize = 8;

/// Most bytes of a passphrase: longer than any that people type, short enough for one read.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

/// Longest wait for the answer to a change of the keyring, in seconds: four synced writes and the batch before them.
pub const KEYRING_CHANGE_SECONDS_MAX: u64 = 30;

/// Most bytes that a key service may make of a slot's key; Vault makes 90 of it, a token 60.
pub const KEY_SERVICE_BLOB_BYTES_MAX: usize = 4096;

/// Faults that an audit of a store keeps with their places; more are counted only. A store in ruins must not need
/// memory for each of its messages.
pub const AUDIT_FAULTS_MAX: usize = 10_000;

/// Records that an audit opens between two reports of how far it has come.
pub const AUDIT_PROGRESS_RECORDS: u64 = 4096;

/// Seconds that a key server may take for one answer: a start should not hang on it, and it is asked twice at most.
pub const KEY_SERVICE_SECONDS_MAX: u64 = 10;

/// Most bytes of a key server's answer; Vault's has less than one thousand.
pub const KEY_SERVICE_ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Longest time between two looks at memory and disk, in milliseconds.
pub const ALARM_LOOK_MS_MAX: u64 = 1000;

/// Shortest time between two looks at memory and disk, in milliseconds; a look costs some microseconds.
pub const ALARM_LOOK_MS_MIN: u64 = 10;

/// How fast memory or disk is taken to be used up at most, in bytes a millisecond.
pub const ALARM_RATE_BYTES_PER_MS: u64 = 1024 * 1024;

/// Most threads that read the store at a start: more only wait for the disk, or for the one that adds up what they saw.
pub const READ_THREADS_MAX: usize = 8;

/// Most threads that read bodies: each has one as a whole in memory, twice.
pub const READ_BODY_THREADS_MAX: usize = 2;

/// Bytes of live messages from which on a queue's deleted entries stay without tombstones where they can. What a shorter
/// one leaves behind is little, and among that of other queues: it is best merged away.
pub const LONG_QUEUE_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// Bytes of deleted entries of one queue that may stand in tables, about, before it is looked which tables can go as
/// files: some of them, which are up to 32 MiB each.
pub const REMAINS_OF_A_QUEUE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The same of all queues together, before they get tombstones for RocksDB to write the tables anew; or half of the
/// tables, whichever is more.
pub const REMAINS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Bytes of a table that one thread reads before the next part, about: large enough for beginning anew not to count. A
/// table of several queues may be cut where it has no keys, so that a part is up to the whole table.
pub const READ_PART_BYTES: u64 = 8 * 1024 * 1024;

/// The same of a table of bodies, which are in files of their own: it holds some 30 bytes of each.
pub const READ_BODY_PART_BYTES: u64 = 512 * 1024;

/// Records that a thread has looked at before it tells of them, at about 100 bytes each: enough for telling not to count.
pub const READ_PIECE_SEEN: usize = 4096;

/// Pieces that a thread may have told that nobody has asked for yet. Together they are a part of the smallest records, so
/// that a thread need not wait before its turn comes; with one more in its hand, 5 MiB a thread.
pub const READ_PIECES_AHEAD: usize = 12;
