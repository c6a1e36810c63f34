//! Every key that is known, and what this broker makes of it. No values are read here.

use super::key_service::{TOKEN_KEYS, VAULT_KEYS};

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is obeyed.
    Obeyed,
    /// RabbitMQ knows it; here it changes nothing, and nothing depends on that.
    Ignored,
    /// RabbitMQ knows it; here it changes nothing, and whoever wrote it may rely on its effect.
    IgnoredWithEffect,
    /// Nobody knows it.
    Unknown,
}

// `*` stands for one segment at least; the rest is literal. Those of key services are in a list of their own.
const OBEYED: &[&str] = &[
    "listeners.tcp",
    "listeners.tcp.*",
    "listeners.ssl",
    "listeners.ssl.*",
    "ssl_options.cacertfile",
    "ssl_options.certfile",
    "ssl_options.keyfile",
    "ssl_options.verify",
    "ssl_options.fail_if_no_peer_cert",
    "ssl_options.versions.*",
    "ssl_handshake_timeout",
    "ssl_cert_login_from",
    "auth_mechanisms.*",
    "loopback_users",
    "loopback_users.*",
    "default_user",
    "default_pass",
    "default_pass_file",
    "default_vhost",
    "default_user_tags.*",
    "default_permissions.configure",
    "default_permissions.read",
    "default_permissions.write",
    "default_users.*",
    "heartbeat",
    "frame_max",
    "initial_frame_max",
    "channel_max",
    "max_message_size",
    "handshake_timeout",
    "consumer_timeout",
    "tcp_listen_options.backlog",
    "tcp_listen_options.nodelay",
    "tcp_listen_options.keepalive",
    "tcp_listen_options.sndbuf",
    "tcp_listen_options.recbuf",
    "vm_memory_high_watermark.relative",
    "vm_memory_high_watermark.absolute",
    "queue.resident_limit.messages",
    "queue.resident_limit.bytes",
    "disk_free_limit.relative",
    "disk_free_limit.absolute",
    "log.console",
    "log.console.level",
    "log.console.formatter",
    "cluster_name",
    "server.product",
    "server.version",
    "data_dir",
    "at_rest.anchor.path",
    "at_rest.mode",
    "at_rest.padding",
    "at_rest.erase_within",
    "at_rest.reseal_after",
    "at_rest.kek.file",
    "at_rest.kek.env",
    "at_rest.kek.credential",
    "at_rest.kek.fd",
    "at_rest.kek.command.*",
    "at_rest.kek.passphrase_file",
    "at_rest.kek.passphrase_fd",
    "at_rest.kek.passphrase_prompt",
    "at_rest.kek.generate",
    "at_rest.kek.generate_path",
    "control.socket",
];

const IGNORED_WITH_EFFECT: &[&str] = &[
    "auth_backends.*",
    "auth_ldap.*",
    "auth_http.*",
    "auth_oauth2.*",
    "auth_cache.*",
    "channel_max_per_node",
    "connection_max",
    "consumer_max_per_channel",
    "credential_validator.*",
    "default_limits.*",
    "default_policies.*",
    "default_queue_type",
    "definitions.*",
    "load_definitions",
    "message_interceptors.*",
    "mqtt.*",
    "proxy_protocol",
    "ssl_cert_login_san_index",
    "ssl_cert_login_san_type",
    "ssl_options.*",
    "stomp.*",
    "stream.*",
    "vhost_max",
    "web_mqtt.*",
    "web_stomp.*",
];

