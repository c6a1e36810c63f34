//! What the machine says: memory, disk, file descriptors. Linux only, by way of `/proc`; what cannot
//! be read is `None`, and nobody is blocked for it.

use std::path::Path;

const PAGE_BYTES: u64 = 4096;

/// Resident memory of this process in bytes.
pub fn memory_resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * PAGE_BYTES)
}

/// Memory that this process may have: the machine's, or the container's if that is less.
pub fn memory_total_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match (machine, container) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Free bytes, for this user, of the file system that holds `path`.
pub fn disk_free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Open file descriptors, and how many may be open.
pub fn file_descriptors() -> (u64, u64) {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0);
    (open, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_disk_and_descriptors() {
        let (resident, total) = (memory_resident_bytes().unwrap(), memory_total_bytes().unwrap());
        assert!(resident > 0 && resident < total);
        assert!(disk_free_bytes(Path::new("/")).is_some());
        assert!(file_descriptors().0 >= 3);
    }
}
