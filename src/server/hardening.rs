//! What the process takes from itself before it reads a secret: core dumps, debuggers of the same user, new
//! privileges, files that others may read. What the machine denies is a warning, for the broker serves all the same.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, setrlimit};

use super::settings::Notice;
use crate::seal;

/// Gives up what the process does not need, and says what it could not give up. To be called once, at the start.
pub fn apply() -> Vec<Notice> {
    // Whatever is made from here on (store, control socket) is the owner's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    // Where cores are piped to a program the limit does not hold, and where it holds the flag may be reset: both.
    let steps = [
        ("PR_SET_DUMPABLE", rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)),
        ("RLIMIT_CORE", setrlimit(Resource::Core, nothing)),
        ("PR_SET_NO_NEW_PRIVS", rustix::thread::set_no_new_privs(true)),
    ];
    // Keys need little locked memory, and the hard limit is what the operator allows.
    let locked = getrlimit(Resource::Memlock);
    let _ = setrlimit(Resource::Memlock, Rlimit { current: locked.maximum, ..locked });
    let refused = steps.into_iter().filter_map(|(step, result)| Some((step, result.err()?)));
    refused
        .map(|(step, error)| {
            Notice::Warning(format!("{step}: {error}: a crash or a debugger may show what is in memory"))
        })
        .collect()
}

/// What is left to warn of once the store is open: memory that may reach a disk.
pub fn swap_notices() -> Vec<Notice> {
    let mut notices = Vec::new();
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let swaps = read("/proc/swaps").unwrap_or_default();
    let limit = read("/proc/self/cgroup").and_then(|text| read(&swap_limit_path(&text)));
    if may_swap(&swaps, limit.as_deref()) {
        notices.push(Notice::Warning(
            "swap is on: messages in memory may be written to it as they are; switch it off for this process \
             (systemd: MemorySwapMax=0; Docker: memswap_limit equal to mem_limit), or encrypt it"
                .into(),
        ));
    }
    let unlocked = seal::unlocked_bytes();
    if unlocked > 0 {
        notices.push(Notice::Warning(format!(
            "{unlocked} bytes of keys cannot be locked into memory: raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=64M)"
        )));
    }
    notices
}

/// The file that bounds this process's swap, from `/proc/self/cgroup`.
fn swap_limit_path(cgroups: &str) -> String {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    format!("/sys/fs/cgroup{}/memory.swap.max", path.trim_end_matches('/'))
}

/// Whether there is swap (a line below the heading of `/proc/swaps`) that the cgroup does not forbid.
fn may_swap(swaps: &str, limit: Option<&str>) -> bool {
    swaps.lines().count() > 1 && limit.is_none_or(|limit| limit.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own, because it cannot be undone: this test runs itself again.
    #[test]
    fn dumps_debuggers_privileges_and_files_for_others_are_given_up() {
        const CHILD: &str = "SEALMQ_TEST_HARDENED";
        if std::env::var_os(CHILD).is_some() {
            assert_eq!(apply(), []);
            assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
            assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
            assert!(rustix::thread::no_new_privs().unwrap());
            let locked = getrlimit(Resource::Memlock);
            assert_eq!(locked.current, locked.maximum);
            assert_eq!(rustix::process::umask(rustix::fs::Mode::empty()).as_raw_mode(), 0o077);
            return;
        }
        let name = "server::hardening::tests::dumps_debuggers_privileges_and_files_for_others_are_given_up";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && output.contains("1 passed"), "{output}");
    }

    #[test]
    fn swap_is_warned_of_unless_there_is_none_or_it_is_forbidden() {
        const NONE: &str = "Filename Type Size Used Priority\n";
        let some = format!("{NONE}/swapfile file 1048572 0 -2\n");
        for (swaps, limit, warned) in [
            ("", None, false),
            (NONE, None, false),
            (NONE, Some("max\n"), false),
            (&some, Some("0\n"), false),
            (&some, Some("max\n"), true),
            (&some, Some("1048576\n"), true),
            (&some, None, true),
        ] {
            assert_eq!(may_swap(swaps, limit), warned, "{swaps:?} {limit:?}");
        }
    }

    #[test]
    fn the_swap_limit_is_the_cgroups_own() {
        for (cgroups, path) in [
            ("0::/\n", "/sys/fs/cgroup/memory.swap.max"),
            (
                "1:name=x:/y\n0::/system.slice/sealmq.service\n",
                "/sys/fs/cgroup/system.slice/sealmq.service/memory.swap.max",
            ),
            ("", "/sys/fs/cgroup/memory.swap.max"),
        ] {
            assert_eq!(swap_limit_path(cgroups), path);
        }
    }
}
