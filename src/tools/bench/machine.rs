//! What Linux says of processes and of the machine (proc(5)): CPU time, memory, cores.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::{Error, Result};

/// Ticks a second in `/proc/PID/stat`: USER_HZ, which is 100 on every architecture that this runs on.
const TICKS_PER_S: f64 = 100.0;
/// How often a process that is to come to rest is looked at, and how long at most.
const REST_STEP: Duration = Duration::from_millis(100);
const REST_TIMEOUT: Duration = Duration::from_secs(10);

/// CPU seconds, user and system, that processes have used so far, or between two looks.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// The broker's.
    pub broker_s: Option<f64>,
    /// This process's own.
    pub own_s: f64,
}

impl Cpu {
    /// Looks now.
    pub fn of(broker: Option<u32>) -> Result<Cpu> {
        let broker_s = broker.map(|pid| cpu_seconds(&pid.to_string())).transpose()?;
        Ok(Cpu { broker_s, own_s: cpu_seconds("self")? })
    }

    /// What was used since an earlier look.
    pub fn since(&self, before: &Cpu) -> Cpu {
        let broker_s = self.broker_s.zip(before.broker_s).map(|(now, before)| now - before);
        Cpu { broker_s, own_s: self.own_s - before.own_s }
    }
}

fn cpu_seconds(process: &str) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{process}/stat"));
    let text = read(&path)?;
    parse_stat(&text).ok_or_else(|| Error::Unusable { path, problem: "not what proc(5) describes".into() })
}

/// utime and stime are the 14th and 15th field; the second one, the name in parentheses, may hold anything.
fn parse_stat(text: &str) -> Option<f64> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_S)
}

/// Waits until a process has used next to no CPU for a while, or for ten seconds.
pub async fn at_rest(broker: Option<u32>) -> Result<()> {
    let Some(pid) = broker.map(|pid| pid.to_string()) else { return Ok(()) };
    let began = Instant::now();
    let (mut last_s, mut quiet) = (cpu_seconds(&pid)?, 0);
    while quiet < 2 && began.elapsed() < REST_TIMEOUT {
        tokio::time::sleep(REST_STEP).await;
        let now_s = cpu_seconds(&pid)?;
        quiet = if now_s - last_s <= 1.5 / TICKS_PER_S { quiet + 1 } else { 0 };
        last_s = now_s;
    }
    Ok(())
}

/// A process's resident memory, in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = read(&path)?;
    let kib = kib_of(&text, "VmRSS:");
    let mib = kib.map(|kib| (kib / 102.4).round() / 10.0);
    mib.ok_or_else(|| Error::Unusable { path, problem: "it names no VmRSS".into() })
}

fn kib_of(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.clone(), source })
}

/// What figures were measured on. Whatever the system does not tell is absent.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// logical processors this process may use
    pub cores: usize,
    /// the processor's name
    pub processor: Option<String>,
    /// memory in MiB
    pub memory_mib: Option<u64>,
    /// kernel
    pub kernel: Option<String>,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let text = |path: &str| fs::read_to_string(path).ok();
        let model = |cpus: String| {
            let line = cpus.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Machine {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: text("/proc/cpuinfo").and_then(model),
            memory_mib: text("/proc/meminfo")
                .and_then(|t| kib_of(&t, "MemTotal:"))
                .map(|kib| (kib / 1024.0) as u64),
            kernel: text("/proc/sys/kernel/osrelease").map(|t| t.trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(parse_stat(stat), Some(3.0));
        assert_eq!(parse_stat("12 (x) S 1"), None);
    }

    #[test]
    fn this_process_has_cpu_time_and_memory_and_a_missing_one_has_none() {
        assert!(Cpu::of(Some(std::process::id())).unwrap().broker_s.is_some());
        assert!(resident_mib(std::process::id()).unwrap() > 0.0);
        let error = Cpu::of(Some(u32::MAX)).unwrap_err().to_string();
        assert!(error.contains("/proc/4294967295/stat"), "{error}");
    }
}