const IGNORED: &[&str] = &[
    "anonymous_login_user",
    "anonymous_login_pass",
    "background_gc_enabled",
    "background_gc_target_interval",
    "classic_queue.*",
    "cluster_formation.*",
    "cluster_keepalive_interval",
    "cluster_partition_handling",
    "cluster_partition_handling.*",
    "cluster_queue_limit",
    "collect_statistics",
    "collect_statistics_interval",
    "delegate_count",
    "deprecated_features.*",
    "distribution.*",
    "erlang.*",
    "exchange_max",
    "feature_flags.*",
    "federation.*",
    "log.*",
    "management.*",
    "management_agent.*",
    "mirroring_sync_batch_size",
    "mnesia_table_loading_retry_limit",
    "mnesia_table_loading_retry_timeout",
    "mnesia_logdir",
    "msg_store_file_size_limit",
    "msg_store_index_module",
    "net_ticktime",
    "node_tags.*",
    "nodename",
    "num_acceptors.*",
    "password_hashing_module",
    "product.*",
    "prometheus.*",
    "queue_index_embed_msgs_below",
    "queue_index_max_journal_entries",
    "queue_leader_locator",
    "queue_master_locator",
    "quorum_queue.*",
    "quorum_commands_soft_limit",
    "quorum_cluster_size",
    "raft.*",
    "reverse_dns_lookups",
    "shovel.*",
    "sysmon_handler.*",
    "tcp_listen_options.*",
    "total_memory_available_override_value",
    "trace_vhosts.*",
    "tracing.*",
    "vm_memory_calculation_strategy",
    "vm_memory_high_watermark_paging_ratio",
];

/// What becomes of `key`.
pub fn meaning(key: &str) -> Meaning {
    let listed = |patterns: &[&str]| patterns.iter().any(|pattern| fits(pattern, key));
    if [OBEYED, &TOKEN_KEYS, &VAULT_KEYS].into_iter().any(listed) {
        Meaning::Obeyed
    } else if listed(IGNORED_WITH_EFFECT) {
        Meaning::IgnoredWithEffect
    } else if listed(IGNORED) {
        Meaning::Ignored
    } else {
        Meaning::Unknown
    }
}

/// Whether a value of `key` must never be shown.
pub fn is_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    ["pass", "password", "secret"].iter().any(|word| last.ends_with(word))
}

/// The obeyed key that was probably meant: one of at most two edits away.
pub fn suggestion(key: &str) -> Option<&'static str> {
    let near = |known: &&&str| !known.ends_with('*') && edits(known, key) <= 2;
    OBEYED
        .iter()
        .chain(&TOKEN_KEYS)
        .chain(&VAULT_KEYS)
        .filter(near)
        .min_by_key(|known| edits(known, key))
        .copied()
}

fn fits(pattern: &str, key: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => key.len() > prefix.len() && key.starts_with(prefix),
        None => key == pattern,
    }
}

// Levenshtein distance, one row at a time.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_one_meaning() {
        for (key, wanted) in [
            ("listeners.tcp", Meaning::Obeyed),
            ("listeners.tcp.default", Meaning::Obeyed),
            ("loopback_users.guest", Meaning::Obeyed),
            ("default_users.bob.password", Meaning::Obeyed),
            ("ssl_options.versions.1", Meaning::Obeyed),
            ("ssl_options.depth", Meaning::IgnoredWithEffect),
            ("auth_backends.1", Meaning::IgnoredWithEffect),
            ("management.tcp.port", Meaning::Ignored),
            ("log.file.level", Meaning::Ignored),
            ("log.console", Meaning::Obeyed),
            ("heartbeats", Meaning::Unknown),
            ("listeners", Meaning::Unknown),
            ("listeners.tcp.", Meaning::Unknown),
        ] {
            assert_eq!(meaning(key), wanted, "{key}");
        }
    }

    #[test]
    fn secrets_are_recognised_by_their_last_word() {
        for key in [
            "default_pass",
            "default_users.bob.password",
            "ssl_options.password",
            "auth_oauth2.client_secret",
        ] {
            assert!(is_secret(key), "{key}");
        }
        assert!(!is_secret("default_pass_file") && !is_secret("heartbeat"));
    }

    #[test]
    fn a_typo_finds_its_key() {
        assert_eq!(suggestion("ssl_options.cacertfle"), Some("ssl_options.cacertfile"));
        assert_eq!(suggestion("hartbeat"), Some("heartbeat"));
        assert_eq!(suggestion("nothing.like.it"), None);
    }
}
